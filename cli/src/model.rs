//! What JSON output holds. Scripts rely on these fields: they are added to, never changed.

use crate::error::CliError;
use esker_api::v1;
use serde::Serialize;
use std::collections::BTreeMap;

/// A volume.
#[derive(Clone, Debug, Serialize)]
pub struct Volume {
    /// Name, also of its NBD export.
    pub name: String,
    /// UUID.
    pub uuid: String,
    /// Size in bytes, as clients see it.
    pub size_bytes: u64,
    /// Bytes of live data that it references.
    pub used_bytes: u64,
    /// Bytes that would return if it were deleted, with its snapshots; what clones of it use would stay.
    pub unique_bytes: u64,
    /// Those of them that only its snapshots hold.
    pub snapshot_bytes: u64,
    /// Number of copies.
    pub replicas: u32,
    /// Whether its blocks are encrypted.
    pub encrypted: bool,
    /// Number of its snapshots.
    pub snapshots: u64,
    /// NBD URI on the node's unix socket.
    pub uri: String,
    /// NBD URI over TCP; none when the node does not listen there.
    pub tcp_uri: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// `ready`, `starting`, `suspended` or `fenced`.
    pub state: &'static str,
    /// Attached sessions.
    pub sessions: u32,
    /// Which store of the node holds it.
    pub store: u32,
    /// Its snapshot schedule; null without one.
    pub snapshot_schedule: Option<String>,
    /// Its rewind window in seconds; 0 without one.
    pub rewind_seconds: u64,
    /// The oldest second that it can be cloned as of, since the Unix epoch; null without a rewind point.
    pub rewind_from_unix: Option<u64>,
    /// Bytes that nothing but its rewind points holds; null where sums do not tell.
    pub rewind_bytes: Option<u64>,
    /// How far its blocks are under its newest data key; null when all of them are.
    pub reseal: Option<Reseal>,
    /// Who holds it alone; null when anybody may attach.
    pub attachment: Option<Attachment>,
}

/// Who holds a volume alone.
#[derive(Clone, Debug, Serialize)]
pub struct Attachment {
    /// Its number, which ends the export's name.
    pub number: u64,
    /// The holder.
    pub holder: String,
    /// When that began, since the Unix epoch.
    pub since_unix: u64,
}

/// How far a volume is that was given another data key.
#[derive(Clone, Debug, Serialize)]
pub struct Reseal {
    /// The newest key's number.
    pub key_id: u32,
    /// The volume is looked at up to this byte.
    pub through_bytes: u64,
    /// Of so many.
    pub size_bytes: u64,
    /// This many were sealed anew since this pass began.
    pub resealed_bytes: u64,
    /// Why some stay as they are; null when none do.
    pub problem: Option<String>,
}

impl From<v1::Volume> for Volume {
    fn from(volume: v1::Volume) -> Self {
        Self {
            state: state_text(volume.state()),
            name: volume.name,
            uuid: volume.uuid,
            size_bytes: volume.size_bytes,
            used_bytes: volume.used_bytes,
            unique_bytes: volume.unique_bytes,
            snapshot_bytes: volume.snapshot_bytes,
            replicas: volume.replicas,
            encrypted: volume.encrypted,
            snapshots: volume.snapshots,
            uri: volume.uri,
            tcp_uri: text(volume.tcp_uri),
            labels: volume.labels,
            sessions: volume.sessions,
            store: volume.store,
            snapshot_schedule: text(volume.snapshot_schedule),
            rewind_seconds: volume.rewind_seconds,
            rewind_from_unix: volume.rewind_from_unix,
            rewind_bytes: volume.rewind_bytes,
            reseal: volume.reseal.map(|reseal| Reseal {
                key_id: reseal.key_id,
                through_bytes: reseal.through_bytes,
                size_bytes: reseal.size_bytes,
                resealed_bytes: reseal.resealed_bytes,
                problem: text(reseal.problem),
            }),
            attachment: volume.attachment.map(|attachment| Attachment {
                number: attachment.number,
                holder: attachment.holder,
                since_unix: attachment.since_unix,
            }),
        }
    }
}

