//! Where a sync is called: on the ring, whose kernel threads carry it out while the loop goes on, or in
//! the loop itself, which saves the two hand-overs between threads but stops everything else.
//!
//! The second pays when the device syncs in about the time of a few wake-ups and hardly anybody waits for anything
//! else: with one client that syncs after each write, 1.0 to 1.65 times as many writes (mostly 1.3) for half
//! the processor time; with sixteen requests on their way, nothing (docs/performance.md). How long the device
//! takes is seen by trying: a sync that took long here is followed by many on the ring.

use std::time::Duration;

/// Syncs in the loop take no longer than this, usually.
const SYNC_TIME_MAX: Duration = Duration::from_micros(500);
/// The usual time follows the last one by this part.
const SMOOTHING: u32 = 16;
/// Syncs on the ring after those in the loop became too slow: doubled each time, between these bounds. A
/// device that is always slow stops the loop for a few syncs in so many.
const PAUSE_MIN: u32 = 64;
const PAUSE_MAX: u32 = 1 << 14;
/// So many in the loop without a pause halve the next one.
const QUICK_MIN: u32 = 256;

/// Decides it, from how long syncs in the loop have taken.
#[derive(Debug)]
pub(crate) struct SyncWay {
    /// What a sync in the loop usually takes.
    usual: Duration,
    /// Syncs that go to the ring before one is tried here.
    pause: u32,
    /// The next pause.
    pause_next: u32,
    /// Syncs in the loop since the last pause, or since the next one was halved.
    quick: u32,
}

impl Default for SyncWay {
    fn default() -> Self {
        Self {
            usual: SYNC_TIME_MAX / 2,
            pause: 0,
            pause_next: PAUSE_MIN,
            quick: 0,
        }
    }
}

impl SyncWay {
    /// Whether the next sync is called in the loop, which has `few` requests on their way or not.
    pub(crate) fn is_here(&mut self, few: bool) -> bool {
        if self.pause > 0 {
            self.pause -= 1;
            return false;
        }
        few
    }

    /// A sync in the loop took this long.
    pub(crate) fn took(&mut self, time: Duration) {
        // However long: no single one weighs more than this.
        let time = time.min(SYNC_TIME_MAX * SMOOTHING);
        self.usual = (self.usual * (SMOOTHING - 1) + time) / SMOOTHING;
        if self.usual > SYNC_TIME_MAX {
            self.pause = self.pause_next;
            self.pause_next = (self.pause_next * 2).min(PAUSE_MAX);
            self.usual = SYNC_TIME_MAX / 2;
            self.quick = 0;
            return;
        }
        self.quick += 1;
        if self.quick >= QUICK_MIN {
            self.quick = 0;
            self.pause_next = (self.pause_next / 2).max(PAUSE_MIN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `count` syncs that take so long, how many are called in the loop.
    fn here(way: &mut SyncWay, count: u32, time: Duration) -> u32 {
        let mut here = 0;
        for _ in 0..count {
            if way.is_here(true) {
                here += 1;
                way.took(time);
            }
        }
        here
    }

    const QUICK: Duration = Duration::from_micros(60);
    const SLOW: Duration = Duration::from_millis(5);

    #[test]
    fn quick_syncs_are_called_in_the_loop_unless_many_wait() {
        let mut way = SyncWay::default();
        assert_eq!(here(&mut way, 1000, QUICK), 1000);
        assert!(!way.is_here(false));
        assert!(way.is_here(true));
    }

    #[test]
    fn a_slow_device_is_tried_ever_more_rarely_and_forgiven_when_it_is_quick_again() {
        let mut way = SyncWay::default();
        let tried = here(&mut way, 1_000_000, SLOW);
        assert!((60..=80).contains(&tried), "{tried}");
        while !way.is_here(true) {}
        assert_eq!(here(&mut way, QUICK_MIN * 16, QUICK), QUICK_MIN * 16);
        assert_eq!(way.pause_next, PAUSE_MIN);
        assert!(here(&mut way, PAUSE_MIN, SLOW) <= 2);
    }

    #[test]
    fn a_slow_one_now_and_then_changes_nothing() {
        let mut way = SyncWay::default();
        for _ in 0..100 {
            assert_eq!(here(&mut way, 99, QUICK), 99);
            assert_eq!(here(&mut way, 1, Duration::from_millis(1)), 1);
        }
    }
}
