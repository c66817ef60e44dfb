//! No stamp twice: every record that a store writes is decoded, and each stamp in it must name one
//! block of one entry, over the whole history of all stores, crashes included.

use super::keys::SealWatch;
use esker_base::{DiskOp, GroupId, RaftIndex, Term};
use esker_engine::format::operation::Operation;
use esker_engine::format::record::{ItemBody, RecordHeader};
use std::collections::BTreeMap;
use xxhash_rust::xxh3::xxh3_64;

/// What a stamp was given to.
type Named = (Term, RaftIndex, u64);

/// All stamps seen.
#[derive(Clone, Debug, Default)]
pub struct StampWatch {
    seen: BTreeMap<(GroupId, u64), Named>,
    /// Groups of encrypted volumes, and the key of their newest epoch.
    keys: BTreeMap<GroupId, u32>,
}

impl StampWatch {
    /// Looks at a disk operation.
    ///
    /// # Errors
    /// When a stamp names two things, or what should be sealed is not.
    pub(crate) fn watch(&mut self, op: &DiskOp, seals: &SealWatch) -> Result<(), String> {
        let DiskOp::Write { bufs, .. } = op else {
            return Ok(());
        };
        // The header pages are one buffer.
        let first = bufs.first().map_or(&[][..], |b| &b[..]);
        let Ok((header, items, _)) = RecordHeader::decode(first) else {
            return Ok(());
        };
        for item in items {
            let ItemBody::Entry {
                term, index, data, ..
            } = &item.body
            else {
                continue;
            };
            let Ok((operation, _)) = Operation::decode(data) else {
                continue;
            };
            self.is_sealed(item.group, &operation, seals)?;
            // What a feed brings has the stamps that it has on other replicas.
            if esker_engine::feed_target(item.group).is_some() {
                continue;
            }
            let named = (*term, *index, xxh3_64(data));
            let (first, count) = match &operation {
                Operation::Write { stamp, blocks, .. } => (stamp.0, blocks.len() as u64),
                Operation::Discard { stamp, .. } | Operation::Zero { stamp, .. } => (stamp.0, 1),
                Operation::Snapshot { stamp, .. } | Operation::Rollback { stamp, .. } => {
                    (stamp.0, 1)
                }
                Operation::OpenEpoch { .. }
                | Operation::Resize { .. }
                | Operation::DeleteSnapshot { .. }
                | Operation::Clone { .. }
                | Operation::Relabel { .. }
                | Operation::Rename { .. }
                | Operation::Ingest { .. }
                | Operation::Branch { .. } => continue,
            };
            for stamp in first..first + count {
                let before = *self.seen.entry((item.group, stamp)).or_insert(named);
                if before != named {
                    return Err(format!(
                        "stamp {}.{} of group {} names entry {before:?} and, in record {}, entry \
                         {named:?}",
                        stamp >> 32,
                        stamp & 0xffff_ffff,
                        item.group,
                        header.seq
                    ));
                }
            }
        }
        Ok(())
    }

    /// Blocks of an encrypted volume carry its key's number and were noted when they were sealed.
    fn is_sealed(
        &mut self,
        group: GroupId,
        operation: &Operation,
        seals: &SealWatch,
    ) -> Result<(), String> {
        match operation {
            // One under a newer key may have been lost in a crash, so that an older one comes after it.
            Operation::OpenEpoch { key_id, .. } if *key_id != 0 => {
                self.keys.insert(group, *key_id);
                Ok(())
            }
            Operation::Write {
                stamp,
                key_id,
                blocks,
                ..
            } => match self.keys.get(&group) {
                Some(_) if *key_id == 0 => Err(format!("a block of {group} is not sealed")),
                None if *key_id != 0 => Err(format!("{group} has no key {key_id}")),
                Some(_) if !(0..blocks.len() as u64).all(|n| seals.knows(stamp.0 + n)) => {
                    Err(format!("nobody noted that {stamp} of {group} was sealed"))
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Stamps seen.
    #[must_use]
    pub fn count(&self) -> usize {
        self.seen.len()
    }
}
