//! What an opening refuses, that it then writes nothing, and what damage it lives with.

#![allow(clippy::unwrap_used)] // helpers of tests

use bytes::Bytes;
use esker_base::BLOCK_SIZE;
use esker_engine::format::checkpoint::Checkpoint;
use esker_engine::format::superblock::{Superblock, COPIES};
use esker_engine::format::table::TableId;
use esker_engine::{Engine, OpenError, Sabotage};
use esker_tests::check::world::World;
use esker_tests::sim::{Image, SimRng};

fn store(seed: u64) -> World {
    let mut rng = SimRng::new(seed, 2);
    let config = World::config(&mut rng, Sabotage::None);
    let mut world = World::new(seed, config);
    world.open(&mut rng, false).unwrap();
    for _ in 0..100 {
        world.random_op().unwrap();
        world.run(false).unwrap();
    }
    world.run(true).unwrap();
    world
}

/// Opens `image` and gives why that was refused; asserts that nothing was written.
fn refusal(world: &World, image: Image) -> Option<OpenError> {
    let mut config = world.config.clone();
    config.device_bytes = image.size();
    let before: Vec<(u64, Bytes)> = image.pages().map(|(n, p)| (n, p.clone())).collect();
    let mut opening = World::with_image(1, config, image);
    opening.run(false).unwrap();
    let refused = opening.refused.clone();
    if refused.is_some() {
        let after = opening.disk.visible().pages().map(|(n, p)| (n, p.clone()));
        assert!(
            after.eq(before),
            "{refused:?} and yet something was written"
        );
    }
    refused
}

fn copy_page(copy: usize) -> u64 {
    Superblock::copy_offset(copy) / 4096
}

fn rewrite(image: &mut Image, change: impl Fn(&mut Superblock), patch: impl Fn(&mut Vec<u8>)) {
    for copy in 0..COPIES {
        let page = image.page_bytes(copy_page(copy));
        let (mut sb, number) = Superblock::decode(&page).unwrap();
        change(&mut sb);
        let mut bytes = sb.encode(number);
        patch(&mut bytes);
        image.set_page(copy_page(copy), Bytes::from(bytes));
    }
}

#[test]
fn one_or_two_damaged_superblock_copies_do_not_matter() {
    for seed in 0..6 {
        for a in 0..COPIES {
            for b in 0..COPIES {
                let mut world = store(seed);
                world.disk.damage(|image| {
                    image.flip_bit(copy_page(a), 1000);
                    image.zero_page(copy_page(b));
                });
                world.disk.power_cut();
                world.restart();
                world.open(&mut SimRng::new(seed, 9), false).unwrap();
                world.check_opened().unwrap();
                world.settle().unwrap();
            }
        }
    }
}

#[test]
fn three_damaged_superblock_copies_are_refused() {
    let world = store(1);
    let mut image = world.disk.visible().clone();
    for copy in 1..COPIES {
        image.flip_bit(copy_page(copy), 777);
    }
    let refused = refusal(&world, image);
    assert!(
        matches!(refused, Some(OpenError::NoQuorum { valid: 1, .. })),
        "{refused:?}"
    );
}

#[test]
fn a_truncated_device_is_refused() {
    let world = store(2);
    let mut image = world.disk.visible().clone();
    let size = image.size();
    image.resize(size - 4096);
    let refused = refusal(&world, image);
    assert!(
        matches!(refused, Some(OpenError::Truncated { .. })),
        "{refused:?}"
    );
}

#[test]
fn a_foreign_file_is_refused_wherever_its_bytes_lie() {
    let world = store(3);
    for page in [0, 1, 64, 65, 511] {
        let mut image = Image::blank(world.config.device_bytes);
        let mut bytes = vec![0; BLOCK_SIZE];
        bytes[77] = 1;
        image.set_page(page, Bytes::from(bytes));
        assert_eq!(
            refusal(&world, image),
            Some(OpenError::Foreign),
            "page {page}"
        );
    }
}

#[test]
fn a_newer_version_or_feature_is_refused_by_name() {
    let world = store(4);
    let image = world.disk.visible().clone();
    let mut feature = image.clone();
    rewrite(&mut feature, |sb| sb.incompat |= 1 << 9, |_| {});
    let mut version = image.clone();
    rewrite(
        &mut version,
        |_| {},
        |bytes| {
            bytes[8] += 1;
            bytes[12..16].fill(0);
            let crc = esker_base::checksum::crc32(bytes);
            bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        },
    );
    for image in [feature, version] {
        let refused = refusal(&world, image);
        assert!(matches!(refused, Some(OpenError::Newer(_))), "{refused:?}");
    }
}

#[test]
fn a_blank_or_tiny_device_is_named_as_such() {
    let world = store(5);
    let mut config = world.config.clone();
    config.format_if_blank = false;
    let mut blank = World::with_image(1, config.clone(), Image::blank(config.device_bytes));
    blank.run(false).unwrap();
    assert_eq!(blank.refused, Some(OpenError::Blank));
    config.device_bytes = 4096;
    let mut effects = Vec::new();
    let engine = Engine::open(config, &mut effects);
    assert!(!engine.is_open() && effects.len() == 1, "{effects:?}");
}

#[test]
fn one_damaged_copy_of_the_checkpoint_does_not_matter_and_two_are_refused() {
    let world = store(6);
    let mut image = world.disk.visible().clone();
    let sb = world.engine.superblock();
    let copies = sb.checkpoint_copies();
    assert_eq!(copies.len(), 2);
    let page = |n: usize| sb.offset_of(copies[n][0].segment, copies[n][0].slot) / 4096;
    image.flip_bit(page(0), 99);
    let refused = refusal(&world, image.clone());
    assert!(refused.is_none(), "{refused:?}");
    image.flip_bit(page(1), 99);
    let refused = refusal(&world, image);
    assert!(
        matches!(refused, Some(OpenError::Checkpoint(_))),
        "{refused:?}"
    );
}

/// Every page that a table's root names, of each table: its first copy may be damaged, and both not.
#[test]
fn one_damaged_copy_of_a_page_of_a_table_does_not_matter_and_two_are_refused() {
    let world = store(7);
    let image = world.disk.visible().clone();
    let sb = world.engine.superblock();
    let mut body = Vec::new();
    for chunk in sb.checkpoint_copies()[0] {
        let first = sb.offset_of(chunk.segment, chunk.slot) / 4096;
        for number in first..first + u64::from(chunk.pages) {
            body.extend_from_slice(&image.page_bytes(number));
        }
    }
    body.truncate(usize::try_from(sb.checkpoint_bytes).unwrap());
    let checkpoint = Checkpoint::decode(&body).unwrap();
    let mut pages = 0;
    for root in checkpoint.tables {
        for (_, pointer) in root
            .pages
            .into_iter()
            .filter(|_| root.table != TableId::Deaths)
        {
            pages += 1;
            let number = |copy: usize| {
                let (segment, slot) = pointer.places[copy].segment_slot().unwrap();
                sb.offset_of(segment, slot) / 4096
            };
            for first in [0, 1] {
                let mut image = image.clone();
                image.flip_bit(number(first), 777);
                let refused = refusal(&world, image.clone());
                assert!(refused.is_none(), "{refused:?}");
                image.flip_bit(number(1 - first), 888);
                let refused = refusal(&world, image);
                let is_damage = matches!(refused, Some(OpenError::Checkpoint(_)));
                assert!(is_damage, "{refused:?}");
            }
        }
    }
    assert!(pages >= 2, "both tables have pages");
}
