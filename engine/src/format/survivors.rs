//! A batch of garbage collection: one page that says what follows, then the pages of the slots
//! that survived.

use super::codec::{FormatError, Reader, Writer};
use super::vaddr::VAddr;
use super::PAGE;
use esker_base::checksum::crc32;
use esker_base::StoreId;

/// First four bytes.
pub const MAGIC: u32 = 0x5653_5345; // "ESSV"
/// Version of the structure.
pub const VERSION: u16 = 1;
/// Bytes before the entries.
pub const HEAD_BYTES: usize = 64;
/// Bytes of one entry.
pub const ENTRY_BYTES: usize = 12;
/// Most slots in a batch.
pub const ENTRIES_MAX: usize = (PAGE - HEAD_BYTES) / ENTRY_BYTES;

/// A slot that survived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Survivor {
    /// Its virtual address, which stays.
    pub vaddr: VAddr,
    /// CRC of the page as it was written first: what is damaged stays known as damaged.
    pub crc: u32,
}

/// The page in front of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SurvivorsHeader {
    /// The store.
    pub store: StoreId,
    /// Segment it is in.
    pub segment: u32,
    /// Slot it is at.
    pub slot: u32,
    /// Generation of the segment.
    pub generation: u64,
    /// The pages that follow, in order.
    pub entries: Vec<Survivor>,
}

impl SurvivorsHeader {
    /// The page.
    ///
    /// # Panics
    /// When there are more than [`ENTRIES_MAX`] entries; the collector bounds them.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.entries.len() <= ENTRIES_MAX, "batch too large");
        let mut w = Writer::new();
        w.u32(MAGIC);
        w.u16(VERSION);
        w.u16(u16::try_from(self.entries.len()).unwrap_or(u16::MAX));
        w.u32(0); // crc, patched below
        w.u32(self.segment);
        w.u128(self.store.0);
        w.u64(self.generation);
        w.u32(self.slot);
        w.zeros(HEAD_BYTES - w.bytes.len());
        for e in &self.entries {
            w.u64(e.vaddr.0);
            w.u32(e.crc);
        }
        w.zeros(PAGE - w.bytes.len());
        let crc = crc32(&w.bytes);
        w.patch_u32(8, crc);
        w.bytes
    }

    /// Decodes a page.
    ///
    /// # Errors
    /// On anything that `encode` does not produce.
    pub fn decode(page: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new("survivors", page);
        if page.len() != PAGE || r.u32()? != MAGIC {
            return Err(r.error("has no magic"));
        }
        let (version, count) = (r.u16()?, usize::from(r.u16()?));
        let crc = r.u32()?;
        let mut blank = page.to_vec();
        blank[8..12].fill(0);
        if crc32(&blank) != crc {
            return Err(r.error("checksum does not match"));
        }
        r.version(u32::from(VERSION), u32::from(version))?;
        let segment = r.u32()?;
        let store = StoreId(r.u128()?);
        let (generation, slot) = (r.u64()?, r.u32()?);
        r.zeros(HEAD_BYTES - (PAGE - r.remaining()))?;
        if count > ENTRIES_MAX {
            return Err(r.error("has too many entries"));
        }
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            let (vaddr, crc) = (VAddr(r.u64()?), r.u32()?);
            entries.push(Survivor { vaddr, crc });
        }
        r.zeros(r.remaining())?;
        Ok(Self {
            store,
            segment,
            slot,
            generation,
            entries,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_and_every_flipped_bit_is_refused() {
        let header = SurvivorsHeader {
            store: StoreId(1),
            segment: 2,
            slot: 3,
            generation: 4,
            entries: (0..ENTRIES_MAX as u64)
                .map(|n| Survivor {
                    vaddr: VAddr(n + 5),
                    crc: 6,
                })
                .collect(),
        };
        let page = header.encode();
        assert_eq!(SurvivorsHeader::decode(&page), Ok(header));
        for bit in 0..PAGE * 8 {
            let mut bad = page.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(SurvivorsHeader::decode(&bad).is_err(), "bit {bit}");
        }
    }
}
