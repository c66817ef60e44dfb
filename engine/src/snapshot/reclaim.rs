//! Taking apart what nobody needs, at the end of a checkpoint's merging and a bounded part of it at a
//! time. The checkpoint that says a slot is dead is the one that says its deadlist no longer has it,
//! so that a crash between any two steps only does the rest again.
//!
//! A deleted version nothing begins at gives back what is younger than its parent, by a walk of its
//! map. One that a single version begins at gives back what that one does not use and the parent never
//! had: entries of that one's deadlist. One that several begin at stays, hidden, until one is left; what
//! none of them uses is given back before ([`super::orphans`]).

use crate::checkpoint::Checkpointing;
use crate::engine::Engine;
use crate::error::StoreError;
use crate::event::Effect;
use crate::format::dead::{decode, DeadEntry, DeadKind, ENTRIES_MAX};
use crate::format::node::{ChildPointer, LeafKind, NodePage, FANOUT};
use crate::format::versions::{Chunk, DeadlistId, Subtree, Version, VersionId};
use crate::format::VAddr;
use crate::map::tree::{held_node, span, Held, Missing, ANYWHERE};
use crate::snapshot::forest::{Floor, Forest};
use esker_base::num::{to_u64, to_usize};
use esker_base::{GroupId, Stamp};
use std::sync::Arc;

/// As a level in [`Missing`]: a page of a deadlist.
pub const DEAD_PAGE: u8 = u8::MAX;
/// Slots looked at in one checkpoint; what is left waits for the next.
const SLOTS_PER_CHECKPOINT: usize = 1 << 18;
/// Slots looked at in one step.
pub(super) const SLOTS_PER_STEP: usize = 1 << 12;
/// Most pages of entries that one checkpoint writes while it takes subtrees apart.
const PAGES_MAX: u64 = 512;
/// Pages read at a time.
pub(super) const PAGES_AT_A_TIME: usize = 32;
/// Rewind points that are passed over to find where entries of a subtree are best parted.
const STAYS_BELOW_MAX: usize = 64;
/// Slots that a node of a subtree can give.
const SLOTS_PER_NODE: usize = FANOUT + 1;

/// How far a checkpoint is with taking things apart.
#[derive(Debug, Default)]
pub(crate) struct Reclaim {
    /// What was read for it.
    pub held: Held,
    begun: bool,
    pub(super) slots_left: usize,
    /// Entries that may still go into pages.
    entries_left: usize,
    /// There is more than this checkpoint does.
    pub more: bool,
}

/// What a step came to.
pub(super) enum Step {
    /// Go on.
    Again,
    /// Nothing is left, or this checkpoint has done its share.
    Done,
    /// These pages are needed first.
    Missing(Vec<Missing>),
}

impl Engine {
    /// Something can be given back.
    pub(crate) fn has_to_reclaim(&self) -> bool {
        self.dead.unexpanded().is_some()
            || self.next_to_remove().is_some()
            || self.orphans.is_waiting()
    }

    /// A deleted version that can go. One at which something begins goes before that does: parts of its
    /// own map may be gone, so that it must not be the last.
    fn next_to_remove(&self) -> Option<&Version> {
        let mut leaf = None;
        for id in self.forest.hidden() {
            let Some(v) = self.forest.get(id).filter(|v| v.root.is_some()) else {
                continue;
            };
            match self.forest.children(id).take(2).count() {
                0 => leaf = leaf.or(Some(v)),
                1 => return Some(v),
                _ => {}
            }
        }
        leaf
    }

    /// Goes on; when nothing is left for this checkpoint, its body is written.
    pub(crate) fn reclaim_step(&mut self, mut c: Checkpointing, effects: &mut Vec<Effect>) {
        let stepped = self.reclaim_on(&mut c);
        self.checkpoint = Some(c);
        match stepped {
            Ok(Step::Again) => {
                self.busy = true;
                self.issue_map_writes(effects);
            }
            Ok(Step::Done) => self.write_body(effects),
            Ok(Step::Missing(pages)) => {
                self.issue_map_writes(effects);
                self.fetch_for_checkpoint(GroupId(0), pages, effects);
            }
            Err(error) => self.fence(error, effects),
        }
    }

