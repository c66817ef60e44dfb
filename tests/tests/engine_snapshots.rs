//! Snapshots in chosen situations; the random workload has the rest (`engine_crash.rs`).

#![allow(clippy::unwrap_used)] // helpers of tests

use esker_base::{BlockRange, GroupId, RaftIndex};
use esker_engine::format::operation::Operation;
use esker_engine::format::SEGMENTS_OFFSET;
use esker_engine::{EngineConfig, Event};
use esker_tests::check::single::{append, apply, checkpoint, one_group, snapshot, stamp, write};
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

/// Once, each deletion asked for a checkpoint of its own: a hundred in a row under load were a hundred
/// checkpoints, one behind the other. Now they share one, which comes although nobody asks for it and nothing
/// else happens.
#[test]
fn what_many_deleted_snapshots_held_comes_back_with_one_checkpoint() {
    let (mut world, id) = world();
    let mut cuts = Vec::new();
    for n in 0..100 {
        write(&mut world, id, n % BLOCKS);
        cuts.push(snapshot(&mut world, id));
    }
    apply(&mut world, id);
    checkpoint(&mut world);
    let checkpoints = |world: &World| world.engine.sample().meters.checkpoints.count();
    let (before, began) = (checkpoints(&world), world.now);
    for cut in cuts {
        append(
            &mut world,
            id,
            Operation::DeleteSnapshot { cut },
            Vec::new(),
        );
        while world.disk_step().unwrap() {}
        world.step(Event::SyncSoon).unwrap();
        world.run(false).unwrap();
        let through = RaftIndex(world.groups[&id].durable_last());
        world.step(Event::Apply { group: id, through }).unwrap();
        world.run(false).unwrap();
    }
    assert_eq!(checkpoints(&world), before, "nobody waits for the room yet");
    world.run(true).unwrap();
    assert_eq!(checkpoints(&world), before + 1);
    assert!(world.now >= began + EngineConfig::default().reclaim_delay);
    let live = world.engine.space().live_bytes / 4096;
    assert_eq!(live, BLOCKS + 1, "the head's blocks and its one node");
}

/// Once, a comparison with a head that had discarded blocks far behind the end of its map went through them leaf by
/// leaf: of the largest volume that was a quarter of a million answers.
#[test]
fn what_was_discarded_where_nothing_ever_was_is_passed_over_at_once() {
    let (mut world, id) = world();
    write(&mut world, id, 3);
    let _cut = snapshot(&mut world, id);
    apply(&mut world, id);
    checkpoint(&mut world);
    let size_bytes = 1 << 46;
    append(&mut world, id, Operation::Resize { size_bytes }, Vec::new());
    let stamp = stamp(&mut world, id, 1);
    // Not the last block: a range that ends with the volume is another case.
    let range = BlockRange::new(BLOCKS, (size_bytes >> 12) - BLOCKS - 1);
    append(
        &mut world,
        id,
        Operation::Discard { range, stamp },
        Vec::new(),
    );
    write(&mut world, id, 5);
    apply(&mut world, id);
    let asked = world.next_token;
    world.check_diffs(id).unwrap();
    assert!(
        world.next_token < asked + 10,
        "{}",
        world.next_token - asked
    );
}
