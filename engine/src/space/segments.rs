//! The segment table: use, generation and live slots of every segment.
//!
//! A slot is live from the moment it is appended. It dies once: by an applied overwrite, by
//! conflict truncation, or with its volume. A segment without live slots becomes free when a
//! checkpoint that knows so is durable, never earlier: until then recovery may need it.

use crate::format::checkpoint::{SegmentEntry, SegmentKind};
use crate::format::vaddr::VAddr;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

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
    live: Arc<Vec<u64>>,
    live_count: u32,
}

impl Segment {
    fn empty(slots: u32) -> Self {
        let words = (slots as usize).div_ceil(64);
        Self {
            live: Arc::new(vec![0; words]),
            ..Self::default()
        }
    }
    /// Number of live slots.
    pub fn live_count(&self) -> u32 {
        self.live_count
    }
    /// Whether a slot is live.
    pub fn is_live(&self, slot: u32) -> bool {
        self.live
            .get(slot as usize / 64)
            .is_some_and(|word| word >> (slot % 64) & 1 == 1)
    }
    /// Makes a slot live or dead; false when it was so already.
    fn set(&mut self, slot: u32, live: bool) -> bool {
        let words = Arc::make_mut(&mut self.live);
        let Some(word) = words.get_mut(slot as usize / 64) else {
            return false;
        };
        let bit = 1u64 << (slot % 64);
        if (*word & bit != 0) == live {
            return false;
        }
        *word ^= bit;
        if live {
            self.live_count += 1;
        } else {
            self.live_count -= 1;
        }
        true
    }
    fn entry(&self) -> SegmentEntry {
        SegmentEntry {
            kind: self.kind,
            generation: self.generation,
            written: self.written,
            live: self.live.as_ref().clone(),
        }
    }
}

/// All segments of a store.
#[derive(Debug)]
pub struct Segments {
    slots: u32,
    all: Vec<Segment>,
    by_generation: BTreeMap<u64, u32>,
    free: BTreeSet<u32>,
    /// Emptied by a durable checkpoint, but still being read.
    draining: BTreeSet<u32>,
    /// Slots that died outside of checkpoints since the store was opened.
    pub deaths: u64,
    /// Next generation to give out.
    pub next_generation: u64,
    /// The table as the checkpoint being written will have it.
    snapshot: Option<Vec<Segment>>,
}

/// A slot that was to die and is not live, or to live and is live: going on could lose data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LivenessViolation {
    /// The address.
    pub vaddr: VAddr,
    /// What was to be done.
    pub to_live: bool,
}

impl Segments {
    /// The table of a new store: everything is free.
    pub fn blank(count: u32, slots: u32) -> Self {
        Self {
            slots,
            all: (0..count).map(|_| Segment::empty(slots)).collect(),
            by_generation: BTreeMap::new(),
            free: (0..count).collect(),
            draining: BTreeSet::new(),
            deaths: 0,
            next_generation: 1,
            snapshot: None,
        }
    }

