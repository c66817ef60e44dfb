//! The segment table: use and generation of every segment, and which slots are live.
//!
//! A slot is live from the moment it is appended. It dies once: by an applied overwrite, by
//! conflict truncation, or with its volume. A segment without live slots becomes free when a
//! checkpoint that knows so is durable, never earlier: until then recovery may need it.
//!
//! Slots are named by virtual addresses. Where they are is said by [`Piece`]s, ordered by the
//! address of their first slot; those of a virtual segment never overlap.

use super::pages::{SpaceTables, TableShape};
use super::piece::{Kept, Piece, GAPPED_SPAN_MAX};
pub use super::table::Segment;
use super::table::Table;
use crate::format::space::{PieceEntry, SegmentEntry, SegmentKind};
use crate::format::vaddr::VAddr;
use std::collections::{BTreeMap, BTreeSet};

/// All segments of a store.
#[derive(Debug)]
pub struct Segments {
    pub(super) slots: u32,
    pub(super) now: Table,
    /// The table as the checkpoint being written will have it.
    pub(super) frozen: Option<Table>,
    /// What is on the device of it.
    pub(super) tables: SpaceTables,
    /// The pieces in each segment, by key; only of segments of survivors.
    residents: BTreeMap<u32, BTreeSet<VAddr>>,
    free: BTreeSet<u32>,
    /// Free, and not to be opened now: zeros are on their way to it.
    held: Option<u32>,
    /// Emptied by a durable checkpoint, but still being read.
    draining: BTreeSet<u32>,
    /// Slots that died outside of checkpoints since the store was opened.
    pub deaths: u64,
    /// Next generation to give out.
    pub next_generation: u64,
}

/// A slot that was to die and is not live, or to live and is live: going on could lose data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LivenessViolation {
    /// The address.
    pub vaddr: VAddr,
    /// What was to be done.
    pub to_live: bool,
}

/// How slots come to live or die.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// Appended to the log.
    Appended,
    /// By an applied overwrite, a conflict, a discard.
    Died,
    /// Written by the checkpoint in progress.
    Written,
    /// Replaced by what it merges.
    Merged,
    /// Of a run of deaths that it drops.
    Dropped,
}

/// Slots that garbage collection wrote to a new place, all from one piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The piece they come from.
    pub from: VAddr,
    /// The virtual slots, in order; a dead one among them stands for a page that is none of the piece's.
    pub slots: Vec<u32>,
    /// Where the first of them is now; the others follow it.
    pub segment: u32,
    /// Its slot there.
    pub base: u32,
}

impl Segments {
    /// The table of a new store: everything is free.
    pub fn blank(count: u32, slots: u32, shape: TableShape) -> Self {
        Self {
            slots,
            tables: SpaceTables::new(shape, count),
            now: Table {
                segments: (0..count).map(|_| Segment::default()).collect(),
                ..Table::default()
            },
            frozen: None,
            residents: BTreeMap::new(),
            free: (0..count).collect(),
            held: None,
            draining: BTreeSet::new(),
            deaths: 0,
            next_generation: 1,
        }
    }

