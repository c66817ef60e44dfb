//! The checkpoint: everything recovery needs that is not in the log after it or in the map.

use super::codec::{FormatError, Reader, Writer};
use super::node::ChildPointer;
use super::record::{decode_entry_kind, decode_hard_state, encode_hard_state};
use super::record::{EntryKind, HardState};
pub use super::space::{Kept, PieceEntry, SegmentEntry, SegmentKind};
use super::table::TableRoot;
use super::vaddr::VAddr;
use super::versions::{decode_table, encode_table, VersionTable};
use bytes::Bytes;
use esker_base::checksum::crc32;
use esker_base::{
    limits, Epoch, GroupId, RaftIndex, ReplicaId, Seq, SessionId, Stamp, Term, VolumeId,
};
use std::collections::BTreeMap;

/// First eight bytes.
pub const MAGIC: [u8; 8] = *b"ESKERCKP";
/// Version of the structure.
pub const VERSION: u32 = 7;
/// The oldest version that is read.
pub const OLDEST: u32 = 4;
/// Version of a group without encrypted epochs, and of the meta of one that is not encrypted.
pub const GROUP_VERSION: u16 = 1;
/// Version of the others.
pub const GROUP_VERSION_KEYED: u16 = 2;
/// Added to the version of a group that remembers requests.
pub const GROUP_VERSION_REQUESTS: u16 = 2;
/// Bytes before the sections.
pub const HEAD_BYTES: usize = 32;

const SECTION_COUNTERS: u32 = 1;
// 2 and 5 were segments and pieces up to version 3.
const SECTION_GROUPS: u32 = 3;
const SECTION_DISCARDS: u32 = 4;
const SECTION_VERSIONS: u32 = 6;
const SECTION_TABLES: u32 = 8;
const SECTION_DOUBTFUL: u32 = 9;
/// Kept for sorted runs of map entries; a checkpoint that has it sets
/// [`INCOMPAT_RUNS`](super::superblock::INCOMPAT_RUNS).
pub const SECTION_RUNS: u32 = 7;

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
}

/// A map subtree whose blocks are to die, in steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiscardEntry {
    /// The subtree.
    pub node: ChildPointer,
    /// Its level.
    pub level: u8,
    /// What is not younger than this stays: another version uses it.
    pub floor: Stamp,
    /// Nodes of this level and above go whatever their stamps say.
    pub sure: u8,
}

impl DiscardEntry {
    /// All of a subtree, which nothing else uses.
    #[must_use]
    pub fn whole(node: ChildPointer, level: u8) -> Self {
        Self {
            node,
            level,
            floor: Stamp(0),
            sure: 0,
        }
    }
}

/// Counts that go on over restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes written to the device since the store was created.
    pub device_bytes_written: u64,
    /// Bytes written by clients since the store was created.
    pub client_bytes_written: u64,
    /// Checkpoints written.
    pub checkpoints: u64,
}

/// A checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// Counts.
    pub counters: Counters,
    /// Tables of segments, pieces and deaths; since version 6, of versions and deadlists.
    pub tables: Vec<TableRoot>,
    /// Every group, by id.
    pub groups: Vec<GroupEntry>,
    /// Subtrees to discard.
    pub discards: Vec<DiscardEntry>,
    /// Versions of volumes and their deadlists: what is not in tables of their own.
    pub versions: VersionTable,
    /// Clones that do not exist and may have lost entries: they are suspended once they begin.
    pub doubtful: Vec<GroupId>,
}

