//! Survivors are written in batches: a page that names them, and the pages behind it.

use super::streams::Open;
use crate::engine::{Engine, Purpose};
use crate::event::Effect;
use crate::format::checkpoint::SegmentKind;
use crate::format::survivors::{Survivor, SurvivorsHeader, ENTRIES_MAX};
use crate::format::PAGE;
use bytes::Bytes;
use esker_base::num::to_u32_saturating;
use esker_base::{AlignedBuf, DiskOp};

/// Survivors on their way to their new place.
#[derive(Debug)]
pub(super) struct Batch {
    pub id: u64,
    pub stream: usize,
    pub segment: u32,
    pub generation: u64,
    pub slot: u32,
    pub capacity: usize,
    pub entries: Vec<Survivor>,
    pub pages: Vec<Bytes>,
}

impl Engine {
    /// Gives a run of pages of the window to the batch.
    pub(super) fn take_run(&mut self, run: &mut Option<(u32, u32)>, first: u32, bytes: &Bytes) {
        if let (Some((start, end)), Some(b)) = (run.take(), &mut self.collector.batch) {
            let at = |slot: u32| (slot - first) as usize * PAGE;
            b.pages.push(bytes.slice(at(start)..at(end)));
        }
    }

    /// Begins a batch where the stream's open segment has room, or in a new one, or where another
    /// stream has room when there is no new one.
    pub(super) fn begin_batch(&mut self, stream: usize) -> bool {
        let slots = self.sb.slots();
        let streams = &self.collector.streams;
        let open = streams.open(stream).filter(|(.., slot)| slot + 2 <= slots);
        let open = open.or_else(|| self.open_survivors(stream));
        let open = open.or_else(|| self.collector.streams.any_with(2, slots));
        let Some((segment, generation, slot)) = open else {
            return false;
        };
        self.collector.batches += 1;
        self.collector.batch = Some(Batch {
            id: self.collector.batches,
            stream,
            segment,
            generation,
            slot,
            capacity: ENTRIES_MAX.min((slots - slot - 1) as usize),
            entries: Vec::new(),
            pages: Vec::new(),
        });
        true
    }

    /// Opens a new segment for a stream, if there is room for one.
    fn open_survivors(&mut self, stream: usize) -> Option<Open> {
        if let Some((full, ..)) = self.collector.streams.open(stream) {
            self.segs.seal(full);
            self.collector.streams.set(stream, None);
        }
        let spare = self.map_room().saturating_sub(self.checkpoint_room());
        if spare < u64::from(self.sb.slots()) {
            return None;
        }
        let (segment, generation) = self.segs.open(SegmentKind::Survivors)?;
        let open = Some((segment, generation, 0));
        self.collector.streams.set(stream, open);
        open
    }

    pub(super) fn flush_batch(&mut self, effects: &mut Vec<Effect>) {
        let Some(b) = self.collector.batch.take() else {
            return;
        };
        let end = b.slot + 1 + to_u32_saturating(b.entries.len());
        self.collector.streams.goes_on(b.generation, end);
        self.segs.set_written(b.segment, end);
        let header = SurvivorsHeader {
            store: self.sb.store,
            segment: b.segment,
            slot: b.slot,
            generation: b.generation,
            entries: b.entries,
        };
        let mut bufs = vec![AlignedBuf::copy_of(&header.encode()).freeze()];
        bufs.extend(b.pages);
        self.collector.outstanding.insert(b.id, b.segment);
        let offset = self.sb.offset_of(b.segment, b.slot);
        let op = DiskOp::Write { offset, bufs };
        self.disk(op, Purpose::Survivors(b.id), effects);
    }

    /// A batch is written.
    pub(crate) fn survivors_written(&mut self, batch: u64) {
        self.collector.outstanding.remove(&batch);
    }
}
