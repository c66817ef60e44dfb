//! The merging part of a checkpoint: what was applied goes into the tree, version by version, so
//! that every snapshot gets a root of its own; then versions that nobody needs are taken apart.

use crate::checkpoint::{
    Checkpointing, MapWriter, LEAVES_PER_STEP, MAP_WRITES_MAX, MAP_WRITE_PAGES,
    NODE_READ_ATTEMPTS_MAX, PREFETCH_LEAVES,
};
use crate::config::Sabotage;
use crate::engine::Engine;
use crate::error::StoreError;
use crate::event::Effect;
use crate::format::checkpoint::DiscardEntry;
use crate::format::dead::{DeadEntry, DeadKind};
use crate::format::node::{ChildPointer, LeafEntry, NodePage, FANOUT};
use crate::format::vaddr::VAddr;
use crate::format::versions::{DeadlistId, Subtree, VersionId, LEVELS};
use crate::format::PAGE_U64;
use crate::group::liveness;
use crate::map::cache::NodeCache;
use crate::map::delta::Delta;
use crate::map::layer::{Layer, Rehomed, Split};
use crate::map::merge::{Brought, Merge, MergeStore, Stop};
use crate::map::tree::{level_for, lookup, Lookup, Missing};
use crate::readpath::NodeWaiter;
use crate::snapshot::deadlist::{NoRoom, PageStore};
use crate::snapshot::forest::{Floor, Forest};
use crate::space::Segments;
use esker_base::checksum::crc32;
use esker_base::num::{to_u64, to_usize};
use esker_base::{BlockRange, GroupId, Stamp};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Extents of a layer with cuts that are sorted by version in one step.
const EXTENTS_PER_STEP: usize = 1024;
/// Entries of a deadlist that a merge gathers before it hands them on.
const DEAD_MAX: usize = 1 << 16;
/// Versions without changes that are passed over in one step.
const VERSIONS_PER_STEP: usize = 1024;

/// A group's layer on its way into the tree.
#[derive(Debug)]
pub(crate) struct GroupMerge {
    pub id: GroupId,
    layer: Arc<Layer>,
    /// The layer is being taken apart.
    split: Option<Split>,
    /// What each version brings, when there are cuts.
    parts: BTreeMap<usize, Delta>,
    /// Which version it is at: a number among the cuts, or the number of cuts for the head.
    at: usize,
    /// Root and level before the version it is at, and since when there are levels.
    root: ChildPointer,
    root_level: u8,
    /// Its nodes get a cryptographic hash.
    is_strong: bool,
    grown: [Stamp; LEVELS],
    /// The volume's size at the head, in bytes.
    size_bytes: u64,
    merge: Option<Merge>,
    /// What the parent of the version it is at uses.
    floor: Floor,
    /// The cut of that one's parent.
    grand: Stamp,
    /// The cut of the nearest version from the parent on that stays when rewind points go.
    stays: Stamp,
    list: Option<DeadlistId>,
    dead: Vec<DeadEntry>,
    subtrees: Vec<Subtree>,
    merged: Vec<(VersionId, ChildPointer, u8, [Stamp; LEVELS])>,
}

impl GroupMerge {
    /// What the version it is at brings.
    fn delta<'a>(&'a self, none: &'a Delta) -> &'a Delta {
        match self.layer.cuts.is_empty() {
            true => &self.layer.index,
            false => self.parts.get(&self.at).unwrap_or(none),
        }
    }

    /// What of pages with second addresses the version it is at settles: the first one does all of it.
    fn rehomed<'a>(&'a self, none: &'a BTreeSet<Rehomed>) -> &'a BTreeSet<Rehomed> {
        match self.at {
            0 => &self.layer.rehomed,
            _ => none,
        }
    }

