//! Operations: the descriptor that is a Raft entry's data. Payload travels beside it.

use super::checkpoint::text;
use super::codec::{FormatError, Reader, Writer};
use super::group::{decode_places, encode_places, MemberPlace};
use super::ingest::{self, Run};
use esker_base::{limits, BlockRange, Epoch, GroupId, SessionId, Stamp, VolumeId};
use std::collections::BTreeMap;

/// Version of the structure.
pub const VERSION: u8 = 1;
/// Version of one whose request says how many before it may be without an answer.
pub const VERSION_SPANNING: u8 = 2;
/// Bytes of the head that every operation has.
pub const HEAD_BYTES: usize = 24;
/// Bytes of a block's description in the full form.
pub const BLOCK_BYTES: usize = 24;
/// Bytes of an authenticator: the CRC of the stored bytes, and a tag.
pub const AUTH_BYTES: usize = 16;

/// Bytes of an authenticator that are the tag.
pub const TAG_BYTES: usize = 12;

/// What proves that stored bytes are the ones that were written: their CRC, which everybody can check,
/// and twelve bytes that only the key checks: the tag of a sealed block, zeros for a plain one.
pub type Authenticator = [u8; AUTH_BYTES];

/// The authenticator of a plain block.
#[must_use]
pub fn plain_authenticator(crc: u32) -> Authenticator {
    let mut auth = [0; AUTH_BYTES];
    auth[..4].copy_from_slice(&crc.to_le_bytes());
    auth
}

/// The tag in an authenticator; zeros for a plain block.
#[must_use]
pub fn tag_of(auth: &Authenticator) -> [u8; TAG_BYTES] {
    let mut tag = [0; TAG_BYTES];
    tag.copy_from_slice(&auth[AUTH_BYTES - TAG_BYTES..]);
    tag
}

/// The CRC of the stored bytes in an authenticator.
#[must_use]
pub fn stored_crc(auth: &Authenticator) -> u32 {
    u32::from_le_bytes([auth[0], auth[1], auth[2], auth[3]])
}

/// Identity of a client request, for deduplicating retries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestId {
    /// The session; zero for operations of the node itself.
    pub session: SessionId,
    /// The request's number in the session.
    pub sequence: u64,
    /// Which entry of the request this is: a large one takes several.
    pub part: u16,
    /// How many of the numbers right below this one may be without an answer, where the group spans
    /// nodes.
    pub behind: Option<u32>,
}

/// What a stored block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// 4096 bytes: as the client wrote them, or sealed when the key id is not zero.
    Data = 1,
    /// Compressed data of `stored_length` bytes. Reserved: written by no version yet.
    Compressed = 2,
}

/// One block of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockInfo {
    /// What is stored.
    pub kind: BlockKind,
    /// How many bytes of the slot are used.
    pub stored_length: u16,
    /// CRC of the stored bytes (the whole slot).
    pub crc: u32,
    /// Authenticator of the block.
    pub auth: Authenticator,
}

impl BlockInfo {
    /// A plain block with this CRC.
    #[must_use]
    pub fn plain(crc: u32) -> Self {
        Self {
            kind: BlockKind::Data,
            stored_length: 4096,
            crc,
            auth: plain_authenticator(crc),
        }
    }

    /// A sealed block: the CRC of the sealed bytes, and its tag.
    #[must_use]
    pub fn sealed(crc: u32, tag: &[u8; TAG_BYTES]) -> Self {
        let mut block = Self::plain(crc);
        block.auth[AUTH_BYTES - TAG_BYTES..].copy_from_slice(tag);
        block
    }
}

