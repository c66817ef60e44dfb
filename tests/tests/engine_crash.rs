//! Random workloads, crashes at any step, disks that fail: every seed against the oracle.
//!
//! `ESKER_ENGINE_SEEDS` says how many seeds to run, `ESKER_ENGINE_FROM` with which to begin.

use esker_engine::{Probe, Sabotage};
use esker_tests::check::damage::{run_damage, Part};
use esker_tests::check::settle::{run_seed, Options, Report};
use std::collections::BTreeSet;

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// Runs a seed; a panic counts as a violation and names its seed.
fn run(seed: u64, options: Options) -> Result<Report, String> {
    let result = std::panic::catch_unwind(|| run_seed(seed, options));
    match result {
        Ok(Ok(report)) => Ok(report),
        Ok(Err(violation)) => Err(format!("seed {seed}: {violation}")),
        Err(_) => Err(format!("seed {seed}: panic")),
    }
}

#[test]
fn no_seed_breaks_a_rule() {
    let first = env("ESKER_ENGINE_FROM", 0);
    let seeds = env("ESKER_ENGINE_SEEDS", 300);
    let mut failures = Vec::new();
    let mut probes = BTreeSet::new();
    let mut faults = esker_tests::sim::FaultCounts::default();
    let (mut openings, mut full, mut clones) = (0, 0, 0);
    for seed in first..first + seeds {
        match run(seed, Options::default()) {
            Ok(report) => {
                probes.extend(report.probes);
                faults.add(&report.faults);
                openings += report.openings;
                full += report.full;
                clones += report.clones;
            }
            Err(text) => {
                println!("{text}");
                failures.push(text);
            }
        }
        if failures.len() >= 10 {
            break;
        }
    }
    println!("{openings} openings, {full} full, {clones} clones, {faults:?}\n{probes:?}");
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn every_branch_of_recovery_is_taken() {
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        seen.extend(run(seed, Options::default()).map_or_else(|_| BTreeSet::new(), |r| r.probes));
    }
    for seed in 0..40 {
        for part in [Part::Header, Part::Payload] {
            let report = run_damage(seed, part, Sabotage::None).expect("no violation");
            seen.extend(report.probes);
        }
    }
    let missing: Vec<Probe> = PROBES.into_iter().filter(|p| !seen.contains(p)).collect();
    assert!(missing.is_empty(), "never reached: {missing:?}");
}

const PROBES: [Probe; 21] = [
    Probe::Formatted,
    Probe::CleanEnd,
    Probe::TornHeader,
    Probe::TornTail,
    Probe::DamagedPayload,
    Probe::DamagedHeader,
    Probe::GroupSuspended,
    Probe::GroupCleared,
    Probe::SegmentCrossed,
    Probe::SuperblockMixed,
    Probe::UnappliedReplayed,
    Probe::ConflictReplayed,
    Probe::DeleteReplayed,
    Probe::ClosingRecordWritten,
    Probe::ClosingRecordRead,
    Probe::AcceptLossReplayed,
    Probe::LogStalled,
    Probe::SegmentCollected,
    Probe::SurvivorsCollected,
    Probe::PageRehomed,
    Probe::DeathsRead,
];

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..10 {
        let first = run(seed, Options::default());
        assert_eq!(first, run(seed, Options::default()), "seed {seed}");
    }
}
