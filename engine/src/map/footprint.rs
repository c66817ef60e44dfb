//! How many map nodes a merge may have to write: an upper bound that is known before the merge, so
//! that the log stops while a checkpoint still has room.

use super::tree::span;
use crate::format::dead::ENTRIES_MAX;
use crate::format::node::{FANOUT, FANOUT_BITS};
use esker_base::num::to_u64;
use esker_base::BlockRange;
use rustc_hash::FxHashSet;

/// The nodes over a set of ranges.
#[derive(Clone, Debug, Default)]
pub struct Footprint {
    /// By level; and by place in the level, with the number of cuts before the change.
    nodes: FxHashSet<(u8, u64)>,
    /// The top of all that was added.
    top: u8,
    /// There were several tops: the volume has grown.
    is_mixed: bool,
    /// Cuts among the changes.
    cuts: u64,
    /// Entries that deadlists may get.
    dead: u64,
}

/// Bits of a node's place in its level: the largest volume has 2^34 blocks.
const PLACE_BITS: u32 = 34;

/// Blocks of a hollow range whose leaves stay: those at its two ends.
const HOLLOW_BLOCKS_MAX: u64 = 2 * FANOUT as u64;

impl Footprint {
    /// Number of nodes.
    pub fn len(&self) -> u64 {
        to_u64(self.nodes.len())
    }

    /// Pages that deadlists may need for what these changes replace.
    pub fn dead_pages(&self) -> u64 {
        (self.dead + self.len()).div_ceil(to_u64(ENTRIES_MAX))
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.nodes.clear();
        (self.cuts, self.dead) = (0, 0);
    }

    /// A cut: the same nodes change once more after it.
    pub fn cut(&mut self) {
        self.cuts += 1;
    }

    /// A cut is among the changes.
    pub fn has_cut(&self) -> bool {
        self.cuts > 0
    }

    /// Adds the nodes that change when `range` of a tree with a root at `top` does. Of a hollow
    /// range (a discard) only the nodes at its two ends are written: those between disappear.
    pub fn add(&mut self, range: BlockRange, top: u8, hollow: bool) {
        if range.is_empty() {
            return;
        }
        if self.nodes.is_empty() {
            (self.top, self.is_mixed) = (top, false);
        }
        self.is_mixed |= self.top != top;
        self.dead += match hollow {
            true => range.count.min(HOLLOW_BLOCKS_MAX),
            false => range.count,
        };
        let era = self.cuts << PLACE_BITS;
        for level in 0..=top {
            let (first, last) = (
                node_at(level, range.start.0) | era,
                node_at(level, range.end() - 1) | era,
            );
            if first == last {
                // Whoever added this node added those above it as well, up to its top.
                if !self.nodes.insert((level, first)) && !self.is_mixed {
                    break;
                }
                continue;
            }
            if hollow {
                self.nodes.insert((level, first));
                self.nodes.insert((level, last));
            } else {
                self.nodes.extend((first..=last).map(|n| (level, n)));
            }
        }
    }

    /// At most so many nodes does [`Footprint::add`] add.
    pub fn most(range: BlockRange, top: u8, hollow: bool) -> u64 {
        let leaves = match hollow {
            true => 2,
            false => range.count / span(0) + 2,
        };
        leaves + 2 * u64::from(top)
    }

    /// At most so many pages of deadlists do changes of `nodes` nodes need.
    pub fn most_dead_pages(range: BlockRange, nodes: u64, hollow: bool) -> u64 {
        let blocks = match hollow {
            true => HOLLOW_BLOCKS_MAX.min(range.count),
            false => range.count,
        };
        (blocks + nodes).div_ceil(to_u64(ENTRIES_MAX))
    }
}

fn node_at(level: u8, lba: u64) -> u64 {
    lba >> (FANOUT_BITS * (u32::from(level) + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_each_node_once_and_only_the_ends_of_a_discard() {
        let mut f = Footprint::default();
        f.add(BlockRange::new(0, 1), 2, false);
        f.add(BlockRange::new(127, 2), 2, false);
        assert_eq!(f.len(), 4); // two leaves, one node on each level above
        f.cut();
        f.add(BlockRange::new(128, 1), 2, false);
        assert_eq!(f.len(), 7); // the same nodes again
        f.clear();
        f.add(BlockRange::new(5, 1 << 20), 2, true);
        assert_eq!(f.len(), 5);
        assert!(Footprint::most(BlockRange::new(5, 1 << 20), 2, true) >= 5);
    }
}