    /// Begins the version it is at. False when its map is its parent's.
    fn begin(&mut self, store: esker_base::StoreId, forest: &Forest) -> bool {
        let cuts = &self.layer.cuts;
        if self.at > 0 {
            self.grand = self.floor.cut;
            self.floor.cut = cuts[self.at - 1].stamp;
            let before = forest.get(cuts[self.at - 1].version);
            if before.is_some_and(|v| !forest.only_leads_on(v)) {
                self.stays = self.floor.cut;
            }
        }
        self.floor = Forest::floor(self.floor.cut, &self.grown);
        let (size_bytes, list) = match cuts.get(self.at) {
            Some(cut) => {
                let version = forest.get(cut.version);
                (cut.size_bytes, version.map(|v| v.deadlist))
            }
            None => (
                self.size_bytes,
                forest.frozen_head(self.id).map(|(_, list)| list),
            ),
        };
        self.list = list;
        let none = Delta::default();
        let delta = self.delta(&none);
        let low = !self.root.vaddr.is_none()
            && self.root_level < level_for(size_bytes.div_ceil(PAGE_U64));
        if delta.is_empty() && !low && self.rehomed(&BTreeSet::new()).is_empty() {
            return false;
        }
        let last = self.rehomed(&BTreeSet::new()).last().map(|r| r.lba + 1);
        let end = delta.end().max(last.unwrap_or(0));
        let blocks = size_bytes.div_ceil(PAGE_U64).max(end);
        let merge = Merge::new(
            (store, self.id, self.is_strong),
            self.root,
            self.root_level,
            blocks,
        );
        if !self.root.vaddr.is_none() {
            let new = to_usize(u64::from(self.root_level)) + 1..=usize::from(merge.root_level);
            for since in self.grown.iter_mut().take(LEVELS).enumerate() {
                if new.contains(&since.0) {
                    *since.1 = Stamp(self.floor.cut.0 + 1);
                }
            }
        }
        self.merge = Some(merge);
        true
    }

    /// The version it is at is done.
    fn end(&mut self) {
        if let Some(merge) = self.merge.take() {
            (self.root, self.root_level) = (merge.root, merge.root_level);
        }
        if let Some(cut) = self.layer.cuts.get(self.at) {
            self.merged
                .push((cut.version, self.root, self.root_level, self.grown));
        }
        self.parts.remove(&self.at);
        self.at += 1;
    }
}

impl Engine {
    /// Goes on with merging, and then with what is to be taken apart.
    pub(crate) fn merge_step(&mut self, effects: &mut Vec<Effect>) {
        // The merge waits for nodes, and for the device when it is slower: nodes that are not
        // written stay in memory.
        let waits =
            |c: &Checkpointing| c.nodes_awaited > 0 || c.writes_outstanding >= MAP_WRITES_MAX;
        if self.checkpoint.as_ref().is_some_and(waits) {
            return;
        }
        let Some(mut c) = self.checkpoint.take() else {
            return;
        };
        if c.merge.is_none() {
            c.merge = self.next_merge(&mut c);
        }
        let Some(mut g) = c.merge.take() else {
            return self.reclaim_step(c, effects);
        };
        let stop = self.merge_on(&mut c, &mut g);
        let id = g.id;
        match &stop {
            Ok(Stop::Done) => self.group_merged(&mut c, g),
            Ok(Stop::Yield | Stop::NoSegment | Stop::Missing(_)) | Err(_) => c.merge = Some(g),
        }
        self.checkpoint = Some(c);
        match stop {
            Ok(Stop::Done | Stop::Yield) => self.busy = true,
            Ok(Stop::NoSegment) => return self.fence(StoreError::NoSegment, effects),
            Ok(Stop::Missing(node)) => self.fetch_for_merge(id, node, effects),
            Err(error) => return self.fence(error, effects),
        }
        self.issue_map_writes(effects);
    }

