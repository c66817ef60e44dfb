//! Logical block addresses and ranges.

use std::fmt;

/// Size of a block, the logical unit of a volume, in bytes.
pub const BLOCK_SIZE: usize = 4096;
/// [`BLOCK_SIZE`] as `u64`, for arithmetic on offsets.
pub const BLOCK_SIZE_U64: u64 = 4096;

/// Index of a 4 KiB block in a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lba(pub u64);

impl fmt::Display for Lba {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lba {}", self.0)
    }
}

/// A run of blocks `[start, start + count)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockRange {
    /// First block.
    pub start: Lba,
    /// Number of blocks; may be zero.
    pub count: u64,
}

impl BlockRange {
    /// The range of `count` blocks from `start`.
    #[must_use]
    pub const fn new(start: u64, count: u64) -> Self {
        Self {
            start: Lba(start),
            count,
        }
    }

    /// The smallest block range that covers `length` bytes from byte `offset`, or `None` when the
    /// end overflows 64 bits.
    #[must_use]
    pub fn covering(offset: u64, length: u64) -> Option<Self> {
        let end = offset.checked_add(length)?;
        let first = offset / BLOCK_SIZE_U64;
        if length == 0 {
            return Some(Self::new(first, 0));
        }
        let last = (end - 1) / BLOCK_SIZE_U64;
        Some(Self::new(first, last - first + 1))
    }

    /// One past the last block. Saturates, so a hostile range can never wrap.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.start.0.saturating_add(self.count)
    }

    /// True when the range holds no block.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// True when both ranges share a block.
    #[must_use]
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.start.0 < other.end() && other.start.0 < self.end()
    }

    /// Length in bytes, saturating.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.count.saturating_mul(BLOCK_SIZE_U64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covering_includes_partial_blocks_at_both_ends() {
        assert_eq!(BlockRange::covering(0, 4096), Some(BlockRange::new(0, 1)));
        assert_eq!(BlockRange::covering(4095, 2), Some(BlockRange::new(0, 2)));
        assert_eq!(BlockRange::covering(8192, 0), Some(BlockRange::new(2, 0)));
        assert_eq!(BlockRange::covering(u64::MAX, 2), None);
    }

    #[test]
    fn overlap_is_symmetric_and_excludes_neighbours() {
        let a = BlockRange::new(4, 4);
        assert!(a.overlaps(&BlockRange::new(7, 1)) && BlockRange::new(7, 1).overlaps(&a));
        assert!(!a.overlaps(&BlockRange::new(8, 1)) && !a.overlaps(&BlockRange::new(0, 4)));
    }
}
