//! Sealing and opening a block, by each backend; what a key costs to make.
#![allow(missing_docs)] // criterion's macros make undocumented functions

use criterion::{criterion_group, criterion_main, Criterion, Throughput};
use esker_base::{AlignedBuf, Epoch, Lba, Stamp, VolumeId, BLOCK_SIZE, BLOCK_SIZE_U64};
use esker_crypto::{Backend, BlockKey, DataKey};
use std::hint::black_box;

const EPOCH: Epoch = Epoch(3);

fn key(backend: Backend) -> BlockKey {
    let dek = DataKey::filled(|bytes| bytes.fill(7));
    BlockKey::derive(backend, &dek, VolumeId(1), EPOCH, 5)
}

fn blocks(c: &mut Criterion) {
    let mut group = c.benchmark_group("crypto");
    group.throughput(Throughput::Bytes(BLOCK_SIZE_U64));
    for (backend, name) in [(Backend::AwsLc, "aws-lc"), (Backend::RustCrypto, "aes-gcm")] {
        let key = key(backend);
        let mut block = AlignedBuf::zeroed(BLOCK_SIZE);
        let mut counter = 0;
        group.bench_function(format!("seal 4 KiB, {name}"), |b| {
            b.iter(|| {
                counter += 1;
                let stamp = Stamp::new(EPOCH, counter);
                black_box(key.seal(Lba(9), stamp, black_box(&mut block)))
            });
        });
        let stamp = Stamp::new(EPOCH, 1);
        let auth = key.seal(Lba(9), stamp, &mut block);
        let sealed = AlignedBuf::copy_of(&block);
        // Opening is in place, so each round copies the sealed block first.
        group.bench_function(format!("copy and open 4 KiB, {name}"), |b| {
            b.iter(|| {
                block.copy_from_slice(&sealed);
                assert!(key
                    .open(Lba(9), stamp, &auth, black_box(&mut block))
                    .is_ok());
            });
        });
    }
    let sealed = AlignedBuf::zeroed(BLOCK_SIZE);
    let mut block = AlignedBuf::zeroed(BLOCK_SIZE);
    group.bench_function("copy 4 KiB", |b| {
        b.iter(|| black_box(&mut block).copy_from_slice(black_box(&sealed)));
    });
    group.finish();
}

fn keys(c: &mut Criterion) {
    for (backend, name) in [(Backend::AwsLc, "aws-lc"), (Backend::RustCrypto, "aes-gcm")] {
        let name = format!("crypto/key of an epoch, {name}");
        c.bench_function(&name, |b| b.iter(|| black_box(key(backend))));
    }
}

criterion_group!(benches, blocks, keys);
criterion_main!(benches);
