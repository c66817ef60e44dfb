//! The map inside its engine, over memory: applying and looking up writes, and what a checkpoint's
//! merge costs.
#![allow(missing_docs)] // criterion's macros make undocumented functions

use criterion::{criterion_group, criterion_main, BatchSize, Criterion, Throughput};
use esker_benches::memory::{config, MemoryDevice, MemoryStore, Random};
use std::time::{Duration, Instant};

const GIB: u64 = 1 << 30;
/// 1 TiB in blocks.
const BLOCKS: u64 = 1024 * GIB / 4096;
const DEVICE_BYTES: u64 = 64 * GIB;

/// A volume of 1 TiB with this many single blocks written at random, which a checkpoint has merged.
fn sparse(written: u64) -> MemoryStore {
    let mut store = MemoryStore::open(config(DEVICE_BYTES, 64 << 20), MemoryDevice::blank(false));
    store.create(BLOCKS);
    let mut random = Random(3);
    for _ in 0..written / 32 {
        let batch: Vec<_> = (0..32).map(|_| (random.below(BLOCKS), 1)).collect();
        store.write(&batch);
    }
    store.checkpoint();
    store
}

fn writes(c: &mut Criterion) {
    let mut group = c.benchmark_group("1 TiB volume");
    group.throughput(Throughput::Elements(32));
    let mut random = Random(9);
    let mut store = sparse(0);
    let mut since = 0;
    group.bench_function("32 random blocks, append and apply", |b| {
        b.iter(|| {
            let batch: Vec<_> = (0..32).map(|_| (random.below(BLOCKS), 1)).collect();
            store.write(&batch);
            since += 32;
            // As large as the delta index becomes between checkpoints.
            if since >= 64 << 10 {
                since = 0;
                store.checkpoint();
            }
        });
    });
    group.throughput(Throughput::Elements(256));
    let mut store = sparse(0);
    let mut at = 0;
    group.bench_function("256 blocks in order, append and apply", |b| {
        b.iter(|| {
            store.write(&[(at, 256)]);
            at = (at + 256) % (16 * GIB / 4096); // what is overwritten gives its room back
            if at % (1 << 18) == 0 {
                store.checkpoint();
            }
        });
    });
    group.finish();
}

fn lookups(c: &mut Criterion) {
    let mut group = c.benchmark_group("1 TiB volume");
    let mut random = Random(11);
    // 64 thousand leaves: 256 MiB of nodes over a cache of 64 MiB.
    let mut store = sparse(64 << 10);
    let written: Vec<u64> = {
        let mut random = Random(3);
        (0..64 << 10).map(|_| random.below(BLOCKS)).collect()
    };
    let pick = |random: &mut Random, most: usize| {
        let at = usize::try_from(random.below(u64::try_from(most).expect("few"))).expect("few");
        written[at]
    };
    group.bench_function("read of a block, its leaf in the cache", |b| {
        b.iter(|| {
            let lba = pick(&mut random, 1000);
            store.read(lba, 1);
        });
    });
    group.bench_function("read of a block, one leaf in four in the cache", |b| {
        b.iter(|| {
            let lba = pick(&mut random, written.len());
            store.read(lba, 1);
        });
    });
    group.finish();
}

fn merges(c: &mut Criterion) {
    let mut group = c.benchmark_group("checkpoint");
    // Every round fills room that only garbage collection would give back.
    group.sample_size(10);
    group.warm_up_time(Duration::from_millis(500));
    group.measurement_time(Duration::from_secs(3));
    for (name, blocks) in [("4 GiB", 4 * GIB / 4096), ("64 GiB", 64 * GIB / 4096)] {
        for writes in [4096u64, 16 << 10, 64 << 10] {
            let mut random = Random(5);
            let mut fill = |store: &mut MemoryStore, in_order: bool| {
                let start = random.below(blocks - writes);
                for n in 0..writes / 32 {
                    let lba = |random: &mut Random, i| match in_order {
                        true => start + n * 32 + i,
                        false => random.below(blocks),
                    };
                    let batch: Vec<_> = (0..32).map(|i| (lba(&mut random, i), 1)).collect();
                    store.write(&batch);
                }
            };
            group.throughput(Throughput::Elements(writes));
            for (order, in_order) in [("random", false), ("in order", true)] {
                let name = format!("merge {writes} blocks, {order}, into {name}");
                let config = config(4 * DEVICE_BYTES, 64 << 20);
                let mut store = MemoryStore::open(config, MemoryDevice::blank(false));
                store.create(blocks);
                group.bench_function(name, |b| {
                    b.iter_custom(|times| {
                        let mut spent = Duration::ZERO;
                        for _ in 0..times {
                            fill(&mut store, in_order);
                            let began = Instant::now();
                            store.checkpoint();
                            spent += began.elapsed();
                        }
                        spent
                    });
                });
            }
        }
    }
    group.finish();
}

fn recovery(c: &mut Criterion) {
    let mut group = c.benchmark_group("recovery");
    group.sample_size(10);
    for (name, run) in [("single blocks", 1), ("runs of 256 blocks", 256usize)] {
        let mut store = MemoryStore::open(config(5 * GIB, 64 << 20), MemoryDevice::blank(true));
        store.create(4 * GIB / 4096);
        let mut random = Random(13);
        let mut written = 0;
        while written < (256 << 20) / 4096 {
            let count = if run == 1 { 32 } else { 1 };
            let blocks = 4 * GIB / 4096 - 256;
            let batch: Vec<_> = (0..count).map(|_| (random.below(blocks), run)).collect();
            store.write(&batch);
            written += count * run;
        }
        let device = store.device;
        group.throughput(Throughput::Bytes(256 << 20));
        group.bench_function(format!("256 MiB of log, {name}"), |b| {
            b.iter_batched(
                || device.clone(),
                |device| MemoryStore::open(config(5 * GIB, 64 << 20), device),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, writes, lookups, merges, recovery);
criterion_main!(benches);
