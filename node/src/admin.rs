//! Administrative requests to one store and their answers, as plain data. The daemon carries them
//! over gRPC; the simulator issues them directly.

use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What an operator asks of one store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminRequest {
    /// Create a volume with one copy in this store.
    VolumeCreate {
        /// Its name: 1 to 128 bytes of `A-Z a-z 0-9 . _ -`, not starting with `-` or `.`.
        name: String,
        /// Size in bytes: a positive multiple of 4096, at most 64 TiB.
        size_bytes: u64,
        /// Labels.
        labels: BTreeMap<String, String>,
        /// Encrypt its blocks, under a key of its own.
        encrypted: bool,
    },
    /// Create this store's replica of a volume whose group spans several nodes. The layer that
    /// places replicas asks it of each node with the same ids.
    ReplicaCreate(ReplicaSpec),
    /// Give a volume another replica, on the node that leads it: it receives the log, or what has changed, and gets its
    /// vote when it has that. A volume with one copy spans nodes from then on.
    ReplicaAdd {
        /// The volume.
        volume: String,
        /// The new replica, which its store has made.
        replica: esker_base::ReplicaId,
        /// The one that goes when the new one gets its vote.
        replaces: Option<esker_base::ReplicaId>,
        /// Where all of them live, the new one included.
        places: BTreeMap<esker_base::ReplicaId, esker_base::Place>,
    },
    /// Take a replica out of a volume's group, on the node that leads it. Its store keeps what it holds.
    ReplicaRemove {
        /// The volume.
        volume: String,
        /// The replica.
        replica: esker_base::ReplicaId,
        /// Only if it is no member: done then means that it never will be, and that enough others know it.
        only_outsider: bool,
    },
    /// All volumes of this store, by name.
    VolumeList,
    /// One volume.
    VolumeShow {
        /// Its name.
        name: String,
    },
    /// Grow a volume (shrinking is refused: it would drop data).
    VolumeResize {
        /// Its name.
        name: String,
        /// New size in bytes.
        size_bytes: u64,
    },
    /// Change labels of a volume; the others stay.
    VolumeRelabel {
        /// Its name.
        name: String,
        /// New values by key; none takes the label away.
        labels: BTreeMap<String, Option<String>>,
        /// A label that has this value, or nothing is changed ([`AdminError::NotLeading`]): whoever asks has decided by what it saw.
        expects: Option<(String, String)>,
    },
    /// Give a volume to one holder alone, whose sessions name the attachment, or take it back. What was attached before is fenced.
    VolumeAttach {
        /// Its name.
        name: String,
        /// Who gets it; none: anybody, from now on.
        holder: Option<String>,
        /// With no holder: only if this attachment is in force.
        only: Option<u64>,
        /// Whoever has it loses it; without this, one that another holder has is refused.
        fence: bool,
    },
    /// Rename a volume. One with one copy is refused while sessions are attached under the old name.
    VolumeRename {
        /// Its name.
        name: String,
        /// The new name.
        new_name: String,
    },
    /// Whether the store has a volume.
    VolumeFind {
        /// Its name.
        name: String,
    },
    /// Delete a volume and everything in it. Refused while sessions are attached.
    VolumeDelete {
        /// Its name.
        name: String,
        /// Its snapshots go with it; otherwise a volume with snapshots is refused.
        with_snapshots: bool,
    },
    /// Keep a volume as it is now: every write that was acknowledged before is in the snapshot, none
    /// that is asked for after the answer is.
    SnapshotCreate {
        /// The volume.
        volume: String,
        /// The snapshot's name, of the same letters as a volume's.
        name: String,
        /// Labels.
        labels: BTreeMap<String, String>,
    },
    /// A part of a cut through several volumes, before its snapshots are taken (see [`crate::hold`]).
    VolumeHold {
        /// The volume.
        volume: String,
        /// The name that its snapshot is to have.
        name: String,
        /// The cut.
        cut: u128,
        /// What is to be done.
        step: crate::hold::HoldStep,
    },
    /// Keep a volume as a snapshot that is a part of a cut. Refused unless its changes are held back for that, by the same leader.
    SnapshotCut {
        /// The volume.
        volume: String,
        /// The snapshot's name.
        name: String,
        /// The cut.
        cut: u128,
        /// When it was begun, in microseconds since the Unix epoch.
        created_us: u64,
        /// Labels.
        labels: BTreeMap<String, String>,
    },
    /// Make a volume that begins as a snapshot is, and then lives on its own. Takes no time and no room.
    VolumeClone {
        /// The volume.
        volume: String,
        /// The snapshot.
        snapshot: String,
        /// The new volume's name.
        name: String,
        /// The new volume's labels.
        labels: BTreeMap<String, String>,
        /// The new volume, where its first key has been placed on the nodes that are to have a copy.
        born: Option<esker_base::VolumeId>,
    },
    /// Make a volume that begins as another one was at a moment of its rewind window.
    VolumeCloneAt {
        /// The volume.
        volume: String,
        /// The moment, in microseconds since the Unix epoch.
        at_us: u64,
        /// The new volume's name.
        name: String,
        /// The new volume's labels.
        labels: BTreeMap<String, String>,
        /// As for [`Self::VolumeClone`].
        born: Option<esker_base::VolumeId>,
    },
    /// Delete a snapshot. Clones of it stay as they are. Refused while sessions are attached to it.
    SnapshotDelete {
        /// The volume.
        volume: String,
        /// The snapshot.
        name: String,
    },
    /// Let a volume go on from a snapshot. Its size stays. Refused while sessions are attached to it.
    SnapshotRollback {
        /// The volume.
        volume: String,
        /// The snapshot.
        name: String,
        /// Under which name the state that is left is kept: none for one that the store chooses,
        /// `Some(None)` for not at all.
        keep: Option<Option<String>>,
        /// End the sessions that are attached instead.
        force: bool,
    },
    /// Snapshots, by volume and age, at most [`SNAPSHOTS_PAGE_MAX`].
    SnapshotList {
        /// Of this volume; of all without.
        volume: Option<String>,
        /// Behind this volume's name and stamp.
        after: Option<(String, u64)>,
    },
    /// The versions of a volume by number, at most [`SNAPSHOTS_PAGE_MAX`].
    VersionList {
        /// The volume.
        volume: String,
        /// Those with a higher number.
        after: u64,
    },
    /// What differs between two versions of a volume, or of a volume and what it was cloned from; perhaps only a part.
    SnapshotDiff {
        /// The volume.
        volume: String,
        /// The volume whose snapshot the older one is, if it is another one.
        of: Option<String>,
        /// The older one, a snapshot.
        from: String,
        /// The newer one, a snapshot; the volume as it is now without.
        to: Option<String>,
        /// Where to begin, in bytes: a multiple of 4096.
        offset: u64,
    },
    /// Read and check what is stored; a part, from where the part before it ended.
    Scrub {
        /// Of this volume and what it goes back to; of the store without.
        volume: Option<String>,
        /// Where to begin; at the beginning without.
        place: Option<ScrubPlace>,
    },
    /// Make sums exact: what was acknowledged is merged, what was deleted is taken apart.
    Settle,
    /// Accept that the log of a suspended volume lost a record, and serve what is left.
    VolumeAcceptLoss {
        /// Its name.
        name: String,
    },
    /// Space of the store, or of one volume.
    Space {
        /// The volume; none for the whole store.
        volume: Option<String>,
    },
    /// The keys that an encrypted volume reads and writes with.
    KeyShow {
        /// The volume.
        volume: String,
    },
    /// The data keys of an encrypted volume, as they lie in this store: wrapped, its own first one first. Refused when it has another
    /// one of its own.
    KeysWrapped {
        /// The volume.
        volume: String,
    },
    /// Keep these keys for volumes that are here, or are about to begin: those that are in no slot yet.
    KeysPlace {
        /// As this node's provider opens them.
        keys: Vec<esker_crypto::WrappedKey>,
        /// They were made just now: refused when a key of such a number is in a slot.
        fresh: bool,
    },
    /// The number of the key that a volume with several copies gets next: answered by the node that leads it.
    KeyNext {
        /// The volume.
        volume: String,
    },
    /// Write to a volume with several copies under a key that has been placed on the nodes of all of them.
    KeyInForce {
        /// The volume.
        volume: String,
        /// The key's number.
        key_id: u32,
        /// The replicas whose nodes have it.
        replicas: BTreeSet<esker_base::ReplicaId>,
    },
    /// Wrap them anew, under the newest key of their provider.
    KeyRotate {
        /// The volume.
        volume: String,
        /// Encrypt what it holds under another key, too.
        data_key: bool,
    },
    /// Seal a part of a volume anew that has blocks under an older data key: of any one that has some.
    Reseal,
    /// Health, in data and words.
    Status,
    /// Write a checkpoint now.
    Checkpoint,
    /// All counters, for metrics.
    Metrics,
    /// Change what can be changed while the store is in use.
    Tune(Tuning),
}

