//! Repair: a block that is damaged on the device is written over with what another replica stores of it.
//!
//! All replicas of a volume store the same bytes, under the same stamp and with the same authenticator, sealed or
//! not; only where they lie differs. So nothing in the map changes: the block comes to lie where it lay. Whoever
//! writes a wrong block over a right one would make damage of what is whole, which is why stamp, tag and CRC
//! are compared with what the map has before.

use crate::engine::{Engine, Purpose};
use crate::error::ReadError;
use crate::event::{Effect, ReadRequest, Repair, RepairRequest};
use crate::format::operation::TAG_BYTES;
use crate::format::PAGE;
use crate::readpath::How;
use bytes::Bytes;
use esker_base::num::to_u64;
use esker_base::{AlignedBuf, BlockRange, DiskError, DiskOp, GroupId, Lba, Stamp};
use std::collections::{BTreeMap, BTreeSet};

/// A block as another replica stores it.
#[derive(Clone, Debug)]
pub(crate) struct Copied {
    pub group: GroupId,
    pub lba: u64,
    pub stamp: Stamp,
    pub tag: [u8; TAG_BYTES],
    pub data: Bytes,
}

/// Most damaged blocks that are known by their place; further ones are not counted.
const PLACES_MAX: usize = 1 << 16;

/// Who wants a block repaired, and which one.
type Wanted = (u64, GroupId, u64);

/// What was found damaged since the store was opened.
#[derive(Debug, Default)]
pub(crate) struct Damages {
    /// Repairs that are being written, by segment and slot. Two readers may meet one damage, and volumes share
    /// blocks: two writes to one place have no order.
    writing: BTreeMap<(u32, u32), Vec<Wanted>>,
    /// Blocks by group and number: whoever meets one again counts it once.
    places: BTreeSet<(GroupId, u64)>,
    /// What was met and belongs to none of them: map nodes, and what was moved.
    pub unplaced: u64,
    /// Blocks that were written over with what other replicas have.
    pub repaired: u64,
}

impl Damages {
    pub fn found(&mut self, group: GroupId, lba: u64) {
        if self.places.len() < PLACES_MAX {
            self.places.insert((group, lba));
        }
    }

    fn mended(&mut self, group: GroupId, lba: u64) {
        self.places.remove(&(group, lba));
    }

    pub fn count(&self) -> u64 {
        to_u64(self.places.len()) + self.unplaced
    }
}

impl Engine {
    /// Looks for the block, as a read does.
    pub(crate) fn repair(&mut self, request: RepairRequest, effects: &mut Vec<Effect>) {
        let token = request.token;
        if request.data.len() != PAGE || self.fenced.is_some() {
            return repaired(token, Ok(Repair::Other), effects);
        }
        let read = ReadRequest {
            token,
            group: request.group,
            range: BlockRange::new(request.lba, 1),
            latest: request.latest,
            at: request.at,
        };
        let copied = Copied {
            group: request.group,
            lba: request.lba,
            stamp: request.stamp,
            tag: request.tag,
            data: request.data,
        };
        self.read(read, How::Repair(copied), effects);
    }

    /// Writes it where the block lies, if that is known.
    pub(crate) fn repair_at(
        &mut self,
        token: u64,
        place: Option<(u32, u32)>,
        copied: &Copied,
        effects: &mut Vec<Effect>,
    ) {
        // A segment that is free may be written anew meanwhile.
        let place = place.filter(|(segment, _)| !self.segs.is_free(*segment));
        let Some((segment, slot)) = place else {
            return repaired(token, Ok(Repair::Other), effects);
        };
        let wanted = (token, copied.group, copied.lba);
        let writing = self.damages.writing.entry((segment, slot)).or_default();
        writing.push(wanted);
        if writing.len() > 1 {
            return; // the same bytes: both are what the map says of this place
        }
        // It is not used again as long as somebody reads it.
        self.segs.reader_begins(segment);
        let op = DiskOp::Write {
            offset: self.sb.offset_of(segment, slot),
            bufs: vec![AlignedBuf::copy_of(&copied.data).freeze()],
        };
        self.disk(op, Purpose::Repair { segment, slot }, effects);
    }

    /// It is written. What follows needs no sync: a block that is lost again is found damaged again. For the same
    /// reason a failure leaves the store as it was, and fences nothing.
    pub(crate) fn repair_written(
        &mut self,
        place: (u32, u32),
        result: &Result<Bytes, DiskError>,
        effects: &mut Vec<Effect>,
    ) {
        self.damages.repaired += u64::from(result.is_ok());
        for (token, group, lba) in self.damages.writing.remove(&place).unwrap_or_default() {
            let result = match result {
                Ok(_) => {
                    self.damages.mended(group, lba);
                    Ok(Repair::Done)
                }
                Err(error) => Err(ReadError::Disk {
                    lba: Lba(lba),
                    error: error.clone(),
                }),
            };
            repaired(token, result, effects);
        }
    }
}

fn repaired(token: u64, result: Result<Repair, ReadError>, effects: &mut Vec<Effect>) {
    effects.push(Effect::RepairDone { token, result });
}