    fn next_merge(&mut self, c: &mut Checkpointing) -> Option<GroupMerge> {
        let mut turned = 0;
        while let Some(id) = c.to_merge.pop_front() {
            let Some(group) = self.groups.get(&id) else {
                continue;
            };
            if group.base.is_some() {
                // What it began with is merged first, in this very checkpoint.
                c.to_merge.push_back(id);
                turned += 1;
                if turned > c.to_merge.len() {
                    let text = format!("group {id} began with what no checkpoint merges");
                    self.fence_pending
                        .get_or_insert(StoreError::Invariant(text));
                    return None;
                }
                continue;
            }
            let Some(layer) = group.frozen.clone() else {
                continue;
            };
            let head = self.forest.frozen_head(id);
            let first = layer
                .cuts
                .first()
                .and_then(|cut| self.forest.get(cut.version));
            let parent = match (first, &head) {
                (Some(first), _) => Some(first.parent),
                (None, Some(_)) => self.forest.frozen_parent(id),
                (None, None) => None,
            };
            let cut_of = |id: Option<VersionId>| {
                let version = id.and_then(|id| self.forest.get(id));
                version.map_or(Stamp(0), |v| v.cut)
            };
            let parent = parent.filter(|id| id.0 != 0);
            let sabotaged = |of: VersionId| {
                let foreign = self.forest.get(of).is_some_and(|v| v.group != id);
                foreign && self.config.sabotage == Sabotage::CloneIgnoresBase
            };
            let grand = parent.and_then(|id| self.forest.get(id)).map(|v| v.parent);
            let grown = self.forest.head(id).map_or([Stamp(0); LEVELS], |h| h.grown);
            return Some(GroupMerge {
                id,
                split: (!layer.cuts.is_empty())
                    .then(|| Split::new(self.config.sabotage == Sabotage::MergeIntoOlder)),
                layer,
                parts: BTreeMap::new(),
                at: 0,
                root: group.root,
                root_level: group.root_level,
                is_strong: group.meta.key_id != 0,
                grown,
                // The size as of the freeze, and whatever lies behind it all the same.
                size_bytes: c.entries.get(&id).map_or(0, |e| e.meta.size_bytes),
                merge: None,
                floor: Floor {
                    cut: cut_of(parent.filter(|of| !sabotaged(*of))),
                    sure: 0,
                },
                grand: cut_of(grand),
                stays: parent.map_or(Stamp(0), |id| self.forest.stays_below(id, usize::MAX)),
                list: None,
                dead: Vec::new(),
                subtrees: Vec::new(),
                merged: Vec::new(),
            });
        }
        None
    }

    /// Goes on with one group for one step.
    fn merge_on(&mut self, c: &mut Checkpointing, g: &mut GroupMerge) -> Result<Stop, StoreError> {
        if let Some(mut split) = g.split.take() {
            match split.run(&g.layer, EXTENTS_PER_STEP) {
                true => g.parts = split.parts,
                false => g.split = Some(split),
            }
            return Ok(Stop::Yield);
        }
        for _ in 0..VERSIONS_PER_STEP {
            if g.at > g.layer.cuts.len() {
                return Ok(Stop::Done);
            }
            if g.merge.is_none() && !g.begin(self.sb.store, &self.forest) {
                g.end();
                continue;
            }
            let stop = self.merge_version(c, g)?;
            if stop != Stop::Done || g.dead.len() >= DEAD_MAX {
                self.hand_over_dead(c, g)?;
            }
            if stop != Stop::Done {
                return Ok(stop);
            }
            self.hand_over_dead(c, g)?;
            g.end();
            return Ok(Stop::Yield);
        }
        Ok(Stop::Yield)
    }

