//! The directory of a table, and which of its pages are to be written. See the module above.

use super::audit::{self, Audit};
use crate::format::codec::{FormatError, Reader, Writer};
use crate::format::table::{
    decode, Key, PageBuilder, PageHead, PagePointer, Place, TableId, TableRoot, CONTENT_MAX,
    LEVELS_MAX, RECORD_OVERHEAD_MAX,
};
use esker_base::checksum::crc32;
use esker_base::StoreId;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, Range};

/// Most pages of the highest level: what a checkpoint names itself. With more, a level is added.
pub const ROOT_PAGES_MAX: usize = 64;
/// Most pages that one sparse page is merged with.
const ABSORB_MAX: usize = 8;

/// Bytes that a directory page takes at least, so that each level is much smaller than the one below.
const DIRECTORY_CONTENT_MIN: usize = 512;

/// Gives the records of a range of keys, from the first one to before the second (or the end), in
/// order, to the function.
pub type Source<'a> = dyn FnMut(Key, Option<Key>, &mut dyn FnMut(Key, &[u8])) + 'a;

/// What every page of a checkpoint says.
#[derive(Clone, Copy, Debug)]
pub struct PageContext {
    /// The store.
    pub store: StoreId,
    /// Number of the checkpoint.
    pub sequence: u64,
}

/// Pages that replace others.
#[derive(Debug)]
struct Group {
    replaced: Vec<Key>,
    pages: Vec<(Key, Vec<u8>)>,
}

/// The pages of one level that are to be written.
#[derive(Debug)]
pub struct Batch {
    level: usize,
    groups: Vec<Group>,
}

impl Batch {
    /// The level: 0 holds records.
    pub fn level(&self) -> usize {
        self.level
    }

    /// The pages, of 4096 bytes each, in the order in which [`PagedTable::placed`] wants places.
    pub fn pages(&self) -> impl Iterator<Item = &[u8]> {
        let pages = self.groups.iter().flat_map(|g| &g.pages);
        pages.map(|(_, bytes)| bytes.as_slice())
    }

    /// Their number.
    pub fn page_count(&self) -> usize {
        self.groups.iter().map(|g| g.pages.len()).sum()
    }

    /// First keys of the pages that are replaced.
    pub fn replaced(&self) -> impl Iterator<Item = Key> + '_ {
        self.groups.iter().flat_map(|g| g.replaced.iter().copied())
    }
}

/// A page to be read while a table is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToLoad {
    /// Its table.
    pub table: TableId,
    /// Its level.
    pub level: u8,
    /// Where its range begins.
    pub key: Key,
    /// Where it ends, exclusive, as far as its directory page tells.
    pub end: Option<Key>,
    /// Where it is.
    pub pointer: PagePointer,
}

/// What a page that was read holds.
#[derive(Debug)]
pub enum Loaded {
    /// Pages of the level below.
    Pages(Vec<ToLoad>),
    /// Records, and the checkpoint that wrote them.
    Records {
        /// Number of the checkpoint that wrote the page.
        sequence: u64,
        /// Keys, and where in the page the records are.
        records: Vec<(Key, Range<usize>)>,
    },
}

type Level = BTreeMap<Key, PagePointer>;

/// A table's directory in memory: 60 bytes or so for each page.
#[derive(Debug)]
pub struct PagedTable {
    id: TableId,
    content_max: usize,
    resident: bool,
    /// Pages by the first key of their range, which ends where the next begins. A pointer to nowhere
    /// is a page that was begun and is not written yet.
    levels: Vec<Level>,
    /// Pages of level 0 that the next checkpoint writes.
    dirty: BTreeSet<Key>,
    /// Pages that the checkpoint in progress writes, by level.
    flushing: Vec<BTreeSet<Key>>,
    /// The level whose batch is next.
    cursor: usize,
    /// Keys of a page that is known to be dirty: the one that was touched last.
    recent: Option<(Key, Option<Key>)>,
    /// For tests.
    audit: Option<Audit>,
}

