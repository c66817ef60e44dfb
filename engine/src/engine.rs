//! The engine: one step takes one event in and gives effects out.

use crate::checkpoint::Checkpointing;
use crate::config::{EngineConfig, Sabotage};
use crate::error::StoreError;
use crate::event::{Effect, Event};
use crate::extents::ExtentsState;
use crate::format::checkpoint::{Counters, DiscardEntry, SegmentKind};
use crate::format::operation::RequestId;
use crate::format::record::{Item, ItemBody, RecordHeader, FLAG_CLOSING};
use crate::format::superblock::{Superblock, COPIES};
use crate::format::VAddr;
use crate::gc::Collector;
use crate::group::{liveness, Group, GroupView, Load};
use crate::log::writer::{Batch, LogWriter, Notify, PendingItem};
use crate::map::cache::NodeCache;
use crate::readpath::{How, NodeWaiter, PayloadRead, ReadState};
use crate::recovery::{Probe, Recovery};
use crate::repair::Damages;
use crate::requests::Known;
use crate::scrub::ScrubState;
use crate::snapshot::deadlist::Deadlists;
use crate::snapshot::forest::Forest;
use crate::snapshot::{DiffState, Orphans, Totals};
use crate::space::ahead::Ahead;
use crate::space::{Segments, TableShape};
use bytes::Bytes;
use esker_base::num::{to_u32_saturating, to_u64};
use esker_base::{DiskError, DiskOp, GroupId, IoId, Moment, RaftIndex, Seq, WallClock};
use rustc_hash::FxHashMap;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

/// What an outstanding disk operation is for.
#[derive(Debug)]
pub(crate) enum Purpose {
    Record(Seq),
    Sync,
    Node {
        vaddr: VAddr,
        segment: u32,
    },
    Data {
        read: u64,
        piece: usize,
        segment: u32,
    },
    Payload {
        read: u64,
        part: usize,
        segment: u32,
    },
    /// What a scrub reads.
    Scrub {
        scrub: u64,
        item: usize,
        segment: u32,
    },
    /// A block of another replica in the place of a damaged one.
    Repair {
        segment: u32,
        slot: u32,
    },
    /// A window of the segment being collected.
    Collect {
        segment: u32,
    },
    /// A header of a segment of survivors whose pages may be re-homed.
    Rehome {
        segment: u32,
    },
    /// A batch of survivors.
    Survivors(u64),
    MapWrite(Vec<VAddr>),
    /// Zeros for what was never written.
    Ahead,
    Super,
    Recovery(usize),
}

/// A sync on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SyncInFlight {
    /// Records it covers.
    pub covers: Seq,
    /// It also covers all writes of the checkpoint in progress.
    pub checkpoint: bool,
}

/// Space of a store, in bytes of 4 KiB slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceUse {
    /// Live slots.
    pub live_bytes: u64,
    /// In free segments and in the unwritten part of the open ones.
    pub free_bytes: u64,
    /// Everything else in segments: dead, and not reusable yet.
    pub garbage_bytes: u64,
    /// All segments.
    pub total_bytes: u64,
    /// Kept back from client writes.
    pub reserve_bytes: u64,
    /// Written to the device since the store was created.
    pub device_bytes_written: u64,
    /// Written by clients since the store was created.
    pub client_bytes_written: u64,
}

