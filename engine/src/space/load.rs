//! Reading the tables of a checkpoint: which pages are wanted, and what becomes of them.

use super::pages::{SpaceTables, TableShape};
use super::segments::Segments;
use crate::format::checkpoint::Checkpoint;
use crate::format::codec::FormatError;
use crate::format::space::{decode_deaths, PieceEntry, SegmentEntry};
use crate::format::table::{Key, Place, TableId};
use crate::format::vaddr::{VAddr, VSEG_BITS};
use crate::format::version_records::VersionRecords;
use crate::format::versions::WholeVersions;
use crate::table::{Loaded, PagedTable, ToLoad};
use esker_base::StoreId;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A page to be read, in one of its copies.
#[derive(Clone, Debug)]
pub struct WantedPage {
    page: ToLoad,
    /// Segment and slot of each copy; the second may be none.
    pub copies: [Option<(u32, u32)>; 2],
}

/// A loading on its way. [`Self::wanted`] says what to read, [`Self::give`] takes it, until nothing is
/// wanted.
#[derive(Debug)]
pub struct SpaceLoader {
    store: StoreId,
    shape: TableShape,
    slots: u32,
    tables: BTreeMap<TableId, PagedTable>,
    queue: VecDeque<ToLoad>,
    /// Pages of the table of deaths: where they are is known when the pieces are.
    later: VecDeque<ToLoad>,
    outstanding: usize,
    segments: Vec<SegmentEntry>,
    pieces: BTreeMap<VAddr, PieceEntry>,
    /// The checkpoint that wrote each page of pieces.
    sequences: BTreeMap<Key, u64>,
    behind: BTreeMap<Key, u64>,
    versions: VersionRecords,
}

fn wrong(problem: &'static str) -> FormatError {
    let structure = "checkpoint";
    FormatError { structure, problem }
}

impl SpaceLoader {
    /// Begins to load the tables of a checkpoint.
    ///
    /// # Errors
    /// When one is missing or named twice.
    pub fn new(
        checkpoint: &Checkpoint,
        store: StoreId,
        segment_count: u64,
        slots: u32,
        shape: TableShape,
    ) -> Result<Self, FormatError> {
        let count = usize::try_from(segment_count).unwrap_or(usize::MAX);
        let mut this = Self {
            store,
            shape,
            slots,
            tables: BTreeMap::new(),
            queue: VecDeque::new(),
            later: VecDeque::new(),
            outstanding: 0,
            segments: vec![SegmentEntry::default(); count],
            pieces: BTreeMap::new(),
            sequences: BTreeMap::new(),
            behind: BTreeMap::new(),
            versions: VersionRecords::default(),
        };
        for root in &checkpoint.tables {
            let (table, wanted) = shape.open(root);
            this.queue_of(root.table).extend(wanted);
            if this.tables.insert(root.table, table).is_some() {
                return Err(wrong("names a table twice"));
            }
        }
        if checkpoint.versions.whole.is_some() {
            for id in [TableId::Versions, TableId::Deadlists] {
                if this.tables.insert(id, shape.table(id)).is_some() {
                    return Err(wrong("has versions and names tables of them"));
                }
            }
        }
        if TableId::ALL.iter().any(|id| !this.tables.contains_key(id)) {
            return Err(wrong("does not name all tables"));
        }
        Ok(this)
    }

    fn queue_of(&mut self, table: TableId) -> &mut VecDeque<ToLoad> {
        match table {
            TableId::Deaths => &mut self.later,
            _ => &mut self.queue,
        }
    }

    /// Up to `max` pages to be read next. Nothing is wanted any more when none is given and none is
    /// outstanding.
    ///
    /// # Errors
    /// When a page is in no segment.
    pub fn wanted(&mut self, max: usize) -> Result<Vec<WantedPage>, FormatError> {
        if self.queue.is_empty() && self.outstanding == 0 {
            self.queue.append(&mut self.later);
        }
        let count = max.min(self.queue.len());
        let pages: Vec<ToLoad> = self.queue.drain(..count).collect();
        self.outstanding += pages.len();
        let copies = |page: &ToLoad| page.pointer.places.map(|p| self.locate(page.table, p));
        let wanted: Vec<WantedPage> = pages
            .iter()
            .map(|page| WantedPage {
                page: *page,
                copies: copies(page),
            })
            .collect();
        match wanted.iter().all(|w| w.copies[0].is_some()) {
            true => Ok(wanted),
            false => Err(wrong("names a page of a table that is in no segment")),
        }
    }

    fn locate(&self, table: TableId, place: Place) -> Option<(u32, u32)> {
        let (segment, slot) = match table {
            TableId::Segments | TableId::Pieces | TableId::Versions | TableId::Deadlists => {
                place.segment_slot()?
            }
            TableId::Deaths => {
                let vaddr = place.vaddr();
                let (first, piece) = self.pieces.range(..=vaddr).next_back()?;
                if first.vseg() != vaddr.vseg() {
                    return None;
                }
                let rank = piece.kept.rank(vaddr.slot() - first.slot())?;
                (piece.segment, piece.base.checked_add(rank)?)
            }
        };
        let inside = (segment as usize) < self.segments.len() && slot < self.slots;
        inside.then_some((segment, slot))
    }

