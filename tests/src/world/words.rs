//! What a disk is asked for, in words: for the log of a run.

use bytes::Bytes;
use esker_base::{DiskOp, IoId};
use esker_engine::format::operation::Operation;
use esker_engine::format::record::{Item, ItemBody, RecordHeader};

/// A disk operation in words, for the log of a run.
pub(crate) fn disk_operation(host: usize, io: IoId, op: &DiskOp) -> String {
    let what = match op {
        DiskOp::Read { offset, length } => format!("read {length} at {offset}"),
        DiskOp::Sync => "sync".to_owned(),
        DiskOp::Write { offset, bufs } => {
            let bytes: usize = bufs.iter().map(Bytes::len).sum();
            match RecordHeader::decode(&bufs[0]) {
                Ok((h, items, _)) => {
                    let items: Vec<_> = items.iter().map(item).collect();
                    format!(
                        "record {} (durable {}, {bytes} bytes at {}.{} generation {}): {items:?}",
                        h.seq, h.durable_seq, h.segment, h.slot, h.generation
                    )
                }
                Err(_) => format!("write {bytes} at {offset}"),
            }
        }
    };
    format!("node {host} disk op {io}: {what}")
}

fn item(item: &Item) -> String {
    let group = item.group;
    match &item.body {
        ItemBody::Entry {
            term, index, data, ..
        } => {
            let operation = match Operation::decode(data) {
                Ok((
                    Operation::Write {
                        lba, stamp, blocks, ..
                    },
                    _,
                )) => {
                    format!("write {lba}+{} {stamp}", blocks.len())
                }
                Ok((other, _)) => format!("{other:?}"),
                Err(_) => "empty".to_owned(),
            };
            format!("{group}: {term}/{index} {operation}")
        }
        other => format!("{group}: {other:?}"),
    }
}
