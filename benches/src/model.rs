//! What the map would cost to write in other forms: a prototype that keeps block numbers only, and
//! counts pages.

use crate::memory::Random;
use esker_base::num::to_u64;
use std::collections::HashSet;

/// Blocks under a leaf, and children under an inner node.
const FANOUT: u64 = 128;

/// Nodes of a tree over `blocks` blocks that change when these blocks do, leaves and all above.
/// `lbas` is sorted.
#[must_use]
pub fn tree_nodes(lbas: &[u64], blocks: u64) -> u64 {
    let (mut nodes, mut span) = (0, FANOUT);
    loop {
        let mut last = u64::MAX;
        for lba in lbas {
            let node = lba / span;
            nodes += u64::from(node != last);
            last = node;
        }
        if span >= blocks {
            return nodes;
        }
        span *= FANOUT;
    }
}

/// Sorted runs of map entries that are merged by size, and now and then into the tree.
#[derive(Clone, Copy, Debug)]
pub struct Runs {
    /// Bytes of an entry in a run: block number, address, stamp, authenticator.
    pub entry_bytes: u64,
    /// Runs of one size that become one of the next.
    pub fan_in: usize,
    /// Entries in all runs at which they are merged into the tree.
    pub entries_max: u64,
}

/// What a number of checkpoints cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunsCost {
    /// Blocks that clients wrote.
    pub blocks: u64,
    /// Pages of runs written.
    pub run_pages: u64,
    /// Tree nodes written.
    pub tree_pages: u64,
    /// Pages of runs and nodes read to merge them.
    pub pages_read: u64,
    /// Most runs there were at a time: what a lookup may have to ask.
    pub runs_max: u64,
    /// Most bytes that runs had.
    pub bytes_max: u64,
    /// Times everything was merged into the tree.
    pub merges: u64,
}

impl Runs {
    fn pages(&self, entries: usize) -> u64 {
        (to_u64(entries) * self.entry_bytes).div_ceil(4096)
    }

    /// Uniform random writes of single blocks until the tree was merged `merges` times, with a
    /// checkpoint after every `interval` blocks.
    #[must_use]
    pub fn simulate(&self, blocks: u64, interval: u64, merges: u64) -> RunsCost {
        let mut cost = RunsCost::default();
        let mut random = Random(1);
        // Runs by size class, smallest first.
        let mut classes: Vec<Vec<Vec<u64>>> = vec![Vec::new()];
        while cost.merges < merges {
            let fresh: HashSet<u64> = (0..interval).map(|_| random.below(blocks)).collect();
            let mut run: Vec<u64> = fresh.into_iter().collect();
            run.sort_unstable();
            cost.blocks += interval;
            cost.run_pages += self.pages(run.len());
            classes[0].push(run);
            let mut class = 0;
            while classes[class].len() >= self.fan_in {
                let together = std::mem::take(&mut classes[class]);
                cost.pages_read += together.iter().map(|r| self.pages(r.len())).sum::<u64>();
                let merged = merge(together);
                cost.run_pages += self.pages(merged.len());
                class += 1;
                if classes.len() == class {
                    classes.push(Vec::new());
                }
                classes[class].push(merged);
            }
            let runs = || classes.iter().flatten();
            let entries: usize = runs().map(Vec::len).sum();
            cost.runs_max = cost.runs_max.max(to_u64(runs().count()));
            cost.bytes_max = cost.bytes_max.max(self.pages(entries) * 4096);
            if to_u64(entries) >= self.entries_max {
                let all: Vec<Vec<u64>> = classes.drain(..).flatten().collect();
                cost.pages_read += all.iter().map(|r| self.pages(r.len())).sum::<u64>();
                let nodes = tree_nodes(&merge(all), blocks);
                cost.pages_read += nodes;
                cost.tree_pages += nodes;
                cost.merges += 1;
                classes = vec![Vec::new()];
            }
        }
        cost
    }
}

fn merge(runs: Vec<Vec<u64>>) -> Vec<u64> {
    let mut all = Vec::with_capacity(runs.iter().map(Vec::len).sum());
    runs.into_iter().for_each(|run| all.extend(run));
    all.sort_unstable();
    all.dedup();
    all
}

/// Nodes that change, on average, when `writes` blocks of `blocks` are drawn at random.
#[must_use]
pub fn tree_nodes_expected(writes: u64, blocks: u64) -> f64 {
    #[allow(clippy::cast_precision_loss)] // an estimate
    let float = |n: u64| n as f64;
    let (mut nodes, mut span) = (0.0, FANOUT);
    loop {
        let count = float(blocks.div_ceil(span));
        nodes += count * (1.0 - (1.0 - 1.0 / count).powf(float(writes)));
        if span >= blocks {
            return nodes;
        }
        span *= FANOUT;
    }
}

/// Bytes of the segments' table of a checkpoint, both copies: what live slots cost when every
/// segment in use is neither full nor nearly empty.
#[must_use]
pub fn table_bytes(device_bytes: u64, segment_bytes: u64) -> u64 {
    let slots = segment_bytes / 4096;
    device_bytes / segment_bytes * (16 + slots / 8) * 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_counted_once_per_level() {
        assert_eq!(tree_nodes(&[0, 1, 127, 128, 16_384], 1 << 20), 3 + 2 + 1);
        let mut random = Random(3);
        let mut lbas: Vec<u64> = (0..10_000).map(|_| random.below(1 << 20)).collect();
        lbas.sort_unstable();
        let expected = tree_nodes_expected(10_000, 1 << 20);
        let counted = tree_nodes(&lbas, 1 << 20);
        assert!((expected - f64::from(u32::try_from(counted).expect("few"))).abs() < 60.0);
    }

    #[test]
    fn runs_are_merged_when_there_are_enough_of_them() {
        let runs = Runs {
            entry_bytes: 37,
            fan_in: 4,
            entries_max: 15_000,
        };
        let cost = runs.simulate(1 << 24, 1000, 1);
        assert_eq!(cost.merges, 1);
        assert!(cost.blocks >= 15_000 && cost.blocks < 17_000);
        // 16 runs of 1000 become 4 of 4000; a full class never stays.
        assert!(cost.runs_max <= 3 + 3 + 1);
    }
}
