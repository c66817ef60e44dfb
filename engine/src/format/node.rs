//! Map nodes: pages of the copy-on-write radix tree.

use super::codec::{FormatError, Reader, Writer};
use super::operation::{Authenticator, AUTH_BYTES};
use super::vaddr::{VAddr, SLOT_BITS, VSEG_BITS};
use super::PAGE;
use esker_base::checksum::crc32;
use esker_base::{GroupId, Stamp, StoreId};

/// First four bytes of a node.
pub const MAGIC: u32 = 0x444e_5345; // "ESND"
/// Version of a plain volume's nodes, and of those of stores that were made by format version 7 or older.
pub const VERSION: u16 = 2;
/// Version of an encrypted volume's nodes: pointers to them hold a cryptographic hash.
pub const VERSION_STRONG: u16 = 3;
/// Children or blocks per node.
pub const FANOUT: usize = 128;
/// Bits of an LBA that one level resolves.
pub const FANOUT_BITS: u32 = 7;
/// Bytes before the entries.
pub const HEAD_BYTES: usize = 128;
/// Bytes of one entry, in leaves and inner nodes alike.
pub const ENTRY_BYTES: usize = 31;
/// Where a child's number of data blocks is in its entry.
const LIVE_AT: usize = 27;
/// Where the page's own CRC is.
pub(crate) const CRC_AT: usize = 40;
/// Most levels above the leaves (64 TiB: 34 bits of LBA).
pub const LEVEL_MAX: u8 = 4;

/// Kinds of a child pointer that names a node: of version 2, and of version 3.
const CHILD: u8 = 1;
const CHILD_STRONG: u8 = 2;

const _: () = assert!(HEAD_BYTES + FANOUT * ENTRY_BYTES == PAGE);
const _: () = assert!(VSEG_BITS + SLOT_BITS + 4 <= 56);

/// What a leaf says about a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LeafKind {
    /// Never written.
    #[default]
    Absent = 0,
    /// Stored at the address.
    Data = 1,
    /// Discarded: reads as zeros.
    Discarded = 2,
    /// Written as zeros.
    Zero = 3,
    /// Known lost: reads fail until it is written or fetched from a replica. Reserved: written by
    /// no version yet.
    Damaged = 4,
    /// Stored compressed. Reserved: written by no version yet.
    Compressed = 5,
}

/// One block in a leaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeafEntry {
    /// What it is.
    pub kind: LeafKind,
    /// Where, for stored kinds.
    pub vaddr: VAddr,
    /// Which version.
    pub stamp: Stamp,
    /// Proves the stored bytes.
    pub auth: Authenticator,
}

/// A pointer to a child node. Without an address the whole range reads as zeros, and `max_stamp`
/// remembers when it last changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChildPointer {
    /// Where the node is; none for an empty range.
    pub vaddr: VAddr,
    /// Highest stamp of anything below, discards included.
    pub max_stamp: Stamp,
    /// Hash over (LBA, stamp, authenticator) of the data below: equal on all replicas.
    pub logical_hash: u64,
    /// The hash is a cryptographic one: nobody finds another node for it.
    pub is_strong: bool,
    /// CRC of the node's page.
    pub crc: u32,
    /// Number of data blocks below. In a node it has 32 bits: a child of the largest root spans
    /// 2^28 blocks. A root's own count is in the checkpoint, with 64.
    pub live: u64,
}

/// The head of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeHead {
    /// Zero for a leaf.
    pub level: u8,
    /// The store.
    pub store: StoreId,
    /// The group that wrote it.
    pub group: GroupId,
    /// First LBA of the node's range.
    pub first_lba: u64,
    /// Pointers to it hold a cryptographic hash.
    pub is_strong: bool,
}

/// A node's page, decoded only as far as it is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePage {
    /// The bytes.
    pub bytes: Box<[u8]>,
    /// Its hash, once it was computed: see [`NodePage::is_named_by`].
    hash: u64,
}

