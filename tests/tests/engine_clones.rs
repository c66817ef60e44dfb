//! Clones in chosen situations; the random workload has the rest (`engine_crash.rs`).

#![allow(clippy::unwrap_used)] // helpers of tests

use esker_base::{BlockRange, GroupId, ReplicaId, Stamp, VolumeId};
use esker_engine::format::operation::Operation;
use esker_engine::format::record::{ItemBody, RecordHeader};
use esker_engine::format::SEGMENTS_OFFSET;
use esker_engine::{EngineConfig, Event};
use esker_tests::check::group::Applied;
use esker_tests::check::single::{append, apply, checkpoint, one_group, snapshot, write};
use esker_tests::check::world::World;
use esker_tests::sim::SimRng;

const BLOCKS: u64 = 16;

fn world() -> (World, GroupId) {
    let config = EngineConfig {
        device_bytes: SEGMENTS_OFFSET + 4_000 * (256 << 10),
        format_if_blank: true,
        segment_bytes: 256 << 10,
        store_entropy: 9,
        checkpoint_bytes: 1 << 40,
        checkpoint_records: 1 << 40,
        ..EngineConfig::default()
    };
    one_group(config, BLOCKS)
}

/// Makes a clone and opens its epoch.
fn clone(world: &mut World, origin: GroupId, cut: Stamp) -> GroupId {
    let group = ask_clone(world, origin, cut);
    apply(world, origin);
    world.begin_term(group, 2).unwrap();
    apply(world, group);
    group
}

fn ask_clone(world: &mut World, origin: GroupId, cut: Stamp) -> GroupId {
    let group = GroupId(world.next_group);
    world.next_group += 1;
    let operation = Operation::Clone {
        cut,
        group,
        volume: VolumeId(u128::from(group.0)),
        created_us: 1,
        name: format!("clone{}", group.0),
        labels: std::collections::BTreeMap::new(),
        members: Vec::new(),
    };
    append(world, origin, operation, Vec::new());
    group
}

fn checkpoints(world: &World) -> u64 {
    world.engine.sample().meters.checkpoints.count()
}

fn read(world: &mut World, id: GroupId) {
    world.read(id, BlockRange::new(0, BLOCKS), false).unwrap();
    world.run(false).unwrap();
    assert!(world.reads.is_empty());
}

fn reopen(world: &mut World) {
    world.disk.power_cut();
    world.restart();
    world.open(&mut SimRng::new(3, 5), false).unwrap();
    world.check_opened().unwrap();
}

/// Neither making one nor reading nor writing it takes a checkpoint, and what its origin does afterwards
/// is none of its business.
#[test]
fn a_clone_is_there_at_once() {
    let (mut world, id) = world();
    (0..8).for_each(|lba| write(&mut world, id, lba));
    let cut = snapshot(&mut world, id);
    apply(&mut world, id);
    let before = checkpoints(&world);
    let other = clone(&mut world, id, cut);
    (2..6).for_each(|lba| write(&mut world, id, lba));
    (4..10).for_each(|lba| write(&mut world, other, lba));
    apply(&mut world, id);
    apply(&mut world, other);
    read(&mut world, id);
    read(&mut world, other);
    assert_eq!(checkpoints(&world), before);
    assert_eq!(world.engine.delta_size(other).newest, 6);
    reopen(&mut world);
    world.settle().unwrap();
    let space = world.engine.volume_space(other).unwrap();
    assert_eq!((space.referenced_blocks, space.own_blocks), (10, 6));
}

/// Clones of clones before any checkpoint: the first sixteen at once, the rest after one.
#[test]
fn clones_of_clones_wait_at_the_sixteenth() {
    let (mut world, id) = world();
    let mut at = id;
    let before = checkpoints(&world);
    let mut all = vec![id];
    for n in 0..40 {
        write(&mut world, at, n % BLOCKS);
        let cut = snapshot(&mut world, at);
        write(&mut world, at, n * 5 % BLOCKS);
        at = clone(&mut world, at, cut);
        all.push(at);
        let depth = u64::try_from(all.len()).unwrap();
        assert_eq!(checkpoints(&world) == before, depth <= 16, "{depth}");
    }
    all.iter().for_each(|id| read(&mut world, *id));
    reopen(&mut world);
    world.settle().unwrap();
}

