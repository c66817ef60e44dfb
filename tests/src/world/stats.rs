//! What a run counted, and how it ended.

use crate::sim::FaultCounts;
use esker_engine::Probe;
use std::collections::{BTreeMap, BTreeSet};

/// Work that clients and operators ask for and that changes what is stored or looks at it.
const OPERATIONS: [&str; 20] = [
    "READ",
    "WRITE",
    "FLUSH",
    "TRIM",
    "WRITE_ZEROES",
    "reads of snapshots",
    "snapshots taken",
    "snapshots deleted",
    "snapshots compared",
    "snapshots of three taken",
    "snapshots of three deleted",
    "volumes created",
    "volumes cloned",
    "volumes cloned as they were",
    "volumes resized",
    "volumes of three grown",
    "volumes deleted",
    "volumes rolled back",
    "volumes of three rolled back",
    "parts of scrubs",
];

/// Counts of a run, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Faults that happened, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Work that was done, by kind.
    pub work: BTreeMap<&'static str, u64>,
    /// Branches of the engine that were taken.
    pub probes: BTreeSet<Probe>,
}

impl Stats {
    /// Counts a fault.
    pub fn fault(&mut self, kind: &'static str) {
        *self.faults.entry(kind).or_default() += 1;
    }

    /// Counts work.
    pub fn did(&mut self, kind: &'static str) {
        self.add_work(kind, 1);
    }

    /// Counts work that was done several times.
    pub fn add_work(&mut self, kind: &'static str, times: u64) {
        if times > 0 {
            *self.work.entry(kind).or_default() += times;
        }
    }

    /// Operations of clients and operators.
    #[must_use]
    pub fn operations(&self) -> u64 {
        let counts = OPERATIONS.iter().filter_map(|kind| self.work.get(kind));
        counts.sum()
    }

    /// Takes a disk's counts in.
    pub fn disk(&mut self, counts: &FaultCounts) {
        for (kind, n) in [
            ("disk: read failed", counts.read_errors),
            ("disk: unreadable page met", counts.unreadable),
            ("disk: write failed", counts.write_errors),
            ("disk: no space", counts.no_space),
            ("disk: sync failed", counts.sync_errors),
            ("cut: write kept", counts.kept),
            ("cut: write lost", counts.lost),
            ("cut: write torn", counts.torn),
            ("disk: forgot after a failed sync", counts.forgotten),
        ] {
            if n > 0 {
                *self.faults.entry(kind).or_default() += n;
            }
        }
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        for (kind, n) in &other.faults {
            *self.faults.entry(kind).or_default() += n;
        }
        for (kind, n) in &other.work {
            *self.work.entry(kind).or_default() += n;
        }
        self.probes.extend(&other.probes);
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// Nodes it had.
    pub nodes: usize,
    /// Hash of everything that happened.
    pub trace: u64,
    /// Events.
    pub steps: u64,
    /// Virtual time that passed, in nanoseconds.
    pub virtual_ns: u64,
    /// Counts.
    pub stats: Stats,
    /// What the oracles found, if anything.
    pub violation: Option<String>,
}