impl PagedTable {
    /// An empty table. `content_max` bounds the bytes of records in a page (all that fit, but for
    /// tests that want many pages); `resident` says whether the owner can give all records at any
    /// time.
    pub fn new(id: TableId, content_max: usize, resident: bool) -> Self {
        Self {
            id,
            content_max: content_max.min(CONTENT_MAX),
            resident,
            levels: vec![Level::new()],
            dirty: BTreeSet::new(),
            flushing: vec![BTreeSet::new()],
            cursor: 0,
            recent: None,
            audit: None,
        }
    }

    /// Which table.
    pub fn id(&self) -> TableId {
        self.id
    }

    /// From now on [`Self::stale_page`] can be asked. For tests.
    pub fn begin_audit(&mut self) {
        self.audit = Some(Audit::default());
    }

    /// The first key of a page that does not hold what `source` gives, and of which that was to be
    /// known: once a checkpoint has written its pages there is none. For tests, since it takes the time
    /// of all records.
    pub fn stale_page(&self, source: &mut Source<'_>) -> Option<Key> {
        let audit = self.audit.as_ref()?;
        let pages = &self.levels[0];
        let first = pages.first_key_value().map(|(key, _)| *key);
        if !self.records(0, 0, first, source).is_empty() {
            return Some(0);
        }
        pages.keys().copied().find(|key| {
            let records = self.records(0, *key, end_of(pages, *key), source);
            let records = records.iter().map(|(key, bytes)| (*key, bytes.as_slice()));
            audit.of(*key) != Some(audit::sum(records))
        })
    }

    /// The page that holds a key, and where its range ends; one that would begin at zero if the key
    /// lies before all pages.
    fn page_of(&self, level: usize, key: Key) -> (Key, Option<Key>) {
        let pages = &self.levels[level];
        let first = pages.range(..=key).next_back();
        let first = first.map_or(0, |(first, _)| *first);
        (first, end_of(pages, first))
    }

    /// First key of the page that holds a record, whether it is there or would be.
    pub fn page_with(&self, key: Key) -> Option<Key> {
        let (first, _) = self.levels[0].range(..=key).next_back()?;
        Some(*first)
    }

    /// A record changed, came or goes: the next checkpoint writes its page.
    pub fn touch(&mut self, key: Key) {
        let same = |(first, end): (Key, Option<Key>)| key >= first && end.is_none_or(|e| key < e);
        if self.recent.is_some_and(same) {
            return;
        }
        let (first, end) = self.page_of(0, key);
        self.dirty.insert(first);
        self.recent = Some((first, end));
    }

    /// The same, by what the checkpoint in progress holds: that one writes the page, if it has not
    /// done so yet.
    pub fn touch_in_checkpoint(&mut self, key: Key) {
        let (first, _) = self.page_of(0, key);
        self.flushing[0].insert(first);
        self.recent = None;
    }

    /// The checkpoint in progress writes this page, although nothing on it changed: to move it.
    pub fn rewrite(&mut self, level: u8, key: Key) {
        let level = usize::from(level);
        if self.levels.get(level).is_some_and(|l| l.contains_key(&key)) {
            self.flushing[level].insert(key);
        }
    }

    /// Whether the next checkpoint, or the one in progress, writes the page with this first key.
    pub fn is_dirty(&self, first: Key) -> bool {
        self.dirty.contains(&first)
    }

    /// Whether the checkpoint in progress writes the page with this first key.
    pub fn is_flushing(&self, first: Key) -> bool {
        self.flushing[0].contains(&first)
    }

    /// A checkpoint begins: it writes what is dirty now.
    pub fn freeze(&mut self) {
        self.flushing[0].append(&mut self.dirty);
        self.recent = None;
    }

    /// Takes a page off those that the checkpoint in progress writes. For tests that show that this
    /// is noticed.
    pub fn forget_one(&mut self) {
        let written = |key: &&Key| {
            let pointer = self.levels[0].get(*key);
            pointer.is_some_and(|p| p.places[0] != Place::NONE)
        };
        if let Some(key) = self.flushing[0].iter().find(written).copied() {
            self.flushing[0].remove(&key);
        }
    }

