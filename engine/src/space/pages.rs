//! The tables as they lie on the device. Those of segments, pieces and deaths describe space; those
//! of versions and deadlists lie as the first two do, and what they describe is kept elsewhere
//! ([`crate::snapshot`]).
//!
//! Uniform overwriting kills a few slots in every segment there is, so that every page of the table
//! of pieces would change between two checkpoints. Slots that die are therefore no reason to write
//! a page: a checkpoint lists them, sorted, as a *run* of the table of deaths, some two bytes each.
//! Each checkpoint also writes a share of the pages that are behind, in turn. A run goes when no page
//! is behind by it. Everything else that changes a piece (slots appended, survivors moved) has its
//! page written; that is about what the log and the map wrote themselves.
//!
//! Tables of segments and pieces describe all slots, and lie in slots themselves. So that this ends:
//! 1. Their pages are no live slots. A segment is *pinned* by each copy of a page that the newest
//!    directory names, and is not free before no page pins it.
//! 2. They are made from the frozen state as of the moment the first of them gets its place; what the
//!    taking of places changes (slots written, a segment opened) is for the next checkpoint. An
//!    opening takes a segment that is free by the table and pinned for one of the map.
//! 3. Runs of deaths lie in live slots, and are written before the others. Slots of a run that is
//!    dropped die as a change of their piece and are in no run.
//!
//! When all that is left in a segment are such pages, the next checkpoint writes them elsewhere.

use crate::format::space::{encode_deaths, DEATHS_BYTES_MAX};
use crate::format::table::{Key, PagePointer, TableId, TableRoot};
use crate::format::vaddr::VAddr;
use crate::table::{Batch, PageContext, PagedTable, Source, ToLoad};
use std::collections::{BTreeMap, BTreeSet};

/// Most slots noted as dead between two checkpoints; beyond, pages of their pieces are written.
const DEATHS_MAX: usize = 256 << 10;
/// Bytes of a slot in a run, on average at most.
const DEATH_BYTES: usize = 4;
/// Of the pages that are behind, this part is written by each checkpoint, unless the least number is
/// more: so many runs there are at most, about.
const REWRITE_SHARE: usize = 256;
/// Pages that a checkpoint writes elsewhere because nothing else is in their segment.
const EVACUATE_PAGES: usize = 128;
/// Or this part of all pages, if that is more.
const EVACUATE_SHARE: usize = 64;

/// How tables are cut into pages.
#[derive(Clone, Copy, Debug)]
pub struct TableShape {
    /// Most bytes of records in a page.
    pub content_max: usize,
    /// Pages behind that each checkpoint writes, at least.
    pub rewrite_min: usize,
    /// Versions and deadlists are held against what their pages say; for tests.
    pub audit: bool,
}

impl TableShape {
    /// An empty table.
    pub fn table(&self, id: TableId) -> PagedTable {
        self.audited(PagedTable::new(id, self.content_max, id != TableId::Deaths))
    }

    /// Begins to load one.
    pub fn open(&self, root: &TableRoot) -> (PagedTable, Vec<ToLoad>) {
        let resident = root.table != TableId::Deaths;
        let (table, wanted) = PagedTable::open(root, self.content_max, resident);
        (self.audited(table), wanted)
    }

    fn audited(&self, mut table: PagedTable) -> PagedTable {
        if self.audit && matches!(table.id(), TableId::Versions | TableId::Deadlists) {
            table.begin_audit();
        }
        table
    }
}

/// The tables, and what is to be written of them.
#[derive(Debug)]
pub struct SpaceTables {
    shape: TableShape,
    pub(super) segments: PagedTable,
    pub(super) pieces: PagedTable,
    pub(super) deaths: PagedTable,
    versions: PagedTable,
    deadlists: PagedTable,
    /// Slots that died since the last freeze, by when.
    dead: Vec<(VAddr, u32)>,
    /// Slots that died before it, or by what the checkpoint merges.
    dead_frozen: Vec<(VAddr, u32)>,
    /// The run being written.
    pub(super) run: Vec<(Key, Vec<u8>)>,
    /// Pages of pieces that are behind, with the number of the first run that has deaths of theirs.
    behind: BTreeMap<Key, u64>,
    /// Where the turn of pages that are behind goes on.
    hand: Key,
    /// Copies of pages in each segment that the newest directory names.
    pinned: Vec<u32>,
}

impl SpaceTables {
    /// Empty tables.
    pub fn new(shape: TableShape, segment_count: u32) -> Self {
        let table = |id| shape.table(id);
        Self {
            shape,
            segments: table(TableId::Segments),
            pieces: table(TableId::Pieces),
            deaths: table(TableId::Deaths),
            versions: table(TableId::Versions),
            deadlists: table(TableId::Deadlists),
            dead: Vec::new(),
            dead_frozen: Vec::new(),
            run: Vec::new(),
            behind: BTreeMap::new(),
            hand: 0,
            pinned: vec![0; segment_count as usize],
        }
    }

