//! Space: what died is used again for ever, and a full store finds its way back.

#![allow(clippy::unwrap_used)] // helpers of tests

use esker_base::{BlockRange, Epoch, GroupId, Stamp};
use esker_engine::format::operation::Operation;
use esker_engine::format::SEGMENTS_OFFSET;
use esker_engine::{EngineConfig, Event, Probe};
use esker_tests::check::damage::count_damaged;
use esker_tests::check::ops::page_of;
use esker_tests::check::single::{self, apply, one_group, stamp, write_run};
use esker_tests::check::world::World;
use esker_tests::sim::SimRng;

const BLOCKS: u64 = 1000;

/// An open store with one group of one voter whose epoch is open.
fn world(segments: u64) -> (World, GroupId) {
    let config = EngineConfig {
        device_bytes: SEGMENTS_OFFSET + segments * (256 << 10),
        format_if_blank: true,
        segment_bytes: 256 << 10,
        store_entropy: 9,
        cache_bytes: 0,
        checkpoint_bytes: 1 << 20,
        ..EngineConfig::default()
    };
    one_group(config, BLOCKS)
}

/// Writes `count` blocks; false when there is no room.
fn write(world: &mut World, id: GroupId, lba: u64, count: u32) -> bool {
    if !world.engine.has_room_for(u64::from(count) * 4096) {
        return false;
    }
    write_run(world, id, lba, count);
    apply(world, id);
    true
}

fn discard_all(world: &mut World, id: GroupId) {
    assert!(world.engine.has_room_for_metadata());
    let stamp = stamp(world, id, 1);
    let range = BlockRange::new(0, BLOCKS);
    single::append(world, id, Operation::Discard { range, stamp }, Vec::new());
    apply(world, id);
}

fn reopen(world: &mut World, id: GroupId) {
    world.disk.power_cut();
    world.restart();
    let mut rng = SimRng::new(world.next_token, 5);
    world.open(&mut rng, false).unwrap();
    world.check_opened().unwrap();
    let first = world.groups[&id].last() + 1;
    world.begin_term(id, first).unwrap();
    apply(world, id);
    let open = world.groups[&id].epoch.is_some();
    assert!(open, "the log is stuck: {}", world.engine.progress());
}

#[test]
fn overwriting_goes_on_for_many_times_the_size_of_the_store() {
    // Room for survivors: a closing record after each write leaves part of a segment unused.
    let (mut world, id) = world(48);
    let total = world.engine.space().total_bytes;
    let mut written = 0;
    while written < 20 * total {
        for lba in (0..960).step_by(20) {
            if !write(&mut world, id, lba, 20) {
                // Room comes back by itself, without anybody asking for a checkpoint.
                world.run(true).unwrap();
                assert!(
                    write(&mut world, id, lba, 20),
                    "{}",
                    world.engine.progress()
                );
            }
            written += 20 * 4096;
        }
    }
    world.settle().unwrap();
}

/// Fills the store, by many small writes or by few large ones.
fn fill(world: &mut World, id: GroupId, count: u32) {
    let mut refused = 0;
    for i in 0..20_000u64 {
        // A stride that leaves survivors in every segment: nothing is collected yet.
        let lba = (i * 101) % (BLOCKS - u64::from(count));
        if !write(world, id, lba, count) {
            world.run(true).unwrap();
            refused += 1;
        }
        if refused > 50 {
            break;
        }
    }
    assert!(
        refused > 50,
        "the store never fills: {}",
        world.engine.progress()
    );
}

#[test]
fn a_full_store_reopens_checkpoints_and_discards_its_way_back() {
    for count in [1, 7, 16] {
        let (mut world, id) = world(20);
        fill(&mut world, id, count);
        assert!(!world.engine.has_room_for(4096 * u64::from(count)));
        for _ in 0..20 {
            reopen(&mut world, id);
            let token = world.token();
            world.step(Event::Checkpoint { token }).unwrap();
            world.run(true).unwrap();
            assert!(
                world.checkpoints.contains(&token),
                "{}",
                world.engine.progress()
            );
        }
        discard_all(&mut world, id);
        // Who asks for room once it may come back gets a checkpoint going.
        let _ = world.engine.has_room_for(64 * 4096);
        world.run(true).unwrap();
        assert!(
            world.engine.has_room_for(64 * 4096),
            "{count}: {}",
            world.engine.progress()
        );
        assert!(write(&mut world, id, 5, 16));
        world.settle().unwrap();
    }
}

#[test]
fn a_full_store_can_delete_the_volume() {
    let (mut world, id) = world(20);
    fill(&mut world, id, 3);
    reopen(&mut world, id);
    let token = world.token();
    world.groups.get_mut(&id).unwrap().deleting = true;
    world
        .catalog
        .insert(token, esker_tests::check::world::Catalog::Delete(id));
    world.step(Event::Delete { token, group: id }).unwrap();
    world.run(true).unwrap();
    for _ in 0..2 {
        let token = world.token();
        world.step(Event::Checkpoint { token }).unwrap();
        world.run(true).unwrap();
    }
    let space = world.engine.space();
    assert_eq!(space.live_bytes, 0, "{}", world.engine.progress());
    assert!(
        world.engine.has_room_for(1 << 20),
        "{}",
        world.engine.progress()
    );
}