impl Checkpoint {
    /// The checkpoint as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.raw(&MAGIC);
        w.u32(VERSION);
        w.u32(0); // crc of everything after the head
        w.zeros(HEAD_BYTES - w.bytes.len());
        section(&mut w, SECTION_COUNTERS, |w| {
            w.u64(self.counters.device_bytes_written);
            w.u64(self.counters.client_bytes_written);
            w.u64(self.counters.checkpoints);
        });
        section(&mut w, SECTION_TABLES, |w| {
            w.u32(u32::try_from(self.tables.len()).unwrap_or(u32::MAX));
            for root in &self.tables {
                root.encode(w);
            }
        });
        section(&mut w, SECTION_GROUPS, |w| {
            w.u32(u32::try_from(self.groups.len()).unwrap_or(u32::MAX));
            for g in &self.groups {
                encode_group(w, g);
            }
        });
        section(&mut w, SECTION_DISCARDS, |w| {
            w.u32(u32::try_from(self.discards.len()).unwrap_or(u32::MAX));
            for d in &self.discards {
                encode_pointer(w, &d.node);
                w.u8(d.level);
                w.u8(d.sure);
                w.zeros(6);
                w.u64(d.floor.0);
            }
        });
        section(&mut w, SECTION_VERSIONS, |w| {
            encode_table(w, &self.versions)
        });
        section(&mut w, SECTION_DOUBTFUL, |w| {
            w.u32(u32::try_from(self.doubtful.len()).unwrap_or(u32::MAX));
            self.doubtful.iter().for_each(|group| w.u64(group.0));
        });
        let crc = crc32(&w.bytes[HEAD_BYTES..]);
        w.patch_u32(12, crc);
        w.bytes
    }

    /// Decodes a checkpoint.
    ///
    /// # Errors
    /// On anything that `encode` does not produce.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new("checkpoint", bytes);
        if r.raw(8)? != MAGIC {
            return Err(r.error("has no magic"));
        }
        let version = r.u32()?;
        r.version_since(OLDEST, VERSION, version)?;
        let crc = r.u32()?;
        r.zeros(HEAD_BYTES - 16)?;
        if crc32(&bytes[HEAD_BYTES..]) != crc {
            return Err(r.error("checksum does not match"));
        }
        let mut s = open_section(&mut r, SECTION_COUNTERS)?;
        let counters = Counters {
            device_bytes_written: s.u64()?,
            client_bytes_written: s.u64()?,
            checkpoints: s.u64()?,
        };
        s.finish()?;
        let mut s = open_section(&mut r, SECTION_TABLES)?;
        let tables = (0..s.count32(8)?)
            .map(|_| TableRoot::decode(&mut s))
            .collect::<Result<_, _>>()?;
        s.finish()?;
        let mut s = open_section(&mut r, SECTION_GROUPS)?;
        let groups = (0..s.count32(64)?)
            .map(|_| decode_group(&mut s))
            .collect::<Result<_, _>>()?;
        s.finish()?;
        let mut s = open_section(&mut r, SECTION_DISCARDS)?;
        let mut discards = Vec::new();
        for _ in 0..s.count32(52)? {
            let node = decode_pointer(&mut s)?;
            let (level, sure) = (s.u8()?, s.u8()?);
            s.zeros(6)?;
            discards.push(DiscardEntry {
                node,
                level,
                floor: Stamp(s.u64()?),
                sure,
            });
        }
        s.finish()?;
        let mut s = open_section(&mut r, SECTION_VERSIONS)?;
        let versions = decode_table(&mut s, version)?;
        s.finish()?;
        let mut doubtful = Vec::new();
        if version > 4 {
            let mut s = open_section(&mut r, SECTION_DOUBTFUL)?;
            for _ in 0..s.count32(8)? {
                doubtful.push(GroupId(s.u64()?));
            }
            s.finish()?;
        }
        r.finish()?;
        Ok(Self {
            counters,
            tables,
            groups,
            discards,
            versions,
            doubtful,
        })
    }
}

fn section(w: &mut Writer, tag: u32, body: impl FnOnce(&mut Writer)) {
    w.u32(tag);
    w.u32(0);
    let start = w.bytes.len();
    body(w);
    let length = u32::try_from(w.bytes.len() - start).unwrap_or(u32::MAX);
    w.patch_u32(start - 4, length);
}

fn open_section<'a>(r: &mut Reader<'a>, tag: u32) -> Result<Reader<'a>, FormatError> {
    if r.u32()? != tag {
        return Err(r.error("section is missing"));
    }
    Ok(Reader::new("checkpoint section", r.bytes32()?))
}

pub(crate) fn encode_pointer(w: &mut Writer, p: &ChildPointer) {
    w.u64(p.vaddr.0);
    w.u64(p.max_stamp.0);
    w.u64(p.logical_hash);
    w.u64(p.live);
    w.u32(p.crc);
}

