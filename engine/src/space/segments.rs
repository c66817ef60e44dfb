//! The segment table: use and generation of every segment, and which slots are live.
//!
//! A slot is live from the moment it is appended. It dies once: by an applied overwrite, by
//! conflict truncation, or with its volume. A segment without live slots becomes free when a
//! checkpoint that knows so is durable, never earlier: until then recovery may need it.
//!
//! Slots are named by virtual addresses. Where they are is said by [`Piece`]s, ordered by the
//! address of their first slot; those of a virtual segment never overlap.

use super::piece::{Kept, Piece};
use crate::format::checkpoint::{PieceEntry, SegmentEntry, SegmentKind};
use crate::format::vaddr::VAddr;
use std::collections::{BTreeMap, BTreeSet};

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
    live_count: u32,
}

impl Segment {
    /// Number of live slots in it.
    pub fn live_count(&self) -> u32 {
        self.live_count
    }
}

/// What a checkpoint says of the space: frozen when it begins.
#[derive(Clone, Debug, Default)]
struct Table {
    segments: Vec<Segment>,
    pieces: BTreeMap<VAddr, Piece>,
    live: u64,
}

impl Table {
    /// The piece that holds a slot, by its key, and the slot's rank in it.
    fn find(&self, vaddr: VAddr) -> Option<(VAddr, u32)> {
        let (key, piece) = self.pieces.range(..=vaddr).next_back()?;
        if key.vseg() != vaddr.vseg() {
            return None;
        }
        let rank = piece.kept.rank(vaddr.slot() - key.slot())?;
        Some((*key, rank))
    }

    /// Makes slots live or dead; false when one was so already or is nowhere.
    fn change(&mut self, vaddr: VAddr, count: u64, live: bool) -> bool {
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
                good &= piece.set(rank, live);
            }
            let (after, number) = (piece.live_count(), piece.segment as usize);
            let segment = &mut self.segments[number];
            segment.live_count = segment.live_count + after - before;
            self.live = self.live + u64::from(after) - u64::from(before);
            done += run;
        }
        good
    }

    fn remove(&mut self, key: VAddr) -> Option<Piece> {
        let piece = self.pieces.remove(&key)?;
        self.segments[piece.segment as usize].live_count -= piece.live_count();
        self.live -= u64::from(piece.live_count());
        Some(piece)
    }

    fn insert(&mut self, key: VAddr, piece: Piece) {
        self.segments[piece.segment as usize].live_count += piece.live_count();
        self.live += u64::from(piece.live_count());
        self.pieces.insert(key, piece);
    }

    /// Begins a segment's next use.
    fn begin(&mut self, number: u32, slots: u32, kind: SegmentKind, generation: u64) {
        let old = VAddr::new(self.segments[number as usize].generation, 0);
        // The piece of that address may have been moved elsewhere and live on.
        if self
            .pieces
            .get(&old)
            .is_some_and(|piece| piece.segment == number)
        {
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
    }
}

/// All segments of a store.
#[derive(Debug)]
pub struct Segments {
    slots: u32,
    now: Table,
    /// The table as the checkpoint being written will have it.
    frozen: Option<Table>,
    /// The pieces in each segment, by key; only of segments of survivors.
    residents: BTreeMap<u32, BTreeSet<VAddr>>,
    free: BTreeSet<u32>,
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

/// Slots that garbage collection wrote to a new place, all from one piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The piece they come from.
    pub from: VAddr,
    /// The virtual slots, in order.
    pub slots: Vec<u32>,
    /// Where the first of them is now; the others follow it.
    pub segment: u32,
    /// Its slot there.
    pub base: u32,
}

impl Segments {
    /// The table of a new store: everything is free.
    pub fn blank(count: u32, slots: u32) -> Self {
        Self {
            slots,
            now: Table {
                segments: (0..count).map(|_| Segment::default()).collect(),
                ..Table::default()
            },
            frozen: None,
            residents: BTreeMap::new(),
            free: (0..count).collect(),
            draining: BTreeSet::new(),
            deaths: 0,
            next_generation: 1,
        }
    }