/// What can be changed while a store is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// A request that takes at least this long is warned of, within limits.
    pub slow_request: std::time::Duration,
    /// Volumes that have metrics of their own; the others are summed.
    pub metrics_volumes_max: usize,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            slow_request: std::time::Duration::from_secs(1),
            metrics_volumes_max: 100,
        }
    }
}

/// A replica to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaSpec {
    /// The volume's name.
    pub name: String,
    /// Its size in bytes; for one that learns [`VolumeReport::first_bytes`].
    pub size_bytes: u64,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The volume.
    pub volume: esker_base::VolumeId,
    /// Its group.
    pub group: esker_base::GroupId,
    /// This node's replica.
    pub replica: esker_base::ReplicaId,
    /// All voters, this one included unless it learns.
    pub voters: Vec<esker_base::ReplicaId>,
    /// It begins without a vote, in a group that exists.
    pub learns: bool,
    /// The volume's data key as this node's provider opens it, when its blocks are encrypted.
    pub key: Option<esker_crypto::WrappedKey>,
}

/// The answer to an [`AdminRequest`].
#[derive(Clone, Debug, PartialEq)]
pub enum AdminReply {
    /// To create, show, resize, relabel, rename, clone, accept-loss.
    Volume(VolumeReport),
    /// To list.
    Volumes(Vec<VolumeReport>),
    /// To find, delete, checkpoint, settle and tune.
    Done,
    /// To the creation of a snapshot.
    Snapshot(SnapshotReport),
    /// To that of one of a cut: with how long changes were held back.
    Cut(Box<SnapshotReport>, std::time::Duration),
    /// To a rollback.
    RolledBack(Box<RolledBack>),
    /// To a list of snapshots.
    Snapshots(SnapshotPage),
    /// To a list of versions.
    Versions(Vec<VersionReport>),
    /// To a comparison.
    Diff(DiffPage),
    /// To a part of a scrub.
    Scrub(ScrubPage),
    /// To keys: by the volume they were made for, and number.
    Keys(Vec<KeyReport>),
    /// To wrapped keys.
    Wrapped(Vec<esker_crypto::WrappedKey>),
    /// The key that a volume gets next.
    NextKey(esker_crypto::KeyName),
    /// To a part of a volume sealed anew; none when no volume has anything to do.
    Resealed(Option<ResealPage>),
    /// To space.
    Space(SpaceReport),
    /// To status.
    Status(StatusReport),
    /// To metrics.
    Metrics(Box<crate::meters::StoreSample>),
}

