//! The walk over two maps at once. It passes over whatever is the same node in both, goes on in the
//! order of blocks, and can tell which nodes it will need next.

use super::diff::DiffState;
use crate::format::node::{ChildPointer, LeafEntry, LeafKind, NodePage, FANOUT};
use crate::group::Group;
use crate::map::cache::NodeCache;
use crate::map::delta::{Delta, Extent};
use crate::map::tree::{child_index, span, Missing};
use esker_base::num::{to_u64, to_usize};
use esker_base::BlockRange;
use std::sync::Arc;

/// Most work for one answer without waiting: a place that is passed over counts one.
const WORK_MAX: u32 = 16_384;
/// What comparing the blocks of two leaves counts.
const LEAF_WORK: u32 = 32;
/// Most places looked at for nodes that will be needed.
const AHEAD_WORK_MAX: u32 = 16_384;

/// A map: its root and the root's level.
type Map = (ChildPointer, u8);

/// How a walk ended.
pub(super) enum Walked {
    /// There is enough for an answer.
    Enough,
    /// Nodes are needed first.
    Waits,
    /// A node is needed that cannot be had.
    Lost,
}

/// What a map has below some level: a node of its own, or the whole map below levels that it does not
/// have, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Nothing,
    Node(ChildPointer),
    Below(ChildPointer, u8),
}

impl Part {
    fn of(root: ChildPointer, level: u8, top: u8) -> Self {
        if root.vaddr.is_none() {
            Self::Nothing
        } else if level == top {
            Self::Node(root)
        } else {
            Self::Below(root, level)
        }
    }

    /// The same in both maps: one node is never two things.
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Nothing, Self::Nothing) => true,
            (Self::Node(a), Self::Node(b)) => a.vaddr == b.vaddr,
            (Self::Below(a, _), Self::Below(b, _)) => a.vaddr == b.vaddr,
            _ => false,
        }
    }
}

/// A part whose node, if it has one, is in memory.
enum Open {
    Nothing,
    Page(Arc<NodePage>),
    Below(ChildPointer, u8),
}

impl Open {
    /// Child `i` of a part at `level`.
    fn child(&self, level: u8, i: usize) -> Part {
        match self {
            Self::Page(page) => Part::of(page.child(i), level - 1, level - 1),
            Self::Below(root, own) if i == 0 => Part::of(*root, *own, level - 1),
            Self::Nothing | Self::Below(..) => Part::Nothing,
        }
    }
}

/// A walk for one question.
pub(super) struct Walk<'a> {
    group: &'a Group,
    /// The newer version is the head: its deltas count.
    is_head: bool,
    cache: &'a mut NodeCache,
    state: &'a mut DiffState,
    work: u32,
    found: Vec<Missing>,
    found_max: usize,
}

impl<'a> Walk<'a> {
    pub fn new(
        group: &'a Group,
        is_head: bool,
        cache: &'a mut NodeCache,
        state: &'a mut DiffState,
    ) -> Self {
        Self {
            group,
            is_head,
            cache,
            state,
            work: 0,
            found: Vec::new(),
            found_max: 0,
        }
    }

    /// Compares from the first block on that is not answered, as far as it can.
    pub fn run(&mut self, old: Map, new: Map) -> Walked {
        let top = old.1.max(new.1);
        if self.state.is_done() {
            return Walked::Enough;
        }
        if self.state.next < span(top) {
            let (old, new) = (Part::of(old.0, old.1, top), Part::of(new.0, new.1, top));
            if let Err(end) = self.compare(old, new, top, 0) {
                return end;
            }
        }
        // Past both maps only deltas can have anything. What they discard there was nothing before, however long.
        while !self.is_enough() {
            match self.first_data(self.state.next, self.state.end()) {
                Some((at, _)) => {
                    let leaf = self.leaf([None, None], at / to_u64(FANOUT) * to_u64(FANOUT));
                    self.state.next = self.state.next.max(leaf);
                }
                None => self.state.next = self.state.end(),
            }
        }
        Walked::Enough
    }

    /// The nodes, `most` at most, that are needed next and are neither in memory nor on their way.
    pub fn ahead(&mut self, old: Map, new: Map, most: usize) -> Vec<Missing> {
        let top = old.1.max(new.1);
        (self.work, self.found_max) = (0, most);
        let (old, new) = (Part::of(old.0, old.1, top), Part::of(new.0, new.1, top));
        self.look_ahead(old, new, top, 0);
        std::mem::take(&mut self.found)
    }

    fn is_enough(&self) -> bool {
        self.state.is_done() || self.work >= WORK_MAX
    }

    fn deltas(&self) -> impl Iterator<Item = &Delta> {
        let frozen = self.group.frozen.as_deref().map(|layer| &layer.index);
        let newest = [frozen, Some(&self.group.active.index)];
        newest.into_iter().flatten().filter(|_| self.is_head)
    }

    /// The first extent of the deltas in a range.
    fn first_change(&self, lba: u64, end: u64) -> Option<(u64, Extent)> {
        let range = BlockRange::new(lba, end.saturating_sub(lba));
        let firsts = self.deltas().filter_map(|d| d.overlapping(range).next());
        firsts.min_by_key(|(at, _)| *at)
    }

    /// The first extent of the deltas in a range that has data.
    fn first_data(&self, lba: u64, end: u64) -> Option<(u64, Extent)> {
        let range = BlockRange::new(lba, end.saturating_sub(lba));
        let is_data = |(_, extent): &(u64, Extent)| extent.kind == LeafKind::Data;
        let firsts = self
            .deltas()
            .filter_map(|d| d.overlapping(range).find(is_data));
        firsts.min_by_key(|(at, _)| *at)
    }