/// A deleted volume.
#[derive(Clone, Debug, Serialize)]
pub struct Deleted {
    /// Its name.
    pub name: String,
    /// Always true.
    pub deleted: bool,
}

/// A snapshot.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// Its volume.
    pub volume: String,
    /// Its name, unique among its volume's.
    pub name: String,
    /// Its stamp: it holds every block of the volume with a lower one.
    pub stamp: u64,
    /// When it was taken, in seconds since the Unix epoch.
    pub created_unix: u64,
    /// The volume's size then, in bytes.
    pub size_bytes: u64,
    /// Bytes that would return if it were deleted; null where sums do not tell, as when several versions
    /// begin at it.
    pub unique_bytes: Option<u64>,
    /// Bytes of data in it; null until a checkpoint has merged it.
    pub referenced_bytes: Option<u64>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Sessions that read it.
    pub sessions: u32,
    /// Which store of the node holds it.
    pub store: u32,
    /// The periods of its volume's schedule that it was taken for; null for one that was asked for.
    pub automatic: Option<String>,
    /// What it is a part of, together with snapshots of other volumes; null for one that was taken alone.
    pub group_snapshot: Option<GroupSnapshot>,
}

/// Which group snapshot one is a part of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupSnapshot {
    /// UUID.
    pub id: String,
    /// Of how many volumes.
    pub volumes: u32,
}

/// A group snapshot that was taken.
#[derive(Clone, Debug, Serialize)]
pub struct TakenGroup {
    /// The snapshots, as they were asked for.
    pub snapshots: Vec<Snapshot>,
    /// For how long writes to a volume waited, at most, in microseconds.
    pub held_microseconds: u64,
    /// How often it was begun.
    pub attempts: u32,
}

impl From<v1::Snapshot> for Snapshot {
    fn from(snapshot: v1::Snapshot) -> Self {
        Self {
            volume: snapshot.volume,
            name: snapshot.name,
            stamp: snapshot.stamp,
            created_unix: snapshot.created_unix,
            size_bytes: snapshot.size_bytes,
            unique_bytes: snapshot.unique_bytes,
            referenced_bytes: snapshot.referenced_bytes,
            labels: snapshot.labels,
            sessions: snapshot.sessions,
            store: snapshot.store,
            automatic: text(snapshot.automatic),
            group_snapshot: text(snapshot.group_snapshot).map(|id| GroupSnapshot {
                id,
                volumes: snapshot.group_volumes,
            }),
        }
    }
}

/// A version of a volume.
#[derive(Clone, Debug, Serialize)]
pub struct Version {
    /// Its volume.
    pub volume: String,
    /// Which store of the node holds it.
    pub store: u32,
    /// Its number, unique in its store.
    pub id: u64,
    /// The number of the version it began from, of its volume or of the one it is a clone of; null for the
    /// first one.
    pub parent: Option<u64>,
    /// `head`, `snapshot` or `deleted`.
    pub kind: &'static str,
    /// Its name; without meaning for a head.
    pub name: String,
    /// Its stamp.
    pub stamp: u64,
    /// When it was taken, in seconds since the Unix epoch.
    pub created_unix: u64,
    /// The volume's size then, in bytes.
    pub size_bytes: u64,
    /// As of a snapshot.
    pub unique_bytes: Option<u64>,
    /// As of a snapshot.
    pub referenced_bytes: Option<u64>,
}

impl From<v1::Version> for Version {
    fn from(version: v1::Version) -> Self {
        let kind = match version.kind() {
            v1::VersionKind::Unspecified => "unknown",
            v1::VersionKind::Head => "head",
            v1::VersionKind::Snapshot => "snapshot",
            v1::VersionKind::Deleted => "deleted",
        };
        let snapshot = version.snapshot.unwrap_or_default();
        Self {
            volume: snapshot.volume,
            store: snapshot.store,
            id: version.id,
            parent: version.parent,
            kind,
            name: snapshot.name,
            stamp: snapshot.stamp,
            created_unix: snapshot.created_unix,
            size_bytes: snapshot.size_bytes,
            unique_bytes: snapshot.unique_bytes,
            referenced_bytes: snapshot.referenced_bytes,
        }
    }
}