/// The engine of one store.
#[derive(Debug)]
pub struct Engine {
    pub(crate) config: EngineConfig,
    pub(crate) sb: Superblock,
    pub(crate) segs: Segments,
    pub(crate) log: LogWriter,
    pub(crate) groups: BTreeMap<GroupId, Group>,
    /// The sum over all groups.
    pub(crate) load: Load,
    pub(crate) cache: NodeCache,
    pub(crate) counters: Counters,
    pub(crate) discards: Vec<DiscardEntry>,
    pub(crate) forest: Forest,
    pub(crate) totals: Totals,
    /// Groups that wait for a checkpoint before they apply more.
    pub(crate) parked: BTreeSet<GroupId>,
    /// Clones of snapshots that no checkpoint has merged.
    pub(crate) based: BTreeSet<GroupId>,
    /// Clones that do not exist and may have lost entries.
    pub(crate) doubtful: BTreeSet<GroupId>,
    /// Clones that no durable checkpoint has.
    pub(crate) clones_begun: u64,
    /// Checkpoints since the start that let go of epochs, by group.
    pub(crate) epochs_spent: u64,
    /// Epochs to be forgotten once these reads have ended.
    pub(crate) epochs_leaving: Vec<crate::keys::Leaving>,
    /// Number of the newest durable checkpoint.
    pub(crate) checkpoints_done: u64,
    pub(crate) dead: Deadlists,
    pub(crate) orphans: Orphans,
    pub(crate) reads: BTreeMap<u64, ReadState>,
    pub(crate) extents: BTreeMap<u64, ExtentsState>,
    pub(crate) diffs: BTreeMap<u64, DiffState>,
    pub(crate) scrubs: BTreeMap<u64, ScrubState>,
    pub(crate) harvests: BTreeMap<u64, crate::catchup::HarvestState>,
    /// Payloads of retained entries being read, by an arbitrary number.
    pub(crate) payloads: BTreeMap<u64, PayloadRead>,
    pub(crate) collector: Collector,
    pub(crate) node_waiters: BTreeMap<VAddr, Vec<NodeWaiter>>,
    pub(crate) purposes: FxHashMap<IoId, (Purpose, u64)>,
    pub(crate) next_io: u64,
    pub(crate) sync: Option<SyncInFlight>,
    pub(crate) checkpoint: Option<Checkpointing>,
    pub(crate) checkpoint_tokens: Vec<u64>,
    /// Catalog operations that are durable and wait for a checkpoint that holds them.
    pub(crate) catalog_durable: Vec<u64>,
    pub(crate) checkpoint_wanted: bool,
    /// Snapshots were deleted in this step.
    pub(crate) deleted: bool,
    /// When a checkpoint begins that gives back what deleted snapshots held, if none does before.
    pub(crate) reclaim_at: Option<Moment>,
    pub(crate) map: crate::checkpoint::MapWriter,
    /// In which order the next checkpoint rewrites the superblock's copies.
    pub(crate) superblock_order: [u32; COPIES],
    pub(crate) recovery: Option<Recovery>,
    pub(crate) fenced: Option<StoreError>,
    /// A violation met where no effect could be given; the next step fences.
    pub(crate) fence_pending: Option<StoreError>,
    pub(crate) stopping: bool,
    pub(crate) ahead: Ahead,
    pub(crate) stopped: bool,
    /// What waits for the log does not fit the store.
    pub(crate) stalled: bool,
    /// Somebody was told that the store is full since the last checkpoint began: what it merges may
    /// make room.
    pub(crate) refused: Cell<bool>,
    pub(crate) damages: Damages,
    pub(crate) probes: BTreeSet<Probe>,
    pub(crate) meters: crate::meters::Meters,
    /// More work waits for the next step.
    pub(crate) busy: bool,
}

impl Engine {
    /// Begins to open the store; the first effects are reads of its superblock.
    #[must_use]
    pub fn open(config: EngineConfig, effects: &mut Vec<Effect>) -> Self {
        let cache = NodeCache::new(config.cache_bytes);
        let shape = TableShape {
            content_max: config.table_content_max,
            rewrite_min: config.table_rewrite_min,
            audit: config.table_audit,
        };
        let mut engine = Self {
            config,
            sb: Superblock::default(),
            segs: Segments::blank(0, 0, shape),
            log: LogWriter::default(),
            groups: BTreeMap::new(),
            load: Load::default(),
            cache,
            counters: Counters::default(),
            discards: Vec::new(),
            forest: Forest::default(),
            totals: Totals::default(),
            parked: BTreeSet::new(),
            based: BTreeSet::new(),
            doubtful: BTreeSet::new(),
            clones_begun: 0,
            epochs_spent: 0,
            epochs_leaving: Vec::new(),
            checkpoints_done: 0,
            dead: Deadlists::default(),
            orphans: Orphans::default(),
            reads: BTreeMap::new(),
            extents: BTreeMap::new(),
            diffs: BTreeMap::new(),
            scrubs: BTreeMap::new(),
            harvests: BTreeMap::new(),
            payloads: BTreeMap::new(),
            collector: Collector::default(),
            node_waiters: BTreeMap::new(),
            purposes: FxHashMap::default(),
            next_io: 1,
            sync: None,
            checkpoint: None,
            checkpoint_tokens: Vec::new(),
            catalog_durable: Vec::new(),
            checkpoint_wanted: false,
            deleted: false,
            reclaim_at: None,
            map: crate::checkpoint::MapWriter::default(),
            superblock_order: [0, 1, 2, 3],
            recovery: None,
            fenced: None,
            fence_pending: None,
            stopping: false,
            ahead: Ahead::default(),
            stopped: false,
            stalled: false,
            refused: Cell::new(false),
            damages: Damages::default(),
            probes: BTreeSet::new(),
            meters: crate::meters::Meters::default(),
            busy: false,
        };
        engine.recovery_begin(effects);
        engine
    }