    fn reclaim_on(&mut self, c: &mut Checkpointing) -> Result<Step, StoreError> {
        if !c.reclaim.begun {
            self.dead_flush(c)?;
            let spare = self.map_room().saturating_sub(self.checkpoint_room());
            c.reclaim.begun = true;
            self.orphans.begin();
            c.reclaim.slots_left = SLOTS_PER_CHECKPOINT;
            c.reclaim.entries_left = to_usize((spare / 8).clamp(2, PAGES_MAX)) * ENTRIES_MAX;
        }
        let before = c.reclaim.slots_left;
        loop {
            let step = if self.next_to_remove().is_some() {
                self.dead_flush(c)?; // what subtrees gave may be looked at
                self.remove_on(c)?
            } else {
                match self.expand_on(c)? {
                    Step::Done => self.orphans_on(c)?,
                    step => step,
                }
            };
            match step {
                Step::Again if c.reclaim.slots_left == 0 => break,
                Step::Again if before - c.reclaim.slots_left < SLOTS_PER_STEP => {}
                Step::Again | Step::Missing(_) => return Ok(step),
                Step::Done => break,
            }
        }
        self.dead_flush(c)?;
        c.reclaim.held.clear();
        c.reclaim.more = self.has_to_reclaim();
        for group in self.groups.values_mut() {
            group.newest_cut = self.forest.newest_cut(group.meta.group);
        }
        Ok(Step::Done)
    }

    fn floor_of(&self, v: &Version) -> Floor {
        let parent = self.forest.get(v.parent);
        Forest::floor(parent.map_or(Stamp(0), |p| p.cut), &v.grown)
    }

    /// Goes on with one version that can go.
    fn remove_on(&mut self, c: &mut Checkpointing) -> Result<Step, StoreError> {
        let Some(v) = self.next_to_remove().cloned() else {
            return Ok(Step::Done);
        };
        let child = self.forest.children(v.id).next();
        match child.and_then(|id| self.forest.get(id)).cloned() {
            None => self.remove_leaf(c, &v),
            Some(child) => self.remove_inner(c, &v, &child),
        }
    }

    /// Nothing begins at the version: its map is walked, in the background, as far as it is its own.
    fn remove_leaf(&mut self, c: &mut Checkpointing, v: &Version) -> Result<Step, StoreError> {
        if v.released + v.released_nodes > 0 {
            let text = format!("version {} has lost parts of its map", v.id.0);
            return Err(StoreError::Invariant(text));
        }
        let floor = self.floor_of(v);
        let mut lists = std::mem::take(&mut self.dead);
        let mut pages = self.pages(c);
        let mut tops = lists.forget(v.deadlist, &mut pages);
        if let Some((node, level)) = v.root {
            let (first_lba, death) = (0, Stamp(0));
            tops.push(Subtree {
                node,
                level,
                first_lba,
                death,
            });
        }
        for top in tops {
            if !top.node.vaddr.is_none() && floor.owns(top.level, top.node.max_stamp) {
                pages.discard(floor.discard(top.node, top.level));
            }
        }
        let error = pages.error.take();
        self.dead = lists;
        self.forest.remove_in_checkpoint(v.id);
        c.reclaim.slots_left = c.reclaim.slots_left.saturating_sub(1);
        error.map_or(Ok(Step::Again), Err)
    }

    /// One version begins at it.
    fn remove_inner(
        &mut self,
        c: &mut Checkpointing,
        v: &Version,
        child: &Version,
    ) -> Result<Step, StoreError> {
        let parent_cut = self.forest.parent_cut(v.id);
        let list = self.dead.get(child.deadlist);
        let chunks = list.map_or(&[][..], |list| &list.chunks);
        let younger = |chunk: &Chunk| chunk.youngest > parent_cut;
        if let Some(at) = chunks.iter().position(younger) {
            return self.give_back(c, v.id, (child.deadlist, at), parent_cut);
        }
        // Everything that was the version's alone is gone. The sums that change are taken anew.
        let grand_cut = self.forest.parent_cut(v.parent);
        let mut missing = Vec::new();
        let mut sums = Vec::new();
        let own = self.dead.get(v.deadlist).map_or(0, |list| list.exclusive);
        let joined = own + self.count_younger(c, child.deadlist, grand_cut, &mut missing);
        for id in self.forest.children(child.id).collect::<Vec<_>>() {
            let Some(list) = self.forest.get(id).map(|v| v.deadlist) else {
                continue;
            };
            sums.push((list, self.count_younger(c, list, parent_cut, &mut missing)));
        }
        if !missing.is_empty() {
            missing.truncate(PAGES_AT_A_TIME);
            return Ok(Step::Missing(missing));
        }
        if !self.forest.inherit_released(v.id, child.id) {
            let text = format!("version {} gave back what is in no deadlist", v.id.0);
            return Err(StoreError::Invariant(text));
        }
        self.dead.join(v.deadlist, child.deadlist, joined);
        for (list, exclusive) in sums {
            self.dead.set_exclusive(list, exclusive);
        }
        self.forest.remove_in_checkpoint(v.id);
        c.reclaim.held.clear();
        c.reclaim.slots_left = c.reclaim.slots_left.saturating_sub(1);
        Ok(Step::Again)
    }