    /// The table a checkpoint describes. Segments without live slots are free; `keep` names those
    /// that are not, because the log or the checkpoint itself lies there, besides those that pages
    /// of the tables pin. None when the table contradicts itself.
    pub fn from_entries(
        entries: &[SegmentEntry],
        pieces: Vec<(VAddr, PieceEntry)>,
        tables: SpaceTables,
        slots: u32,
        next_generation: u64,
        keep: &BTreeSet<u32>,
    ) -> Option<Self> {
        let count = u32::try_from(entries.len()).ok()?;
        let mut table = Self {
            slots,
            now: Table {
                segments: vec![Segment::default(); entries.len()],
                ..Table::default()
            },
            frozen: None,
            tables,
            residents: BTreeMap::new(),
            free: (0..count).collect(),
            held: None,
            draining: BTreeSet::new(),
            deaths: 0,
            next_generation,
        };
        let mut end = 0;
        for (first, p) in pieces {
            let piece = Piece {
                kept: p.kept,
                segment: p.segment,
                base: p.base,
                live: p.live,
            };
            let (kept, span) = (piece.kept.count(), piece.kept.span());
            let inside = u64::from(piece.base) + u64::from(kept) <= u64::from(slots)
                && u64::from(first.slot()) + u64::from(span) <= u64::from(slots);
            if !inside || first.0 < end || first.vseg() == 0 {
                return None;
            }
            end = first.plus(u64::from(span)).0;
            if piece.live_count() == 0 {
                continue; // all of it died since its page was written
            }
            let entry = entries.get(piece.segment as usize)?;
            let whole = first == VAddr::new(entry.generation, 0)
                && piece.base == 0
                && piece.kept == Kept::All(slots);
            let fits = match entry.kind {
                SegmentKind::Free => false,
                SegmentKind::Log | SegmentKind::Map => whole,
                SegmentKind::Survivors => true,
            };
            if !fits {
                return None;
            }
            if entry.kind == SegmentKind::Survivors {
                let residents = table.residents.entry(piece.segment).or_default();
                residents.insert(first);
            }
            table.now.insert(first, piece);
        }
        table.take_in(entries, keep).then_some(table)
    }

    /// What is said of the segments, once the pieces are known; false when it contradicts itself.
    fn take_in(&mut self, entries: &[SegmentEntry], keep: &BTreeSet<u32>) -> bool {
        let slots = self.slots;
        let mut generations = BTreeSet::new();
        for (number, e) in (0..self.count()).zip(entries) {
            let segment = &mut self.now.segments[number as usize];
            if e.written > slots {
                return false;
            }
            let live_count = segment.live_count();
            *segment = Segment {
                kind: e.kind,
                generation: e.generation,
                written: e.written,
                sealed: true,
                readers: 0,
                live_count,
            };
            let kept = keep.contains(&number) || self.tables.pinned(number) > 0;
            if live_count == 0 && !kept {
                segment.kind = SegmentKind::Free;
                continue;
            }
            self.free.remove(&number);
            if live_count == 0 && e.kind == SegmentKind::Free {
                // Opened for the checkpoint's own pages after the table was made.
                segment.kind = SegmentKind::Map;
                continue;
            }
            if e.generation == 0 || !generations.insert(e.generation) {
                return false;
            }
            if e.kind != SegmentKind::Survivors {
                let key = VAddr::new(e.generation, 0);
                if !self.now.pieces.contains_key(&key) {
                    let whole = Piece::new(Kept::All(slots), number, 0);
                    self.now.insert(key, whole);
                }
            }
        }
        true
    }

    /// Takes a segment that recovery found in the log's chain out of the free ones.
    pub fn adopt(&mut self, number: u32, generation: u64) {
        self.free.remove(&number);
        let slots = self.slots;
        let Some(segment) = self.now.segments.get_mut(number as usize) else {
            return;
        };
        if segment.generation != generation || segment.kind == SegmentKind::Free {
            let gone = self.now.begin(number, slots, SegmentKind::Log, generation);
            gone.into_iter()
                .for_each(|key| self.tables.piece_changed(key));
        }
        self.tables.segment_changed(number);
        let segment = &mut self.now.segments[number as usize];
        segment.kind = SegmentKind::Log;
        segment.sealed = true;
    }

