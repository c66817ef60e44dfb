//! Checkpoints: freeze, merge the frozen deltas into the tree, write the tables, sync, and point the
//! superblock there. The log goes on meanwhile.
//!
//! 1. *Freeze*: the state of every group as of the next record, the live slots, the log position.
//! 2. *Merging*: frozen deltas go into the tree; nodes are written beside the old ones.
//! 3. *Body*: the checkpoint itself is written; one sync covers it, the nodes and every record
//!    before the log position.
//! 4. *First*, *Second*: two copies of the superblock, sync, the other two, sync.
//! 5. What became empty is free.

use crate::config::Sabotage;
use crate::engine::{Engine, Purpose};
use crate::error::StoreError;
use crate::event::Effect;
use crate::format::checkpoint::{
    Checkpoint, Counters, DiscardEntry, GroupEntry, LogEntryMeta, SegmentKind,
};
use crate::format::node::NodePage;
use crate::format::superblock::{Chunk, LogStart, Superblock, CHECKPOINT_COPIES, CHUNKS_MAX};
use crate::format::vaddr::VAddr;
use crate::format::{PAGE, PAGE_U64};
use crate::group::Load;
use crate::map::tree::Missing;
use crate::merging::GroupMerge;
use crate::snapshot::Reclaim;
use crate::space::Segments;
use bytes::Bytes;
use esker_base::checksum::crc32;
use esker_base::num::{to_u32_saturating, to_u64};
use esker_base::{AlignedBuf, DiskOp, GroupId, Moment, Seq, WallClock};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

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

/// Where map nodes and checkpoints are written.
#[derive(Debug, Default)]
pub(crate) struct MapWriter {
    segment: Option<(u32, u64)>,
    pub slot: u32,
    /// [`Segments::deaths`] when the newest checkpoint began.
    pub deaths_frozen: u64,
    /// Nodes that the checkpoint in progress may have to write, at most.
    pub nodes_frozen: u64,
    /// Nodes gathered for the next write, at consecutive slots.
    pub gathered: Vec<(VAddr, Arc<NodePage>)>,
    /// Writes to be issued: segment, slot, nodes, bytes.
    ready: Vec<(u32, u32, Vec<VAddr>, Bytes)>,
    /// How often in a row a node of a discarded subtree could not be read.
    pub discard_failures: u32,
    /// Nodes being read, with what they must be.
    expected: BTreeMap<VAddr, (Missing, GroupId)>,
}

impl MapWriter {
    pub fn is_open(&self) -> bool {
        self.segment.is_some()
    }
    /// Goes on in a segment that an earlier process began.
    pub fn resume(&mut self, segment: u32, generation: u64, slot: u32) {
        (self.segment, self.slot) = (Some((segment, generation)), slot);
    }
    pub fn expect(&mut self, vaddr: VAddr, node: Missing, group: GroupId) {
        self.expected.insert(vaddr, (node, group));
    }
    pub fn expected(&mut self, vaddr: VAddr) -> Option<(Missing, GroupId)> {
        self.expected.remove(&vaddr)
    }

    /// Room for up to `wanted` pages at consecutive slots: segment, generation, slot, pages.
    pub fn take(
        &mut self,
        wanted: u32,
        segs: &mut Segments,
        slots: u32,
    ) -> Option<(u32, u64, u32, u32)> {
        if self.segment.is_none() || self.slot >= slots {
            self.gather();
            if let Some((old, _)) = self.segment.take() {
                segs.seal(old);
            }
            self.segment = Some(segs.open(SegmentKind::Map)?);
            self.slot = 0;
        }
        let (segment, generation) = self.segment?;
        let pages = wanted.min(slots - self.slot);
        let slot = self.slot;
        self.slot += pages;
        segs.set_written(segment, self.slot);
        Some((segment, generation, slot, pages))
    }

