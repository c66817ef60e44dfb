//! What the map costs to write under uniform random 4 KiB writes: the engine itself over memory, by
//! size of the volume and bytes between checkpoints; beside it, the same writes with sorted runs that
//! are merged into the tree now and then (a prototype that counts pages, `esker_benches::model`).
//!
//! `cargo run --release -p esker-benches --bin map-cost [--quick]` prints Markdown tables.

use esker_base::num::to_u64;
use esker_benches::memory::{config, MemoryDevice, MemoryStore, Random, Traffic};
use esker_benches::model::{table_bytes, tree_nodes_expected, Runs};

/// Entries per record: what natural batching gives at queue depth 32.
const BATCH: usize = 32;
const GIB: u64 = 1 << 30;

fn ratio(part: u64, whole: u64) -> f64 {
    #[allow(clippy::cast_precision_loss)] // printed with three digits
    let float = |n: u64| n as f64;
    float(part) / float(whole)
}

/// Checkpoints of `interval` blocks of uniform random writes, over a volume written in order before
/// when `filled`. The cache has its default size, 64 MiB.
fn engine(blocks: u64, interval: u64, filled: bool, checkpoints: u64) -> Traffic {
    let device_bytes = 2 * blocks * 4096 + 4 * checkpoints * interval * 4096 + 8 * GIB;
    let mut store = MemoryStore::open(config(device_bytes, 64 << 20), MemoryDevice::blank(false));
    store.create(blocks);
    if filled {
        for (n, lba) in (0..blocks).step_by(256).enumerate() {
            store.write(&[(lba, 256)]);
            if n % 1024 == 1023 {
                store.checkpoint();
            }
        }
        store.checkpoint();
    }
    let mut random = Random(7);
    let before = store.device.traffic;
    for _ in 0..checkpoints {
        for _ in 0..interval / to_u64(BATCH) {
            let batch: Vec<(u64, usize)> = (0..BATCH).map(|_| (random.below(blocks), 1)).collect();
            store.write(&batch);
        }
        store.checkpoint();
    }
    store.device.traffic.since(&before)
}

fn measured(quick: bool) {
    println!("| volume | log between checkpoints | nodes written per block | expected | nodes read per block | headers | tables | all but payload |");
    println!("|---|---|---|---|---|---|---|---|");
    let sizes: &[(u64, bool, &str)] = &[
        (4 * GIB, true, "4 GiB, full"),
        (64 * GIB, true, "64 GiB, full"),
        (1024 * GIB, false, "1 TiB, sparse"),
    ];
    let take = if quick { 1 } else { sizes.len() };
    for (bytes, filled, name) in &sizes[..take] {
        for interval_mib in [128, 256, 512, 1024, 2048] {
            let (blocks, interval) = (bytes / 4096, interval_mib * 256);
            let t = engine(blocks, interval, *filled, 2);
            let per = |bytes: u64| ratio(bytes, t.payload_bytes);
            let overhead = t.node_bytes + t.header_bytes + t.table_bytes + t.superblock_bytes;
            #[allow(clippy::cast_precision_loss)] // printed with three digits
            let expected = tree_nodes_expected(interval, blocks) / interval as f64;
            println!(
                "| {name} | {interval_mib} MiB | {:.3} | {expected:.3} | {:.3} | {:.3} | {:.3} | {:.3} |",
                per(t.node_bytes),
                per(t.nodes_read * 4096),
                per(t.header_bytes),
                per(t.table_bytes),
                per(overhead),
            );
            if quick {
                return;
            }
        }
    }
}

fn runs(quick: bool) {
    println!("\n| volume | log between checkpoints | entries before a merge into the tree | runs | tree | both, written per block | read per block | runs at most | bytes of runs |");
    println!("|---|---|---|---|---|---|---|---|---|");
    let sizes = [
        (4 * GIB, "4 GiB"),
        (64 * GIB, "64 GiB"),
        (1024 * GIB, "1 TiB"),
    ];
    let take = if quick { 1 } else { sizes.len() };
    for (bytes, name) in &sizes[..take] {
        let (blocks, interval) = (bytes / 4096, 256 * 256);
        // So many updates per leaf, on average, when the runs are merged into the tree.
        for per_leaf in [2, 8, 32] {
            let entries_max = per_leaf * blocks / 128;
            let prototype = Runs {
                entry_bytes: 37,
                fan_in: 8,
                entries_max,
            };
            let cost = prototype.simulate(blocks, interval, 1);
            let per = |pages: u64| ratio(pages, cost.blocks);
            println!(
                "| {name} | 256 MiB | {} thousand ({per_leaf} per leaf) | {:.3} | {:.3} | {:.3} | {:.3} | {} | {} MiB |",
                entries_max / 1000,
                per(cost.run_pages),
                per(cost.tree_pages),
                per(cost.run_pages + cost.tree_pages),
                per(cost.pages_read),
                cost.runs_max,
                cost.bytes_max >> 20,
            );
        }
    }
}

fn tables() {
    // What the engine writes of it is in the first table, and in the engine's own test of its tables.
    println!("\n| store | table of live slots, were it written whole, both copies | per client byte at 256 MiB of log | at 1 GiB |");
    println!("|---|---|---|---|");
    for gib in [16, 128, 1024, 8192] {
        let bytes = table_bytes(gib * GIB, 64 << 20);
        println!(
            "| {gib} GiB | {:.1} MiB | {:.3} | {:.3} |",
            ratio(bytes, 1 << 20),
            ratio(bytes, 256 << 20),
            ratio(bytes, 1 << 30),
        );
    }
}

fn main() {
    let quick = std::env::args().any(|a| a == "--quick");
    measured(quick);
    runs(quick);
    tables();
}
