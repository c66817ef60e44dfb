//! What an engine is told and what it asks for.
//!
//! The contract for the caller:
//! 1. Every [`Effect::Disk`] is answered by one [`Event::Disk`]; a `Sync` covers the writes that
//!    completed before it was taken from the effects.
//! 2. Nothing but disk completions and timers is passed before [`Effect::Opened`].
//! 3. Entries of a group are appended with indexes that continue its log or overwrite a suffix that
//!    is not applied. [`Effect::Durable`] comes once per ticket, in the order of the group's appends,
//!    when everything of the append is durable, but for entries that a later append has overwritten
//!    before they were written: in Raft those can never be committed.
//! 4. [`Event::Apply`] names only entries that are durable here and committed. [`Effect::Applied`] comes
//!    in their order, and may come later: a rollback waits for a checkpoint, and what follows for it.
//! 5. After every step the caller asks [`crate::Engine::deadline`] and sends [`Event::Timer`] then.
//! 6. After [`Effect::Fenced`] no append is acknowledged; reads go on.
//! 7. A clone begins when its entry of the origin's log is applied, and is durable as that entry is:
//!    nothing has to be waited for. Its own log begins behind index 1 of term 1, so that no replica can
//!    be made from the log alone. After a crash it is among the opened groups, or its entry is not
//!    applied and brings it again.

pub use crate::catchup::{Harvest, HarvestRequest};
use crate::error::{CatalogError, OpenError, ReadError, StoreError};
use crate::format::checkpoint::{FeedEntry, GroupEntry, GroupMeta, Membership};
use crate::format::operation::{RequestId, TAG_BYTES};
use crate::format::record::{EntryKind, HardState};
use crate::format::versions::VersionId;
use crate::recovery::OpenReport;
use bytes::Bytes;
use esker_base::{BlockRange, DiskError, DiskOp, Epoch, GroupId, IoId, RaftIndex, Stamp, Term};

/// An entry to append.
#[derive(Clone, Debug)]
pub struct AppendEntry {
    /// Raft's term.
    pub term: Term,
    /// Raft's index.
    pub index: RaftIndex,
    /// Kind.
    pub kind: EntryKind,
    /// An encoded operation, a membership change, or empty.
    pub data: Bytes,
    /// The payload: pieces of whole pages at page-aligned addresses.
    pub payload: Vec<Bytes>,
}

/// Entries and hard state of one group that go into the log together.
#[derive(Clone, Debug)]
pub struct Append {
    /// The group.
    pub group: GroupId,
    /// Comes back in [`Effect::Durable`].
    pub ticket: u64,
    /// Entries, by index.
    pub entries: Vec<AppendEntry>,
    /// New hard state.
    pub hard_state: Option<HardState>,
    /// Somebody waits for durability; without it the sync may be put off for a bounded time.
    pub urgent: bool,
}

/// Blocks to read.
#[derive(Clone, Debug)]
pub struct ReadRequest {
    /// Comes back in [`Effect::ReadDone`].
    pub token: u64,
    /// The group.
    pub group: GroupId,
    /// Which blocks.
    pub range: BlockRange,
    /// Include entries that are appended and not yet applied.
    pub latest: bool,
    /// Of the snapshot with this stamp rather than of the head.
    pub at: Option<Stamp>,
}

/// A block as another replica stores it, for one that is damaged here.
#[derive(Clone, Debug)]
pub struct RepairRequest {
    /// Comes back in [`Effect::RepairDone`].
    pub token: u64,
    /// The group.
    pub group: GroupId,
    /// Which block.
    pub lba: u64,
    /// Of an entry that is appended and not yet applied, if there is one.
    pub latest: bool,
    /// Of the snapshot with this stamp rather than of the head.
    pub at: Option<Stamp>,
    /// Its stamp there.
    pub stamp: Stamp,
    /// Its tag; zeros for a plain block.
    pub tag: [u8; TAG_BYTES],
    /// The block as stored.
    pub data: Bytes,
}

/// What became of a [`RepairRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// The block is written.
    Done,
    /// It is none of this store's, at least not any more; or nothing can be written.
    Other,
}

