//! One group in the store: its Raft log as the store holds it, and its map.

use crate::error::StoreError;
use crate::event::{AppendEntry, RecoveredGroup};
use crate::format::checkpoint::{
    EpochEntry, FeedEntry, GroupEntry, GroupMeta, Jump, LogEntryMeta, Membership,
};
use crate::format::codec::FormatError;
use crate::format::manifest::Manifest;
use crate::format::node::ChildPointer;
use crate::format::operation::{Operation, RequestId};
use crate::format::record::{EntryKind, HardState};
use crate::format::vaddr::VAddr;
use crate::format::{PAGE, PAGE_U64};
use crate::map::delta::{Overlay, PendingExtent};
use crate::map::footprint::Footprint;
use crate::map::layer::{Layer, Rehomed};
use crate::map::tree::level_for;
use crate::requests::Requests;
use crate::snapshot::Base;
use crate::space::Segments;
use crate::vouch::Proof;
use bytes::Bytes;
use esker_base::num::{to_u32_saturating, to_u64};
use esker_base::{BlockRange, Epoch, RaftIndex, Seq, Stamp, Term};
use std::collections::VecDeque;
use std::sync::Arc;

/// An entry of a group's Raft log.
#[derive(Clone, Debug)]
pub(crate) struct LogEntry {
    pub term: Term,
    pub index: RaftIndex,
    pub kind: EntryKind,
    pub data: Bytes,
    pub operation: Option<Arc<Operation>>,
    pub request: RequestId,
    pub payload_pages: u32,
    /// First payload slot; none without payload, and until the record is built.
    pub vaddr: VAddr,
    /// The record it is in; zero until the record is built.
    pub seq: Seq,
    /// The payload, until it is on the device.
    pub memory: Option<Vec<Bytes>>,
    /// Its slots are live because it is appended.
    pub live: bool,
}

impl LogEntry {
    /// Decodes what an entry says.
    pub fn decode(
        kind: EntryKind,
        data: &Bytes,
    ) -> Result<(Option<Arc<Operation>>, RequestId), FormatError> {
        if kind != EntryKind::Normal || data.is_empty() {
            return Ok((None, RequestId::default()));
        }
        let (operation, request) = Operation::decode(data)?;
        Ok((Some(Arc::new(operation)), request))
    }

    /// The payload of block `block` while it is in memory.
    pub fn block_in_memory(&self, block: u64) -> Option<Bytes> {
        let mut skip = esker_base::num::to_usize(block) * PAGE;
        for piece in self.memory.as_ref()? {
            if skip < piece.len() {
                return Some(piece.slice(skip..skip + PAGE));
            }
            skip -= piece.len();
        }
        None
    }
}

/// A group as tests and the layers above may see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupView {
    /// What it is.
    pub meta: GroupMeta,
    /// Hard state.
    pub hard_state: HardState,
    /// Applied.
    pub applied: RaftIndex,
    /// Last entry.
    pub last_index: RaftIndex,
    /// Open epoch.
    pub epoch: Epoch,
    /// Highest stamp applied.
    pub max_stamp: Stamp,
    /// Data blocks the volume references. Exact after a checkpoint; until then blocks overwritten
    /// since the last one count twice. What a clone began with counts once a checkpoint has merged that.
    pub used_blocks: u64,
    /// A damaged record may have held entries of it.
    pub suspended: bool,
    /// Root of the map: changes only with checkpoints.
    pub root: ChildPointer,
}

/// What a group, or all groups together, will make checkpoints write. Summed as it changes, because
/// every step of the engine asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    /// Extents that no checkpoint has frozen.
    pub extents: u64,
    /// Data blocks that are not in the tree yet.
    pub blocks: u64,
    /// Map nodes that checkpoints will write, at most.
    pub nodes: u64,
    /// Snapshots that no checkpoint holds.
    pub cuts: u64,
}

impl Load {
    /// A group's part changed.
    pub fn replace(&mut self, before: Load, after: Load) {
        self.extents = self.extents + after.extents - before.extents;
        self.blocks = self.blocks + after.blocks - before.blocks;
        self.nodes = self.nodes + after.nodes - before.nodes;
        self.cuts = self.cuts + after.cuts - before.cuts;
    }
}

