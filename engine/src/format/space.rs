//! Records of the tables that describe space: segments, pieces, and slots that died.

use super::codec::{FormatError, Reader, Writer};
use super::table::{read_varint, varint, Key};
use super::vaddr::{VAddr, SLOT_BITS};
use crate::space::live::Live;
pub use crate::space::piece::Kept;
use crate::space::piece::GAPPED_SPAN_MAX;

/// What a segment is used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SegmentKind {
    /// Nothing: can be opened.
    #[default]
    Free = 0,
    /// Records of the log.
    Log = 1,
    /// Map nodes, pages of tables and checkpoints.
    Map = 2,
    /// Survivors of garbage collection.
    Survivors = 3,
}

/// One segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentEntry {
    /// Use.
    pub kind: SegmentKind,
    /// Generation; of its last use when free.
    pub generation: u64,
    /// Slots written so far.
    pub written: u32,
}

/// A run of virtual slots at one place, with live ones among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PieceEntry {
    /// Which slots are there, counted from the first.
    pub kept: Kept,
    /// Physical segment.
    pub segment: u32,
    /// Slot of the first one there.
    pub base: u32,
    /// Which of the kept ones are live, by rank.
    pub live: Live,
}

/// Slots in a segment: what the codings below can count.
const SLOTS_MAX: usize = 1 << SLOT_BITS;
/// Bytes of a record of deaths beyond which the next one begins.
pub const DEATHS_BYTES_MAX: usize = 1000;

const CODING_ALL: u8 = 1;
const CODING_LIST: u8 = 2;
const CODING_BITS: u8 = 3;
const CODING_LACKS: u8 = 4;

fn number<T: TryFrom<u128>>(r: &mut Reader<'_>) -> Result<T, FormatError> {
    let value = read_varint(r)?;
    T::try_from(value).map_err(|_| r.error("number is out of range"))
}

impl SegmentEntry {
    /// The record.
    pub fn encode(&self, w: &mut Writer) {
        w.u8(self.kind as u8);
        varint(w, self.written.into());
        varint(w, self.generation.into());
    }

    /// Decodes the record.
    ///
    /// # Errors
    /// On anything that `encode` does not produce.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new("segment in a table", bytes);
        let kind = match r.u8()? {
            0 => SegmentKind::Free,
            1 => SegmentKind::Log,
            2 => SegmentKind::Map,
            3 => SegmentKind::Survivors,
            _ => return Err(r.error("has an unknown kind")),
        };
        let (written, generation) = (number(&mut r)?, number(&mut r)?);
        r.finish()?;
        Ok(Self {
            kind,
            generation,
            written,
        })
    }
}

/// Sorted numbers as their distances.
fn encode_list(w: &mut Writer, list: &[u16]) {
    let mut next = 0;
    for rank in list {
        varint(w, u128::from(*rank) - next);
        next = u128::from(*rank) + 1;
    }
}

fn decode_list(r: &mut Reader<'_>, count: usize) -> Result<Vec<u16>, FormatError> {
    if count > r.remaining() {
        return Err(r.error("list is longer than its record"));
    }
    let mut list = Vec::with_capacity(count);
    let mut next: u128 = 0;
    for _ in 0..count {
        let value = next + u128::from(number::<u16>(r)?);
        let short = u16::try_from(value)
            .ok()
            .filter(|_| value < SLOTS_MAX as u128);
        let Some(short) = short else {
            return Err(r.error("slot is out of range"));
        };
        list.push(short);
        next = value + 1;
    }
    Ok(list)
}

fn decode_words(r: &mut Reader<'_>, count: usize) -> Result<Vec<u64>, FormatError> {
    if count * 8 > r.remaining() {
        return Err(r.error("bits are longer than their record"));
    }
    (0..count).map(|_| r.u64()).collect()
}

