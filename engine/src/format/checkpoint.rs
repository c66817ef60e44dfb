//! The checkpoint: everything recovery needs that is not in the log after it or in the map.

use super::codec::{FormatError, Reader, Writer};
pub(crate) use super::group::text;
use super::group::{decode_group, encode_group};
pub use super::group::{
    EpochEntry, FeedEntry, GroupEntry, GroupMeta, Jump, LogEntryMeta, MemberPlace, Membership,
    RootMac, SessionEntry,
};
use super::node::ChildPointer;
pub use super::space::{Kept, PieceEntry, SegmentEntry, SegmentKind};
use super::table::TableRoot;
use super::vaddr::VAddr;
use super::versions::{decode_table, encode_table, VersionTable};
use esker_base::checksum::crc32;
use esker_base::{GroupId, Stamp};

/// First eight bytes.
pub const MAGIC: [u8; 8] = *b"ESKERCKP";
/// Version of the structure.
pub const VERSION: u32 = 8;
/// The oldest version that is read.
pub const OLDEST: u32 = 4;
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

/// In the address of a pointer that stands by itself: its hash is a cryptographic one.
const STRONG_BIT: u32 = 63;

pub(crate) fn encode_pointer(w: &mut Writer, p: &ChildPointer) {
    w.u64(p.vaddr.0 | u64::from(p.is_strong) << STRONG_BIT);
    w.u64(p.max_stamp.0);
    w.u64(p.logical_hash);
    w.u64(p.live);
    w.u32(p.crc);
}

pub(crate) fn decode_pointer(r: &mut Reader<'_>) -> Result<ChildPointer, FormatError> {
    let place = r.u64()?;
    Ok(ChildPointer {
        vaddr: VAddr(place & !(1 << STRONG_BIT)),
        is_strong: place >> STRONG_BIT & 1 != 0,
        max_stamp: Stamp(r.u64()?),
        logical_hash: r.u64()?,
        live: r.u64()?,
        crc: r.u32()?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::record::EntryKind;
    use super::super::table::{PagePointer, Place, TableId};
    use super::*;
    use bytes::Bytes;
    use esker_base::{Epoch, NodeId, RaftIndex, ReplicaId, SessionId, Term, VolumeId};
    use std::collections::BTreeMap;

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
                places: vec![MemberPlace {
                    replica: ReplicaId(3),
                    place: esker_base::Place {
                        node: NodeId(7),
                        store: 1,
                    },
                    replaces: ReplicaId(8),
                }],
                ..Membership::default()
            },
            key_id: 2,
            feeds: GroupId(9),
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
            resealed: Epoch(6),
            suspended: true,
            ended: true,
            requests: vec![SessionEntry {
                session: SessionId(1),
                floor: 7,
                heard: RaftIndex(2),
                applied: vec![(8, 0), (10, 1)],
            }],
            jumps: vec![Jump {
                at: Stamp(9),
                to: Stamp(4),
            }],
            jumps_since: Stamp(3),
            feed: Some(FeedEntry {
                base: Stamp(11),
                reach: Stamp(12),
            }),
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
