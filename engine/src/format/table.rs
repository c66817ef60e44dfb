//! Pages of tables: records in the order of their keys, and pointers to such pages.

use super::codec::{FormatError, Reader, Writer};
use super::vaddr::{VAddr, SLOT_BITS};
use super::PAGE;
use esker_base::checksum::crc32;
use esker_base::StoreId;
use std::ops::Range;

/// First four bytes.
pub const MAGIC: [u8; 4] = *b"ESTB";
/// Version of the structure.
pub const VERSION: u16 = 1;
/// Bytes before the records.
pub const HEAD_BYTES: usize = 64;
/// Bytes of records that fit a page.
pub const CONTENT_MAX: usize = PAGE - HEAD_BYTES;
/// Bytes that a record takes besides its own at most: its key, its length.
pub const RECORD_OVERHEAD_MAX: usize = 19 + 2;
/// Longest record.
pub const RECORD_MAX: usize = CONTENT_MAX - RECORD_OVERHEAD_MAX;
/// Most levels of a table.
pub const LEVELS_MAX: u8 = 6;
const CRC_AT: usize = 56;

/// What orders the records of a table.
pub type Key = u128;

/// Which table a page belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum TableId {
    /// Every segment that was ever used, by number.
    Segments = 1,
    /// Pieces with live slots, by the address of their first slot.
    Pieces = 2,
    /// Slots that died since the page of their piece was written, by checkpoint.
    Deaths = 3,
    /// Versions of volumes, by number.
    Versions = 4,
    /// What deadlists hold, by list.
    Deadlists = 5,
}

impl TableId {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 5] = [
        Self::Segments,
        Self::Pieces,
        Self::Deaths,
        Self::Versions,
        Self::Deadlists,
    ];

    /// By its number.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|id| *id as u16 == number)
    }
}

/// Where a page is: a virtual address, or a slot of a segment as such. Zero is nowhere. Which of the
/// two it is depends on the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(pub u64);

impl Place {
    /// Nowhere.
    pub const NONE: Self = Self(0);

    /// A slot of a physical segment.
    #[must_use]
    pub const fn physical(segment: u32, slot: u32) -> Self {
        Self((segment as u64 + 1) << SLOT_BITS | slot as u64)
    }

    /// Segment and slot of a physical place; none for nowhere.
    #[must_use]
    pub fn segment_slot(self) -> Option<(u32, u32)> {
        let segment = u32::try_from((self.0 >> SLOT_BITS).checked_sub(1)?).ok()?;
        Some((segment, VAddr(self.0).slot()))
    }

    /// A virtual address.
    #[must_use]
    pub const fn virtual_at(vaddr: VAddr) -> Self {
        Self(vaddr.0)
    }

    /// The virtual address.
    #[must_use]
    pub const fn vaddr(self) -> VAddr {
        VAddr(self.0)
    }
}

/// A page as its directory names it: the checksum lies with the pointer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PagePointer {
    /// Where its copies are; the second may be nowhere.
    pub places: [Place; 2],
    /// CRC-32 of the page.
    pub crc: u32,
}

/// Bytes of a pointer.
pub const POINTER_BYTES: usize = 20;

impl PagePointer {
    /// The pointer as bytes.
    pub fn encode(&self, w: &mut Writer) {
        w.u64(self.places[0].0);
        w.u64(self.places[1].0);
        w.u32(self.crc);
    }

    /// Decodes a pointer.
    ///
    /// # Errors
    /// When it ends early or names no place.
    pub fn decode(r: &mut Reader<'_>) -> Result<Self, FormatError> {
        let places = [Place(r.u64()?), Place(r.u64()?)];
        let crc = r.u32()?;
        if places[0] == Place::NONE || places[0] == places[1] {
            return Err(r.error("pointer to a page of a table names no place"));
        }
        Ok(Self { places, crc })
    }
}

/// The top of a table: the pages of its highest level, as a checkpoint names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableRoot {
    /// Which table.
    pub table: TableId,
    /// Level of these pages: 0 holds records, a higher one pointers to pages of the level below.
    pub level: u8,
    /// First key and pointer of each page.
    pub pages: Vec<(Key, PagePointer)>,
}

impl TableRoot {
    /// The root as bytes.
    pub fn encode(&self, w: &mut Writer) {
        w.u16(self.table as u16);
        w.u8(self.level);
        w.u8(0);
        w.u32(u32::try_from(self.pages.len()).unwrap_or(u32::MAX));
        for (key, pointer) in &self.pages {
            w.u128(*key);
            pointer.encode(w);
        }
    }

