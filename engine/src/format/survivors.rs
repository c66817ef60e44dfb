//! A batch of garbage collection: one page that says what follows, then the pages of the slots
//! that survived.

use super::codec::{FormatError, Reader, Writer};
use super::vaddr::VAddr;
use super::PAGE;
use esker_base::checksum::crc32;
use esker_base::{GroupId, StoreId};

/// First four bytes.
pub const MAGIC: u32 = 0x5653_5345; // "ESSV"
/// Version of the structure.
pub const VERSION: u16 = 2;
/// The first one: its entries do not say whose the pages are.
const VERSION_WITHOUT_OWNERS: u16 = 1;
/// Bytes before the entries.
pub const HEAD_BYTES: usize = 64;
/// Bytes of one entry.
pub const ENTRY_BYTES: usize = 28;
/// Bytes of one entry of the first version.
const ENTRY_BYTES_WITHOUT_OWNERS: usize = 12;
/// Most slots in a batch.
pub const ENTRIES_MAX: usize = (PAGE - HEAD_BYTES) / ENTRY_BYTES;

/// Whose a page is: the block of a volume that it was written for. It may have been overwritten since, and
/// snapshots and clones may have it as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// The volume's group; zero for what is no block, and where nobody knows.
    pub group: GroupId,
    /// The block.
    pub lba: u64,
}

/// A slot that survived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Survivor {
    /// Its virtual address, which stays.
    pub vaddr: VAddr,
    /// CRC of the page as it was written first: what is damaged stays known as damaged.
    pub crc: u32,
    /// Whose it is.
    pub owner: Owner,
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
            w.u64(e.owner.group.0);
            w.u64(e.owner.lba);
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
        let has_owners = version != VERSION_WITHOUT_OWNERS;
        if has_owners {
            r.version(u32::from(VERSION), u32::from(version))?;
        }
        let entries_max = match has_owners {
            true => ENTRIES_MAX,
            false => (PAGE - HEAD_BYTES) / ENTRY_BYTES_WITHOUT_OWNERS,
        };
        let segment = r.u32()?;
        let store = StoreId(r.u128()?);
        let (generation, slot) = (r.u64()?, r.u32()?);
        r.zeros(HEAD_BYTES - (PAGE - r.remaining()))?;
        if count > entries_max {
            return Err(r.error("has too many entries"));
        }
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            let (vaddr, crc) = (VAddr(r.u64()?), r.u32()?);
            let owner = match has_owners {
                true => Owner {
                    group: GroupId(r.u64()?),
                    lba: r.u64()?,
                },
                false => Owner::default(),
            };
            entries.push(Survivor { vaddr, crc, owner });
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
                    owner: Owner {
                        group: GroupId(7),
                        lba: n + 8,
                    },
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

    /// As stores have them that were written before entries said whose pages are.
    #[test]
    fn the_first_version_is_read_without_owners() {
        let mut w = Writer::new();
        w.u32(MAGIC);
        w.u16(VERSION_WITHOUT_OWNERS);
        w.u16(336);
        w.u32(0);
        w.u32(2);
        w.u128(1);
        w.u64(4);
        w.u32(3);
        w.zeros(HEAD_BYTES - w.bytes.len());
        for n in 0..336 {
            w.u64(n + 5);
            w.u32(6);
        }
        let crc = crc32(&w.bytes);
        w.patch_u32(8, crc);
        let header = SurvivorsHeader::decode(&w.bytes).expect("is whole");
        assert_eq!((header.segment, header.slot), (2, 3));
        assert_eq!(header.entries.len(), 336);
        let last = Survivor {
            vaddr: VAddr(340),
            crc: 6,
            owner: Owner::default(),
        };
        assert_eq!(header.entries.last(), Some(&last));
    }
}
