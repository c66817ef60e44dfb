//! What a checkpoint says of a group.

use super::checkpoint::{decode_pointer, encode_pointer};
use super::codec::{FormatError, Reader, Writer};
use super::node::{ChildPointer, LEVEL_MAX};
use super::record::{decode_entry_kind, decode_hard_state, encode_hard_state};
use super::record::{EntryKind, HardState};
use super::vaddr::VAddr;
use bytes::Bytes;
use esker_base::{
    limits, Epoch, GroupId, NodeId, Place, RaftIndex, ReplicaId, Seq, SessionId, Stamp, Term,
    VolumeId,
};
use std::collections::BTreeMap;

/// Version of a group without encrypted epochs, and of the meta of one that is not encrypted.
pub const GROUP_VERSION: u16 = 1;
/// Version of the others.
pub const GROUP_VERSION_KEYED: u16 = 2;
/// Added to the version of a group that remembers requests.
pub const GROUP_VERSION_REQUESTS: u16 = 2;
/// Added to the version of a group that was rolled back while it spanned nodes.
pub const GROUP_VERSION_JUMPS: u16 = 4;
/// Added to the version of a group that is a feed.
pub const GROUP_VERSION_FEED: u16 = 8;
/// Added to the version of a group that is under its newest key since some epoch.
pub const GROUP_VERSION_RESEALED: u16 = 16;
/// Added to the version of a group whose roots carry a MAC.
pub const GROUP_VERSION_VOUCHED: u16 = 32;
/// Version of the meta of a feed.
pub const META_VERSION_FEED: u16 = 3;
/// Added to the version of a meta that says where members live.
pub const META_VERSION_PLACES: u16 = 4;

/// Where a member lives, as the entry said that made it one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberPlace {
    /// The member.
    pub replica: ReplicaId,
    /// Its node and store.
    pub place: Place,
    /// The member that goes when this one gets its vote; 0 for none.
    pub replaces: ReplicaId,
}

/// Who takes part in a group's consensus.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Replicas that vote.
    pub voters: Vec<ReplicaId>,
    /// Replicas that receive the log without a vote.
    pub learners: Vec<ReplicaId>,
    /// Voters of the configuration that a joint change is leaving.
    pub voters_outgoing: Vec<ReplicaId>,
    /// Learners once the joint change is done.
    pub learners_next: Vec<ReplicaId>,
    /// Whether the joint change ends by itself.
    pub auto_leave: bool,
    /// Where members live; those that whoever made the volume has placed are not in it.
    pub places: Vec<MemberPlace>,
}

/// What a group is: fixed when it is created, but for name, size and membership.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupMeta {
    /// The group.
    pub group: GroupId,
    /// The volume it replicates.
    pub volume: VolumeId,
    /// This store's replica of it.
    pub replica: ReplicaId,
    /// Volume's name.
    pub name: String,
    /// Volume's size in bytes.
    pub size_bytes: u64,
    /// Volume's block size in bytes.
    pub block_bytes: u32,
    /// When the volume was created, in microseconds since the Unix epoch.
    pub created_us: u64,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Membership.
    pub membership: Membership,
    /// Number of the key that new epochs are opened under; 0 when its blocks are not encrypted.
    pub key_id: u32,
    /// The group that it feeds; zero for none. A feed has a log and no map: what is in its log changes the
    /// map of the other one, which lags behind its leader's log and is brought up by versions.
    pub feeds: GroupId,
}

/// A rollback.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Jump {
    /// Its stamp.
    pub at: Stamp,
    /// Stamp of the snapshot.
    pub to: Stamp,
}

/// How far a feed has brought the head of the group it feeds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeedEntry {
    /// What has no higher stamp is in it, all of it.
    pub base: Stamp,
    /// Nothing in it has a higher stamp.
    pub reach: Stamp,
}

/// A retained entry of a group's Raft log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntryMeta {
    /// Raft's term.
    pub term: Term,
    /// Raft's index.
    pub index: RaftIndex,
    /// Kind.
    pub kind: EntryKind,
    /// First payload slot; none without payload.
    pub payload: VAddr,
    /// Payload slots.
    pub payload_pages: u32,
    /// Descriptor.
    pub data: Bytes,
}