impl PieceEntry {
    /// The record; its key is the address of the first slot.
    pub fn encode(&self, w: &mut Writer) {
        let count = self.kept.count();
        let dead = count - self.live.count();
        let live_coding = match (self.live.count(), dead) {
            (_, 0) => CODING_ALL,
            (live, dead) if live <= dead && live * 9 <= count => CODING_LIST,
            (live, dead) if live > dead && dead * 9 <= count => CODING_LACKS,
            _ => CODING_BITS,
        };
        w.u8(match &self.kept {
            Kept::All(_) => CODING_ALL,
            Kept::List(_) => CODING_LIST,
            Kept::Bits(..) => CODING_BITS,
        });
        w.u8(live_coding);
        varint(w, self.segment.into());
        varint(w, self.base.into());
        varint(w, count.into());
        match &self.kept {
            Kept::All(_) => {}
            Kept::List(list) => encode_list(w, list),
            Kept::Bits(words, _) => {
                varint(w, words.len() as u128);
                words.iter().for_each(|word| w.u64(*word));
            }
        }
        match live_coding {
            CODING_ALL => {}
            CODING_BITS => self.live.words().iter().for_each(|word| w.u64(*word)),
            _ => {
                let listed = self.live.ranks(live_coding == CODING_LIST);
                varint(w, listed.len() as u128);
                encode_list(w, &listed);
            }
        }
    }

    /// Decodes the record.
    ///
    /// # Errors
    /// On anything that `encode` does not produce.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new("piece in a table", bytes);
        let (kept_coding, live_coding) = (r.u8()?, r.u8()?);
        let (segment, base) = (number(&mut r)?, number(&mut r)?);
        let count: u32 = number(&mut r)?;
        if count == 0 || count as usize > SLOTS_MAX {
            return Err(r.error("has a wrong number of slots"));
        }
        let kept = match kept_coding {
            CODING_ALL => Kept::All(count),
            CODING_LIST => decode_kept_list(&mut r, count)?,
            CODING_BITS => decode_kept_bits(&mut r, count)?,
            _ => return Err(r.error("has an unknown coding")),
        };
        if kept_coding != CODING_ALL && kept.span() > GAPPED_SPAN_MAX {
            return Err(r.error("is too long for one with gaps"));
        }
        let live = match live_coding {
            CODING_ALL => Some(Live::all(count)),
            CODING_LIST | CODING_LACKS => {
                let listed = number(&mut r)?;
                let list = decode_list(&mut r, listed)?;
                Live::from_list(count, live_coding == CODING_LIST, list)
            }
            CODING_BITS => {
                let words = decode_words(&mut r, (count as usize).div_ceil(64))?;
                Live::from_words(count, words)
            }
            _ => return Err(r.error("has an unknown coding")),
        };
        let Some(live) = live else {
            return Err(r.error("has live slots that are not kept"));
        };
        r.finish()?;
        Ok(Self {
            kept,
            segment,
            base,
            live,
        })
    }
}

fn decode_kept_list(r: &mut Reader<'_>, count: u32) -> Result<Kept, FormatError> {
    let list = decode_list(r, count as usize)?;
    if list.first() != Some(&0) {
        return Err(r.error("does not keep its first slot"));
    }
    Ok(Kept::List(list.into()))
}

fn decode_kept_bits(r: &mut Reader<'_>, count: u32) -> Result<Kept, FormatError> {
    let words: usize = number(r)?;
    if words == 0 || words > SLOTS_MAX / 64 {
        return Err(r.error("kept slots are out of range"));
    }
    let bits = decode_words(r, words)?;
    let set: u32 = bits.iter().map(|word| word.count_ones()).sum();
    if set != count || bits[0] & 1 == 0 || bits.last() == Some(&0) {
        return Err(r.error("kept slots are not as many as said"));
    }
    Ok(Kept::Bits(bits.into(), count))
}

/// Records of the slots that died, of a checkpoint with this number: runs of slots, sorted. Keys are
/// the number in the upper and the first slot's address in the lower half.
#[must_use]
pub fn encode_deaths(sequence: u64, runs: &[(VAddr, u32)]) -> Vec<(Key, Vec<u8>)> {
    let mut out: Vec<(Key, Writer)> = Vec::new();
    let mut end = 0;
    for (first, count) in runs.iter().filter(|(_, count)| *count > 0) {
        let full = |(_, w): &(Key, Writer)| w.bytes.len() >= DEATHS_BYTES_MAX;
        if out.last().is_none_or(full) {
            let key = Key::from(sequence) << 64 | Key::from(first.0);
            out.push((key, Writer::new()));
            end = first.0;
        }
        if let Some((_, w)) = out.last_mut() {
            let several = u128::from(*count > 1);
            varint(w, u128::from(first.0 - end) << 1 | several);
            if *count > 1 {
                varint(w, u128::from(*count) - 2);
            }
        }
        end = first.0 + u64::from(*count);
    }
    out.into_iter().map(|(key, w)| (key, w.bytes)).collect()
}

