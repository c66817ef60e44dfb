//! How a loop waits: sleeping costs a wake-up, which at depth 1 is a large part of a request's time;
//! under load each wake-up should bring several completions.
//!
//! - With one or two requests on their way, and something known to be near (a disk operation of
//!   theirs, or the next request of a client that was just answered), the loop spins for as long as
//!   such waits have been taking, at most [`SPIN_TIME_MAX`]. A spin that finds nothing is paid for
//!   with a growing number of waits without one, so a machine where spinning does not pay (the
//!   client needs this very core, the device is slow) soon sleeps. An idle loop never spins: with
//!   no request on its way and no recent answer nothing is near.
//! - With many requests on their way the loop lets a few completions gather, for at most
//!   [`GATHER_TIME_MAX`].

use esker_base::Moment;
use std::time::Duration;

/// Longest spin. Longer waits are slept through: their wake-up weighs little.
pub(crate) const SPIN_TIME_MAX: Duration = Duration::from_micros(100);
/// Added to the usual wait, so that a spin does not end just before what it waits for.
const SPIN_TIME_SPARE: Duration = Duration::from_micros(10);
/// With more requests on their way (at the recent peak) the loop does not spin.
const SPIN_REQUESTS_MAX: usize = 2;
/// The next request of a client counts as near for so long after an answer.
const NEAR_TIME: Duration = Duration::from_micros(200);
/// Waits without a spin after spins that found nothing: doubled by each, up to this many.
const PAUSE_MAX: u32 = 1024;
/// From so many requests on their way the loop gathers completions.
const GATHER_REQUESTS_MIN: usize = 8;
/// Longest time for which a completion may lie unseen because others are awaited.
pub(crate) const GATHER_TIME_MAX: Duration = Duration::from_micros(30);
/// Most completions that are awaited together.
const GATHER_COMPLETIONS_MAX: usize = 8;

/// How to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Not at all: there is more to do.
    No,
    /// Until something completes.
    Sleep,
    /// As `Sleep`, looking for completions for so long first.
    Spin(Duration),
    /// Until so many completions are there; after [`GATHER_TIME_MAX`] one is enough.
    Gather(usize),
}

/// What a loop knows when it is about to wait.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outlook {
    /// Client requests on their way.
    pub(crate) requests: usize,
    /// Disk operations on their way.
    pub(crate) disk_operations: usize,
}

/// Decides how to wait, from how the last waits went.
#[derive(Debug, Default)]
pub(crate) struct Pacer {
    /// The usual length of waits for something near, in nanoseconds.
    near_wait_ns: u64,
    /// Spins in a row that found nothing.
    misses: u32,
    /// Waits until the next spin.
    pause: u32,
    /// A peak of the requests on their way that decays, in sixteenths.
    peak: usize,
    replied: Option<Moment>,
    was_near: bool,
}

impl Pacer {
    /// Output was given to a client.
    pub(crate) fn replied(&mut self, now: Moment) {
        self.replied = Some(now);
    }

    /// How to wait now.
    pub(crate) fn plan(&mut self, now: Moment, outlook: Outlook) -> Wait {
        self.peak = (outlook.requests * 16).max(self.peak - self.peak.div_ceil(8));
        let requests = self.peak.div_ceil(16);
        let answered = self.replied.is_some_and(|at| now < at + NEAR_TIME);
        let disk_is_near = outlook.requests > 0 && outlook.disk_operations > 0;
        self.was_near = disk_is_near || (answered && outlook.requests == 0);
        if requests >= GATHER_REQUESTS_MIN {
            let half = outlook.disk_operations / 2;
            return Wait::Gather(half.clamp(2, GATHER_COMPLETIONS_MAX));
        }
        let usual = Duration::from_nanos(self.near_wait_ns);
        if !self.was_near || requests > SPIN_REQUESTS_MAX || usual > SPIN_TIME_MAX {
            return Wait::Sleep;
        }
        if self.pause > 0 {
            self.pause -= 1;
            return Wait::Sleep;
        }
        Wait::Spin((usual * 2 + SPIN_TIME_SPARE).min(SPIN_TIME_MAX))
    }

    /// How the wait that was planned last went: whether a spin found something, and how long it took
    /// in all.
    pub(crate) fn waited(&mut self, wait: Wait, found: bool, took: Duration) {
        if self.was_near {
            let took = took.min(SPIN_TIME_MAX * 4);
            let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            self.near_wait_ns = (self.near_wait_ns * 7 + took_ns) / 8;
        }
        match wait {
            Wait::Spin(_) if found => self.misses = 0,
            Wait::Spin(_) => {
                self.misses = (self.misses + 1).min(PAUSE_MAX.ilog2());
                self.pause = 1 << self.misses;
            }
            Wait::No | Wait::Sleep | Wait::Gather(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Outlook = Outlook {
        requests: 1,
        disk_operations: 1,
    };
    const IDLE: Outlook = Outlook {
        requests: 0,
        disk_operations: 1,
    };

    fn micros(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    #[test]
    fn spins_while_it_pays_and_only_then() {
        let mut pacer = Pacer::default();
        for _ in 0..100 {
            let wait = pacer.plan(Moment(0), ONE);
            assert!(matches!(wait, Wait::Spin(_)));
            pacer.waited(wait, true, micros(40));
        }
        // Twice the usual wait and a little; the smoothing rounds down.
        let Wait::Spin(time) = pacer.plan(Moment(0), ONE) else {
            panic!()
        };
        assert!(time > micros(85) && time <= micros(90), "{time:?}");
        // The device becomes slow: after a few waits there is no spinning.
        for _ in 0..20 {
            let wait = pacer.plan(Moment(0), ONE);
            pacer.waited(wait, false, micros(400));
        }
        assert_eq!(pacer.plan(Moment(0), ONE), Wait::Sleep);
    }

    #[test]
    fn spins_that_find_nothing_become_rare() {
        let mut pacer = Pacer::default();
        let mut spins = 0;
        for _ in 0..10_000 {
            let wait = pacer.plan(Moment(0), ONE);
            spins += usize::from(matches!(wait, Wait::Spin(_)));
            // As where the client shares this core: it is there as soon as the loop sleeps.
            pacer.waited(wait, false, micros(20));
        }
        assert!(spins < 25, "{spins}");
    }

    #[test]
    fn an_idle_loop_sleeps() {
        let mut pacer = Pacer::default();
        assert_eq!(pacer.plan(Moment(0), IDLE), Wait::Sleep);
        pacer.replied(Moment(0));
        assert!(matches!(pacer.plan(Moment(1), IDLE), Wait::Spin(_)));
        let later = Moment(0) + NEAR_TIME;
        assert_eq!(pacer.plan(later, IDLE), Wait::Sleep);
    }

    #[test]
    fn many_requests_gather_completions_and_are_not_spun_for() {
        let mut pacer = Pacer::default();
        let busy = Outlook {
            requests: 32,
            disk_operations: 2,
        };
        assert_eq!(pacer.plan(Moment(0), busy), Wait::Gather(2));
        let reads = Outlook {
            requests: 32,
            disk_operations: 32,
        };
        assert_eq!(pacer.plan(Moment(0), reads), Wait::Gather(8));
        // A moment in which few are there changes nothing; many such moments do.
        assert_eq!(pacer.plan(Moment(0), ONE), Wait::Gather(2));
        let mut waits = 0;
        while !matches!(pacer.plan(Moment(0), ONE), Wait::Spin(_)) {
            waits += 1;
            assert!(waits < 40);
        }
    }
}
