//! Merging a delta into the tree: a walk over the delta in the order of LBAs that keeps one path of
//! new nodes in memory and can stop wherever a node is missing.

use super::delta::{Delta, Extent};
use super::interval::Piece;
use super::layer::Rehomed;
use super::tree::{child_index, held_node, level_for, span, summarise, Held, Missing};
use crate::format::node::{ChildPointer, LeafEntry, LeafKind, NodeHead, NodePage, FANOUT};
use crate::format::vaddr::VAddr;
use crate::format::versions::Subtree;
use esker_base::num::to_u64;
use esker_base::{GroupId, Stamp, StoreId};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What a merge asks of the store.
pub trait MergeStore {
    /// A node, if it is in memory.
    fn node(&mut self, pointer: &ChildPointer) -> Option<Arc<NodePage>>;
    /// Writes a new node; gives its address and CRC, or none when there is no room.
    fn write(&mut self, page: NodePage) -> Option<(VAddr, u32)>;
    /// A block that the merged tree no longer needs, and what replaces it.
    fn kill_block(&mut self, lba: u64, old: &LeafEntry, death: Stamp);
    /// A node that the merged tree no longer needs, and the highest stamp of what replaces it.
    fn kill_node(&mut self, old: &ChildPointer, level: u8, first_lba: u64, death: Stamp);
    /// A whole subtree that the merged tree no longer needs.
    fn discard(&mut self, subtree: Subtree);
    /// A page has a second address. `entry` is what the map has if it names the page by the first one. Gives
    /// whether the map is to name the second; the other one dies.
    fn rehome(&mut self, entry: Option<&LeafEntry>, rehomed: &Rehomed) -> bool;
}

/// What is merged.
#[derive(Clone, Copy, Debug)]
pub struct Brought<'a> {
    /// Extents.
    pub delta: &'a Delta,
    /// Pages with second addresses.
    pub rehomed: &'a BTreeSet<Rehomed>,
}

impl Brought<'_> {
    /// The first block from `from` on that something is brought for, and what of extents there is for it.
    fn next_from(&self, from: u64) -> Option<(u64, Option<Extent>)> {
        let extent = self.delta.next_from(from);
        let rehomed = self.rehomed(from, u64::MAX).next().map(|a| a.lba);
        match (extent, rehomed) {
            (Some((lba, _)), Some(rehomed)) if rehomed < lba => Some((rehomed, None)),
            (None, Some(rehomed)) => Some((rehomed, None)),
            (Some((lba, extent)), _) => Some((lba, Some(extent))),
            (None, None) => None,
        }
    }

    /// Of these blocks.
    fn rehomed(&self, from: u64, until: u64) -> impl Iterator<Item = &Rehomed> {
        let first = Rehomed {
            lba: from,
            old: VAddr::NONE,
            new: VAddr::NONE,
        };
        let all = self.rehomed.range(first..);
        all.take_while(move |a| a.lba < until)
    }
}

/// Why a merge stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A node must be read first.
    Missing(Missing),
    /// The work allowed for one step is done.
    Yield,
    /// No room for a node.
    NoSegment,
    /// Everything is merged.
    Done,
}

#[derive(Debug)]
struct Open {
    first_lba: u64,
    level: u8,
    page: NodePage,
    /// The node it replaces.
    old: ChildPointer,
    /// It is not what it was. Otherwise the old one stays.
    changed: bool,
}

/// A merge in progress.
#[derive(Debug)]
pub struct Merge {
    store: StoreId,
    group: GroupId,
    /// Nodes get a cryptographic hash.
    is_strong: bool,
    /// Root so far; final when the merge is done.
    pub root: ChildPointer,
    /// Its level.
    pub root_level: u8,
    path: Vec<Open>,
    cursor: u64,
    /// Nodes held until the walk is past them.
    pub held: Held,
}