    /// The entries of a chunk, or its page is missing.
    pub(super) fn entries_of(
        &mut self,
        c: &Checkpointing,
        chunk: &Chunk,
    ) -> Result<Vec<DeadEntry>, Result<Missing, StoreError>> {
        let pointer = ChildPointer {
            vaddr: chunk.page,
            crc: chunk.crc,
            ..ChildPointer::default()
        };
        let held = held_node(&c.reclaim.held, &pointer);
        let Some(page) = held.or_else(|| self.cache.get(&pointer)) else {
            return Err(Ok(Missing {
                pointer,
                level: DEAD_PAGE,
                first_lba: ANYWHERE,
            }));
        };
        let wrong = |text: String| Err(Err(StoreError::Invariant(text)));
        let entries = match decode(&page.bytes) {
            Ok(entries) => entries,
            Err(error) => return wrong(format!("page {}: {error}", chunk.page)),
        };
        let (first, count) = (usize::from(chunk.first), usize::from(chunk.count));
        match entries.get(first..first + count) {
            Some(entries) => Ok(entries.to_vec()),
            None => wrong(format!("page {} has {} entries", chunk.page, entries.len())),
        }
    }

    /// What of a chunk is younger than `cut` dies, but for what the version gave back before.
    fn give_back(
        &mut self,
        c: &mut Checkpointing,
        version: VersionId,
        (list, at): (DeadlistId, usize),
        cut: Stamp,
    ) -> Result<Step, StoreError> {
        let Some(chunk) = self.dead.get(list).and_then(|l| l.chunks.get(at)).copied() else {
            return Ok(Step::Again);
        };
        let entries = match self.entries_of(c, &chunk) {
            Ok(entries) => entries,
            Err(Ok(missing)) => {
                // The ones after it as well.
                let next = self.dead.get(list).map_or(&[][..], |l| &l.chunks[at..]);
                let next: Vec<Chunk> = next.iter().filter(|c| c.youngest > cut).copied().collect();
                let mut wanted = vec![missing];
                for chunk in next.iter().take(PAGES_AT_A_TIME) {
                    wanted.extend(self.entries_of(c, chunk).err().and_then(Result::ok));
                }
                return Ok(Step::Missing(wanted));
            }
            Err(Err(error)) => return Err(error),
        };
        let kept = entries.partition_point(|e| e.birth <= cut);
        for e in entries[kept..]
            .iter()
            .filter(|e| !self.segs.is_live(e.vaddr))
        {
            if !self.forest.drop_released(version, e.kind == DeadKind::Data) {
                let text = format!("slot {} is in a deadlist and dead", e.vaddr);
                return Err(StoreError::Invariant(text));
            }
        }
        let dying: Vec<VAddr> = entries[kept..]
            .iter()
            .map(|e| e.vaddr)
            .filter(|vaddr| self.segs.is_live(*vaddr))
            .collect();
        let mut lists = std::mem::take(&mut self.dead);
        let mut pages = self.pages(c);
        dying.into_iter().for_each(|vaddr| pages.kill(vaddr));
        lists.shorten(list, at, &entries[..kept], &mut pages);
        let error = pages.error.take();
        self.dead = lists;
        c.reclaim.slots_left = c.reclaim.slots_left.saturating_sub(entries.len());
        error.map_or(Ok(Step::Again), Err)
    }

    /// Blocks in a list that are younger than a cut. Pages that it takes are added to `missing`.
    fn count_younger(
        &mut self,
        c: &Checkpointing,
        list: DeadlistId,
        cut: Stamp,
        missing: &mut Vec<Missing>,
    ) -> u64 {
        let chunks = self
            .dead
            .get(list)
            .map_or(Vec::new(), |list| list.chunks.clone());
        let mut sum = 0;
        for chunk in chunks.iter().filter(|chunk| chunk.youngest > cut) {
            if chunk.oldest > cut {
                sum += u64::from(chunk.data);
                continue;
            }
            match self.entries_of(c, chunk) {
                Ok(entries) => {
                    let counts = |e: &&DeadEntry| e.kind == DeadKind::Data && e.birth > cut;
                    sum += to_u64(entries.iter().filter(counts).count());
                }
                Err(Ok(page)) => missing.push(page),
                Err(Err(error)) => _ = self.fence_pending.get_or_insert(error),
            }
        }
        sum
    }