/// A group in the store.
#[derive(Debug)]
pub(crate) struct Group {
    pub meta: GroupMeta,
    pub hard_state: HardState,
    pub truncated: (RaftIndex, Term),
    pub applied: RaftIndex,
    pub epoch: Epoch,
    pub epochs: Vec<EpochEntry>,
    /// From this epoch on, neither the head nor what is cut of it holds blocks under older keys; zero when
    /// that is not known.
    pub resealed: Epoch,
    pub max_stamp: Stamp,
    pub root: ChildPointer,
    pub root_level: u8,
    /// What a clone began with, until a checkpoint has merged that: then it becomes the root.
    pub base: Option<Base>,
    pub last_seq: Seq,
    pub suspended: bool,
    /// Its end is in the log; it goes away once no checkpoint is working on it.
    pub deleting: bool,
    /// It goes away after the next checkpoint, which merges what clones began with.
    pub ended: bool,
    /// Number of the first checkpoint that has its last rollback.
    pub rolled_back_in: u64,
    /// Entries after the cut point, by index.
    pub log: VecDeque<LogEntry>,
    pub overlay: Overlay,
    pub active: Layer,
    /// The newest cut under the head; zero without snapshots.
    pub newest_cut: Stamp,
    /// Data blocks that the head has in `active`.
    pub active_blocks: u64,
    /// What the checkpoint in progress merges.
    pub frozen: Option<Arc<Layer>>,
    /// Data blocks that the head has in `frozen`.
    pub frozen_blocks: u64,
    /// Map nodes that the next checkpoint, or one after it, writes for what is in records and not
    /// frozen.
    pub footprint: Footprint,
    /// What is to be applied once a checkpoint has merged what is: through which index, and the
    /// membership after it if that changes.
    pub parked: VecDeque<(RaftIndex, Option<Membership>)>,
    /// What was carried out of what other nodes may ask for again.
    pub requests: Requests,
    /// The newest rollbacks, rising, and the stamp above which none is missing.
    pub jumps: Vec<Jump>,
    pub jumps_since: Stamp,
    /// How far it has brought the group that it feeds.
    pub feed: Option<FeedEntry>,
    /// How sure it is that its roots are its own.
    pub proof: Proof,
    /// Since this checkpoint each has a MAC over them.
    pub signed_in: Option<u64>,
    /// The first one that had.
    pub first_mac_in: Option<u64>,
    /// The next snapshot gets a manifest; and that of the last one which got one.
    pub wants_manifest: bool,
    pub manifest: Option<Box<Manifest>>,
}

impl Group {
    pub fn new(meta: GroupMeta) -> Self {
        Self {
            meta,
            hard_state: HardState::default(),
            truncated: (RaftIndex(0), Term(0)),
            applied: RaftIndex(0),
            epoch: Epoch(0),
            epochs: Vec::new(),
            resealed: Epoch(0),
            max_stamp: Stamp(0),
            root: ChildPointer::default(),
            root_level: 0,
            base: None,
            last_seq: Seq(0),
            suspended: false,
            deleting: false,
            ended: false,
            rolled_back_in: 0,
            log: VecDeque::new(),
            overlay: Overlay::default(),
            active: Layer::default(),
            newest_cut: Stamp(0),
            active_blocks: 0,
            frozen: None,
            frozen_blocks: 0,
            footprint: Footprint::default(),
            parked: VecDeque::new(),
            requests: Requests::default(),
            jumps: Vec::new(),
            jumps_since: Stamp(0),
            feed: None,
            proof: Proof::Fresh,
            signed_in: None,
            first_mac_in: None,
            wants_manifest: false,
            manifest: None,
        }
    }

    /// What the keys of an epoch's blocks are derived from, if they are sealed.
    pub fn epoch_entry(&self, epoch: Epoch) -> Option<&EpochEntry> {
        let at = self.epochs.binary_search_by_key(&epoch, |e| e.epoch).ok()?;
        self.epochs.get(at)
    }

    /// An epoch is open that writes under this key, and perhaps the head holds nothing under older ones.
    pub fn write_under(&mut self, key_id: u32, resealed: bool) {
        if self.meta.key_id != 0 && key_id > self.meta.key_id {
            self.meta.key_id = key_id;
            self.resealed = Epoch(0);
        }
        if resealed && key_id == self.meta.key_id && self.resealed == Epoch(0) {
            self.resealed = self.epoch;
        }
    }

    /// Whether the newest key is not the one that an epoch writes under.
    pub fn is_under_older_key(&self, epoch: &EpochEntry) -> bool {
        (epoch.volume, epoch.key_id) != (self.meta.volume, self.meta.key_id)
    }

