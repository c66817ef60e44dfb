//! Nearly empty virtual segments. A block that is never overwritten keeps its address while everything around
//! it dies, and each time it is moved it takes a piece of its own along: where a store keeps a few such blocks
//! of each segment that it ever wrote, pieces become as many as they are. So where there are too many, pages of
//! survivors are *re-homed*: each gets a second address, in the virtual segment of the physical one where it
//! lies, and the map is told. Nothing is copied; the pieces of the first addresses end with their last slots.
//!
//! 1. *Look*: the headers of a segment of survivors say whose its pages are. Those of pieces with few live slots
//!    are noted, a bounded number of them.
//! 2. *Name*: when a checkpoint begins, what is still there is live under both addresses.
//! 3. *Settle*: where the map of the volume's head has the first one, and no snapshot does, it gets the second
//!    one. Whichever it does not have dies. The block keeps its stamp: maps stay the same on all replicas.
//!
//! The same checkpoint does both 2 and 3, so that a crash leaves either all of it or nothing.

use super::victim::survivors_at;
use super::Victim;
use crate::engine::{Engine, Purpose};
use crate::event::Effect;
use crate::format::checkpoint::SegmentKind;
use crate::format::survivors::Owner;
use crate::format::vaddr::VAddr;
use crate::format::PAGE;
use crate::group::liveness;
use crate::map::layer::Rehomed;
use crate::recovery::Probe;
use bytes::Bytes;
use esker_base::num::{to_u32_saturating, to_u64};
use esker_base::{BlockRange, DiskError, DiskOp};
use std::collections::BTreeSet;

/// Most live slots of a piece that is given up.
const PIECE_LIVE_MAX: u32 = 16;
/// Live slots of the store for each piece that may be there.
const LIVE_PER_PIECE: u64 = 512;
/// Pieces that a segment has at least for its pages to be re-homed.
const SEGMENT_PIECES_MIN: usize = 64;
/// Pages re-homed by one checkpoint: each may make it write the nodes over a block.
const REHOMED_MAX: usize = 1024;

/// A page that may be re-homed.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    owner: Owner,
    vaddr: VAddr,
    segment: u32,
    slot: u32,
    generation: u64,
}

/// The segment whose headers are read.
#[derive(Clone, Copy, Debug)]
struct Place {
    segment: u32,
    generation: u64,
    /// Where the next header is.
    at: u32,
}

/// The state of it.
#[derive(Debug, Default)]
pub(super) struct Rehoming {
    place: Option<Place>,
    reading: bool,
    found: Vec<Candidate>,
    /// Segments that were looked at, by generation.
    tried: BTreeSet<u64>,
    /// When all of them had been: pieces, and versions that had been taken apart.
    nothing_at: Option<(usize, u64)>,
    /// Pages that got second addresses since the store was opened.
    pages: u64,
}

impl Engine {
    /// Pages of survivors that got new addresses since the store was opened.
    #[must_use]
    pub fn pages_rehomed(&self) -> u64 {
        self.collector.rehoming.pages
    }

    /// Goes on looking, if there are too many pieces.
    pub(super) fn rehome_step(&mut self, effects: &mut Vec<Effect>) {
        let rehoming = &self.collector.rehoming;
        let waits = rehoming.reading || rehoming.found.len() >= REHOMED_MAX;
        if waits || self.checkpoint.is_some() || self.stalled || self.room_is_short() {
            return;
        }
        if self.collector.rehoming.place.is_none() && !self.choose_place() {
            return;
        }
        let Some(place) = self.collector.rehoming.place else {
            return;
        };
        let ends = self.segs.get(place.segment).written;
        if !self.segs.is_still(place.segment, place.generation) || place.at >= ends {
            self.collector.rehoming.place = None;
            self.busy = true; // the next one
            return;
        }
        let offset = self.sb.offset_of(place.segment, place.at);
        let segment = place.segment;
        self.collector.rehoming.reading = true;
        self.segs.reader_begins(segment);
        let op = DiskOp::Read {
            offset,
            length: PAGE,
        };
        self.disk(op, Purpose::Rehome { segment }, effects);
    }

