//! Log records: header pages that describe entries of many volumes, then payload pages.

use super::codec::{FormatError, Reader, Writer};
use super::{PAGE, PAGE_U64};
use bytes::Bytes;
use esker_base::checksum::crc32;
use esker_base::{GroupId, RaftIndex, ReplicaId, Seq, StoreId, Term, WallClock};
use xxhash_rust::xxh3::xxh3_64;

/// First four bytes of a record.
pub const MAGIC: u32 = 0x4b52_5345; // "ESRK" in memory order
/// Version of the structure.
pub const VERSION: u16 = 1;
/// Bytes of the fixed head; items follow.
pub const HEAD_BYTES: usize = 128;
/// Bytes of an item's head.
pub const ITEM_HEAD_BYTES: usize = 24;
/// Bytes of an entry item between its head and its data.
pub const ENTRY_BYTES: usize = 32;
/// Most header pages of a record.
pub const HEADER_PAGES_MAX: usize = 16;
/// Most payload pages of a record (1 MiB).
pub const PAYLOAD_PAGES_MAX: usize = 256;
/// Bytes of items that fit the most header pages.
pub const ITEMS_BYTES_MAX: usize = HEADER_PAGES_MAX * PAGE - HEAD_BYTES;

/// Flag: written when the store fell idle, only to carry `durable_seq`.
pub const FLAG_CLOSING: u32 = 1;

/// What Raft must remember of a group besides its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// Current term.
    pub term: Term,
    /// Whom this replica voted for in it; zero for nobody.
    pub vote: ReplicaId,
    /// Highest index known committed.
    pub commit: RaftIndex,
}

/// Kind of a Raft entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// An operation, or nothing (a new leader's first entry).
    Normal = 1,
    /// A membership change in raft's first form.
    ConfChange = 2,
    /// A membership change in raft's second form.
    ConfChangeV2 = 3,
}

/// One thing a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ItemBody {
    /// An entry of a group's Raft log. An index that exists already cuts the log from there on.
    Entry {
        /// Raft's term.
        term: Term,
        /// Raft's index.
        index: RaftIndex,
        /// Kind.
        kind: EntryKind,
        /// First payload page, counted from the first payload page of the record.
        payload_page: u32,
        /// Number of payload pages.
        payload_pages: u32,
        /// An encoded [`super::operation::Operation`], a membership change, or empty.
        data: Bytes,
    },
    /// A group's hard state.
    HardState(HardState),
    /// The group begins to exist in this store. Carries an encoded
    /// [`super::checkpoint::GroupMeta`].
    GroupCreate(Bytes),
    /// The group's replica leaves this store; everything of it dies.
    GroupDelete,
    /// The volume has a new name.
    Rename(Bytes),
    /// An operator accepted that entries were lost; the group goes on from what is there.
    AcceptLoss,
    /// A replica that was suspended has caught up with a leader elected without it.
    Resume,
    /// The group begins to exist as a clone: an entry of its origin's log, which that had applied, says
    /// what it is.
    GroupClone {
        /// The group it began from.
        origin: GroupId,
        /// The entry.
        entry: RaftIndex,
    },
}

/// An item: whose, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The group.
    pub group: GroupId,
    /// Seq of the last record before this one that said anything about the group; zero for none.
    /// It lets recovery tell which groups a lost record can have held entries of.
    pub group_prev_seq: Seq,
    /// What is said.
    pub body: ItemBody,
}

/// The header of a record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordHeader {
    /// Number of header pages.
    pub header_pages: u16,
    /// Number of payload pages.
    pub payload_pages: u32,
    /// The store.
    pub store: StoreId,
    /// Generation of the segment.
    pub generation: u64,
    /// Where the record lies: segment.
    pub segment: u32,
    /// Where the record lies: slot of its first header page.
    pub slot: u32,
    /// Position in the log.
    pub seq: Seq,
    /// Hash of the previous record's header pages; zero for the first of a store.
    pub prev_hash: u64,
    /// Highest seq known durable when this record was written.
    pub durable_seq: Seq,
    /// Wall clock when it was written.
    pub wall: WallClock,
    /// [`FLAG_CLOSING`].
    pub flags: u32,
    /// Segment that follows once this one is full.
    pub next_segment: u32,
    /// Generation it will have.
    pub next_generation: u64,
}

