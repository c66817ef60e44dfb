//! The cache of map nodes: a fixed number of pages, second-chance eviction.

use crate::format::node::NodePage;
use crate::format::vaddr::VAddr;
use crate::format::PAGE;
use std::collections::{HashMap, VecDeque};
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
    slots: HashMap<VAddr, Slot>,
    clock: VecDeque<VAddr>,
    nodes_max: usize,
    /// Lookups answered.
    pub hits: u64,
    /// Lookups that need a read.
    pub misses: u64,
}

impl NodeCache {
    /// A cache of `bytes` bytes, at least 64 nodes.
    pub fn new(bytes: usize) -> Self {
        Self {
            slots: HashMap::new(),
            clock: VecDeque::new(),
            nodes_max: (bytes / PAGE).max(64),
            hits: 0,
            misses: 0,
        }
    }

    /// The node at `vaddr`, if it is here.
    pub fn get(&mut self, vaddr: VAddr) -> Option<Arc<NodePage>> {
        match self.slots.get_mut(&vaddr) {
            Some(slot) => {
                slot.used = true;
                self.hits += 1;
                Some(slot.page.clone())
            }
            None => {
                self.misses += 1;
                None
            }
        }
    }

    /// Puts a node in.
    pub fn insert(&mut self, vaddr: VAddr, page: Arc<NodePage>, unwritten: bool) {
        if self
            .slots
            .insert(
                vaddr,
                Slot {
                    page,
                    used: false,
                    unwritten,
                },
            )
            .is_none()
        {
            self.clock.push_back(vaddr);
        }
        self.evict();
    }

    /// A node written by the checkpoint has reached the device.
    pub fn written(&mut self, vaddr: VAddr) {
        if let Some(slot) = self.slots.get_mut(&vaddr) {
            slot.unwritten = false;
        }
    }

    /// A node died.
    pub fn remove(&mut self, vaddr: VAddr) {
        self.slots.remove(&vaddr);
    }

    fn evict(&mut self) {
        let mut looked_at = 0;
        while self.slots.len() > self.nodes_max && looked_at <= 2 * self.clock.len() {
            looked_at += 1;
            let Some(vaddr) = self.clock.pop_front() else {
                return;
            };
            match self.slots.get_mut(&vaddr) {
                None => continue,
                Some(slot) if slot.used || slot.unwritten => slot.used = false,
                Some(_) => {
                    self.slots.remove(&vaddr);
                    continue;
                }
            }
            self.clock.push_back(vaddr);
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