    /// Goes on with one version of one group.
    fn merge_version(
        &mut self,
        c: &mut Checkpointing,
        g: &mut GroupMerge,
    ) -> Result<Stop, StoreError> {
        let Some(mut merge) = g.merge.take() else {
            return Ok(Stop::Done);
        };
        let none = Delta::default();
        let (mut dead, mut subtrees) =
            (std::mem::take(&mut g.dead), std::mem::take(&mut g.subtrees));
        let mut store = Store {
            pages: self.pages(c),
            floor: g.floor,
            grown: g.grown,
            has_list: g.list.is_some(),
            sabotage: Sabotage::None,
            dead: &mut dead,
            subtrees: &mut subtrees,
        };
        store.sabotage = store.pages.sabotage;
        let nothing = BTreeSet::new();
        let brought = Brought {
            delta: g.delta(&none),
            rehomed: g.rehomed(&nothing),
        };
        let stop = merge.run(brought, &mut store, LEAVES_PER_STEP);
        let error = store.pages.error.take();
        (g.dead, g.subtrees, g.merge) = (dead, subtrees, Some(merge));
        match error {
            Some(error) => Err(error),
            None => Ok(stop),
        }
    }

    /// What a version no longer uses and its parent does becomes part of its deadlist.
    fn hand_over_dead(
        &mut self,
        c: &mut Checkpointing,
        g: &mut GroupMerge,
    ) -> Result<(), StoreError> {
        let (mut dead, subtrees) = (std::mem::take(&mut g.dead), std::mem::take(&mut g.subtrees));
        let Some(list) = g.list else {
            return Ok(());
        };
        if self.config.sabotage == Sabotage::DeadEntryLost && dead.len() > 2 {
            dead.pop();
        }
        self.dead_append(c, list, dead, (g.grand, g.stays))?;
        self.dead.add_subtrees(list, subtrees);
        Ok(())
    }

    /// Appends entries to a deadlist.
    pub(crate) fn dead_append(
        &mut self,
        c: &mut Checkpointing,
        list: DeadlistId,
        entries: Vec<DeadEntry>,
        cuts: (Stamp, Stamp),
    ) -> Result<(), StoreError> {
        let mut lists = std::mem::take(&mut self.dead);
        let mut pages = self.pages(c);
        let result = lists.append(list, entries, cuts, pages.store, &mut pages);
        let error = pages.error.take();
        self.dead = lists;
        finish(result, error)
    }

    /// Writes what is gathered of deadlists.
    pub(crate) fn dead_flush(&mut self, c: &mut Checkpointing) -> Result<(), StoreError> {
        let mut lists = std::mem::take(&mut self.dead);
        let mut pages = self.pages(c);
        let result = lists.flush(pages.store, &mut pages);
        let error = pages.error.take();
        self.dead = lists;
        finish(result, error)
    }

    /// The store as merges and deadlists write to it.
    pub(crate) fn pages<'a>(&'a mut self, c: &'a mut Checkpointing) -> Pages<'a> {
        Pages {
            store: self.sb.store,
            slots: self.sb.slots(),
            segs: &mut self.segs,
            cache: &mut self.cache,
            map: &mut self.map,
            discards: &mut self.discards,
            snapshot_discards: &mut c.discards,
            sabotage: self.config.sabotage,
            error: None,
        }
    }

    fn group_merged(&mut self, c: &mut Checkpointing, g: GroupMerge) {
        if let Some(group) = self.groups.get_mut(&g.id) {
            (group.root, group.root_level) = (g.root, g.root_level);
            let before = group.load();
            (group.frozen, group.frozen_blocks) = (None, 0);
            self.load.replace(before, group.load());
        }
        if let Some(entry) = c.entries.get_mut(&g.id) {
            (entry.root, entry.root_level) = (g.root, g.root_level);
        }
        for (version, root, level, grown) in g.merged {
            self.forest.merged(version, root, level, grown);
        }
        self.forest.grown(g.id, g.grown);
        for id in self.settle_clones() {
            if let (Some(group), Some(entry)) = (self.groups.get(&id), c.entries.get_mut(&id)) {
                (entry.root, entry.root_level) = (group.root, group.root_level);
            }
        }
    }