const TAG_ENTRY: u8 = 1;
const TAG_HARD_STATE: u8 = 2;
const TAG_GROUP_CREATE: u8 = 3;
const TAG_GROUP_DELETE: u8 = 4;
const TAG_RENAME: u8 = 5;
const TAG_ACCEPT_LOSS: u8 = 6;
const TAG_RESUME: u8 = 7;
const TAG_GROUP_CLONE: u8 = 8;

impl Item {
    /// Encoded length in bytes, a multiple of 8.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let body = match &self.body {
            ItemBody::Entry { data, .. } => ENTRY_BYTES + data.len(),
            ItemBody::HardState(_) => 24,
            ItemBody::GroupClone { .. } => 16,
            ItemBody::GroupCreate(bytes) | ItemBody::Rename(bytes) => 4 + bytes.len(),
            ItemBody::GroupDelete | ItemBody::AcceptLoss | ItemBody::Resume => 0,
        };
        (ITEM_HEAD_BYTES + body).next_multiple_of(8)
    }

    /// Appends the item.
    pub fn encode(&self, w: &mut Writer) {
        let start = w.bytes.len();
        let length = self.encoded_len();
        w.u8(match &self.body {
            ItemBody::Entry { .. } => TAG_ENTRY,
            ItemBody::HardState(_) => TAG_HARD_STATE,
            ItemBody::GroupCreate(_) => TAG_GROUP_CREATE,
            ItemBody::GroupDelete => TAG_GROUP_DELETE,
            ItemBody::Rename(_) => TAG_RENAME,
            ItemBody::AcceptLoss => TAG_ACCEPT_LOSS,
            ItemBody::Resume => TAG_RESUME,
            ItemBody::GroupClone { .. } => TAG_GROUP_CLONE,
        });
        w.zeros(3);
        w.u32(u32::try_from(length).unwrap_or(u32::MAX));
        w.u64(self.group.0);
        w.u64(self.group_prev_seq.0);
        match &self.body {
            ItemBody::Entry {
                term,
                index,
                kind,
                payload_page,
                payload_pages,
                data,
            } => {
                w.u64(term.0);
                w.u64(index.0);
                w.u8(*kind as u8);
                w.zeros(3);
                w.u32(*payload_page);
                w.u32(*payload_pages);
                w.bytes32(data);
            }
            ItemBody::HardState(hs) => encode_hard_state(w, hs),
            ItemBody::GroupCreate(bytes) | ItemBody::Rename(bytes) => w.bytes32(bytes),
            ItemBody::GroupClone { origin, entry } => {
                w.u64(origin.0);
                w.u64(entry.0);
            }
            ItemBody::GroupDelete | ItemBody::AcceptLoss | ItemBody::Resume => {}
        }
        w.zeros(start + length - w.bytes.len());
    }

    /// Takes one item off `r`.
    ///
    /// # Errors
    /// On anything that `encode` does not produce.
    pub fn decode(r: &mut Reader<'_>) -> Result<Self, FormatError> {
        let tag = r.u8()?;
        r.zeros(3)?;
        let length = r.u32()? as usize;
        let Some(rest) = length.checked_sub(8) else {
            return Err(r.error("item is too short"));
        };
        let mut body = Reader::new("record item", r.raw(rest)?);
        let group = GroupId(body.u64()?);
        let group_prev_seq = Seq(body.u64()?);
        let content = match tag {
            TAG_ENTRY => decode_entry(&mut body)?,
            TAG_HARD_STATE => ItemBody::HardState(decode_hard_state(&mut body)?),
            TAG_GROUP_CREATE => ItemBody::GroupCreate(Bytes::copy_from_slice(body.bytes32()?)),
            TAG_GROUP_DELETE => ItemBody::GroupDelete,
            TAG_RENAME => ItemBody::Rename(Bytes::copy_from_slice(body.bytes32()?)),
            TAG_ACCEPT_LOSS => ItemBody::AcceptLoss,
            TAG_RESUME => ItemBody::Resume,
            TAG_GROUP_CLONE => ItemBody::GroupClone {
                origin: GroupId(body.u64()?),
                entry: RaftIndex(body.u64()?),
            },
            _ => return Err(body.error("has an unknown tag")),
        };
        if body.remaining() >= 8 {
            return Err(body.error("is longer than its content"));
        }
        body.zeros(body.remaining())?;
        Ok(Self {
            group,
            group_prev_seq,
            body: content,
        })
    }
}