    /// Whether a cut of the head in this epoch holds blocks under the newest key alone.
    pub fn is_resealed(&self, epoch: Epoch) -> bool {
        self.resealed != Epoch(0) && epoch >= self.resealed
    }

    pub fn from_entry(entry: GroupEntry) -> Result<Self, FormatError> {
        let mut group = Self::new(entry.meta);
        group.hard_state = entry.hard_state;
        group.truncated = (entry.truncated_index, entry.truncated_term);
        group.applied = entry.applied;
        group.epoch = entry.epoch;
        group.epochs = entry.epochs;
        group.resealed = entry.resealed;
        group.max_stamp = entry.max_stamp;
        group.root = entry.root;
        group.root_level = entry.root_level;
        group.last_seq = entry.last_seq;
        group.suspended = entry.suspended;
        group.requests = Requests::from_entries(entry.requests);
        (group.jumps, group.jumps_since) = (entry.jumps, entry.jumps_since);
        group.feed = entry.feed;
        group.signed_in = entry.mac.map(|_| 0);
        group.first_mac_in = group.signed_in;
        (group.ended, group.deleting) = (entry.ended, entry.ended);
        for e in entry.log {
            let (operation, request) = LogEntry::decode(e.kind, &e.data)?;
            group.log.push_back(LogEntry {
                term: e.term,
                index: e.index,
                kind: e.kind,
                data: e.data,
                operation,
                request,
                payload_pages: e.payload_pages,
                vaddr: e.payload,
                seq: Seq(1), // in a record, whichever: only zero has a meaning
                memory: None,
                live: e.index > entry.applied,
            });
        }
        group.rebuild_overlay();
        Ok(group)
    }

    /// A group of one: nobody else can cut its log.
    pub fn is_single(&self) -> bool {
        let m = &self.meta.membership;
        m.voters == [self.meta.replica] && m.voters_outgoing.is_empty() && m.learners.is_empty()
    }

    pub fn last_index(&self) -> RaftIndex {
        self.log.back().map_or(self.truncated.0, |e| e.index)
    }

    pub fn entry(&self, index: RaftIndex) -> Option<&LogEntry> {
        let at = self.position(index)?;
        self.log.get(at)
    }

    pub fn entry_mut(&mut self, index: RaftIndex) -> Option<&mut LogEntry> {
        let at = self.position(index)?;
        self.log.get_mut(at)
    }

    fn position(&self, index: RaftIndex) -> Option<usize> {
        if self.suspended {
            return self.log.iter().position(|e| e.index == index); // may have gaps
        }
        let first = self.log.front()?.index;
        index.0.checked_sub(first.0).map(esker_base::num::to_usize)
    }

    /// Cuts the log from `index` on because another leader's entries take its place; the payload
    /// of what is cut dies.
    pub fn cut_from(&mut self, index: RaftIndex, segs: &mut Segments) -> Result<(), StoreError> {
        if index <= self.applied
            && self
                .log
                .iter()
                .any(|e| e.index >= index && e.index <= self.applied)
        {
            return Err(StoreError::Invariant(format!(
                "group {}: applied entries from {index} on would be overwritten",
                self.meta.group
            )));
        }
        let mut cut = false;
        while self.log.back().is_some_and(|e| e.index >= index) {
            let Some(entry) = self.log.pop_back() else {
                break;
            };
            cut = true;
            if entry.live && !entry.vaddr.is_none() {
                kill(segs, entry.vaddr, u64::from(entry.payload_pages))?;
            }
        }
        if cut {
            self.rebuild_overlay();
        }
        Ok(())
    }

    /// Appends an entry that continues the log.
    pub fn push(&mut self, entry: LogEntry) {
        self.overlay_add(&entry);
        self.log.push_back(entry);
    }

    /// An entry as the caller gave it.
    pub fn prepare(entry: AppendEntry) -> Result<LogEntry, StoreError> {
        let bad = |what: &str| StoreError::Invariant(format!("entry {}: {what}", entry.index));
        let (operation, request) =
            LogEntry::decode(entry.kind, &entry.data).map_err(|e| bad(&e.to_string()))?;
        let bytes: usize = entry.payload.iter().map(Bytes::len).sum();
        let pages = operation.as_ref().map_or(0, |op| op.payload_blocks());
        if to_u64(bytes) != pages * to_u64(PAGE) {
            return Err(bad("payload does not fit the operation"));
        }
        Ok(LogEntry {
            term: entry.term,
            index: entry.index,
            kind: entry.kind,
            data: entry.data,
            operation,
            request,
            payload_pages: to_u32_saturating(bytes / PAGE),
            vaddr: VAddr::NONE,
            seq: Seq(0),
            memory: (bytes > 0).then_some(entry.payload),
            live: false,
        })
    }

