//! Making the pages of the tables for a checkpoint.

use super::segments::{LivenessViolation, Segments};
use crate::format::codec::Writer;
use crate::format::space::{PieceEntry, SegmentEntry, SegmentKind};
use crate::format::table::{Key, PagePointer, Place, TableId, TableRoot};
use crate::format::vaddr::VAddr;
use crate::table::{Batch, PageContext};
use esker_base::num::{to_u32_saturating, to_usize};

fn low(key: Key) -> u64 {
    u64::try_from(key).unwrap_or(u64::MAX)
}

impl Segments {
    /// All is merged: chooses what is to be written of the tables, and lets the slots of runs die
    /// that nobody needs any more. To be called once for each checkpoint, before
    /// [`Self::next_batch`].
    ///
    /// # Errors
    /// When such a slot is not live.
    pub fn begin_tables(&mut self, sequence: u64) -> Result<(), LivenessViolation> {
        let Some(frozen) = &self.frozen else {
            return Ok(());
        };
        let empty = |number: u32| {
            let segment = frozen.segments.get(number as usize);
            segment.is_some_and(|s| s.sealed && s.live_count() == 0 && s.kind != SegmentKind::Free)
        };
        let holder = |vaddr: VAddr| frozen.find(vaddr).map(|(key, _)| key);
        let gone = self.tables.begin_write(sequence, &empty, &holder);
        self.drop_pages(&gone)
    }

    fn drop_pages(&mut self, gone: &[PagePointer]) -> Result<(), LivenessViolation> {
        let places = gone.iter().flat_map(|pointer| pointer.places);
        for place in places.filter(|place| *place != Place::NONE) {
            self.drop_in_checkpoint(place.vaddr())?;
        }
        Ok(())
    }

    /// The pages of the next level of a table that are to be written. Deaths come first: their pages
    /// take live slots.
    pub fn next_batch(&mut self, id: TableId, context: &PageContext) -> Option<Batch> {
        let Self { frozen, tables, .. } = self;
        let frozen = frozen.as_ref()?;
        match id {
            TableId::Deaths => {
                let run = &tables.run;
                let mut source = |from: Key, to: Option<Key>, each: &mut dyn FnMut(Key, &[u8])| {
                    let here = |key: Key| key >= from && to.is_none_or(|to| key < to);
                    let run = run.iter().filter(|(key, _)| here(*key));
                    run.for_each(|(key, bytes)| each(*key, bytes));
                };
                tables.deaths.next_batch(context, &mut source)
            }
            TableId::Pieces => {
                let mut source = |from: Key, to: Option<Key>, each: &mut dyn FnMut(Key, &[u8])| {
                    let rest = frozen.pieces.range(VAddr(low(from))..);
                    let here = |key: VAddr| to.is_none_or(|to| Key::from(key.0) < to);
                    for (key, piece) in rest.take_while(|(key, _)| here(**key)) {
                        if piece.live_count() == 0 {
                            continue;
                        }
                        let mut w = Writer::new();
                        PieceEntry {
                            kept: piece.kept.clone(),
                            segment: piece.segment,
                            base: piece.base,
                            live: piece.live.clone(),
                        }
                        .encode(&mut w);
                        each(key.0.into(), &w.bytes);
                    }
                };
                tables.pieces.next_batch(context, &mut source)
            }
            TableId::Segments => {
                let mut source = |from: Key, to: Option<Key>, each: &mut dyn FnMut(Key, &[u8])| {
                    let count = frozen.segments.len();
                    let end = to.map_or(count, |to| to_usize(low(to)).min(count));
                    let from = to_usize(low(from)).min(end);
                    for number in from..end {
                        let s = &frozen.segments[number];
                        if s.generation == 0 {
                            continue; // never used
                        }
                        let mut w = Writer::new();
                        SegmentEntry {
                            kind: s.kind,
                            generation: s.generation,
                            written: s.written,
                        }
                        .encode(&mut w);
                        each(Key::from(to_u32_saturating(number)), &w.bytes);
                    }
                };
                tables.segments.next_batch(context, &mut source)
            }
            // Their records are not ours: see `SpaceTables::next_versions`.
            TableId::Versions | TableId::Deadlists => None,
        }
    }

    /// The pages of a batch have their places; those at virtual addresses are live from now on, and
    /// what they replace dies.
    ///
    /// # Errors
    /// When a slot was live already, or dead.
    pub fn placed(
        &mut self,
        id: TableId,
        batch: Batch,
        places: &[[Place; 2]],
    ) -> Result<(), LivenessViolation> {
        let gone = self.tables.placed(id, batch, places);
        if id != TableId::Deaths {
            return Ok(());
        }
        for place in places.iter().flatten().filter(|p| **p != Place::NONE) {
            self.set_live_in_checkpoint(place.vaddr())?;
        }
        self.drop_pages(&gone)
    }

    /// What the checkpoint says of the tables.
    pub fn table_roots(&self) -> Vec<TableRoot> {
        self.tables.roots()
    }

    /// The tables on the device, for those of versions and deadlists.
    pub fn tables_mut(&mut self) -> &mut super::SpaceTables {
        &mut self.tables
    }

    /// The tables on the device.
    pub fn tables(&self) -> &super::SpaceTables {
        &self.tables
    }

    /// A page that should be written is not: for tests that show that this is noticed.
    pub fn forget_one_page(&mut self, id: TableId) {
        self.tables.forget_one(id);
    }
}