impl Merge {
    /// A merge into this tree, for a volume of `blocks` blocks.
    pub fn new(
        (store, group, is_strong): (StoreId, GroupId, bool),
        root: ChildPointer,
        root_level: u8,
        blocks: u64,
    ) -> Self {
        let mut merge = Self {
            store,
            group,
            is_strong,
            root,
            root_level,
            path: Vec::new(),
            cursor: 0,
            held: Held::new(),
        };
        merge.grow(level_for(blocks));
        merge
    }

    /// Raises the root until it has the level the volume needs.
    fn grow(&mut self, level: u8) {
        if self.root.vaddr.is_none() {
            self.root_level = self.root_level.max(level);
            return;
        }
        // The old root becomes the first child of nodes that are open from the start; the walk
        // closes them like any other.
        let mut wanted = level;
        while wanted > self.root_level {
            let mut page = self.empty(wanted, 0);
            if wanted == self.root_level + 1 {
                page.set_child(0, &self.root);
            }
            self.path.push(Open {
                first_lba: 0,
                level: wanted,
                page,
                old: ChildPointer::default(),
                changed: true,
            });
            wanted -= 1;
        }
        self.root_level = self.root_level.max(level);
    }

    fn empty(&self, level: u8, first_lba: u64) -> NodePage {
        NodePage::empty(&NodeHead {
            level,
            store: self.store,
            group: self.group,
            first_lba,
            is_strong: self.is_strong,
        })
    }

    /// Merges on, touching at most `leaves_max` leaves.
    pub fn run(
        &mut self,
        brought: Brought<'_>,
        store: &mut dyn MergeStore,
        leaves_max: usize,
    ) -> Stop {
        for _ in 0..leaves_max {
            let Some((lba, extent)) = brought.next_from(self.cursor) else {
                return match self.close_until(store, |_| false) {
                    Some(stop) => stop,
                    None => Stop::Done,
                };
            };
            let keep =
                |open: &Open| (open.first_lba..open.first_lba + span(open.level)).contains(&lba);
            if let Some(stop) = self.close_until(store, keep) {
                return stop;
            }
            match self.descend(lba, extent.as_ref(), store) {
                Ok(Some(next)) => {
                    // What was discarded needs no other address.
                    for rehomed in brought.rehomed(lba, next) {
                        store.rehome(None, rehomed);
                    }
                    self.cursor = next;
                }
                Ok(None) => {
                    let next = self.fill_leaf(brought, store);
                    self.cursor = next;
                }
                Err(stop) => return stop,
            }
        }
        Stop::Yield
    }

    /// Closes open nodes from the lowest up, as long as `keep` does not hold for them.
    fn close_until(
        &mut self,
        store: &mut dyn MergeStore,
        keep: impl Fn(&Open) -> bool,
    ) -> Option<Stop> {
        while self.path.last().is_some_and(|open| !keep(open)) {
            let mut open = self.path.pop()?;
            if !open.changed {
                self.held.remove(&open.old.vaddr);
                continue;
            }
            if self.is_strong {
                open.page.make_strong();
            }
            let mut pointer = summarise(&open.page);
            if pointer.live > 0 {
                let Some((vaddr, crc)) = store.write(open.page.with_hash(pointer.logical_hash))
                else {
                    return Some(Stop::NoSegment);
                };
                (pointer.vaddr, pointer.crc) = (vaddr, crc);
            }
            if !open.old.vaddr.is_none() {
                self.held.remove(&open.old.vaddr);
                store.kill_node(&open.old, open.level, open.first_lba, pointer.max_stamp);
            }
            match self.path.last_mut() {
                Some(parent) => {
                    let i = child_index(parent.level, open.first_lba);
                    parent.page.set_child(i, &pointer);
                    parent.changed = true;
                }
                None => self.root = pointer,
            }
        }
        None
    }

