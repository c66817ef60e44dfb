//! What clients write: bytes that name the write they came from and the place they belong to.

use esker_base::{BLOCK_SIZE, BLOCK_SIZE_U64};
use std::ops::Range;

/// How blocks are cut into cells. Every request of a run begins and ends at a cut, so that a cell
/// is written as a whole or not at all, while requests are as odd as the cuts are.
#[derive(Clone, Debug)]
pub struct Grid {
    cuts: Vec<u64>,
}

impl Grid {
    /// Cells that begin at these offsets of each block.
    #[must_use]
    pub fn new(mut inner: Vec<u64>) -> Self {
        inner.push(0);
        inner.retain(|cut| *cut < BLOCK_SIZE_U64);
        inner.sort_unstable();
        inner.dedup();
        Self { cuts: inner }
    }

    /// Cells per block.
    #[must_use]
    pub fn per_block(&self) -> usize {
        self.cuts.len()
    }

    /// First byte of a cell of a volume.
    #[must_use]
    pub fn start(&self, cell: usize) -> u64 {
        let per = self.cuts.len();
        (cell / per) as u64 * BLOCK_SIZE_U64 + self.cuts[cell % per]
    }

    /// Cells that begin in `[from, to)`.
    #[must_use]
    pub fn cells(&self, from: u64, to: u64) -> Range<usize> {
        self.first_at(from)..self.first_at(to)
    }

    fn first_at(&self, byte: u64) -> usize {
        let block = usize::try_from(byte / BLOCK_SIZE_U64).unwrap_or(usize::MAX);
        let inside = byte % BLOCK_SIZE_U64;
        block * self.cuts.len() + self.cuts.partition_point(|cut| *cut < inside)
    }
}

fn word(id: u64, at: u64) -> u64 {
    let mut x = id
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(at.wrapping_mul(0xd6e8_feb8_6659_fd93));
    x ^= x >> 32;
    x = x.wrapping_mul(0xd6e8_feb8_6659_fd93);
    x ^ (x >> 29)
}

/// The bytes that write `id` puts at byte `start` of a volume.
#[must_use]
pub fn fill(id: u64, start: u64, length: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(length + 16);
    let skip = usize::try_from(start % 8).unwrap_or(0);
    let mut at = start / 8;
    while out.len() < length + skip {
        out.extend_from_slice(&word(id, at).to_le_bytes());
        at += 1;
    }
    out.drain(..skip);
    out.truncate(length);
    out
}

/// Whether `bytes`, read at byte `start`, are what write `id` put there.
#[must_use]
pub fn is_from(id: u64, start: u64, bytes: &[u8]) -> bool {
    let skip = usize::try_from(start % 8).unwrap_or(0);
    let head = bytes.len().min(8 - skip);
    let (first, rest) = bytes.split_at(head);
    let mut at = start / 8;
    if first != &word(id, at).to_le_bytes()[skip..skip + head] {
        return false;
    }
    rest.chunks(8).all(|chunk| {
        at += 1;
        *chunk == word(id, at).to_le_bytes()[..chunk.len()]
    })
}

/// True when all bytes are zero.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; BLOCK_SIZE] = [0; BLOCK_SIZE];
    bytes.chunks(BLOCK_SIZE).all(|c| *c == ZEROS[..c.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_names_its_write_and_its_place() {
        let bytes = fill(7, 4096 + 13, 5000);
        assert!(is_from(7, 4096 + 13, &bytes));
        assert!(is_from(7, 4096 + 100, &bytes[87..]));
        assert!(!is_from(8, 4096 + 13, &bytes) && !is_from(7, 13, &bytes));
    }

    #[test]
    fn cells_cover_a_volume_without_gaps() {
        let grid = Grid::new(vec![700, 1, 4001]);
        assert_eq!(grid.per_block(), 4);
        assert_eq!(grid.cells(4096, 8192), 4..8);
        assert_eq!(grid.cells(4097, 8192 + 1), 5..9);
        assert_eq!((grid.start(4), grid.start(5)), (4096, 4097));
    }
}
