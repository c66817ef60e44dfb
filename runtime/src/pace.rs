//! How a loop waits. Three ways, none of which is best everywhere:
//!
//! - *Sleep* until something completes. The default, and the only way of an idle loop.
//! - *Spin* for a short while first, with one or two requests on their way and something known to be
//!   near (a disk operation of theirs, or the next request of a client that was just answered). It
//!   saves a wake-up, a large part of a small request's time; but it takes a processor, and where
//!   the client wants that one, or where waking the client on another one is dear, it costs more
//!   than it saves.
//! - *Gather*, with many requests on their way: let a few completions come together, for at most
//!   [`GATHER_TIME_MAX`]. It saves wake-ups and system calls, and delays answers.
//!
//! Which way is best depends on the machine, the device and the client, so it is measured: now and
//! then the loop tries the other way for two windows of [`WINDOW_TIME_MIN`], each followed by a window
//! of its own way, and changes only when both pairs say so ([`Trial`]). Trials that find nothing
//! become rare. The beginning of a window does not count: a scheduler places threads by how busy
//! they have been, so what a way costs shows only after a while.

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
/// Shortest time over which a way is measured.
const WINDOW_TIME_MIN: Duration = Duration::from_millis(250);
/// Of which so much at the beginning does not count.
const WINDOW_WARM_UP: Duration = Duration::from_millis(100);
/// Fewest requests over which a way is measured.
const WINDOW_REQUESTS_MIN: u64 = 256;
/// A window with a longer wait than this says nothing: there was nothing to do.
const WINDOW_WAIT_MAX: Duration = Duration::from_millis(5);
/// Windows between trials: doubled by each that changes nothing, between these bounds.
const REST_MIN: u32 = 8;
const REST_MAX: u32 = 256;
/// A way that costs more than sleeping is taken when it needs at most this share of the time, in
/// hundredths, and left when sleeping needs no more than it does.
const GAIN_PERCENT: u64 = 95;
/// Windows of a trial: the other way, this way, the other way, this way.
const TRIAL_WINDOWS: u32 = 4;

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
    /// Client requests that have begun, ever.
    pub(crate) begun: u64,
    /// Client requests on their way.
    pub(crate) requests: usize,
    /// Disk operations on their way.
    pub(crate) disk_operations: usize,
}

/// How many requests a loop has on their way, as far as it matters here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Load {
    /// So few that a spin may pay.
    Few,
    /// Neither: sleeping serves.
    #[default]
    Some,
    /// So many that gathering may pay.
    Many,
}

/// Compares sleeping with another way.
#[derive(Debug)]
struct Trial {
    /// The other way has been taken.
    is_taken: bool,
    /// Windows until the next trial.
    rest: u32,
    /// Windows to rest after a trial that changes nothing.
    rest_next: u32,
    /// Windows of this trial that are over; odd while a pair is half done.
    step: u32,
    /// A trial is going on.
    is_on: bool,
    /// What a request took in the first window of the pair, in picoseconds.
    tried_ps: u64,
    wins: u32,
}

impl Default for Trial {
    fn default() -> Self {
        Self {
            is_taken: false,
            rest: REST_MIN,
            rest_next: REST_MIN,
            step: 0,
            is_on: false,
            tried_ps: 0,
            wins: 0,
        }
    }
}

impl Trial {
    /// Whether the loop waits the other way now.
    fn other_way(&self) -> bool {
        let tries = self.is_on && self.step.is_multiple_of(2);
        self.is_taken != tries
    }

    /// A window ended, in which a request took this long.
    fn window_ended(&mut self, each_ps: u64) {
        if !self.is_on {
            self.rest = self.rest.saturating_sub(1);
            self.is_on = self.rest == 0;
            (self.step, self.wins) = (0, 0);
            return;
        }
        if self.step.is_multiple_of(2) {
            self.tried_ps = each_ps;
        } else {
            let percent = if self.is_taken { 100 } else { GAIN_PERCENT };
            let is_better = self.tried_ps * 100 <= each_ps * percent;
            self.wins += u32::from(is_better);
        }
        self.step += 1;
        if self.step < TRIAL_WINDOWS {
            return;
        }
        self.is_on = false;
        if self.wins * 2 == TRIAL_WINDOWS {
            self.is_taken = !self.is_taken;
            self.rest_next = REST_MIN;
        } else {
            self.rest_next = (self.rest_next * 2).min(REST_MAX);
        }
        self.rest = self.rest_next;
    }
}

/// A time over which a way is measured.
#[derive(Debug)]
struct Window {
    since: Moment,
    /// When counting began, and the requests that had begun by then.
    counted: Option<(Moment, u64)>,
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
    spin: Trial,
    gather: Trial,
    load: Load,
    /// None when it has to begin.
    window: Option<Window>,
}

impl Pacer {
    /// Output was given to a client.
    pub(crate) fn replied(&mut self, now: Moment) {
        self.replied = Some(now);
    }

    /// How to wait now.
    pub(crate) fn plan(&mut self, now: Moment, outlook: Outlook) -> Wait {
        self.peak = (outlook.requests * 16).max(self.peak - self.peak.div_ceil(8));
        let load = match self.peak.div_ceil(16) {
            requests if requests >= GATHER_REQUESTS_MIN => Load::Many,
            requests if requests <= SPIN_REQUESTS_MAX => Load::Few,
            _ => Load::Some,
        };
        self.measure(now, load, outlook.begun);
        let answered = self.replied.is_some_and(|at| now < at + NEAR_TIME);
        let disk_is_near = outlook.requests > 0 && outlook.disk_operations > 0;
        self.was_near = disk_is_near || (answered && outlook.requests == 0);
        match load {
            Load::Many if self.gather.other_way() => {
                let half = outlook.disk_operations / 2;
                Wait::Gather(half.clamp(2, GATHER_COMPLETIONS_MAX))
            }
            Load::Few if self.spin.other_way() => self.plan_spin(),
            _ => Wait::Sleep,
        }
    }