    /// The table a checkpoint describes. Segments without live slots are free; `keep` names those
    /// that are not, because the log or the checkpoint itself lies there. None when the table
    /// contradicts itself.
    pub fn from_entries(
        entries: &[SegmentEntry],
        pieces: Vec<PieceEntry>,
        slots: u32,
        next_generation: u64,
        keep: &BTreeSet<u32>,
    ) -> Option<Self> {
        let count = u32::try_from(entries.len()).ok()?;
        let mut table = Self::blank(count, slots);
        table.next_generation = next_generation;
        let mut end = 0;
        for p in pieces {
            let piece = Piece::with_live(p.kept, p.segment, p.base, p.live)?;
            let entry = entries.get(piece.segment as usize)?;
            let kept = piece.kept.count();
            let span = piece.kept.distances().last()? + 1;
            let whole = p.first == VAddr::new(entry.generation, 0)
                && piece.base == 0
                && piece.kept == Kept::All(slots);
            let fits = match entry.kind {
                SegmentKind::Free => false,
                SegmentKind::Log | SegmentKind::Map => whole,
                SegmentKind::Survivors => piece.live_count() > 0,
            };
            let inside = u64::from(piece.base) + u64::from(kept) <= u64::from(slots)
                && u64::from(p.first.slot()) + u64::from(span) <= u64::from(slots);
            if !fits || !inside || p.first.0 < end || p.first.vseg() == 0 {
                return None;
            }
            end = p.first.plus(u64::from(span)).0;
            if entry.kind == SegmentKind::Survivors {
                let residents = table.residents.entry(piece.segment).or_default();
                residents.insert(p.first);
            }
            table.now.insert(p.first, piece);
        }
        let mut generations = BTreeSet::new();
        for (number, e) in (0..count).zip(entries) {
            let segment = &mut table.now.segments[number as usize];
            if e.written > slots {
                return None;
            }
            let live_count = segment.live_count;
            *segment = Segment {
                kind: e.kind,
                generation: e.generation,
                written: e.written,
                sealed: true,
                readers: 0,
                live_count,
            };
            if live_count == 0 && !keep.contains(&number) {
                segment.kind = SegmentKind::Free;
                continue;
            }
            table.free.remove(&number);
            if live_count == 0 && e.kind == SegmentKind::Free {
                // Opened for the checkpoint's own pages after the table was written.
                segment.kind = SegmentKind::Map;
                continue;
            }
            if e.generation == 0 || !generations.insert(e.generation) {
                return None;
            }
            if e.kind != SegmentKind::Survivors {
                let key = VAddr::new(e.generation, 0);
                if !table.now.pieces.contains_key(&key) {
                    table
                        .now
                        .insert(key, Piece::new(Kept::All(slots), number, 0));
                }
            }
        }
        Some(table)
    }

    /// Takes a segment that recovery found in the log's chain out of the free ones.
    pub fn adopt(&mut self, number: u32, generation: u64) {
        self.free.remove(&number);
        let slots = self.slots;
        let Some(segment) = self.now.segments.get_mut(number as usize) else {
            return;
        };
        if segment.generation != generation || segment.kind == SegmentKind::Free {
            self.now.begin(number, slots, SegmentKind::Log, generation);
        }
        let segment = &mut self.now.segments[number as usize];
        segment.kind = SegmentKind::Log;
        segment.sealed = true;
    }