/// A follower that is told late what is committed appends much and applies nothing: nothing dies, so
/// what was no victim while there was room is one when the log has taken that room.
#[test]
fn what_is_appended_and_not_applied_finds_room() {
    for (segments, count) in (20..32).flat_map(|s| [1, 3, 8].map(|c| (s, c))) {
        append_until_full(segments, count);
    }
}

fn append_until_full(segments: u64, count: u32) {
    let (mut world, id) = world(segments);
    // Survivors in every segment, and as much room as lets the collector rest.
    for i in 0..2000u64 {
        write(&mut world, id, (i * 101) % 300, 1);
    }
    let token = world.token();
    world.step(Event::Checkpoint { token }).unwrap();
    world.run(true).unwrap();
    let room = |world: &World| world.engine.has_room_for(u64::from(count) * 4096);
    for lba in (0..900).step_by(count as usize) {
        if !room(&world) {
            break;
        }
        write_run(&mut world, id, lba, count);
        world.run(true).unwrap();
        let model = &world.groups[&id];
        let progress = world.engine.progress();
        assert_eq!(model.durable_last(), model.last(), "{segments}: {progress}");
    }
    apply(&mut world, id);
    world.settle().unwrap();
}

/// A block whose bytes were damaged on the device lives on in a segment that is collected: it is moved
/// as it is, told, and still an error for its readers; everything around it is whole.
#[test]
fn damage_that_is_moved_stays_damage() {
    let (mut world, id) = world(48);
    assert!(write(&mut world, id, 600, 20));
    let stamp = world.groups[&id].epoch.unwrap();
    let stamp = Stamp::new(Epoch(stamp.0), stamp.1 - 15).0;
    let content = page_of(id, stamp);
    let mut places = world.disk.visible().pages();
    let (page, _) = places.find(|(_, bytes)| **bytes == content).unwrap();
    drop(places);
    world.disk.damage(|image| image.flip_bit(page, 77));
    world.damaged = true;
    let spoiled = world.disk.visible().page(page).unwrap().clone();
    let total = world.engine.space().total_bytes;
    let mut written = 0;
    while world.disk.visible().page(page) == Some(&spoiled) {
        assert!(written < 20 * total, "{}", world.engine.progress());
        // Here and there, so that something lives in every segment.
        for i in 0..580u64 {
            if !write(&mut world, id, i * (101 + written / 4096 % 7) % 580, 1) {
                world.run(true).unwrap();
            }
            written += 4096;
        }
    }
    assert!(world.engine.probes().contains(&Probe::SegmentCollected));
    assert_eq!(
        world.engine.damaged_blocks(),
        1,
        "told before anybody read it"
    );
    let moved = world.disk.visible().pages().filter(|(_, b)| **b == spoiled);
    assert!(moved.count() > 0, "the bytes are kept as they are");
    assert_eq!(count_damaged(&mut world, id).unwrap(), 1);
}

/// Blocks that are never overwritten, one among those of each segment that often are: wherever they are moved to,
/// each has a piece of its own. `pieces_least` as in the configuration. Gives the pieces at the end, while a
/// snapshot holds all of them and after it is gone.
fn pieces_of_cold_blocks(pieces_least: usize) -> (u64, u64) {
    const COLD: u64 = 400;
    let config = EngineConfig {
        device_bytes: SEGMENTS_OFFSET + 96 * (256 << 10),
        format_if_blank: true,
        segment_bytes: 256 << 10,
        store_entropy: 9,
        cache_bytes: 0,
        checkpoint_bytes: 1 << 20,
        pieces_least,
        ..EngineConfig::default()
    };
    let (mut world, id) = one_group(config, BLOCKS);
    let heat = |world: &mut World, turns: u64| {
        for turn in 0..turns {
            if !write(world, id, COLD + turn % 3 * 20, 20) {
                world.run(true).unwrap();
                assert!(write(world, id, COLD + turn % 3 * 20, 20));
            }
        }
    };
    for cold in 0..COLD {
        assert!(write(&mut world, id, cold, 1));
        heat(&mut world, 3);
    }
    let cut = single::snapshot(&mut world, id);
    apply(&mut world, id);
    heat(&mut world, 2000);
    let held = world.engine.sample().pieces;
    single::append(
        &mut world,
        id,
        Operation::DeleteSnapshot { cut },
        Vec::new(),
    );
    apply(&mut world, id);
    heat(&mut world, 2000);
    let pieces = world.engine.sample().pieces;
    let home = world.engine.probes().contains(&Probe::PageRehomed);
    assert_eq!(home, pieces_least < usize::MAX);
    world.settle().unwrap();
    reopen(&mut world, id);
    world.settle().unwrap();
    (held, pieces)
}

/// Once, each of them kept its piece for ever, however often it was moved.
#[test]
fn cold_blocks_among_hot_ones_do_not_keep_a_piece_each() {
    let (_, without) = pieces_of_cold_blocks(usize::MAX);
    let (held, with) = pieces_of_cold_blocks(8);
    // What snapshots hold keeps its address: several maps name it.
    println!("{without} pieces, {held} under a snapshot, {with} after it");
    assert!(without > 300, "{without}: not the situation that is meant");
    assert!(with < held && with * 3 < without, "{with}");
}