    /// A new page begins at this key, behind all records there are. Earlier pages are not written for
    /// what follows. The checkpoint in progress writes it.
    ///
    /// # Panics
    /// When the key is not behind the last page's first.
    pub fn begin_page(&mut self, key: Key) {
        let last = self.levels[0].last_key_value();
        assert!(
            last.is_none_or(|(last, _)| *last < key),
            "a table grows at its end"
        );
        self.levels[0].insert(key, PagePointer::default());
        self.flushing[0].insert(key);
    }

    /// Removes the pages all of whose keys are below `bound`, or all pages: these are no longer needed
    /// once the checkpoint in progress is durable.
    pub fn drop_before(&mut self, bound: Option<Key>) -> Vec<PagePointer> {
        let mut gone = Vec::new();
        while let Some((first, _)) = self.levels[0].first_key_value() {
            let first = *first;
            let end = end_of(&self.levels[0], first);
            if bound.is_some_and(|bound| end.is_none_or(|end| end > bound)) {
                break;
            }
            self.remove(0, first, &mut gone);
        }
        gone
    }

    fn remove(&mut self, level: usize, key: Key, gone: &mut Vec<PagePointer>) {
        self.flushing[level].remove(&key);
        if let Some(audit) = self.audit.as_mut().filter(|_| level == 0) {
            audit.has_not(key);
        }
        if let Some(pointer) = self.levels[level].remove(&key) {
            if pointer.places[0] != Place::NONE {
                gone.push(pointer);
            }
            self.touch_parent(level, key);
        }
    }

    fn touch_parent(&mut self, level: usize, key: Key) {
        if level + 1 < self.levels.len() {
            let (first, _) = self.page_of(level + 1, key);
            self.flushing[level + 1].insert(first);
        }
    }

    /// The pages of the next level that the checkpoint in progress writes; none when all levels are
    /// done. `source` gives the records as they were when the checkpoint began, and what it did
    /// since.
    ///
    /// # Panics
    /// When `source` gives records out of order or outside their range, or ones that are too long.
    pub fn next_batch(&mut self, context: &PageContext, source: &mut Source<'_>) -> Option<Batch> {
        let level = self.cursor;
        if level >= self.levels.len() {
            self.cursor = 0;
            return None;
        }
        let keys = std::mem::take(&mut self.flushing[level]);
        let mut groups = Vec::new();
        let mut done = 0; // keys below are written
        for key in keys {
            let is_page = key == 0 || self.levels[level].contains_key(&key);
            if key < done || !is_page {
                continue;
            }
            let (group, end) = self.group(level, key, context, source);
            groups.push(group);
            done = end.unwrap_or(Key::MAX);
        }
        Some(Batch { level, groups })
    }

    /// The pages that replace the one at `key`, and where they end.
    fn group(
        &self,
        level: usize,
        key: Key,
        context: &PageContext,
        source: &mut Source<'_>,
    ) -> (Group, Option<Key>) {
        let pages = &self.levels[level];
        let content_max = match level {
            0 => self.content_max,
            _ => self.content_max.max(DIRECTORY_CONTENT_MIN),
        };
        let mut end = end_of(pages, key);
        let mut records = self.records(level, key, end, source);
        let mut replaced = vec![key];
        let size = |records: &[(Key, Vec<u8>)]| -> usize {
            let each = |(_, r): &(Key, Vec<u8>)| r.len() + RECORD_OVERHEAD_MAX / 4;
            records.iter().map(each).sum()
        };
        // A page that became sparse takes its neighbours in, so that there are not many such pages.
        while let Some(next) = end.filter(|_| self.resident || level > 0) {
            let sparse = size(&records) < content_max / 4;
            if records.is_empty() || !sparse || replaced.len() > ABSORB_MAX {
                break;
            }
            end = end_of(pages, next);
            records.extend(self.records(level, next, end, source));
            replaced.push(next);
        }
        let head = |first_key| PageHead {
            table: self.id,
            level: u8::try_from(level).unwrap_or(LEVELS_MAX),
            store: context.store,
            sequence: context.sequence,
            first_key,
        };
        let mut out = Vec::new();
        let mut open: Option<(Key, PageBuilder)> = None;
        for (record_key, bytes) in records {
            if let Some((_, page)) = &mut open {
                if page.push(record_key, &bytes) {
                    continue;
                }
            }
            let first = open.as_ref().map_or(key, |_| record_key);
            let mut page = PageBuilder::new(&head(first), content_max);
            page.push(record_key, &bytes);
            if let Some((first, full)) = open.replace((first, page)) {
                out.push((first, full.finish()));
            }
        }
        if let Some((first, page)) = open {
            out.push((first, page.finish()));
        }
        (
            Group {
                replaced,
                pages: out,
            },
            end,
        )
    }

