//! Configuration of a store's engine.

use esker_base::{ClusterId, NodeId};
use std::time::Duration;

/// How an engine works; the format of an existing store comes from its superblock instead.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Size of the device in bytes.
    pub device_bytes: u64,
    /// Format the store if the device is blank. A device that is neither blank nor a store is
    /// refused either way.
    pub format_if_blank: bool,
    /// Bytes per segment of a new store.
    pub segment_bytes: u64,
    /// Identity of a new store: 128 random bits.
    pub store_entropy: u128,
    /// Cluster of a new store.
    pub cluster: ClusterId,
    /// Node of a new store.
    pub node: NodeId,
    /// Memory for map nodes, in bytes.
    pub cache_bytes: usize,
    /// A checkpoint begins after this many bytes of log at the earliest, and writes wait when as much
    /// has been written before it ends.
    pub checkpoint_bytes: u64,
    /// How many times as long it waits, in bytes and in entries, where that spares map nodes. Recovery
    /// reads at most this and one more time [`EngineConfig::checkpoint_bytes`], and the segments around.
    pub checkpoint_stretch: u64,
    /// A checkpoint begins after this many records.
    pub checkpoint_records: u64,
    /// A checkpoint begins after this many entries at the earliest: trims bring many and few bytes.
    pub checkpoint_entries: u64,
    /// A checkpoint begins when the delta index has this many extents.
    pub delta_extents_max: usize,
    /// Time after which what a deleted snapshot held is given back although no checkpoint is due: those of
    /// many that are deleted one after the other then take one.
    pub reclaim_delay: Duration,
    /// Records being written at a time.
    pub batches_in_flight_max: usize,
    /// Entries, or pages of payload, that a record brings at least when it begins beside another: each
    /// record has a header of a page or more and costs the device a request.
    pub batch_least: usize,
    /// Unsynced bytes after which a sync is begun although nobody waits for it. What a sync covers is
    /// applied in one step: much more makes others wait for milliseconds.
    pub unsynced_bytes_max: u64,
    /// Time after which a sync is begun although nobody waits for it.
    pub unsynced_time_max: Duration,
    /// Time without writes after which the closing record is written.
    pub idle_time: Duration,
    /// Segments that were never used are written with zeros before they are: the device is a file whose extents turn from
    /// unwritten to written at a price.
    pub zero_ahead: bool,
    /// Time without writes after which that begins.
    pub ahead_idle_time: Duration,
    /// Applied entries kept in the Raft log of a group with several members, for followers that
    /// lag; a group of one keeps none.
    pub retained_entries_max: u64,
    /// Share of the segments kept back from client writes, in per cent.
    pub reserve_percent: u64,
    /// Moves what is live out of segments that are mostly dead when room is short.
    pub collect: bool,
    /// Kinds of survivors that garbage collection keeps apart, each in segments of its own: 1 or 2; small
    /// stores have one.
    pub survivor_streams: usize,
    /// Where pages of survivors lie is said in more pieces than this, and more than one for every 512 live slots:
    /// those of nearly empty virtual segments get other addresses. Zero: always.
    pub pieces_least: usize,
    /// Most bytes of records in a page of a table: all that fit, but for tests that want many pages.
    pub table_content_max: usize,
    /// Pages of the table of pieces that each checkpoint writes at least, if so many are behind.
    pub table_rewrite_min: usize,
    /// Each checkpoint holds the pages of versions and deadlists, written now or before, against what they
    /// are to say. For tests: it takes the time of all of them.
    pub table_audit: bool,
    /// Breaks the engine on purpose; for tests that show that they notice.
    pub sabotage: Sabotage,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            device_bytes: 0,
            format_if_blank: false,
            segment_bytes: crate::format::SEGMENT_BYTES,
            store_entropy: 0,
            cluster: ClusterId(0),
            node: NodeId(0),
            cache_bytes: 64 << 20,
            checkpoint_bytes: 128 << 20,
            checkpoint_stretch: 4,
            checkpoint_records: 64 << 10,
            checkpoint_entries: 64 << 10,
            delta_extents_max: 128 << 10,
            reclaim_delay: Duration::from_millis(500),
            batches_in_flight_max: 2,
            batch_least: 12,
            unsynced_bytes_max: 2 << 20,
            unsynced_time_max: Duration::from_millis(50),
            idle_time: Duration::from_millis(20),
            zero_ahead: false,
            ahead_idle_time: Duration::from_millis(500),
            retained_entries_max: 16_384,
            reserve_percent: 15,
            collect: true,
            survivor_streams: 2,
            pieces_least: 4096,
            table_content_max: crate::format::table::CONTENT_MAX,
            table_rewrite_min: 64,
            table_audit: false,
            sabotage: Sabotage::None,
        }
    }
}

/// A fault built into the engine on purpose. Each breaks one rule that the simulator's oracles must
/// notice; nothing but tests sets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sabotage {
    /// None.
    #[default]
    None,
    /// Recovery takes every bad record for a torn tail, whatever `durable_seq` says.
    IgnoreDurableSeq,
    /// Recovery starts new records without making its cut durable first.
    CutNotDurable,
    /// A slot becomes live when it is applied, not when it is appended.
    LiveBitLate,
    /// Durability is reported when a record is written, without a sync.
    AckBeforeSync,
    /// Segments are reused before the checkpoint that empties them is durable.
    ReuseBeforeCheckpoint,
    /// Garbage collection moves slots to where they are not written yet.
    MoveUnwritten,
    /// A merge lets blocks die that a snapshot still uses.
    KillIgnoresCut,
    /// An entry of a deadlist is lost.
    DeadEntryLost,
    /// What was written after a cut is merged into the snapshot.
    MergeIntoOlder,
    /// A page of the table of pieces that changed is not written.
    ForgetTablePage,
    /// The same of the table of versions.
    ForgetVersionPage,
    /// A page gets another address although a snapshot names it by the one it has.
    RehomeIgnoresCut,
    /// A clone's merge lets die what its origin still uses.
    CloneIgnoresBase,
    /// A clone sees what its origin wrote after the snapshot, until a checkpoint has merged it.
    CloneSeesLater,
    /// A clone's first item is not replayed.
    CloneForgotten,
    /// What a deleted version alone seems to hold is given back although one of those that began at it
    /// uses it.
    OrphanIgnoresBranch,
    /// Now and then a proposal finds no room after it was sealed, and its stamps are given to the next one.
    ReturnStamps,
    /// A new leadership goes on in the epoch of the one before, with the stamp after the last that was applied.
    ResumeStamps,
    /// A segment is opened while zeros are on their way to it.
    OpenWhileZeroed,
}