    /// A copy of a page came.
    ///
    /// # Errors
    /// When it is damaged; the other copy may not be.
    pub fn give(&mut self, wanted: &WantedPage, bytes: &[u8]) -> Result<(), FormatError> {
        let Some(table) = self.tables.get_mut(&wanted.page.table) else {
            return Ok(());
        };
        let loaded = table.load(&wanted.page, bytes, self.store)?;
        self.outstanding = self.outstanding.saturating_sub(1);
        match loaded {
            Loaded::Pages(pages) => self.queue_of(wanted.page.table).extend(pages),
            Loaded::Records { sequence, records } => {
                if wanted.page.table == TableId::Pieces {
                    self.sequences.insert(wanted.page.key, sequence);
                }
                for (key, at) in records {
                    self.record(wanted.page.table, key, &bytes[at])?;
                }
            }
        }
        Ok(())
    }

    fn record(&mut self, table: TableId, key: Key, bytes: &[u8]) -> Result<(), FormatError> {
        match table {
            TableId::Segments => {
                let entry = SegmentEntry::decode(bytes)?;
                let number = usize::try_from(key).ok();
                match number.and_then(|number| self.segments.get_mut(number)) {
                    Some(segment) => *segment = entry,
                    None => return Err(wrong("describes a segment that the store has not")),
                }
            }
            TableId::Pieces => {
                let Ok(first) = u64::try_from(key) else {
                    return Err(wrong("describes a piece at no address"));
                };
                let piece = PieceEntry::decode(bytes)?;
                if VAddr(first).vseg() >> VSEG_BITS != 0
                    || self.pieces.insert(VAddr(first), piece).is_some()
                {
                    return Err(wrong("describes a piece twice or at no address"));
                }
            }
            TableId::Deaths => {
                let sequence = u64::try_from(key >> 64).unwrap_or(0);
                for (first, count) in decode_deaths(key, bytes)? {
                    self.deaths(sequence, first, count)?;
                }
            }
            TableId::Versions => self.versions.version(key, bytes),
            TableId::Deadlists => self.versions.deadlist(key, bytes)?,
        }
        Ok(())
    }

    /// Slots that died by a run, on pages of pieces that were written before it.
    fn deaths(&mut self, sequence: u64, first: VAddr, count: u32) -> Result<(), FormatError> {
        let pieces = self.tables.get(&TableId::Pieces);
        let (mut at, mut rest) = (first, count);
        while rest > 0 {
            let found = self.pieces.range_mut(..=at).next_back();
            let (key, piece) = match found {
                Some((key, piece)) if key.vseg() == at.vseg() => (*key, piece),
                // All of its piece died, and its page was written since.
                _ => return Ok(()),
            };
            let page = pieces.and_then(|p| p.page_with(key.0.into())).unwrap_or(0);
            let written = self.sequences.get(&page).copied().unwrap_or(0);
            let rank = piece.kept.rank(at.slot() - key.slot());
            if let Some(rank) = rank.filter(|_| written < sequence) {
                if !piece.live.set(rank, false) {
                    return Err(wrong("kills a slot that was dead"));
                }
                let oldest = self.behind.entry(page).or_insert(sequence);
                *oldest = sequence.min(*oldest);
            }
            (at, rest) = (at.plus(1), rest - 1);
        }
        Ok(())
    }

    /// Whether slots died since the page of their piece was written.
    pub fn has_deaths(&self) -> bool {
        !self.behind.is_empty()
    }

    /// The segments, and the pieces, with what died; when nothing is wanted any more.
    pub fn entries(&self) -> (&[SegmentEntry], &BTreeMap<VAddr, PieceEntry>) {
        (&self.segments, &self.pieces)
    }

    /// Versions and deadlists, when nothing is wanted any more; to be asked once. Those of a checkpoint
    /// that holds them whole are not here.
    ///
    /// # Errors
    /// When something is malformed or missing.
    pub fn take_versions(&mut self) -> Result<WholeVersions, FormatError> {
        let (versions, deadlists) = std::mem::take(&mut self.versions).finish()?;
        Ok(WholeVersions {
            versions,
            deadlists,
        })
    }

    /// The table of segments, when nothing is wanted any more; see [`Segments::from_entries`].
    pub fn finish(mut self, next_generation: u64, keep: &BTreeSet<u32>) -> Option<Segments> {
        let mut table = |id| self.tables.remove(&id);
        let tables = [
            table(TableId::Segments)?,
            table(TableId::Pieces)?,
            table(TableId::Deaths)?,
            table(TableId::Versions)?,
            table(TableId::Deadlists)?,
        ];
        let count = u32::try_from(self.segments.len()).ok()?;
        let tables = SpaceTables::loaded(self.shape, count, tables, self.behind);
        let pieces = self.pieces.into_iter().collect();
        Segments::from_entries(
            &self.segments,
            pieces,
            tables,
            self.slots,
            next_generation,
            keep,
        )
    }
}

/// Loads tables by reading one page after the other, for tools. `read` gives a page, if it can be
/// read.
///
/// # Errors
/// When no copy of a page is whole.
pub fn load_all(
    loader: &mut SpaceLoader,
    read: &mut dyn FnMut(u32, u32) -> Option<Vec<u8>>,
) -> Result<(), FormatError> {
    loop {
        let wanted = loader.wanted(1)?;
        let Some(page) = wanted.first() else {
            return Ok(());
        };
        let mut result = Err(wrong("names a page of a table that cannot be read"));
        for (segment, slot) in page.copies.into_iter().flatten() {
            if result.is_err() {
                let bytes = read(segment, slot);
                result = bytes.map_or(result, |bytes| loader.give(page, &bytes));
            }
        }
        result?;
    }
}