    /// Tables that were loaded, and which pages of pieces are behind since which run.
    pub fn loaded(
        shape: TableShape,
        segment_count: u32,
        [segments, pieces, deaths, versions, deadlists]: [PagedTable; 5],
        behind: BTreeMap<Key, u64>,
    ) -> Self {
        let mut this = Self {
            segments,
            pieces,
            deaths,
            versions,
            deadlists,
            behind,
            ..Self::new(shape, segment_count)
        };
        let pointers: Vec<PagePointer> = this.physical_pages().copied().collect();
        pointers.iter().for_each(|p| this.pin(p, true));
        this
    }

    fn pin(&mut self, pointer: &PagePointer, here: bool) {
        for place in pointer.places {
            let segment = place.segment_slot().map(|(segment, _)| segment as usize);
            if let Some(count) = segment.and_then(|n| self.pinned.get_mut(n)) {
                *count = if here { *count + 1 } else { *count - 1 };
            }
        }
    }

    /// Copies of pages in a segment.
    pub fn pinned(&self, segment: u32) -> u32 {
        self.pinned.get(segment as usize).copied().unwrap_or(0)
    }

    /// What is known of a segment changed.
    pub fn segment_changed(&mut self, number: u32) {
        self.segments.touch(number.into());
    }

    /// The same, by the checkpoint in progress.
    pub fn segment_changed_in_checkpoint(&mut self, number: u32) {
        self.segments.touch_in_checkpoint(number.into());
    }

    /// A piece came, went, or has more live slots.
    pub fn piece_changed(&mut self, key: VAddr) {
        self.pieces.touch(key.0.into());
    }

    /// The same, by the checkpoint in progress.
    pub fn piece_changed_in_checkpoint(&mut self, key: VAddr) {
        self.pieces.touch_in_checkpoint(key.0.into());
    }

    /// Slots of a piece died.
    pub fn died(&mut self, key: VAddr, first: VAddr, count: u32) {
        let page = self.pieces.page_with(key.0.into()).unwrap_or(0);
        if self.pieces.is_dirty(page) {
            return;
        }
        // With so few pages a run would save nothing.
        let few = self.pieces.leaf_count() <= self.shape.rewrite_min;
        if few || self.dead.len() >= DEATHS_MAX {
            return self.pieces.touch(key.0.into());
        }
        self.dead.push((first, count));
    }

    /// The same, by what the checkpoint in progress merges.
    pub fn died_in_checkpoint(&mut self, key: VAddr, first: VAddr, count: u32) {
        let page = self.pieces.page_with(key.0.into()).unwrap_or(0);
        if self.pieces.is_flushing(page) {
            return;
        }
        let few = self.pieces.leaf_count() <= self.shape.rewrite_min;
        if few || self.dead_frozen.len() >= 2 * DEATHS_MAX {
            return self.pieces.touch_in_checkpoint(key.0.into());
        }
        self.dead_frozen.push((first, count));
    }

    /// A checkpoint begins.
    pub fn freeze(&mut self) {
        self.segments.freeze();
        self.pieces.freeze();
        self.dead_frozen.append(&mut self.dead);
    }

    /// All is merged, and pages are to be made: chooses which of those behind are among them, and
    /// makes the run of deaths in all others. `holder` gives the piece that a slot belongs to. Gives
    /// the pages of runs that nobody needs any more.
    pub fn begin_write(
        &mut self,
        sequence: u64,
        empty: &dyn Fn(u32) -> bool,
        holder: &dyn Fn(VAddr) -> Option<VAddr>,
    ) -> Vec<PagePointer> {
        self.evacuate(empty);
        let page_of = |tables: &Self, vaddr: VAddr| {
            let key = holder(vaddr)?;
            tables.pieces.page_with(key.0.into())
        };
        let mut dead = std::mem::take(&mut self.dead_frozen);
        dead.sort_unstable();
        let mut candidates: BTreeSet<Key> = self.behind.keys().copied().collect();
        candidates.extend(dead.iter().filter_map(|(v, _)| page_of(self, *v)));
        candidates.retain(|page| !self.pieces.is_flushing(*page));
        let share = self.pieces.leaf_count() / REWRITE_SHARE;
        let turn = share.max(self.shape.rewrite_min);
        let cycle = candidates.range(self.hand..);
        let cycle = cycle.chain(candidates.range(..self.hand));
        let turn: Vec<Key> = cycle.take(turn).copied().collect();
        for page in turn {
            self.hand = page + 1;
            self.pieces.rewrite(0, page);
        }
        let flushing = |tables: &Self, page: Key| tables.pieces.is_flushing(page);
        dead.retain(|(v, _)| page_of(self, *v).is_some_and(|page| !flushing(self, page)));
        for (vaddr, _) in &dead {
            if let Some(page) = page_of(self, *vaddr) {
                self.behind.entry(page).or_insert(sequence);
            }
        }
        let behind = std::mem::take(&mut self.behind);
        self.behind = behind
            .into_iter()
            .filter(|(page, _)| !flushing(self, *page))
            .collect();
        let needed = self.behind.values().min();
        let gone = self.deaths.drop_before(needed.map(|n| Key::from(*n) << 64));
        self.run = encode_deaths(sequence, &dead);
        if !self.run.is_empty() {
            self.deaths.begin_page(Key::from(sequence) << 64);
        }
        gone
    }

