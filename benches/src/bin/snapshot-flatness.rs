//! What snapshots cost the head of a volume: the engine itself over memory, random 4 KiB writes and
//! reads with no, 100 and 10,000 snapshots spread evenly among the writes. Nothing here is a time:
//! lookups of map nodes, extents in the delta index, bytes written, and memory, each of which is the same
//! in every run but the last.
//!
//! `cargo run --release -p esker-benches --bin snapshot-flatness [--quick]` prints Markdown tables.

use esker_benches::memory::{config, MemoryDevice, MemoryStore, Random, GROUP};

const GIB: u64 = 1 << 30;
/// Blocks written per run.
const WRITES: u64 = 160_000;
/// Blocks read per measurement.
const READS: u64 = 20_000;

fn per(part: u64, whole: u64) -> f64 {
    #[allow(clippy::cast_precision_loss)] // printed with three digits
    let float = |n: u64| n as f64;
    float(part) / float(whole.max(1))
}

/// Resident memory in bytes, from the kernel.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text
        .split_whitespace()
        .nth(1)
        .and_then(|n| n.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

/// Lookups of map nodes for each of many reads of one block.
fn lookups_per_read(store: &mut MemoryStore, blocks: u64) -> f64 {
    let mut random = Random(11);
    let lookups = |store: &MemoryStore| {
        let sample = store.engine.sample();
        sample.cache_hits + sample.cache_misses
    };
    let before = lookups(store);
    for _ in 0..READS {
        store.read(random.below(blocks), 1);
    }
    per(lookups(store) - before, READS)
}

/// One row: writes with `snapshots` among them, a checkpoint every `interval` writes.
fn row(blocks: u64, writes: u64, snapshots: u64, interval: u64) {
    let device_bytes = 4 * blocks * 4096 + 16 * writes * 4096 + 8 * GIB;
    let memory_before = resident_bytes();
    let mut store = MemoryStore::open(config(device_bytes, 64 << 20), MemoryDevice::blank(false));
    store.create(blocks);
    for (n, lba) in (0..blocks).step_by(256).enumerate() {
        store.write(&[(lba, 256)]);
        if n % 512 == 511 {
            store.checkpoint();
        }
    }
    store.checkpoint();
    let before = store.device.traffic;
    let mut random = Random(7);
    let every = writes.checked_div(snapshots).unwrap_or(u64::MAX);
    let mut taken = 0;
    let (mut head_extents, mut pending) = (0, 0);
    for n in 0..writes {
        if n % every == every - 1 {
            store.snapshot(&format!("s{taken}"));
            taken += 1;
        }
        store.write(&[(random.below(blocks), 1)]);
        if n % interval == interval - 1 {
            let delta = store.engine.delta_size(GROUP);
            (head_extents, pending) = (delta.newest, delta.older);
            store.checkpoint();
        }
    }
    // Half an interval more, so that reads meet a delta with cuts in it.
    let delta_reads = {
        for n in 0..interval / 2 {
            if n % every.min(interval) == 0 && snapshots > 0 {
                store.snapshot(&format!("t{n}"));
            }
            store.write(&[(random.below(blocks), 1)]);
        }
        lookups_per_read(&mut store, blocks)
    };
    store.checkpoint();
    let tree_reads = lookups_per_read(&mut store, blocks);
    let t = store.device.traffic.since(&before);
    println!(
        "| {taken} | {delta_reads:.3} | {tree_reads:.3} | {head_extents} | {pending} | {:.3} | {:.3} | {} MiB |",
        per(t.node_bytes, t.payload_bytes),
        per(t.table_bytes, t.payload_bytes),
        resident_bytes().saturating_sub(memory_before) >> 20,
    );
}

fn main() {
    let quick = std::env::args().any(|arg| arg == "--quick");
    let (blocks, writes) = match quick {
        true => (1 << 14, WRITES / 16),
        false => (1 << 18, WRITES),
    };
    println!(
        "A volume of {} MiB, {writes} random writes of 4 KiB, a checkpoint every {} of them.",
        blocks >> 8,
        writes / 5
    );
    println!();
    println!("| snapshots | node lookups per read, cuts in the delta | node lookups per read, merged | newest extents in the delta | older ones | node bytes per byte written | table bytes per byte written | memory |");
    println!("|---|---|---|---|---|---|---|---|");
    let most = if quick { 1000 } else { 10_000 };
    for snapshots in [0, 100, most] {
        row(blocks, writes, snapshots, writes / 5);
    }
}
