//! Deadlists in memory: where their entries are, and their sums. The entries themselves are on the
//! device, in pages that neighbours share. Deadlists change only while a checkpoint is written, so
//! that what it says of them is what they are.

use crate::format::dead::{encode, DeadEntry, DeadKind, ENTRIES_MAX};
use crate::format::versions::{Chunk, Deadlist, DeadlistId, Subtree};
use crate::format::VAddr;
use esker_base::num::to_u64;
use esker_base::{Stamp, StoreId};
use std::collections::{BTreeMap, BTreeSet};

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

    /// The deadlists for a checkpoint, those in use from `next` on left out.
    pub fn to_table(&self, next: u64) -> Vec<(DeadlistId, Deadlist)> {
        let lists = self.lists.range(..DeadlistId(next));
        lists.map(|(id, list)| (*id, list.clone())).collect()
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
    /// parent's parent.
    pub fn append(
        &mut self,
        id: DeadlistId,
        mut entries: Vec<DeadEntry>,
        grand: Stamp,
        store_id: StoreId,
        store: &mut dyn PageStore,
    ) -> Result<(), NoRoom> {
        entries.sort_unstable();
        let mut rest = &entries[..];
        while !rest.is_empty() {
            if self.open.len() == ENTRIES_MAX {
                self.flush(store_id, store)?;
            }
            let (now, later) = rest.split_at(rest.len().min(ENTRIES_MAX - self.open.len()));
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
            self.open_chunks.push((id, list.chunks.len()));
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
        }
        Ok(())
    }

    /// Adds parts that are to be taken apart later.
    pub fn add_subtrees(&mut self, id: DeadlistId, subtrees: Vec<Subtree>) {
        if !subtrees.is_empty() {
            self.lists.entry(id).or_default().subtrees.extend(subtrees);
            self.unexpanded.insert(id);
        }
    }

    /// Takes the last part of a list that is not taken apart.
    pub fn pop_subtree(&mut self, id: DeadlistId) -> Option<Subtree> {
        let list = self.lists.get_mut(&id)?;
        let subtree = list.subtrees.pop();
        if list.subtrees.is_empty() {
            self.unexpanded.remove(&id);
        }
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
            return;
        }
        let page = list.chunks.swap_remove(at).page;
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
        let from = self.lists.remove(&from);
        if from.is_none() && !self.lists.contains_key(&into) {
            return;
        }
        let from = from.unwrap_or_default();
        if !from.subtrees.is_empty() {
            self.unexpanded.insert(into);
        }
        let list = self.lists.entry(into).or_default();
        list.chunks.extend(from.chunks);
        list.subtrees.extend(from.subtrees);
        list.data += from.data;
        list.exclusive = exclusive;
        self.drop_if_empty(into);
    }

    /// Sets the sum that depends on where the owner's parent begins.
    pub fn set_exclusive(&mut self, id: DeadlistId, exclusive: u64) {
        if let Some(list) = self.lists.get_mut(&id) {
            list.exclusive = exclusive;
        }
    }

    /// Forgets a list; gives its parts that were not taken apart.
    pub fn forget(&mut self, id: DeadlistId, store: &mut dyn PageStore) -> Vec<Subtree> {
        self.unexpanded.remove(&id);
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