/// Blocks to tell about.
#[derive(Clone, Debug)]
pub struct ExtentsRequest {
    /// Comes back in [`Effect::ExtentsDone`].
    pub token: u64,
    /// The group.
    pub group: GroupId,
    /// Which blocks; not empty.
    pub range: BlockRange,
    /// Include entries that are appended and not yet applied.
    pub latest: bool,
    /// Of the snapshot with this stamp rather than of the head.
    pub at: Option<Stamp>,
    /// The first run is enough.
    pub one: bool,
    /// Only blocks that are sealed under another key than the volume's newest count as data; what else there is
    /// is told as holes. Entries that are not applied are not looked at.
    pub old_keys: bool,
}

/// Two versions of a volume to compare.
#[derive(Clone, Debug)]
pub struct DiffRequest {
    /// Comes back in [`Effect::DiffDone`].
    pub token: u64,
    /// The group of the newer one.
    pub group: GroupId,
    /// The group of the older one: the same, or what it was cloned from, or anything else of the store.
    pub old: GroupId,
    /// Stamp of the older one, a snapshot.
    pub from: Stamp,
    /// Stamp of the newer one; the head as it is applied without.
    pub to: Option<Stamp>,
    /// Which blocks; may end with the longer of the two.
    pub range: BlockRange,
    /// The first blocks that differ, or the first that do not, are enough.
    pub one: bool,
}

/// Neighbouring blocks that differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiffRun {
    /// The first one.
    pub lba: u64,
    /// How many.
    pub count: u64,
    /// They hold data now; otherwise they read as zeros.
    pub is_data: bool,
}

/// What differs, as far as it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diff {
    /// Runs, by block.
    pub runs: Vec<DiffRun>,
    /// All blocks before this one are told about; the next question begins there.
    pub through: u64,
}

/// What a scrub looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ScrubTarget {
    /// A snapshot, or what is left of a deleted one that others begin at.
    Version(VersionId),
    /// A volume as a checkpoint merged it last.
    Head(GroupId),
}

/// Asks for a part of a scrub.
#[derive(Clone, Debug)]
pub struct ScrubRequest {
    /// Comes back in [`Effect::ScrubDone`].
    pub token: u64,
    /// What to look at: of what it shares with the version that it goes back to, nothing.
    pub target: ScrubTarget,
    /// Block from which on.
    pub from: u64,
}

/// Something that is not what was written, or cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// First block.
    pub lba: u64,
    /// How many it concerns.
    pub count: u64,
    /// The map over them is damaged: where they are is not known.
    pub in_map: bool,
}

impl Damage {
    pub(crate) fn of_map(lba: u64, count: u64) -> Self {
        let in_map = true;
        Self { lba, count, in_map }
    }
}

/// A part of a scrub.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubPart {
    /// All blocks before this one are looked at; the next question begins there.
    pub through: u64,
    /// Nothing is left.
    pub ended: bool,
    /// Blocks that were read and checked.
    pub blocks: u64,
    /// Map nodes that were read and checked.
    pub nodes: u64,
    /// What is damaged, by block.
    pub damaged: Vec<Damage>,
}

/// What is stored for a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Nothing: never written, or discarded. Reads as zeros.
    Hole,
    /// Written as zeros. Once a checkpoint has merged it, a long run of these may be a hole.
    Zero,
    /// Data.
    Data,
}