/// A deleted snapshot.
#[derive(Clone, Debug, Serialize)]
pub struct DeletedSnapshot {
    /// Its volume.
    pub volume: String,
    /// Its name.
    pub name: String,
    /// Always true.
    pub deleted: bool,
}

/// What became of the automatic snapshots of a volume, newest first.
#[derive(Clone, Debug, Serialize)]
pub struct Pruned {
    /// The volume.
    pub volume: String,
    /// Nothing was deleted.
    pub dry_run: bool,
    /// Kept.
    pub kept: Vec<KeptSnapshot>,
    /// Deleted, or to be deleted.
    pub deleted: Vec<String>,
    /// Not needed, and attached by sessions: deleted once those have gone.
    pub postponed: Vec<String>,
}

/// An automatic snapshot that is kept.
#[derive(Clone, Debug, Serialize)]
pub struct KeptSnapshot {
    /// Its name.
    pub name: String,
    /// The rules that need it.
    pub rules: String,
}

/// A volume that went back to a snapshot.
#[derive(Clone, Debug, Serialize)]
pub struct RolledBack {
    /// The volume as it is now.
    pub volume: Volume,
    /// The snapshot it went on from.
    pub snapshot: String,
    /// What it held before; null when that was not kept.
    pub kept: Option<Snapshot>,
}

/// Neighbouring bytes that differ.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DiffExtent {
    /// The first one.
    pub offset: u64,
    /// How many.
    pub length: u64,
    /// `data`, or `zero` when they read as zeros in the newer version.
    #[serde(rename = "type")]
    pub kind: &'static str,
}

impl DiffExtent {
    /// Whether the next one is its continuation.
    #[must_use]
    pub fn goes_on(&self, next: &Self) -> bool {
        self.kind == next.kind && self.offset.checked_add(self.length) == Some(next.offset)
    }
}

impl From<v1::DiffExtent> for DiffExtent {
    fn from(extent: v1::DiffExtent) -> Self {
        Self {
            offset: extent.offset,
            length: extent.length,
            kind: if extent.is_data { "data" } else { "zero" },
        }
    }
}

/// Space, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SpaceFigures {
    /// Live data that is not only in snapshots, and map pages. Of a volume: its live data.
    pub live_bytes: u64,
    /// Held only by snapshots and rewind points.
    pub snapshot_bytes: u64,
    /// Of these, held only by rewind points; null where sums do not tell.
    pub rewind_bytes: Option<u64>,
    /// Dead, but in segments that cannot be reused yet.
    pub garbage_bytes: u64,
    /// Can be written.
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

impl From<v1::Space> for SpaceFigures {
    fn from(space: v1::Space) -> Self {
        Self {
            live_bytes: space.live_bytes,
            snapshot_bytes: space.snapshot_bytes,
            rewind_bytes: space.rewind_bytes,
            garbage_bytes: space.garbage_bytes,
            free_bytes: space.free_bytes,
            total_bytes: space.total_bytes,
            reserve_bytes: space.reserve_bytes,
            device_bytes_written: space.device_bytes_written,
            client_bytes_written: space.client_bytes_written,
        }
    }
}

/// Space of the node or of one volume.
#[derive(Clone, Debug, Serialize)]
pub struct Space {
    /// The volume; absent for the whole node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// Its figures, or the sum over the stores.
    #[serde(flatten)]
    pub figures: SpaceFigures,
    /// The stores one by one; empty for a volume.
    pub stores: Vec<StoreSpace>,
}