    /// The segment of survivors with the most pieces, if there are too many.
    fn choose_place(&mut self) -> bool {
        let (pieces, least) = (self.segs.piece_count(), self.config.pieces_least);
        let share = self.segs.live_slots() / LIVE_PER_PIECE;
        let most = to_u64(least).saturating_add(share);
        if least > 0 && to_u64(pieces) <= most {
            return false;
        }
        let removed = self.forest.removed();
        if let Some((then, removed_then)) = self.collector.rehoming.nothing_at {
            // Again when there is an eighth more of it, or less that snapshots hold.
            if pieces <= then + then / 8 && removed == removed_then {
                return false;
            }
            self.collector.rehoming.nothing_at = None;
            self.collector.rehoming.tried.clear();
        }
        let unpublished = self.collector.unpublished_segments();
        let worth = SEGMENT_PIECES_MIN.min(least.max(1));
        let tried = &self.collector.rehoming.tried;
        let fits = |number: &u32| {
            let s = self.segs.get(*number);
            s.kind == SegmentKind::Survivors
                && s.sealed
                && self.segs.is_settled(*number)
                && !unpublished.contains(number)
                && !tried.contains(&s.generation)
                && self.segs.residents_count(*number) >= worth
        };
        let all = (0u32..).take(self.segs.iter().count()).filter(fits);
        let best = all.max_by_key(|number| self.segs.residents_count(*number));
        let rehoming = &mut self.collector.rehoming;
        let Some(segment) = best else {
            rehoming.nothing_at = Some((pieces, removed));
            return false;
        };
        let generation = self.segs.get(segment).generation;
        rehoming.tried.insert(generation);
        rehoming.place = Some(Place {
            segment,
            generation,
            at: 0,
        });
        true
    }

    /// A header came.
    pub(crate) fn rehome_read(&mut self, result: Result<Bytes, DiskError>) {
        self.collector.rehoming.reading = false;
        let Some(place) = self.collector.rehoming.place.take() else {
            return;
        };
        let at = (place.segment, place.generation, place.at);
        let header = result.ok();
        let header = header.and_then(|page| survivors_at(&page, self.sb.store, at));
        let Some(header) = header else {
            return; // the segment ends here, or what follows cannot be known
        };
        let after = place.at + 1;
        for (slot, entry) in (after..).zip(&header.entries) {
            let candidate = Candidate {
                owner: entry.owner,
                vaddr: entry.vaddr,
                segment: place.segment,
                slot,
                generation: place.generation,
            };
            if self.is_to_be_rehomed(&candidate) {
                self.collector.rehoming.found.push(candidate);
            }
        }
        let at = after + to_u32_saturating(header.entries.len());
        self.collector.rehoming.place = Some(Place { at, ..place });
        self.busy = true;
    }

    /// It is where it was, and its piece has little else.
    fn is_to_be_rehomed(&self, c: &Candidate) -> bool {
        let Some((live, place)) = self.segs.neighbours(c.vaddr) else {
            return false;
        };
        c.owner.group.0 != 0
            && c.vaddr.vseg() != c.generation
            && live <= PIECE_LIVE_MAX
            && place == (c.segment, c.slot)
            && self.segs.is_live(c.vaddr)
            // Found twice, when its segment was looked at again meanwhile.
            && !self.segs.is_live(VAddr::new(c.generation, c.slot))
    }

    /// A checkpoint begins, and collected segments have moved: what was found is live under both addresses from
    /// now on, and the checkpoint settles which one stays.
    pub(crate) fn publish_rehomed(&mut self) {
        let mut found = std::mem::take(&mut self.collector.rehoming.found).into_iter();
        let mut nodes_left = self.spare_nodes() / 2;
        while let Some(c) = found.next() {
            let there = self.segs.is_still(c.segment, c.generation)
                && !self.collector.is_taken(c.segment, c.generation)
                && self.collector.victim.as_ref().map(Victim::segment) != Some(c.segment);
            if !there || !self.is_to_be_rehomed(&c) {
                continue;
            }
            let group = self.groups.get_mut(&c.owner.group);
            let group = group.filter(|g| !g.deleting && !g.ended && g.base.is_none());
            let Some(group) = group.filter(|g| !g.suspended) else {
                continue;
            };
            let nodes = group.nodes_over(BlockRange::new(c.owner.lba, 1));
            if nodes > nodes_left {
                // The next one goes on with these.
                self.collector.rehoming.found = std::iter::once(c).chain(found).collect();
                return;
            }
            nodes_left -= nodes;
            match self.segs.rehome(c.segment, c.slot) {
                Ok(new) => {
                    let (lba, old) = (c.owner.lba, c.vaddr);
                    group.rehome(Rehomed { lba, old, new });
                    self.probes.insert(Probe::PageRehomed);
                    self.collector.rehoming.pages += 1;
                }
                Err(violation) => {
                    self.fence_pending.get_or_insert(liveness(violation));
                    return;
                }
            }
        }
    }
}