/// Decodes such a record.
///
/// # Errors
/// On anything that `encode_deaths` does not produce.
pub fn decode_deaths(key: Key, bytes: &[u8]) -> Result<Vec<(VAddr, u32)>, FormatError> {
    let mut r = Reader::new("deaths in a table", bytes);
    let mut at = u64::try_from(key & Key::from(u64::MAX)).unwrap_or(0);
    let mut out = Vec::new();
    while r.remaining() > 0 {
        let head: u64 = number(&mut r)?;
        let count = match head & 1 {
            0 => 1,
            _ => number::<u32>(&mut r)?.saturating_add(2),
        };
        let first = at.checked_add(head >> 1);
        let end = first.and_then(|first| first.checked_add(count.into()));
        let (Some(first), Some(end)) = (first, end) else {
            return Err(r.error("slot is out of range"));
        };
        out.push((VAddr(first), count));
        at = end;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn piece(kept: Kept, live: Live) -> PieceEntry {
        PieceEntry {
            kept,
            segment: 1,
            base: 5,
            live,
        }
    }

    #[test]
    fn records_come_back_whatever_the_coding_and_cut_ones_are_refused() {
        let bits: Vec<u16> = (0..90).filter(|d| d % 3 != 1).collect();
        let lists = |slots, live, ranks| Live::from_list(slots, live, ranks).expect("sorted");
        let pieces = [
            piece(Kept::All(128), lists(128, true, vec![0, 127])),
            piece(Kept::All(128), lists(128, false, vec![0, 127])),
            piece(
                Kept::All(128),
                lists(128, true, (0..64).map(|n| n * 2).collect()),
            ),
            piece(Kept::All(66), Live::all(66)),
            piece(Kept::from_sorted(&[0, 700]), lists(2, true, vec![1])),
            piece(Kept::from_sorted(&bits), lists(60, true, (3..60).collect())),
        ];
        for p in pieces {
            let mut w = Writer::new();
            p.encode(&mut w);
            assert_eq!(PieceEntry::decode(&w.bytes).as_ref(), Ok(&p));
            for at in 0..w.bytes.len() {
                assert!(PieceEntry::decode(&w.bytes[..at]).is_err(), "cut at {at}");
            }
        }
        let segment = SegmentEntry {
            kind: SegmentKind::Survivors,
            generation: 1 << 40,
            written: 300,
        };
        let mut w = Writer::new();
        segment.encode(&mut w);
        assert_eq!(SegmentEntry::decode(&w.bytes), Ok(segment));
        assert!(SegmentEntry::decode(&w.bytes[1..]).is_err());
    }

    /// The longest record there can be fits a page.
    #[test]
    fn a_piece_fits_a_page() {
        let kept: Vec<u16> = (0..8192).filter(|n| *n != 1).collect();
        let kept = Kept::from_sorted(&kept);
        let half = (0..4000).map(|n| n * 2).collect();
        let live = Live::from_list(kept.count(), true, half).expect("sorted");
        let mut w = Writer::new();
        piece(kept, live).encode(&mut w);
        assert!(w.bytes.len() <= super::super::table::RECORD_MAX);
        let half = (0..8192).map(|n| n * 2).collect();
        let live = Live::from_list(16384, true, half).expect("sorted");
        let mut w = Writer::new();
        piece(Kept::All(16384), live).encode(&mut w);
        assert!(w.bytes.len() <= super::super::table::RECORD_MAX);
    }

    proptest! {
        #[test]
        fn deaths_come_back(mut steps in prop::collection::vec((0u64..1 << 30, 1u32..5), 0..2000)) {
            steps.insert(0, (1 << 20, 1));
            let mut at = 0;
            let runs: Vec<(VAddr, u32)> = steps.into_iter().map(|(gap, count)| {
                let first = at + gap;
                at = first + u64::from(count);
                (VAddr(first), count)
            }).collect();
            let mut back = Vec::new();
            for (key, bytes) in encode_deaths(7, &runs) {
                prop_assert_eq!(key >> 64, 7);
                prop_assert!(bytes.len() < DEATHS_BYTES_MAX + 20);
                back.extend(decode_deaths(key, &bytes).expect("decodes"));
            }
            prop_assert_eq!(back, runs);
        }
    }
}
