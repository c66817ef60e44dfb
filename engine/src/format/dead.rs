//! Pages of deadlists: slots that a version's parent still uses and the version does not.

use super::codec::{FormatError, Reader, Writer};
use super::node::{CRC_AT, HEAD_BYTES};
use super::vaddr::{VAddr, SLOT_BITS, VSEG_BITS};
use super::PAGE;
use esker_base::{Stamp, StoreId};

/// First four bytes of a page.
pub const MAGIC: u32 = 0x5044_5345; // "ESDP"
/// Version of the structure.
pub const VERSION: u16 = 1;
/// Bytes of one entry.
pub const ENTRY_BYTES: usize = 32;
/// Most entries in a page.
pub const ENTRIES_MAX: usize = (PAGE - HEAD_BYTES) / ENTRY_BYTES;

const ADDRESS_BITS: u32 = VSEG_BITS + SLOT_BITS;
const _: () = assert!(HEAD_BYTES + ENTRIES_MAX * ENTRY_BYTES == PAGE);

/// What a dead slot held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeadKind {
    /// A block of data.
    #[default]
    Data = 1,
    /// A map node.
    Node = 2,
}

/// One slot that died for a version, and not for the one it began from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeadEntry {
    /// When it was born: a block's stamp, a node's highest; later if its level did not exist then.
    pub birth: Stamp,
    /// The slot.
    pub vaddr: VAddr,
    /// What replaced it: that one's stamp.
    pub death: Stamp,
    /// The block, or the first one of the node's range.
    pub lba: u64,
    /// What it held.
    pub kind: DeadKind,
}

/// Encodes a page. Its own CRC is where a node's is and covers the same.
///
/// # Panics
/// When there are more than [`ENTRIES_MAX`] entries.
#[must_use]
pub fn encode(store: StoreId, entries: &[DeadEntry]) -> Box<[u8]> {
    assert!(entries.len() <= ENTRIES_MAX, "page of too many dead slots");
    let mut w = Writer::new();
    w.u32(MAGIC);
    w.u16(VERSION);
    w.u16(u16::try_from(entries.len()).unwrap_or(u16::MAX));
    w.u128(store.0);
    w.zeros(HEAD_BYTES - w.bytes.len());
    for e in entries {
        w.u64(e.vaddr.0 | (e.kind as u64) << ADDRESS_BITS);
        w.u64(e.birth.0);
        w.u64(e.death.0);
        w.u64(e.lba);
    }
    w.zeros(PAGE - w.bytes.len());
    let mut page = super::node::NodePage::of(w.bytes.into_boxed_slice());
    page.seal();
    page.bytes
}

/// Decodes a page.
///
/// # Errors
/// On anything that `encode` does not produce, but for the CRC, which the pointer to it has too.
pub fn decode(bytes: &[u8]) -> Result<Vec<DeadEntry>, FormatError> {
    let mut r = Reader::new("dead page", bytes);
    if bytes.len() != PAGE || r.u32()? != MAGIC {
        return Err(r.error("has no magic"));
    }
    let version = r.u16()?;
    r.version(u32::from(VERSION), u32::from(version))?;
    let count = usize::from(r.u16()?);
    if count > ENTRIES_MAX {
        return Err(r.error("has too many entries"));
    }
    r.u128()?;
    r.zeros(CRC_AT - (PAGE - r.remaining()))?;
    r.u32()?;
    r.zeros(HEAD_BYTES - (PAGE - r.remaining()))?;
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        let word = r.u64()?;
        let kind = match word >> ADDRESS_BITS {
            1 => DeadKind::Data,
            2 => DeadKind::Node,
            _ => return Err(r.error("entry has an unknown kind")),
        };
        entries.push(DeadEntry {
            vaddr: VAddr(word & ((1 << ADDRESS_BITS) - 1)),
            birth: Stamp(r.u64()?),
            death: Stamp(r.u64()?),
            lba: r.u64()?,
            kind,
        });
    }
    r.zeros(r.remaining())?;
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::node::NodePage;

    #[test]
    fn comes_back_and_damage_is_refused() {
        let entry = |n: u64| DeadEntry {
            birth: Stamp(n),
            vaddr: VAddr::new(n + 1, 3),
            death: Stamp(n + 2),
            lba: n * 3,
            kind: if n.is_multiple_of(2) {
                DeadKind::Data
            } else {
                DeadKind::Node
            },
        };
        for count in [0, 1, ENTRIES_MAX] {
            let entries: Vec<DeadEntry> = (0..count as u64).map(entry).collect();
            let bytes = encode(StoreId(7), &entries);
            assert_eq!(decode(&bytes), Ok(entries));
            assert!(NodePage::is_whole(&bytes));
            for at in [0, 5, 7, 30, 50, 4095] {
                let mut bad = bytes.clone();
                bad[at] ^= 0x80;
                assert!(decode(&bad).is_err() || !NodePage::is_whole(&bad), "{at}");
            }
        }
    }
}