    /// Reads the node the merge needs, and those it will need next.
    fn fetch_for_merge(&mut self, id: GroupId, node: Missing, effects: &mut Vec<Effect>) {
        let mut wanted = vec![node];
        let none = Delta::default();
        if let Some((g, merge)) = self
            .checkpoint
            .as_ref()
            .and_then(|c| c.merge.as_ref())
            .and_then(|g| Some((g, g.merge.as_ref()?)))
        {
            let mut from = node.first_lba;
            for _ in 0..PREFETCH_LEAVES {
                let Some((lba, _)) = g.delta(&none).next_from(from) else {
                    break;
                };
                let mut walk = Lookup {
                    cache: &mut self.cache,
                    held: &merge.held,
                    runs: Vec::new(),
                    missing: Vec::new(),
                };
                let block = BlockRange::new(lba, 1);
                lookup(&mut walk, &g.root, g.root_level, block);
                wanted.append(&mut walk.missing);
                from = (lba / to_u64(FANOUT) + 1) * to_u64(FANOUT);
            }
        }
        self.fetch_for_checkpoint(id, wanted, effects);
    }

    /// Reads nodes or pages of deadlists that the checkpoint needs.
    pub(crate) fn fetch_for_checkpoint(
        &mut self,
        id: GroupId,
        mut wanted: Vec<Missing>,
        effects: &mut Vec<Effect>,
    ) {
        wanted.sort_by_key(|n| n.pointer.vaddr);
        wanted.dedup_by_key(|n| n.pointer.vaddr);
        let mut awaited = 0;
        for node in wanted {
            if !self.fetch_node(id, node, NodeWaiter::Merge, effects) {
                let vaddr = node.pointer.vaddr;
                return self.fence(StoreError::Map { group: id, vaddr }, effects);
            }
            awaited += 1;
        }
        if let Some(c) = &mut self.checkpoint {
            c.nodes_awaited += awaited;
        }
    }

    /// A node for the checkpoint came, or could not be read.
    pub(crate) fn node_for_merge(
        &mut self,
        group: GroupId,
        vaddr: VAddr,
        page: Option<Arc<NodePage>>,
    ) {
        let Some(c) = &mut self.checkpoint else {
            return;
        };
        c.nodes_awaited = c.nodes_awaited.saturating_sub(1);
        let Some(page) = page else {
            c.node_failures += 1;
            if c.node_failures >= NODE_READ_ATTEMPTS_MAX {
                self.fence_pending
                    .get_or_insert(StoreError::Map { group, vaddr });
            }
            return;
        };
        match c.merge.as_mut().and_then(|g| g.merge.as_mut()) {
            Some(merge) => _ = merge.held.insert(vaddr, page),
            None => _ = c.reclaim.held.insert(vaddr, page),
        }
    }
}

fn finish(result: Result<(), NoRoom>, error: Option<StoreError>) -> Result<(), StoreError> {
    match (error, result) {
        (Some(error), _) => Err(error),
        (None, Err(NoRoom)) => Err(StoreError::NoSegment),
        (None, Ok(())) => Ok(()),
    }
}

/// The store as a checkpoint writes to it: pages beside each other, and slots that die at once, now
/// and in what it will say.
pub(crate) struct Pages<'a> {
    pub store: esker_base::StoreId,
    slots: u32,
    segs: &'a mut Segments,
    cache: &'a mut NodeCache,
    map: &'a mut MapWriter,
    discards: &'a mut Vec<DiscardEntry>,
    snapshot_discards: &'a mut Vec<DiscardEntry>,
    sabotage: Sabotage,
    pub error: Option<StoreError>,
}

