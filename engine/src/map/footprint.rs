//! How many map nodes a merge may have to write: an upper bound that is known before the merge, so
//! that the log stops while a checkpoint still has room.

use super::tree::span;
use crate::format::node::FANOUT_BITS;
use esker_base::BlockRange;
use rustc_hash::FxHashSet;

/// The nodes over a set of ranges.
#[derive(Clone, Debug, Default)]
pub struct Footprint {
    nodes: FxHashSet<(u8, u64)>,
    /// The top of all that was added.
    top: u8,
    /// There were several tops: the volume has grown.
    is_mixed: bool,
}

impl Footprint {
    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.nodes.clear();
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
        for level in 0..=top {
            let (first, last) = (
                node_at(level, range.start.0),
                node_at(level, range.end() - 1),
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
        f.clear();
        f.add(BlockRange::new(5, 1 << 20), 2, true);
        assert_eq!(f.len(), 5);
        assert!(Footprint::most(BlockRange::new(5, 1 << 20), 2, true) >= 5);
    }
}