/// Neighbouring blocks of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentRun {
    /// What is stored.
    pub kind: ExtentKind,
    /// How many blocks.
    pub count: u64,
}

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// A disk operation ended.
    Disk {
        /// Its id.
        io: IoId,
        /// Its outcome.
        result: Result<Bytes, DiskError>,
    },
    /// The deadline passed.
    Timer,
    /// Put entries into the log.
    Append(Append),
    /// Entries through this index are committed: bring them into the map.
    Apply {
        /// The group.
        group: GroupId,
        /// Last index to apply.
        through: RaftIndex,
    },
    /// Read blocks.
    Read(ReadRequest),
    /// Read blocks as they are stored: each comes as a [`ReadPiece::Sealed`], the plain ones, too.
    ReadStored(ReadRequest),
    /// Write what another replica has over a damaged block.
    Repair(RepairRequest),
    /// Tell where data is.
    Extents(ExtentsRequest),
    /// Tell what changed between two versions.
    Diff(DiffRequest),
    /// Check what is stored.
    Scrub(ScrubRequest),
    /// Tell what a snapshot has above a stamp.
    Harvest(HarvestRequest),
    /// A group that is fed has become what another replica was: its feed ends, and it goes on from there.
    Publish {
        /// Comes back in [`Effect::CatalogDone`].
        token: u64,
        /// The group.
        group: GroupId,
        /// What the manifest says of it.
        state: Box<GroupEntry>,
        /// What its feed has come to: all that the manifest names.
        whole: FeedEntry,
    },
    /// Read the payload of a retained entry.
    ReadPayload {
        /// Comes back in [`Effect::PayloadDone`].
        token: u64,
        /// The group.
        group: GroupId,
        /// The entry.
        index: RaftIndex,
    },
    /// Begin a group.
    Create {
        /// Comes back in [`Effect::CatalogDone`].
        token: u64,
        /// What it is.
        meta: Box<GroupMeta>,
    },
    /// End a group: everything of it dies.
    Delete {
        /// Comes back in [`Effect::CatalogDone`].
        token: u64,
        /// The group.
        group: GroupId,
    },
    /// Rename a group's volume.
    Rename {
        /// Comes back in [`Effect::CatalogDone`].
        token: u64,
        /// The group.
        group: GroupId,
        /// The new name.
        name: String,
    },
    /// Accept that a suspended group of one lost entries.
    AcceptLoss {
        /// Comes back in [`Effect::CatalogDone`].
        token: u64,
        /// The group.
        group: GroupId,
    },
    /// A suspended replica has caught up with a leader elected without it.
    Resume {
        /// The group.
        group: GroupId,
    },
    /// As [`Event::Apply`], where the last entry is a membership change: a checkpoint never
    /// holds one without the other.
    ApplyMembership {
        /// The group.
        group: GroupId,
        /// Last index to apply.
        through: RaftIndex,
        /// The membership after it.
        membership: Membership,
    },
    /// A replica has lost entries that it acknowledged: it is suspended from its next start on.
    Suspend {
        /// The group.
        group: GroupId,
    },
    /// Only the commit index moved: kept for the next checkpoint, not worth a record.
    NoteHardState {
        /// The group.
        group: GroupId,
        /// Its hard state.
        hard_state: HardState,
    },
    /// Somebody waits for what is written to become durable.
    SyncSoon,
    /// As [`Event::SyncSoon`], for what is on the device by now; what is on its way to it goes along
    /// with a later sync.
    SyncWritten,
    /// Write a checkpoint.
    Checkpoint {
        /// Comes back in [`Effect::CheckpointDone`].
        token: u64,
    },
    /// Make everything durable, write a checkpoint, then [`Effect::Stopped`].
    Stop,
}

/// What became of an applied entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The map changed, or nothing (an empty entry).
    Done,
    /// An epoch is open.
    EpochOpened {
        /// Its number.
        epoch: Epoch,
        /// The proposer's nonce.
        nonce: u64,
    },
    /// The volume has a new size, in bytes.
    Resized(u64),
    /// The volume has a new name.
    Renamed,
    /// Labels of the volume have changed; false when it would have had too many, and nothing has.
    Relabelled(bool),
    /// A snapshot was taken; its stamp.
    SnapshotTaken(Stamp),
    /// A snapshot was deleted; its stamp.
    SnapshotDeleted(Stamp),
    /// The volume goes on from a snapshot; its size stays. Stamp of the state that was left.
    RolledBack(Stamp),
    /// A volume of its own has begun at a snapshot: its group is there, readable and writable, and lives
    /// on without this one. [`crate::Engine::recovered_group`] tells what its log begins with.
    Cloned(GroupId),
    /// Nothing happened to any snapshot, and no clone began.
    SnapshotRefused(SnapshotRefusal),
    /// The entry is a membership change for the replication layer.
    Membership,
}

/// Why an operation on a snapshot did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotRefusal {
    /// Another snapshot of the volume has the name.
    NameTaken,
    /// The volume has no such snapshot.
    Unknown,
    /// The volume has as many as it may have.
    TooMany,
    /// The group that was to begin exists.
    GroupExists,
}

