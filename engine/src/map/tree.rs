//! Reading the radix tree.

use super::cache::NodeCache;
use crate::format::node::{ChildPointer, LeafKind, NodePage, FANOUT, FANOUT_BITS};
use crate::format::operation::Authenticator;
use crate::format::vaddr::VAddr;
use aws_lc_rs::digest;
use esker_base::num::{to_u64, to_usize};
use esker_base::BlockRange;
use esker_base::Stamp;
use std::collections::BTreeMap;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// What a cryptographic hash of a node begins with.
const STRONG_DOMAIN: &[u8] = b"esker node 1";

/// Blocks under a node of this level.
pub const fn span(level: u8) -> u64 {
    1 << (FANOUT_BITS * (level as u32 + 1))
}

/// Lowest level of a root whose range covers `blocks` blocks.
pub fn level_for(blocks: u64) -> u8 {
    (0..crate::format::node::LEVEL_MAX)
        .find(|level| span(*level) >= blocks)
        .unwrap_or(crate::format::node::LEVEL_MAX)
}

/// Which child of a node at `level` holds `lba`.
pub fn child_index(level: u8, lba: u64) -> usize {
    to_usize(lba >> (FANOUT_BITS * u32::from(level))) & (FANOUT - 1)
}

/// A run of blocks as the tree has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeRun {
    /// Reads as zeros.
    Zeros {
        /// First block.
        lba: u64,
        /// Blocks.
        count: u64,
    },
    /// One stored block.
    Data {
        /// The block.
        lba: u64,
        /// Where.
        vaddr: VAddr,
        /// What proves it.
        auth: Authenticator,
        /// Its version.
        stamp: Stamp,
    },
}

/// As `first_lba` of [`Missing`]: whoever needs the node knows it by its checksum alone.
pub const ANYWHERE: u64 = u64::MAX;

/// A node that is needed and not in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The pointer to it.
    pub pointer: ChildPointer,
    /// Its level.
    pub level: u8,
    /// First block of its range, or [`ANYWHERE`].
    pub first_lba: u64,
}

/// Nodes that a request holds on to, so that eviction cannot starve it.
pub type Held = BTreeMap<VAddr, Arc<NodePage>>;

/// A node that a request holds.
pub fn held_node(held: &Held, pointer: &ChildPointer) -> Option<Arc<NodePage>> {
    let node = held.get(&pointer.vaddr);
    node.filter(|node| node.is_named_by(pointer)).cloned()
}

/// Looks blocks up in a tree.
pub struct Lookup<'a> {
    /// Nodes in memory.
    pub cache: &'a mut NodeCache,
    /// Nodes held by the request.
    pub held: &'a Held,
    /// What was found, by block.
    pub runs: Vec<TreeRun>,
    /// What has to be read first.
    pub missing: Vec<Missing>,
}

impl Lookup<'_> {
    /// Walks everything under `pointer` that lies in `range`.
    pub fn walk(&mut self, pointer: &ChildPointer, level: u8, first_lba: u64, range: BlockRange) {
        let lo = range.start.0.max(first_lba);
        let hi = range.end().min(first_lba + span(level));
        if lo >= hi {
            return;
        }
        if pointer.vaddr.is_none() {
            self.zeros(lo, hi - lo);
            return;
        }
        let held = held_node(self.held, pointer);
        let Some(node) = held.or_else(|| self.cache.get(pointer)) else {
            self.missing.push(Missing {
                pointer: *pointer,
                level,
                first_lba,
            });
            return;
        };
        if level == 0 {
            for lba in lo..hi {
                let entry = node.leaf(to_usize(lba - first_lba));
                match entry.kind {
                    LeafKind::Data => {
                        self.runs.push(TreeRun::Data {
                            lba,
                            vaddr: entry.vaddr,
                            auth: entry.auth,
                            stamp: entry.stamp,
                        });
                    }
                    _ => self.zeros(lba, 1),
                }
            }
            return;
        }
        let child_span = span(level - 1);
        for i in
            to_usize((lo - first_lba) / child_span)..=to_usize((hi - 1 - first_lba) / child_span)
        {
            let child_first = first_lba + to_u64(i) * child_span;
            self.walk(&node.child(i), level - 1, child_first, range);
        }
    }

    fn zeros(&mut self, lba: u64, count: u64) {
        if let Some(TreeRun::Zeros {
            lba: first,
            count: run,
        }) = self.runs.last_mut()
        {
            if *first + *run == lba {
                *run += count;
                return;
            }
        }
        self.runs.push(TreeRun::Zeros { lba, count });
    }
}

/// Walks a tree from `root`, as [`Lookup::walk`]; blocks past the root's span read as zeros.
pub fn lookup(walk: &mut Lookup<'_>, root: &ChildPointer, root_level: u8, range: BlockRange) {
    walk.walk(root, root_level, 0, range);
    let end = span(root_level);
    if range.end() > end {
        let from = range.start.0.max(end);
        walk.zeros(from, range.end() - from);
    }
}

