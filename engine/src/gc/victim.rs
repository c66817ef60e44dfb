//! What the collector learns of a segment while it reads it: the CRCs that its headers give, whose the pages
//! are, and where its slots went.

use super::{Resident, Victim};
use crate::catchup::feed_target;
use crate::format::checkpoint::SegmentKind;
use crate::format::operation::Operation;
use crate::format::record::{ItemBody, RecordHeader, HEADER_PAGES_MAX};
use crate::format::survivors::{Owner, SurvivorsHeader};
use crate::format::PAGE;
use crate::space::segments::Moved;
use esker_base::num::to_u32_saturating;
use esker_base::StoreId;

/// The page in front of a batch at a place (segment, its generation, slot), if it is there and of this store.
pub fn survivors_at(
    bytes: &[u8],
    store: StoreId,
    (segment, generation, slot): (u32, u64, u32),
) -> Option<SurvivorsHeader> {
    let header = SurvivorsHeader::decode(bytes.get(..PAGE)?).ok()?;
    let is_here = (header.store, header.segment) == (store, segment)
        && (header.generation, header.slot) == (generation, slot);
    is_here.then_some(header)
}

impl Victim {
    /// The segment that is copied.
    pub fn segment(&self) -> u32 {
        self.segment
    }

    /// Finds what headers in the window say of pages. Gives the slot at which the next window
    /// begins: a header that may not be whole here is looked at again.
    pub fn find_headers(&mut self, bytes: &[u8], store: StoreId, slots: u32) -> u32 {
        let end = self.window + self.length;
        if self.kind == SegmentKind::Map {
            return end;
        }
        let header_max = match self.kind {
            SegmentKind::Survivors => 1,
            _ => to_u32_saturating(HEADER_PAGES_MAX),
        };
        while self.header_at < end {
            let at = self.header_at;
            if at + header_max > end && end < slots && at > self.window {
                return at;
            }
            let rest = &bytes[(at - self.window) as usize * PAGE..];
            self.header_at = match self.kind {
                SegmentKind::Survivors => self.survivors_header(rest, store, at),
                _ => self.record_header(rest, store, at),
            };
        }
        end
    }

    fn record_header(&mut self, bytes: &[u8], store: StoreId, at: u32) -> u32 {
        let Ok((header, items, _)) = RecordHeader::decode(bytes) else {
            return at + 1;
        };
        let here = header.store == store
            && header.generation == self.generation
            && header.segment == self.segment
            && header.slot == at;
        if !here {
            return at + 1;
        }
        let payload = at + u32::from(header.header_pages);
        for item in &items {
            let ItemBody::Entry {
                payload_page, data, ..
            } = &item.body
            else {
                continue;
            };
            if let Ok((operation, _)) = Operation::decode(data) {
                let group = feed_target(item.group).unwrap_or(item.group);
                let slots = payload + payload_page..;
                for (slot, (lba, crc)) in slots.zip(operation.payload_crcs()) {
                    self.named.insert(slot, (crc, Owner { group, lba }));
                }
            }
        }
        at + header.pages()
    }

    fn survivors_header(&mut self, bytes: &[u8], store: StoreId, at: u32) -> u32 {
        let Some(header) = survivors_at(bytes, store, (self.segment, self.generation, at)) else {
            return at + 1;
        };
        for (slot, entry) in (at + 1..).zip(&header.entries) {
            self.named.insert(slot, (entry.crc, entry.owner));
        }
        at + 1 + to_u32_saturating(header.entries.len())
    }

    pub fn note_moved(&mut self, r: &Resident, segment: u32, base: u32, batch: u64) {
        let slot = r.vaddr.slot();
        let goes_on = |m: &&mut Moved| {
            m.from == r.piece
                && m.segment == segment
                && m.base + to_u32_saturating(m.slots.len()) == base
        };
        // Between two batches lies a page that names what follows. Where a dead slot lies between those that are
        // moved, it is kept and stands for that page: nobody asks for it, and the piece goes on.
        let goes_on_behind_a_header = |m: &&mut Moved| {
            let last = m.slots.last().copied().unwrap_or(slot);
            m.from == r.piece
                && m.segment == segment
                && m.base + to_u32_saturating(m.slots.len()) + 1 == base
                && last + 1 < slot
        };
        match self.moved.last_mut() {
            Some(m) if goes_on(&m) => m.slots.push(slot),
            Some(m) if goes_on_behind_a_header(&m) => {
                let dead = m.slots.last().map_or(slot, |last| last + 1);
                m.slots.extend([dead, slot]);
            }
            _ => self.moved.push(Moved {
                from: r.piece,
                slots: vec![slot],
                segment,
                base,
            }),
        }
        self.last_batch = batch;
    }
}