    /// Opens nodes down to the leaf of `lba`. A discard that covers a whole child replaces it and
    /// gives the block to go on from.
    fn descend(
        &mut self,
        lba: u64,
        extent: Option<&Extent>,
        store: &mut dyn MergeStore,
    ) -> Result<Option<u64>, Stop> {
        loop {
            let (pointer, level, first_lba) = match self.path.last() {
                None => (self.root, self.root_level, 0),
                Some(open) if open.level == 0 => return Ok(None),
                Some(open) => {
                    let i = child_index(open.level, lba);
                    let first = open.first_lba + to_u64(i) * span(open.level - 1);
                    (open.page.child(i), open.level - 1, first)
                }
            };
            let covers = |extent: &&Extent| {
                let covers = lba == first_lba && extent.count() >= span(level);
                covers && extent.kind != LeafKind::Data
            };
            if let Some(extent) = extent.filter(covers) {
                if !pointer.vaddr.is_none() {
                    store.discard(Subtree {
                        node: pointer,
                        level,
                        first_lba,
                        death: extent.stamp,
                    });
                }
                let max_stamp = pointer.max_stamp.max(extent.stamp);
                let empty = ChildPointer {
                    max_stamp,
                    ..ChildPointer::default()
                };
                match self.path.last_mut() {
                    Some(parent) => {
                        let i = child_index(parent.level, lba);
                        parent.page.set_child(i, &empty);
                        parent.changed = true;
                    }
                    None => self.root = empty,
                }
                return Ok(Some(first_lba + span(level)));
            }
            let page = if pointer.vaddr.is_none() {
                self.blank_under(&pointer, level, first_lba)
            } else {
                let held = held_node(&self.held, &pointer);
                match held.or_else(|| store.node(&pointer)) {
                    Some(node) => node.as_ref().clone(),
                    None => {
                        return Err(Stop::Missing(Missing {
                            pointer,
                            level,
                            first_lba,
                        }))
                    }
                }
            };
            self.path.push(Open {
                first_lba,
                level,
                page,
                old: pointer,
                changed: false,
            });
        }
    }

    /// A node for an empty range: every child or block keeps the stamp of the discard that emptied
    /// it, so that the range's highest stamp never goes back.
    fn blank_under(&self, pointer: &ChildPointer, level: u8, first_lba: u64) -> NodePage {
        let mut page = self.empty(level, first_lba);
        if pointer.max_stamp.0 != 0 {
            for i in 0..FANOUT {
                if level == 0 {
                    let kind = LeafKind::Discarded;
                    page.set_leaf(
                        i,
                        &LeafEntry {
                            kind,
                            stamp: pointer.max_stamp,
                            ..LeafEntry::default()
                        },
                    );
                } else {
                    let max_stamp = pointer.max_stamp;
                    page.set_child(
                        i,
                        &ChildPointer {
                            max_stamp,
                            ..ChildPointer::default()
                        },
                    );
                }
            }
        }
        page
    }

    /// Puts everything that is brought for the open leaf into it; gives the block after it.
    fn fill_leaf(&mut self, brought: Brought<'_>, store: &mut dyn MergeStore) -> u64 {
        let Some(open) = self.path.last_mut() else {
            return self.cursor;
        };
        let first = open.first_lba;
        let range = esker_base::BlockRange::new(first, span(0));
        for (lba, extent) in brought.delta.overlapping(range) {
            open.changed = true;
            for i in 0..extent.count() {
                let at = child_index(0, lba + i);
                let (old, new) = (open.page.leaf(at), extent.leaf(i));
                if old.kind == LeafKind::Data {
                    store.kill_block(lba + i, &old, new.stamp);
                }
                open.page.set_leaf(at, &new);
            }
        }
        for rehomed in brought.rehomed(first, first + span(0)) {
            let at = child_index(0, rehomed.lba);
            let entry = open.page.leaf(at);
            let here = entry.kind == LeafKind::Data && entry.vaddr == rehomed.old;
            if store.rehome(here.then_some(&entry), rehomed) {
                let vaddr = rehomed.new;
                open.page.set_leaf(at, &LeafEntry { vaddr, ..entry });
                open.changed = true;
            }
        }
        first + span(0)
    }
}
