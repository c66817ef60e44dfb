//! How long to wait before connecting again.

use esker_base::Moment;
use std::time::Duration;

/// The wait after a first failure.
pub const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// The longest one. A link that was up for so long begins anew.
pub const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Waits that double, spread by a quarter to both sides so that nodes do not keep step.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// When to try again after a failure; `spread` is any number.
    pub(super) fn next(&mut self, now: Moment, spread: u64) -> Moment {
        let wait = BACKOFF_MIN.saturating_mul(1 << self.failures.min(8));
        let wait = wait.min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        // The upper half of a multiplicative hash, as a part of half the wait.
        let part = u32::try_from(spread.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48).unwrap_or(0);
        now + wait * 3 / 4 + wait / 2 * part / (1 << 16)
    }

    pub(super) fn forget(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_maximum_and_are_spread() {
        let mut backoff = Backoff::default();
        let mut wait = |spread| {
            let at = backoff.next(Moment(0), spread);
            Duration::from_nanos(at.0)
        };
        let waits: Vec<_> = (0..20).map(&mut wait).collect();
        for (n, wait) in waits.iter().enumerate() {
            let middle = (BACKOFF_MIN * (1 << n.min(10))).min(BACKOFF_MAX);
            assert!(
                *wait >= middle * 3 / 4 && *wait <= middle * 5 / 4,
                "{n}: {wait:?}"
            );
        }
        assert!(waits[18] != waits[19]);
        backoff.forget();
        assert!(backoff.next(Moment(0), 7).0 < 130_000_000);
    }
}
