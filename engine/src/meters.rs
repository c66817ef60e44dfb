//! What the engine counts for metrics. Counters are plain integers of the store's thread: a scrape
//! takes a copy of them ([`Engine::sample`]), and nothing is locked or shared.
//!
//! Durations are taken with the loop's clock, which is read once per turn: what begins and ends in
//! one turn took no time.

use crate::engine::{Engine, Purpose, SpaceUse};
use crate::format::checkpoint::SegmentKind;
use crate::format::{PAGE, PAGE_U64};
use crate::log::writer::Built;
use esker_base::num::to_u64;
use esker_base::{DiskError, DiskErrorKind, DiskOp, GroupId, Histogram, Moment};

/// What a write to the device was for, in the order of [`Meters::writes`].
pub const WRITE_KINDS: [&str; 5] = ["record", "map", "superblock", "survivors", "repair"];
/// What a read of the device was for, in the order of [`Meters::reads`].
pub const READ_KINDS: [&str; 6] = ["data", "map", "payload", "recovery", "collection", "scrub"];
/// How an operation of the device failed, in the order of [`Meters::disk_errors`].
pub const DISK_ERROR_KINDS: [&str; 3] = ["io", "no_space", "short"];
/// Uses of segments, in the order of [`EngineSample::segments`].
pub const SEGMENT_KINDS: [&str; 4] = ["free", "log", "map", "survivors"];

/// Operations and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Operations.
    pub operations: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Moved {
    fn add(&mut self, bytes: u64) {
        self.operations += 1;
        self.bytes += bytes;
    }
}

/// Counters since the store was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meters {
    /// Entries in each record; none in a closing one.
    pub record_entries: Histogram,
    /// Payload blocks in each record.
    pub record_blocks: Histogram,
    /// Bytes of each record, its header included.
    pub record_bytes: Histogram,
    /// Duration of each sync, in nanoseconds.
    pub syncs: Histogram,
    /// Duration of each finished checkpoint, in nanoseconds.
    pub checkpoints: Histogram,
    /// Map nodes that checkpoints have written.
    pub checkpoint_nodes: u64,
    /// Writes to the device, by [`WRITE_KINDS`].
    pub writes: [Moved; 5],
    /// Reads of the device, by [`READ_KINDS`].
    pub reads: [Moved; 6],
    /// Failed operations of the device, by [`DISK_ERROR_KINDS`].
    pub disk_errors: [u64; 3],
    now: Moment,
    sync_began: Moment,
    checkpoint_began: Moment,
}

impl Meters {
    /// A step begins.
    pub(crate) fn tick(&mut self, now: Moment) {
        self.now = now;
    }

    /// An operation goes to the device.
    pub(crate) fn disk_begins(&mut self, op: &DiskOp, purpose: &Purpose) {
        match op {
            DiskOp::Sync => self.sync_began = self.now,
            DiskOp::Write { bufs, .. } => {
                let bytes = bufs.iter().map(|b| to_u64(b.len())).sum();
                let kind = match purpose {
                    Purpose::Record(_) => 0,
                    Purpose::Super => 2,
                    Purpose::Survivors(_) => 3,
                    Purpose::Repair { .. } => 4,
                    _ => 1,
                };
                self.writes[kind].add(bytes);
                if let Purpose::MapWrite(nodes) = purpose {
                    self.checkpoint_nodes += to_u64(nodes.len());
                }
            }
            DiskOp::Read { length, .. } => {
                let kind = match purpose {
                    Purpose::Data { .. } => 0,
                    Purpose::Node { .. } => 1,
                    Purpose::Payload { .. } => 2,
                    Purpose::Collect { .. } | Purpose::Rehome { .. } => 4,
                    Purpose::Scrub { .. } => 5,
                    _ => 3,
                };
                self.reads[kind].add(to_u64(*length));
            }
        }
    }

    /// An operation of the device ended.
    pub(crate) fn disk_ended(&mut self, purpose: &Purpose, error: Option<&DiskError>) {
        match error.map(|e| e.kind) {
            Some(DiskErrorKind::Io) => self.disk_errors[0] += 1,
            Some(DiskErrorKind::NoSpace) => self.disk_errors[1] += 1,
            Some(DiskErrorKind::Short) => self.disk_errors[2] += 1,
            None if matches!(purpose, Purpose::Sync) => {
                self.syncs.observe(self.since(self.sync_began));
            }
            None => {}
        }
    }

