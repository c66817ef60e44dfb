//! What only deleted versions hold. A deleted version at which several begin stays: a block of its own
//! that none of them uses is in the deadlists of all. No sum tells which those are, so a walk looks each
//! entry of one of the lists up in the maps of the others, a bounded part in each checkpoint. It only
//! lets slots die and writes nothing: it needs no free space, and a crash only does the rest again.
//!
//! Deleted versions that begin at each other are looked at together, as a *clump*: its *frontier* are
//! the versions next below it that somebody can see. What one of the clump was born with and none of
//! the frontier uses is an *orphan*. It is in a list within the clump, at the place where it was last
//! used, on any way down: so one list of each version is looked at, the shortest, and of the others what
//! is added from then on.
//!
//! Entries of orphans stay in the lists until their version is gone: an address is never used twice.
//! The version counts them, so that it is known how many of its entries are dead already.

use crate::checkpoint::Checkpointing;
use crate::config::Sabotage;
use crate::engine::Engine;
use crate::error::StoreError;
use crate::format::dead::{DeadEntry, DeadKind};
use crate::format::node::LeafKind;
use crate::format::versions::{Chunk, DeadlistId, Version, VersionId, VersionKind};
use crate::map::tree::{child_index, held_node, span, Missing};
use crate::recovery::Probe;
use crate::snapshot::reclaim::{Step, PAGES_AT_A_TIME, SLOTS_PER_STEP};
use esker_base::num::to_u64;
use esker_base::Stamp;
use std::collections::BTreeMap;

/// Nodes held at most when the walk turns to another lookup.
const HELD_MAX: usize = 1024;

/// Deleted versions that begin at each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Clump {
    members: Vec<VersionId>,
    frontier: Vec<VersionId>,
    /// The cut above which its blocks are its own.
    above: Stamp,
}

/// How far the walk is with a clump.
#[derive(Debug, Default)]
struct Pass {
    clump: Clump,
    /// Per list: the first chunk that was not looked at.
    next: BTreeMap<DeadlistId, usize>,
    /// Where it is within the next chunk of a list: entry, and version of the frontier.
    at: (DeadlistId, usize, usize),
}

/// How far the walk is, by the first version of a clump.
#[derive(Debug, Default)]
pub(crate) struct Orphans {
    passes: BTreeMap<VersionId, Pass>,
    /// Nothing is left to be looked at.
    done: bool,
    /// In this checkpoint, clumps were put together.
    begun: bool,
}

impl Orphans {
    /// Something is to be looked at.
    pub fn is_waiting(&self) -> bool {
        !self.done
    }

    /// A checkpoint begins to take things apart.
    pub fn begin(&mut self) {
        (self.done, self.begun) = (false, false);
    }
}

impl Engine {
    /// A deleted version whose own blocks nobody is to see, in no checkpoint.
    fn is_orphaned(&self, v: &Version) -> bool {
        v.kind == VersionKind::Hidden && v.root.is_some() && self.forest.is_hidden(v.id)
    }

    fn clumps(&self) -> BTreeMap<VersionId, Clump> {
        let mut clumps = BTreeMap::new();
        for top in self.forest.hidden().filter_map(|id| self.forest.get(id)) {
            let parent = self.forest.get(top.parent);
            if !self.is_orphaned(top) || parent.is_some_and(|p| self.is_orphaned(p)) {
                continue;
            }
            let mut clump = Clump {
                above: parent.map_or(Stamp(0), |p| p.cut),
                ..Clump::default()
            };
            let mut below = vec![top.id];
            while let Some(v) = below.pop().and_then(|id| self.forest.get(id)) {
                if self.is_orphaned(v) {
                    clump.members.push(v.id);
                    below.extend(self.forest.children(v.id));
                } else {
                    clump.frontier.push(v.id);
                }
            }
            clumps.insert(top.id, clump);
        }
        clumps
    }

