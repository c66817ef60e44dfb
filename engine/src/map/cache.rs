//! The cache of map nodes: a fixed number of pages, second-chance eviction.

use crate::format::node::{ChildPointer, NodePage};
use crate::format::vaddr::VAddr;
use crate::format::PAGE;
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::sync::Arc;

#[derive(Debug)]
struct Slot {
    page: Arc<NodePage>,
    used: bool,
    /// Not on the device yet: must stay.
    unwritten: bool,
}

/// Map nodes in memory. Holds at most its budget, and in addition those not written yet, whose
/// number the checkpoint bounds.
#[derive(Debug)]
pub struct NodeCache {
    slots: FxHashMap<VAddr, Slot>,
    clock: VecDeque<VAddr>,
    nodes_max: usize,
    /// Nodes not on the device yet; they are not in the clock.
    unwritten: usize,
    /// Lookups answered.
    pub hits: u64,
    /// Lookups that need a read.
    pub misses: u64,
}

impl NodeCache {
    /// A cache of `bytes` bytes, at least 64 nodes.
    pub fn new(bytes: usize) -> Self {
        Self {
            slots: FxHashMap::default(),
            clock: VecDeque::new(),
            unwritten: 0,
            nodes_max: (bytes / PAGE).max(64),
            hits: 0,
            misses: 0,
        }
    }

    /// Nodes that it holds.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Nodes that it may hold of those on the device.
    pub fn nodes_max(&self) -> usize {
        self.nodes_max
    }

    /// The node that a pointer names, if it is here.
    pub fn get(&mut self, pointer: &ChildPointer) -> Option<Arc<NodePage>> {
        match self.slots.get_mut(&pointer.vaddr) {
            Some(slot) if slot.page.is_named_by(pointer) => {
                slot.used = true;
                self.hits += 1;
                Some(slot.page.clone())
            }
            Some(_) | None => {
                self.misses += 1;
                None
            }
        }
    }

    /// The node at `vaddr`, if it is not on the device yet.
    pub fn unwritten(&self, vaddr: VAddr) -> Option<Arc<NodePage>> {
        let slot = self.slots.get(&vaddr).filter(|slot| slot.unwritten);
        slot.map(|slot| slot.page.clone())
    }

    /// Puts a node in.
    pub fn insert(&mut self, vaddr: VAddr, page: Arc<NodePage>, unwritten: bool) {
        let slot = Slot {
            page,
            used: false,
            unwritten,
        };
        let before = self.slots.insert(vaddr, slot);
        self.unwritten += usize::from(unwritten);
        self.unwritten -= usize::from(before.as_ref().is_some_and(|b| b.unwritten));
        if !unwritten && before.is_none_or(|b| b.unwritten) {
            self.clock.push_back(vaddr);
        }
        self.evict();
    }

    /// A node written by the checkpoint has reached the device.
    pub fn written(&mut self, vaddr: VAddr) {
        if let Some(slot) = self.slots.get_mut(&vaddr).filter(|s| s.unwritten) {
            slot.unwritten = false;
            self.unwritten -= 1;
            self.clock.push_back(vaddr);
            self.evict();
        }
    }

    /// A node died.
    pub fn remove(&mut self, vaddr: VAddr) {
        let gone = self.slots.remove(&vaddr);
        self.unwritten -= usize::from(gone.is_some_and(|s| s.unwritten));
    }

    /// Evicts until the nodes that can go are within the budget. Each turn of the clock takes a node
    /// out or takes its second chance away, and nodes that must stay are not in it.
    fn evict(&mut self) {
        while self.slots.len() - self.unwritten > self.nodes_max {
            let Some(vaddr) = self.clock.pop_front() else {
                return;
            };
            match self.slots.get_mut(&vaddr) {
                Some(slot) if slot.used => {
                    slot.used = false;
                    self.clock.push_back(vaddr);
                }
                Some(slot) if !slot.unwritten => {
                    self.slots.remove(&vaddr);
                }
                _ => {}
            }
        }
        // Removed nodes leave their place in the clock; sweep when they outnumber the rest.
        if self.clock.len() > 2 * self.slots.len() + 64 {
            let slots = &self.slots;
            self.clock.retain(|vaddr| slots.contains_key(vaddr));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::node::NodeHead;

    #[test]
    fn stays_within_its_budget_and_keeps_what_is_not_written() {
        let page = Arc::new(NodePage::empty(&NodeHead::default()));
        let mut cache = NodeCache::new(0);
        cache.insert(VAddr(1), page.clone(), true);
        for i in 2..1000 {
            cache.insert(VAddr(i), page.clone(), false);
        }
        assert!(cache.slots.contains_key(&VAddr(1)) && cache.slots.len() <= 65);
        cache.written(VAddr(1));
        for i in 1000..1200 {
            cache.insert(VAddr(i), page.clone(), false);
        }
        assert!(!cache.slots.contains_key(&VAddr(1)));
    }
}