    /// The level of the map's root once everything is merged.
    fn top(&self) -> u8 {
        level_for(self.meta.size_bytes.div_ceil(PAGE_U64)).max(self.root_level)
    }

    /// The map's root is lower than the volume's size asks for.
    pub fn is_low(&self) -> bool {
        if let Some(base) = &self.base {
            // Its map will have the height that the base's size asks for.
            return self.meta.size_bytes > base.size_bytes;
        }
        !self.root.vaddr.is_none()
            && self.root_level < level_for(self.meta.size_bytes.div_ceil(PAGE_U64))
    }

    /// Counts the map nodes that an entry will change.
    pub fn footprint_add(&mut self, operation: Option<&Operation>) {
        let top = self.top();
        if matches!(operation, Some(Operation::Snapshot { .. })) {
            self.footprint.cut();
        }
        for (range, hollow) in operation.map_or_else(Vec::new, Operation::changes) {
            self.footprint.add(range, top, hollow);
        }
    }

    /// Map nodes that changing these blocks changes, at most.
    pub fn nodes_over(&self, range: BlockRange) -> u64 {
        Footprint::most(range, self.top(), false)
    }

    /// The checkpoint that begins settles which address of a page stays.
    pub fn rehome(&mut self, rehomed: Rehomed) {
        let top = self.top();
        self.footprint
            .add(BlockRange::new(rehomed.lba, 1), top, false);
        self.active.rehomed.insert(rehomed);
    }

    /// The most that [`Group::footprint_add`] adds.
    pub fn footprint_most(&self, operation: Option<&Operation>) -> u64 {
        let (top, keeps) = (self.top(), self.has_versions());
        let changes = operation.map_or_else(Vec::new, Operation::changes);
        if let [(range, hollow)] = changes[..] {
            let nodes = Footprint::most(range, top, hollow);
            return match keeps {
                true => nodes + Footprint::most_dead_pages(range, nodes, hollow),
                false => nodes,
            };
        }
        // Neighbours share most of theirs.
        let mut together = Footprint::default();
        for (range, hollow) in changes {
            together.add(range, top, hollow);
        }
        match keeps {
            true => together.len() + together.dead_pages(),
            false => together.len(),
        }
    }

    /// There is a snapshot under the head, or there will be.
    fn has_versions(&self) -> bool {
        self.newest_cut.0 > 0 || self.footprint.has_cut()
    }

    /// Map nodes and pages of deadlists that checkpoints will write for what is in records and not
    /// frozen, at most.
    pub fn nodes_needed(&self) -> u64 {
        match self.has_versions() {
            true => self.footprint.len() + self.footprint.dead_pages(),
            false => self.footprint.len(),
        }
    }

    /// What is applied is frozen: only what is in records and not applied counts from now on.
    pub fn footprint_restart(&mut self) {
        self.footprint.clear();
        if self.feed.is_none() {
            let waiting = self.waiting();
            waiting.iter().for_each(|op| self.footprint_add(Some(op)));
        }
    }

    /// Operations in records that are not applied.
    pub fn waiting(&self) -> Vec<Arc<Operation>> {
        let waiting = self.log.iter();
        let waiting = waiting.filter(|e| e.index > self.applied && e.seq.0 != 0);
        waiting.filter_map(|e| e.operation.clone()).collect()
    }

    fn overlay_add(&mut self, entry: &LogEntry) {
        let range = entry.operation.as_ref().and_then(|op| op.range());
        if let Some(range) = range.filter(|_| entry.index > self.applied) {
            let extent = PendingExtent {
                count: range.count,
                index: entry.index,
                from: 0,
            };
            self.overlay.insert(range.start.0, extent, |_, _| {});
        }
    }

    pub fn rebuild_overlay(&mut self) {
        self.overlay.clear();
        let entries: Vec<LogEntry> = self
            .log
            .iter()
            .filter(|e| e.index > self.applied)
            .cloned()
            .collect();
        entries.iter().for_each(|e| self.overlay_add(e));
    }

