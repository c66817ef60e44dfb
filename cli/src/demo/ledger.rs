//! What was asked for and what was answered, block by block: the measure of what is read.

use super::content::Generation;
use esker_base::BLOCK_SIZE_U64;
use std::time::{Duration, Instant};

/// Every block's generations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    /// The newest one that was answered.
    pub answered: Vec<Generation>,
    /// The newest one that was sent. Above `answered` while it is on its way.
    pub sent: Vec<Generation>,
}

impl Ledger {
    /// Nothing has been written.
    #[must_use]
    pub fn new(blocks: usize) -> Self {
        Self {
            answered: vec![0; blocks],
            sent: vec![0; blocks],
        }
    }

    /// Bytes of the blocks that have been written since `then`, each counted once.
    #[must_use]
    pub fn changed_bytes(&self, then: &Self) -> u64 {
        let pairs = self.answered.iter().zip(&then.answered);
        count(pairs.filter(|(now, then)| now != then)) * BLOCK_SIZE_U64
    }

    /// Bytes of the writes that have been answered since `then`, each counted.
    #[must_use]
    pub fn written_bytes(&self, then: &Self) -> u64 {
        let sum = |ledger: &Self| ledger.answered.iter().map(|g| u64::from(*g)).sum::<u64>();
        (sum(self) - sum(then)) * BLOCK_SIZE_U64
    }

    /// What a version of the volume may hold that was taken after `before` and before `self` was known: nothing of what was
    /// answered before may be missing, and nothing may be there that had not been asked for.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            answered: before.answered.clone(),
            sent: self.sent.clone(),
        }
    }

    /// What a version holds that was found like this: the same for ever.
    #[must_use]
    pub fn exactly(found: Vec<Generation>) -> Self {
        Self {
            answered: found.clone(),
            sent: found,
        }
    }
}

fn count(items: impl Iterator) -> u64 {
    items.fold(0, |n, _| n + 1)
}

/// What clients saw in a while.
#[derive(Debug)]
pub struct Seen {
    began: Instant,
    /// How long writes took, in microseconds.
    pub writes_us: Vec<u32>,
    /// How long reads took, in microseconds.
    pub reads_us: Vec<u32>,
    /// Answers that were an error.
    pub errors: u64,
    /// Reads that held something else than they must; the first one in words.
    pub wrong: Option<String>,
}

impl Seen {
    /// Nothing so far.
    #[must_use]
    pub fn from_now() -> Self {
        Self {
            began: Instant::now(),
            writes_us: Vec::new(),
            reads_us: Vec::new(),
            errors: 0,
            wrong: None,
        }
    }

    /// Since when.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// The longest that a request took, in milliseconds.
    #[must_use]
    pub fn longest_ms(&self) -> f64 {
        let all = self.writes_us.iter().chain(&self.reads_us);
        f64::from(all.max().copied().unwrap_or(0)) / 1000.0
    }
}

/// The value below which `share` of 100 lie; 0 of none.
#[must_use]
pub fn percentile(values: &[u32], share: usize) -> u32 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let at = (sorted.len() * share / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_blocks_count_once_and_writes_each_time() {
        let then = Ledger {
            answered: vec![1, 1, 1],
            sent: vec![1, 1, 2],
        };
        let now = Ledger {
            answered: vec![1, 4, 2],
            sent: vec![1, 4, 3],
        };
        assert_eq!(now.changed_bytes(&then), 2 * BLOCK_SIZE_U64);
        assert_eq!(now.written_bytes(&then), 4 * BLOCK_SIZE_U64);
        let between = now.since(&then);
        assert_eq!(
            (between.answered, between.sent),
            (vec![1, 1, 1], vec![1, 4, 3])
        );
    }

    #[test]
    fn percentiles() {
        let values: Vec<u32> = (0..200).rev().collect();
        assert_eq!(
            (percentile(&values, 50), percentile(&values, 99)),
            (100, 198)
        );
        assert_eq!(percentile(&values, 100), 199);
        assert_eq!(percentile(&[], 50), 0);
    }
}