/// What the keys of an epoch's blocks are derived from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EpochEntry {
    /// The epoch.
    pub epoch: Epoch,
    /// The key; never zero here.
    pub key_id: u32,
    /// The salt.
    pub salt: u128,
    /// The volume that wrote them: an ancestor, for what a clone began with.
    pub volume: VolumeId,
}

/// What a group remembers of a process that asks for changes; see [`crate::requests`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionEntry {
    /// The process.
    pub session: SessionId,
    /// Its requests up to this number are over.
    pub floor: u64,
    /// Index of its last entry.
    pub heard: RaftIndex,
    /// Number and part of those above that were applied, rising.
    pub applied: Vec<(u64, u16)>,
}

/// A group's state as the checkpoint has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupEntry {
    /// What it is.
    pub meta: GroupMeta,
    /// Raft's hard state.
    pub hard_state: HardState,
    /// Everything up to this index is cut from the Raft log.
    pub truncated_index: RaftIndex,
    /// Term of that entry.
    pub truncated_term: Term,
    /// Everything up to this index is in the map.
    pub applied: RaftIndex,
    /// Epoch that is open.
    pub epoch: Epoch,
    /// Epochs whose blocks are encrypted: what their keys are derived from.
    pub epochs: Vec<EpochEntry>,
    /// Since this epoch neither the head nor what was cut of it holds blocks under older keys; zero when that is
    /// not known.
    pub resealed: Epoch,
    /// Highest stamp applied.
    pub max_stamp: Stamp,
    /// Root of the map.
    pub root: ChildPointer,
    /// Level of the root.
    pub root_level: u8,
    /// Last record that said anything about the group.
    pub last_seq: Seq,
    /// A damaged record may have held entries of the group.
    pub suspended: bool,
    /// The group has ended. It is there until a checkpoint has merged what clones began from.
    pub ended: bool,
    /// Retained entries, by index.
    pub log: Vec<LogEntryMeta>,
    /// Requests that were carried out, by session: where the group spans nodes.
    pub requests: Vec<SessionEntry>,
    /// The newest rollbacks, rising: where the group spans nodes.
    pub jumps: Vec<Jump>,
    /// Rollbacks with a higher stamp than this are all among them.
    pub jumps_since: Stamp,
    /// How far it has come, if it is a feed.
    pub feed: Option<FeedEntry>,
    /// MAC over what is said of its roots: see `vouch.rs`.
    pub mac: Option<RootMac>,
}

/// A MAC over what a checkpoint says of a volume's roots.
pub type RootMac = [u8; 32];

impl GroupEntry {
    /// The entry as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        encode_group(&mut w, self);
        w.bytes
    }

    /// Decodes an entry.
    ///
    /// # Errors
    /// On anything that `encode` does not produce.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new("group", bytes);
        let group = decode_group(&mut r)?;
        r.finish()?;
        Ok(group)
    }
}

impl GroupMeta {
    /// The meta as bytes, the content of a `GroupCreate` item.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        encode_meta(&mut w, self);
        w.bytes
    }

    /// Decodes a meta.
    ///
    /// # Errors
    /// On anything that `encode` does not produce.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new("group meta", bytes);
        let meta = decode_meta(&mut r)?;
        r.finish()?;
        Ok(meta)
    }
}

fn encode_meta(w: &mut Writer, m: &GroupMeta) {
    let version = match (m.feeds.0, m.key_id) {
        (0, 0) => GROUP_VERSION,
        (0, _) => GROUP_VERSION_KEYED,
        _ => META_VERSION_FEED,
    };
    let has_places = !m.membership.places.is_empty();
    w.u16(version + if has_places { META_VERSION_PLACES } else { 0 });
    let (key_id, feeds) = (m.key_id, m.feeds);
    w.u64(m.group.0);
    w.u128(m.volume.0);
    w.u64(m.replica.0);
    w.u64(m.size_bytes);
    w.u32(m.block_bytes);
    w.u64(m.created_us);
    w.bytes32(m.name.as_bytes());
    w.u32(u32::try_from(m.labels.len()).unwrap_or(u32::MAX));
    for (key, value) in &m.labels {
        w.bytes32(key.as_bytes());
        w.bytes32(value.as_bytes());
    }
    let m = &m.membership;
    for list in [&m.voters, &m.learners, &m.voters_outgoing, &m.learners_next] {
        w.u32(u32::try_from(list.len()).unwrap_or(u32::MAX));
        list.iter().for_each(|replica| w.u64(replica.0));
    }
    w.u8(u8::from(m.auto_leave));
    if has_places {
        encode_places(w, &m.places);
    }
    if key_id != 0 || feeds.0 != 0 {
        w.u32(key_id);
    }
    if feeds.0 != 0 {
        w.u64(feeds.0);
    }
}