/// One volume, as `volume show` prints it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VolumeReport {
    /// Name.
    pub name: String,
    /// UUID.
    pub uuid: String,
    /// Size in bytes, as clients see it.
    pub size_bytes: u64,
    /// The size that another copy of it begins with, which then learns how it grew: that of its oldest snapshot.
    pub first_bytes: u64,
    /// Bytes of live data blocks that this volume references.
    pub used_bytes: u64,
    /// Bytes that would return if the volume were deleted, with its snapshots; what clones of it use would
    /// stay.
    pub unique_bytes: u64,
    /// Those of them that only its snapshots hold, as of the last checkpoint.
    pub snapshot_bytes: u64,
    /// Number of copies.
    pub replicas: u32,
    /// Whether its blocks are encrypted.
    pub encrypted: bool,
    /// Number of snapshots.
    pub snapshots: u64,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// State.
    pub state: VolumeState,
    /// Attached sessions.
    pub sessions: u32,
    /// Which store of the node holds it.
    pub store: usize,
    /// Its rewind window in seconds; 0 without one.
    pub rewind_seconds: u64,
    /// The oldest second it can be had as of, since the Unix epoch; none without a rewind point.
    pub rewind_from_unix: Option<u64>,
    /// Bytes that nothing but its rewind points holds; none where sums do not tell.
    pub rewind_bytes: Option<u64>,
    /// Its group.
    pub group: u64,
    /// This store's replica of it.
    pub replica: u64,
    /// That one was taken out of the group.
    pub removed: bool,
    /// That one leads, and has applied all that was in the log before: what it tells is the volume's latest.
    pub serves: bool,
    /// Its replicas, where its group spans nodes.
    pub members: Vec<MemberReport>,
    /// How far its blocks are under its newest data key, while some may be under an older one.
    pub reseal: Option<ResealReport>,
    /// A key of it is in no slot of this store.
    pub lacks_keys: bool,
    /// Who holds it, as far as this replica has applied.
    pub attachment: crate::attachment::Attachment,
}

