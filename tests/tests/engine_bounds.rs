//! What an opening has to read, to hold and to do again is bounded, whatever was written and however
//! often the store was killed.

#![allow(clippy::unwrap_used)] // helpers of tests

use esker_base::{BlockRange, GroupId};
use esker_engine::format::operation::Operation;
use esker_engine::format::SEGMENTS_OFFSET;
use esker_engine::EngineConfig;
use esker_tests::check::single::{self, apply, one_group, stamp, write_run};
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
    one_group(config, BLOCKS)
}

fn append(world: &mut World, id: GroupId, operation: Operation) {
    single::append(world, id, operation, Vec::new());
    apply(world, id);
}

fn write(world: &mut World, id: GroupId, lba: u64, count: u32) {
    write_run(world, id, lba, count);
    apply(world, id);
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
        append(&mut world, id, Operation::Discard { range, stamp });
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

/// KiB of log at which a checkpoint begins that comes after 1 MiB at the earliest and after 4 MiB at
/// the latest, when each block that is written lies in another leaf than the one before.
fn log_at_checkpoint(leaves: u64) -> u64 {
    let config = EngineConfig {
        checkpoint_bytes: 1 << 20,
        checkpoint_stretch: 4,
        ..EngineConfig::default()
    };
    let (mut world, id) = world(config);
    let size_bytes = leaves * 128 * 4096;
    append(&mut world, id, Operation::Resize { size_bytes });
    let before = checkpoints(&world);
    let (mut log, mut written) = (0, 0);
    while checkpoints(&world) == before {
        log = world.engine.sample().log_bytes_since_checkpoint;
        write(&mut world, id, written % leaves * 128 + written / leaves, 1);
        written += 1;
    }
    log >> 10
}

#[test]
fn a_checkpoint_waits_longer_where_that_spares_map_nodes() {
    // Few leaves: their nodes are soon a small part of what was written.
    assert!((1000..=1024).contains(&log_at_checkpoint(8)));
    // 33 nodes: one for 16 pages of log.
    let log = log_at_checkpoint(32);
    assert!((33 * 64 - 24..=33 * 64).contains(&log), "{log} KiB");
    // 102 nodes (there are two above the leaves): as late as may be.
    let log = log_at_checkpoint(100);
    assert!((4072..=4096).contains(&log), "{log} KiB");
    // A new leaf for each write: once 256 nodes are 1 MiB, waiting would make others wait.
    let log = log_at_checkpoint(1000);
    assert!((2 << 10..3 << 10).contains(&log), "{log} KiB");
}

/// Leaves that differ are read many at a time, up to a bound, in the order of blocks, and each once,
/// however small the cache: read one after the other, a comparison of scattered changes took the
/// device's latency for each of them.
#[test]
fn a_comparison_reads_ahead_within_a_bound_and_no_node_twice() {
    const LEAVES: u64 = 700;
    let config = EngineConfig {
        cache_bytes: 0, // which is 64 nodes
        ..EngineConfig::default()
    };
    let (mut world, id) = world(config);
    let size_bytes = LEAVES * 128 * 4096;
    append(&mut world, id, Operation::Resize { size_bytes });
    let mut cuts = Vec::new();
    for round in 0..2 {
        for leaf in 0..LEAVES {
            // Of every third leaf nothing changes.
            if round == 0 || leaf % 3 > 0 {
                write(&mut world, id, leaf * 128 + leaf % 100, 1);
            }
        }
        cuts.push(single::snapshot(&mut world, id).0);
        apply(&mut world, id);
        single::checkpoint(&mut world);
    }
    world.restart();
    world.open(&mut SimRng::new(3, 5), false).unwrap();
    let reads = |world: &World| world.engine.sample().meters.reads[1].operations;
    // The numbers of questions say which of them end where what differs ends.
    while (world.next_token + 1).is_multiple_of(3) {
        world.token();
    }
    let before = reads(&world);
    world.diff(id, cuts[0], Some(cuts[1]), true).unwrap();
    let mut at_a_time = world.disk.in_flight_count();
    while !world.diffs.is_empty() && world.disk_step().unwrap() {
        at_a_time = at_a_time.max(world.disk.in_flight_count());
    }
    assert!(world.diffs.is_empty());
    assert!((32..=64).contains(&at_a_time), "{at_a_time}");
    // Of 700 leaves 466 differ, in both versions; six nodes and a root lie above them, twice.
    let read = reads(&world) - before;
    assert!((900..=2 * (466 + 7) + 64).contains(&read), "{read}");
}