/// An operation on a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Blocks were written; the payload holds one slot per block.
    Write {
        /// First block.
        lba: u64,
        /// Stamp of the first block; each further block has the next.
        stamp: Stamp,
        /// Which key encrypted the blocks; zero for none.
        key_id: u32,
        /// The blocks.
        blocks: Vec<BlockInfo>,
    },
    /// Blocks are no longer needed and read as zeros.
    Discard {
        /// Which.
        range: BlockRange,
        /// One stamp for all of them.
        stamp: Stamp,
    },
    /// Blocks read as zeros.
    Zero {
        /// Which.
        range: BlockRange,
        /// One stamp for all of them.
        stamp: Stamp,
    },
    /// Opens an epoch; it takes its number when it is applied.
    OpenEpoch {
        /// Random salt for the epoch's block keys.
        salt: u128,
        /// Key that blocks of the epoch are encrypted with; zero for none.
        key_id: u32,
        /// Names the proposer, so that it knows its own epoch when it is applied.
        nonce: u64,
        /// The head holds no block under another key any more.
        resealed: bool,
    },
    /// The volume has a new size.
    Resize {
        /// In bytes.
        size_bytes: u64,
    },
    /// The volume as it is now is kept.
    Snapshot {
        /// Names the cut: what has a lower stamp is in it.
        stamp: Stamp,
        /// When it was asked for, in microseconds since the Unix epoch.
        created_us: u64,
        /// Its name.
        name: String,
        /// Labels.
        labels: BTreeMap<String, String>,
    },
    /// The volume goes on from a snapshot.
    Rollback {
        /// Names the cut of the state that is left.
        stamp: Stamp,
        /// When it was asked for, in microseconds since the Unix epoch.
        created_us: u64,
        /// Stamp of the snapshot.
        to: Stamp,
        /// Under which name the state that is left is kept; none for not at all.
        keep: Option<String>,
    },
    /// A snapshot is no longer needed.
    DeleteSnapshot {
        /// Its stamp.
        cut: Stamp,
    },
    /// A volume of its own begins at a snapshot; it has no stamp, because nothing of this volume changes.
    Clone {
        /// Stamp of the snapshot.
        cut: Stamp,
        /// The group that begins; no store may have had it before.
        group: GroupId,
        /// The volume that it replicates.
        volume: VolumeId,
        /// When it was asked for, in microseconds since the Unix epoch.
        created_us: u64,
        /// Name of the new volume.
        name: String,
        /// Labels of the new volume.
        labels: BTreeMap<String, String>,
        /// The replicas that begin it, each where the volume's replica of the same id is; others of the volume have
        /// nothing of it. None: the one replica that the volume has.
        members: Vec<MemberPlace>,
    },
    /// The volume has a new name, on all its replicas.
    Rename {
        /// The name.
        name: String,
    },
    /// Labels of the volume change; the others stay.
    Relabel {
        /// New values by key; none takes the label away.
        labels: BTreeMap<String, Option<String>>,
    },
    /// Blocks as another replica has them; only in the log of a feed.
    Ingest {
        /// By block. The payload holds one slot per block of data.
        runs: Vec<Run>,
    },
    /// The head goes on from a snapshot, or from nothing; only in the log of a feed. What was in it and in no
    /// snapshot is gone.
    Branch {
        /// Stamp of the snapshot; zero for nothing.
        to: Stamp,
    },
}

const TAG_WRITE: u8 = 1;
const TAG_WRITE_FULL: u8 = 2;
const TAG_DISCARD: u8 = 3;
const TAG_ZERO: u8 = 4;
const TAG_OPEN_EPOCH: u8 = 5;
const TAG_RESIZE: u8 = 6;
const TAG_SNAPSHOT: u8 = 7;
const TAG_DELETE_SNAPSHOT: u8 = 8;
const TAG_ROLLBACK: u8 = 9;
const TAG_CLONE: u8 = 10;
// 11 to 15 are not used.
const TAG_RELABEL: u8 = 16;
const TAG_INGEST: u8 = 17;
const TAG_BRANCH: u8 = 18;
const TAG_RENAME: u8 = 19;
const TAG_CLONE_SPANNING: u8 = 20;

impl Operation {
    /// Number of payload slots the operation brings.
    #[must_use]
    pub fn payload_blocks(&self) -> u64 {
        match self {
            Self::Write { blocks, .. } => blocks.len() as u64,
            Self::Ingest { runs } => runs.iter().map(Run::payload_blocks).sum(),
            _ => 0,
        }
    }

    /// The CRC of each slot of the payload, in order, with the block that it is.
    #[must_use]
    pub fn payload_crcs(&self) -> Vec<(u64, u32)> {
        match self {
            Self::Write { lba, blocks, .. } => (*lba..).zip(blocks.iter().map(|b| b.crc)).collect(),
            Self::Ingest { runs } => ingest::crcs(runs).collect(),
            _ => Vec::new(),
        }
    }

    /// All blocks that it changes, and whether they read as zeros then.
    #[must_use]
    pub fn changes(&self) -> Vec<(BlockRange, bool)> {
        match self {
            Self::Ingest { runs } => {
                let change = |run: &Run| (run.range(), run.payload_blocks() == 0);
                runs.iter().map(change).collect()
            }
            _ => {
                let hollow = self.payload_blocks() == 0;
                self.range()
                    .map(|range| (range, hollow))
                    .into_iter()
                    .collect()
            }
        }
    }

