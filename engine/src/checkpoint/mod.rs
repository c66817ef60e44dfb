//! Checkpoints: freeze, merge the frozen deltas into the tree, write what changed of the tables, sync,
//! and point the superblock there. The log goes on meanwhile.
//!
//! 1. *Freeze*: the state of every group as of the next record, the live slots, the log position.
//! 2. *Merging*: frozen deltas go into the tree; nodes are written beside the old ones.
//! 3. *Body*: pages of the tables that changed, and the checkpoint itself, are written; one sync
//!    covers them, the nodes and every record before the log position.
//! 4. *First*, *Second*: two copies of the superblock, sync, the other two, sync.
//! 5. What became empty is free.

mod body;
mod writer;

use crate::engine::{Engine, Purpose};
use crate::event::Effect;
use crate::format::checkpoint::{Counters, DiscardEntry, GroupEntry};
use crate::format::superblock::{LogStart, Superblock};
use crate::format::table::TableId;
use crate::format::vaddr::VAddr;
use crate::format::version_records::version_key;
use crate::group::Load;
use crate::keys::spent_epochs;
use crate::merging::GroupMerge;
use crate::snapshot::Reclaim;
use esker_base::{AlignedBuf, DiskOp, Epoch, GroupId, Moment, Seq, WallClock};
use std::collections::{BTreeMap, VecDeque};

/// Leaves merged in one step, so that other work gets its turn.
pub(crate) const LEAVES_PER_STEP: usize = 64;
/// Leaves looked for ahead of the merge.
pub(crate) const PREFETCH_LEAVES: usize = 64;
/// Pages gathered into one write of map nodes.
pub(crate) const MAP_WRITE_PAGES: usize = 64;
/// Writes of map nodes in flight at which the merge waits (4 MiB of nodes).
pub(crate) const MAP_WRITES_MAX: usize = 16;
/// How often a map node that cannot be read is tried again before the store is fenced.
pub(crate) const NODE_READ_ATTEMPTS_MAX: u32 = 4;

pub(crate) use writer::MapWriter;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Merging,
    Body,
    First,
    Second,
    Done,
}

/// A checkpoint on its way.
#[derive(Debug)]
pub(crate) struct Checkpointing {
    phase: Phase,
    log: LogStart,
    pub to_merge: VecDeque<GroupId>,
    pub entries: BTreeMap<GroupId, GroupEntry>,
    /// Epochs that it leaves out, because nothing needs their keys.
    spent: Vec<(GroupId, Vec<esker_base::Epoch>)>,
    pub merge: Option<GroupMerge>,
    pub nodes_awaited: usize,
    pub node_failures: u32,
    pub discards: Vec<DiscardEntry>,
    counters: Counters,
    /// Clones that do not exist and may have lost entries.
    doubtful: Vec<GroupId>,
    clones: u64,
    freed: Vec<u32>,
    superblock: Superblock,
    pub writes_outstanding: usize,
    /// The phase changed and its writes are to be issued.
    enter: bool,
    tokens: Vec<u64>,
    pub reclaim: Reclaim,
    /// Catalog operations that are done once it is durable.
    pub catalog: Vec<u64>,
    opening: bool,
}

impl Checkpointing {
    /// Records that it covers are not written yet.
    pub fn waits_for_log(&self, log_written: Seq) -> bool {
        self.log.seq.0 > log_written.0 + 1
    }

    /// All writes of the phase are done and only a sync is missing.
    pub fn wants_sync(&self, log_written: Seq) -> bool {
        let log_is_there = self.log.seq.0 <= log_written.0 + 1;
        match self.phase {
            Phase::Merging | Phase::Done => false,
            Phase::Body => !self.enter && self.writes_outstanding == 0 && log_is_there,
            Phase::First | Phase::Second => !self.enter && self.writes_outstanding == 0,
        }
    }
}

impl Engine {
    /// Begins a checkpoint when one is asked for or enough has happened.
    pub(crate) fn checkpoint_if_due(&mut self, now: Moment) {
        if self.checkpoint.is_some() {
            return;
        }
        if std::mem::take(&mut self.deleted) && self.reclaim_at.is_none() {
            self.reclaim_at = Some(now + self.config.reclaim_delay);
        }
        let reclaim = self.reclaim_at.is_some_and(|at| now >= at);
        let refused = self.refused.get();
        let short = || (refused || self.room_is_short()) && self.checkpoint_helps();
        let due = self.checkpoint_wanted || reclaim || self.checkpoint_is_due() || short();
        if due {
            self.checkpoint_wanted = false;
            self.checkpoint_begin(false);
        }
        // What is not applied yet is looked at when it is.
        self.refused.set(refused && !due && self.entries_wait());
    }