fn encode_address(w: &mut [u8], kind: u8, vaddr: VAddr) {
    let word = vaddr.0 | (u64::from(kind) << (VSEG_BITS + SLOT_BITS));
    w[..7].copy_from_slice(&word.to_le_bytes()[..7]);
}

fn decode_address(bytes: &[u8]) -> (u8, VAddr) {
    let mut word = [0; 8];
    word[..7].copy_from_slice(&bytes[..7]);
    let word = u64::from_le_bytes(word);
    let kind = (word >> (VSEG_BITS + SLOT_BITS)).to_le_bytes()[0];
    (kind, VAddr(word & ((1 << (VSEG_BITS + SLOT_BITS)) - 1)))
}

/// The level that a page names.
fn level_of(bytes: &[u8]) -> u8 {
    bytes[6]
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

impl NodePage {
    /// A page with these bytes, which somebody has checked.
    #[must_use]
    pub fn of(bytes: Box<[u8]>) -> Self {
        Self { bytes, hash: 0 }
    }

    /// The page is complete, and pointers to it hold this hash.
    #[must_use]
    pub fn with_hash(self, hash: u64) -> Self {
        Self { hash, ..self }
    }

    /// Whether a page in memory that was found by its address is the one that a pointer names. Addresses are
    /// not in what a cryptographic hash covers: who changes the device can make two pointers name one address.
    #[must_use]
    pub fn is_named_by(&self, pointer: &ChildPointer) -> bool {
        self.is_strong() == pointer.is_strong
            && (!pointer.is_strong || self.hash == pointer.logical_hash)
    }

    /// An empty node.
    #[must_use]
    pub fn empty(head: &NodeHead) -> Self {
        let mut w = Writer::new();
        w.u32(MAGIC);
        w.u16(match head.is_strong {
            true => VERSION_STRONG,
            false => VERSION,
        });
        w.u8(head.level);
        w.u8(0);
        w.u128(head.store.0);
        w.u64(head.group.0);
        w.u64(head.first_lba);
        w.zeros(PAGE - w.bytes.len());
        Self::of(w.bytes.into_boxed_slice())
    }

    /// Checks the head and every entry of a page read from the device.
    ///
    /// # Errors
    /// On anything that this module does not produce.
    pub fn check(bytes: &[u8]) -> Result<NodeHead, FormatError> {
        let mut r = Reader::new("node", bytes);
        if bytes.len() != PAGE || r.u32()? != MAGIC {
            return Err(r.error("has no magic"));
        }
        let version = r.u16()?;
        let is_strong = version == VERSION_STRONG;
        if !is_strong {
            r.version(u32::from(VERSION), u32::from(version))?;
        }
        let kind_max = match (level_of(bytes), is_strong) {
            (0, _) => LeafKind::Compressed as u8,
            (_, true) => CHILD_STRONG,
            (_, false) => CHILD,
        };
        let level = r.u8()?;
        r.zeros(1)?;
        let store = StoreId(r.u128()?);
        let group = GroupId(r.u64()?);
        let first_lba = r.u64()?;
        r.u32()?; // the page's own CRC: see `is_whole`
        r.zeros(HEAD_BYTES - (PAGE - r.remaining()))?;
        if level > LEVEL_MAX {
            return Err(r.error("level is out of range"));
        }
        for i in 0..FANOUT {
            let at = HEAD_BYTES + i * ENTRY_BYTES;
            let (kind, vaddr) = decode_address(&bytes[at..]);
            let stored = match level {
                0 => kind == 1 || kind == LeafKind::Compressed as u8,
                _ => kind != 0,
            };
            if kind > kind_max || stored == vaddr.is_none() {
                return Err(r.error("entry is malformed"));
            }
            // A cryptographic hash covers what a child says of its blocks, and not where it lies: whether
            // it lies anywhere has to follow from that, or a range could be emptied or filled behind it.
            let live = u32_at(bytes, at + LIVE_AT);
            if level > 0 && is_strong && (live == 0) != vaddr.is_none() {
                return Err(r.error("child has blocks and no address, or the reverse"));
            }
        }
        Ok(NodeHead {
            level,
            store,
            group,
            first_lba,
            is_strong,
        })
    }

    /// Writes the page's own CRC into its head, once everything else is in it. A pointer's CRC is
    /// taken afterwards and covers this one; this one serves who moves nodes without following
    /// pointers.
    pub fn seal(&mut self) {
        self.bytes[CRC_AT..CRC_AT + 4].fill(0);
        let crc = crc32(&self.bytes);
        self.bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    }

    /// Whether a page is a node, or a page of a deadlist, as it was sealed.
    #[must_use]
    pub fn is_whole(bytes: &[u8]) -> bool {
        let mut blank = bytes.to_vec();
        let Some(field) = blank.get_mut(CRC_AT..CRC_AT + 4) else {
            return false;
        };
        field.fill(0);
        bytes.len() == PAGE
            && [MAGIC, super::dead::MAGIC].contains(&u32_at(bytes, 0))
            && u32_at(bytes, CRC_AT) == crc32(&blank)
    }

    /// The level, zero for a leaf.
    #[must_use]
    pub fn level(&self) -> u8 {
        level_of(&self.bytes)
    }

    /// Whether pointers to it hold a cryptographic hash.
    #[must_use]
    pub fn is_strong(&self) -> bool {
        self.bytes[4..6] == VERSION_STRONG.to_le_bytes()
    }

    /// Pointers to it will hold a cryptographic hash.
    pub fn make_strong(&mut self) {
        self.bytes[4..6].copy_from_slice(&VERSION_STRONG.to_le_bytes());
    }

    /// First LBA of the range.
    #[must_use]
    pub fn first_lba(&self) -> u64 {
        u64_at(&self.bytes, 32)
    }

    /// The block entry `i` of a leaf.
    ///
    /// # Panics
    /// When `i` is not below [`FANOUT`].
    #[must_use]
    pub fn leaf(&self, i: usize) -> LeafEntry {
        assert!(i < FANOUT, "leaf entry out of range");
        let entry = &self.bytes[HEAD_BYTES + i * ENTRY_BYTES..][..ENTRY_BYTES];
        let (kind, vaddr) = decode_address(entry);
        let kind = match kind {
            1 => LeafKind::Data,
            2 => LeafKind::Discarded,
            3 => LeafKind::Zero,
            4 => LeafKind::Damaged,
            5 => LeafKind::Compressed,
            _ => LeafKind::Absent,
        };
        let mut auth = [0; AUTH_BYTES];
        auth.copy_from_slice(&entry[15..31]);
        LeafEntry {
            kind,
            vaddr,
            stamp: Stamp(u64_at(entry, 7)),
            auth,
        }
    }

    /// Sets block entry `i` of a leaf.
    ///
    /// # Panics
    /// When `i` is not below [`FANOUT`].
    pub fn set_leaf(&mut self, i: usize, value: &LeafEntry) {
        assert!(i < FANOUT, "leaf entry out of range");
        let entry = &mut self.bytes[HEAD_BYTES + i * ENTRY_BYTES..][..ENTRY_BYTES];
        encode_address(entry, value.kind as u8, value.vaddr);
        entry[7..15].copy_from_slice(&value.stamp.0.to_le_bytes());
        entry[15..31].copy_from_slice(&value.auth);
    }

    /// The child pointer `i` of an inner node.
    ///
    /// # Panics
    /// When `i` is not below [`FANOUT`].
    #[must_use]
    pub fn child(&self, i: usize) -> ChildPointer {
        assert!(i < FANOUT, "child out of range");
        let entry = &self.bytes[HEAD_BYTES + i * ENTRY_BYTES..][..ENTRY_BYTES];
        let (kind, vaddr) = decode_address(entry);
        ChildPointer {
            vaddr,
            is_strong: kind == CHILD_STRONG,
            max_stamp: Stamp(u64_at(entry, 7)),
            logical_hash: u64_at(entry, 15),
            crc: u32_at(entry, 23),
            live: u64::from(u32_at(entry, LIVE_AT)),
        }
    }

    /// Sets child pointer `i` of an inner node.
    ///
    /// # Panics
    /// When `i` is not below [`FANOUT`], or the child has more blocks than a volume.
    pub fn set_child(&mut self, i: usize, value: &ChildPointer) {
        assert!(i < FANOUT, "child out of range");
        let entry = &mut self.bytes[HEAD_BYTES + i * ENTRY_BYTES..][..ENTRY_BYTES];
        let kind = match (value.vaddr.is_none(), value.is_strong) {
            (true, _) => 0,
            (false, false) => CHILD,
            (false, true) => CHILD_STRONG,
        };
        encode_address(entry, kind, value.vaddr);
        entry[7..15].copy_from_slice(&value.max_stamp.0.to_le_bytes());
        entry[15..23].copy_from_slice(&value.logical_hash.to_le_bytes());
        entry[23..27].copy_from_slice(&value.crc.to_le_bytes());
        let Ok(live) = u32::try_from(value.live) else {
            panic!("a child of {} blocks is larger than any volume", value.live)
        };
        entry[27..31].copy_from_slice(&live.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_at_every_position() {
        let head = NodeHead {
            level: 0,
            store: StoreId(1),
            group: GroupId(2),
            first_lba: 256,
            is_strong: true,
        };
        let mut leaf = NodePage::empty(&head);
        let mut inner = NodePage::empty(&NodeHead { level: 3, ..head });
        let largest = VAddr::new((1 << VSEG_BITS) - 1, (1 << SLOT_BITS) - 1);
        let entry = |i: u64| LeafEntry {
            kind: LeafKind::Data,
            vaddr: VAddr(largest.0 - i),
            stamp: Stamp(u64::MAX - i),
            auth: [i.to_le_bytes()[0]; 16],
        };
        let child = |i: u64| ChildPointer {
            vaddr: VAddr(largest.0 - i),
            max_stamp: Stamp(i),
            logical_hash: u64::MAX - i,
            is_strong: i.is_multiple_of(2),
            crc: 5,
            live: u64::from(u32::MAX),
        };
        for i in 0..FANOUT {
            leaf.set_leaf(i, &entry(i as u64));
            inner.set_child(i, &child(i as u64));
        }
        for i in 0..FANOUT {
            assert_eq!(leaf.leaf(i), entry(i as u64));
            assert_eq!(inner.child(i), child(i as u64));
        }
        assert_eq!(NodePage::check(&leaf.bytes), Ok(head));
        assert_eq!(NodePage::check(&inner.bytes).map(|h| h.level), Ok(3));
    }

    #[test]
    fn a_stored_entry_without_an_address_is_refused() {
        let mut leaf = NodePage::empty(&NodeHead::default());
        leaf.set_leaf(
            0,
            &LeafEntry {
                kind: LeafKind::Data,
                ..LeafEntry::default()
            },
        );
        assert!(NodePage::check(&leaf.bytes).is_err());
    }

    /// Who could give an empty child an address, or take one with blocks away, would need no other hash for it.
    #[test]
    fn a_child_of_a_strong_node_has_an_address_if_it_has_blocks() {
        let head = |is_strong| NodeHead {
            level: 1,
            is_strong,
            ..NodeHead::default()
        };
        let check = |is_strong, child: &ChildPointer| {
            let mut inner = NodePage::empty(&head(is_strong));
            inner.set_child(7, child);
            NodePage::check(&inner.bytes).is_ok()
        };
        let whole = ChildPointer {
            vaddr: VAddr(9),
            is_strong: true,
            live: 1,
            ..ChildPointer::default()
        };
        let empty = ChildPointer {
            max_stamp: Stamp(4),
            ..ChildPointer::default()
        };
        assert!(check(true, &whole) && check(true, &empty));
        for is_strong in [true, false] {
            let filled = ChildPointer {
                live: 0,
                is_strong,
                ..whole
            };
            assert!(!check(true, &filled), "{filled:?}");
        }
        let emptied = ChildPointer {
            vaddr: VAddr::NONE,
            ..whole
        };
        assert!(!check(true, &emptied));
        assert!(check(false, &emptied));
    }
}