    /// A record is written.
    pub(crate) fn record(&mut self, built: &Built) {
        let blocks = built.entries.iter().map(|e| u64::from(e.payload_pages));
        self.record_entries.observe(to_u64(built.entries.len()));
        self.record_blocks.observe(blocks.sum());
        self.record_bytes.observe(u64::from(built.pages) * PAGE_U64);
    }

    /// A checkpoint begins.
    pub(crate) fn checkpoint_begins(&mut self) {
        self.checkpoint_began = self.now;
    }

    /// It is durable.
    pub(crate) fn checkpoint_ends(&mut self) {
        self.checkpoints.observe(self.since(self.checkpoint_began));
    }

    fn since(&self, began: Moment) -> u64 {
        self.now.0.saturating_sub(began.0)
    }
}

/// The engine's counters and what it holds at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineSample {
    /// Counters.
    pub meters: Meters,
    /// Space.
    pub space: SpaceUse,
    /// Segments, by [`SEGMENT_KINDS`].
    pub segments: [u64; 4],
    /// Pieces of virtual segments that are live: what says where slots are.
    pub pieces: u64,
    /// Lookups of map nodes that the cache answered.
    pub cache_hits: u64,
    /// Lookups of map nodes that needed a read.
    pub cache_misses: u64,
    /// Bytes of map nodes in the cache.
    pub cache_bytes: u64,
    /// What it may hold of nodes that are on the device.
    pub cache_bytes_max: u64,
    /// Entries that wait for a record.
    pub log_pending: u64,
    /// Records being written.
    pub log_in_flight: u64,
    /// Bytes written and not synced.
    pub log_unsynced_bytes: u64,
    /// Bytes of log since the last checkpoint began: what a recovery now would read.
    pub log_bytes_since_checkpoint: u64,
    /// The log waits for room or for a checkpoint.
    pub is_stalled: bool,
    /// A checkpoint is on its way.
    pub is_checkpointing: bool,
    /// Operations of the device that are on their way.
    pub disk_in_flight: u64,
    /// Blocks found damaged since the store was opened, and not repaired.
    pub damaged_blocks: u64,
    /// Blocks repaired from other replicas since then.
    pub repaired_blocks: u64,
    /// Bytes of zeros written ahead of the log since then.
    pub zeroed_bytes: u64,
    /// The store takes no more writes.
    pub is_fenced: bool,
}

impl Engine {
    /// The counters now. Looks at every segment once.
    #[must_use]
    pub fn sample(&self) -> EngineSample {
        let mut segments = [0; 4];
        for segment in self.segs.iter() {
            segments[match segment.kind {
                SegmentKind::Free => 0,
                SegmentKind::Log => 1,
                SegmentKind::Map => 2,
                SegmentKind::Survivors => 3,
            }] += 1;
        }
        EngineSample {
            meters: self.meters.clone(),
            space: self.space(),
            segments,
            pieces: to_u64(self.segs.piece_count()),
            cache_hits: self.cache.hits,
            cache_misses: self.cache.misses,
            cache_bytes: to_u64(self.cache.len() * PAGE),
            cache_bytes_max: to_u64(self.cache.nodes_max() * PAGE),
            log_pending: to_u64(self.log.pending.len()),
            log_in_flight: to_u64(self.log.in_flight.len()),
            log_unsynced_bytes: self.log.unsynced_bytes(),
            log_bytes_since_checkpoint: self.log.bytes_since_checkpoint,
            is_stalled: self.stalled,
            is_checkpointing: self.checkpoint.is_some(),
            disk_in_flight: to_u64(self.purposes.len()),
            damaged_blocks: self.damaged_blocks(),
            repaired_blocks: self.repaired_blocks(),
            zeroed_bytes: self.zeroed_bytes(),
            is_fenced: self.fenced.is_some(),
        }
    }

    /// Blocks that a group referenced as of the last checkpoint. What was written since is only in
    /// [`crate::GroupView`]: counting it takes a walk over all of it.
    #[must_use]
    pub fn used_blocks_at_checkpoint(&self, group: GroupId) -> u64 {
        self.groups.get(&group).map_or(0, |g| g.root.live)
    }
}
