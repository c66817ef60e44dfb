//! Damage of durable records is never taken for a torn tail and never spreads.

use esker_engine::{Probe, Sabotage};
use esker_tests::check::damage::{run_damage, Part};
use std::collections::BTreeSet;

fn seeds() -> u64 {
    let text = std::env::var("ESKER_ENGINE_SEEDS").ok();
    text.and_then(|t| t.parse().ok()).unwrap_or(60)
}

fn hold(part: Part) -> BTreeSet<Probe> {
    let mut probes = BTreeSet::new();
    let mut failures = Vec::new();
    let first = std::env::var("ESKER_ENGINE_FROM").ok();
    let first: u64 = first.and_then(|t| t.parse().ok()).unwrap_or(0);
    for seed in first..first + seeds() {
        match std::panic::catch_unwind(|| run_damage(seed, part, Sabotage::None)) {
            Ok(Ok(report)) => probes.extend(report.probes),
            Ok(Err(violation)) => failures.push(format!("seed {seed}: {violation}")),
            Err(_) => failures.push(format!("seed {seed}: panic")),
        }
    }
    assert!(
        failures.is_empty(),
        "{} {:#?}",
        failures.len(),
        &failures[..failures.len().min(10)]
    );
    probes
}

#[test]
fn a_damaged_header_suspends_who_was_in_the_record_and_nobody_is_lost() {
    let probes = hold(Part::Header);
    for probe in [
        Probe::DamagedHeader,
        Probe::GroupSuspended,
        Probe::GroupCleared,
        Probe::AcceptLossReplayed,
    ] {
        assert!(probes.contains(&probe), "{probe:?} is never reached");
    }
}

#[test]
fn a_damaged_payload_is_an_error_for_its_readers_alone() {
    assert!(hold(Part::Payload).contains(&Probe::DamagedPayload));
}

/// Records of 38 of 64 slots: a segment held a single one. Its header was damaged, nothing else in
/// the segment named the segment after it, and the chain of the log ended there: everything behind,
/// durable and acknowledged, was taken for a torn tail without a word. A segment now holds several
/// records whatever its size.
#[test]
fn a_damaged_header_that_is_alone_in_its_segment_does_not_end_the_log() {
    for seed in [173, 453, 978] {
        if let Err(violation) = run_damage(seed, Part::Header, Sabotage::None) {
            panic!("seed {seed}: {violation}");
        }
    }
}