    /// Decodes a root.
    ///
    /// # Errors
    /// On anything that `encode` does not produce, and keys out of order.
    pub fn decode(r: &mut Reader<'_>) -> Result<Self, FormatError> {
        let Some(table) = TableId::from_number(r.u16()?) else {
            return Err(r.error("names an unknown table"));
        };
        let level = r.u8()?;
        r.zeros(1)?;
        if level >= LEVELS_MAX {
            return Err(r.error("table has too many levels"));
        }
        let mut pages: Vec<(Key, PagePointer)> = Vec::new();
        for _ in 0..r.count32(16 + POINTER_BYTES)? {
            let key = r.u128()?;
            if pages.last().is_some_and(|(last, _)| *last >= key) {
                return Err(r.error("pages of a table are out of order"));
            }
            pages.push((key, PagePointer::decode(r)?));
        }
        Ok(Self {
            table,
            level,
            pages,
        })
    }
}

/// What a page says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHead {
    /// Table it belongs to.
    pub table: TableId,
    /// 0 holds records, a higher level pointers.
    pub level: u8,
    /// The store.
    pub store: StoreId,
    /// Number of the checkpoint that wrote it.
    pub sequence: u64,
    /// Where its range of keys begins: no record is before.
    pub first_key: Key,
}

/// A page being filled.
#[derive(Debug)]
pub struct PageBuilder {
    w: Writer,
    last: Key,
    count: u16,
    limit: usize,
}

impl PageBuilder {
    /// An empty page that takes up to `content_max` bytes of records, and one record in any case.
    #[must_use]
    pub fn new(head: &PageHead, content_max: usize) -> Self {
        let mut w = Writer::new();
        w.raw(&MAGIC);
        w.u16(VERSION);
        w.u16(head.table as u16);
        w.u128(head.store.0);
        w.u64(head.sequence);
        w.u128(head.first_key);
        w.u8(head.level);
        w.zeros(1);
        w.u16(0); // count
        w.u32(0); // length
        w.u32(0); // crc
        w.zeros(HEAD_BYTES - w.bytes.len());
        Self {
            w,
            last: head.first_key,
            count: 0,
            limit: HEAD_BYTES + content_max.min(CONTENT_MAX),
        }
    }

    /// Bytes of records so far.
    #[must_use]
    pub fn length(&self) -> usize {
        self.w.bytes.len() - HEAD_BYTES
    }

    /// Whether it holds no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds a record; false when it does not fit. Keys rise, and are not below the page's first.
    ///
    /// # Panics
    /// When keys do not rise, or a record is longer than [`RECORD_MAX`].
    pub fn push(&mut self, key: Key, record: &[u8]) -> bool {
        assert!(record.len() <= RECORD_MAX, "record of a table is too long");
        assert!(
            key > self.last || self.is_empty() && key == self.last,
            "records of a table are out of order"
        );
        let before = self.w.bytes.len();
        varint(&mut self.w, key - self.last);
        varint(&mut self.w, record.len() as u128);
        self.w.raw(record);
        if self.count > 0 && (self.w.bytes.len() > self.limit || self.count == u16::MAX) {
            self.w.bytes.truncate(before);
            return false;
        }
        self.last = key;
        self.count += 1;
        true
    }

    /// The page, with its own checksum in its head: that serves who moves pages without following
    /// pointers.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.length()).unwrap_or(u32::MAX);
        self.w.bytes[50..52].copy_from_slice(&self.count.to_le_bytes());
        self.w.patch_u32(52, length);
        self.w.zeros(PAGE - self.w.bytes.len());
        let crc = crc32(&self.w.bytes);
        self.w.patch_u32(CRC_AT, crc);
        self.w.bytes
    }
}

/// A page as it is read: its head, and keys with the places of their records in the page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodedPage {
    /// Its head.
    pub head: PageHead,
    /// Keys, rising, and where in the page their records are.
    pub records: Vec<(Key, Range<usize>)>,
}