/// What a pointer to a node says of it: highest stamp, hash and number of data blocks.
pub fn summarise(node: &NodePage) -> ChildPointer {
    let mut pointer = ChildPointer::default();
    let is_strong = node.is_strong();
    let mut hashed = Vec::with_capacity(FANOUT * 32 + 32);
    if is_strong {
        // What a hash is of is in it: a node stands for no other place, and no leaf for an inner node.
        hashed.extend_from_slice(STRONG_DOMAIN);
        hashed.push(node.level());
        hashed.extend_from_slice(&node.first_lba().to_le_bytes());
    }
    for i in 0..FANOUT {
        if node.level() == 0 {
            let entry = node.leaf(i);
            pointer.max_stamp = pointer.max_stamp.max(entry.stamp);
            if entry.kind == LeafKind::Data {
                pointer.live += 1;
                hashed.extend_from_slice(&(node.first_lba() + to_u64(i)).to_le_bytes());
                hashed.extend_from_slice(&entry.stamp.0.to_le_bytes());
                hashed.extend_from_slice(&entry.auth);
            }
        } else {
            let child = node.child(i);
            pointer.max_stamp = pointer.max_stamp.max(child.max_stamp);
            pointer.live += child.live;
            if child.live > 0 {
                hashed.extend_from_slice(&to_u64(i).to_le_bytes());
                hashed.extend_from_slice(&child.logical_hash.to_le_bytes());
                if is_strong {
                    hashed.push(u8::from(child.is_strong));
                    hashed.extend_from_slice(&child.live.to_le_bytes());
                }
            }
        }
    }
    if pointer.live > 0 {
        pointer.is_strong = is_strong;
        pointer.logical_hash = match is_strong {
            true => strong_hash(&hashed),
            false => xxh3_64(&hashed),
        };
    }
    pointer
}

/// The first 64 bits of SHA-256.
fn strong_hash(bytes: &[u8]) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&digest::digest(&digest::SHA256, bytes).as_ref()[..8]);
    u64::from_le_bytes(first)
}

/// Whether a node is what a pointer with a cryptographic hash says. Of the others it is not asked: their
/// hash is no obstacle to who wants to deceive, and the page's CRC is enough against accidents.
pub fn is_vouched_by(node: &NodePage, pointer: &ChildPointer) -> bool {
    if node.is_strong() != pointer.is_strong {
        return false;
    }
    !pointer.is_strong || agrees(&summarise(node), pointer)
}

/// Whether a pointer says of a node what the node says.
pub fn agrees(sum: &ChildPointer, pointer: &ChildPointer) -> bool {
    sum.max_stamp == pointer.max_stamp
        && sum.logical_hash == pointer.logical_hash
        && sum.live == pointer.live
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::node::{LeafEntry, NodeHead};

    /// Addresses are not in what the hashes cover, so what is found by its address is compared with the pointer.
    #[test]
    fn a_node_in_memory_is_given_only_to_pointers_that_name_it() {
        let leaf = |first_lba, is_strong, stamp| {
            let mut page = NodePage::empty(&NodeHead {
                first_lba,
                is_strong,
                ..NodeHead::default()
            });
            let entry = LeafEntry {
                kind: LeafKind::Data,
                vaddr: VAddr(9),
                stamp: Stamp(stamp),
                auth: [7; 16],
            };
            page.set_leaf(3, &entry);
            page
        };
        let vaddr = VAddr(5);
        let pointer_to = |page: &NodePage| ChildPointer {
            vaddr,
            ..summarise(page)
        };
        let page = leaf(128, true, 4);
        let pointer = pointer_to(&page);
        assert!(pointer.is_strong && is_vouched_by(&page, &pointer));
        let page = Arc::new(page.with_hash(pointer.logical_hash));
        let mut cache = NodeCache::new(0);
        cache.insert(vaddr, page.clone(), false);
        let held = Held::from([(vaddr, page)]);
        assert!(cache.get(&pointer).is_some() && held_node(&held, &pointer).is_some());
        for other in [leaf(256, true, 4), leaf(128, true, 3), leaf(128, false, 4)] {
            let named = pointer_to(&other);
            assert!(cache.get(&named).is_none() && held_node(&held, &named).is_none());
            assert!(!is_vouched_by(&other, &pointer), "{named:?}");
        }
    }

    #[test]
    fn levels_cover_the_sizes_they_are_for() {
        assert_eq!(level_for(1), 0);
        assert_eq!(level_for(129), 1);
        assert_eq!(level_for((1 << 40) / 4096), 3);
        assert_eq!(level_for((64 << 40) / 4096), 4);
        assert_eq!(child_index(1, 129), 1);
    }
}