    /// A node, if it is in memory.
    fn node(&mut self, pointer: &ChildPointer) -> Option<Arc<NodePage>> {
        let held = self.state.held.get(&pointer.vaddr);
        let held = held.filter(|(_, node)| node.is_named_by(pointer));
        let held = held.map(|(_, node)| node.clone());
        held.or_else(|| self.cache.get(pointer))
    }

    fn open(&mut self, part: &Part) -> Option<Open> {
        Some(match part {
            Part::Nothing => Open::Nothing,
            Part::Below(root, level) => Open::Below(*root, *level),
            Part::Node(pointer) => Open::Page(self.node(pointer)?),
        })
    }

    /// What a walk does that misses one of these nodes.
    fn waits_for(&self, parts: [&Part; 2]) -> Walked {
        let is_lost =
            |part: &&Part| matches!(part, Part::Node(p) if self.state.lost.contains(&p.vaddr));
        match parts.iter().any(is_lost) {
            true => Walked::Lost,
            false => Walked::Waits,
        }
    }

    /// Compares what two parts at `level` have from the first block on that is not answered.
    fn compare(&mut self, old: Part, new: Part, level: u8, first: u64) -> Result<(), Walked> {
        let until = (first + span(level)).min(self.state.end());
        self.work += 1;
        if old.is(&new) {
            let from = self.state.next.max(first);
            let Some((at, extent)) = self.first_change(from, until) else {
                self.state.next = until;
                return Ok(());
            };
            let covers = at <= from && at + extent.count >= until;
            if old == Part::Nothing && covers && extent.kind != LeafKind::Data {
                self.state.next = until;
                return Ok(());
            }
            self.state.next = from.max(at / to_u64(FANOUT) * to_u64(FANOUT));
        }
        let (Some(a), Some(b)) = (self.open(&old), self.open(&new)) else {
            return Err(self.waits_for([&old, &new]));
        };
        if level == 0 {
            let page = |open| match open {
                Open::Page(page) => Some(page),
                Open::Nothing | Open::Below(..) => None,
            };
            self.state.next = self.leaf([page(a), page(b)], first);
        } else {
            let from = child_index(level, self.state.next.max(first));
            for i in from..FANOUT {
                let child = first + to_u64(i) * span(level - 1);
                if child >= until {
                    break;
                }
                if self.is_enough() {
                    return Err(Walked::Enough);
                }
                if child + span(level - 1) <= self.state.next {
                    continue; // passed over with the one before
                }
                let (a, b) = (a.child(level, i), b.child(level, i));
                self.compare(a, b, level - 1, child)?;
            }
        }
        match self.is_enough() {
            true => Err(Walked::Enough),
            false => Ok(()),
        }
    }

    /// Compares the blocks of one leaf, and gives where it ends.
    fn leaf(&mut self, [old, new]: [Option<Arc<NodePage>>; 2], first: u64) -> u64 {
        self.work += LEAF_WORK;
        let until = (first + span(0)).min(self.state.end());
        let lba = self.state.next.max(first);
        let entry = |page: &Option<Arc<NodePage>>, lba: u64| {
            let node = page.as_ref();
            node.map_or(LeafEntry::default(), |node| {
                node.leaf(to_usize(lba - first))
            })
        };
        let mut newer: Vec<LeafEntry> = (lba..until).map(|at| entry(&new, at)).collect();
        for delta in self.deltas() {
            for (at, extent) in delta.overlapping(BlockRange::new(lba, until - lba)) {
                for i in 0..extent.count {
                    newer[to_usize(at + i - lba)] = extent.leaf(i);
                }
            }
        }
        for (at, new) in (lba..).zip(newer) {
            let old = entry(&old, at);
            let differs = match (old.kind == LeafKind::Data, new.kind == LeafKind::Data) {
                (true, true) => old.vaddr != new.vaddr,
                (was, is) => was != is,
            };
            if differs {
                self.state.push(at, new.kind == LeafKind::Data);
            }
        }
        until
    }

    /// Looks for nodes that the walk will need and does not have, in the order in which it needs them.
    fn look_ahead(&mut self, old: Part, new: Part, level: u8, first: u64) {
        let until = (first + span(level)).min(self.state.end());
        let from = self.state.next.max(first);
        self.work += 1;
        let nothing = old == Part::Nothing && new == Part::Nothing;
        if from >= until || nothing || self.is_far_enough() {
            return;
        }
        if old.is(&new) && self.first_change(from, until).is_none() {
            return;
        }
        let opened = (self.want(&old, level, first), self.want(&new, level, first));
        let (Some(a), Some(b)) = opened else { return };
        if level == 0 {
            return;
        }
        for i in child_index(level, from)..FANOUT {
            let child = first + to_u64(i) * span(level - 1);
            if child >= until || self.is_far_enough() {
                return;
            }
            let (a, b) = (a.child(level, i), b.child(level, i));
            self.look_ahead(a, b, level - 1, child);
        }
    }

    fn is_far_enough(&self) -> bool {
        self.found.len() >= self.found_max || self.work >= AHEAD_WORK_MAX
    }

    /// Opens a part, or notes that its node is wanted.
    fn want(&mut self, part: &Part, level: u8, first_lba: u64) -> Option<Open> {
        let Part::Node(pointer) = part else {
            return self.open(part);
        };
        let vaddr = pointer.vaddr;
        let known = self.state.awaited.contains_key(&vaddr) || self.state.lost.contains(&vaddr);
        if known || self.found.iter().any(|m| m.pointer.vaddr == vaddr) {
            return None;
        }
        let open = self.open(part);
        if open.is_none() && !self.is_far_enough() {
            self.found.push(Missing {
                pointer: *pointer,
                level,
                first_lba,
            });
        }
        open
    }
}