/// A volume is deleted before a checkpoint has merged what its clones began with; then the first of
/// those as well.
#[test]
fn a_clone_outlives_its_origin_that_no_checkpoint_has_merged() {
    for crash in [false, true] {
        let (mut world, id) = world();
        (0..8).for_each(|lba| write(&mut world, id, lba));
        let cut = snapshot(&mut world, id);
        (0..4).for_each(|lba| write(&mut world, id, lba));
        apply(&mut world, id);
        let first = clone(&mut world, id, cut);
        write(&mut world, first, 9);
        let cut = snapshot(&mut world, first);
        apply(&mut world, first);
        let second = clone(&mut world, first, cut);
        for gone in [id, first] {
            world.delete(gone).unwrap();
        }
        if crash {
            world.run(false).unwrap();
            reopen(&mut world);
        }
        world.settle().unwrap();
        assert!(world.engine.group(id).is_none() && world.engine.group(first).is_none());
        read(&mut world, second);
        // The nine blocks that it has, and its node.
        let view = world.engine.group(second).unwrap();
        let live = world.engine.space().live_bytes / 4096;
        assert_eq!((view.root.live, live), (9, 10));
    }
}

/// What a deleted snapshot has and neither of those that began at it comes back, while both live.
#[test]
fn what_only_a_deleted_snapshot_holds_comes_back() {
    let (mut world, id) = world();
    (0..8).for_each(|lba| write(&mut world, id, lba));
    let cut = snapshot(&mut world, id);
    apply(&mut world, id);
    let other = clone(&mut world, id, cut);
    append(
        &mut world,
        id,
        Operation::DeleteSnapshot { cut },
        Vec::new(),
    );
    apply(&mut world, id);
    checkpoint(&mut world);
    // Blocks 2 to 4 are replaced in both, 0 and 1 in one, 5 in the other.
    (0..5).for_each(|lba| write(&mut world, id, lba));
    (2..6).for_each(|lba| write(&mut world, other, lba));
    apply(&mut world, id);
    apply(&mut world, other);
    world.settle().unwrap();
    let space = |id| world.engine.volume_space(id).unwrap();
    assert_eq!(
        (space(id).own_blocks, space(other).own_blocks),
        (8 + 5 - 3, 4)
    );
    // Those, a node each, and the page of entries.
    let live = world.engine.space().live_bytes / 4096;
    assert_eq!(live, 10 + 4 + 2 + 1);
}

/// The record with a clone's first item is damaged: its entries are lost, and what made it is not. Once,
/// it would have begun anew, without what was acknowledged.
#[test]
fn a_clone_whose_first_item_is_lost_is_suspended() {
    let (mut world, id) = world();
    (0..8).for_each(|lba| write(&mut world, id, lba));
    let cut = snapshot(&mut world, id);
    apply(&mut world, id);
    let other = clone(&mut world, id, cut);
    write(&mut world, other, 1);
    apply(&mut world, other);
    // The next record says what the lost one said before it: the origin has lost nothing.
    write(&mut world, id, 2);
    world.run(true).unwrap();
    let sb = world.engine.superblock().clone();
    let image = world.disk.visible();
    let says = |bytes: &[u8]| {
        let Ok((header, items, _)) = RecordHeader::decode(bytes) else {
            return false;
        };
        header.store == sb.store
            && items
                .iter()
                .any(|item| matches!(item.body, ItemBody::GroupClone { .. }))
    };
    let pages = image.pages().filter(|(_, bytes)| says(bytes));
    let pages: Vec<u64> = pages.map(|(page, _)| page).collect();
    let [page] = pages[..] else {
        panic!("records: {pages:?}");
    };
    world.disk.damage(|image| image.zero_page(page));
    world.damaged = true;
    for _ in 0..3 {
        world.disk.power_cut();
        world.restart();
        world.open(&mut SimRng::new(3, 5), false).unwrap();
        assert!(world.engine.group(other).is_none());
        assert!(world.engine.group(id).is_some_and(|view| !view.suspended));
    }
    let through = esker_base::RaftIndex(world.groups[&id].durable_last());
    let model = world.groups.get_mut(&id).unwrap();
    model.applied = Applied::clone(&model.initial);
    let applied = world.engine.group(id).unwrap().applied.0;
    world.groups.get_mut(&id).unwrap().apply_through(applied);
    world.step(Event::Apply { group: id, through }).unwrap();
    world.run(false).unwrap();
    let view = world.engine.group(other).unwrap();
    assert!(view.suspended);
    assert_eq!(
        view.meta.replica,
        ReplicaId(world.groups[&id].meta.replica.0)
    );
}
