//! What an opening has to read, to hold and to do again is bounded, whatever was written and however
//! often the store was killed.

#![allow(clippy::unwrap_used)] // helpers of tests

use esker_base::checksum::crc32;
use esker_base::{BlockRange, Epoch, GroupId, RaftIndex, Stamp};
use esker_engine::format::operation::{BlockInfo, Operation};
use esker_engine::format::SEGMENTS_OFFSET;
use esker_engine::{EngineConfig, Event};
use esker_tests::check::ops::{entry_of, page_of};
use esker_tests::check::world::World;
use esker_tests::sim::SimRng;

const BLOCKS: u64 = 1000;

/// An open store with one group of one voter whose epoch is open.
fn world(config: EngineConfig) -> (World, GroupId) {
    let config = EngineConfig {
        device_bytes: SEGMENTS_OFFSET + 400 * (256 << 10),
        format_if_blank: true,
        segment_bytes: 256 << 10,
        store_entropy: 9,
        checkpoint_records: 1 << 30,
        ..config
    };
    let mut world = World::new(1, config);
    world.run(false).unwrap();
    // Groups have sizes and kinds of the seed's choice: take one that fits.
    let id = loop {
        world.create().unwrap();
        world.run(false).unwrap();
        let last = world.groups.values().max_by_key(|m| m.meta.replica);
        let model = last.unwrap().clone();
        if model.is_single() && model.meta.size_bytes == BLOCKS * 4096 {
            break model.meta.group;
        }
        let (token, group) = (world.token(), model.meta.group);
        world.groups.remove(&group);
        world.step(Event::Delete { token, group }).unwrap();
        world.run(false).unwrap();
    };
    world.begin_term(id, 1).unwrap();
    apply(&mut world, id);
    (world, id)
}

fn apply(world: &mut World, id: GroupId) {
    world.run(true).unwrap();
    let through = RaftIndex(world.groups[&id].durable_last());
    world.step(Event::Apply { group: id, through }).unwrap();
    world.run(false).unwrap();
}

fn stamp(world: &mut World, id: GroupId, count: u32) -> Stamp {
    let model = world.groups.get_mut(&id).unwrap();
    let (epoch, counter) = model.epoch.as_mut().unwrap();
    let stamp = Stamp::new(Epoch(*epoch), *counter);
    *counter += count;
    stamp
}

fn append(world: &mut World, id: GroupId, operation: Operation, pages: Vec<bytes::Bytes>) {
    let model = &world.groups[&id];
    let (term, first) = (model.term, model.last() + 1);
    let entry = entry_of(term, Some(operation), pages);
    world.append(id, None, first, &[entry]).unwrap();
    apply(world, id);
}

fn write(world: &mut World, id: GroupId, lba: u64, count: u32) {
    let stamp = stamp(world, id, count);
    let blocks = u64::from(count);
    let pages: Vec<_> = (0..blocks).map(|i| page_of(id, stamp.0 + i)).collect();
    let blocks = pages.iter().map(|p| BlockInfo::plain(crc32(p))).collect();
    let key_id = 0;
    let operation = Operation::Write {
        lba,
        stamp,
        key_id,
        blocks,
    };
    append(world, id, operation, pages);
}

fn checkpoints(world: &World) -> u64 {
    world.engine.sample().meters.checkpoints.count()
}

/// Trims are small: before entries were counted, 128 MiB of log could hold more than a million, and an
/// opening took seconds and hundreds of MiB for them.
#[test]
fn entries_without_payload_begin_checkpoints_too() {
    let (mut world, id) = world(EngineConfig {
        checkpoint_entries: 100,
        ..EngineConfig::default()
    });
    let before = checkpoints(&world);
    for _ in 0..350 {
        let stamp = stamp(&mut world, id, 1);
        let range = BlockRange::new(3, 1);
        append(&mut world, id, Operation::Discard { range, stamp }, vec![]);
    }
    assert!(checkpoints(&world) >= before + 3);
    world.disk.power_cut();
    world.restart();
    world.open(&mut SimRng::new(3, 5), false).unwrap();
    world.check_opened().unwrap();
    let entries = world.engine.recovered_group(id).unwrap().entries.len();
    assert!(entries <= 101, "{entries} entries were found again");
}

/// The checkpoint that ends an opening merges nothing: what it found stays in its tables as entries.
/// Were only what is written after it to count, a store that is killed again and again before that
/// makes a checkpoint due would find ever more entries.
#[test]
fn what_an_opening_found_counts_until_it_is_merged() {
    let (mut world, id) = world(EngineConfig {
        checkpoint_bytes: 1 << 20,
        ..EngineConfig::default()
    });
    for life in 0..2 {
        let before = checkpoints(&world);
        for n in 0..7 {
            write(&mut world, id, (life * 7 + n) * 20, 20); // 588 KiB of log
        }
        assert_eq!(checkpoints(&world) - before, life, "in life {life}");
        world.disk.power_cut();
        world.restart();
        world.open(&mut SimRng::new(life, 5), false).unwrap();
        world.check_opened().unwrap();
        let first = world.groups[&id].last() + 1;
        world.begin_term(id, first).unwrap();
        apply(&mut world, id);
    }
}