fn decode_entry(r: &mut Reader<'_>) -> Result<ItemBody, FormatError> {
    let term = Term(r.u64()?);
    let index = RaftIndex(r.u64()?);
    let kind = decode_entry_kind(r)?;
    r.zeros(3)?;
    Ok(ItemBody::Entry {
        term,
        index,
        kind,
        payload_page: r.u32()?,
        payload_pages: r.u32()?,
        data: Bytes::copy_from_slice(r.bytes32()?),
    })
}

/// Takes an entry's kind.
///
/// # Errors
/// On an unknown kind.
pub fn decode_entry_kind(r: &mut Reader<'_>) -> Result<EntryKind, FormatError> {
    match r.u8()? {
        1 => Ok(EntryKind::Normal),
        2 => Ok(EntryKind::ConfChange),
        3 => Ok(EntryKind::ConfChangeV2),
        _ => Err(r.error("entry has an unknown kind")),
    }
}

/// Appends a hard state.
pub fn encode_hard_state(w: &mut Writer, hs: &HardState) {
    w.u64(hs.term.0);
    w.u64(hs.vote.0);
    w.u64(hs.commit.0);
}

/// Takes a hard state.
///
/// # Errors
/// When the bytes end early.
pub fn decode_hard_state(r: &mut Reader<'_>) -> Result<HardState, FormatError> {
    Ok(HardState {
        term: Term(r.u64()?),
        vote: ReplicaId(r.u64()?),
        commit: RaftIndex(r.u64()?),
    })
}

impl RecordHeader {
    /// Length of the record in pages.
    #[must_use]
    pub fn pages(&self) -> u32 {
        u32::from(self.header_pages) + self.payload_pages
    }

    /// The header pages with these encoded items; `self.header_pages` must hold them. Returns the
    /// bytes and their hash, which the next record carries.
    ///
    /// # Panics
    /// When the items do not fit.
    #[must_use]
    pub fn encode(&self, item_count: u32, items: &[u8]) -> (Vec<u8>, u64) {
        let size = usize::from(self.header_pages) * PAGE;
        assert!(
            HEAD_BYTES + items.len() <= size,
            "items exceed the header pages"
        );
        let mut w = Writer {
            bytes: Vec::with_capacity(size),
        };
        w.u32(MAGIC);
        w.u16(VERSION);
        w.u16(self.header_pages);
        w.u32(0); // crc, patched below
        w.u32(self.payload_pages);
        w.u128(self.store.0);
        w.u64(self.generation);
        w.u64(self.seq.0);
        w.u64(self.prev_hash);
        w.u64(self.durable_seq.0);
        w.u64(self.wall.0);
        w.u32(item_count);
        w.u32(u32::try_from(items.len()).unwrap_or(u32::MAX));
        w.u32(self.segment);
        w.u32(self.slot);
        w.u32(self.flags);
        w.u32(self.next_segment);
        w.u64(self.next_generation);
        w.zeros(HEAD_BYTES - w.bytes.len());
        w.raw(items);
        w.zeros(size - w.bytes.len());
        let crc = crc32(&w.bytes);
        w.patch_u32(8, crc);
        let hash = xxh3_64(&w.bytes);
        (w.bytes, hash)
    }

