//! When to ask a provider again: a schedule as data. The caller brings the time and the randomness.

use crate::error::KeyErrorKind;
use std::time::Duration;

/// The first wait after a provider was out of reach.
pub const FIRST: Duration = Duration::from_secs(1);
/// The longest wait while it is.
pub const LONGEST: Duration = Duration::from_secs(60);
/// The wait after a refusal or a missing key: an operator has to change something first.
pub const AFTER_REFUSAL: Duration = Duration::from_secs(300);

/// How often a provider failed since it last answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retry {
    failures: u32,
}

impl Retry {
    /// It failed: how long to wait before it is asked again, or none when that would not help. `random` is
    /// any number; it spreads the nodes that lost one server together over a quarter of the wait.
    pub fn failed(&mut self, kind: KeyErrorKind, random: u64) -> Option<Duration> {
        let wait = match kind {
            KeyErrorKind::Unreachable => {
                let doubled = FIRST.saturating_mul(1 << self.failures.min(16));
                self.failures = self.failures.saturating_add(1);
                doubled.min(LONGEST)
            }
            KeyErrorKind::Denied | KeyErrorKind::KeyMissing => AFTER_REFUSAL,
            KeyErrorKind::Damaged | KeyErrorKind::Config => return None,
        };
        let spread = wait / 4;
        let part = u32::try_from(random % 1024).unwrap_or(0);
        Some(wait - spread * part / 1024)
    }

    /// It answered.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_begin_anew() {
        let mut retry = Retry::default();
        let waits: Vec<u64> = (0..9)
            .map(|_| {
                retry
                    .failed(KeyErrorKind::Unreachable, 0)
                    .unwrap()
                    .as_secs()
            })
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        for _ in 0..100 {
            assert_eq!(retry.failed(KeyErrorKind::Unreachable, 0), Some(LONGEST));
        }
        retry.succeeded();
        assert_eq!(retry.failed(KeyErrorKind::Unreachable, 0), Some(FIRST));
    }

    #[test]
    fn waits_are_spread_over_a_quarter() {
        for random in [0, 1, 512, 1023, u64::MAX] {
            let mut retry = Retry { failures: 20 };
            let wait = retry.failed(KeyErrorKind::Unreachable, random).unwrap();
            assert!(wait <= LONGEST && wait >= LONGEST * 3 / 4, "{wait:?}");
        }
        let wait = |random| Retry::default().failed(KeyErrorKind::Denied, random);
        assert_ne!(wait(1), wait(700));
    }

    #[test]
    fn what_asking_again_cannot_mend_is_not_asked_again() {
        let mut retry = Retry::default();
        assert_eq!(retry.failed(KeyErrorKind::Damaged, 0), None);
        assert_eq!(retry.failed(KeyErrorKind::Config, 0), None);
        assert_eq!(
            retry.failed(KeyErrorKind::KeyMissing, 0),
            Some(AFTER_REFUSAL)
        );
    }
}
