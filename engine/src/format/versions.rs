//! Versions of volumes in a checkpoint: the tree they form, and their deadlists.

use super::checkpoint::{decode_pointer, text};
use super::codec::{FormatError, Reader, Writer};
use super::node::{ChildPointer, LEVEL_MAX};
use super::vaddr::VAddr;
use esker_base::{GroupId, Stamp};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Levels that a map can have.
pub const LEVELS: usize = LEVEL_MAX as usize + 1;

/// Names a version within a store. Zero is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct VersionId(pub u64);

/// Names a deadlist within a store. Zero is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeadlistId(pub u64);

/// What a version is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionKind {
    /// The writable one of a volume; its map is the group's.
    Head = 1,
    /// Read-only.
    Snapshot = 2,
    /// Deleted, and others still begin at it.
    Hidden = 3,
}

/// What a snapshot is: fixed when it is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// Its name, unique among the snapshots of its volume.
    pub name: String,
    /// When it was taken, in microseconds since the Unix epoch.
    pub created_us: u64,
    /// The volume's size then, in bytes.
    pub size_bytes: u64,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// What the names of rewind points begin with. Nobody can give a snapshot such a name.
pub const POINT_PREFIX: char = '@';

impl SnapshotMeta {
    /// It is a rewind point: a version that is kept for a while and that nobody asked for.
    #[must_use]
    pub fn is_point(&self) -> bool {
        self.name.starts_with(POINT_PREFIX)
    }
}

/// A version of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Its number.
    pub id: VersionId,
    /// The volume's group.
    pub group: GroupId,
    /// What it is.
    pub kind: VersionKind,
    /// The version it began from; none for the first of a volume.
    pub parent: VersionId,
    /// Its stamp: it holds everything with lower ones on its path. The highest of all for a head.
    pub cut: Stamp,
    /// What its parent uses and it does not.
    pub deadlist: DeadlistId,
    /// By level: nodes of the map with that level are not older than this, whatever their stamps say,
    /// because the map was lower before.
    pub grown: [Stamp; LEVELS],
    /// Root of its map and that one's level; none for a head, and until a checkpoint has merged it.
    pub root: Option<(ChildPointer, u8)>,
    /// What it is to its users; without meaning for a head.
    pub meta: Arc<SnapshotMeta>,
    /// Blocks of data that were its own and were given back while it was hidden, because nothing that
    /// began at it used them.
    pub released: u64,
    /// The same of map nodes.
    pub released_nodes: u64,
}

impl Version {
    /// Parts of its map were given back: it cannot be walked as a whole.
    #[must_use]
    pub fn has_gaps(&self) -> bool {
        self.released + self.released_nodes > 0
    }
}

/// A run of entries of one deadlist within a page of them, in the order of births.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The page.
    pub page: VAddr,
    /// CRC of the page.
    pub crc: u32,
    /// First entry.
    pub first: u16,
    /// Entries.
    pub count: u16,
    /// Of these, blocks of data.
    pub data: u16,
    /// Birth of the first entry.
    pub oldest: Stamp,
    /// Birth of the last one.
    pub youngest: Stamp,
}

/// A part of the parent's map that was cut off whole. What of it the parent uses belongs to the
/// deadlist, the rest is to die; nobody has looked yet which is which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subtree {
    /// Its top node.
    pub node: ChildPointer,
    /// That one's level.
    pub level: u8,
    /// First block of its range.
    pub first_lba: u64,
    /// Stamp of the discard.
    pub death: Stamp,
}

/// What a version's parent uses and the version does not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deadlist {
    /// Where its entries are.
    pub chunks: Vec<Chunk>,
    /// Parts that are not taken apart yet.
    pub subtrees: Vec<Subtree>,
    /// Blocks of data among the entries.
    pub data: u64,
    /// Of these, those that are younger than the parent's parent: with one child, what the parent
    /// alone uses.
    pub exclusive: u64,
}

/// What a checkpoint says of versions itself. Up to version 5 that is everything; since then versions
/// and deadlists are in tables of their own ([`super::version_records`]).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VersionTable {
    /// The next version's number.
    pub next_version: u64,
    /// The next deadlist's number.
    pub next_deadlist: u64,
    /// Of a checkpoint up to version 5: versions and deadlists, by number.
    pub whole: Option<WholeVersions>,
}

/// All versions of a store and their deadlists, as checkpoints up to version 5 have them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WholeVersions {
    /// Versions, by number.
    pub versions: Vec<Version>,
    /// Deadlists, by number.
    pub deadlists: Vec<(DeadlistId, Deadlist)>,
}