    /// The free segments in the order in which they are opened.
    pub fn next_free(&self) -> impl Iterator<Item = u32> + '_ {
        self.free.iter().copied()
    }

    /// Keeps a free segment from being opened, or none.
    pub fn hold(&mut self, number: Option<u32>) {
        self.held = number;
    }

    /// Opens the lowest free segment for `kind`.
    pub fn open(&mut self, kind: SegmentKind) -> Option<(u32, u64)> {
        let number = self.next_free().find(|n| self.held != Some(*n))?;
        self.free.remove(&number);
        let generation = self.next_generation;
        self.next_generation += 1;
        // Dead slots can be found until then: a merge kills nodes that reads still go through, and
        // the retained Raft log names payload that was overwritten.
        for key in self.residents.remove(&number).unwrap_or_default() {
            if self
                .now
                .pieces
                .get(&key)
                .is_some_and(|p| p.segment == number)
            {
                self.now.remove(key);
                self.tables.piece_changed(key);
            }
        }
        let gone = self.now.begin(number, self.slots, kind, generation);
        gone.into_iter()
            .for_each(|key| self.tables.piece_changed(key));
        self.tables.segment_changed(number);
        if kind == SegmentKind::Map {
            if let Some(frozen) = &mut self.frozen {
                let gone = frozen.begin(number, self.slots, kind, generation);
                gone.into_iter()
                    .for_each(|key| self.tables.piece_changed_in_checkpoint(key));
                self.tables.segment_changed_in_checkpoint(number);
            }
        }
        Some((number, generation))
    }

    /// Appending to a map segment goes on where the checkpoint ended: were each opening to begin a
    /// new one, openings alone would fill a store whose old ones keep a few live nodes. One that was
    /// opened after the checkpoint's table was written goes on as a new one: what the checkpoint wrote
    /// to it is named by segment and slot.
    pub fn resume_map(&mut self, number: u32, slot: u32) -> Option<u64> {
        let segment = self.now.segments.get_mut(number as usize)?;
        if segment.kind != SegmentKind::Map || slot >= self.slots {
            return None;
        }
        let whole = self.now.pieces.get(&VAddr::new(segment.generation, 0));
        if whole.is_none_or(|piece| piece.segment != number) {
            if segment.live_count > 0 {
                return None;
            }
            return Some(self.resume_unlisted(number, slot));
        }
        if segment.written > slot {
            return None;
        }
        segment.sealed = false;
        segment.written = slot;
        let generation = segment.generation;
        self.tables.segment_changed(number);
        Some(generation)
    }

    /// As [`Self::resume_map`], of one that the table calls free.
    fn resume_unlisted(&mut self, number: u32, slot: u32) -> u64 {
        let generation = self.next_generation;
        self.next_generation += 1;
        let gone = self
            .now
            .begin(number, self.slots, SegmentKind::Map, generation);
        gone.into_iter()
            .for_each(|key| self.tables.piece_changed(key));
        self.now.segments[number as usize].written = slot;
        self.tables.segment_changed(number);
        generation
    }

    /// Nothing more is appended to the segment.
    pub fn seal(&mut self, number: u32) {
        self.now.segments[number as usize].sealed = true;
    }

    /// Notes how far a segment is written.
    pub fn set_written(&mut self, number: u32, written: u32) {
        let segment = &mut self.now.segments[number as usize];
        segment.written = segment.written.max(written);
        self.tables.segment_changed(number);
        if segment.kind == SegmentKind::Map {
            if let Some(frozen) = &mut self.frozen {
                frozen.segments[number as usize].written = segment.written;
                self.tables.segment_changed_in_checkpoint(number);
            }
        }
    }

    /// Where a slot is: segment and slot there.
    pub fn locate(&self, vaddr: VAddr) -> Option<(u32, u32)> {
        let (key, rank) = self.now.find(vaddr)?;
        let piece = self.now.pieces.get(&key)?;
        Some((piece.segment, piece.base + rank))
    }

    /// Where consecutive virtual slots are, as runs on the device: segment, first slot, number.
    pub fn locate_run(&self, vaddr: VAddr, count: u64) -> Option<Vec<(u32, u32, u32)>> {
        let mut runs: Vec<(u32, u32, u32)> = Vec::new();
        let mut done = 0;
        while done < count {
            let (key, rank) = self.now.find(vaddr.plus(done))?;
            let piece = self.now.pieces.get(&key)?;
            let slot = piece.base + rank;
            let more = match piece.kept {
                Kept::All(kept) => u64::from(kept - rank).min(count - done),
                Kept::Bits(..) | Kept::List(_) => 1,
            };
            let more32 = u32::try_from(more).unwrap_or(u32::MAX);
            match runs.last_mut() {
                Some((segment, first, run))
                    if *segment == piece.segment && *first + *run == slot =>
                {
                    *run += more32;
                }
                _ => runs.push((piece.segment, slot, more32)),
            }
            done += more;
        }
        Some(runs)
    }

    /// Whether a slot is live.
    pub fn is_live(&self, vaddr: VAddr) -> bool {
        self.now.find(vaddr).is_some_and(|(key, rank)| {
            let piece = self.now.pieces.get(&key);
            piece.is_some_and(|piece| piece.is_live(rank))
        })
    }

    /// Every live slot, for the offline check.
    pub fn all_live(&self) -> Vec<VAddr> {
        let mut out = Vec::new();
        for (key, piece) in &self.now.pieces {
            for (rank, distance) in (0..).zip(piece.kept.distances()) {
                if piece.is_live(rank) {
                    out.push(key.plus(u64::from(distance)));
                }
            }
        }
        out
    }

    /// One segment.
    pub fn get(&self, number: u32) -> &Segment {
        &self.now.segments[number as usize]
    }

    /// Number of segments.
    pub fn count(&self) -> u32 {
        u32::try_from(self.now.segments.len()).unwrap_or(u32::MAX)
    }

    /// Number of free segments.
    pub fn free_count(&self) -> usize {
        self.free.len()
    }

    /// Number of pieces.
    pub fn piece_count(&self) -> usize {
        self.now.pieces.len()
    }

    /// Live slots of the whole store.
    pub fn live_slots(&self) -> u64 {
        self.now.live
    }

    fn change(
        &mut self,
        vaddr: VAddr,
        count: u64,
        change: Change,
    ) -> Result<(), LivenessViolation> {
        let Self {
            now,
            frozen,
            tables,
            ..
        } = self;
        let live = change == Change::Appended || change == Change::Written;
        let mut note = |key, first, count| match change {
            Change::Appended => tables.piece_changed(key),
            Change::Died => tables.died(key, first, count),
            Change::Written | Change::Dropped => tables.piece_changed_in_checkpoint(key),
            Change::Merged => tables.died_in_checkpoint(key, first, count),
        };
        let mut good = now.change(vaddr, count, live, &mut note);
        if !matches!(change, Change::Appended | Change::Died) {
            if let Some(frozen) = frozen {
                good &= frozen.change(vaddr, count, live, &mut |_, _, _| {});
            }
        }
        if good {
            return Ok(());
        }
        Err(LivenessViolation {
            vaddr,
            to_live: live,
        })
    }

    /// Slots were appended.
    pub fn set_live(&mut self, vaddr: VAddr, count: u64) -> Result<(), LivenessViolation> {
        self.change(vaddr, count, Change::Appended)
    }

    /// Slots died.
    pub fn kill(&mut self, vaddr: VAddr, count: u64) -> Result<(), LivenessViolation> {
        self.deaths += count;
        self.change(vaddr, count, Change::Died)
    }

    /// A map node or a page was written by the checkpoint in progress.
    pub fn set_live_in_checkpoint(&mut self, vaddr: VAddr) -> Result<(), LivenessViolation> {
        self.change(vaddr, 1, Change::Written)
    }

    /// Slots died by what the checkpoint in progress merges: they are dead in it already.
    pub fn kill_in_checkpoint(
        &mut self,
        vaddr: VAddr,
        count: u64,
    ) -> Result<(), LivenessViolation> {
        self.change(vaddr, count, Change::Merged)
    }

    /// A page that the checkpoint in progress no longer needs is dead in it, and in no run of deaths.
    pub fn drop_in_checkpoint(&mut self, vaddr: VAddr) -> Result<(), LivenessViolation> {
        self.change(vaddr, 1, Change::Dropped)
    }

    /// The pieces that lie in a segment.
    pub fn pieces_in(&self, number: u32) -> Vec<VAddr> {
        let segment = self.get(number);
        let here = |key: &VAddr| {
            let piece = self.now.pieces.get(key);
            piece.is_some_and(|piece| piece.segment == number)
        };
        let keys = match segment.kind {
            SegmentKind::Free => Vec::new(),
            SegmentKind::Log | SegmentKind::Map => vec![VAddr::new(segment.generation, 0)],
            SegmentKind::Survivors => {
                let all = self.residents.get(&number);
                all.map_or(Vec::new(), |all| all.iter().copied().collect())
            }
        };
        keys.into_iter().filter(here).collect()
    }

    /// Whether everything written to a sealed segment was so when the checkpoint in progress began:
    /// writes of map nodes go on until it ends.
    pub fn is_settled(&self, number: u32) -> bool {
        self.frozen.as_ref().is_none_or(|frozen| {
            let (then, now) = (&frozen.segments[number as usize], self.get(number));
            then.sealed && then.generation == now.generation
        })
    }

    /// Whether a segment is in the use that this generation names.
    pub fn is_still(&self, number: u32, generation: u64) -> bool {
        let segment = self.get(number);
        segment.generation == generation && segment.kind != SegmentKind::Free
    }

    /// A piece, by the address of its first slot.
    pub fn piece(&self, key: VAddr) -> Option<&Piece> {
        self.now.pieces.get(&key)
    }

    /// Everything that was live in a segment has been written elsewhere: the pieces there are
    /// replaced by what `moved` says. Slots that died since they were copied stay dead.
    ///
    /// # Errors
    /// When a live slot of the segment was not moved; nothing is changed then.
    pub fn move_out(&mut self, number: u32, moved: &[Moved]) -> Result<(), LivenessViolation> {
        let old = self.pieces_in(number);
        let mut fresh = Vec::new();
        let mut covered = 0;
        for m in moved {
            let Some(piece) = self.now.pieces.get(&m.from) else {
                continue; // all of it died since
            };
            let gaps = m.slots.windows(2).any(|pair| pair[1] != pair[0] + 1);
            let mut rest = m.slots.as_slice();
            let mut base = m.base;
            while let Some(first) = rest.first() {
                let near = |slot: &u32| !gaps || slot - first < GAPPED_SPAN_MAX;
                let (now, later) = rest.split_at(rest.partition_point(near));
                let to = moved_piece(m, now, base, piece);
                covered += to.live_count();
                if to.live_count() > 0 {
                    fresh.push((VAddr::new(m.from.vseg(), *first), to));
                }
                base += u32::try_from(now.len()).unwrap_or(u32::MAX);
                rest = later;
            }
        }
        if covered != self.get(number).live_count() {
            let vaddr = old.first().copied().unwrap_or_default();
            return Err(LivenessViolation {
                vaddr,
                to_live: true,
            });
        }
        for key in old {
            self.now.remove(key);
            self.tables.piece_changed(key);
        }
        for (key, piece) in fresh {
            self.tables.piece_changed(key);
            self.residents.entry(piece.segment).or_default().insert(key);
            self.now.insert(key, piece);
        }
        Ok(())
    }

    /// A checkpoint begins: nothing looks for dead slots any more, and pieces of segments of survivors that have
    /// nothing else end. (Others end when their segment is used again.)
    pub fn drop_emptied(&mut self) {
        for key in std::mem::take(&mut self.now.emptied) {
            let piece = self.now.pieces.get(&key);
            let Some(piece) = piece.filter(|piece| piece.live_count() == 0) else {
                continue;
            };
            let number = piece.segment;
            if self.get(number).kind != SegmentKind::Survivors {
                continue;
            }
            self.now.remove(key);
            self.tables.piece_changed(key);
            if let Some(here) = self.residents.get_mut(&number) {
                here.remove(&key);
            }
        }
    }

    /// A page of a survivors' segment gets a second address, as a slot of the segment's own virtual one, and is
    /// live under both. Gives that address.
    ///
    /// # Errors
    /// When it has that address already.
    pub fn rehome(&mut self, number: u32, slot: u32) -> Result<VAddr, LivenessViolation> {
        let key = VAddr::new(self.get(number).generation, 0);
        if !self.now.pieces.contains_key(&key) {
            let whole = Piece::new(Kept::All(self.slots), number, 0);
            self.now.insert(key, whole);
            self.residents.entry(number).or_default().insert(key);
            self.tables.piece_changed(key);
        }
        let vaddr = key.plus(u64::from(slot));
        self.set_live(vaddr, 1)?;
        Ok(vaddr)
    }

    /// Number of pieces that lie in a segment of survivors; those that are gone may count until it is used again.
    pub fn residents_count(&self, number: u32) -> usize {
        self.residents.get(&number).map_or(0, BTreeSet::len)
    }

    /// Live slots of the piece that a slot is in, and the slot's place; none when it is nowhere.
    pub fn neighbours(&self, vaddr: VAddr) -> Option<(u32, (u32, u32))> {
        let (key, rank) = self.now.find(vaddr)?;
        let piece = self.now.pieces.get(&key)?;
        Some((piece.live_count(), (piece.segment, piece.base + rank)))
    }

    /// A checkpoint begins: what it will say of the segments is what they are now, changed only by
    /// what it merges itself.
    pub fn freeze(&mut self) {
        self.frozen = Some(self.now.clone());
        self.tables.freeze();
    }

    /// Segments that hold nothing live once the checkpoint in progress is durable, of those sealed
    /// when it began and, for the log, older than `log_generation`. `keep` are those into which
    /// garbage collection has copied what the table does not say yet. To be asked once the tables'
    /// pages have their places: none of them must be there.
    pub fn emptied(&self, log_generation: u64, keep: &BTreeSet<u32>) -> Vec<u32> {
        let Some(frozen) = &self.frozen else {
            return Vec::new();
        };
        (0..self.count())
            .filter(|number| {
                let then = &frozen.segments[*number as usize];
                let now = &self.now.segments[*number as usize];
                let old = match then.kind {
                    SegmentKind::Free => false,
                    SegmentKind::Log => then.generation < log_generation,
                    SegmentKind::Map | SegmentKind::Survivors => true,
                };
                old && then.sealed
                    && then.live_count == 0
                    && now.generation == then.generation
                    && now.live_count == 0
                    && now.kind != SegmentKind::Free
                    && self.tables.pinned(*number) == 0
                    && !keep.contains(number)
            })
            .collect()
    }

    /// The checkpoint is durable: these segments are free.
    pub fn release(&mut self, numbers: &[u32]) {
        self.frozen = None;
        for number in numbers {
            let segment = &mut self.now.segments[*number as usize];
            segment.kind = SegmentKind::Free;
            self.tables.segment_changed(*number);
            if segment.readers == 0 {
                self.free.insert(*number);
            } else {
                self.draining.insert(*number);
            }
        }
    }

    /// Nothing in the segment is of use to anybody, and it may be opened anew.
    pub fn is_free(&self, number: u32) -> bool {
        self.get(number).kind == SegmentKind::Free
    }

    /// A read of the segment begins. It must not be free: who opens it anew counts its readers from zero.
    pub fn reader_begins(&mut self, number: u32) {
        debug_assert!(!self.is_free(number), "segment {number} is read and free");
        self.now.segments[number as usize].readers += 1;
    }

    /// A read of the segment ended.
    pub fn reader_ends(&mut self, number: u32) {
        let segment = &mut self.now.segments[number as usize];
        segment.readers -= 1;
        if segment.readers == 0 && self.draining.remove(&number) {
            self.free.insert(number);
        }
    }

    /// All segments, by number.
    pub fn iter(&self) -> impl Iterator<Item = &Segment> {
        self.now.segments.iter()
    }
}

/// What becomes of a part of what was moved: what lived then and died since stays dead.
fn moved_piece(m: &Moved, slots: &[u32], base: u32, from: &Piece) -> Piece {
    let first = slots.first().copied().unwrap_or(0);
    let distances: Vec<u16> = slots
        .iter()
        .map(|slot| u16::try_from(slot - first).unwrap_or(u16::MAX))
        .collect();
    let mut to = Piece::new(Kept::from_sorted(&distances), m.segment, base);
    for (rank, slot) in (0..).zip(slots) {
        let was = from.kept.rank(slot - m.from.slot());
        if was.is_some_and(|rank| from.is_live(rank)) {
            to.live.set(rank, true);
        }
    }
    to
}

#[cfg(test)]
#[path = "segments_tests.rs"]
mod tests;
