//! The key slots of a store: where wrapped keys lie, overwritten in place, so that a key that was
//! destroyed is nowhere else on the device.
//!
//! The area is 1 MiB of 256 pages. 1024 slots of 512 bytes lie in the first 128 pages, eight to a page,
//! and once more in the second 128. A slot is free (both copies zero or destroyed) or holds a key.
//!
//! docs/format.md draws a slot.
//!
//! **A change** is two page writes: first the page of copies 0, then, once that is synced, the page of
//! copies 1, and a sync. Its effect counts from the second sync on. One change at a time.
//!
//! **Opening** takes of each slot the valid copy with the higher sequence. After a change that was
//! interrupted this is the state before or after it, and nothing else. A slot whose copies differ is
//! mended: both get what counts. A key that was being destroyed is destroyed if the first page got
//! there: what says so has a higher sequence than the key.

use crate::wrap::{KeyId, WrapFormatError, WrappedKey, WRAPPED_BYTES_MAX};
use esker_base::checksum::crc32;
use esker_base::{AlignedBuf, StoreId, VolumeId, BLOCK_SIZE};
use thiserror::Error;

/// Bytes of the area on the device.
pub const AREA_BYTES: usize = 1 << 20;
/// Bytes of a slot.
pub const SLOT_BYTES: usize = 512;
/// Slots of a store: keys that its volumes, snapshots and clones may have together.
pub const SLOTS_MAX: usize = PAIRS * SLOTS_PER_PAGE;

const SLOTS_PER_PAGE: usize = BLOCK_SIZE / SLOT_BYTES;
const PAIRS: usize = AREA_BYTES / BLOCK_SIZE / 2;
const MAGIC: &[u8; 4] = b"ESKY";
const VERSION: u16 = 1;
const HEAD_BYTES: usize = 40;
/// Far above what changes reach; what claims more was not written by them.
const SEQUENCE_MAX: u64 = u64::MAX >> 1;
const CRC_AT: usize = 8;
const STATE_KEY: u8 = 1;
const STATE_DESTROYED: u8 = 2;

const _: () = assert!(HEAD_BYTES + WRAPPED_BYTES_MAX <= SLOT_BYTES);

/// Why an area is not opened. Nothing may be written to it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SlotsError {
    /// A slot was written by a newer version.
    #[error("the key slots were written by a newer version of Esker ({0}); upgrade this node")]
    Newer(u16),
}

/// One slot of the area.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlotIndex(u16);

/// One page to write.
#[derive(Debug)]
pub struct PageWrite {
    /// Bytes from the beginning of the area.
    pub offset: usize,
    /// The page.
    pub page: AlignedBuf,
}

/// Page writes to carry out in order, with a sync after each; the next change begins after the last.
#[derive(Debug)]
pub struct Overwrite(pub Vec<PageWrite>);

/// What a slot holds, by the copy that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Free,
    Destroyed,
    Key(WrappedKey),
    /// Both copies are damaged: kept as they are, for somebody may know how to read them.
    Lost(Box<[[u8; SLOT_BYTES]; 2]>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Slot {
    sequence: u64,
    state: State,
}

/// One copy of a slot as it was read.
enum Copy {
    Empty,
    Damaged,
    Valid(Slot),
}

/// The key slots of a store, as they are on the device once every change has been carried out. After a
/// write that failed, it must be opened anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotArea {
    store: StoreId,
    slots: Vec<Slot>,
}

/// An area that was read.
#[derive(Debug)]
pub struct Opened {
    /// Its slots.
    pub area: SlotArea,
    /// To be carried out before any change: copies that differ.
    pub mend: Overwrite,
    /// Slots of which both copies are damaged: a key may be lost.
    pub lost: Vec<SlotIndex>,
}

