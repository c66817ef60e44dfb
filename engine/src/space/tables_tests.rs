//! Tests of the tables on the device: what is read back is what was frozen, and what a checkpoint
//! writes of them follows what changed.

use super::load::{load_all, SpaceLoader};
use super::*;
use crate::format::checkpoint::{Checkpoint, SegmentKind};
use crate::format::table::{Place, TableId};
use crate::format::vaddr::VAddr;
use crate::table::PageContext;
use esker_base::StoreId;
use std::collections::{BTreeMap, BTreeSet};

const STORE: StoreId = StoreId(5);

/// Segments, and a device that keeps pages of tables.
struct Bench {
    segs: Segments,
    slots: u32,
    shape: TableShape,
    open: Option<(u32, u64, u32)>,
    device: BTreeMap<(u32, u32), Vec<u8>>,
    sequence: u64,
    seed: u64,
}

impl Bench {
    fn new(count: u32, slots: u32, shape: TableShape) -> Self {
        Self {
            segs: Segments::blank(count, slots, shape),
            slots,
            shape,
            open: None,
            device: BTreeMap::new(),
            sequence: 0,
            seed: 7,
        }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.seed ^ (self.seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    /// Fills so many segments, all slots live.
    fn fill(&mut self, count: u32) -> Vec<u64> {
        let mut generations = Vec::new();
        for _ in 0..count {
            let (number, generation) = self.segs.open(SegmentKind::Log).expect("free");
            self.segs.set_written(number, self.slots);
            let first = VAddr::new(generation, 0);
            self.segs
                .set_live(first, self.slots.into())
                .expect("dead before");
            self.segs.seal(number);
            generations.push(generation);
        }
        generations
    }

    /// Kills a random slot if it lives.
    fn kill_one(&mut self, generations: &[u64]) {
        let at = self.below(generations.len() as u64);
        let generation = generations[usize::try_from(at).expect("small")];
        let slot = u32::try_from(self.below(self.slots.into())).expect("small");
        let vaddr = VAddr::new(generation, slot);
        if self.segs.is_live(vaddr) {
            self.segs.kill(vaddr, 1).expect("live");
        }
    }

    fn take(&mut self) -> (u32, u64, u32) {
        if self.open.is_none_or(|(_, _, slot)| slot >= self.slots) {
            if let Some((old, ..)) = self.open {
                self.segs.seal(old);
            }
            let (number, generation) = self.segs.open(SegmentKind::Map).expect("free");
            self.open = Some((number, generation, 0));
        }
        let (number, generation, slot) = self.open.expect("opened");
        self.open = Some((number, generation, slot + 1));
        self.segs.set_written(number, slot + 1);
        (number, generation, slot)
    }

    /// A checkpoint; gives the pages it wrote, one copy of each.
    fn checkpoint(&mut self) -> usize {
        self.sequence += 1;
        self.segs.freeze();
        let context = PageContext {
            store: STORE,
            sequence: self.sequence,
        };
        self.segs.begin_tables(self.sequence).expect("live");
        let mut written = 0;
        for id in [TableId::Deaths, TableId::Pieces, TableId::Segments] {
            while let Some(batch) = self.segs.next_batch(id, &context) {
                let mut places = Vec::new();
                let pages: Vec<Vec<u8>> = batch.pages().map(<[u8]>::to_vec).collect();
                written += pages.len();
                for page in pages {
                    let mut copies = [Place::NONE; 2];
                    for copy in &mut copies {
                        let (number, generation, slot) = self.take();
                        self.device.insert((number, slot), page.clone());
                        *copy = match id {
                            TableId::Deaths => Place::virtual_at(VAddr::new(generation, slot)),
                            _ => Place::physical(number, slot),
                        };
                    }
                    places.push(copies);
                }
                self.segs.placed(id, batch, &places).expect("dead before");
            }
        }
        let freed = self.segs.emptied(u64::MAX, &BTreeSet::new());
        for number in &freed {
            let last = self.slots - 1;
            let gone: Vec<_> = self.device.range((*number, 0)..=(*number, last)).collect();
            let gone: Vec<(u32, u32)> = gone.into_iter().map(|(at, _)| *at).collect();
            gone.iter().for_each(|at| _ = self.device.remove(at));
        }
        // What is live now is frozen as well, but for the pages that were written meanwhile.
        let frozen = self.segs.frozen.clone().expect("frozen");
        self.check(&frozen);
        self.segs.release(&freed);
        written
    }

    /// Reads the tables back and holds them against what they should say.
    fn check(&self, frozen: &table::Table) {
        let checkpoint = Checkpoint {
            tables: self.segs.table_roots(),
            ..Checkpoint::default()
        };
        let count = u64::from(self.segs.count());
        let loader = SpaceLoader::new(&checkpoint, STORE, count, self.slots, self.shape);
        let mut loader = loader.expect("all tables");
        let mut read = |segment, slot| self.device.get(&(segment, slot)).cloned();
        load_all(&mut loader, &mut read).expect("all there");
        let (_, pieces) = loader.entries();
        let alive = |live: u32| live > 0;
        let found: BTreeMap<VAddr, Vec<u64>> = pieces
            .iter()
            .filter(|(_, p)| alive(p.live.count()))
            .map(|(key, p)| (*key, p.live.words()))
            .collect();
        let expected: BTreeMap<VAddr, Vec<u64>> = frozen
            .pieces
            .iter()
            .filter(|(_, p)| alive(p.live_count()))
            .map(|(key, p)| (*key, p.live.words()))
            .collect();
        assert!(found == expected, "live slots differ");
        let loaded = loader.finish(1 << 20, &BTreeSet::new()).expect("agrees");
        assert_eq!(loaded.live_slots(), frozen.live);
    }
}

/// Slots die all over the store between checkpoints, segments are reused, runs are read and dropped;
/// with pages of any size.
#[test]
fn what_is_read_back_is_what_was_frozen() {
    for (content_max, rewrite_min) in [(64, 1), (200, 3), (4032, 0)] {
        let shape = TableShape {
            content_max,
            rewrite_min,
            audit: false,
        };
        let mut bench = Bench::new(200, 64, shape);
        let mut filled = bench.fill(60);
        let mut with_runs = 0;
        for round in 0..120 {
            for _ in 0..bench.below(200) {
                bench.kill_one(&filled);
            }
            if round % 10 == 9 {
                filled.extend(bench.fill(8));
            }
            bench.checkpoint();
            with_runs += usize::from(bench.segs.tables.deaths.leaf_count() > 0);
        }
        assert!(with_runs > 50, "runs of deaths were there: {with_runs}");
    }
}

/// A store of 64 GiB whose segments are half dead, and 65,536 slots that die at random between
/// checkpoints (256 MiB of log): every piece changes. The pages of the whole table are some 500; a
/// checkpoint writes a fraction of them and the deaths. `ESKER_TABLE_GIB` gives another size.
#[test]
fn a_checkpoint_writes_a_fraction_of_the_tables() {
    let gib = std::env::var("ESKER_TABLE_GIB").ok();
    let gib: u32 = gib.and_then(|gib| gib.parse().ok()).unwrap_or(64);
    let shape = TableShape {
        content_max: crate::format::table::CONTENT_MAX,
        rewrite_min: 64,
        audit: false,
    };
    let mut bench = Bench::new(gib * 16 + 400, 16384, shape);
    let filled = bench.fill(gib * 16);
    let whole = bench.checkpoint();
    for generation in &filled {
        for slot in 0..8192 {
            bench
                .segs
                .kill(VAddr::new(*generation, slot * 2), 1)
                .expect("live");
        }
    }
    let half_dead = bench.checkpoint();
    let mut most = 0;
    let mut sum = 0;
    let rounds = 12;
    for _ in 0..rounds {
        for _ in 0..65_536 {
            bench.kill_one(&filled);
        }
        let written = bench.checkpoint();
        most = written.max(most);
        sum += written;
    }
    let mean = sum / rounds;
    println!(
        "{gib} GiB: all live {whole} pages, half dead {half_dead}, then {mean} per checkpoint, at most {most}"
    );
    assert!(half_dead > usize::try_from(gib).expect("small") * 7);
    assert!(most * 2 < half_dead, "{most} of {half_dead} pages");
}