/// A part of what was read, in order.
#[derive(Clone, Debug)]
pub enum ReadPiece {
    /// Blocks as stored.
    Data(Bytes),
    /// This many blocks of zeros.
    Zeros(u64),
    /// Sealed blocks as stored: what their keys are derived from is in [`crate::Engine::epoch`]. Or plain ones, for
    /// [`Event::ReadStored`].
    Sealed {
        /// The first one.
        lba: u64,
        /// The blocks.
        data: Bytes,
        /// Stamp and tag of each.
        seals: Vec<(Stamp, [u8; TAG_BYTES])>,
    },
}

/// A group as recovery found it.
#[derive(Clone, Debug)]
pub struct RecoveredGroup {
    /// What it is.
    pub meta: GroupMeta,
    /// Hard state; its commit never exceeds the last entry.
    pub hard_state: HardState,
    /// Cut point of the Raft log.
    pub truncated: (RaftIndex, Term),
    /// Applied.
    pub applied: RaftIndex,
    /// Retained entries with their payload lengths in bytes.
    pub entries: Vec<(Term, RaftIndex, EntryKind, Bytes, u32)>,
    /// A damaged record may have held entries of the group.
    pub suspended: bool,
}

/// The result of opening.
#[derive(Clone, Debug, Default)]
pub struct Opened {
    /// All groups, by id.
    pub groups: Vec<RecoveredGroup>,
    /// What recovery found.
    pub report: OpenReport,
}

/// Something to be done, or something that is so.
#[derive(Debug)]
pub enum Effect {
    /// Run a disk operation.
    Disk {
        /// Comes back in [`Event::Disk`].
        io: IoId,
        /// What to do.
        op: DiskOp,
    },
    /// The store is open.
    Opened(Box<Opened>),
    /// The store cannot be opened.
    OpenFailed(OpenError),
    /// All entries of the group through this index are on the device, not yet synced.
    Written {
        /// The group.
        group: GroupId,
        /// Last such index.
        through: RaftIndex,
    },
    /// An append is durable.
    Durable {
        /// The group.
        group: GroupId,
        /// Its ticket.
        ticket: u64,
    },
    /// An entry is in the map.
    Applied {
        /// The group.
        group: GroupId,
        /// The entry.
        index: RaftIndex,
        /// Its term.
        term: Term,
        /// Who asked for it.
        request: RequestId,
        /// What became of it.
        outcome: Outcome,
    },
    /// A read ended.
    ReadDone {
        /// Its token.
        token: u64,
        /// The blocks or why not.
        result: Result<Vec<ReadPiece>, ReadError>,
    },
    /// A repair ended.
    RepairDone {
        /// Its token.
        token: u64,
        /// What became of it, or why the block is not found or not written.
        result: Result<Repair, ReadError>,
    },
    /// A query of extents ended.
    ExtentsDone {
        /// Its token.
        token: u64,
        /// The runs from the first block on, neighbours of different kinds. At least one; they may
        /// end before the range does. Or why not.
        result: Result<Vec<ExtentRun>, ReadError>,
    },
    /// Two versions were compared.
    DiffDone {
        /// The token of the question.
        token: u64,
        /// What differs, perhaps only of a part of the range; or why it cannot be told.
        result: Result<Diff, ReadError>,
    },
    /// A part of a scrub is done.
    ScrubDone {
        /// The token of the question.
        token: u64,
        /// What was found, or why nothing can be looked at.
        result: Result<ScrubPart, ReadError>,
    },
    /// A question for what a snapshot has above a stamp ended.
    HarvestDone {
        /// Its token.
        token: u64,
        /// What it has, perhaps only of a part of the range, or why that cannot be told.
        result: Result<Harvest, ReadError>,
    },
    /// A payload was read.
    PayloadDone {
        /// Its token.
        token: u64,
        /// The payload, or none when it cannot be had any more.
        payload: Option<Bytes>,
    },
    /// A catalog operation is durable, or was refused.
    CatalogDone {
        /// Its token.
        token: u64,
        /// The outcome.
        result: Result<(), CatalogError>,
    },
    /// The Raft log of the group was cut: entries through this index are gone.
    LogTruncated {
        /// The group.
        group: GroupId,
        /// Cut point.
        index: RaftIndex,
        /// Its term.
        term: Term,
    },
    /// A checkpoint is durable.
    CheckpointDone {
        /// The token it was asked with.
        token: u64,
    },
    /// The store takes no more writes.
    Fenced(StoreError),
    /// The answer to [`Event::Stop`].
    Stopped,
}