    /// The blocks it touches, if they are one range.
    #[must_use]
    pub fn range(&self) -> Option<BlockRange> {
        match self {
            Self::Write { lba, blocks, .. } => Some(BlockRange::new(*lba, blocks.len() as u64)),
            Self::Discard { range, .. } | Self::Zero { range, .. } => Some(*range),
            Self::OpenEpoch { .. }
            | Self::Resize { .. }
            | Self::Snapshot { .. }
            | Self::Rollback { .. }
            | Self::DeleteSnapshot { .. }
            | Self::Clone { .. }
            | Self::Relabel { .. }
            | Self::Rename { .. }
            | Self::Ingest { .. }
            | Self::Branch { .. } => None,
        }
    }

    /// The bytes of the operation.
    ///
    /// # Panics
    /// When a write has more than [`limits::ENTRY_BLOCKS_MAX`] blocks.
    #[must_use]
    pub fn encode(&self, request: RequestId) -> Vec<u8> {
        let blocks = match self {
            Self::Write { blocks, .. } => blocks.len(),
            _ => 1,
        };
        // One allocation, whatever the blocks' form.
        let mut w = Writer {
            bytes: Vec::with_capacity(64 + blocks * 32),
        };
        let tag = match self {
            Self::Write { blocks, .. } if blocks.iter().all(is_plain) => TAG_WRITE,
            Self::Write { .. } => TAG_WRITE_FULL,
            Self::Discard { .. } => TAG_DISCARD,
            Self::Zero { .. } => TAG_ZERO,
            Self::OpenEpoch { .. } => TAG_OPEN_EPOCH,
            Self::Resize { .. } => TAG_RESIZE,
            Self::Snapshot { .. } => TAG_SNAPSHOT,
            Self::DeleteSnapshot { .. } => TAG_DELETE_SNAPSHOT,
            Self::Rollback { .. } => TAG_ROLLBACK,
            Self::Clone { members, .. } if members.is_empty() => TAG_CLONE,
            Self::Clone { .. } => TAG_CLONE_SPANNING,
            Self::Relabel { .. } => TAG_RELABEL,
            Self::Rename { .. } => TAG_RENAME,
            Self::Ingest { .. } => TAG_INGEST,
            Self::Branch { .. } => TAG_BRANCH,
        };
        w.u8(tag);
        w.u8(match request.behind {
            None => VERSION,
            Some(_) => VERSION_SPANNING,
        });
        w.u16(request.part);
        w.u32(request.behind.unwrap_or(0));
        w.u64(request.session.0);
        w.u64(request.sequence);
        match self {
            Self::Write {
                lba,
                stamp,
                key_id,
                blocks,
            } => {
                assert!(
                    blocks.len() as u64 <= limits::ENTRY_BLOCKS_MAX,
                    "write of too many blocks"
                );
                w.u64(*lba);
                w.u64(stamp.0);
                w.u32(*key_id);
                w.u32(u32::try_from(blocks.len()).unwrap_or(u32::MAX));
                for block in blocks {
                    encode_block(&mut w, block, tag == TAG_WRITE_FULL);
                }
            }
            Self::Discard { range, stamp } | Self::Zero { range, stamp } => {
                w.u64(range.start.0);
                w.u64(range.count);
                w.u64(stamp.0);
            }
            Self::OpenEpoch {
                salt,
                key_id,
                nonce,
                resealed,
            } => {
                w.u128(*salt);
                w.u64(*nonce);
                w.u32(*key_id);
                w.u8(u8::from(*resealed));
                w.zeros(3);
            }
            Self::Resize { size_bytes } => w.u64(*size_bytes),
            Self::Rename { name } => w.bytes32(name.as_bytes()),
            Self::Snapshot {
                stamp,
                created_us,
                name,
                labels,
            } => {
                w.u64(stamp.0);
                w.u64(*created_us);
                encode_name(&mut w, name, labels);
            }
            Self::DeleteSnapshot { cut } => w.u64(cut.0),
            Self::Branch { to } => w.u64(to.0),
            Self::Ingest { runs } => ingest::encode(&mut w, runs),
            Self::Clone {
                cut,
                group,
                volume,
                created_us,
                name,
                labels,
                members,
            } => {
                w.u64(cut.0);
                w.u64(group.0);
                w.u128(volume.0);
                w.u64(*created_us);
                encode_name(&mut w, name, labels);
                if !members.is_empty() {
                    encode_places(&mut w, members);
                }
            }
            Self::Rollback {
                stamp,
                created_us,
                to,
                keep,
            } => {
                w.u64(stamp.0);
                w.u64(*created_us);
                w.u64(to.0);
                w.bytes32(keep.as_deref().unwrap_or_default().as_bytes());
            }
            Self::Relabel { labels } => {
                w.u32(u32::try_from(labels.len()).unwrap_or(u32::MAX));
                for (key, value) in labels {
                    w.u8(u8::from(value.is_some()));
                    w.bytes32(key.as_bytes());
                    w.bytes32(value.as_deref().unwrap_or_default().as_bytes());
                }
            }
        }
        w.bytes
    }