impl SlotArea {
    /// Reads an area. One that was never written is all zeros and holds no key.
    ///
    /// # Errors
    /// When a newer version wrote it.
    ///
    /// # Panics
    /// When `bytes` is not [`AREA_BYTES`] long.
    pub fn open(store: StoreId, bytes: &[u8]) -> Result<Opened, SlotsError> {
        assert_eq!(bytes.len(), AREA_BYTES, "the area is read whole");
        let mut area = Self {
            store,
            slots: Vec::with_capacity(SLOTS_MAX),
        };
        let (mut uneven, mut lost) = ([[false; 2]; PAIRS], Vec::new());
        for index in (0..).map(SlotIndex).take(SLOTS_MAX) {
            let raw = [0, 1].map(|copy| raw_copy(bytes, index, copy));
            let [first, second] = [
                decode(store, index, 0, raw[0])?,
                decode(store, index, 1, raw[1])?,
            ];
            let (slot, stale) = resolve(first, second, raw);
            if matches!(slot.state, State::Lost(_)) {
                lost.push(index);
            }
            for (copy, stale) in stale.into_iter().enumerate() {
                uneven[index.pair()][copy] |= stale;
            }
            area.slots.push(slot);
        }
        let mut mend = Overwrite(Vec::new());
        for (pair, stale) in uneven.into_iter().enumerate() {
            let copies = [0u8, 1].into_iter().zip(stale).filter(|(_, stale)| *stale);
            mend.0.extend(copies.map(|(copy, _)| area.page(pair, copy)));
        }
        Ok(Opened { area, mend, lost })
    }

    /// The keys that are here.
    pub fn keys(&self) -> impl Iterator<Item = (SlotIndex, &WrappedKey)> {
        let slots = (0..).map(SlotIndex).zip(&self.slots);
        slots.filter_map(|(index, slot)| match &slot.state {
            State::Key(key) => Some((index, key)),
            _ => None,
        })
    }

    /// The slot of a key.
    #[must_use]
    pub fn find(&self, volume: VolumeId, key: KeyId) -> Option<SlotIndex> {
        let mut keys = self.keys();
        keys.find(|(_, wrapped)| wrapped.volume() == volume && wrapped.key() == key)
            .map(|(index, _)| index)
    }

    /// Adds a key; none when no slot is free.
    ///
    /// # Panics
    /// When the key is here already: it is replaced instead.
    pub fn add(&mut self, key: WrappedKey) -> Option<(SlotIndex, Overwrite)> {
        assert!(
            self.find(key.volume(), key.key()).is_none(),
            "{key:?} has a slot already"
        );
        let is_free = |slot: &Slot| matches!(slot.state, State::Free | State::Destroyed);
        let place = self.slots.iter().position(is_free)?;
        let index = SlotIndex(u16::try_from(place).ok()?);
        Some((index, self.change(index, State::Key(key))))
    }

    /// Puts another wrapping of the same DEK in the place of the old one, which is gone then.
    ///
    /// # Panics
    /// When the slot holds another key, or none.
    pub fn replace(&mut self, index: SlotIndex, key: WrappedKey) -> Overwrite {
        let name = |key: &WrappedKey| (key.volume(), key.key());
        match &self.slots[index.place()].state {
            State::Key(old) if name(old) == name(&key) => self.change(index, State::Key(key)),
            other => panic!("{key:?} does not replace {other:?}"),
        }
    }

    /// Destroys a key: both copies become zeros but for what says that they were destroyed.
    ///
    /// # Panics
    /// When the slot holds no key.
    pub fn destroy(&mut self, index: SlotIndex) -> Overwrite {
        let state = &self.slots[index.place()].state;
        assert!(matches!(state, State::Key(_)), "no key in {index:?}");
        self.change(index, State::Destroyed)
    }

    fn change(&mut self, index: SlotIndex, state: State) -> Overwrite {
        let slot = &mut self.slots[index.place()];
        slot.sequence += 1;
        slot.state = state;
        let pair = index.pair();
        Overwrite(vec![self.page(pair, 0), self.page(pair, 1)])
    }

    /// A page as it shall be.
    fn page(&self, pair: usize, copy: u8) -> PageWrite {
        let mut page = AlignedBuf::zeroed(BLOCK_SIZE);
        let first = pair * SLOTS_PER_PAGE;
        let slots = &self.slots[first..first + SLOTS_PER_PAGE];
        let indices = (0..).map(SlotIndex).skip(first);
        for ((bytes, slot), index) in page.chunks_mut(SLOT_BYTES).zip(slots).zip(indices) {
            slot.encode(self.store, index, copy, bytes);
        }
        PageWrite {
            offset: (usize::from(copy) * PAIRS + pair) * BLOCK_SIZE,
            page,
        }
    }
}

impl SlotIndex {
    fn place(self) -> usize {
        usize::from(self.0)
    }

    fn pair(self) -> usize {
        self.place() / SLOTS_PER_PAGE
    }
}