    /// Decodes the header that starts at `bytes[0]`; more bytes than the header has may follow.
    /// Returns the header, its items and its hash.
    ///
    /// # Errors
    /// On anything that `encode` does not produce: wrong magic, length, checksum or item.
    pub fn decode(bytes: &[u8]) -> Result<(Self, Vec<Item>, u64), FormatError> {
        let mut r = Reader::new("record", bytes);
        if r.u32()? != MAGIC {
            return Err(r.error("has no magic"));
        }
        let version = r.u16()?;
        let header_pages = r.u16()?;
        let size = usize::from(header_pages) * PAGE;
        if header_pages == 0 || usize::from(header_pages) > HEADER_PAGES_MAX || size > bytes.len() {
            return Err(r.error("header length is out of range"));
        }
        let bytes = &bytes[..size];
        let crc = r.u32()?;
        if crc_without_crc(bytes) != crc {
            return Err(r.error("header checksum does not match"));
        }
        if version != VERSION {
            return Err(r.error("was written by a newer version of Esker"));
        }
        let payload_pages = r.u32()?;
        let store = StoreId(r.u128()?);
        let (generation, seq) = (r.u64()?, Seq(r.u64()?));
        let (prev_hash, durable_seq, wall) = (r.u64()?, Seq(r.u64()?), WallClock(r.u64()?));
        let (item_count, items_length) = (r.u32()?, r.u32()? as usize);
        let (segment, slot, flags) = (r.u32()?, r.u32()?, r.u32()?);
        let (next_segment, next_generation) = (r.u32()?, r.u64()?);
        let mut r = Reader::new("record", &bytes[HEAD_BYTES - 24..]);
        r.zeros(24)?;
        let mut items_reader = Reader::new("record", r.raw(items_length)?);
        r.zeros(r.remaining())?;
        if payload_pages as usize > PAYLOAD_PAGES_MAX
            || item_count as usize > items_length / ITEM_HEAD_BYTES
        {
            return Err(r.error("counts are out of range"));
        }
        let mut items = Vec::with_capacity(item_count as usize);
        for _ in 0..item_count {
            items.push(Item::decode(&mut items_reader)?);
        }
        items_reader.finish()?;
        let header = Self {
            header_pages,
            payload_pages,
            store,
            generation,
            segment,
            slot,
            seq,
            prev_hash,
            durable_seq,
            wall,
            flags,
            next_segment,
            next_generation,
        };
        Ok((header, items, xxh3_64(bytes)))
    }
}

fn crc_without_crc(bytes: &[u8]) -> u32 {
    esker_base::checksum::crc32_of(&[&bytes[..8], &[0; 4], &bytes[12..]])
}

/// Number of header pages that hold `items_bytes` bytes of items.
#[must_use]
pub fn header_pages_for(items_bytes: usize) -> usize {
    (HEAD_BYTES + items_bytes).div_ceil(PAGE)
}

/// Byte length of a record with this many pages.
#[must_use]
pub const fn pages_bytes(pages: u32) -> u64 {
    pages as u64 * PAGE_U64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (RecordHeader, Vec<Item>) {
        let item = |body| Item {
            group: GroupId(1),
            group_prev_seq: Seq(2),
            body,
        };
        let items = vec![
            item(ItemBody::Entry {
                term: Term(3),
                index: RaftIndex(4),
                kind: EntryKind::Normal,
                payload_page: 0,
                payload_pages: 1,
                data: Bytes::from_static(b"abc"),
            }),
            item(ItemBody::HardState(HardState {
                term: Term(1),
                vote: ReplicaId(2),
                commit: RaftIndex(3),
            })),
            item(ItemBody::GroupCreate(Bytes::from_static(b"meta!"))),
            item(ItemBody::GroupDelete),
            item(ItemBody::Rename(Bytes::from_static(b"name"))),
            item(ItemBody::AcceptLoss),
            item(ItemBody::Resume),
            item(ItemBody::GroupClone {
                origin: GroupId(9),
                entry: RaftIndex(10),
            }),
        ];
        let header = RecordHeader {
            header_pages: 1,
            payload_pages: 1,
            store: StoreId(1),
            generation: 2,
            segment: 3,
            slot: 4,
            seq: Seq(5),
            prev_hash: 6,
            durable_seq: Seq(4),
            wall: WallClock(7),
            flags: FLAG_CLOSING,
            next_segment: 8,
            next_generation: 9,
        };
        (header, items)
    }

    fn encode(header: &RecordHeader, items: &[Item]) -> (Vec<u8>, u64) {
        let mut w = Writer::new();
        for item in items {
            let before = w.bytes.len();
            item.encode(&mut w);
            assert_eq!(w.bytes.len() - before, item.encoded_len());
        }
        header.encode(u32::try_from(items.len()).expect("few"), &w.bytes)
    }

    #[test]
    fn comes_back_and_every_flipped_bit_is_refused() {
        let (header, items) = sample();
        let (bytes, hash) = encode(&header, &items);
        assert_eq!(RecordHeader::decode(&bytes), Ok((header, items, hash)));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(RecordHeader::decode(&bad).is_err(), "bit {bit}");
        }
    }
}