    /// Drops applied entries through `index` from the retained log.
    pub fn truncate(&mut self, index: RaftIndex) -> Option<(RaftIndex, Term)> {
        let mut cut = None;
        while self
            .log
            .front()
            .is_some_and(|e| e.index <= index && e.index <= self.applied)
        {
            let entry = self.log.pop_front()?;
            cut = Some((entry.index, entry.term));
        }
        if let Some(point) = cut {
            self.truncated = point;
        }
        cut
    }

    /// The group's part of what checkpoints will write.
    pub fn load(&self) -> Load {
        Load {
            extents: to_u64(self.active.len()),
            blocks: self.active_blocks + self.frozen_blocks,
            nodes: self.nodes_needed(),
            cuts: to_u64(self.active.cuts.len())
                + self.frozen.as_ref().map_or(0, |f| to_u64(f.cuts.len())),
        }
    }

    /// Blocks that are applied are not in its tree yet.
    pub fn has_deltas(&self) -> bool {
        let frozen = self.frozen.as_ref();
        !self.active.index.is_empty() || frozen.is_some_and(|f| !f.index.is_empty())
    }

    /// The checkpoint that begins merges what is applied.
    pub fn freeze(&mut self) {
        self.frozen = Some(Arc::new(std::mem::take(&mut self.active)));
        self.frozen_blocks = std::mem::take(&mut self.active_blocks);
    }

    pub fn view(&self) -> GroupView {
        GroupView {
            meta: self.meta.clone(),
            hard_state: self.hard_state,
            applied: self.applied,
            last_index: self.last_index(),
            epoch: self.epoch,
            max_stamp: self.max_stamp,
            used_blocks: self.root.live + self.active_blocks + self.frozen_blocks,
            suspended: self.suspended,
            root: self.root,
        }
    }

    /// What the checkpoint says of the group; entries in no record yet are left out.
    pub fn to_entry(&self) -> GroupEntry {
        let log = self
            .log
            .iter()
            .filter(|e| e.seq.0 != 0)
            .map(|e| LogEntryMeta {
                term: e.term,
                index: e.index,
                kind: e.kind,
                payload: e.vaddr,
                payload_pages: e.payload_pages,
                data: e.data.clone(),
            });
        GroupEntry {
            mac: None,
            meta: self.meta.clone(),
            hard_state: self.hard_state,
            truncated_index: self.truncated.0,
            truncated_term: self.truncated.1,
            applied: self.applied,
            epoch: self.epoch,
            epochs: self.epochs.clone(),
            resealed: self.resealed,
            max_stamp: self.max_stamp,
            root: self.root,
            root_level: self.root_level,
            last_seq: self.last_seq,
            requests: self.requests.to_entries(),
            suspended: self.suspended,
            ended: self.ended,
            log: log.collect(),
            jumps: self.jumps.clone(),
            jumps_since: self.jumps_since,
            feed: self.feed,
        }
    }

    /// The group for the layer above. Entries after a gap are kept here and not shown: they wait
    /// for `accept-loss`.
    pub fn recovered(&self) -> RecoveredGroup {
        let mut expected = self.truncated.0;
        let mut entries = Vec::new();
        for e in &self.log {
            if e.index.0 != expected.0 + 1 {
                break;
            }
            expected = e.index;
            let length = e.payload_pages * to_u32_saturating(PAGE);
            entries.push((e.term, e.index, e.kind, e.data.clone(), length));
        }
        let mut hard_state = self.hard_state;
        // What is applied was committed, whatever the last hard state in the log says: the commit
        // index moves without a record.
        hard_state.commit = hard_state.commit.max(self.applied).min(expected);
        RecoveredGroup {
            meta: self.meta.clone(),
            hard_state,
            truncated: self.truncated,
            applied: self.applied,
            entries,
            suspended: self.suspended,
        }
    }
}

/// Kills slots, with a violation as a store error.
pub(crate) fn kill(segs: &mut Segments, vaddr: VAddr, count: u64) -> Result<(), StoreError> {
    segs.kill(vaddr, count).map_err(liveness)
}

/// A liveness violation as a store error.
pub(crate) fn liveness(v: crate::space::segments::LivenessViolation) -> StoreError {
    let state = if v.to_live { "live" } else { "dead" };
    StoreError::Invariant(format!("slot {} was {state} already", v.vaddr))
}