    /// Writes pages elsewhere that are all that is left in their segment.
    fn evacuate(&mut self, empty: &dyn Fn(u32) -> bool) {
        let mut wanted: BTreeMap<u32, Vec<(TableId, u8, Key)>> = BTreeMap::new();
        for (which, table) in self.physical() {
            for (level, key, pointer) in table.pages() {
                for place in pointer.places {
                    let segment = place.segment_slot().map(|(segment, _)| segment);
                    if let Some(segment) = segment.filter(|s| empty(*s)) {
                        wanted.entry(segment).or_default().push((which, level, key));
                    }
                }
            }
        }
        let mut all: Vec<Vec<(TableId, u8, Key)>> = wanted.into_values().collect();
        all.sort_by_key(Vec::len);
        let count = self.page_count();
        let most = EVACUATE_PAGES.max(count / EVACUATE_SHARE);
        for (which, level, key) in all.into_iter().flatten().take(most) {
            self.table(which).rewrite(level, key);
        }
    }

    /// The tables whose pages are at physical places.
    fn physical(&self) -> [(TableId, &PagedTable); 4] {
        [
            (TableId::Pieces, &self.pieces),
            (TableId::Segments, &self.segments),
            (TableId::Versions, &self.versions),
            (TableId::Deadlists, &self.deadlists),
        ]
    }

    /// Their pages.
    fn page_count(&self) -> usize {
        self.physical().iter().map(|(_, t)| t.page_count()).sum()
    }

    /// What versions or deadlists say at these keys is written by the checkpoint in progress.
    pub fn versions_changed(&mut self, id: TableId, keys: impl IntoIterator<Item = Key>) {
        let table = self.table(id);
        keys.into_iter()
            .for_each(|key| table.touch_in_checkpoint(key));
    }

    /// Pages of versions or deadlists that are to be written, as [`PagedTable::next_batch`] gives
    /// them.
    pub fn next_versions(
        &mut self,
        id: TableId,
        context: &PageContext,
        source: &mut Source<'_>,
    ) -> Option<Batch> {
        self.table(id).next_batch(context, source)
    }

    /// A page is not written although it should be: for tests that show that this is noticed.
    pub fn forget_one(&mut self, id: TableId) {
        self.table(id).forget_one();
    }

    /// The first key of a page of versions or deadlists that does not say what `source` gives, when
    /// that is looked at.
    pub fn stale_page(&mut self, id: TableId, source: &mut Source<'_>) -> Option<Key> {
        self.table(id).stale_page(source)
    }

    fn table(&mut self, id: TableId) -> &mut PagedTable {
        match id {
            TableId::Segments => &mut self.segments,
            TableId::Pieces => &mut self.pieces,
            TableId::Deaths => &mut self.deaths,
            TableId::Versions => &mut self.versions,
            TableId::Deadlists => &mut self.deadlists,
        }
    }

    /// A batch of one of the tables has its places. Gives pages that are no longer needed once the
    /// checkpoint is durable.
    pub fn placed(
        &mut self,
        id: TableId,
        batch: Batch,
        places: &[[crate::format::table::Place; 2]],
    ) -> Vec<PagePointer> {
        if id == TableId::Pieces && batch.level() == 0 {
            for page in batch.replaced() {
                self.behind.remove(&page);
            }
        }
        let is_virtual = id == TableId::Deaths;
        let gone = self.table(id).placed(batch, places);
        if is_virtual {
            return gone;
        }
        for places in places {
            let pointer = PagePointer {
                places: *places,
                crc: 0,
            };
            self.pin(&pointer, true);
        }
        gone.iter().for_each(|pointer| self.pin(pointer, false));
        gone
    }

    /// What a checkpoint says of the tables.
    pub fn roots(&self) -> Vec<TableRoot> {
        let space = [&self.segments, &self.pieces, &self.deaths];
        let all = space.into_iter().chain([&self.versions, &self.deadlists]);
        all.map(PagedTable::root).collect()
    }

    /// Pages that the next checkpoint may write, one copy of each.
    pub fn pages_max(&self) -> usize {
        let died = self.dead.len() + self.dead_frozen.len();
        let runs = (died * DEATH_BYTES).div_ceil(DEATHS_BYTES_MAX);
        self.page_count() + runs
    }

    /// Bytes of records in a page, at most.
    pub fn content_max(&self) -> usize {
        self.shape.content_max
    }

    /// Every page at a virtual address.
    pub fn virtual_pages(&self) -> impl Iterator<Item = &PagePointer> {
        self.deaths.pages().map(|(.., pointer)| pointer)
    }

    /// Every page at a physical place.
    pub fn physical_pages(&self) -> impl Iterator<Item = &PagePointer> {
        let tables = self.physical().into_iter();
        tables.flat_map(|(_, table)| table.pages().map(|(.., pointer)| pointer))
    }
}
