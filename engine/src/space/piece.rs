//! Pieces: where runs of virtual slots lie, and which of them are live.
//!
//! A virtual segment begins as one piece that is its physical segment. Garbage collection replaces
//! a piece by smaller ones that hold only what was live; the virtual addresses stay. A slot's place
//! is the piece's first place plus the slot's rank among the kept ones.

use super::live::Live;
use std::sync::Arc;

/// Most slots from the first to the last of a piece with gaps, so that what describes it fits a page
/// of the table.
pub const GAPPED_SPAN_MAX: u32 = 8192;

/// Which slots of a run are stored, counted from the run's first slot. The first and the last are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// So many slots, without a gap.
    All(u32),
    /// A bit per slot, and how many are set.
    Bits(Arc<[u64]>, u32),
    /// Sorted distances from the first.
    List(Arc<[u16]>),
}

impl Kept {
    /// From sorted distances, the first of which is zero.
    #[must_use]
    pub fn from_sorted(distances: &[u16]) -> Self {
        let span = distances.last().map_or(0, |last| u32::from(*last) + 1);
        let count = u32::try_from(distances.len()).unwrap_or(u32::MAX);
        if span == count {
            return Self::All(count);
        }
        let words = (span as usize).div_ceil(64);
        if distances.len() * 2 <= words * 8 {
            return Self::List(distances.into());
        }
        let mut bits = vec![0u64; words];
        for distance in distances {
            bits[usize::from(*distance) / 64] |= 1 << (distance % 64);
        }
        Self::Bits(bits.into(), count)
    }

    /// Number of slots kept.
    #[must_use]
    pub fn count(&self) -> u32 {
        match self {
            Self::All(count) | Self::Bits(_, count) => *count,
            Self::List(list) => u32::try_from(list.len()).unwrap_or(u32::MAX),
        }
    }

    /// Slots from the first to the last.
    #[must_use]
    pub fn span(&self) -> u32 {
        match self {
            Self::All(count) => *count,
            Self::List(list) => list.last().map_or(0, |last| u32::from(*last) + 1),
            Self::Bits(words, _) => {
                let last = words.last().map_or(0, |word| 64 - word.leading_zeros());
                u32::try_from(words.len().saturating_sub(1)).unwrap_or(u32::MAX) * 64 + last
            }
        }
    }

    /// How many kept slots lie before this one; none when it is not kept.
    #[must_use]
    pub fn rank(&self, distance: u32) -> Option<u32> {
        match self {
            Self::All(count) => (distance < *count).then_some(distance),
            Self::Bits(words, _) => {
                let (at, bit) = (distance as usize / 64, distance % 64);
                let word = *words.get(at)?;
                if word >> bit & 1 == 0 {
                    return None;
                }
                let before: u32 = words[..at].iter().map(|w| w.count_ones()).sum();
                Some(before + (word & ((1 << bit) - 1)).count_ones())
            }
            Self::List(list) => {
                let wanted = u16::try_from(distance).ok()?;
                let at = list.binary_search(&wanted).ok()?;
                u32::try_from(at).ok()
            }
        }
    }

    /// The kept slots, in order.
    #[must_use]
    pub fn distances(&self) -> Vec<u32> {
        match self {
            Self::All(count) => (0..*count).collect(),
            Self::List(list) => list.iter().map(|d| u32::from(*d)).collect(),
            Self::Bits(words, _) => (0u32..)
                .zip(words.iter())
                .flat_map(|(n, word)| {
                    (0..64)
                        .filter(move |bit| word >> bit & 1 == 1)
                        .map(move |bit| n * 64 + bit)
                })
                .collect(),
        }
    }
}

/// A run of virtual slots at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which slots of the run are there.
    pub kept: Kept,
    /// Physical segment.
    pub segment: u32,
    /// Slot of the first kept one.
    pub base: u32,
    /// Which of the kept slots are live, by rank.
    pub live: Live,
}

impl Piece {
    /// A piece without live slots.
    #[must_use]
    pub fn new(kept: Kept, segment: u32, base: u32) -> Self {
        let live = Live::none(kept.count());
        Self {
            kept,
            segment,
            base,
            live,
        }
    }

    /// Live slots.
    #[must_use]
    pub fn live_count(&self) -> u32 {
        self.live.count()
    }

    /// Whether the slot of a rank is live.
    #[must_use]
    pub fn is_live(&self, rank: u32) -> bool {
        self.live.get(rank)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// Whatever the coding: ranks are what counting gives, and nothing else is kept.
        #[test]
        fn ranks_are_counts(mut set in proptest::collection::btree_set(0u16..1500, 1..700), dense in any::<bool>()) {
            if dense {
                set = (0..700).filter(|d| !set.contains(d) || *d == 0).collect();
            }
            let first = set.first().copied().unwrap_or(0);
            let distances: Vec<u16> = set.iter().map(|d| d - first).collect();
            let kept = Kept::from_sorted(&distances);
            let all: BTreeSet<u32> = distances.iter().map(|d| u32::from(*d)).collect();
            prop_assert_eq!(kept.count() as usize, all.len());
            prop_assert_eq!(Some(kept.span() - 1), all.last().copied());
            prop_assert_eq!(kept.distances(), all.iter().copied().collect::<Vec<_>>());
            for d in 0..1600 {
                let count = u32::try_from(all.range(..d).count()).expect("small");
                prop_assert_eq!(kept.rank(d), all.contains(&d).then_some(count));
            }
        }
    }
}