    /// Takes notice of what changed since the last checkpoint.
    fn orphans_begin(&mut self) {
        let clumps = self.clumps();
        self.orphans.begun = true;
        self.orphans
            .passes
            .retain(|top, _| clumps.contains_key(top));
        for (top, clump) in clumps {
            let pass = self.orphans.passes.entry(top).or_default();
            if pass.clump == clump {
                continue;
            }
            let mut next = BTreeMap::new();
            for member in &clump.members {
                let children = self.forest.children(*member);
                let lists = children.filter_map(|id| self.forest.get(id));
                let mut lists: Vec<(u64, DeadlistId, usize)> = lists
                    .map(|v| {
                        let list = self.dead.get(v.deadlist);
                        let chunks = list.map_or(&[][..], |list| &list.chunks);
                        let entries = chunks.iter().map(|c| u64::from(c.count)).sum();
                        (entries, v.deadlist, chunks.len())
                    })
                    .collect();
                lists.sort_unstable();
                for (n, (_, list, chunks)) in lists.into_iter().enumerate() {
                    next.insert(list, if n == 0 { 0 } else { chunks });
                }
            }
            *pass = Pass {
                clump,
                next,
                at: (DeadlistId(0), 0, 0),
            };
        }
    }

    /// The next chunk to be looked at: whose clump, which list, which chunk.
    fn orphans_next(&self) -> Option<(VersionId, DeadlistId, Chunk)> {
        self.orphans.passes.iter().find_map(|(top, pass)| {
            let whole = |list: &DeadlistId| {
                let list = self.dead.get(*list);
                list.is_none_or(|list| list.subtrees.is_empty())
            };
            // A part that is not taken apart yet may have nodes that are orphans.
            if !pass.next.keys().all(whole) {
                return None;
            }
            pass.next.iter().find_map(|(list, at)| {
                let chunk = self.dead.get(*list)?.chunks.get(*at)?;
                Some((*top, *list, *chunk))
            })
        })
    }

    /// Goes on with the walk.
    pub(super) fn orphans_on(&mut self, c: &mut Checkpointing) -> Result<Step, StoreError> {
        self.dead_flush(c)?;
        if !self.orphans.begun {
            self.orphans_begin();
        }
        let Some((top, list, chunk)) = self.orphans_next() else {
            self.orphans.done = true;
            return Ok(Step::Done);
        };
        let Some(pass) = self.orphans.passes.get(&top) else {
            return Ok(Step::Done);
        };
        let above = pass.clump.above;
        let (from, mut member) = match pass.at.0 == list {
            true => (pass.at.1, pass.at.2),
            false => (0, 0),
        };
        let mut entries = Vec::new();
        if chunk.youngest > above {
            entries = match self.entries_of(c, &chunk) {
                Ok(entries) => entries,
                Err(Ok(page)) => return Ok(Step::Missing(vec![page])),
                Err(Err(error)) => return Err(error),
            };
        }
        let before = c.reclaim.slots_left;
        for (at, entry) in entries.iter().enumerate().skip(from) {
            if before - c.reclaim.slots_left >= SLOTS_PER_STEP {
                self.orphans_at(top, (list, at, 0));
                return Ok(Step::Again);
            }
            if entry.birth > above && self.segs.is_live(entry.vaddr) {
                if let Err((member, node)) = self.look_up(c, top, member, entry, list)? {
                    let next = &entries[at + 1..];
                    let wanted = self.look_ahead(c, top, member, node, next);
                    self.orphans_at(top, (list, at, member));
                    return Ok(Step::Missing(wanted));
                }
            }
            member = 0;
        }
        if let Some(pass) = self.orphans.passes.get_mut(&top) {
            pass.at = (DeadlistId(0), 0, 0);
            *pass.next.entry(list).or_default() += 1;
        }
        c.reclaim.slots_left = c.reclaim.slots_left.saturating_sub(1);
        Ok(Step::Again)
    }

    /// A version of a clump's frontier.
    fn frontier_at(&self, top: VersionId, n: usize) -> Option<VersionId> {
        let frontier = &self.orphans.passes.get(&top)?.clump.frontier;
        let ignored = usize::from(self.config.sabotage == Sabotage::OrphanIgnoresBranch);
        let frontier = frontier.get(..frontier.len().saturating_sub(ignored))?;
        frontier.get(n).copied()
    }