    fn records(
        &self,
        level: usize,
        from: Key,
        to: Option<Key>,
        source: &mut Source<'_>,
    ) -> Vec<(Key, Vec<u8>)> {
        let mut out = Vec::new();
        let Some(below) = level.checked_sub(1) else {
            source(from, to, &mut |key, bytes| {
                assert!(
                    key >= from && to.is_none_or(|to| key < to),
                    "record of a table out of its range"
                );
                out.push((key, bytes.to_vec()));
            });
            return out;
        };
        for (key, pointer) in range(&self.levels[below], from, to) {
            let mut w = Writer::new();
            pointer.encode(&mut w);
            out.push((*key, w.bytes));
        }
        out
    }

    /// The pages of a batch have their places: two for each, the second possibly nowhere. Gives the
    /// pages that are no longer needed once the checkpoint in progress is durable.
    ///
    /// # Panics
    /// When there are not as many places as pages, or a page has none.
    pub fn placed(&mut self, batch: Batch, places: &[[Place; 2]]) -> Vec<PagePointer> {
        let level = batch.level;
        assert!(
            places.len() == batch.page_count() && places.iter().all(|p| p[0] != Place::NONE),
            "every page of a table has a place"
        );
        let mut places = places.iter();
        let mut gone = Vec::new();
        for group in batch.groups {
            let mut still_dirty = false;
            let first = group.replaced.first().copied();
            for key in group.replaced {
                still_dirty |= level == 0 && self.dirty.remove(&key);
                self.remove(level, key, &mut gone);
            }
            for ((key, bytes), places) in group.pages.into_iter().zip(&mut places) {
                let pointer = PagePointer {
                    places: *places,
                    crc: crc32(&bytes),
                };
                self.levels[level].insert(key, pointer);
                if let Some(audit) = self.audit.as_mut().filter(|_| level == 0) {
                    audit.has(key, &bytes);
                }
                if still_dirty {
                    self.dirty.insert(key);
                }
                self.touch_parent(level, key);
            }
            if let Some(first) = first.filter(|_| still_dirty) {
                let (holder, _) = self.page_of(level, first);
                self.dirty.insert(holder);
            }
        }
        self.recent = None;
        self.cursor = level + 1;
        self.fit_levels(level, &mut gone);
        gone
    }

    /// Adds a level when the highest has too many pages, and removes those that are not needed.
    fn fit_levels(&mut self, level: usize, gone: &mut Vec<PagePointer>) {
        let count = self.levels[level].len();
        let is_top = level + 1 == self.levels.len();
        if is_top && count > ROOT_PAGES_MAX {
            assert!(
                self.levels.len() < usize::from(LEVELS_MAX),
                "a table has too many levels"
            );
            self.levels.push(Level::new());
            self.flushing.push(BTreeSet::from([0]));
        }
        if !is_top && count <= ROOT_PAGES_MAX / 4 {
            for above in self.levels.drain(level + 1..) {
                gone.extend(above.into_values().filter(|p| p.places[0] != Place::NONE));
            }
            self.flushing.truncate(level + 1);
        }
    }

    /// What the checkpoint says of the table, once everything is placed.
    ///
    /// # Panics
    /// When a page of the highest level has no place: a batch was not placed.
    pub fn root(&self) -> TableRoot {
        let level = self.levels.len() - 1;
        let pages: Vec<_> = self.levels[level].iter().map(|(k, p)| (*k, *p)).collect();
        let has_place = |(_, p): &(Key, PagePointer)| p.places[0] != Place::NONE;
        assert!(
            pages.iter().all(has_place),
            "a page of a table has no place"
        );
        TableRoot {
            table: self.id,
            level: u8::try_from(level).unwrap_or(LEVELS_MAX),
            pages,
        }
    }