    /// Decodes an operation and the identity of its request.
    ///
    /// # Errors
    /// On anything that `encode` does not produce.
    pub fn decode(bytes: &[u8]) -> Result<(Self, RequestId), FormatError> {
        let mut r = Reader::new("operation", bytes);
        let tag = r.u8()?;
        let spans = match r.u8()? {
            VERSION => false,
            VERSION_SPANNING => true,
            _ => return Err(r.error("was written by a newer version of Esker")),
        };
        let part = r.u16()?;
        let behind = match spans {
            true => Some(r.u32()?),
            false => r.zeros(4).map(|()| None)?,
        };
        let request = RequestId {
            session: SessionId(r.u64()?),
            sequence: r.u64()?,
            part,
            behind,
        };
        let operation = match tag {
            TAG_WRITE | TAG_WRITE_FULL => decode_write(&mut r, tag == TAG_WRITE_FULL)?,
            TAG_DISCARD | TAG_ZERO => {
                let range = BlockRange::new(r.u64()?, r.u64()?);
                check_range(&r, range)?;
                let stamp = Stamp(r.u64()?);
                match tag {
                    TAG_DISCARD => Self::Discard { range, stamp },
                    _ => Self::Zero { range, stamp },
                }
            }
            TAG_OPEN_EPOCH => {
                let (salt, nonce, key_id) = (r.u128()?, r.u64()?, r.u32()?);
                let resealed = match r.u8()? {
                    0 => false,
                    1 if key_id != 0 => true,
                    _ => return Err(r.error("says of an epoch what is not known")),
                };
                r.zeros(3)?;
                Self::OpenEpoch {
                    salt,
                    key_id,
                    nonce,
                    resealed,
                }
            }
            TAG_RESIZE => Self::Resize {
                size_bytes: r.u64()?,
            },
            TAG_SNAPSHOT => decode_snapshot(&mut r)?,
            TAG_CLONE | TAG_CLONE_SPANNING => decode_clone(&mut r, tag)?,
            TAG_RELABEL => decode_relabel(&mut r)?,
            TAG_RENAME => decode_rename(&mut r)?,
            TAG_ROLLBACK => {
                let (stamp, created_us, to) = (Stamp(r.u64()?), r.u64()?, Stamp(r.u64()?));
                let name = text(&mut r)?;
                if name.len() > limits::SNAPSHOT_NAME_BYTES_MAX {
                    return Err(r.error("name of a snapshot is too long"));
                }
                let keep = (!name.is_empty()).then_some(name);
                Self::Rollback {
                    stamp,
                    created_us,
                    to,
                    keep,
                }
            }
            TAG_DELETE_SNAPSHOT => Self::DeleteSnapshot {
                cut: Stamp(r.u64()?),
            },
            TAG_INGEST => Self::Ingest {
                runs: ingest::decode(&mut r)?,
            },
            TAG_BRANCH => Self::Branch {
                to: Stamp(r.u64()?),
            },
            _ => return Err(r.error("has an unknown tag")),
        };
        r.finish()?;
        Ok((operation, request))
    }

    /// The epoch an operation's stamp belongs to; zero when it has none.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        match self {
            Self::Write { stamp, .. }
            | Self::Discard { stamp, .. }
            | Self::Zero { stamp, .. }
            | Self::Snapshot { stamp, .. }
            | Self::Rollback { stamp, .. } => stamp.epoch(),
            _ => Epoch(0),
        }
    }
}

fn is_plain(block: &BlockInfo) -> bool {
    *block == BlockInfo::plain(block.crc)
}

fn encode_block(w: &mut Writer, block: &BlockInfo, full: bool) {
    if full {
        w.u8(block.kind as u8);
        w.u8(0);
        w.u16(block.stored_length);
        w.u32(block.crc);
        w.raw(&block.auth);
    } else {
        w.u32(block.crc);
    }
}

