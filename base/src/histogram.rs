//! Distributions of durations and sizes, for metrics: an observation is a few integer operations.

/// Buckets; the last one also takes everything above its bound.
const BUCKETS: usize = 88;

/// Counts of values by size, two buckets per power of two, so that a quantile read from it is at
/// most half of its value off.
///
/// The bounds are 1, 2, 3, 4, 6, 8, 12, 16 … 2^44, each inclusive. The unit is the caller's:
/// nanoseconds, bytes or a number of things.
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; BUCKETS],
    count: u64,
    sum: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: [0; BUCKETS],
            count: 0,
            sum: 0,
        }
    }
}

impl Histogram {
    /// Takes a value in.
    #[inline]
    pub fn observe(&mut self, value: u64) {
        self.counts[bucket_of(value)] += 1;
        self.count += 1;
        self.sum = self.sum.wrapping_add(value); // as counters do: who reads it takes differences
    }

    /// Number of values.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their sum.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// The number of values at most as large as each of these bounds, in rising order. Exact for
    /// bounds of this histogram (see [`Histogram::bounds`]); others are rounded down to one.
    #[must_use]
    pub fn cumulative(&self, bounds: &[u64]) -> Vec<u64> {
        let mut counts = Vec::with_capacity(bounds.len());
        let (mut bucket, mut sum) = (0, 0);
        for bound in bounds {
            while bucket < BUCKETS && bound_of(bucket) <= *bound {
                sum += self.counts[bucket];
                bucket += 1;
            }
            counts.push(sum);
        }
        counts
    }

    /// The bounds from `first` to `last`, both of them bounds themselves; with `halves` two per
    /// power of two, otherwise the powers of two.
    #[must_use]
    pub fn bounds(first: u64, last: u64, halves: bool) -> Vec<u64> {
        (0..BUCKETS)
            .map(bound_of)
            .filter(|bound| (first..=last).contains(bound))
            .filter(|bound| halves || bound.is_power_of_two())
            .collect()
    }
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Histogram({} values, sum {})", self.count, self.sum)
    }
}

/// The bucket a value belongs to.
#[inline]
fn bucket_of(value: u64) -> usize {
    let below = value.saturating_sub(1); // bounds are inclusive
    if below < 2 {
        return usize::from(below == 1);
    }
    let power = below.ilog2() as usize; // at least 1
    let half = usize::from(below >> (power - 1) & 1 == 1);
    (2 * power + half).min(BUCKETS - 1)
}

/// The largest value that belongs to a bucket.
const fn bound_of(bucket: usize) -> u64 {
    match bucket {
        0 => 1,
        1 => 2,
        _ => (3 + (bucket as u64 & 1)) << (bucket / 2 - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_rise_and_each_value_lies_below_its_own() {
        let bounds: Vec<u64> = (0..BUCKETS).map(bound_of).collect();
        assert_eq!(bounds[..9], [1, 2, 3, 4, 6, 8, 12, 16, 24]);
        assert_eq!(bounds[BUCKETS - 1], 1 << 44);
        assert!(bounds.windows(2).all(|pair| pair[0] < pair[1]));
        for (bucket, bound) in bounds.iter().enumerate() {
            assert_eq!(bucket_of(*bound), bucket, "{bound} belongs to its bucket");
            let next = (bucket + 1).min(BUCKETS - 1);
            assert_eq!(bucket_of(bound + 1), next, "{bound} + 1 to the next");
        }
        assert_eq!(bucket_of(0), 0);
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn counts_are_cumulative_and_nothing_is_lost() {
        let mut histogram = Histogram::default();
        for value in [0, 1, 5, 6, 7, 1 << 50] {
            histogram.observe(value);
        }
        assert_eq!((histogram.count(), histogram.sum()), (6, 19 + (1 << 50)));
        assert_eq!(
            histogram.cumulative(&[2, 4, 6, 8, 1 << 20]),
            [2, 2, 4, 5, 5]
        );
        assert_eq!(histogram.cumulative(&[7]), [4], "rounded down to 6");
        assert_eq!(Histogram::bounds(4, 16, true), [4, 6, 8, 12, 16]);
        assert_eq!(Histogram::bounds(4, 16, false), [4, 8, 16]);
    }
}