pub(crate) fn decode_pointer(r: &mut Reader<'_>) -> Result<ChildPointer, FormatError> {
    Ok(ChildPointer {
        vaddr: VAddr(r.u64()?),
        max_stamp: Stamp(r.u64()?),
        logical_hash: r.u64()?,
        live: r.u64()?,
        crc: r.u32()?,
    })
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
    w.u16(match m.key_id {
        0 => GROUP_VERSION,
        _ => GROUP_VERSION_KEYED,
    });
    let key_id = m.key_id;
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
    if key_id != 0 {
        w.u32(key_id);
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
    let is_keyed = is_keyed(r, version)?;
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
    let membership = Membership {
        voters,
        learners,
        voters_outgoing,
        learners_next,
        auto_leave,
    };
    let key_id = if is_keyed { r.u32()? } else { 0 };
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
    })
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
fn encode_group(w: &mut Writer, g: &GroupEntry) {
    w.u32(0);
    let start = w.bytes.len();
    encode_group_body(w, g);
    let length = u32::try_from(w.bytes.len() - start).unwrap_or(u32::MAX);
    w.patch_u32(start - 4, length);
}

fn decode_group(r: &mut Reader<'_>) -> Result<GroupEntry, FormatError> {
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
    w.u16(match g.requests.is_empty() {
        true => keyed,
        false => keyed + GROUP_VERSION_REQUESTS,
    });
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
    if g.requests.is_empty() {
        return;
    }
    w.u32(u32::try_from(g.requests.len()).unwrap_or(u32::MAX));
    for s in &g.requests {
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
    let mut version = r.u16()?;
    let has_requests = version > GROUP_VERSION_KEYED;
    if has_requests {
        version -= GROUP_VERSION_REQUESTS;
    }
    let has_epochs = is_keyed(r, version)?;
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
    g.max_stamp = Stamp(r.u64()?);
    g.root = decode_pointer(r)?;
    g.root_level = r.u8()?;
    g.last_seq = Seq(r.u64()?);
    let flags = r.u8()?;
    (g.suspended, g.ended) = (flags & 1 != 0, flags & 2 != 0);
    if g.root_level > super::node::LEVEL_MAX {
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
    if has_requests {
        g.requests = decode_requests(r)?;
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

#[cfg(test)]
mod tests {
    use super::super::table::{PagePointer, Place, TableId};
    use super::*;

    fn sample() -> Checkpoint {
        let meta = GroupMeta {
            group: GroupId(1),
            volume: VolumeId(2),
            replica: ReplicaId(3),
            name: "db".into(),
            size_bytes: 1 << 30,
            block_bytes: 4096,
            created_us: 4,
            labels: BTreeMap::from([("zone".into(), "a".into())]),
            membership: Membership {
                voters: vec![ReplicaId(3)],
                auto_leave: true,
                ..Membership::default()
            },
            key_id: 2,
        };
        let log = vec![LogEntryMeta {
            term: Term(1),
            index: RaftIndex(2),
            kind: EntryKind::Normal,
            payload: VAddr::new(3, 4),
            payload_pages: 5,
            data: Bytes::from_static(b"d"),
        }];
        let group = GroupEntry {
            meta,
            log,
            epoch: Epoch(6),
            epochs: vec![EpochEntry {
                epoch: Epoch(5),
                key_id: 1,
                salt: 7,
                volume: VolumeId(9),
            }],
            suspended: true,
            ended: true,
            requests: vec![SessionEntry {
                session: SessionId(1),
                floor: 7,
                heard: RaftIndex(2),
                applied: vec![(8, 0), (10, 1)],
            }],
            ..GroupEntry::default()
        };
        let pointer = |n| PagePointer {
            places: [Place(n), Place(n + 1)],
            crc: 5,
        };
        let root = |table, level| TableRoot {
            table,
            level,
            pages: vec![(7, pointer(20)), (8, pointer(30))],
        };
        Checkpoint {
            counters: Counters {
                device_bytes_written: 1,
                client_bytes_written: 2,
                checkpoints: 3,
            },
            tables: vec![root(TableId::Segments, 0), root(TableId::Pieces, 1)],
            groups: vec![group],
            discards: vec![DiscardEntry {
                node: ChildPointer::default(),
                level: 2,
                floor: Stamp(5),
                sure: 3,
            }],
            versions: VersionTable {
                next_version: 3,
                next_deadlist: 4,
                whole: None,
            },
            doubtful: vec![GroupId(8)],
        }
    }

    #[test]
    fn comes_back_and_damage_is_refused() {
        let bytes = sample().encode();
        assert_eq!(Checkpoint::decode(&bytes), Ok(sample()));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            assert!(Checkpoint::decode(&bad).is_err(), "byte {at}");
            assert!(Checkpoint::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }
}