    /// Begins to open a table: the pages of the highest level are to be read.
    pub fn open(root: &TableRoot, content_max: usize, resident: bool) -> (Self, Vec<ToLoad>) {
        let mut table = Self::new(root.table, content_max, resident);
        for _ in 0..root.level {
            table.levels.push(Level::new());
            table.flushing.push(BTreeSet::new());
        }
        let wanted = table.insert_loaded(root.level, &root.pages);
        (table, wanted)
    }

    fn insert_loaded(&mut self, level: u8, pages: &[(Key, PagePointer)]) -> Vec<ToLoad> {
        let ends = pages.iter().skip(1).map(|(key, _)| Some(*key));
        let mut out = Vec::with_capacity(pages.len());
        for ((key, pointer), end) in pages.iter().zip(ends.chain([None])) {
            self.levels[usize::from(level)].insert(*key, *pointer);
            out.push(ToLoad {
                table: self.id,
                level,
                key: *key,
                end,
                pointer: *pointer,
            });
        }
        out
    }

    /// A page came. Its checksum is the pointer's business and is looked at here as well.
    ///
    /// # Errors
    /// When it is damaged or not the page that was wanted; another copy may be.
    pub fn load(
        &mut self,
        wanted: &ToLoad,
        bytes: &[u8],
        store: StoreId,
    ) -> Result<Loaded, FormatError> {
        let r = Reader::new("page of a table", bytes);
        if crc32(bytes) != wanted.pointer.crc {
            return Err(r.error("checksum does not match"));
        }
        let page = decode(bytes)?;
        let h = page.head;
        let fits = (h.table, h.level, h.store, h.first_key)
            == (wanted.table, wanted.level, store, wanted.key);
        let last = page.records.last().map(|(key, _)| *key);
        if !fits || last.zip(wanted.end).is_some_and(|(last, end)| last >= end) {
            return Err(r.error("is another one than its pointer says"));
        }
        if let Some(audit) = self.audit.as_mut().filter(|_| wanted.level == 0) {
            audit.has(wanted.key, bytes);
        }
        let Some(below) = wanted.level.checked_sub(1) else {
            return Ok(Loaded::Records {
                sequence: h.sequence,
                records: page.records,
            });
        };
        let mut children = Vec::with_capacity(page.records.len());
        for (key, at) in page.records {
            let mut r = Reader::new("page of a table", &bytes[at]);
            children.push((key, PagePointer::decode(&mut r)?));
            r.finish()?;
        }
        Ok(Loaded::Pages(self.insert_loaded(below, &children)))
    }

    /// Pages of level 0, all of them, by first key.
    pub fn leaves(&self) -> impl Iterator<Item = (Key, &PagePointer)> {
        self.levels[0].iter().map(|(key, pointer)| (*key, pointer))
    }

    /// The pages of level 0 that hold the keys from one on to before another, as they are to be
    /// read.
    pub fn leaves_in(&self, from: Key, to: Option<Key>) -> Vec<ToLoad> {
        let start = self.page_with(from).unwrap_or(from);
        range(&self.levels[0], start, to)
            .filter(|(_, pointer)| pointer.places[0] != Place::NONE)
            .map(|(key, pointer)| ToLoad {
                table: self.id,
                level: 0,
                key: *key,
                end: end_of(&self.levels[0], *key),
                pointer: *pointer,
            })
            .collect()
    }

    /// Every page that has a place, with level and first key.
    pub fn pages(&self) -> impl Iterator<Item = (u8, Key, &PagePointer)> {
        let levels = (0u8..).zip(&self.levels);
        levels.flat_map(|(level, pages)| {
            let placed = pages.iter().filter(|(_, p)| p.places[0] != Place::NONE);
            placed.map(move |(key, pointer)| (level, *key, pointer))
        })
    }

    /// Number of pages, of all levels.
    pub fn page_count(&self) -> usize {
        self.levels.iter().map(Level::len).sum()
    }