/// Space of one store.
#[derive(Clone, Debug, Serialize)]
pub struct StoreSpace {
    /// Which store of the node.
    pub store: u32,
    /// Its device or file.
    pub path: String,
    /// Its figures.
    #[serde(flatten)]
    pub figures: SpaceFigures,
}

/// Health.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// False when a problem needs an operator.
    pub healthy: bool,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// The volumes.
    pub volumes: Vec<VolumeStatus>,
    /// What is wrong, since when, and the next safe step.
    pub problems: Vec<String>,
}

/// A node.
#[derive(Clone, Debug, Serialize)]
pub struct Node {
    /// Id.
    pub id: String,
    /// `up` or `degraded`.
    pub state: String,
    /// Version of its software.
    pub version: String,
    /// Its stores.
    pub stores: Vec<Store>,
}

/// A store.
#[derive(Clone, Debug, Serialize)]
pub struct Store {
    /// Which store of the node.
    pub store: u32,
    /// Its device or file.
    pub path: String,
    /// `ready`, `fenced` or `failed`.
    pub state: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Attached sessions.
    pub sessions: u32,
    /// Blocks found damaged since the start.
    pub damaged_blocks: u64,
    /// Records replayed at the last start.
    pub recovered_records: u64,
}

/// The health of a volume.
#[derive(Clone, Debug, Serialize)]
pub struct VolumeStatus {
    /// Name.
    pub name: String,
    /// State.
    pub state: &'static str,
    /// The node that leads it; none when none does.
    pub leader: Option<String>,
    /// Its copies.
    pub replicas: Vec<Replica>,
    /// Attached sessions.
    pub sessions: u32,
}

/// A copy of a volume.
#[derive(Clone, Debug, Serialize)]
pub struct Replica {
    /// The node that holds it.
    pub node: String,
    /// `voter`, `learner`, or `leaving`: a voter until the change of members that is under way is complete.
    pub role: String,
    /// State.
    pub state: &'static str,
    /// Bytes it still has to receive.
    pub lag_bytes: u64,
}

impl From<v1::StatusResponse> for Status {
    fn from(status: v1::StatusResponse) -> Self {
        Self {
            healthy: status.healthy,
            problems: status.problems,
            nodes: status.nodes.into_iter().map(Node::from).collect(),
            volumes: status.volumes.into_iter().map(VolumeStatus::from).collect(),
        }
    }
}

impl From<v1::Node> for Node {
    fn from(node: v1::Node) -> Self {
        let stores = node.stores.into_iter().map(|store| Store {
            store: store.index,
            path: store.path,
            state: store.state,
            size_bytes: store.size_bytes,
            sessions: store.sessions,
            damaged_blocks: store.damaged_blocks,
            recovered_records: store.recovered_records,
        });
        Self {
            stores: stores.collect(),
            id: node.id,
            state: node.state,
            version: node.version,
        }
    }
}

impl From<v1::VolumeStatus> for VolumeStatus {
    fn from(volume: v1::VolumeStatus) -> Self {
        let state = state_text(volume.state());
        let replicas = volume.replicas.into_iter().map(|replica| Replica {
            state: state_text(replica.state()),
            node: replica.node,
            role: replica.role,
            lag_bytes: replica.lag_bytes,
        });
        Self {
            replicas: replicas.collect(),
            name: volume.name,
            state,
            leader: text(volume.leader),
            sessions: volume.sessions,
        }
    }
}

/// What an answer must hold.
///
/// # Errors
/// When it does not.
pub fn required<T>(part: Option<T>, what: &'static str) -> Result<T, CliError> {
    part.ok_or(CliError::Answer(what))
}

fn state_text(state: v1::VolumeState) -> &'static str {
    match state {
        v1::VolumeState::Unspecified => "unknown",
        v1::VolumeState::Ready => "ready",
        v1::VolumeState::Starting => "starting",
        v1::VolumeState::Suspended => "suspended",
        v1::VolumeState::Fenced => "fenced",
        v1::VolumeState::Locked => "locked",
    }
}

/// The protocol's empty text is an absent one.
fn text(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}