    /// Opens the lowest free segment for `kind`.
    pub fn open(&mut self, kind: SegmentKind) -> Option<(u32, u64)> {
        let number = self.free.pop_first()?;
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
            }
        }
        self.now.begin(number, self.slots, kind, generation);
        if kind == SegmentKind::Map {
            if let Some(frozen) = &mut self.frozen {
                frozen.begin(number, self.slots, kind, generation);
            }
        }
        Some((number, generation))
    }

    /// Appending to a map segment goes on where the checkpoint ended: were each opening to begin a
    /// new one, openings alone would fill a store whose old ones keep a few live nodes. None when
    /// the segment was opened after the checkpoint's table was written; then it holds nothing else.
    pub fn resume_map(&mut self, number: u32, slot: u32) -> Option<u64> {
        let segment = self.now.segments.get_mut(number as usize)?;
        if segment.kind != SegmentKind::Map || segment.written > slot || slot >= self.slots {
            return None;
        }
        let generation = segment.generation;
        let whole = self.now.pieces.get(&VAddr::new(generation, 0));
        if whole.is_none_or(|piece| piece.segment != number) {
            return None;
        }
        segment.sealed = false;
        segment.written = slot;
        Some(generation)
    }

    /// Nothing more is appended to the segment.
    pub fn seal(&mut self, number: u32) {
        self.now.segments[number as usize].sealed = true;
    }

    /// Notes how far a segment is written.
    pub fn set_written(&mut self, number: u32, written: u32) {
        let segment = &mut self.now.segments[number as usize];
        segment.written = segment.written.max(written);
        if segment.kind == SegmentKind::Map {
            if let Some(frozen) = &mut self.frozen {
                frozen.segments[number as usize].written = segment.written;
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

    /// Live slots of the whole store.
    pub fn live_slots(&self) -> u64 {
        self.now.live
    }

    fn change(
        &mut self,
        vaddr: VAddr,
        count: u64,
        live: bool,
        in_checkpoint: bool,
    ) -> Result<(), LivenessViolation> {
        let mut good = self.now.change(vaddr, count, live);
        if in_checkpoint {
            if let Some(frozen) = &mut self.frozen {
                good &= frozen.change(vaddr, count, live);
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
        self.change(vaddr, count, true, false)
    }

    /// Slots died.
    pub fn kill(&mut self, vaddr: VAddr, count: u64) -> Result<(), LivenessViolation> {
        self.deaths += count;
        self.change(vaddr, count, false, false)
    }

    /// Map pages were written by the checkpoint in progress.
    pub fn set_live_in_checkpoint(&mut self, vaddr: VAddr) -> Result<(), LivenessViolation> {
        self.change(vaddr, 1, true, true)
    }

    /// Slots died by what the checkpoint in progress merges: they are dead in it already.
    pub fn kill_in_checkpoint(
        &mut self,
        vaddr: VAddr,
        count: u64,
    ) -> Result<(), LivenessViolation> {
        self.change(vaddr, count, false, true)
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
            let (Some(piece), Some(first)) = (self.now.pieces.get(&m.from), m.slots.first()) else {
                continue; // all of it died since
            };
            let distances: Vec<u16> = m
                .slots
                .iter()
                .map(|slot| u16::try_from(slot - first).unwrap_or(u16::MAX))
                .collect();
            let mut to = Piece::new(Kept::from_sorted(&distances), m.segment, m.base);
            for (rank, slot) in (0..).zip(&m.slots) {
                let was = piece.kept.rank(slot - m.from.slot());
                if was.is_some_and(|rank| piece.is_live(rank)) {
                    to.set(rank, true);
                }
            }
            covered += to.live_count();
            if to.live_count() > 0 {
                fresh.push((VAddr::new(m.from.vseg(), *first), to));
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
        }
        for (key, piece) in fresh {
            self.residents.entry(piece.segment).or_default().insert(key);
            self.now.insert(key, piece);
        }
        Ok(())
    }

    /// A checkpoint begins: what it will say of the segments is what they are now, changed only by
    /// what it merges itself.
    pub fn freeze(&mut self) {
        self.frozen = Some(self.now.clone());
    }

    /// The tables for the checkpoint.
    pub fn frozen_entries(&self) -> (Vec<SegmentEntry>, Vec<PieceEntry>) {
        let table = self.frozen.as_ref().unwrap_or(&self.now);
        let segments = table.segments.iter().map(|s| SegmentEntry {
            kind: s.kind,
            generation: s.generation,
            written: s.written,
        });
        let pieces = table
            .pieces
            .iter()
            .filter(|(_, piece)| piece.live_count() > 0)
            .map(|(first, piece)| PieceEntry {
                first: *first,
                kept: piece.kept.clone(),
                segment: piece.segment,
                base: piece.base,
                live: piece.live_bits().to_vec(),
            });
        (segments.collect(), pieces.collect())
    }

    /// Segments that hold nothing live once the checkpoint in progress is durable, of those sealed
    /// when it began and, for the log, older than `log_generation`. `keep` are those into which
    /// garbage collection has copied what the table does not say yet.
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
            if segment.readers == 0 {
                self.free.insert(*number);
            } else {
                self.draining.insert(*number);
            }
        }
    }

    /// A read of the segment begins.
    pub fn reader_begins(&mut self, number: u32) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_lives_once_and_dies_once() {
        let mut s = Segments::blank(4, 64);
        let (number, generation) = s.open(SegmentKind::Log).expect("free");
        let at = VAddr::new(generation, 3);
        assert!(s.set_live(at, 2).is_ok() && s.is_live(at.plus(1)));
        assert_eq!(s.get(number).live_count(), 2);
        assert!(s.set_live(at, 1).is_err());
        assert!(s.kill(at, 2).is_ok() && s.kill(at, 1).is_err());
        assert!(s.kill(VAddr::new(99, 0), 1).is_err());
        assert!(s.set_live(VAddr::new(generation, 63), 2).is_err());
    }

    #[test]
    fn a_segment_is_free_only_after_release_and_the_last_reader() {
        let mut s = Segments::blank(2, 64);
        let (number, generation) = s.open(SegmentKind::Log).expect("free");
        s.seal(number);
        s.freeze();
        assert_eq!(s.emptied(generation + 1, &BTreeSet::new()), vec![number]);
        assert_eq!(s.emptied(generation, &BTreeSet::new()), Vec::<u32>::new());
        s.reader_begins(number);
        s.release(&[number]);
        assert_eq!(s.free_count(), 1);
        s.reader_ends(number);
        assert_eq!(s.free_count(), 2);
    }

    #[test]
    fn deaths_after_the_freeze_do_not_reach_the_snapshot() {
        let mut s = Segments::blank(2, 64);
        let (number, generation) = s.open(SegmentKind::Log).expect("free");
        s.set_live(VAddr::new(generation, 0), 2)
            .expect("dead before");
        s.freeze();
        s.kill(VAddr::new(generation, 0), 1).expect("live");
        s.kill_in_checkpoint(VAddr::new(generation, 1), 1)
            .expect("live in both");
        assert_eq!(s.frozen_entries().1[0].live, vec![1]);
        assert_eq!(s.get(number).live_count(), 0);
    }

    /// Segment 0 with live slots 3, 4 and 9, moved to segment 1 from slot 1 on.
    fn moved() -> (Segments, VAddr) {
        let mut s = Segments::blank(4, 64);
        let (from, generation) = s.open(SegmentKind::Log).expect("free");
        let at = VAddr::new(generation, 0);
        s.set_live(at.plus(3), 2).expect("dead before");
        s.set_live(at.plus(9), 1).expect("dead before");
        s.seal(from);
        let (to, _) = s.open(SegmentKind::Survivors).expect("free");
        let slots = vec![3, 4, 9];
        let moved = Moved {
            from: at,
            slots,
            segment: to,
            base: 1,
        };
        s.move_out(from, &[moved]).expect("all that lives is moved");
        (s, at)
    }

    #[test]
    fn what_is_moved_keeps_its_address() {
        let (mut s, at) = moved();
        assert_eq!(s.locate(at.plus(3)), Some((1, 1)));
        assert_eq!(s.locate_run(at.plus(3), 2), Some(vec![(1, 1, 2)]));
        assert_eq!(s.locate(at.plus(9)), Some((1, 3)));
        assert_eq!(s.locate(at.plus(5)), None);
        assert_eq!((s.get(0).live_count(), s.get(1).live_count()), (0, 3));
        assert!(s.kill(at.plus(4), 1).is_ok() && s.kill(at.plus(4), 1).is_err());
        let (_, pieces) = s.frozen_entries();
        assert_eq!((pieces.len(), pieces[0].live.as_slice()), (1, &[0b101][..]));
    }

    /// A merge kills nodes of the old tree that reads still go through: once, a piece vanished with
    /// its last live slot, and such reads failed.
    #[test]
    fn dead_slots_are_found_until_their_segment_is_used_again() {
        let (mut s, at) = moved();
        s.kill(at.plus(3), 2).expect("live");
        s.kill(at.plus(9), 1).expect("live");
        assert_eq!(s.locate(at.plus(9)), Some((1, 3)));
        s.seal(1);
        s.freeze();
        let free = s.emptied(u64::MAX, &BTreeSet::new());
        assert_eq!(free, vec![0, 1]);
        s.release(&free);
        for _ in 0..2 {
            s.open(SegmentKind::Log).expect("free");
        }
        assert_eq!(s.locate(at.plus(9)), None);
    }

    #[test]
    fn a_live_slot_that_was_not_moved_stops_the_move() {
        let mut s = Segments::blank(4, 64);
        let (from, generation) = s.open(SegmentKind::Log).expect("free");
        let at = VAddr::new(generation, 0);
        s.set_live(at, 2).expect("dead before");
        let moved = Moved {
            from: at,
            slots: vec![1],
            segment: 1,
            base: 1,
        };
        assert!(s.move_out(from, &[moved]).is_err());
        assert_eq!(s.locate(at), Some((0, 0)));
    }
}