fn check_range(r: &Reader<'_>, range: BlockRange) -> Result<(), FormatError> {
    let end = range.start.0.checked_add(range.count);
    match end {
        Some(end) if range.count > 0 && end <= limits::VOLUME_BYTES_MAX / 4096 => Ok(()),
        _ => Err(r.error("range lies outside any volume")),
    }
}

fn decode_snapshot(r: &mut Reader<'_>) -> Result<Operation, FormatError> {
    let (stamp, created_us) = (Stamp(r.u64()?), r.u64()?);
    let (name, labels) = decode_name(r, limits::SNAPSHOT_NAME_BYTES_MAX)?;
    Ok(Operation::Snapshot {
        stamp,
        created_us,
        name,
        labels,
    })
}

fn decode_clone(r: &mut Reader<'_>, tag: u8) -> Result<Operation, FormatError> {
    let (cut, group, volume) = (Stamp(r.u64()?), GroupId(r.u64()?), VolumeId(r.u128()?));
    let created_us = r.u64()?;
    let (name, labels) = decode_name(r, limits::VOLUME_NAME_BYTES_MAX)?;
    let members = match tag {
        TAG_CLONE => Vec::new(),
        _ => decode_places(r)?,
    };
    if members.is_empty() != (tag == TAG_CLONE) {
        return Err(r.error("clone that spans nodes has no members"));
    }
    Ok(Operation::Clone {
        cut,
        group,
        volume,
        created_us,
        name,
        labels,
        members,
    })
}

fn decode_relabel(r: &mut Reader<'_>) -> Result<Operation, FormatError> {
    let count = r.count32(9)?;
    if count > 2 * limits::METADATA_LABELS_MAX {
        return Err(r.error("has too many labels"));
    }
    let mut labels = BTreeMap::new();
    for _ in 0..count {
        let stays = r.u8()?;
        let (key, value) = (text(r)?, text(r)?);
        let value = match (stays, value.is_empty()) {
            (1, _) => Some(value),
            (0, true) => None,
            _ => return Err(r.error("label is malformed")),
        };
        labels.insert(key, value);
    }
    Ok(Operation::Relabel { labels })
}

fn decode_rename(r: &mut Reader<'_>) -> Result<Operation, FormatError> {
    let name = text(r)?;
    if name.is_empty() || name.len() > limits::VOLUME_NAME_BYTES_MAX {
        return Err(r.error("name of a volume is empty or too long"));
    }
    Ok(Operation::Rename { name })
}

fn encode_name(w: &mut Writer, name: &str, labels: &BTreeMap<String, String>) {
    w.bytes32(name.as_bytes());
    w.u32(u32::try_from(labels.len()).unwrap_or(u32::MAX));
    for (key, value) in labels {
        w.bytes32(key.as_bytes());
        w.bytes32(value.as_bytes());
    }
}

fn decode_name(
    r: &mut Reader<'_>,
    bytes_max: usize,
) -> Result<(String, BTreeMap<String, String>), FormatError> {
    let name = text(r)?;
    if name.is_empty() || name.len() > bytes_max {
        return Err(r.error("name of a snapshot or volume is empty or too long"));
    }
    let count = r.count32(8)?;
    if count > limits::METADATA_LABELS_MAX {
        return Err(r.error("has too many labels"));
    }
    let mut labels = BTreeMap::new();
    for _ in 0..count {
        labels.insert(text(r)?, text(r)?);
    }
    Ok((name, labels))
}

fn decode_write(r: &mut Reader<'_>, full: bool) -> Result<Operation, FormatError> {
    let lba = r.u64()?;
    let stamp = Stamp(r.u64()?);
    let key_id = r.u32()?;
    let count = r.count32(if full { BLOCK_BYTES } else { 4 })?;
    if count as u64 > limits::ENTRY_BLOCKS_MAX {
        return Err(r.error("has too many blocks"));
    }
    check_range(r, BlockRange::new(lba, count as u64))?;
    let mut blocks = Vec::with_capacity(count);
    for _ in 0..count {
        if !full {
            blocks.push(BlockInfo::plain(r.u32()?));
            continue;
        }
        let kind = match r.u8()? {
            1 => BlockKind::Data,
            2 => BlockKind::Compressed,
            _ => return Err(r.error("block has an unknown kind")),
        };
        r.zeros(1)?;
        let (stored_length, crc) = (r.u16()?, r.u32()?);
        let mut auth = [0; AUTH_BYTES];
        auth.copy_from_slice(r.raw(AUTH_BYTES)?);
        if stored_crc(&auth) != crc {
            return Err(r.error("authenticator of a block does not begin with its CRC"));
        }
        blocks.push(BlockInfo {
            kind,
            stored_length,
            crc,
            auth,
        });
    }
    Ok(Operation::Write {
        lba,
        stamp,
        key_id,
        blocks,
    })
}