    /// Whether one or two requests are on their way, or none.
    pub(crate) fn has_few(&self) -> bool {
        self.load == Load::Few
    }

    fn plan_spin(&mut self) -> Wait {
        let usual = Duration::from_nanos(self.near_wait_ns);
        if !self.was_near || usual > SPIN_TIME_MAX {
            return Wait::Sleep;
        }
        if self.pause > 0 {
            self.pause -= 1;
            return Wait::Sleep;
        }
        Wait::Spin((usual * 2 + SPIN_TIME_SPARE).min(SPIN_TIME_MAX))
    }

    /// Ends the window when it is full. One in which the load changed says nothing.
    fn measure(&mut self, now: Moment, load: Load, begun: u64) {
        if load != self.load {
            (self.load, self.window) = (load, None);
        }
        let window = self.window.get_or_insert(Window {
            since: now,
            counted: None,
        });
        let age = now.since(window.since);
        let (from, first) = match window.counted {
            Some(counted) => counted,
            None if age < WINDOW_WARM_UP => return,
            None => *window.counted.insert((now, begun)),
        };
        let count = begun.saturating_sub(first);
        if age < WINDOW_TIME_MIN || count < WINDOW_REQUESTS_MIN {
            return;
        }
        let took = u64::try_from(now.since(from).as_nanos()).unwrap_or(u64::MAX);
        let each_ps = took.saturating_mul(1_000) / count;
        match load {
            Load::Few => self.spin.window_ended(each_ps),
            Load::Many => self.gather.window_ended(each_ps),
            Load::Some => {}
        }
        self.window = None;
    }

    /// How the wait that was planned last went: whether a spin found something, and how long it took
    /// in all.
    pub(crate) fn waited(&mut self, wait: Wait, found: bool, took: Duration) {
        if took > WINDOW_WAIT_MAX {
            self.window = None;
        }
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
        begun: 0,
        requests: 1,
        disk_operations: 1,
    };
    const IDLE: Outlook = Outlook {
        begun: 0,
        requests: 0,
        disk_operations: 1,
    };
    const BUSY: Outlook = Outlook {
        begun: 0,
        requests: 32,
        disk_operations: 2,
    };

    fn micros(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    fn spinning() -> Pacer {
        let mut pacer = Pacer::default();
        pacer.spin.is_taken = true;
        pacer
    }

    /// Serves `requests` one after the other, each of which takes what `cost` says of the way; gives
    /// how many were served the other way.
    fn serve(
        pacer: &mut Pacer,
        outlook: Outlook,
        now: &mut Moment,
        requests: u64,
        cost: fn(bool) -> u64,
    ) -> u64 {
        let mut others = 0;
        for begun in 0..requests {
            let wait = pacer.plan(*now, Outlook { begun, ..outlook });
            let other = wait != Wait::Sleep;
            others += u64::from(other);
            *now = *now + micros(cost(other));
            pacer.waited(wait, true, micros(20));
        }
        pacer.window = None;
        others
    }

    #[test]
    fn the_way_that_is_faster_is_found_and_left_when_it_is_not_any_more() {
        for outlook in [ONE, BUSY] {
            let (mut pacer, mut now) = (Pacer::default(), Moment(0));
            let pays = |other: bool| if other { 60 } else { 80 };
            serve(&mut pacer, outlook, &mut now, 100_000, pays);
            let others = serve(&mut pacer, outlook, &mut now, 100_000, pays);
            assert!(others > 90_000, "{others}");
            let costs = |other: bool| if other { 100 } else { 80 };
            serve(&mut pacer, outlook, &mut now, 3_000_000, costs);
            let others = serve(&mut pacer, outlook, &mut now, 1_000_000, costs);
            assert!(others < 20_000, "{others}");
        }
    }

    #[test]
    fn a_small_gain_is_not_worth_a_processor() {
        let (mut pacer, mut now) = (Pacer::default(), Moment(0));
        let hardly = |other: bool| if other { 78 } else { 80 };
        let others = serve(&mut pacer, ONE, &mut now, 3_000_000, hardly);
        assert!(others < 200_000, "{others}");
    }

    #[test]
    fn pauses_of_the_client_say_nothing() {
        let mut pacer = Pacer::default();
        for n in 0..100_000 {
            let now = Moment(n * 10_000_000);
            let wait = pacer.plan(now, Outlook { begun: n, ..ONE });
            assert_eq!(wait, Wait::Sleep);
            pacer.waited(wait, false, micros(10_000));
        }
    }

    #[test]
    fn spins_while_it_pays_and_only_then() {
        let mut pacer = spinning();
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
        let mut pacer = spinning();
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
        let mut pacer = spinning();
        assert_eq!(pacer.plan(Moment(0), IDLE), Wait::Sleep);
        pacer.replied(Moment(0));
        assert!(matches!(pacer.plan(Moment(1), IDLE), Wait::Spin(_)));
        let later = Moment(0) + NEAR_TIME;
        assert_eq!(pacer.plan(later, IDLE), Wait::Sleep);
    }

    #[test]
    fn many_requests_gather_completions_and_are_not_spun_for() {
        let mut pacer = spinning();
        pacer.gather.is_taken = true;
        assert_eq!(pacer.plan(Moment(0), BUSY), Wait::Gather(2));
        let reads = Outlook {
            disk_operations: 32,
            ..BUSY
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