pub(crate) fn text(r: &mut Reader<'_>) -> Result<String, FormatError> {
    let bytes = r.bytes32()?;
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Err(r.error("text is not UTF-8"));
    };
    Ok(text.to_owned())
}

fn decode_meta(r: &mut Reader<'_>) -> Result<GroupMeta, FormatError> {
    let version = r.u16()?;
    let has_places = version > META_VERSION_PLACES;
    let version = if has_places {
        version - META_VERSION_PLACES
    } else {
        version
    };
    let is_feed = version == META_VERSION_FEED;
    let is_keyed = !is_feed && is_keyed(r, version)?;
    let group = GroupId(r.u64()?);
    let volume = VolumeId(r.u128()?);
    let replica = ReplicaId(r.u64()?);
    let size_bytes = r.u64()?;
    let block_bytes = r.u32()?;
    if size_bytes > limits::VOLUME_BYTES_MAX || block_bytes != 4096 {
        return Err(r.error("volume's size or block size is out of range"));
    }
    let created_us = r.u64()?;
    let name = text(r)?;
    let mut labels = BTreeMap::new();
    for _ in 0..r.count32(8)? {
        labels.insert(text(r)?, text(r)?);
    }
    let mut list = || -> Result<Vec<ReplicaId>, FormatError> {
        (0..r.count32(8)?)
            .map(|_| Ok(ReplicaId(r.u64()?)))
            .collect()
    };
    let (voters, learners, voters_outgoing, learners_next) = (list()?, list()?, list()?, list()?);
    let auto_leave = match r.u8()? {
        0 => false,
        1 => true,
        _ => return Err(r.error("flag is neither 0 nor 1")),
    };
    let places = if has_places {
        decode_places(r)?
    } else {
        Vec::new()
    };
    if has_places && places.is_empty() {
        return Err(r.error("has no places of members and says that it has"));
    }
    let membership = Membership {
        voters,
        learners,
        voters_outgoing,
        learners_next,
        auto_leave,
        places,
    };
    let key_id = if is_keyed || is_feed { r.u32()? } else { 0 };
    let feeds = GroupId(if is_feed { r.u64()? } else { 0 });
    if is_feed && feeds.0 == 0 {
        return Err(r.error("a feed feeds no group"));
    }
    if is_keyed && key_id == 0 {
        return Err(r.error("an encrypted volume has key number 0"));
    }
    let block = (block_bytes, created_us);
    Ok(GroupMeta {
        group,
        volume,
        replica,
        name,
        size_bytes,
        block_bytes: block.0,
        created_us: block.1,
        labels,
        membership,
        key_id,
        feeds,
    })
}

pub(super) fn encode_places(w: &mut Writer, places: &[MemberPlace]) {
    w.u32(u32::try_from(places.len()).unwrap_or(u32::MAX));
    for member in places {
        w.u64(member.replica.0);
        w.u64(member.place.node.0);
        w.u16(member.place.store);
        w.u64(member.replaces.0);
    }
}

pub(super) fn decode_places(r: &mut Reader<'_>) -> Result<Vec<MemberPlace>, FormatError> {
    (0..r.count32(26)?)
        .map(|_| {
            let replica = ReplicaId(r.u64()?);
            let node = NodeId(r.u64()?);
            let place = Place {
                node,
                store: r.u16()?,
            };
            let replaces = ReplicaId(r.u64()?);
            Ok(MemberPlace {
                replica,
                place,
                replaces,
            })
        })
        .collect()
}

impl MemberPlace {
    /// Places as bytes: what the entry that makes a member carries.
    #[must_use]
    pub fn encode_all(places: &[Self]) -> Vec<u8> {
        let mut w = Writer::new();
        encode_places(&mut w, places);
        w.bytes
    }