    /// Takes one event in and appends what follows to `effects`.
    pub fn step(&mut self, now: Moment, wall: WallClock, event: Event, effects: &mut Vec<Effect>) {
        self.take(now, event, effects);
        self.advance(now, wall, effects);
    }

    /// The first half of [`Engine::step`]: several events may be taken before one
    /// [`Engine::advance`], and what they append goes into records together.
    pub fn take(&mut self, now: Moment, event: Event, effects: &mut Vec<Effect>) {
        self.meters.tick(now);
        match event {
            Event::Disk { io, result } => self.disk_done(now, io, result, effects),
            Event::Timer => {}
            Event::Append(append) => self.append(append, effects),
            Event::Apply { group, through } => self.apply(group, through, None, effects),
            Event::Read(request) => self.read(request, How::Opened, effects),
            Event::ReadStored(request) => self.read(request, How::Stored, effects),
            Event::Repair(request) => self.repair(request, effects),
            Event::Extents(request) => self.extents(request, effects),
            Event::Diff(request) => self.diff(request, effects),
            Event::Scrub(request) => self.scrub(request, effects),
            Event::Harvest(request) => self.harvest(request, effects),
            Event::Publish {
                token,
                group,
                state,
                whole,
            } => self.publish(token, group, &state, whole, effects),
            Event::ReadPayload {
                token,
                group,
                index,
            } => {
                self.read_payload(token, group, index, effects);
            }
            Event::Create { token, meta } => self.create(token, *meta, effects),
            Event::Delete { token, group } => self.delete(token, group, effects),
            Event::Rename { token, group, name } => self.rename(token, group, name, effects),
            Event::AcceptLoss { token, group } => self.accept_loss(token, group, effects),
            Event::Resume { group } => self.resume(group),
            Event::ApplyMembership {
                group,
                through,
                membership,
            } => {
                self.apply(group, through, Some(membership), effects);
            }
            Event::Suspend { group } => {
                if let Some(group) = self.groups.get_mut(&group) {
                    group.suspended = true;
                    self.checkpoint_wanted = true;
                }
            }
            Event::NoteHardState { group, hard_state } => {
                if let Some(group) = self.groups.get_mut(&group) {
                    group.hard_state = hard_state;
                }
            }
            Event::SyncSoon => self.log.urge(),
            Event::SyncWritten => self.log.urge_written(),
            Event::Checkpoint { token } => {
                self.checkpoint_tokens.push(token);
                self.checkpoint_wanted = true;
            }
            Event::Stop => {
                self.stopping = true;
                self.checkpoint_wanted = true;
                self.log.urge();
            }
        }
    }

    /// The second half of [`Engine::step`]: does whatever can be done now.
    pub fn advance(&mut self, now: Moment, wall: WallClock, effects: &mut Vec<Effect>) {
        self.busy = false;
        self.forget_epochs();
        self.apply_parked(effects);
        if let Some(error) = self.fence_pending.take() {
            self.fence(error, effects);
        }
        if self.fenced.is_some() || self.stopped {
            self.stop_if_done(effects);
            return;
        }
        if self.is_open() {
            self.checkpoint_if_due(now);
        }
        self.checkpoint_step(now, wall, effects);
        if self.is_open() {
            self.discard_step(effects);
            self.pump_log(now, wall, effects);
            self.collect_step(effects);
        }
        self.sync_if_due(now, effects);
        if self.is_open() {
            self.ahead_step(now, effects);
        }
        if let Some(error) = self.fence_pending.take() {
            self.fence(error, effects);
        }
        self.stop_if_done(effects);
    }

