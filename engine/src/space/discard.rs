//! Subtrees that nothing needs any more, killed a few nodes at a time.

use crate::engine::Engine;
use crate::error::StoreError;
use crate::event::Effect;
use crate::format::checkpoint::DiscardEntry;
use crate::format::node::{LeafKind, FANOUT};
use crate::group::kill;
use crate::map::tree::{Missing, ANYWHERE};
use crate::readpath::NodeWaiter;
use esker_base::GroupId;

/// Nodes discarded in one step.
const DISCARDS_PER_STEP: usize = 32;

impl Engine {
    /// Kills blocks of subtrees that nothing needs any more, a few nodes at a time.
    pub(crate) fn discard_step(&mut self, effects: &mut Vec<Effect>) {
        for _ in 0..DISCARDS_PER_STEP {
            let Some(entry) = self.discards.last().copied() else {
                return;
            };
            let vaddr = entry.node.vaddr;
            let Some(node) = self.cache.get(&entry.node) else {
                if !self.node_waiters.contains_key(&vaddr) {
                    let missing = Missing {
                        pointer: entry.node,
                        level: entry.level,
                        first_lba: ANYWHERE,
                    };
                    self.fetch_discard(missing, effects);
                }
                return;
            };
            self.discards.pop();
            let mut result = kill(&mut self.segs, vaddr, 1);
            self.cache.remove(vaddr);
            for i in 0..FANOUT {
                if entry.level > 0 {
                    let child = node.child(i);
                    let level = entry.level - 1;
                    let owned = child.max_stamp > entry.floor || level >= entry.sure;
                    if !child.vaddr.is_none() && owned {
                        self.discards.push(DiscardEntry {
                            node: child,
                            level,
                            ..entry
                        });
                    }
                } else if node.leaf(i).kind == LeafKind::Data && node.leaf(i).stamp > entry.floor {
                    result = result.and(kill(&mut self.segs, node.leaf(i).vaddr, 1));
                }
            }
            if self.check(result, effects).is_none() {
                return;
            }
        }
        self.busy |= !self.discards.is_empty();
    }

    fn fetch_discard(&mut self, node: Missing, effects: &mut Vec<Effect>) {
        if !self.fetch_node(GroupId(0), node, NodeWaiter::Discard, effects) {
            let vaddr = node.pointer.vaddr;
            self.fence(
                StoreError::Map {
                    group: GroupId(0),
                    vaddr,
                },
                effects,
            );
        }
    }
}
