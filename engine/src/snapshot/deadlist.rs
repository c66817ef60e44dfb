//! Deadlists in memory: where their entries are, and their sums. The entries themselves are on the
//! device, in pages that neighbours share. Deadlists change only while a checkpoint is written, so
//! that what it says of them is what they are.

use crate::format::dead::{encode, DeadEntry, DeadKind, ENTRIES_MAX};
use crate::format::table::Key;
use crate::format::version_records::{
    chunk_key, encode_deadlist, list_header_key, subtree_key, LIST_BITS,
};
use crate::format::versions::{Chunk, Deadlist, DeadlistId, Subtree};
use crate::format::VAddr;
use esker_base::num::to_u64;
use esker_base::{Stamp, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Where pages of entries are written.
pub trait PageStore {
    /// Writes a page; gives its address and CRC, or none when there is no room.
    fn write_page(&mut self, bytes: Box<[u8]>) -> Option<(VAddr, u32)>;
    /// Nothing in a page is needed any more.
    fn drop_page(&mut self, page: VAddr);
}

/// There is no room for a page of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

/// All deadlists of a store. An empty one is not there.
#[derive(Debug, Default)]
pub struct Deadlists {
    lists: BTreeMap<DeadlistId, Deadlist>,
    /// Lists with subtrees.
    unexpanded: BTreeSet<DeadlistId>,
    /// Chunks in each page.
    pages: BTreeMap<VAddr, u32>,
    /// The page being filled, and the chunks in it.
    open: Vec<DeadEntry>,
    open_chunks: Vec<(DeadlistId, usize)>,
    /// Keys of the records that the checkpoint on its way writes.
    changed: BTreeSet<Key>,
    /// Lists whose sums changed.
    stale: BTreeSet<DeadlistId>,
}

fn is_data(entry: &&DeadEntry) -> bool {
    entry.kind == DeadKind::Data
}

impl Deadlists {
    /// The deadlists of a checkpoint.
    pub fn from_table(lists: Vec<(DeadlistId, Deadlist)>) -> Self {
        let mut this = Self {
            lists: lists.into_iter().collect(),
            ..Self::default()
        };
        for (id, list) in &this.lists {
            if !list.subtrees.is_empty() {
                this.unexpanded.insert(*id);
            }
            for chunk in &list.chunks {
                *this.pages.entry(chunk.page).or_default() += 1;
            }
        }
        this
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (DeadlistId, &Deadlist)> {
        self.lists.iter().map(|(id, list)| (*id, list))
    }

    /// The records of deadlists with keys from one on to before another; those in use from `next` on
    /// are left out.
    pub fn records(&self, next: u64, from: Key, to: Option<Key>, each: &mut dyn FnMut(Key, &[u8])) {
        let first = u64::try_from(from >> LIST_BITS).unwrap_or(u64::MAX);
        let lists = self
            .lists
            .range(DeadlistId(first.min(next))..DeadlistId(next));
        let before_end = |id: DeadlistId| to.is_none_or(|to| list_header_key(id) < to);
        for (id, list) in lists.take_while(|(id, _)| before_end(**id)) {
            encode_deadlist(*id, list, from, to, each);
        }
    }

    /// Every record is written by the next checkpoint.
    pub fn mark_all(&mut self) {
        for (id, list) in &self.lists {
            self.changed.insert(list_header_key(*id));
            let chunks = (0..list.chunks.len()).map(|n| chunk_key(*id, n));
            let subtrees = (0..list.subtrees.len()).map(|n| subtree_key(*id, n));
            self.changed.extend(chunks.chain(subtrees));
        }
    }

    /// Keys of the records that changed since this was asked last.
    pub fn take_changed(&mut self) -> BTreeSet<Key> {
        std::mem::take(&mut self.changed)
    }

    /// Lists whose sums changed since this was asked last.
    pub fn take_stale(&mut self) -> BTreeSet<DeadlistId> {
        std::mem::take(&mut self.stale)
    }

    fn mark_header(&mut self, id: DeadlistId) {
        self.changed.insert(list_header_key(id));
        self.stale.insert(id);
    }

    /// The sums of a list changed, and these of its chunks: they are new, gone or different.
    fn mark_chunks(&mut self, id: DeadlistId, chunks: Range<usize>) {
        self.mark_header(id);
        self.changed.extend(chunks.map(|n| chunk_key(id, n)));
    }

    fn mark_subtrees(&mut self, id: DeadlistId, subtrees: Range<usize>) {
        self.mark_header(id);
        self.changed.extend(subtrees.map(|n| subtree_key(id, n)));
    }

    /// One of them.
    pub fn get(&self, id: DeadlistId) -> Option<&Deadlist> {
        self.lists.get(&id)
    }

    /// A list that has subtrees.
    pub fn unexpanded(&self) -> Option<DeadlistId> {
        self.unexpanded.first().copied()
    }

    /// Appends entries, which are put into the order of births. `grand` is the cut of the owner's
    /// parent's parent; no run of entries lies across `stays`.
    pub fn append(
        &mut self,
        id: DeadlistId,
        mut entries: Vec<DeadEntry>,
        (grand, stays): (Stamp, Stamp),
        store_id: StoreId,
        store: &mut dyn PageStore,
    ) -> Result<(), NoRoom> {
        entries.sort_unstable();
        let mut rest = &entries[..];
        while !rest.is_empty() {
            if self.open.len() == ENTRIES_MAX {
                self.flush(store_id, store)?;
            }
            let older = rest.partition_point(|e| e.birth <= stays);
            let run = if older > 0 { older } else { rest.len() };
            let (now, later) = rest.split_at(run.min(ENTRIES_MAX - self.open.len()));
            rest = later;
            let (Some(oldest), Some(youngest)) = (now.first(), now.last()) else {
                break;
            };
            let data = now.iter().filter(is_data).count();
            let exclusive = now
                .iter()
                .filter(is_data)
                .filter(|e| e.birth > grand)
                .count();
            let list = self.lists.entry(id).or_default();
            list.data += to_u64(data);
            list.exclusive += to_u64(exclusive);
            let count = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
            let at = list.chunks.len();
            self.open_chunks.push((id, at));
            list.chunks.push(Chunk {
                page: VAddr::NONE,
                crc: 0,
                first: count(self.open.len()),
                count: count(now.len()),
                data: count(data),
                oldest: oldest.birth,
                youngest: youngest.birth,
            });
            self.open.extend_from_slice(now);
            self.mark_chunks(id, at..at + 1);
        }
        Ok(())
    }

    /// Adds parts that are to be taken apart later.
    pub fn add_subtrees(&mut self, id: DeadlistId, subtrees: Vec<Subtree>) {
        if !subtrees.is_empty() {
            let all = &mut self.lists.entry(id).or_default().subtrees;
            let before = all.len();
            all.extend(subtrees);
            let changed = before..all.len();
            self.mark_subtrees(id, changed);
            self.unexpanded.insert(id);
        }
    }

    /// Takes the last part of a list that is not taken apart.
    pub fn pop_subtree(&mut self, id: DeadlistId) -> Option<Subtree> {
        let list = self.lists.get_mut(&id)?;
        let subtree = list.subtrees.pop();
        let left = list.subtrees.len();
        if left == 0 {
            self.unexpanded.remove(&id);
        }
        self.mark_subtrees(id, left..left + 1);
        self.drop_if_empty(id);
        subtree
    }

    fn drop_if_empty(&mut self, id: DeadlistId) {
        let empty = |list: &Deadlist| list.chunks.is_empty() && list.subtrees.is_empty();
        if self.lists.get(&id).is_some_and(empty) {
            self.lists.remove(&id);
        }
    }

    /// Writes what is gathered. Afterwards every chunk has its page.
    pub fn flush(&mut self, store_id: StoreId, store: &mut dyn PageStore) -> Result<(), NoRoom> {
        if self.open.is_empty() {
            return Ok(());
        }
        let bytes = encode(store_id, &self.open);
        let (page, crc) = store.write_page(bytes).ok_or(NoRoom)?;
        for (id, at) in self.open_chunks.drain(..) {
            let chunk = self.lists.get_mut(&id).and_then(|l| l.chunks.get_mut(at));
            if let Some(chunk) = chunk {
                (chunk.page, chunk.crc) = (page, crc);
                *self.pages.entry(page).or_default() += 1;
                self.changed.insert(chunk_key(id, at));
            }
        }
        self.open.clear();
        Ok(())
    }

    /// Of a chunk, only the first `keep` entries are left; `data` of those are data. Gives how many
    /// data entries went.
    pub fn shorten(
        &mut self,
        id: DeadlistId,
        at: usize,
        kept: &[DeadEntry],
        store: &mut dyn PageStore,
    ) {
        let Some(list) = self.lists.get_mut(&id) else {
            return;
        };
        let Some(chunk) = list.chunks.get_mut(at) else {
            return;
        };
        let data = kept.iter().filter(is_data).count();
        let gone = u64::from(chunk.data) - to_u64(data);
        list.data -= gone;
        list.exclusive = list.exclusive.saturating_sub(gone);
        chunk.count = u16::try_from(kept.len()).unwrap_or(u16::MAX);
        chunk.data = u16::try_from(data).unwrap_or(u16::MAX);
        if let Some(last) = kept.last() {
            chunk.youngest = last.birth;
            return self.mark_chunks(id, at..at + 1);
        }
        let page = list.chunks.swap_remove(at).page;
        let last = list.chunks.len();
        self.mark_chunks(id, at..at + 1);
        self.mark_chunks(id, last..last + 1);
        self.release(page, store);
        self.drop_if_empty(id);
    }

    fn release(&mut self, page: VAddr, store: &mut dyn PageStore) {
        if let Some(count) = self.pages.get_mut(&page) {
            *count -= 1;
            if *count == 0 {
                self.pages.remove(&page);
                store.drop_page(page);
            }
        }
    }

    /// The entries of `from` are those of `into` from now on, of which `exclusive` blocks are younger
    /// than the parent's parent of its owner.
    pub fn join(&mut self, from: DeadlistId, into: DeadlistId, exclusive: u64) {
        self.unexpanded.remove(&from);
        self.mark_gone(from);
        let from = self.lists.remove(&from);
        if from.is_none() && !self.lists.contains_key(&into) {
            return;
        }
        let from = from.unwrap_or_default();
        if !from.subtrees.is_empty() {
            self.unexpanded.insert(into);
        }
        let list = self.lists.entry(into).or_default();
        let before = (list.chunks.len(), list.subtrees.len());
        list.chunks.extend(from.chunks);
        list.subtrees.extend(from.subtrees);
        list.data += from.data;
        list.exclusive = exclusive;
        let (chunks, subtrees) = (list.chunks.len(), list.subtrees.len());
        self.mark_chunks(into, before.0..chunks);
        self.mark_subtrees(into, before.1..subtrees);
        self.drop_if_empty(into);
    }

    /// Sets the sum that depends on where the owner's parent begins.
    pub fn set_exclusive(&mut self, id: DeadlistId, exclusive: u64) {
        if let Some(list) = self.lists.get_mut(&id).filter(|l| l.exclusive != exclusive) {
            list.exclusive = exclusive;
            self.changed.insert(list_header_key(id));
        }
    }

    /// All records of a list go.
    fn mark_gone(&mut self, id: DeadlistId) {
        let counts = self
            .lists
            .get(&id)
            .map(|l| (l.chunks.len(), l.subtrees.len()));
        if let Some((chunks, subtrees)) = counts {
            self.mark_chunks(id, 0..chunks);
            self.mark_subtrees(id, 0..subtrees);
        }
    }

    /// Forgets a list; gives its parts that were not taken apart.
    pub fn forget(&mut self, id: DeadlistId, store: &mut dyn PageStore) -> Vec<Subtree> {
        self.unexpanded.remove(&id);
        self.mark_gone(id);
        let Some(list) = self.lists.remove(&id) else {
            return Vec::new();
        };
        for chunk in list.chunks {
            self.release(chunk.page, store);
        }
        list.subtrees
    }

    /// Pages that hold entries.
    pub fn pages(&self) -> impl Iterator<Item = VAddr> + '_ {
        self.pages.keys().copied()
    }
}
