//! Scrub: what is damaged on the device is found and named before anybody reads it.

#![allow(clippy::unwrap_used)] // helpers of tests

use bytes::Bytes;
use esker_base::{GroupId, Stamp};
use esker_engine::event::{Damage, RepairRequest, ScrubTarget};
use esker_engine::format::node::NodePage;
use esker_engine::format::SEGMENTS_OFFSET;
use esker_engine::{EngineConfig, Event};
use esker_tests::check::ops::page_of;
use esker_tests::check::single::{apply, checkpoint, one_group, snapshot, write_run};
use esker_tests::check::world::World;

const BLOCKS: u64 = 1000;

/// Writes blocks that are applied, and gives the stamp of the first.
fn write(world: &mut World, id: GroupId, lba: u64) -> Stamp {
    let stamp = write_run(world, id, lba, 20);
    apply(world, id);
    stamp
}

/// Blocks 0..300 in a snapshot, 100..200 of them overwritten since, all of it merged.
fn world() -> (World, GroupId, Stamp) {
    let config = EngineConfig {
        device_bytes: SEGMENTS_OFFSET + 40 * (256 << 10),
        format_if_blank: true,
        segment_bytes: 256 << 10,
        store_entropy: 9,
        cache_bytes: 1 << 20,
        ..EngineConfig::default()
    };
    let (mut world, id) = one_group(config, BLOCKS);
    let mut first = None;
    for lba in (0..300).step_by(20) {
        let stamp = write(&mut world, id, lba);
        first.get_or_insert(stamp);
    }
    snapshot(&mut world, id);
    apply(&mut world, id);
    for lba in (100..200).step_by(20) {
        write(&mut world, id, lba);
    }
    checkpoint(&mut world);
    (world, id, first.unwrap())
}

/// The page of the device that holds the block written with a stamp.
fn place(world: &World, id: GroupId, stamp: Stamp) -> u64 {
    let content = page_of(id, stamp.0);
    let mut pages = world.disk.visible().pages();
    pages.find(|(_, bytes)| **bytes == content).unwrap().0
}

#[test]
fn everything_is_read_once_whoever_shares_it() {
    let (mut world, ..) = world();
    let found = world.scrub_all().unwrap();
    // Three leaves of the snapshot and two that changed since, each under a root.
    assert_eq!((found.blocks, found.nodes), (400, 3 + 1 + 2 + 1));
    assert!(found.damaged.is_empty());
}

#[test]
fn a_damaged_block_is_named_though_it_is_in_no_cache_and_nobody_read_it() {
    let (mut world, id, first) = world();
    let old = place(&world, id, Stamp(first.0 + 150));
    let shared = place(&world, id, Stamp(first.0 + 7));
    world.disk.damage(|image| {
        image.flip_bit(old, 1234);
        image.zero_page(shared);
    });
    world.damaged = true;
    let found = world.scrub_all().unwrap();
    let block = |lba| Damage {
        lba,
        count: 1,
        in_map: false,
    };
    let version = found.damaged.first().unwrap().0;
    let named = world.engine.scrub_target_name(version);
    let snapshot = world.engine.snapshots(id)[0].meta.name.clone();
    assert_eq!(named, Some((id, Some(snapshot.as_str()))));
    assert_eq!(found.damaged, [(version, block(7)), (version, block(150))]);
    assert_eq!(found.blocks, 400, "the rest is looked at all the same");
    assert_eq!(world.engine.damaged_blocks(), 2);
}

#[test]
fn a_damaged_map_node_is_found_though_the_cache_has_it() {
    let (mut world, id, _) = world();
    let is_leaf_of_head = |bytes: &[u8]| {
        NodePage::check(bytes).is_ok_and(|head| head.level == 0 && head.first_lba == 128)
    };
    // Of the two the head's is the one that was written last.
    let pages = world.disk.visible().pages();
    let leaves = pages.filter(|(_, bytes)| is_leaf_of_head(bytes));
    let leaf = leaves.map(|(page, _)| page).max().unwrap();
    world.disk.damage(|image| image.flip_bit(leaf, 20_000));
    world.damaged = true;
    let found = world.scrub_all().unwrap();
    let damage = Damage {
        lba: 128,
        count: 128,
        in_map: true,
    };
    assert_eq!(found.damaged, [(ScrubTarget::Head(id), damage)]);
    // Behind it the scrub goes on.
    assert_eq!(found.blocks, 400 - 72);
}

/// A page that comes back wrong once (a bit that flips on the way) is read again.
#[test]
fn what_is_wrong_once_is_not_damage() {
    let (mut world, ..) = world();
    world.disk.faults.read_error = 30; // of a thousand
    let found = world.scrub_all().unwrap();
    assert!(world.disk.counts.read_errors > 0, "no read ever failed");
    assert!(found.damaged.is_empty(), "{:?}", found.damaged);
    assert_eq!(found.blocks, 400);
}

/// What another replica has is written over a damaged block only if it is that very version of it.
#[test]
fn a_block_is_repaired_with_its_own_version_alone() {
    let (mut world, id, first) = world();
    let stamp = Stamp(first.0 + 7);
    let page = place(&world, id, stamp);
    let good = page_of(id, stamp.0);
    world.disk.damage(|image| image.flip_bit(page, 1234));
    world.damaged = true;
    let bad = content(&world, page);
    let repair = |world: &mut World, lba, stamp, tag, data: &Bytes| {
        let token = world.token();
        let request = RepairRequest {
            token,
            group: id,
            lba,
            latest: false,
            at: None,
            stamp,
            tag,
            data: data.clone(),
        };
        world.step(Event::Repair(request)).unwrap();
        world.run(false).unwrap();
        content(world, page)
    };
    let other = page_of(id, stamp.0 + 1);
    assert_eq!(
        repair(&mut world, 7, Stamp(stamp.0 + 1), [0; 12], &good),
        bad
    );
    assert_eq!(repair(&mut world, 7, stamp, [1; 12], &good), bad);
    assert_eq!(repair(&mut world, 7, stamp, [0; 12], &other), bad);
    assert_eq!(repair(&mut world, 8, stamp, [0; 12], &good), bad);
    assert_eq!(repair(&mut world, 7, stamp, [0; 12], &good.slice(1..)), bad);
    assert_eq!(world.engine.repaired_blocks(), 0);
    world.scrub_all().unwrap();
    assert_eq!(world.engine.damaged_blocks(), 1);
    assert_eq!(repair(&mut world, 7, stamp, [0; 12], &good), good);
    assert_eq!(world.engine.repaired_blocks(), 1);
    assert_eq!(world.engine.damaged_blocks(), 0);
    assert!(world.scrub_all().unwrap().damaged.is_empty());
}

fn content(world: &World, page: u64) -> Bytes {
    let mut pages = world.disk.visible().pages();
    let found = pages.find(|(at, _)| *at == page).unwrap();
    Bytes::copy_from_slice(&found.1[..])
}
