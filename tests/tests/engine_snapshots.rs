//! Snapshots in chosen situations; the random workload has the rest (`engine_crash.rs`).

#![allow(clippy::unwrap_used)] // helpers of tests

use esker_base::{BlockRange, GroupId, RaftIndex};
use esker_engine::format::operation::Operation;
use esker_engine::format::SEGMENTS_OFFSET;
use esker_engine::{EngineConfig, Event};
use esker_tests::check::single::{append, apply, checkpoint, one_group, snapshot, write};
use esker_tests::check::world::World;
use esker_tests::sim::SimRng;

const BLOCKS: u64 = 16;

/// An open store with one group of one voter whose epoch is open.
fn world() -> (World, GroupId) {
    let config = EngineConfig {
        device_bytes: SEGMENTS_OFFSET + 20_000 * (256 << 10),
        format_if_blank: true,
        segment_bytes: 256 << 10,
        store_entropy: 9,
        checkpoint_bytes: 1 << 40,
        checkpoint_records: 1 << 40,
        ..EngineConfig::default()
    };
    one_group(config, BLOCKS)
}

/// Once, the checkpoint that was being written when a snapshot was deleted took it apart, although what
/// it wrote still had it: after a crash the deletion in the log found no snapshot.
#[test]
fn a_snapshot_deleted_while_a_checkpoint_is_written_is_there_for_the_replay() {
    for steps in 0..12 {
        let (mut world, id) = world();
        for lba in 0..8 {
            write(&mut world, id, lba);
        }
        let cut = snapshot(&mut world, id);
        for lba in 0..4 {
            write(&mut world, id, lba);
        }
        apply(&mut world, id);
        checkpoint(&mut world);
        write(&mut world, id, 5);
        append(
            &mut world,
            id,
            Operation::DeleteSnapshot { cut },
            Vec::new(),
        );
        world.run(true).unwrap();
        let token = world.token();
        world.step(Event::Checkpoint { token }).unwrap();
        let through = RaftIndex(world.groups[&id].durable_last());
        world.step(Event::Apply { group: id, through }).unwrap();
        for _ in 0..steps {
            world.disk_step().unwrap();
            while world.timer_step().unwrap() {}
        }
        world.disk.power_cut();
        world.restart();
        world.open(&mut SimRng::new(steps, 5), false).unwrap();
        world.check_opened().unwrap();
        world.settle().unwrap();
        assert!(world.engine.snapshots(id).is_empty());
    }
}

/// Ten thousand between two checkpoints: each reads as it was, before they are merged and after, also
/// after a crash; the head's index has what it has without them; and when they are deleted nothing is
/// left of them.
#[test]
fn ten_thousand_snapshots_between_two_checkpoints() {
    const SNAPSHOTS: u64 = 10_000;
    let (mut world, id) = world();
    let mut cuts = Vec::new();
    for n in 0..SNAPSHOTS {
        write(&mut world, id, n * 7 % BLOCKS);
        cuts.push(snapshot(&mut world, id));
        if n % 500 == 499 {
            apply(&mut world, id);
        }
    }
    apply(&mut world, id);
    let delta = world.engine.delta_size(id);
    assert_eq!((delta.newest, delta.cuts), (BLOCKS, SNAPSHOTS));
    assert_eq!(delta.older, SNAPSHOTS - BLOCKS);
    let look = |world: &mut World| {
        for cut in cuts.iter().step_by(97) {
            world
                .read_at(id, BlockRange::new(0, BLOCKS), cut.0)
                .unwrap();
            world.run(false).unwrap();
        }
        assert!(world.reads.is_empty());
    };
    look(&mut world);
    checkpoint(&mut world);
    look(&mut world);
    // Each block lives in sixteen snapshots, or in the head.
    let views = world.engine.snapshots(id);
    assert!(views.iter().all(|v| v.unique_blocks == Some(0)));
    world.disk.power_cut();
    world.restart();
    world.open(&mut SimRng::new(1, 5), false).unwrap();
    world.check_opened().unwrap();
    look(&mut world);
    world.begin_term(id, world.groups[&id].last() + 1).unwrap();
    apply(&mut world, id);
    for cut in &cuts {
        append(
            &mut world,
            id,
            Operation::DeleteSnapshot { cut: *cut },
            Vec::new(),
        );
    }
    apply(&mut world, id);
    world.settle().unwrap();
    let view = world.engine.group(id).unwrap();
    // The head's blocks and its one node; nothing of ten thousand snapshots.
    let live = world.engine.space().live_bytes / 4096;
    assert_eq!((view.root.live, live), (BLOCKS, BLOCKS + 1));
}
