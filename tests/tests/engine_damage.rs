//! Damage of durable records is never taken for a torn tail and never spreads.

#![allow(clippy::unwrap_used)] // helpers of tests

use bytes::Bytes;
use esker_base::{GroupId, RaftIndex, ReplicaId, Term, VolumeId};
use esker_engine::event::{Append, AppendEntry, Event};
use esker_engine::format::checkpoint::{GroupMeta, Membership};
use esker_engine::format::record::{EntryKind, ItemBody, RecordHeader};
use esker_engine::{EngineConfig, OpenError, Probe, Sabotage};
use esker_tests::check::damage::{run_damage, Part};
use esker_tests::check::world::World;
use esker_tests::sim::SimRng;
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

const GROUP: GroupId = GroupId(7);

/// An open store with one group of three replicas, and no checkpoint unless one is asked for.
fn store_of_three() -> World {
    let mut rng = SimRng::new(5, 2);
    let config = EngineConfig {
        checkpoint_bytes: 1 << 30,
        checkpoint_records: 1 << 30,
        ..World::config(&mut rng, Sabotage::None)
    };
    let mut world = World::new(5, config);
    world.open(&mut rng, false).unwrap();
    let meta = Box::new(GroupMeta {
        group: GROUP,
        volume: VolumeId(7),
        replica: ReplicaId(1),
        name: "v".into(),
        size_bytes: 1 << 20,
        block_bytes: 4096,
        membership: Membership {
            voters: vec![ReplicaId(1), ReplicaId(2), ReplicaId(3)],
            ..Membership::default()
        },
        ..GroupMeta::default()
    });
    world.step(Event::Create { token: 1, meta }).unwrap();
    world.run(true).unwrap();
    world
}

/// An entry in a record of its own.
fn append(world: &mut World, index: u64) {
    let entry = AppendEntry {
        term: Term(1),
        index: RaftIndex(index),
        kind: EntryKind::Normal,
        data: Bytes::new(),
        payload: Vec::new(),
    };
    let append = Append {
        group: GROUP,
        ticket: index,
        entries: vec![entry],
        hard_state: None,
        urgent: true,
    };
    world.step(Event::Append(append)).unwrap();
    world.run(true).unwrap();
}

/// A replica had lost entries and was suspended, caught up, and was resumed. The record with what it
/// had caught up last was damaged. Replay found the gap, and then took the record that resumes the
/// group for the end of this loss, too: the replica came back as if it had all that it had
/// acknowledged.
#[test]
fn a_loss_before_a_resumption_suspends_again() {
    let mut world = store_of_three();
    append(&mut world, 1);
    world.step(Event::Suspend { group: GROUP }).unwrap();
    world.run(true).unwrap();
    append(&mut world, 2);
    append(&mut world, 3);
    world.step(Event::Resume { group: GROUP }).unwrap();
    world.run(true).unwrap();
    let holds_the_last = |bytes: &Bytes| {
        RecordHeader::decode(bytes).is_ok_and(|(_, items, _)| {
            items.iter().any(
                |item| matches!(item.body, ItemBody::Entry { index, .. } if index == RaftIndex(3)),
            )
        })
    };
    let image = world.disk.visible();
    let victim = image.pages().find(|(_, bytes)| holds_the_last(bytes));
    let (page, _) = victim.unwrap();
    world.disk.damage(|image| image.zero_page(page));
    world.damaged = true;
    world.disk.power_cut();
    world.restart();
    world.open(&mut SimRng::new(5, 9), false).unwrap();
    let opened = world.open.clone().unwrap();
    assert_eq!(opened.report.damaged_records, 1);
    assert!(opened.groups[0].suspended, "{:?}", opened.groups[0]);
}

/// A page that could not be read lay where the next record of the log was to be written: the store does not open, since a record may
/// begin there, until its device is copied without it.
#[test]
fn an_unreadable_page_behind_the_log_keeps_a_store_from_opening() {
    let mut world = store_of_three();
    append(&mut world, 1);
    append(&mut world, 2);
    let records = world.disk.visible().pages();
    let records =
        records.filter_map(|(page, bytes)| Some((page, RecordHeader::decode(bytes).ok()?)));
    let (page, _) = records.max_by_key(|(_, record)| record.0.seq).unwrap();
    world.damaged = true;
    world.disk.spoil(page + 1);
    world.disk.power_cut();
    world.restart();
    while world.open.is_none() && world.refused.is_none() {
        assert!(world.disk_step().unwrap() || world.timer_step().unwrap());
    }
    let refused = world.refused.take();
    assert!(
        matches!(refused, Some(OpenError::Read { .. })),
        "{refused:?}"
    );
    assert_eq!(world.disk.skip_bad_pages(), 1);
    world.disk.power_cut();
    world.restart();
    world.open(&mut SimRng::new(5, 9), false).unwrap();
    let opened = world.open.clone().unwrap();
    let last = opened.groups[0].entries.last().map(|entry| entry.1);
    assert_eq!(
        (last, opened.groups[0].suspended),
        (Some(RaftIndex(2)), false)
    );
}