    /// Freezes the state that the checkpoint will hold.
    pub(crate) fn checkpoint_begin(&mut self, opening: bool) {
        if let Err(error) = self.finish_deletes() {
            self.fence_pending.get_or_insert(error);
            return;
        }
        self.publish_collected();
        self.segs.drop_emptied();
        self.publish_rehomed();
        (self.deleted, self.reclaim_at) = (false, None);
        self.log.bytes_since_checkpoint = 0;
        self.log.items_since_checkpoint = 0;
        let mut nodes_frozen = 0;
        (
            self.log.records_since_checkpoint,
            self.log.count_since_checkpoint,
        ) = (0, 0);
        let mut entries = BTreeMap::new();
        let mut to_merge = VecDeque::new();
        let mut spent = Vec::new();
        let mut leaving: BTreeMap<GroupId, Vec<Epoch>> = BTreeMap::new();
        for (id, epochs) in self.epochs_leaving.iter().flat_map(|l| &l.spent) {
            leaving.entry(*id).or_default().extend(epochs);
        }
        for (id, group) in &mut self.groups {
            // A map that must grow is merged even with nothing: its hash depends on its height, and
            // is to be the same on all replicas.
            if !group.active.is_empty() || group.is_low() {
                group.freeze();
                to_merge.push_back(*id);
            }
            if !group.suspended {
                let keep = if group.is_single() {
                    0
                } else {
                    self.config.retained_entries_max
                };
                group.truncate(esker_base::RaftIndex(group.applied.0.saturating_sub(keep)));
            }
            nodes_frozen += group.nodes_needed();
            group.footprint_restart();
            let mut entry = group.to_entry();
            let mut epochs = spent_epochs(group, &self.forest);
            // What was left out once stays out, whatever has happened since.
            epochs.extend(leaving.get(id).into_iter().flatten());
            if !epochs.is_empty() {
                entry.epochs.retain(|e| !epochs.contains(&e.epoch));
                spent.push((*id, epochs));
            }
            entries.insert(*id, entry);
        }
        let feeds = self.groups.values().filter(|g| g.feed.is_some());
        let waiting = feeds.map(|g| (g.meta.feeds, g.waiting()));
        for (id, operations) in waiting.collect::<Vec<_>>() {
            if let Some(group) = self.groups.get_mut(&id) {
                operations
                    .iter()
                    .for_each(|op| group.footprint_add(Some(op)));
            }
        }
        self.load = Load::default();
        for group in self.groups.values() {
            self.load.replace(Load::default(), group.load());
        }
        self.map.nodes_frozen = nodes_frozen;
        self.map.deaths_frozen = self.segs.deaths;
        self.segs.freeze();
        let changed = self.forest.take_changed().into_iter().map(version_key);
        let tables = self.segs.tables_mut();
        tables.versions_changed(TableId::Versions, changed);
        self.forest.freeze();
        self.counters.checkpoints += 1;
        self.meters.checkpoint_begins();
        self.checkpoint = Some(Checkpointing {
            phase: Phase::Merging,
            log: self.log.position,
            to_merge,
            entries,
            spent,
            merge: None,
            reclaim: Reclaim::default(),
            nodes_awaited: 0,
            node_failures: 0,
            discards: self.discards.clone(),
            counters: self.counters,
            doubtful: self.doubtful.iter().copied().collect(),
            clones: self.clones_begun,
            freed: Vec::new(),
            superblock: self.sb.clone(),
            writes_outstanding: 0,
            enter: true,
            tokens: std::mem::take(&mut self.checkpoint_tokens),
            catalog: std::mem::take(&mut self.catalog_durable),
            opening,
        });
    }