/// How far the blocks of a volume are under its newest data key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ResealReport {
    /// The newest key.
    pub key_id: u32,
    /// The pass has looked at the volume up to this byte; known to the node that leads it.
    pub through_bytes: u64,
    /// Of so many.
    pub size_bytes: u64,
    /// It has sealed this many anew.
    pub resealed_bytes: u64,
    /// Why some stay as they are; empty when none do.
    pub problem: String,
}

/// A part of a volume was sealed anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResealPage {
    /// The volume.
    pub volume: String,
    /// Bytes sealed anew.
    pub bytes: u64,
    /// It has no blocks under older keys any more.
    pub ended: bool,
}

/// A replica of a volume whose group spans nodes, as another one of them knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemberReport {
    /// Its id in the group.
    pub replica: u64,
    /// The node that holds it; none when this node was not told.
    pub node: Option<u64>,
    /// Its store there.
    pub store: u16,
    /// Whether it votes.
    pub is_voter: bool,
    /// Whether its vote ends with the change of members that is under way. Until then nothing is decided without a majority of
    /// those that voted before, too.
    pub is_leaving: bool,
    /// The replica that goes when this one has its vote; 0 for none.
    pub replaces: u64,
    /// Whether it leads, as far as this replica knows.
    pub leads: bool,
    /// How it is. A follower knows that of itself and of a leader it hears; of others only the leader does.
    pub state: Option<VolumeState>,
    /// Bytes of the log that it still has to receive; known to the leader, and less than the truth where
    /// it is behind the log that is kept.
    pub lag_bytes: u64,
}

/// A key of an encrypted volume, as `key show` prints it. Nothing in it is secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KeyReport {
    /// The volume it was made for: this one, or one that it began from.
    pub volume_uuid: String,
    /// Its number there.
    pub key_id: u32,
    /// The volume writes with it.
    pub is_own: bool,
    /// Kind of the provider that wrapped it; empty when it is in no slot.
    pub provider: String,
    /// The key that wrapped it, with its version, as the provider knows it.
    pub kek: String,
    /// `open`, `waiting` for its provider, or `locked`.
    pub state: String,
    /// Why it is locked.
    pub reason: String,
    /// Epochs of the volume that were written with it.
    pub epochs: Option<EpochReport>,
    /// What keeps it, when it is not the one that the volume writes with.
    pub needed_by: Option<KeyNeed>,
}

