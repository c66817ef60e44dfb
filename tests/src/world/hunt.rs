//! Many seeds, on all cores.

use super::plan::Options;
use super::stats::{Outcome, Stats};
use super::world::run;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What a hunt found.
#[derive(Clone, Debug, Default)]
pub struct Hunt {
    /// Seeds run: all from the first on, without a gap.
    pub seeds: u64,
    /// Time was over before all seeds were run.
    pub cut_short: bool,
    /// Time it took.
    pub took: Duration,
    /// Counts of all runs.
    pub stats: Stats,
    /// Runs that failed, by seed.
    pub failures: Vec<(u64, String)>,
    /// Virtual time of all runs, in nanoseconds.
    pub virtual_ns: u64,
}

/// Runs a seed; a panic is a violation like any other.
#[must_use]
pub fn run_caught(options: Options) -> Outcome {
    match catch_unwind(AssertUnwindSafe(|| run(options))) {
        Ok(outcome) => outcome,
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
                .unwrap_or_default();
            Outcome {
                seed: options.seed,
                nodes: 0,
                trace: 0,
                steps: 0,
                virtual_ns: 0,
                stats: Stats::default(),
                violation: Some(format!("panic: {text}")),
            }
        }
    }
}

/// Runs seeds from `first` on until `seeds_max` are done, or `time` is over before. With `twice`,
/// each is run a second time and must give the same trace. A failure is printed when it is found.
#[must_use]
pub fn hunt(base: Options, first: u64, seeds_max: u64, time: Duration, twice: bool) -> Hunt {
    let start = Instant::now();
    let end = first.saturating_add(seeds_max);
    let next = AtomicU64::new(first);
    let all = Mutex::new(Hunt::default());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= end {
                    return;
                }
                if start.elapsed() >= time {
                    if let Ok(mut all) = all.lock() {
                        all.cut_short = true;
                    }
                    return;
                }
                let options = Options { seed, ..base };
                let mut outcome = run_caught(options);
                if twice && outcome.violation.is_none() {
                    let again = run_caught(options);
                    if (again.trace, again.steps) != (outcome.trace, outcome.steps) {
                        outcome.violation = Some("two runs of the seed differ".into());
                    }
                }
                let Ok(mut all) = all.lock() else { return };
                all.seeds += 1;
                all.stats.add(&outcome.stats);
                all.virtual_ns += outcome.virtual_ns;
                if let Some(violation) = outcome.violation {
                    println!("esker-sim --seed {seed}: {violation}");
                    all.failures.push((seed, violation));
                }
            });
        }
    });
    let mut found = all.into_inner().unwrap_or_default();
    found.took = start.elapsed();
    found.failures.sort();
    found
}

impl Hunt {
    /// One line for the log of a test.
    #[must_use]
    pub fn summary(&self) -> String {
        let faults: u64 = self.stats.faults.values().sum();
        let operations = self.stats.operations();
        format!(
            "{} seeds in {:.1} s ({:.0} per minute), {:.0} s of virtual time, {operations} operations, \
             {faults} faults of {} kinds, {} of {} recovery branches, {} failures",
            self.seeds,
            self.took.as_secs_f64(),
            self.seeds as f64 / self.took.as_secs_f64().max(0.001) * 60.0,
            Duration::from_nanos(self.virtual_ns).as_secs_f64(),
            self.stats.faults.len(),
            self.stats.probes.len(),
            PROBES.len(),
            self.failures.len()
        )
    }

    /// Branches no run took.
    #[must_use]
    pub fn probes_missed(&self) -> Vec<esker_engine::Probe> {
        let hit = &self.stats.probes;
        PROBES
            .iter()
            .copied()
            .filter(|p| !hit.contains(p))
            .collect()
    }
}

/// Every branch there is.
pub const PROBES: [esker_engine::Probe; 25] = {
    use esker_engine::Probe as P;
    [
        P::Formatted,
        P::CleanEnd,
        P::TornHeader,
        P::TornTail,
        P::DamagedPayload,
        P::DamagedHeader,
        P::GroupSuspended,
        P::GroupCleared,
        P::SegmentCrossed,
        P::SuperblockMixed,
        P::SecondCheckpointCopy,
        P::UnappliedReplayed,
        P::ConflictReplayed,
        P::DeleteReplayed,
        P::ClosingRecordWritten,
        P::ClosingRecordRead,
        P::AcceptLossReplayed,
        P::LogStalled,
        P::SegmentCollected,
        P::SurvivorsCollected,
        P::PageRehomed,
        P::CloneReplayed,
        P::OrphanReleased,
        P::SecondTableCopy,
        P::DeathsRead,
    ]
};