/// Decodes a page.
///
/// # Errors
/// On anything that [`PageBuilder`] does not produce.
pub fn decode(bytes: &[u8]) -> Result<DecodedPage, FormatError> {
    let mut r = Reader::new("page of a table", bytes);
    if bytes.len() != PAGE {
        return Err(r.error("is not one page"));
    }
    if r.raw(4)? != MAGIC {
        return Err(r.error("has no magic"));
    }
    r.version(u32::from(VERSION), u32::from(r.clone().u16()?))?;
    r.u16()?;
    let Some(table) = TableId::from_number(r.u16()?) else {
        return Err(r.error("belongs to an unknown table"));
    };
    let store = StoreId(r.u128()?);
    let sequence = r.u64()?;
    let first_key = r.u128()?;
    let level = r.u8()?;
    r.zeros(1)?;
    let count = r.u16()?;
    let length = r.u32()? as usize;
    let crc = r.u32()?;
    r.zeros(HEAD_BYTES - (PAGE - r.remaining()))?;
    if own_crc(bytes) != crc {
        return Err(r.error("checksum does not match"));
    }
    if level >= LEVELS_MAX || length > CONTENT_MAX {
        return Err(r.error("level or length is out of range"));
    }
    let mut content = Reader::new("page of a table", r.raw(length)?);
    r.zeros(r.remaining())?;
    let mut records = Vec::with_capacity(usize::from(count));
    let mut last = first_key;
    for n in 0..count {
        let delta = read_varint(&mut content)?;
        let key = last.checked_add(delta).filter(|_| n == 0 || delta > 0);
        let Some(key) = key else {
            return Err(content.error("records are out of order"));
        };
        let bytes_long = read_varint(&mut content)?;
        let long = usize::try_from(bytes_long)
            .ok()
            .filter(|l| *l <= RECORD_MAX);
        let Some(long) = long else {
            return Err(content.error("record is too long"));
        };
        let start = HEAD_BYTES + length - content.remaining();
        content.raw(long)?;
        records.push((key, start..start + long));
        last = key;
    }
    content.finish()?;
    Ok(DecodedPage {
        head: PageHead {
            table,
            level,
            store,
            sequence,
            first_key,
        },
        records,
    })
}

fn own_crc(bytes: &[u8]) -> u32 {
    let mut blank = bytes.to_vec();
    blank[CRC_AT..CRC_AT + 4].fill(0);
    crc32(&blank)
}

/// Whether a page is a page of a table as it was written.
#[must_use]
pub fn is_whole(bytes: &[u8]) -> bool {
    bytes.len() == PAGE
        && bytes.starts_with(&MAGIC)
        && bytes[CRC_AT..CRC_AT + 4] == own_crc(bytes).to_le_bytes()
}

/// Appends an unsigned number, seven bits to a byte, the lowest first.
pub fn varint(w: &mut Writer, mut value: u128) {
    while value >= 0x80 {
        w.bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    w.bytes.push((value & 0x7f) as u8);
}

/// Takes such a number.
///
/// # Errors
/// When it is cut short, too large, or not coded as shortly as it can be.
pub fn read_varint(r: &mut Reader<'_>) -> Result<u128, FormatError> {
    let mut value: u128 = 0;
    for n in 0..19 {
        let byte = r.u8()?;
        let part = u128::from(byte & 0x7f);
        if n == 18 && part > 3 || n > 0 && byte == 0 {
            break;
        }
        value |= part << (7 * n);
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(r.error("number is malformed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> PageHead {
        PageHead {
            table: TableId::Pieces,
            level: 1,
            store: StoreId(3),
            sequence: 4,
            first_key: 5,
        }
    }

    #[test]
    fn a_page_comes_back_and_every_flipped_bit_is_refused() {
        let mut page = PageBuilder::new(&head(), CONTENT_MAX);
        let records = [(5, &b"five"[..]), (6, b""), (u128::MAX, b"last")];
        for (key, record) in records {
            assert!(page.push(key, record));
        }
        let bytes = page.finish();
        assert!(is_whole(&bytes));
        let decoded = decode(&bytes).expect("decodes");
        assert_eq!(decoded.head, head());
        let found = decoded.records.iter();
        let found: Vec<_> = found.map(|(k, at)| (*k, &bytes[at.clone()])).collect();
        assert_eq!(found, records);
        for bit in 0..PAGE * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad).is_err() && !is_whole(&bad), "bit {bit}");
        }
    }

    #[test]
    fn a_page_takes_what_fits_and_one_record_in_any_case() {
        let mut page = PageBuilder::new(&head(), 10);
        assert!(page.push(5, &[1; 100]));
        assert!(!page.push(6, &[1]));
        let mut page = PageBuilder::new(&head(), CONTENT_MAX);
        assert!(page.push(u128::MAX - 1, &[7; RECORD_MAX]));
        assert!(!page.push(u128::MAX, &[7]));
        let bytes = page.finish();
        assert_eq!(decode(&bytes).expect("decodes").records.len(), 1);
    }

    #[test]
    fn numbers_have_one_coding() {
        for value in [0, 1, 127, 128, 300, u128::from(u64::MAX), u128::MAX] {
            let mut w = Writer::new();
            varint(&mut w, value);
            assert_eq!(read_varint(&mut Reader::new("test", &w.bytes)), Ok(value));
        }
        for bad in [&[0x80, 0][..], &[0x80], &[0xff; 19]] {
            assert!(read_varint(&mut Reader::new("test", bad)).is_err());
        }
    }
}
