//! A store with one group of one voter whose epoch is open: where tests of the engine that choose what
//! happens begin.

#![allow(clippy::unwrap_used)] // helpers of tests

use super::ops::{entry_of, page_of};
use super::world::World;
use bytes::Bytes;
use esker_base::checksum::crc32;
use esker_base::{Epoch, GroupId, RaftIndex, Stamp};
use esker_engine::format::operation::{BlockInfo, Operation};
use esker_engine::{EngineConfig, Event};

/// Such a store; its volume has so many blocks.
///
/// # Panics
/// When the engine breaks a rule.
#[must_use]
pub fn one_group(config: EngineConfig, blocks: u64) -> (World, GroupId) {
    let mut world = World::new(1, config);
    world.run(false).unwrap();
    // Groups have sizes and kinds of the seed's choice: take one that fits.
    let id = loop {
        world.create().unwrap();
        world.run(false).unwrap();
        let last = world.groups.values().max_by_key(|m| m.meta.replica);
        let model = last.unwrap().clone();
        if model.is_single() && model.meta.size_bytes == blocks * 4096 {
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

/// Makes everything durable and applies it.
///
/// # Panics
/// As [`one_group`].
pub fn apply(world: &mut World, id: GroupId) {
    world.run(true).unwrap(); // not every append is urgent
    let through = RaftIndex(world.groups[&id].durable_last());
    world.step(Event::Apply { group: id, through }).unwrap();
    world.run(false).unwrap();
}

/// Takes stamps.
///
/// # Panics
/// When no epoch is open.
pub fn stamp(world: &mut World, id: GroupId, count: u32) -> Stamp {
    let model = world.groups.get_mut(&id).unwrap();
    let (epoch, counter) = model.epoch.as_mut().unwrap();
    let stamp = Stamp::new(Epoch(*epoch), *counter);
    *counter += count;
    stamp
}

/// Appends an operation.
///
/// # Panics
/// As [`one_group`].
pub fn append(world: &mut World, id: GroupId, operation: Operation, pages: Vec<Bytes>) {
    let model = &world.groups[&id];
    let (term, first) = (model.term, model.last() + 1);
    let entry = entry_of(term, Some(operation), pages);
    world.append(id, None, first, &[entry]).unwrap();
}

/// Writes one block.
///
/// # Panics
/// As [`one_group`].
pub fn write(world: &mut World, id: GroupId, lba: u64) {
    write_run(world, id, lba, 1);
}

/// Writes neighbouring blocks with one entry, and gives the stamp of the first.
///
/// # Panics
/// As [`one_group`].
pub fn write_run(world: &mut World, id: GroupId, lba: u64, count: u32) -> Stamp {
    let stamp = stamp(world, id, count);
    let stamps = (0..u64::from(count)).map(|i| stamp.0 + i);
    let pages: Vec<_> = stamps.map(|stamp| page_of(id, stamp)).collect();
    let operation = Operation::Write {
        lba,
        stamp,
        key_id: 0,
        blocks: pages.iter().map(|p| BlockInfo::plain(crc32(p))).collect(),
    };
    append(world, id, operation, pages);
    stamp
}

/// Takes a snapshot.
///
/// # Panics
/// As [`one_group`].
pub fn snapshot(world: &mut World, id: GroupId) -> Stamp {
    let stamp = stamp(world, id, 1);
    let operation = Operation::Snapshot {
        stamp,
        created_us: 1,
        name: format!("s{}", stamp.0),
        labels: std::collections::BTreeMap::new(),
    };
    append(world, id, operation, Vec::new());
    stamp
}

/// Writes a checkpoint.
///
/// # Panics
/// As [`one_group`].
pub fn checkpoint(world: &mut World) {
    let token = world.token();
    world.step(Event::Checkpoint { token }).unwrap();
    world.run(true).unwrap();
    assert!(world.checkpoints.contains(&token));
}