    /// Decodes them; none are in no bytes.
    ///
    /// # Errors
    /// On anything that `encode_all` does not produce.
    pub fn decode_all(bytes: &[u8]) -> Result<Vec<Self>, FormatError> {
        if bytes.is_empty() {
            return Ok(Vec::new());
        }
        let mut r = Reader::new("places of members", bytes);
        let places = decode_places(&mut r)?;
        r.finish()?;
        Ok(places)
    }
}

/// Whether the structure is that of an encrypted volume.
fn is_keyed(r: &Reader<'_>, version: u16) -> Result<bool, FormatError> {
    match version {
        GROUP_VERSION => Ok(false),
        GROUP_VERSION_KEYED => Ok(true),
        _ => Err(r.error("was written by a newer version of Esker")),
    }
}

/// Each group has a length of its own, so that one field more does not change all of them.
pub(super) fn encode_group(w: &mut Writer, g: &GroupEntry) {
    w.u32(0);
    let start = w.bytes.len();
    encode_group_body(w, g);
    let length = u32::try_from(w.bytes.len() - start).unwrap_or(u32::MAX);
    w.patch_u32(start - 4, length);
}

pub(super) fn decode_group(r: &mut Reader<'_>) -> Result<GroupEntry, FormatError> {
    let mut body = Reader::new("checkpoint group", r.bytes32()?);
    let group = decode_group_body(&mut body)?;
    body.finish()?;
    Ok(group)
}

fn encode_group_body(w: &mut Writer, g: &GroupEntry) {
    let keyed = match g.epochs.is_empty() {
        true => GROUP_VERSION,
        false => GROUP_VERSION_KEYED,
    };
    let part = |there: bool, version: u16| if there { version } else { 0 };
    w.u16(
        keyed
            + part(!g.requests.is_empty(), GROUP_VERSION_REQUESTS)
            + part(has_jumps(g), GROUP_VERSION_JUMPS)
            + part(g.feed.is_some(), GROUP_VERSION_FEED)
            + part(g.resealed != Epoch(0), GROUP_VERSION_RESEALED)
            + part(g.mac.is_some(), GROUP_VERSION_VOUCHED),
    );
    encode_meta(w, &g.meta);
    encode_hard_state(w, &g.hard_state);
    w.u64(g.truncated_index.0);
    w.u64(g.truncated_term.0);
    w.u64(g.applied.0);
    w.u32(g.epoch.0);
    w.u32(u32::try_from(g.epochs.len()).unwrap_or(u32::MAX));
    for e in &g.epochs {
        w.u32(e.epoch.0);
        w.u32(e.key_id);
        w.u128(e.salt);
        w.u128(e.volume.0);
    }
    if g.resealed != Epoch(0) {
        w.u32(g.resealed.0);
    }
    w.u64(g.max_stamp.0);
    encode_pointer(w, &g.root);
    w.u8(g.root_level);
    w.u64(g.last_seq.0);
    w.u8(u8::from(g.suspended) | u8::from(g.ended) << 1);
    w.u32(u32::try_from(g.log.len()).unwrap_or(u32::MAX));
    for e in &g.log {
        w.u64(e.term.0);
        w.u64(e.index.0);
        w.u8(e.kind as u8);
        w.u64(e.payload.0);
        w.u32(e.payload_pages);
        w.bytes32(&e.data);
    }
    if !g.requests.is_empty() {
        encode_requests(w, &g.requests);
    }
    if has_jumps(g) {
        w.u64(g.jumps_since.0);
        w.u32(u32::try_from(g.jumps.len()).unwrap_or(u32::MAX));
        for jump in &g.jumps {
            w.u64(jump.at.0);
            w.u64(jump.to.0);
        }
    }
    if let Some(feed) = &g.feed {
        w.u64(feed.base.0);
        w.u64(feed.reach.0);
    }
    if let Some(mac) = &g.mac {
        w.raw(mac);
    }
}

fn has_jumps(g: &GroupEntry) -> bool {
    !g.jumps.is_empty() || g.jumps_since.0 > 0
}