/// What keeps a key that its volume does not write with any more. When there is nothing left of it, the key is
/// destroyed with the next checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KeyNeed {
    /// Blocks of the volume itself that are not sealed anew yet.
    pub volume: bool,
    /// Snapshots that may hold blocks under it.
    pub snapshots: u64,
    /// Rewind points that may.
    pub rewind_points: u64,
    /// Other volumes that began with blocks under it.
    pub volumes: Vec<String>,
}

/// Epochs that were written with one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EpochReport {
    /// The first one.
    pub first: u32,
    /// The last one.
    pub last: u32,
    /// How many.
    pub count: u64,
}

/// Most snapshots in one answer.
pub const SNAPSHOTS_PAGE_MAX: usize = 1000;

/// A snapshot, as `snapshot list` prints it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SnapshotReport {
    /// The volume.
    pub volume: String,
    /// Its name, unique among the volume's.
    pub name: String,
    /// Its stamp: it holds every block of the volume with a lower one.
    pub stamp: u64,
    /// When it was taken, in seconds since the Unix epoch.
    pub created_unix: u64,
    /// The volume's size then, in bytes.
    pub size_bytes: u64,
    /// Bytes that would return if it were deleted; none while or where sums do not tell.
    pub unique_bytes: Option<u64>,
    /// Bytes of data in it; none until a checkpoint has merged it.
    pub referenced_bytes: Option<u64>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Sessions that read it.
    pub sessions: u32,
    /// Which store of the node holds it.
    pub store: usize,
}

/// A part of a list of snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotPage {
    /// Snapshots.
    pub snapshots: Vec<SnapshotReport>,
    /// Volume and stamp behind which the list goes on; none at its end.
    pub next: Option<(String, u64)>,
}

/// What a version of a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VersionKind {
    /// The volume itself.
    Head,
    /// A snapshot.
    Snapshot,
    /// A deleted snapshot, or a state that a rollback left, that others still begin at.
    Deleted,
}

/// A version of a volume and its place in the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionReport {
    /// Its number.
    pub id: u64,
    /// The number of the version it began from.
    pub parent: Option<u64>,
    /// What it is.
    pub kind: VersionKind,
    /// Name, time and sums; of the volume itself the sums only.
    pub snapshot: SnapshotReport,
}

/// What a rollback has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolledBack {
    /// The volume.
    pub volume: VolumeReport,
    /// The state that was left, if it was kept.
    pub kept: Option<SnapshotReport>,
}

/// Neighbouring bytes that differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiffExtent {
    /// The first one.
    pub offset: u64,
    /// How many.
    pub length: u64,
    /// They hold data in the newer version; otherwise they read as zeros there.
    pub is_data: bool,
}

/// What differs, as far as it was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiffPage {
    /// In the order of offsets; neighbours of one kind may be in two.
    pub extents: Vec<DiffExtent>,
    /// Everything before this byte is told; ask from there.
    pub through_bytes: u64,
    /// Size of the larger of the two, where the comparison ends.
    pub size_bytes: u64,
}

/// How far a scrub is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubPlace {
    /// The version being looked at.
    pub target: esker_engine::event::ScrubTarget,
    /// Its first block that is not checked.
    pub block: u64,
}

/// Something that is damaged on the device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ScrubDamage {
    /// The volume that it was written to; empty when that was deleted and clones of it live on.
    pub volume: String,
    /// The oldest snapshot that has it, empty if that was deleted; none when only the volume has it.
    pub snapshot: Option<String>,
    /// First byte.
    pub offset: u64,
    /// Bytes concerned.
    pub length: u64,
    /// The map over them is damaged, so none of them can be read.
    pub in_map: bool,
    /// It can be read again: it was written over with what another replica has, or has been replaced since.
    pub repaired: bool,
}