    /// Looks one entry up in the maps of the frontier, from one on; in none of them, it dies. Or a node
    /// is missing, of this one.
    fn look_up(
        &mut self,
        c: &mut Checkpointing,
        top: VersionId,
        mut member: usize,
        entry: &DeadEntry,
        list: DeadlistId,
    ) -> Result<Result<(), (usize, Missing)>, StoreError> {
        while let Some(version) = self.frontier_at(top, member) {
            match self.uses(c, version, entry) {
                Ok(true) => return Ok(Ok(())),
                Ok(false) => member += 1,
                Err(node) => return Ok(Err((member, node))),
            }
            c.reclaim.slots_left = c.reclaim.slots_left.saturating_sub(1);
            if c.reclaim.held.len() > HELD_MAX {
                c.reclaim.held.clear();
            }
        }
        self.release(c, list, entry)?;
        Ok(Ok(()))
    }

    /// The missing node, and those that the next entries will miss.
    fn look_ahead(
        &mut self,
        c: &Checkpointing,
        top: VersionId,
        member: usize,
        node: Missing,
        entries: &[DeadEntry],
    ) -> Vec<Missing> {
        let mut wanted = vec![node];
        if let Some(version) = self.frontier_at(top, member) {
            for entry in entries.iter().take(PAGES_AT_A_TIME) {
                wanted.extend(self.uses(c, version, entry).err());
            }
        }
        wanted
    }

    fn orphans_at(&mut self, top: VersionId, at: (DeadlistId, usize, usize)) {
        if let Some(pass) = self.orphans.passes.get_mut(&top) {
            pass.at = at;
        }
    }

    /// An orphan dies; the version that it was born with counts it.
    fn release(
        &mut self,
        c: &mut Checkpointing,
        list: DeadlistId,
        entry: &DeadEntry,
    ) -> Result<(), StoreError> {
        let mut owner = self.forest.owner(list).map_or(VersionId(0), |v| v.parent);
        while entry.birth <= self.forest.parent_cut(owner) {
            owner = self.forest.get(owner).map_or(VersionId(0), |v| v.parent);
        }
        if !self.forest.get(owner).is_some_and(|v| self.is_orphaned(v)) {
            let text = format!("slot {} belongs to version {}", entry.vaddr, owner.0);
            return Err(StoreError::Invariant(text));
        }
        let mut pages = self.pages(c);
        pages.kill(entry.vaddr);
        if let Some(error) = pages.error.take() {
            return Err(error);
        }
        self.forest.released(owner, entry.kind == DeadKind::Data);
        self.probes.insert(Probe::OrphanReleased);
        Ok(())
    }

    /// Whether a version's map has a slot, or the node that must be read to tell.
    fn uses(
        &mut self,
        c: &Checkpointing,
        version: VersionId,
        entry: &DeadEntry,
    ) -> Result<bool, Missing> {
        let Some(v) = self.forest.get(version) else {
            return Ok(true);
        };
        let group = self.groups.get(&v.group).filter(|g| g.base.is_none());
        let root = v.root.or_else(|| group.map(|g| (g.root, g.root_level)));
        let Some((mut pointer, mut level)) = root else {
            return Ok(true);
        };
        let mut first = 0;
        if entry.lba >= span(level) {
            return Ok(false);
        }
        loop {
            let is_data = entry.kind == DeadKind::Data;
            if pointer.vaddr.is_none() || is_data && pointer.max_stamp < entry.birth {
                return Ok(false);
            }
            if pointer.vaddr == entry.vaddr {
                return Ok(true);
            }
            if level == 0 && !is_data {
                return Ok(false);
            }
            let held = held_node(&c.reclaim.held, &pointer);
            let Some(node) = held.or_else(|| self.cache.get(&pointer)) else {
                return Err(Missing {
                    pointer,
                    level,
                    first_lba: first,
                });
            };
            let i = child_index(level, entry.lba);
            if level == 0 {
                let leaf = node.leaf(i);
                return Ok(leaf.kind == LeafKind::Data && leaf.vaddr == entry.vaddr);
            }
            level -= 1;
            first += to_u64(i) * span(level);
            pointer = node.child(i);
        }
    }
}
