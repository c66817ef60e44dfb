//! What newer extents replaced in the delta index and older cuts still see. Beside the index of the
//! newest extents, so that neither reads nor writes of the head notice how many cuts there are.

use super::delta::Extent;
use super::interval::Piece;
use esker_base::{BlockRange, Stamp};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// Replaced extents, by size class, first block and birth. A class holds runs of at least 2^class
/// blocks and fewer than twice that: who looks for a block need not look further back than that.
#[derive(Clone, Debug, Default)]
pub struct Older {
    pieces: BTreeMap<(u8, u64, Stamp), (Extent, Stamp)>,
    /// How many pieces each class has.
    classes: BTreeMap<u8, usize>,
}

fn class_of(count: u64) -> u8 {
    u8::try_from(count.max(1).ilog2()).unwrap_or(u8::MAX)
}

impl Older {
    /// Number of pieces.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Keeps an extent that one with the stamp `death` replaced.
    pub fn keep(&mut self, lba: u64, extent: Extent, death: Stamp) {
        let class = class_of(extent.count());
        *self.classes.entry(class).or_default() += 1;
        let key = (class, lba, extent.stamp);
        self.pieces.insert(key, (extent, death));
    }

    /// All pieces: first block and extent.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Extent)> {
        let pieces = self.pieces.iter();
        pieces.map(|((_, lba, _), (extent, _))| (*lba, extent))
    }

    /// Pieces after one, in an order that does not change.
    pub fn from(&self, after: Option<OlderKey>) -> impl Iterator<Item = (OlderKey, &Extent)> {
        let start = after.map_or(Bound::Unbounded, |key| Bound::Excluded(key.0));
        let pieces = self.pieces.range((start, Bound::Unbounded));
        pieces.map(|(key, (extent, _))| (OlderKey(*key), extent))
    }

    /// What a cut sees of a range, cut to it, by first block. They never overlap. Takes time by the
    /// runs that begin nearby, not by how often they were replaced.
    pub fn at(&self, range: BlockRange, cut: Stamp, visits: &mut u64) -> Vec<(u64, Extent)> {
        let mut found = Vec::new();
        let mut seen = BTreeSet::new();
        for class in self.classes.keys() {
            let back = (1u64 << (u32::from(*class) + 1).min(63)) - 1;
            let mut from = Bound::Included((*class, range.start.0.saturating_sub(back), Stamp(0)));
            let end = Bound::Excluded((*class, range.end(), Stamp(0)));
            while let Some(((_, lba, _), _)) = self.pieces.range((from, end)).next() {
                let lba = *lba;
                from = Bound::Excluded((*class, lba, Stamp(u64::MAX)));
                *visits += 1;
                // Of those that begin at one block only the newest can be the one it has then.
                let first = (*class, lba, Stamp(0));
                let newest = self.pieces.range(first..=(*class, lba, cut)).next_back();
                let Some((_, (extent, death))) = newest.filter(|(_, (_, death))| *death > cut)
                else {
                    continue;
                };
                debug_assert!(*death > extent.stamp);
                let (lo, hi) = (
                    lba.max(range.start.0),
                    (lba + extent.count()).min(range.end()),
                );
                if lo < hi && seen.insert(lo) {
                    found.push((lo, extent.part(lo - lba, hi - lo)));
                }
            }
        }
        found.sort_by_key(|(lba, _)| *lba);
        found
    }
}

/// Where an iteration over [`Older`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OlderKey((u8, u64, Stamp));

impl OlderKey {
    /// First block of the piece.
    pub fn lba(&self) -> u64 {
        self.0 .1
    }
}

#[cfg(test)]
mod tests {
    use crate::format::node::LeafKind;
    use crate::format::VAddr;
    use crate::map::delta::{Auths, Extent};
    use crate::map::layer::Layer;
    use esker_base::{BlockRange, Stamp};

    /// Random extents with cuts between them, against one array of stamps per cut.
    #[test]
    fn every_cut_sees_what_was_there() {
        let mut state = 7u64;
        let mut random = move |n: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % n
        };
        for round in 0..40 {
            let mut layer = Layer::default();
            let mut now = [0u64; 600];
            let mut cuts: Vec<(Stamp, [u64; 600])> = Vec::new();
            let mut head_cut = Stamp(0);
            let (mut alive, mut died) = (0u64, 0u64);
            for n in 1..200u64 {
                let stamp = n * 1000;
                if random(5) == 0 {
                    head_cut = Stamp(stamp);
                    cuts.push((head_cut, now));
                    continue;
                }
                let lba = random(600);
                let longest = if random(9) == 0 { 600 } else { 1 + round % 7 };
                let count = (1 + random(longest)).min(600 - lba);
                let extent = Extent {
                    count,
                    kind: LeafKind::Data,
                    stamp: Stamp(stamp),
                    vaddr: VAddr::new(n, 0),
                    auths: Auths::of(
                        vec![[0; 16]; usize::try_from(count).expect("small")].into_iter(),
                    ),
                };
                alive += count;
                layer.insert(lba, extent, head_cut, |old, dies| {
                    died += if dies { old.count } else { 0 }
                });
                (0..count).for_each(|i| now[usize::try_from(lba + i).expect("small")] = stamp + i);
            }
            let needed: std::collections::BTreeSet<u64> = cuts
                .iter()
                .flat_map(|(_, state)| state.iter().copied())
                .chain(now)
                .filter(|stamp| *stamp != 0)
                .collect();
            assert_eq!(alive - died, needed.len() as u64, "what nobody sees died");
            for (cut, state) in &cuts {
                for _ in 0..20 {
                    let lba = random(600);
                    let count = 1 + random(600 - lba);
                    let range = BlockRange::new(lba, count);
                    let mut seen = [0u64; 600];
                    for (at, e) in layer.at(range, *cut) {
                        for i in 0..e.count {
                            let block = usize::try_from(at + i).expect("small");
                            assert!((lba..lba + count).contains(&(at + i)) && seen[block] == 0);
                            seen[block] = e.stamp.0 + i;
                        }
                    }
                    for block in lba..lba + count {
                        let i = usize::try_from(block).expect("small");
                        assert_eq!(seen[i], state[i], "block {block} at {cut}");
                    }
                }
            }
        }
    }
}
