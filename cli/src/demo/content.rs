//! What the demo writes: every block tells its place and how often it was written, so that whatever is read can be
//! checked.

use esker_base::BLOCK_SIZE;

/// Bytes of the part that is not noise: place and generation.
const HEAD_BYTES: usize = 16;

/// How often a block was written; 0 for never, and then it reads as zeros.
pub type Generation = u32;

/// The blocks of one run: what another run wrote is not taken for its own.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    /// Random.
    pub seed: u64,
}

impl Pattern {
    /// Writes what `block` holds in its `generation` into `out`, one block long.
    pub fn fill(self, block: u64, generation: Generation, out: &mut [u8]) {
        if generation == 0 {
            out.fill(0);
            return;
        }
        let (head, noise) = out.split_at_mut(HEAD_BYTES);
        head[..8].copy_from_slice(&block.to_le_bytes());
        head[8..].copy_from_slice(&u64::from(generation).to_le_bytes());
        let mut state = self.seed ^ mixed(block) ^ mixed(u64::from(generation)).rotate_left(32);
        for word in noise.chunks_exact_mut(8) {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            word.copy_from_slice(&mixed(state).to_le_bytes());
        }
    }

    /// Which generation of `block` these bytes are; none when they are nothing that was ever written there.
    #[must_use]
    pub fn generation(self, block: u64, bytes: &[u8]) -> Option<Generation> {
        let told = bytes.get(8..HEAD_BYTES)?.try_into().ok()?;
        let generation = Generation::try_from(u64::from_le_bytes(told)).ok()?;
        let mut expected = [0; BLOCK_SIZE];
        self.fill(block, generation, &mut expected);
        (expected == *bytes).then_some(generation)
    }
}

/// The finisher of splitmix64.
fn mixed(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// Numbers in no order, for choosing blocks.
pub struct Dice(u64);

impl Dice {
    /// Begins at a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.0) % end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_tells_its_generation_and_what_is_not_it_tells_none() {
        let pattern = Pattern { seed: 7 };
        let mut block = [0xff; BLOCK_SIZE];
        for generation in [0, 1, 77] {
            pattern.fill(5, generation, &mut block);
            assert_eq!(pattern.generation(5, &block), Some(generation));
        }
        assert_eq!(pattern.generation(6, &block), None, "of another place");
        assert_eq!(
            Pattern { seed: 8 }.generation(5, &block),
            None,
            "of another run"
        );
        for at in [0, 9, HEAD_BYTES, BLOCK_SIZE - 1] {
            block[at] ^= 1;
            assert_eq!(pattern.generation(5, &block), None, "byte {at}");
            block[at] ^= 1;
        }
        assert_eq!(pattern.generation(5, &block[..100]), None, "short");
    }
}