    /// The table a checkpoint describes. Segments without live slots are free; `keep` names those
    /// that are not, because the log or the checkpoint itself lies there.
    pub fn from_entries(
        entries: &[SegmentEntry],
        slots: u32,
        next_generation: u64,
        keep: &BTreeSet<u32>,
    ) -> Option<Self> {
        let count = u32::try_from(entries.len()).ok()?;
        let mut table = Self::blank(count, slots);
        table.next_generation = next_generation;
        for (number, e) in (0..count).zip(entries) {
            let live_count: u32 = e.live.iter().map(|word| word.count_ones()).sum();
            let words = (slots as usize).div_ceil(64);
            if e.live.len() != words || e.written > slots {
                return None;
            }
            let segment = &mut table.all[number as usize];
            *segment = Segment {
                kind: e.kind,
                generation: e.generation,
                written: e.written,
                sealed: true,
                readers: 0,
                live: Arc::new(e.live.clone()),
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
            if e.generation == 0 || table.by_generation.insert(e.generation, number).is_some() {
                return None;
            }
        }
        Some(table)
    }

    /// Takes a segment that recovery found in the log's chain out of the free ones.
    pub fn adopt(&mut self, number: u32, generation: u64) {
        self.free.remove(&number);
        let Some(segment) = self.all.get_mut(number as usize) else {
            return;
        };
        if segment.generation != generation || segment.kind == SegmentKind::Free {
            self.by_generation.remove(&segment.generation);
            *segment = Segment::empty(self.slots);
        }
        segment.kind = SegmentKind::Log;
        segment.generation = generation;
        segment.sealed = true;
        self.by_generation.insert(generation, number);
    }

    /// Opens the lowest free segment for `kind`.
    pub fn open(&mut self, kind: SegmentKind) -> Option<(u32, u64)> {
        let number = self.free.pop_first()?;
        let generation = self.next_generation;
        self.next_generation += 1;
        let segment = &mut self.all[number as usize];
        self.by_generation.remove(&segment.generation);
        *segment = Segment::empty(self.slots);
        segment.kind = kind;
        segment.generation = generation;
        self.by_generation.insert(generation, number);
        if kind == SegmentKind::Map {
            if let Some(snapshot) = &mut self.snapshot {
                snapshot[number as usize] = segment.clone();
            }
        }
        Some((number, generation))
    }

    /// Appending to a map segment goes on where the checkpoint ended: were each opening to begin a
    /// new one, openings alone would fill a store whose old ones keep a few live nodes. None when
    /// the segment was opened after the checkpoint's table was written; then it holds nothing else.
    pub fn resume_map(&mut self, number: u32, slot: u32) -> Option<u64> {
        let segment = self.all.get_mut(number as usize)?;
        if segment.kind != SegmentKind::Map || segment.written > slot || slot >= self.slots {
            return None;
        }
        if self.by_generation.get(&segment.generation) != Some(&number) {
            return None;
        }
        segment.sealed = false;
        segment.written = slot;
        Some(segment.generation)
    }

    /// Nothing more is appended to the segment.
    pub fn seal(&mut self, number: u32) {
        self.all[number as usize].sealed = true;
    }

    /// Notes how far a segment is written.
    pub fn set_written(&mut self, number: u32, written: u32) {
        let segment = &mut self.all[number as usize];
        segment.written = segment.written.max(written);
        if segment.kind == SegmentKind::Map {
            if let Some(snapshot) = &mut self.snapshot {
                snapshot[number as usize].written = segment.written;
            }
        }
    }

    /// The segment a virtual segment lies in.
    pub fn segment_of(&self, vaddr: VAddr) -> Option<u32> {
        self.by_generation.get(&vaddr.vseg()).copied()
    }

    /// One segment.
    pub fn get(&self, number: u32) -> &Segment {
        &self.all[number as usize]
    }

    /// Number of segments.
    pub fn count(&self) -> u32 {
        u32::try_from(self.all.len()).unwrap_or(u32::MAX)
    }

    /// Number of free segments.
    pub fn free_count(&self) -> usize {
        self.free.len()
    }

    /// Live slots of the whole store.
    pub fn live_slots(&self) -> u64 {
        self.all.iter().map(|s| u64::from(s.live_count)).sum()
    }

    fn change(
        &mut self,
        vaddr: VAddr,
        count: u64,
        live: bool,
        in_snapshot: bool,
    ) -> Result<(), LivenessViolation> {
        let violation = LivenessViolation {
            vaddr,
            to_live: live,
        };
        let Some(number) = self.segment_of(vaddr) else {
            return Err(violation);
        };
        let mut good = u64::from(vaddr.slot()) + count <= u64::from(self.slots);
        for slot in (vaddr.slot()..self.slots)
            .zip(0..count)
            .map(|(slot, _)| slot)
        {
            good &= self.all[number as usize].set(slot, live);
            if in_snapshot {
                if let Some(snapshot) = &mut self.snapshot {
                    let segment = &mut snapshot[number as usize];
                    good &= segment.generation == vaddr.vseg() && segment.set(slot, live);
                }
            }
        }
        if good {
            Ok(())
        } else {
            Err(violation)
        }
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

    /// A checkpoint begins: what it will say of the segments is what they are now, changed only by
    /// what it merges itself.
    pub fn freeze(&mut self) {
        self.snapshot = Some(self.all.clone());
    }

    /// The table for the checkpoint.
    pub fn snapshot_entries(&self) -> Vec<SegmentEntry> {
        self.snapshot
            .as_ref()
            .unwrap_or(&self.all)
            .iter()
            .map(Segment::entry)
            .collect()
    }

    /// Segments that hold nothing live once the checkpoint in progress is durable, of those sealed
    /// when it began and, for the log, older than `log_generation`. `keep` holds its own pages.
    pub fn emptied(&self, log_generation: u64, keep: &BTreeSet<u32>) -> Vec<u32> {
        let Some(snapshot) = &self.snapshot else {
            return Vec::new();
        };
        (0..self.count())
            .filter(|number| {
                let then = &snapshot[*number as usize];
                let now = &self.all[*number as usize];
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
        self.snapshot = None;
        for number in numbers {
            let segment = &mut self.all[*number as usize];
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
        self.all[number as usize].readers += 1;
    }

    /// A read of the segment ended.
    pub fn reader_ends(&mut self, number: u32) {
        let segment = &mut self.all[number as usize];
        segment.readers -= 1;
        if segment.readers == 0 && self.draining.remove(&number) {
            self.free.insert(number);
        }
    }

    /// All segments, by number.
    pub fn iter(&self) -> impl Iterator<Item = &Segment> {
        self.all.iter()
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
        assert!(s.set_live(at, 2).is_ok() && s.get(number).is_live(4));
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
        assert_eq!(s.snapshot_entries()[number as usize].live[0], 1);
        assert_eq!(s.get(number).live_count(), 0);
    }
}