impl Pages<'_> {
    /// Writes a page; gives its address.
    fn write(&mut self, page: &Arc<NodePage>) -> Option<VAddr> {
        if self.map.gathered.len() >= MAP_WRITE_PAGES {
            self.map.gather();
        }
        let (_, generation, slot, _) = self.map.take(1, self.segs, self.slots)?;
        let vaddr = VAddr::new(generation, slot);
        if let Err(violation) = self.segs.set_live_in_checkpoint(vaddr) {
            self.error = Some(liveness(violation));
        }
        self.map.gathered.push((vaddr, page.clone()));
        Some(vaddr)
    }

    /// A slot dies.
    pub fn kill(&mut self, vaddr: VAddr) {
        self.cache.remove(vaddr);
        if let Err(violation) = self.segs.kill_in_checkpoint(vaddr, 1) {
            self.error.get_or_insert(liveness(violation));
        }
    }

    /// A subtree dies, in the background.
    pub fn discard(&mut self, entry: DiscardEntry) {
        self.discards.push(entry);
        self.snapshot_discards.push(entry);
    }
}

impl PageStore for Pages<'_> {
    fn write_page(&mut self, bytes: Box<[u8]>) -> Option<(VAddr, u32)> {
        let crc = crc32(&bytes);
        let page = Arc::new(NodePage::of(bytes));
        let vaddr = self.write(&page)?;
        // It may be needed before it is on the device.
        self.cache.insert(vaddr, page, true);
        Some((vaddr, crc))
    }

    fn drop_page(&mut self, page: VAddr) {
        self.kill(page);
    }
}

/// The store as the merge of one version writes to it.
struct Store<'a> {
    pages: Pages<'a>,
    floor: Floor,
    grown: [Stamp; LEVELS],
    /// The version has a parent, or may get one.
    has_list: bool,
    sabotage: Sabotage,
    dead: &'a mut Vec<DeadEntry>,
    subtrees: &'a mut Vec<Subtree>,
}

impl MergeStore for Store<'_> {
    fn node(&mut self, pointer: &ChildPointer) -> Option<Arc<NodePage>> {
        self.pages.cache.get(pointer)
    }

    fn write(&mut self, mut page: NodePage) -> Option<(VAddr, u32)> {
        page.seal();
        let crc = crc32(&page.bytes);
        let page = Arc::new(page);
        let vaddr = self.pages.write(&page)?;
        self.pages.cache.insert(vaddr, page, true);
        Some((vaddr, crc))
    }

    fn kill_block(&mut self, lba: u64, old: &LeafEntry, death: Stamp) {
        if old.stamp > self.floor.cut || self.sabotage == Sabotage::KillIgnoresCut {
            return self.pages.kill(old.vaddr);
        }
        self.dead.push(DeadEntry {
            birth: old.stamp,
            vaddr: old.vaddr,
            death,
            lba,
            kind: DeadKind::Data,
        });
    }

    fn kill_node(&mut self, old: &ChildPointer, level: u8, first_lba: u64, death: Stamp) {
        if self.floor.owns(level, old.max_stamp) {
            return self.pages.kill(old.vaddr);
        }
        let grown = self
            .grown
            .get(usize::from(level))
            .copied()
            .unwrap_or_default();
        self.dead.push(DeadEntry {
            birth: old.max_stamp.max(grown),
            vaddr: old.vaddr,
            death,
            lba: first_lba,
            kind: DeadKind::Node,
        });
    }

    fn rehome(&mut self, entry: Option<&LeafEntry>, rehomed: &Rehomed) -> bool {
        let ignores = self.sabotage == Sabotage::RehomeIgnoresCut;
        let own = |entry: &&LeafEntry| entry.stamp > self.floor.cut || ignores;
        let settles = entry.filter(own).is_some();
        self.pages.kill(match settles {
            true => rehomed.old,
            false => rehomed.new,
        });
        settles
    }

    fn discard(&mut self, subtree: Subtree) {
        if self.has_list && self.floor.cut.0 > 0 {
            self.subtrees.push(subtree);
        } else {
            let whole = DiscardEntry::whole(subtree.node, subtree.level);
            self.pages.discard(whole);
        }
    }
}
