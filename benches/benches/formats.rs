//! Encoding and decoding what is on the device.
#![allow(missing_docs)] // criterion's macros make undocumented functions

use bytes::Bytes;
use criterion::{criterion_group, criterion_main, Criterion, Throughput};
use esker_base::checksum::crc32;
use esker_base::{Epoch, GroupId, RaftIndex, Seq, Stamp, Term};
use esker_engine::format::codec::Writer;
use esker_engine::format::operation::{BlockInfo, Operation, RequestId};
use esker_engine::format::record::{EntryKind, Item, ItemBody, RecordHeader};
use std::hint::black_box;

fn operation(blocks: usize) -> Operation {
    Operation::Write {
        lba: 4096,
        stamp: Stamp::new(Epoch(3), 17),
        key_id: 0,
        blocks: (0..blocks)
            .map(|i| BlockInfo::plain(u32::try_from(i).expect("few")))
            .collect(),
    }
}

fn items(count: u64) -> Vec<Item> {
    let data = Bytes::from(operation(1).encode(RequestId::default()));
    let body = |index| ItemBody::Entry {
        term: Term(2),
        index: RaftIndex(index),
        kind: EntryKind::Normal,
        payload_page: 0,
        payload_pages: 1,
        data: data.clone(),
    };
    let item = |i| Item {
        group: GroupId(7),
        group_prev_seq: Seq(1),
        body: body(i),
    };
    (1..=count).map(item).collect()
}

fn encode(items: &[Item]) -> Vec<u8> {
    let mut w = Writer::new();
    items.iter().for_each(|item| item.encode(&mut w));
    let header = RecordHeader {
        header_pages: 1,
        payload_pages: 16,
        ..RecordHeader::default()
    };
    header
        .encode(u32::try_from(items.len()).expect("few"), &w.bytes)
        .0
}

fn formats(c: &mut Criterion) {
    let sixteen = items(16);
    c.bench_function("record header of 16 entries, encode", |b| {
        b.iter(|| encode(black_box(&sixteen)))
    });
    let bytes = encode(&sixteen);
    c.bench_function("record header of 16 entries, decode", |b| {
        b.iter(|| RecordHeader::decode(black_box(&bytes)).expect("valid"));
    });
    for blocks in [1, 256] {
        let op = operation(blocks);
        c.bench_function(&format!("write of {blocks} blocks, encode"), |b| {
            b.iter(|| black_box(&op).encode(RequestId::default()));
        });
        let bytes = op.encode(RequestId::default());
        c.bench_function(&format!("write of {blocks} blocks, decode"), |b| {
            b.iter(|| Operation::decode(black_box(&bytes)).expect("valid"));
        });
    }
    let mut group = c.benchmark_group("checksum");
    group.throughput(Throughput::Bytes(4096));
    let block = vec![0x5a; 4096];
    group.bench_function("CRC of a block", |b| b.iter(|| crc32(black_box(&block))));
    group.finish();
}

criterion_group!(benches, formats);
criterion_main!(benches);