/// A part of a scrub.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubPage {
    /// Where the next part begins; none when all is checked.
    pub next: Option<ScrubPlace>,
    /// Bytes read from the device and checked.
    pub checked_bytes: u64,
    /// About how many there are in all.
    pub total_bytes: u64,
    /// What is damaged, at most a few hundred.
    pub damaged: Vec<ScrubDamage>,
}

/// Whether a volume serves I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeState {
    /// Serves I/O.
    #[default]
    Ready,
    /// Starting: its group has no leader or no open epoch yet.
    Starting,
    /// A damaged record may have held entries of its log; see `volume accept-loss`.
    Suspended,
    /// The store is fenced: reads only.
    Fenced,
    /// Its key is not to be had now.
    Locked,
}

/// Space of a store, or the part of it one volume holds. All in bytes of 4 KiB slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SpaceReport {
    /// Live data that is not only in snapshots, and map pages.
    pub live_bytes: u64,
    /// Held only by snapshots and rewind points.
    pub snapshot_bytes: u64,
    /// Of these, held only by rewind points; none where sums do not tell.
    pub rewind_bytes: Option<u64>,
    /// Dead, but in segments that cannot be reused yet.
    pub garbage_bytes: u64,
    /// In free segments and in the unwritten part of open ones; the reserve is a part of it.
    pub free_bytes: u64,
    /// Size of the store.
    pub total_bytes: u64,
    /// Kept back for the map and for deletion when the store is full.
    pub reserve_bytes: u64,
    /// Written to the device since the store was created.
    pub device_bytes_written: u64,
    /// Written by clients since the store was created.
    pub client_bytes_written: u64,
}

/// Health of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StatusReport {
    /// False when anything below needs an operator.
    pub healthy: bool,
    /// What is wrong, since when, and the next safe step; empty when healthy.
    pub problems: Vec<String>,
    /// Volumes with their states.
    pub volumes: Vec<VolumeReport>,
    /// Blocks found damaged since the start.
    pub damaged_blocks: u64,
    /// Records replayed at the last start.
    pub recovered_records: u64,
    /// Attached sessions.
    pub sessions: u32,
}

/// Why a request was refused. Each carries one line that names the thing and the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminError {
    /// No such volume.
    NotFound(String),
    /// The name is taken.
    Exists(String),
    /// A value is not acceptable.
    Invalid(String),
    /// Not possible in the present state (sessions attached, store fenced, volume suspended).
    Refused(String),
    /// The store has no room.
    NoSpace(String),
    /// This replica does not lead its volume's group: nothing was done, and whoever leads can do it.
    NotLeading(String),
    /// It was on its way when the leadership was lost: whether it takes effect is not known here.
    Unsure(String),
}

impl std::fmt::Display for AdminError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::NotFound(text)
        | Self::Exists(text)
        | Self::Invalid(text)
        | Self::Refused(text)
        | Self::NoSpace(text)
        | Self::NotLeading(text)
        | Self::Unsure(text)) = self;
        f.write_str(text)
    }
}

impl std::error::Error for AdminError {}

/// Most characters of somebody's text that [`one_line`] keeps.
pub const SHOWN_CHARS_MAX: usize = 1024;

/// A text that somebody sent, for one line of an answer or of a log: control characters are escaped,
/// and what passes [`SHOWN_CHARS_MAX`] is cut.
#[must_use]
pub fn one_line(text: &str) -> String {
    let mut out = String::new();
    for (at, c) in text.chars().enumerate() {
        if at == SHOWN_CHARS_MAX {
            out.push('…');
            break;
        }
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name with a line break made a refusal of two lines, of which the command line shows one.
    /// Found by fuzzing the admin API.
    #[test]
    fn what_somebody_sent_stays_on_one_line_and_is_cut() {
        assert_eq!(one_line("v-1.a_ü"), "v-1.a_ü");
        assert_eq!(one_line("a\nb\r\u{2028}\0"), "a\\nb\\r\\u{2028}\\u{0}");
        assert_eq!(
            one_line(&"x".repeat(1 << 20)).chars().count(),
            SHOWN_CHARS_MAX + 1
        );
    }
}