    /// Opened, and not refused.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.recovery.is_none()
    }

    /// When to send [`Event::Timer`], if nothing happens before.
    #[must_use]
    pub fn deadline(&self) -> Option<Moment> {
        if self.fenced.is_some() || self.stopped {
            return None;
        }
        if self.busy {
            return Some(Moment(0)); // also while opening: an accepted loss is merged then
        }
        if !self.is_open() {
            return None;
        }
        if self.refused.get() && self.checkpoint.is_none() && !self.entries_wait() {
            return Some(Moment(0));
        }
        let sync = match (&self.sync, self.log.unsynced.front()) {
            (None, Some(record)) => Some(record.since + self.config.unsynced_time_max),
            _ => None,
        };
        let closing = self
            .closing_is_due()
            .then(|| self.log.quiet_since + self.config.idle_time);
        let reclaim = self.reclaim_at.filter(|_| self.checkpoint.is_none());
        let ahead = self.ahead_due();
        let due = sync.into_iter().chain(closing).chain(reclaim);
        due.chain(ahead).min()
    }

    fn disk_done(
        &mut self,
        now: Moment,
        io: IoId,
        result: Result<Bytes, DiskError>,
        effects: &mut Vec<Effect>,
    ) {
        let Some((purpose, offset)) = self.purposes.remove(&io) else {
            return;
        };
        self.meters.disk_ended(&purpose, result.as_ref().err());
        match purpose {
            Purpose::Record(seq) => match result {
                Ok(_) => self.record_written(now, seq, effects),
                Err(error) => self.fence_write(offset, error, effects),
            },
            Purpose::Sync => match result {
                Ok(_) => self.synced(now, effects),
                Err(error) => self.fence(StoreError::Sync(error), effects),
            },
            Purpose::MapWrite(nodes) => match result {
                Ok(_) => self.map_written(&nodes),
                Err(error) => self.fence_write(offset, error, effects),
            },
            // No data is lost with it; whatever is wrong, the next record meets it.
            Purpose::Ahead => self.ahead_written(now, result.is_ok()),
            Purpose::Super => match result {
                Ok(_) => self.superblock_written(),
                Err(error) => self.fence_write(offset, error, effects),
            },
            Purpose::Node { vaddr, segment } => {
                self.segs.reader_ends(segment);
                self.node_read(vaddr, result, effects);
            }
            Purpose::Data {
                read,
                piece,
                segment,
            } => {
                self.segs.reader_ends(segment);
                self.data_read(read, piece, result, effects);
            }
            Purpose::Payload {
                read,
                part,
                segment,
            } => {
                self.segs.reader_ends(segment);
                self.payload_part(read, part, result, effects);
            }
            Purpose::Scrub {
                scrub,
                item,
                segment,
            } => {
                self.segs.reader_ends(segment);
                self.scrub_came(scrub, item, result, effects);
            }
            Purpose::Repair { segment, slot } => {
                self.segs.reader_ends(segment);
                self.repair_written((segment, slot), &result, effects);
            }
            Purpose::Collect { segment } => {
                self.segs.reader_ends(segment);
                self.collect_read(result, effects);
            }
            Purpose::Rehome { segment } => {
                self.segs.reader_ends(segment);
                self.rehome_read(result);
            }
            Purpose::Survivors(batch) => match result {
                Ok(_) => self.survivors_written(batch),
                Err(error) => self.fence_write(offset, error, effects),
            },
            Purpose::Recovery(part) => self.recovery_read(part, result, effects),
        }
    }

    /// Issues a disk operation.
    pub(crate) fn disk(&mut self, op: DiskOp, purpose: Purpose, effects: &mut Vec<Effect>) -> IoId {
        if let DiskOp::Write { bufs, .. } = &op {
            self.counters.device_bytes_written += bufs.iter().map(|b| to_u64(b.len())).sum::<u64>();
        }
        self.meters.disk_begins(&op, &purpose);
        let io = IoId(self.next_io);
        self.next_io += 1;
        let offset = match &op {
            DiskOp::Read { offset, .. } | DiskOp::Write { offset, .. } => *offset,
            DiskOp::Sync => 0,
        };
        self.purposes.insert(io, (purpose, offset));
        effects.push(Effect::Disk { io, op });
        io
    }

    fn fence_write(&mut self, offset: u64, error: DiskError, effects: &mut Vec<Effect>) {
        self.fence(StoreError::Write { offset, error }, effects);
    }

    /// Takes no more writes. Everything that waits for durability never gets it.
    pub(crate) fn fence(&mut self, error: StoreError, effects: &mut Vec<Effect>) {
        if self.fenced.is_some() {
            return;
        }
        self.fenced = Some(error.clone());
        if self.recovery.take().is_some() {
            effects.push(Effect::OpenFailed(crate::OpenError::Fenced(
                error.to_string(),
            )));
            return;
        }
        let waiting = self
            .log
            .pending
            .iter()
            .flat_map(|p| p.notify.clone())
            .chain(
                self.log
                    .in_flight
                    .iter()
                    .chain(&self.log.unsynced)
                    .flat_map(|r| r.notify.clone()),
            );
        let failed = crate::CatalogError::Interrupted(error.to_string());
        effects.push(Effect::Fenced(error));
        for notify in waiting {
            if let Notify::Catalog { token } | Notify::AcceptedLoss { token } = notify {
                effects.push(Effect::CatalogDone {
                    token,
                    result: Err(failed.clone()),
                });
            }
        }
        let checkpoint = self.checkpoint.take();
        let catalog = checkpoint.map_or(Vec::new(), |c| c.catalog);
        for token in catalog
            .into_iter()
            .chain(std::mem::take(&mut self.catalog_durable))
        {
            let result = Err(failed.clone());
            effects.push(Effect::CatalogDone { token, result });
        }
        self.log.pending.clear();
        self.diffs_go_on(effects);
        self.harvests_go_on(effects);
    }

    /// A violated invariant fences; going on could lose data.
    pub(crate) fn check<T>(
        &mut self,
        result: Result<T, StoreError>,
        effects: &mut Vec<Effect>,
    ) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.fence(error, effects);
                None
            }
        }
    }

    /// Builds records from what waits, as long as few are in flight.
    fn pump_log(&mut self, now: Moment, wall: WallClock, effects: &mut Vec<Effect>) {
        while !self.log.pending.is_empty()
            && self.log.in_flight.len() < self.config.batches_in_flight_max
        {
            if self.checkpoint_lags() {
                // What is written meanwhile is what the next recovery reads: it waits.
                self.stalled = true;
                return;
            }
            let (mut batch, mut pages) = self.batch_of(usize::MAX);
            let is_small = batch.count.max(batch.payload_pages as usize) < self.config.batch_least;
            if is_small && !self.log.in_flight.is_empty() {
                break; // until the one that is being written ends, or more comes
            }
            if pages > self.sb.slots() {
                let text = format!("a record of {pages} pages does not fit a segment");
                return self.fence(StoreError::Invariant(text), effects);
            }
            let fits = |this: &Self, batch: &Batch, pages| {
                this.record_fits(pages, batch.nodes, batch.payload_pages > 0)
            };
            // What does not fit together may fit one after the other, with checkpoints between.
            while batch.count > 1 && !fits(self, &batch, pages) {
                (batch, pages) = self.batch_of(batch.count / 2);
            }
            self.stalled = !fits(self, &batch, pages) || !self.make_room(pages);
            if self.stalled {
                // The log waits until a checkpoint has freed segments.
                self.probes.insert(Probe::LogStalled);
                self.checkpoint_wanted |= self.checkpoint.is_none() && self.checkpoint_helps();
                return;
            }
            self.write_record(batch.count, batch.items_bytes, 0, wall, effects);
        }
        self.stalled = false;
        let idle = now >= self.log.quiet_since + self.config.idle_time;
        if idle && self.closing_is_due() && self.make_room(1) {
            self.probes.insert(Probe::ClosingRecordWritten);
            self.write_record(0, 0, FLAG_CLOSING, wall, effects);
        }
    }

    /// The next record of at most `count_max` items, and its pages.
    fn batch_of(&self, count_max: usize) -> (Batch, u32) {
        let batch = self.log.next_batch(self.sb.slots() as usize, count_max);
        let header = crate::format::record::header_pages_for(batch.items_bytes);
        (batch, batch.payload_pages + to_u32_saturating(header))
    }

    /// A checkpoint is on its way, and as much has been written since it began as makes the next one
    /// due.
    fn checkpoint_lags(&self) -> bool {
        self.checkpoint
            .as_ref()
            .is_some_and(|c| !c.waits_for_log(self.log.written))
            && self.log_is_long()
    }

    /// A closing record is missing and there is room for it.
    fn closing_is_due(&self) -> bool {
        self.log.is_quiet() && !self.log.closed && self.record_fits(1, 0, false)
    }

    /// Makes sure the open log segment has room for a record; opens the next one if not.
    fn make_room(&mut self, pages: u32) -> bool {
        let p = &self.log.position;
        if p.slot + pages <= self.sb.slots() {
            return true;
        }
        let Some((next_segment, next_generation)) = self.segs.open(SegmentKind::Log) else {
            return false;
        };
        let p = &mut self.log.position;
        self.segs.seal(p.segment);
        p.segment = p.next_segment;
        p.generation = p.next_generation;
        p.slot = 0;
        (p.next_segment, p.next_generation) = (next_segment, next_generation);
        true
    }

    fn write_record(
        &mut self,
        count: usize,
        items_bytes: usize,
        flags: u32,
        wall: WallClock,
        effects: &mut Vec<Effect>,
    ) {
        let header = RecordHeader {
            store: self.sb.store,
            wall,
            flags,
            ..RecordHeader::default()
        };
        let groups = &mut self.groups;
        let built = self.log.build(count, items_bytes, header, |id, seq| {
            groups
                .get_mut(&id)
                .map_or(Seq(0), |g| std::mem::replace(&mut g.last_seq, seq))
        });
        self.meters.record(&built);
        self.segs
            .set_written(built.segment, built.slot + built.pages);
        for placed in &built.entries {
            let vaddr = match placed.payload_pages {
                0 => VAddr::NONE,
                _ => VAddr::new(built.generation, placed.slot),
            };
            let late = self.config.sabotage == Sabotage::LiveBitLate;
            let entry = self
                .groups
                .get_mut(&placed.group)
                .and_then(|g| g.entry_mut(placed.index));
            // An entry that was cut while it waited is written all the same, and is dead.
            let Some(entry) = entry.filter(|e| e.term == placed.term && e.seq.0 == 0) else {
                continue;
            };
            entry.vaddr = vaddr;
            entry.seq = built.seq;
            let operation = entry.operation.clone();
            if placed.payload_pages > 0 && !late {
                entry.live = true;
                let live = self.segs.set_live(vaddr, u64::from(placed.payload_pages));
                if self.check(live.map_err(liveness), effects).is_none() {
                    return;
                }
            }
            if let Some(group) = self.groups.get_mut(&self.subject_of(placed.group)) {
                let before = group.load();
                group.footprint_add(operation.as_deref());
                self.load.replace(before, group.load());
            }
        }
        let offset = self.sb.offset_of(built.segment, built.slot);
        let op = DiskOp::Write {
            offset,
            bufs: built.bufs,
        };
        self.disk(op, Purpose::Record(built.seq), effects);
    }

    fn record_written(&mut self, now: Moment, seq: Seq, effects: &mut Vec<Effect>) {
        if self.fenced.is_some() {
            return;
        }
        let moved = self.log.record_written(seq, now);
        let from = self.log.unsynced.len() - moved;
        let mut through = BTreeMap::new();
        for record in self.log.unsynced.range(from..) {
            for placed in &record.entries {
                let group = self.groups.get_mut(&placed.group);
                let entry = group.and_then(|g| g.entry_mut(placed.index));
                if let Some(entry) = entry.filter(|e| e.term == placed.term && e.seq == record.seq)
                {
                    entry.memory = None;
                    through.insert(placed.group, placed.index);
                }
            }
        }
        for (group, through) in through {
            effects.push(Effect::Written { group, through });
        }
        if self.config.sabotage == Sabotage::AckBeforeSync {
            self.make_durable(now, self.log.written, effects);
        }
    }

    /// Begins a sync when somebody waits for one, or too much or too old data is unsynced.
    fn sync_if_due(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        if self.sync.is_some() || self.fenced.is_some() {
            return;
        }
        let checkpoint = self
            .checkpoint
            .as_ref()
            .is_some_and(|c| c.wants_sync(self.log.written));
        let due = self.log.unsynced.front().is_some_and(|oldest| {
            now >= oldest.since + self.config.unsynced_time_max
                || self.stopping
                || self.log.unsynced.iter().any(|r| r.urgent)
                || self.log.unsynced_bytes() >= self.config.unsynced_bytes_max
        });
        if checkpoint || due {
            self.begin_sync(checkpoint, effects);
        }
    }

    pub(crate) fn begin_sync(&mut self, checkpoint: bool, effects: &mut Vec<Effect>) {
        self.sync = Some(SyncInFlight {
            covers: self.log.written,
            checkpoint,
        });
        self.disk(DiskOp::Sync, Purpose::Sync, effects);
    }

    fn synced(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        let Some(sync) = self.sync.take() else { return };
        if self.fenced.is_some() {
            return; // durable all the same, but nothing is acknowledged after the fence
        }
        self.make_durable(now, sync.covers, effects);
        if sync.checkpoint {
            self.checkpoint_synced();
        }
    }

    fn make_durable(&mut self, now: Moment, through: Seq, effects: &mut Vec<Effect>) {
        self.log.durable = self.log.durable.max(through);
        while self.log.unsynced.front().is_some_and(|r| r.seq <= through) {
            let Some(record) = self.log.unsynced.pop_front() else {
                break;
            };
            self.log.quiet_since = now;
            for notify in record.notify {
                effects.push(match notify {
                    Notify::Append { group, ticket } => Effect::Durable { group, ticket },
                    Notify::AcceptedLoss { token } => Effect::CatalogDone {
                        token,
                        result: Ok(()),
                    },
                    Notify::Catalog { token } => {
                        self.catalog_durable.push(token);
                        self.checkpoint_wanted = true;
                        continue;
                    }
                });
            }
        }
    }

    /// Puts an item into the log.
    pub(crate) fn enqueue(&mut self, group: GroupId, body: ItemBody, notify: Option<Notify>) {
        self.log.pending.push_back(PendingItem {
            item: Item {
                group,
                group_prev_seq: Seq(0),
                body,
            },
            payload: Vec::new(),
            payload_pages: 0,
            nodes: 0,
            notify: notify.into_iter().collect(),
            urgent: true,
        });
    }

    fn stop_if_done(&mut self, effects: &mut Vec<Effect>) {
        // A store too full for what waits stops without it: nobody was told it is durable.
        let log_done = self.log.in_flight.is_empty()
            && self.log.unsynced.is_empty()
            && (self.log.pending.is_empty() || self.stalled && !self.busy);
        let done = self.fenced.is_some()
            || (log_done
                && self.checkpoint.is_none()
                && !self.checkpoint_wanted
                && !self.collector.is_working());
        if self.stopping && !self.stopped && done && self.is_open() {
            self.stopped = true;
            effects.push(Effect::Stopped);
        }
    }

    /// What a group knows of an entry that may be asked for again.
    #[must_use]
    pub fn knows_request(&self, group: GroupId, request: RequestId) -> Known {
        let group = self.groups.get(&group);
        group.map_or(Known::No, |g| g.requests.knows(request))
    }

    /// Bytes of payload in the retained log of a group behind an index.
    #[must_use]
    pub fn log_bytes_after(&self, group: GroupId, index: RaftIndex) -> u64 {
        let log = self
            .groups
            .get(&group)
            .into_iter()
            .flat_map(|g| g.log.iter().rev());
        let behind = log.take_while(|entry| entry.index > index);
        behind
            .map(|entry| u64::from(entry.payload_pages) * crate::format::PAGE_U64)
            .sum()
    }

    /// A group, if it exists.
    #[must_use]
    pub fn group(&self, group: GroupId) -> Option<GroupView> {
        self.groups
            .get(&group)
            .filter(|g| !g.deleting)
            .map(Group::view)
    }

    /// A group as opening would give it, for a group that goes on after an accepted loss.
    #[must_use]
    pub fn recovered_group(&self, group: GroupId) -> Option<crate::event::RecoveredGroup> {
        self.groups
            .get(&group)
            .filter(|g| !g.deleting)
            .map(Group::recovered)
    }

    /// Why the store takes no more writes, if so.
    #[must_use]
    pub fn fenced(&self) -> Option<&StoreError> {
        self.fenced.as_ref()
    }

    /// The store's superblock.
    #[must_use]
    pub fn superblock(&self) -> &Superblock {
        &self.sb
    }

    /// Blocks found damaged since the store was opened, and not repaired.
    #[must_use]
    pub fn damaged_blocks(&self) -> u64 {
        self.damages.count()
    }

    /// Blocks that were written over with what other replicas have, since then.
    #[must_use]
    pub fn repaired_blocks(&self) -> u64 {
        self.damages.repaired
    }

    /// Bytes of zeros written ahead of the log since then.
    #[must_use]
    pub fn zeroed_bytes(&self) -> u64 {
        self.ahead.bytes
    }

    /// Branches of recovery and of the log that were taken.
    #[must_use]
    pub fn probes(&self) -> &BTreeSet<Probe> {
        &self.probes
    }
}