pub(crate) fn encode_table(w: &mut Writer, t: &VersionTable) {
    w.u64(t.next_version);
    w.u64(t.next_deadlist);
}

/// Takes the table of a checkpoint of this version.
pub(crate) fn decode_table(r: &mut Reader<'_>, version: u32) -> Result<VersionTable, FormatError> {
    let mut t = VersionTable {
        next_version: r.u64()?,
        next_deadlist: r.u64()?,
        whole: None,
    };
    if version > 5 {
        return Ok(t);
    }
    let mut whole = WholeVersions::default();
    for _ in 0..r.count32(64)? {
        whole.versions.push(decode_version(r, version)?);
    }
    for _ in 0..r.count32(32)? {
        whole.deadlists.push(decode_deadlist(r)?);
    }
    t.whole = Some(whole);
    Ok(t)
}

pub(crate) fn kind_of(r: &mut Reader<'_>) -> Result<VersionKind, FormatError> {
    match r.u8()? {
        1 => Ok(VersionKind::Head),
        2 => Ok(VersionKind::Snapshot),
        3 => Ok(VersionKind::Hidden),
        _ => Err(r.error("version has an unknown kind")),
    }
}

pub(crate) fn encode_meta(w: &mut Writer, meta: &SnapshotMeta) {
    w.u64(meta.created_us);
    w.u64(meta.size_bytes);
    w.bytes32(meta.name.as_bytes());
    w.u32(u32::try_from(meta.labels.len()).unwrap_or(u32::MAX));
    for (key, value) in &meta.labels {
        w.bytes32(key.as_bytes());
        w.bytes32(value.as_bytes());
    }
}

pub(crate) fn decode_meta(r: &mut Reader<'_>) -> Result<SnapshotMeta, FormatError> {
    let (created_us, size_bytes) = (r.u64()?, r.u64()?);
    let name = text(r)?;
    let mut labels = BTreeMap::new();
    for _ in 0..r.count32(8)? {
        labels.insert(text(r)?, text(r)?);
    }
    Ok(SnapshotMeta {
        name,
        created_us,
        size_bytes,
        labels,
    })
}

fn decode_version(r: &mut Reader<'_>, checkpoint: u32) -> Result<Version, FormatError> {
    let (id, group, parent) = (VersionId(r.u64()?), GroupId(r.u64()?), VersionId(r.u64()?));
    let (cut, deadlist) = (Stamp(r.u64()?), DeadlistId(r.u64()?));
    let mut grown = [Stamp(0); LEVELS];
    for stamp in &mut grown {
        *stamp = Stamp(r.u64()?);
    }
    let kind = kind_of(r)?;
    let level = r.u8()?;
    r.zeros(6)?;
    let root = decode_pointer(r)?;
    if level > LEVEL_MAX || id.0 == 0 || deadlist.0 == 0 {
        return Err(r.error("version is malformed"));
    }
    let (mut released, mut released_nodes) = (0, 0);
    if checkpoint > 4 {
        (released, released_nodes) = (r.u64()?, r.u64()?);
    }
    Ok(Version {
        id,
        group,
        kind,
        parent,
        cut,
        deadlist,
        grown,
        root: (kind != VersionKind::Head).then_some((root, level)),
        meta: Arc::new(decode_meta(r)?),
        released,
        released_nodes,
    })
}

fn decode_deadlist(r: &mut Reader<'_>) -> Result<(DeadlistId, Deadlist), FormatError> {
    let id = DeadlistId(r.u64()?);
    let mut d = Deadlist {
        data: r.u64()?,
        exclusive: r.u64()?,
        ..Deadlist::default()
    };
    for _ in 0..r.count32(40)? {
        let (page, crc) = (VAddr(r.u64()?), r.u32()?);
        let (first, count, data) = (r.u16()?, r.u16()?, r.u16()?);
        r.zeros(6)?;
        if usize::from(first) + usize::from(count) > super::dead::ENTRIES_MAX || count == 0 {
            return Err(r.error("chunk of a deadlist is out of range"));
        }
        d.chunks.push(Chunk {
            page,
            crc,
            first,
            count,
            data,
            oldest: Stamp(r.u64()?),
            youngest: Stamp(r.u64()?),
        });
    }
    for _ in 0..r.count32(60)? {
        let (node, level) = (decode_pointer(r)?, r.u8()?);
        r.zeros(7)?;
        if level > LEVEL_MAX {
            return Err(r.error("level of a subtree is out of range"));
        }
        d.subtrees.push(Subtree {
            node,
            level,
            first_lba: r.u64()?,
            death: Stamp(r.u64()?),
        });
    }
    Ok((id, d))
}