#[cfg(test)]
mod tests {
    use super::super::ingest::RunContent;
    use super::super::node::LeafKind;
    use super::*;
    use esker_base::{NodeId, Place, ReplicaId};

    fn member(n: u64) -> MemberPlace {
        MemberPlace {
            replica: ReplicaId(n),
            place: Place {
                node: NodeId(n + 1),
                store: 2,
            },
            replaces: ReplicaId(0),
        }
    }

    #[test]
    fn every_operation_comes_back() {
        let request = RequestId {
            session: SessionId(9),
            sequence: 10,
            part: 11,
            behind: Some(12),
        };
        let plain = BlockInfo::plain(5);
        let tagged = BlockInfo::sealed(8, &[7; 12]);
        let range = BlockRange::new(8, 1 << 30);
        let stamp = Stamp::new(Epoch(1), 2);
        for op in [
            Operation::Write {
                lba: 3,
                stamp,
                key_id: 0,
                blocks: vec![plain; 256],
            },
            Operation::Write {
                lba: 3,
                stamp,
                key_id: 6,
                blocks: vec![plain, tagged],
            },
            Operation::Discard { range, stamp },
            Operation::Zero { range, stamp },
            Operation::OpenEpoch {
                resealed: false,
                salt: 4,
                key_id: 5,
                nonce: 6,
            },
            Operation::Resize {
                size_bytes: 1 << 40,
            },
            Operation::Snapshot {
                stamp,
                created_us: 12,
                name: "daily".into(),
                labels: BTreeMap::from([("by".into(), "cron".into())]),
            },
            Operation::DeleteSnapshot { cut: stamp },
            Operation::Rename { name: "new".into() },
            Operation::Branch { to: stamp },
            Operation::Ingest {
                runs: vec![
                    Run {
                        lba: 5,
                        content: RunContent::Data(vec![(Stamp(7), [1; 16]), (Stamp(4), [2; 16])]),
                    },
                    Run {
                        lba: 9,
                        content: RunContent::Hollow {
                            count: 1 << 20,
                            kind: LeafKind::Zero,
                            stamp,
                        },
                    },
                ],
            },
            Operation::Rollback {
                stamp,
                created_us: 13,
                to: Stamp(3),
                keep: Some("before".into()),
            },
            Operation::Rollback {
                stamp,
                created_us: 13,
                to: Stamp(3),
                keep: None,
            },
            Operation::Clone {
                cut: stamp,
                group: GroupId(14),
                volume: VolumeId(15),
                created_us: 16,
                name: "other".into(),
                labels: BTreeMap::from([("by".into(), "hand".into())]),
                members: Vec::new(),
            },
            Operation::Clone {
                cut: stamp,
                group: GroupId(14),
                volume: VolumeId(15),
                created_us: 16,
                name: "other".into(),
                labels: BTreeMap::new(),
                members: vec![member(17), member(18)],
            },
            Operation::Relabel {
                labels: BTreeMap::from([
                    ("a".into(), Some("b".into())),
                    ("c".into(), Some(String::new())),
                    ("d".into(), None),
                ]),
            },
        ] {
            let bytes = op.encode(request);
            assert_eq!(Operation::decode(&bytes), Ok((op.clone(), request)));
            for cut in 0..bytes.len() {
                assert!(
                    Operation::decode(&bytes[..cut]).is_err(),
                    "{op:?} cut at {cut}"
                );
            }
        }
    }

    #[test]
    fn a_volume_has_a_name() {
        for name in [String::new(), "x".repeat(limits::VOLUME_NAME_BYTES_MAX + 1)] {
            let op = Operation::Rename { name };
            assert!(Operation::decode(&op.encode(RequestId::default())).is_err());
        }
    }

    #[test]
    fn a_range_past_the_largest_volume_is_refused() {
        let op = Operation::Discard {
            range: BlockRange::new(u64::MAX, 2),
            stamp: Stamp(1),
        };
        assert!(Operation::decode(&op.encode(RequestId::default())).is_err());
    }
}