    /// Number of pages of level 0.
    pub fn leaf_count(&self) -> usize {
        self.levels[0].len()
    }

    /// Most pages that a checkpoint that begins now would write, if nothing else is touched.
    pub fn dirty_count(&self) -> usize {
        self.dirty.len() + self.flushing.iter().map(BTreeSet::len).sum::<usize>()
    }
}

fn end_of(pages: &Level, first: Key) -> Option<Key> {
    let mut after = pages.range((Bound::Excluded(first), Bound::Unbounded));
    after.next().map(|(key, _)| *key)
}

fn range(pages: &Level, from: Key, to: Option<Key>) -> impl Iterator<Item = (&Key, &PagePointer)> {
    let rest = pages.range(from..);
    rest.take_while(move |(key, _)| to.is_none_or(|to| **key < to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use esker_base::num::to_usize;
    use proptest::prelude::*;

    /// A table with its records, and pages at numbered places.
    struct Bench {
        table: PagedTable,
        records: BTreeMap<Key, Vec<u8>>,
        frozen: BTreeMap<Key, Vec<u8>>,
        device: BTreeMap<u64, Vec<u8>>,
        next: u64,
        sequence: u64,
        written: usize,
    }

    const STORE: StoreId = StoreId(9);

    impl Bench {
        fn new(content_max: usize) -> Self {
            Self {
                table: PagedTable::new(TableId::Pieces, content_max, true),
                records: BTreeMap::new(),
                frozen: BTreeMap::new(),
                device: BTreeMap::new(),
                next: 1,
                sequence: 0,
                written: 0,
            }
        }

        fn put(&mut self, key: Key, record: Vec<u8>) {
            self.records.insert(key, record);
            self.table.touch(key);
        }

        fn take(&mut self, key: Key) {
            if self.records.remove(&key).is_some() {
                self.table.touch(key);
            }
        }

        fn freeze(&mut self) {
            self.frozen = self.records.clone();
            self.table.freeze();
            self.sequence += 1;
        }

        fn flush(&mut self) -> TableRoot {
            let context = PageContext {
                store: STORE,
                sequence: self.sequence,
            };
            let frozen = &self.frozen;
            let mut source = |from: Key, to: Option<Key>, each: &mut dyn FnMut(Key, &[u8])| {
                let all = frozen.range(from..);
                all.take_while(|(key, _)| to.is_none_or(|to| **key < to))
                    .for_each(|(key, record)| each(*key, record));
            };
            self.written = 0;
            while let Some(batch) = self.table.next_batch(&context, &mut source) {
                let mut places = Vec::new();
                for page in batch.pages() {
                    self.device.insert(self.next, page.to_vec());
                    self.device.insert(self.next + 1, page.to_vec());
                    places.push([Place(self.next), Place(self.next + 1)]);
                    self.next += 2;
                }
                self.written += places.len();
                for pointer in self.table.placed(batch, &places) {
                    for place in pointer.places {
                        assert!(self.device.remove(&place.0).is_some(), "freed twice");
                    }
                }
            }
            self.table.root()
        }

        /// Reads everything back and holds it against the frozen records.
        fn check(&self, root: &TableRoot) {
            let (mut table, mut wanted) = PagedTable::open(root, CONTENT_MAX, true);
            let mut found = BTreeMap::new();
            let mut pages = 0;
            while let Some(next) = wanted.pop() {
                pages += 1;
                let bytes = &self.device[&next.pointer.places[usize::from(pages % 2 == 0)].0];
                match table.load(&next, bytes, STORE).expect("whole") {
                    Loaded::Pages(more) => wanted.extend(more),
                    Loaded::Records { records, .. } => {
                        for (key, at) in records {
                            assert!(found.insert(key, bytes[at].to_vec()).is_none());
                        }
                    }
                }
            }
            assert_eq!(found, self.frozen);
            assert_eq!(pages * 2, self.device.len(), "no page is left over or lost");
            assert!(root.pages.len() <= ROOT_PAGES_MAX);
            let all: Vec<_> = table.pages().collect();
            assert_eq!(all, self.table.pages().collect::<Vec<_>>());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        /// Whatever is put and taken, before and after a freeze: what is read back is what was there
        /// at the freeze, and nothing but what is named stays on the device.
        #[test]
        fn what_is_read_back_is_what_was_frozen(
            content_max in prop::sample::select(vec![64, 200, CONTENT_MAX]),
            rounds in prop::collection::vec(
                prop::collection::vec((any::<bool>(), 0u128..3000, 0usize..60), 0..300), 1..12),
        ) {
            let mut bench = Bench::new(content_max);
            let mut late = Vec::new();
            for round in rounds {
                let mut all = std::mem::take(&mut late);
                all.extend(round);
                late = all.split_off(all.len() / 2);
                for (put, key, length) in all {
                    if put {
                        bench.put(key << 90, vec![7; length]);
                    } else {
                        bench.take(key << 90);
                    }
                }
                bench.freeze();
                for (put, key, length) in late.drain(..) {
                    if put {
                        bench.put(key << 90, vec![8; length]);
                    } else {
                        bench.take(key << 90);
                    }
                }
                let root = bench.flush();
                bench.check(&root);
            }
        }
    }

    #[test]
    fn one_change_writes_one_page_of_each_level() {
        let mut bench = Bench::new(CONTENT_MAX);
        for key in 0..100_000 {
            bench.put(key, vec![1; 20]);
        }
        bench.freeze();
        let root = bench.flush();
        bench.check(&root);
        assert_eq!(root.level, 1);
        let all = bench.written;
        bench.put(50_000, vec![2; 20]);
        bench.freeze();
        let root = bench.flush();
        bench.check(&root);
        assert!(all > 500 && bench.written == 2, "{all} {}", bench.written);
        for key in 1000..100_000 {
            bench.take(key);
        }
        bench.freeze();
        let root = bench.flush();
        bench.check(&root);
        assert_eq!((root.level, root.pages.len()), (0, 6));
        bench.freeze();
        bench.flush();
        assert_eq!(bench.written, 0);
    }

    #[test]
    fn a_page_that_is_not_written_is_missed() {
        let mut bench = Bench::new(CONTENT_MAX);
        bench.put(1, vec![1]);
        bench.freeze();
        bench.flush();
        bench.put(1, vec![2]);
        bench.freeze();
        bench.table.forget_one();
        let root = bench.flush();
        assert!(std::panic::catch_unwind(|| bench.check(&root)).is_err());
    }

    #[test]
    fn a_table_that_is_not_in_memory_grows_at_its_end_and_shrinks_at_its_beginning() {
        let mut table = PagedTable::new(TableId::Deaths, CONTENT_MAX, false);
        let mut next = 1;
        let mut written = Vec::new();
        let mut gone = Vec::new();
        for run in 1..200u128 {
            let context = PageContext {
                store: STORE,
                sequence: 1,
            };
            table.begin_page(run << 64);
            let mut source = |from: Key, _: Option<Key>, each: &mut dyn FnMut(Key, &[u8])| {
                assert_eq!(from >> 64, run, "no earlier page is asked for");
                for n in 0..3 {
                    each(from + n, &[0; 2000]);
                }
            };
            written.clear();
            while let Some(batch) = table.next_batch(&context, &mut source) {
                let places: Vec<_> = batch
                    .pages()
                    .map(|_| {
                        next += 1;
                        [Place(next), Place::NONE]
                    })
                    .collect();
                written.push(places.len());
                gone.extend(table.placed(batch, &places));
            }
            table.root();
            assert_eq!(written[0], 2);
            let bound = run.saturating_sub(150) << 64;
            gone.extend(table.drop_before(Some(bound)));
        }
        assert_eq!(table.leaf_count(), 151 * 2);
        assert_eq!(table.pages().count() + gone.len(), to_usize(next) - 1);
        let wanted = table.leaves_in((60 << 64) + 1, Some((61 << 64) + 1));
        let keys: Vec<_> = wanted.iter().map(|w| w.key >> 64).collect();
        assert_eq!(keys, [60, 60, 61]);
    }
}
