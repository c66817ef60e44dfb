//! A map from runs of blocks to values, in which a new run replaces what it covers.

use esker_base::BlockRange;
use std::collections::BTreeMap;

/// A value of a run that can be cut into the values of its parts.
pub trait Piece: Clone {
    /// Number of blocks.
    fn count(&self) -> u64;
    /// The part of `count` blocks from the `from`th on.
    fn part(&self, from: u64, count: u64) -> Self;
}

/// Runs of blocks that do not overlap, by first block.
#[derive(Clone, Debug)]
pub struct IntervalMap<P> {
    runs: BTreeMap<u64, P>,
}

/// How a range meets the runs.
enum Meeting {
    /// It covers nothing of any.
    Apart,
    /// It is exactly one of them.
    Same,
    /// It covers parts, or several.
    Other,
}

impl<P> Default for IntervalMap<P> {
    fn default() -> Self {
        Self {
            runs: BTreeMap::new(),
        }
    }
}

impl<P: Piece> IntervalMap<P> {
    /// Number of runs.
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Forgets all runs.
    pub fn clear(&mut self) {
        self.runs.clear();
    }

    /// Sets a run; what it covered is handed to `replaced` piece by piece.
    pub fn insert(&mut self, start: u64, piece: P, mut replaced: impl FnMut(u64, P)) {
        let range = BlockRange::new(start, piece.count());
        match self.meeting(range) {
            // The common cases first: a run over nothing, or over exactly the same blocks.
            Meeting::Apart => {}
            Meeting::Same => {
                if let Some(old) = self.runs.get_mut(&start) {
                    replaced(start, std::mem::replace(old, piece));
                }
                return;
            }
            Meeting::Other => self.remove_parts(range, replaced),
        }
        self.runs.insert(start, piece);
    }

    /// Takes everything out of a range, handing it to `taken` piece by piece.
    pub fn remove(&mut self, range: BlockRange, mut taken: impl FnMut(u64, P)) {
        match self.meeting(range) {
            Meeting::Apart => {}
            Meeting::Same => {
                if let Some(whole) = self.runs.remove(&range.start.0) {
                    taken(range.start.0, whole);
                }
            }
            Meeting::Other => self.remove_parts(range, taken),
        }
    }

    /// How a range meets the runs, by one look at the last that begins before its end.
    fn meeting(&self, range: BlockRange) -> Meeting {
        let start = range.start.0;
        match self.runs.range(..range.end()).next_back() {
            _ if range.is_empty() => Meeting::Apart,
            Some((&first, piece)) if first + piece.count() > start => {
                match first == start && piece.count() == range.count {
                    true => Meeting::Same,
                    false => Meeting::Other,
                }
            }
            _ => Meeting::Apart,
        }
    }

    fn remove_parts(&mut self, range: BlockRange, mut taken: impl FnMut(u64, P)) {
        let (start, end) = (range.start.0, range.end());
        if let Some((&first, piece)) = self.runs.range(..start).next_back() {
            let piece_end = first + piece.count();
            if piece_end > start {
                let whole = piece.clone();
                self.runs.insert(first, whole.part(0, start - first));
                let upto = piece_end.min(end);
                taken(start, whole.part(start - first, upto - start));
                if piece_end > end {
                    self.runs
                        .insert(end, whole.part(end - first, piece_end - end));
                }
            }
        }
        while let Some((&first, piece)) = self.runs.range(start..end).next() {
            let count = piece.count();
            let Some(whole) = self.runs.remove(&first) else {
                break;
            };
            if first + count > end {
                self.runs
                    .insert(end, whole.part(end - first, first + count - end));
                taken(first, whole.part(0, end - first));
            } else {
                taken(first, whole);
            }
        }
    }

    /// The pieces within a range, cut to it, by first block.
    pub fn overlapping(&self, range: BlockRange) -> impl Iterator<Item = (u64, P)> + '_ {
        let (start, end) = (range.start.0, range.end());
        let from = self
            .runs
            .range(..=start)
            .next_back()
            .filter(|(first, piece)| *first + piece.count() > start)
            .map_or(start, |(first, _)| *first);
        self.runs
            .range(from..end.max(from))
            .map(move |(first, piece)| {
                let lo = (*first).max(start);
                let hi = (first + piece.count()).min(end);
                (lo, piece.part(lo - first, hi - lo))
            })
    }

    /// All runs, by first block.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &P)> {
        self.runs.iter().map(|(start, piece)| (*start, piece))
    }

    /// One past the last block of any run.
    pub fn end(&self) -> u64 {
        let last = self.runs.iter().next_back();
        last.map_or(0, |(start, piece)| start + piece.count())
    }

    /// The first piece at or after block `from`, cut to begin there.
    pub fn next_from(&self, from: u64) -> Option<(u64, P)> {
        self.overlapping(BlockRange::new(from, u64::MAX - from))
            .next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct P(u64, u64); // first value, count: block i has value first + i
    impl Piece for P {
        fn count(&self) -> u64 {
            self.1
        }
        fn part(&self, from: u64, count: u64) -> Self {
            P(self.0 + from, count)
        }
    }

    #[test]
    fn agrees_with_an_array_under_random_inserts_and_removes() {
        let mut state = 1u64;
        let mut random = move |n: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % n
        };
        let mut map = IntervalMap::default();
        let mut model = [0u64; 64];
        for round in 1..5000u64 {
            let start = random(64);
            let count = 1 + random(64 - start);
            let range = BlockRange::new(start, count);
            let mut covered = [0u64; 64];
            let mut note = |at: u64, p: P| {
                (0..p.1).for_each(|i| covered[usize::try_from(at + i).expect("small")] = p.0 + i);
            };
            if random(4) == 0 {
                map.remove(range, &mut note);
            } else {
                map.insert(start, P(round * 1000, count), &mut note);
            }
            for b in 0..64u64 {
                let i = usize::try_from(b).expect("small");
                let inside = (start..start + count).contains(&b);
                assert_eq!(covered[i], if inside { model[i] } else { 0 });
            }
            let mut seen = [0u64; 64];
            for (at, p) in map.overlapping(range) {
                (0..p.1).for_each(|i| seen[usize::try_from(at + i).expect("small")] = p.0 + i);
            }
            for b in start..start + count {
                let i = usize::try_from(b).expect("small");
                let is_set = map.iter().any(|(s, p)| (s..s + p.1).contains(&b));
                model[i] = if is_set { round * 1000 + b - start } else { 0 };
                assert_eq!(seen[i], model[i]);
            }
        }
    }
}