fn encode_requests(w: &mut Writer, requests: &[SessionEntry]) {
    w.u32(u32::try_from(requests.len()).unwrap_or(u32::MAX));
    for s in requests {
        w.u64(s.session.0);
        w.u64(s.floor);
        w.u64(s.heard.0);
        w.u32(u32::try_from(s.applied.len()).unwrap_or(u32::MAX));
        for (sequence, part) in &s.applied {
            w.u64(*sequence);
            w.u16(*part);
        }
    }
}

fn decode_group_body(r: &mut Reader<'_>) -> Result<GroupEntry, FormatError> {
    let version = r.u16()?;
    let Some(parts) = version.checked_sub(GROUP_VERSION).filter(|p| *p < 64) else {
        return Err(r.error("was written by a newer version of Esker"));
    };
    let has = |part: u16| parts & part != 0;
    let has_epochs = has(GROUP_VERSION_KEYED - GROUP_VERSION);
    let mut g = GroupEntry {
        meta: decode_meta(r)?,
        hard_state: decode_hard_state(r)?,
        truncated_index: RaftIndex(r.u64()?),
        truncated_term: Term(r.u64()?),
        applied: RaftIndex(r.u64()?),
        epoch: Epoch(r.u32()?),
        ..GroupEntry::default()
    };
    for _ in 0..r.count32(40)? {
        g.epochs.push(EpochEntry {
            epoch: Epoch(r.u32()?),
            key_id: r.u32()?,
            salt: r.u128()?,
            volume: VolumeId(r.u128()?),
        });
    }
    if has_epochs == g.epochs.is_empty() {
        return Err(r.error("its version does not go with its epochs"));
    }
    if has(GROUP_VERSION_RESEALED) {
        g.resealed = Epoch(r.u32()?);
        if !has_epochs || g.resealed == Epoch(0) || g.resealed > g.epoch {
            return Err(r.error("was sealed again in an epoch that it has not"));
        }
    }
    g.max_stamp = Stamp(r.u64()?);
    g.root = decode_pointer(r)?;
    g.root_level = r.u8()?;
    g.last_seq = Seq(r.u64()?);
    let flags = r.u8()?;
    (g.suspended, g.ended) = (flags & 1 != 0, flags & 2 != 0);
    if g.root_level > LEVEL_MAX {
        return Err(r.error("level of a root is out of range"));
    }
    for _ in 0..r.count32(33)? {
        g.log.push(LogEntryMeta {
            term: Term(r.u64()?),
            index: RaftIndex(r.u64()?),
            kind: decode_entry_kind(r)?,
            payload: VAddr(r.u64()?),
            payload_pages: r.u32()?,
            data: Bytes::copy_from_slice(r.bytes32()?),
        });
    }
    if has(GROUP_VERSION_REQUESTS) {
        g.requests = decode_requests(r)?;
    }
    if has(GROUP_VERSION_JUMPS) {
        g.jumps_since = Stamp(r.u64()?);
        for _ in 0..r.count32(16)? {
            g.jumps.push(Jump {
                at: Stamp(r.u64()?),
                to: Stamp(r.u64()?),
            });
        }
        if !has_jumps(&g) {
            return Err(r.error("its version does not go with its rollbacks"));
        }
    }
    if has(GROUP_VERSION_FEED) {
        g.feed = Some(FeedEntry {
            base: Stamp(r.u64()?),
            reach: Stamp(r.u64()?),
        });
    }
    if has(GROUP_VERSION_VOUCHED) {
        let bytes = r.raw(size_of::<RootMac>())?;
        g.mac = RootMac::try_from(bytes).ok();
    }
    Ok(g)
}

fn decode_requests(r: &mut Reader<'_>) -> Result<Vec<SessionEntry>, FormatError> {
    let mut sessions = Vec::new();
    for _ in 0..r.count32(28)? {
        let mut session = SessionEntry {
            session: SessionId(r.u64()?),
            floor: r.u64()?,
            heard: RaftIndex(r.u64()?),
            applied: Vec::new(),
        };
        for _ in 0..r.count32(10)? {
            session.applied.push((r.u64()?, r.u16()?));
        }
        sessions.push(session);
    }
    match sessions.is_empty() {
        true => Err(r.error("its version does not go with its requests")),
        false => Ok(sessions),
    }
}
