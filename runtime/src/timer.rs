//! Clocks, and the one timer a machine has.

use esker_base::{Moment, WallClock};
use rustix::time::{clock_gettime, ClockId};

/// The monotonic clock that goes on while the machine sleeps: a lease must not outlast what others have waited for
/// meanwhile. All loops of a process read the same one.
#[must_use]
pub fn now() -> Moment {
    let time = clock_gettime(ClockId::Boottime);
    Moment(nanos(time.tv_sec, time.tv_nsec))
}

/// The wall clock.
#[must_use]
pub fn wall_now() -> WallClock {
    let time = clock_gettime(ClockId::Realtime);
    WallClock(nanos(time.tv_sec, time.tv_nsec) / 1_000)
}

/// Nanoseconds of a time that is not negative; a clock before its start reads as zero.
fn nanos(seconds: i64, nanos: i64) -> u64 {
    let seconds = u64::try_from(seconds).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::try_from(nanos).unwrap_or(0))
}

/// The machine's timer: the latest request replaces the one before.
#[derive(Debug, Default)]
pub(crate) struct Timer {
    due: Option<Moment>,
}

impl Timer {
    pub(crate) fn set(&mut self, at: Moment) {
        self.due = Some(at);
    }

    pub(crate) fn due(&self) -> Option<Moment> {
        self.due
    }

    /// True once when the moment has passed.
    pub(crate) fn take_if_due(&mut self, now: Moment) -> bool {
        let is_due = self.due.is_some_and(|due| due <= now);
        if is_due {
            self.due = None;
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_request_replaces_an_earlier_one_and_fires_once() {
        let mut timer = Timer::default();
        timer.set(Moment(10));
        timer.set(Moment(20));
        assert!(!timer.take_if_due(Moment(19)));
        assert!(timer.take_if_due(Moment(20)) && !timer.take_if_due(Moment(30)));
    }
}
