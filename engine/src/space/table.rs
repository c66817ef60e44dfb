//! Segments and pieces as they are at one time, in memory.

use super::piece::{Kept, Piece};
use crate::format::checkpoint::SegmentKind;
use crate::format::vaddr::VAddr;
use std::collections::BTreeMap;

/// A segment in memory.
#[derive(Clone, Debug, Default)]
pub struct Segment {
    /// Use.
    pub kind: SegmentKind,
    /// Generation; of its last use when free.
    pub generation: u64,
    /// Slots written.
    pub written: u32,
    /// Nothing more is appended to it.
    pub sealed: bool,
    /// Reads on their way; a segment is not reopened before they end.
    pub readers: u32,
    pub(super) live_count: u32,
}

impl Segment {
    /// Number of live slots in it.
    pub fn live_count(&self) -> u32 {
        self.live_count
    }
}

/// What a checkpoint says of the space: frozen when it begins.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    pub segments: Vec<Segment>,
    pub pieces: BTreeMap<VAddr, Piece>,
    pub live: u64,
    /// Pieces of segments of survivors whose last slot has died.
    pub emptied: Vec<VAddr>,
}

impl Table {
    /// The piece that holds a slot, by its key, and the slot's rank in it.
    pub fn find(&self, vaddr: VAddr) -> Option<(VAddr, u32)> {
        let (key, piece) = self.pieces.range(..=vaddr).next_back()?;
        if key.vseg() != vaddr.vseg() {
            return None;
        }
        let rank = piece.kept.rank(vaddr.slot() - key.slot())?;
        Some((*key, rank))
    }

    /// Makes slots live or dead; false when one was so already or is nowhere. `each` is told the
    /// pieces, by key, and which of the slots are theirs.
    pub fn change(
        &mut self,
        vaddr: VAddr,
        count: u64,
        live: bool,
        each: &mut dyn FnMut(VAddr, VAddr, u32),
    ) -> bool {
        let mut good = true;
        let mut done = 0;
        while done < count {
            let Some((key, first)) = self.find(vaddr.plus(done)) else {
                return false;
            };
            let Some(piece) = self.pieces.get_mut(&key) else {
                return false;
            };
            // Ranks of a piece without gaps go on; others are looked up one by one.
            let run = match piece.kept {
                Kept::All(kept) => u64::from(kept - first).min(count - done),
                Kept::Bits(..) | Kept::List(_) => 1,
            };
            let before = piece.live_count();
            for rank in (first..).zip(0..run).map(|(rank, _)| rank) {
                good &= piece.live.set(rank, live);
            }
            each(
                key,
                vaddr.plus(done),
                u32::try_from(run).unwrap_or(u32::MAX),
            );
            let (after, number) = (piece.live_count(), piece.segment as usize);
            let segment = &mut self.segments[number];
            segment.live_count = segment.live_count + after - before;
            if after == 0 && segment.kind == SegmentKind::Survivors {
                self.emptied.push(key);
            }
            self.live = self.live + u64::from(after) - u64::from(before);
            done += run;
        }
        good
    }

    pub fn remove(&mut self, key: VAddr) -> Option<Piece> {
        let piece = self.pieces.remove(&key)?;
        self.segments[piece.segment as usize].live_count -= piece.live_count();
        self.live -= u64::from(piece.live_count());
        Some(piece)
    }

    pub fn insert(&mut self, key: VAddr, piece: Piece) {
        self.segments[piece.segment as usize].live_count += piece.live_count();
        self.live += u64::from(piece.live_count());
        self.pieces.insert(key, piece);
    }

    /// Begins a segment's next use. Gives the key of the piece that was there, if any.
    pub fn begin(
        &mut self,
        number: u32,
        slots: u32,
        kind: SegmentKind,
        generation: u64,
    ) -> Option<VAddr> {
        let old = VAddr::new(self.segments[number as usize].generation, 0);
        // The piece of that address may have been moved elsewhere and live on.
        let here = self.pieces.get(&old);
        let gone = here.is_some_and(|piece| piece.segment == number);
        if gone {
            self.remove(old);
        }
        self.segments[number as usize] = Segment {
            kind,
            generation,
            ..Segment::default()
        };
        if kind != SegmentKind::Survivors {
            let whole = Piece::new(Kept::All(slots), number, 0);
            self.insert(VAddr::new(generation, 0), whole);
        }
        gone.then_some(old)
    }
}