    /// Turns what is gathered into a write.
    pub fn gather(&mut self) {
        let Some((first, _)) = self.gathered.first() else {
            return;
        };
        let Some((segment, _)) = self.segment else {
            return;
        };
        let slot = first.slot();
        let mut buf = AlignedBuf::zeroed(self.gathered.len() * PAGE);
        let mut nodes = Vec::with_capacity(self.gathered.len());
        for (i, (vaddr, page)) in self.gathered.drain(..).enumerate() {
            buf[i * PAGE..(i + 1) * PAGE].copy_from_slice(&page.bytes);
            nodes.push(vaddr);
        }
        self.ready.push((segment, slot, nodes, buf.freeze()));
    }
}

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
    pub merge: Option<GroupMerge>,
    pub nodes_awaited: usize,
    pub node_failures: u32,
    pub discards: Vec<DiscardEntry>,
    counters: Counters,
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
    pub(crate) fn checkpoint_if_due(&mut self, _now: Moment) {
        if self.checkpoint.is_some() {
            return;
        }
        let refused = self.refused.take();
        let short = || (refused || self.room_is_short()) && self.checkpoint_helps();
        let due = self.checkpoint_wanted
            || self.log_is_long()
            // What an opening found in the log is in memory only, and the next one finds it again.
            || self.load.blocks * PAGE_U64 >= self.checkpoint_bytes()
            || short();
        if due {
            self.checkpoint_wanted = false;
            self.checkpoint_begin(false);
        }
    }

    /// Freezes the state that the checkpoint will hold.
    pub(crate) fn checkpoint_begin(&mut self, opening: bool) {
        if let Err(error) = self.finish_deletes() {
            self.fence_pending.get_or_insert(error);
            return;
        }
        self.publish_collected();
        self.log.bytes_since_checkpoint = 0;
        self.log.items_since_checkpoint = 0;
        let mut nodes_frozen = 0;
        (
            self.log.records_since_checkpoint,
            self.log.count_since_checkpoint,
        ) = (0, 0);
        let mut entries = BTreeMap::new();
        let mut to_merge = VecDeque::new();
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
            entries.insert(*id, group.to_entry());
        }
        self.load = Load::default();
        for group in self.groups.values() {
            self.load.replace(Load::default(), group.load());
        }
        self.map.nodes_frozen = nodes_frozen;
        self.map.deaths_frozen = self.segs.deaths;
        self.segs.freeze();
        self.forest.freeze();
        self.counters.checkpoints += 1;
        self.meters.checkpoint_begins();
        self.checkpoint = Some(Checkpointing {
            phase: Phase::Merging,
            log: self.log.position,
            to_merge,
            entries,
            merge: None,
            reclaim: Reclaim::default(),
            nodes_awaited: 0,
            node_failures: 0,
            discards: self.discards.clone(),
            counters: self.counters,
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

    /// Writes the checkpoint itself.
    pub(crate) fn write_body(&mut self, effects: &mut Vec<Effect>) {
        let Some(mut c) = self.checkpoint.take() else {
            return;
        };
        let keep = self.collector.unpublished_segments();
        c.freed = self.segs.emptied(c.log.generation, &keep);
        self.cut_logs_before_reuse(&mut c, effects);
        let (segments, pieces) = self.segs.frozen_entries();
        let mut versions = self.forest.frozen_table();
        versions.deadlists = self.dead.to_table(versions.next_deadlist);
        self.forest.thaw();
        let body = Checkpoint {
            versions,
            counters: c.counters,
            segments,
            pieces,
            groups: std::mem::take(&mut c.entries).into_values().collect(),
            discards: std::mem::take(&mut c.discards),
        }
        .encode();
        c.phase = Phase::Body;
        c.superblock.checkpoint_bytes = to_u64(body.len());
        c.superblock.chunks.clear();
        self.map.gather();
        let mut failed = false;
        for _ in 0..CHECKPOINT_COPIES {
            match self.write_body_copy(&body) {
                Some(chunks) => c.superblock.chunks.extend(chunks),
                None => failed = true,
            }
        }
        failed |= c.superblock.chunks.len() > CHUNKS_MAX;
        c.superblock.sequence += 1;
        c.superblock.log = c.log;
        if self.config.sabotage == Sabotage::ReuseBeforeCheckpoint {
            self.segs.release(&std::mem::take(&mut c.freed));
        }
        self.checkpoint = Some(c);
        if failed {
            return self.fence(StoreError::NoSegment, effects);
        }
        self.issue_map_writes(effects);
    }

    /// Hands one copy of the checkpoint to the map's writer. None without room.
    fn write_body_copy(&mut self, body: &[u8]) -> Option<Vec<Chunk>> {
        let mut chunks = Vec::new();
        let mut rest = body;
        while !rest.is_empty() {
            let wanted = to_u32_saturating(rest.len().div_ceil(PAGE));
            let taken = self.map.take(wanted, &mut self.segs, self.sb.slots());
            let (segment, _, slot, pages) = taken?;
            let bytes = (pages as usize * PAGE).min(rest.len());
            let mut buf = AlignedBuf::zeroed(pages as usize * PAGE);
            buf[..bytes].copy_from_slice(&rest[..bytes]);
            rest = &rest[bytes..];
            let crc = crc32(&buf);
            chunks.push(Chunk {
                segment,
                slot,
                pages,
                crc,
            });
            let write = (segment, slot, Vec::new(), buf.freeze());
            self.map.ready.push(write);
        }
        Some(chunks)
    }

    /// Entries whose payload lies in a segment about to be reused leave the retained Raft log: a
    /// follower that far behind catches up by versions.
    fn cut_logs_before_reuse(&mut self, c: &mut Checkpointing, effects: &mut Vec<Effect>) {
        let freed: BTreeSet<u32> = c.freed.iter().copied().collect();
        for (id, entry) in &mut c.entries {
            // Not to be found where it will be in use again, or left behind when survivors moved.
            let lost = |e: &&LogEntryMeta| {
                let runs = self.segs.locate_run(e.payload, u64::from(e.payload_pages));
                runs.is_none_or(|runs| runs.iter().any(|(segment, ..)| freed.contains(segment)))
            };
            let last = entry
                .log
                .iter()
                .filter(|e| e.payload_pages > 0 && e.index <= entry.applied)
                .filter(lost)
                .map(|e| e.index)
                .max();
            let Some(last) = last else {
                continue;
            };
            let cut = entry.log.iter().take_while(|e| e.index <= last).count();
            for e in entry.log.drain(..cut) {
                (entry.truncated_index, entry.truncated_term) = (e.index, e.term);
            }
            if let Some(group) = self.groups.get_mut(id) {
                group.truncate(last);
            }
            let (index, term) = (entry.truncated_index, entry.truncated_term);
            effects.push(Effect::LogTruncated {
                group: *id,
                index,
                term,
            });
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
        self.map.nodes_frozen = 0;
        self.superblock_order = [0, 1, 2, 3];
        self.segs.release(&c.freed);
        self.collected_released();
        // As long as something was given back, the next one gives back more.
        self.checkpoint_wanted |= c.reclaim.more && !self.stopping;
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
