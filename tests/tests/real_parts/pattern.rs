//! Blocks that say what they are: volume, LBA and version, filled from those three, so that every
//! byte of a block is checked and no block passes for another.

use std::fmt;

pub const BLOCK: usize = 4096;

/// What a block may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Content {
    /// Zeros: never written, trimmed, or zeroed.
    Zeros,
    /// This version of the block.
    Version(u64),
}

/// The bytes of a version of a block.
pub fn fill(volume: u64, lba: u64, version: u64) -> Vec<u8> {
    let mut block = Vec::with_capacity(BLOCK);
    for word in [0x4553_4b45_5254_4553, volume, lba, version] {
        block.extend(u64::to_le_bytes(word));
    }
    let mut state = volume ^ lba.rotate_left(20) ^ version.rotate_left(40) ^ 0x9e37_79b9_7f4a_7c15;
    while block.len() < BLOCK {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        block.extend((state ^ (state >> 29)).to_le_bytes());
    }
    block
}

/// What these bytes are.
///
/// # Errors
/// In words, when they are nothing that was ever written to this block.
pub fn content(volume: u64, lba: u64, block: &[u8]) -> Result<Content, Alien> {
    if block.iter().all(|byte| *byte == 0) {
        return Ok(Content::Zeros);
    }
    let word = |i: usize| u64::from_le_bytes(block[i * 8..i * 8 + 8].try_into().unwrap());
    let version = word(3);
    if block == fill(volume, lba, version) {
        return Ok(Content::Version(version));
    }
    let words = [word(0), word(1), word(2), word(3)];
    Err(Alien { volume, lba, words })
}

/// A block that holds what was never written to it.
#[derive(Debug)]
pub struct Alien {
    volume: u64,
    lba: u64,
    words: [u64; 4],
}

impl fmt::Display for Alien {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [magic, volume, lba, version] = self.words;
        write!(
            f,
            "block {} of volume {} holds what was never written to it: magic {magic:#x}, volume \
             {volume}, block {lba}, version {version}",
            self.lba, self.volume
        )
    }
}

/// Numbers that look random and are the same in every run with the same seed.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// 0 to `end` exclusive.
    pub fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end
    }
}