    /// Takes one node of a subtree apart: what the parent uses goes to the deadlist, the rest dies.
    fn expand_on(&mut self, c: &mut Checkpointing) -> Result<Step, StoreError> {
        let Some(id) = self.dead.unexpanded() else {
            return Ok(Step::Done);
        };
        if c.reclaim.entries_left < SLOTS_PER_NODE {
            return Ok(Step::Done);
        }
        let Some(owner) = self.forest.owner(id).cloned() else {
            let text = format!("deadlist {} belongs to no version", id.0);
            return Err(StoreError::Invariant(text));
        };
        let floor = self.floor_of(&owner);
        let grand = self.forest.parent_cut(owner.parent);
        let subtrees = self.dead.get(id).map_or(&[][..], |list| &list.subtrees);
        let mut nodes: Vec<(Subtree, Option<Arc<NodePage>>)> = Vec::new();
        for subtree in subtrees.iter().rev().take(PAGES_AT_A_TIME) {
            let held = held_node(&c.reclaim.held, &subtree.node);
            nodes.push((*subtree, held.or_else(|| self.cache.get(&subtree.node))));
        }
        let Some((subtree, Some(node))) = nodes.first().cloned() else {
            let missing = nodes.iter().filter(|(_, node)| node.is_none());
            let missing = missing.map(|(subtree, _)| Missing {
                pointer: subtree.node,
                level: subtree.level,
                first_lba: subtree.first_lba,
            });
            return Ok(Step::Missing(missing.collect()));
        };
        self.dead.pop_subtree(id);
        c.reclaim.held.remove(&subtree.node.vaddr);
        let apart = TakenApart::of(&subtree, &node, &floor, &owner);
        let mut pages = self.pages(c);
        apart.dies.iter().for_each(|vaddr| pages.kill(*vaddr));
        if let Some(error) = pages.error.take() {
            return Err(error);
        }
        c.reclaim.slots_left = c.reclaim.slots_left.saturating_sub(SLOTS_PER_NODE);
        c.reclaim.entries_left -= apart.stays.len();
        let stays = self.forest.stays_below(owner.parent, STAYS_BELOW_MAX);
        self.dead_append(c, id, apart.stays, (grand, stays))?;
        self.dead.add_subtrees(id, apart.subtrees);
        Ok(Step::Again)
    }
}

/// What a node of a subtree comes to.
#[derive(Default)]
struct TakenApart {
    dies: Vec<VAddr>,
    stays: Vec<DeadEntry>,
    subtrees: Vec<Subtree>,
}

impl TakenApart {
    fn of(subtree: &Subtree, node: &NodePage, floor: &Floor, owner: &Version) -> Self {
        let mut apart = Self::default();
        let (top, level, death) = (&subtree.node, subtree.level, subtree.death);
        if floor.owns(level, top.max_stamp) {
            apart.dies.push(top.vaddr);
        } else {
            let grown = owner
                .grown
                .get(usize::from(level))
                .copied()
                .unwrap_or_default();
            apart.stays.push(DeadEntry {
                birth: top.max_stamp.max(grown),
                vaddr: top.vaddr,
                death,
                lba: subtree.first_lba,
                kind: DeadKind::Node,
            });
        }
        for i in 0..FANOUT {
            if level > 0 {
                let child = node.child(i);
                if !child.vaddr.is_none() {
                    apart.subtrees.push(Subtree {
                        node: child,
                        level: level - 1,
                        first_lba: subtree.first_lba + to_u64(i) * span(level - 1),
                        death,
                    });
                }
                continue;
            }
            let entry = node.leaf(i);
            if entry.kind != LeafKind::Data {
                continue;
            }
            if entry.stamp > floor.cut {
                apart.dies.push(entry.vaddr);
            } else {
                apart.stays.push(DeadEntry {
                    birth: entry.stamp,
                    vaddr: entry.vaddr,
                    death,
                    lba: subtree.first_lba + to_u64(i),
                    kind: DeadKind::Data,
                });
            }
        }
        apart
    }
}