impl Slot {
    /// Writes a copy of it into `bytes`, which are zero.
    fn encode(&self, store: StoreId, index: SlotIndex, copy: u8, bytes: &mut [u8]) {
        let (state, key) = match &self.state {
            State::Free => return,
            State::Lost(raw) => return bytes.copy_from_slice(&raw[usize::from(copy)]),
            State::Destroyed => (STATE_DESTROYED, Vec::new()),
            State::Key(key) => (STATE_KEY, key.encode()),
        };
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[6] = state;
        bytes[7] = copy;
        bytes[12..14].copy_from_slice(&index.0.to_le_bytes());
        let length = u16::try_from(key.len()).unwrap_or(u16::MAX); // fits: checked where it is made
        bytes[14..16].copy_from_slice(&length.to_le_bytes());
        bytes[16..32].copy_from_slice(&store.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[HEAD_BYTES..HEAD_BYTES + key.len()].copy_from_slice(&key);
        let crc = crc32(bytes);
        bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    }
}

/// The bytes of a copy of a slot.
fn raw_copy(area: &[u8], index: SlotIndex, copy: usize) -> &[u8; SLOT_BYTES] {
    let at = copy * PAIRS * BLOCK_SIZE + index.place() * SLOT_BYTES;
    match area[at..].first_chunk() {
        Some(bytes) => bytes,
        None => unreachable!("slot {index:?} lies within the area"),
    }
}

fn decode(
    store: StoreId,
    index: SlotIndex,
    copy: u8,
    bytes: &[u8; SLOT_BYTES],
) -> Result<Copy, SlotsError> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(Copy::Empty);
    }
    let number = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let mut sealed = *bytes;
    sealed[CRC_AT..CRC_AT + 4].fill(0);
    if bytes[..4] != *MAGIC || bytes[CRC_AT..CRC_AT + 4] != crc32(&sealed).to_le_bytes() {
        return Ok(Copy::Damaged);
    }
    if number(4) > VERSION {
        return Err(SlotsError::Newer(number(4)));
    }
    let is_here = number(4) == VERSION
        && bytes[7] == copy
        && number(12) == index.0
        && bytes[16..32] == store.0.to_le_bytes();
    let mut sequence = [0; 8];
    sequence.copy_from_slice(&bytes[32..40]);
    let sequence = u64::from_le_bytes(sequence);
    let (content, state) = (&bytes[HEAD_BYTES..], bytes[6]);
    let length = usize::from(number(14));
    if !is_here || !(1..SEQUENCE_MAX).contains(&sequence) || length > content.len() {
        return Ok(Copy::Damaged);
    }
    let (key, rest) = content.split_at(length);
    let is_clean = rest.iter().all(|byte| *byte == 0);
    let state = match (state, WrappedKey::decode(key)) {
        (STATE_DESTROYED, _) if key.is_empty() => State::Destroyed,
        (STATE_KEY, Ok(key)) => State::Key(key),
        (STATE_KEY, Err(WrapFormatError::Version(newer))) if newer > 1 => {
            return Err(SlotsError::Newer(newer));
        }
        _ => return Ok(Copy::Damaged),
    };
    Ok(match is_clean {
        true => Copy::Valid(Slot { sequence, state }),
        false => Copy::Damaged,
    })
}

/// What counts, and which copies do not say it.
fn resolve(first: Copy, second: Copy, raw: [&[u8; SLOT_BYTES]; 2]) -> (Slot, [bool; 2]) {
    let free = Slot {
        sequence: 0,
        state: State::Free,
    };
    let lost = || Slot {
        sequence: 0,
        state: State::Lost(Box::new([*raw[0], *raw[1]])),
    };
    match (first, second) {
        (Copy::Valid(a), Copy::Valid(b)) if a == b => (a, [false, false]),
        (Copy::Valid(a), Copy::Valid(b)) if a.sequence > b.sequence => (a, [false, true]),
        (Copy::Valid(a), Copy::Valid(b)) if a.sequence < b.sequence => (b, [true, false]),
        (Copy::Valid(_), Copy::Valid(_)) => (lost(), [false, false]), // no change leads here
        (Copy::Valid(a), _) => (a, [false, true]),
        (_, Copy::Valid(b)) => (b, [true, false]),
        (Copy::Damaged, Copy::Damaged) => (lost(), [false, false]),
        // The slot's first key was on its way; or both copies are gone.
        (Copy::Damaged, Copy::Empty) => (free, [true, false]),
        (Copy::Empty, Copy::Damaged) => (free, [false, true]),
        (Copy::Empty, Copy::Empty) => (free, [false, false]),
    }
}

#[cfg(test)]
#[path = "slots_tests.rs"]
mod tests;
