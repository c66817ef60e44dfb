//! Whole nodes in a simulated world: as many seeds as fit the time, sabotage that must be noticed,
//! and the seeds that found bugs, with their stories.

use esker_engine::Sabotage;
use esker_tests::world::hunt::{hunt, run_caught};
use esker_tests::world::Options;
use std::time::Duration;

/// Seconds for the seeds of [`every_seed_holds_and_runs_the_same_twice`].
const SECONDS_DEFAULT: u64 = 20;
/// Seeds in which a sabotage must be noticed.
const SABOTAGE_SEEDS_MAX: u64 = 4000;

/// The seeds change from day to day where `ESKER_SIM_FROM` says so; without it they are the same
/// ones every time.
#[test]
fn every_seed_holds_and_runs_the_same_twice() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let seconds = number("ESKER_SIM_SECONDS").unwrap_or(SECONDS_DEFAULT);
    let first = number("ESKER_SIM_FROM").unwrap_or(0);
    let time = Duration::from_secs(seconds);
    let found = hunt(Options::new(0), first, u64::MAX, time, true);
    println!("simulated worlds: {}", found.summary());
    for (kind, n) in &found.stats.faults {
        println!("  {n:>8} {kind}");
    }
    println!("  branches not taken: {:?}", found.probes_missed());
    for (seed, violation) in &found.failures {
        println!("esker-sim --seed {seed}: {violation}");
    }
    assert!(found.failures.is_empty(), "{}", found.summary());
    assert!(found.seeds > 0, "no seed was done in {seconds} s");
}

/// The first seed that fails with the sabotage and holds without it.
fn is_noticed(sabotage: Sabotage) {
    for seed in 0..SABOTAGE_SEEDS_MAX {
        let healthy = Options::new(seed);
        let broken = Options {
            sabotage,
            ..healthy
        };
        let Some(violation) = run_caught(broken).violation else {
            continue;
        };
        if run_caught(healthy).violation.is_none() {
            println!("{sabotage:?} is noticed by seed {seed}: {violation}");
            return;
        }
    }
    panic!("{sabotage:?} goes unnoticed in {SABOTAGE_SEEDS_MAX} seeds");
}

#[test]
fn ignoring_what_is_known_durable_is_noticed() {
    is_noticed(Sabotage::IgnoreDurableSeq);
}

#[test]
fn building_on_a_cut_that_is_not_durable_is_noticed() {
    is_noticed(Sabotage::CutNotDurable);
}

#[test]
fn slots_that_become_live_late_are_noticed() {
    is_noticed(Sabotage::LiveBitLate);
}

#[test]
fn acknowledging_before_the_sync_is_noticed() {
    is_noticed(Sabotage::AckBeforeSync);
}

#[test]
fn reusing_segments_too_early_is_noticed() {
    is_noticed(Sabotage::ReuseBeforeCheckpoint);
}

fn holds(seed: u64) {
    let outcome = run_caught(Options::new(seed));
    assert_eq!(outcome.violation, None, "seed {seed}");
}

/// A killed process had written two superblock copies that were not synced yet. The next opening
/// read them, took the checkpoint they name, and wrote its own over the one before. A power cut took
/// the two copies back: what was left named a checkpoint that was gone, and the store did not open.
/// An opening now syncs before it builds on anything it reads.
#[test]
fn an_opening_does_not_build_on_superblocks_that_a_power_cut_takes_back() {
    holds(74);
    holds(251);
}

/// After a restart, entries count as applied when they are committed; the outcome of a resize among
/// them came a step later. A client that attached in between was told the old size.
#[test]
fn a_client_that_attaches_after_a_restart_is_told_the_size_that_was_answered() {
    holds(99);
    holds(116);
    holds(174);
}
