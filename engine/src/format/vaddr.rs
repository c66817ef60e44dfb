//! Virtual addresses: what the map points at.

use std::fmt;

/// Bits of the slot number; a segment has at most 2^14 slots of 4 KiB.
pub const SLOT_BITS: u32 = 14;
/// Bits of the virtual segment number.
pub const VSEG_BITS: u32 = 36;

/// A permanent virtual address: a virtual segment (36 bits) and a slot in it (14 bits). A virtual
/// segment takes the generation of the physical segment it begins in as its number, and
/// generations are drawn from one counter per store, so a vaddr is never reused. Zero is no
/// address: generations begin at one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VAddr(pub u64);

impl VAddr {
    /// No address.
    pub const NONE: VAddr = VAddr(0);

    /// The address of `slot` in virtual segment `vseg`.
    #[must_use]
    pub const fn new(vseg: u64, slot: u32) -> Self {
        Self((vseg << SLOT_BITS) | slot as u64)
    }
    /// The virtual segment.
    #[must_use]
    pub const fn vseg(self) -> u64 {
        self.0 >> SLOT_BITS
    }
    /// The slot.
    #[must_use]
    pub const fn slot(self) -> u32 {
        #[allow(clippy::cast_possible_truncation)] // the mask leaves 14 bits
        {
            (self.0 & ((1 << SLOT_BITS) - 1)) as u32
        }
    }
    /// The address `count` slots further on in the same segment.
    #[must_use]
    pub const fn plus(self, count: u64) -> Self {
        Self(self.0 + count)
    }
    /// Whether there is no address.
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for VAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.vseg(), self.slot())
    }
}