    /// Goes on with the checkpoint as far as possible.
    pub(crate) fn checkpoint_step(
        &mut self,
        now: Moment,
        wall: WallClock,
        effects: &mut Vec<Effect>,
    ) {
        self.note_creation(wall);
        let Some(c) = &mut self.checkpoint else {
            return;
        };
        let enter = std::mem::take(&mut c.enter);
        match c.phase {
            Phase::Merging => {
                if enter {
                    for (id, entry) in &c.entries {
                        let (group, index, term) =
                            (*id, entry.truncated_index, entry.truncated_term);
                        effects.push(Effect::LogTruncated { group, index, term });
                    }
                }
                self.merge_step(effects);
            }
            Phase::First if enter => {
                let [a, b, ..] = self.superblock_order;
                self.write_superblocks([a, b], effects);
            }
            Phase::Second if enter => {
                let [.., a, b] = self.superblock_order;
                self.write_superblocks([a, b], effects);
            }
            Phase::Done => self.checkpoint_finish(now, effects),
            Phase::Body | Phase::First | Phase::Second => {}
        }
    }

    /// The first superblock of a store says when it was created.
    fn note_creation(&mut self, wall: WallClock) {
        if let Some(c) = self
            .checkpoint
            .as_mut()
            .filter(|c| c.superblock.created.0 == 0)
        {
            c.superblock.created = wall;
        }
    }

    pub(crate) fn issue_map_writes(&mut self, effects: &mut Vec<Effect>) {
        if self.fenced.is_some() {
            return;
        }
        for (segment, slot, nodes, bytes) in std::mem::take(&mut self.map.ready) {
            let offset = self.sb.offset_of(segment, slot);
            let op = DiskOp::Write {
                offset,
                bufs: vec![bytes],
            };
            self.disk(op, Purpose::MapWrite(nodes), effects);
            if let Some(c) = &mut self.checkpoint {
                c.writes_outstanding += 1;
            }
        }
    }

    /// A write of map nodes or of the checkpoint ended.
    pub(crate) fn map_written(&mut self, nodes: &[VAddr]) {
        nodes.iter().for_each(|vaddr| self.cache.written(*vaddr));
        if let Some(c) = &mut self.checkpoint {
            c.writes_outstanding -= 1;
        }
    }

    /// A superblock copy was written.
    pub(crate) fn superblock_written(&mut self) {
        if let Some(c) = &mut self.checkpoint {
            c.writes_outstanding -= 1;
        }
    }

    fn write_superblocks(&mut self, copies: [u32; 2], effects: &mut Vec<Effect>) {
        let Some(c) = &mut self.checkpoint else {
            return;
        };
        let superblock = c.superblock.clone();
        c.writes_outstanding += copies.len();
        for copy in copies {
            let bytes = AlignedBuf::copy_of(&superblock.encode(copy)).freeze();
            let offset = Superblock::copy_offset(copy as usize);
            let op = DiskOp::Write {
                offset,
                bufs: vec![bytes],
            };
            self.disk(op, Purpose::Super, effects);
        }
    }

    /// A sync that covers the checkpoint's writes ended.
    pub(crate) fn checkpoint_synced(&mut self) {
        let Some(c) = &mut self.checkpoint else {
            return;
        };
        c.phase = match c.phase {
            Phase::Body => {
                // Once, because all four copies must say the same.
                c.superblock.next_generation = self.segs.next_generation;
                Phase::First
            }
            Phase::First => Phase::Second,
            Phase::Second => Phase::Done,
            other @ (Phase::Merging | Phase::Done) => other,
        };
        c.enter = true;
    }

    fn checkpoint_finish(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        let Some(c) = self.checkpoint.take() else {
            return;
        };
        self.meters.checkpoint_ends();
        self.sb = c.superblock;
        self.checkpoints_done = c.counters.checkpoints;
        self.clones_begun -= c.clones;
        self.epochs_left_out(c.spent);
        let ended = self.groups.values().any(|g| g.ended);
        self.map.nodes_frozen = 0;
        self.superblock_order = [0, 1, 2, 3];
        self.segs.release(&c.freed);
        self.collected_released();
        self.take_totals();
        if self.config.table_audit {
            if let Err(error) = self.audit_totals() {
                self.fence_pending.get_or_insert(error);
            }
        }
        self.diffs_go_on(effects);
        self.harvests_go_on(effects);
        // As long as something was given back, the next one gives back more.
        self.checkpoint_wanted |= (c.reclaim.more || ended) && !self.stopping;
        self.busy = true; // another one may be wanted, and the log may wait for the room
        for token in c.tokens {
            effects.push(Effect::CheckpointDone { token });
        }
        for token in c.catalog {
            let result = Ok(());
            effects.push(Effect::CatalogDone { token, result });
        }
        if c.opening {
            self.recovery_opened(now, effects);
        }
    }
}
