//! What garbage collection costs once a store is full of overwrites: the engine itself over memory, a
//! volume that takes a share of the usable space (the reserve is not usable), single blocks
//! overwritten at random for several times its size. Counts, the same in every run on any machine.
//!
//! `cargo run --release -p esker-benches --bin steady-state [--quick] [--turns N] [--percent N]
//! [--streams-to N] [--csv FILE]` prints a Markdown table, and writes the course of each run as CSV. The
//! second half of the turns counts.

use esker_base::num::to_u64;
use esker_benches::memory::{config, MemoryDevice, MemoryStore, Random, Traffic};
use esker_engine::EngineConfig;
use std::fmt::Write as _;

const MIB: u64 = 1 << 20;
/// Turns of the volume: blocks written by its blocks.
const TURNS: u64 = 6;
/// Blocks in a record: what arrives while the one before is written, at a queue depth of 32.
const BATCH: usize = 16;
/// Points of the course per turn.
const POINTS: u64 = 10;

/// How blocks are chosen.
#[derive(Clone, Copy, Debug)]
enum Pattern {
    /// All alike.
    Uniform,
    /// By a Zipf distribution of exponent 0.99 (as YCSB has it), scattered over the volume.
    Zipfian,
}

/// Zipfian numbers below a bound (Gray et al., "Quickly Generating Billion-Record Synthetic
/// Databases", 1994).
struct Zipf {
    n: f64,
    alpha: f64,
    zeta: f64,
    eta: f64,
}

#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)]
impl Zipf {
    const THETA: f64 = 0.99;

    fn new(n: u64) -> Self {
        let zeta = |n: u64| (1..=n).map(|i| (i as f64).powf(-Self::THETA)).sum::<f64>();
        let all = zeta(n);
        let n = n as f64;
        Self {
            n,
            alpha: 1.0 / (1.0 - Self::THETA),
            zeta: all,
            eta: (1.0 - (2.0 / n).powf(1.0 - Self::THETA)) / (1.0 - zeta(2) / all),
        }
    }

    fn next(&self, random: &mut Random) -> u64 {
        let u = random.below(1 << 53) as f64 / (1u64 << 53) as f64;
        let uz = u * self.zeta;
        if uz < 1.0 {
            return 0;
        }
        if uz < 1.0 + 0.5f64.powf(Self::THETA) {
            return 1;
        }
        (self.n * (self.eta * u - self.eta + 1.0).powf(self.alpha)) as u64
    }
}

fn per(part: u64, whole: u64) -> f64 {
    #[allow(clippy::cast_precision_loss)] // printed with two digits
    let float = |n: u64| n as f64;
    float(part) / float(whole.max(1))
}

fn written(t: &Traffic) -> u64 {
    t.payload_bytes
        + t.header_bytes
        + t.node_bytes
        + t.table_bytes
        + t.superblock_bytes
        + t.survivor_bytes
}

/// The store of a run.
struct Shape {
    store_bytes: u64,
    segment_bytes: u64,
    /// Kinds of survivors kept apart.
    streams: usize,
    turns: u64,
}

/// One run: `percent` of the usable space is live.
fn row(shape: &Shape, percent: u64, pattern: Pattern, course: &mut String) {
    let store_bytes = shape.store_bytes;
    let config = EngineConfig {
        segment_bytes: shape.segment_bytes,
        survivor_streams: shape.streams,
        checkpoint_bytes: EngineConfig::default().checkpoint_bytes,
        ..config(store_bytes, 64 << 20)
    };
    let mut store = MemoryStore::open(config, MemoryDevice::blank(false));
    let space = store.engine.space();
    let usable = space.total_bytes - space.reserve_bytes;
    let blocks = usable * percent / 100 / 4096;
    store.create(blocks);
    for lba in (0..blocks).step_by(256) {
        let count = 256.min(blocks - lba);
        store.write(&[(lba, usize::try_from(count).unwrap_or(256))]);
    }
    let mut random = Random(7);
    let zipf = Zipf::new(blocks);
    // Neighbours in popularity are not neighbours on the volume: an odd factor is a bijection only
    // modulo a power of two, so a few blocks are never chosen; they are the cold ones.
    let scatter = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % blocks;
    let (mut settled, mut last) = (store.device.traffic, store.device.traffic);
    let mut worst: f64 = 0.0;
    let tenth = blocks / POINTS;
    for tenths in 0..shape.turns * POINTS {
        if tenths == shape.settled() {
            settled = store.device.traffic;
        }
        for _ in 0..tenth / to_u64(BATCH) {
            let runs = std::array::from_fn::<_, BATCH, _>(|_| {
                let lba = match pattern {
                    Pattern::Uniform => random.below(blocks),
                    Pattern::Zipfian => scatter(zipf.next(&mut random)),
                };
                (lba, 1)
            });
            store.write(&runs);
        }
        let t = store.device.traffic.since(&last);
        last = store.device.traffic;
        let amplification = per(written(&t), t.payload_bytes);
        if tenths >= shape.settled() {
            worst = worst.max(amplification);
        }
        let turns = per(tenths + 1, POINTS);
        let _ = writeln!(
            course,
            "{pattern:?},{percent},{turns:.1},{amplification:.3}"
        );
    }
    let t = store.device.traffic.since(&settled);
    println!(
        "| {percent} % | {pattern:?} | {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {} |",
        shape.streams,
        per(written(&t), t.payload_bytes),
        worst,
        per(t.header_bytes, t.payload_bytes),
        per(t.node_bytes, t.payload_bytes),
        per(t.table_bytes + t.superblock_bytes, t.payload_bytes),
        per(t.survivor_bytes, t.payload_bytes),
        store.engine.sample().pieces,
    );
}

impl Shape {
    /// Tenths of a turn before what counts as steady.
    fn settled(&self) -> u64 {
        self.turns / 2 * POINTS
    }
}

/// The number behind an option.
fn number(args: &[String], option: &str) -> Option<u64> {
    let at = args.iter().position(|arg| arg == option)?;
    args.get(at + 1)?.parse().ok()
}

fn main() -> std::io::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let quick = args.iter().any(|arg| arg == "--quick");
    let csv = args
        .iter()
        .position(|arg| arg == "--csv")
        .and_then(|at| args.get(at + 1));
    let (store_bytes, segment_bytes) = match quick {
        true => (512 * MIB, 2 * MIB),
        false => (4096 * MIB, 16 * MIB),
    };
    let turns = number(&args, "--turns").unwrap_or(TURNS).max(2);
    println!(
        "A store of {} MiB in segments of {} MiB; after {} turns of the volume, bytes to the device per byte written:",
        store_bytes / MIB,
        segment_bytes / MIB,
        turns / 2,
    );
    println!();
    println!("| live of usable | pattern | streams | all | worst tenth of a turn | headers | map | tables | survivors | pieces |");
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let usual = EngineConfig::default().survivor_streams;
    let streams = match number(&args, "--streams-to").and_then(|n| usize::try_from(n).ok()) {
        Some(last) => 1..last + 1,
        None => usual..usual + 1,
    };
    let mut course = String::from("pattern,live_percent,turns,amplification\n");
    for pattern in [Pattern::Uniform, Pattern::Zipfian] {
        for percent in [50, 75, 90] {
            if number(&args, "--percent").is_some_and(|only| only != percent) {
                continue;
            }
            for streams in streams.clone() {
                let shape = Shape {
                    store_bytes,
                    segment_bytes,
                    streams,
                    turns,
                };
                row(&shape, percent, pattern, &mut course);
            }
        }
    }
    csv.map_or(Ok(()), |file| std::fs::write(file, course))
}
