//! Replays a seed of the whole-node simulator, or hunts for one that fails.

use esker_engine::Sabotage;
use esker_tests::world::hunt::{hunt, run_caught};
use esker_tests::world::{Options, Stats};
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "\
usage: esker-sim --seed N [--nodes 1|3|4..7] [--steps N] [--sabotage NAME] [--full] [--whole] [--no-clones] [--no-zeros] [--no-renewals] [--no-holders] [--no-cuts] [--lease MS] [--plain] [-v]
       esker-sim --hunt MINUTES [--from N] [--count N] [--nodes 1|3|4..7] [--steps N] [--sabotage NAME] [--full] [--whole] [--no-clones] [--no-zeros] [--no-renewals] [--no-holders] [--no-cuts] [--lease MS] [--plain] [--twice]

A hunt runs --count seeds (all there are) from --from (0) on, for MINUTES at most.
--full: some stores are too small for what is written to them.
--lease: how long leaders answer reads without asking; 0 never. Seeds from before there were leases want that.
--plain: without what was added to the worlds later; regression seeds may ask for it.
Sabotage names: IgnoreDurableSeq, CutNotDurable, LiveBitLate, AckBeforeSync, ReuseBeforeCheckpoint, MoveUnwritten, ForgetTablePage, ForgetVersionPage,
ReturnStamps, ResumeStamps, OpenWhileZeroed";

struct Args {
    options: Options,
    hunt_minutes: Option<f64>,
    from: u64,
    count: u64,
    twice: bool,
}

fn parse() -> Option<Args> {
    let mut args = Args {
        options: Options::new(0),
        hunt_minutes: None,
        from: 0,
        count: u64::MAX,
        twice: false,
    };
    let (mut given, mut words) = (false, std::env::args().skip(1));
    while let Some(word) = words.next() {
        match word.as_str() {
            "--seed" => (args.options.seed, given) = (words.next()?.parse().ok()?, true),
            "--nodes" => args.options.nodes = Some(words.next()?.parse().ok()?),
            "--steps" => args.options.steps = words.next()?.parse().ok()?,
            "--sabotage" => args.options.sabotage = sabotage(&words.next()?)?,
            "--hunt" => (args.hunt_minutes, given) = (Some(words.next()?.parse().ok()?), true),
            "--from" => args.from = words.next()?.parse().ok()?,
            "--count" => args.count = words.next()?.parse().ok()?,
            "--twice" => args.twice = true,
            "--whole" => {
                let o = &mut args.options;
                (o.block_damage, o.clones, o.keys_of_three) = (false, false, false);
            }
            "--no-clones" => (args.options.clones, args.options.keys_of_three) = (false, false),
            "--no-holders" => args.options.holders = false,
            "--no-cuts" => args.options.cuts = false,
            "--no-renewals" => args.options.keys_of_three = false,
            "--lease" => args.options.lease_ms = words.next()?.parse().ok()?,
            "--no-zeros" => args.options.zero_ahead = false,
            "--plain" => args.options.extras = false,
            "--full" => args.options.full_stores = true,
            "-v" => args.options.verbose = true,
            _ => return None,
        }
    }
    given.then_some(args)
}

fn sabotage(name: &str) -> Option<Sabotage> {
    [
        Sabotage::IgnoreDurableSeq,
        Sabotage::CutNotDurable,
        Sabotage::LiveBitLate,
        Sabotage::AckBeforeSync,
        Sabotage::ReuseBeforeCheckpoint,
        Sabotage::MoveUnwritten,
        Sabotage::ForgetTablePage,
        Sabotage::ForgetVersionPage,
        Sabotage::ReturnStamps,
        Sabotage::ResumeStamps,
        Sabotage::OpenWhileZeroed,
    ]
    .into_iter()
    .find(|s| format!("{s:?}") == name)
}

fn print_stats(stats: &Stats) {
    for (kind, n) in &stats.faults {
        println!("  fault  {kind:<36} {n}");
    }
    for (kind, n) in &stats.work {
        println!("  work   {kind:<36} {n}");
    }
    println!("  branches taken: {:?}", stats.probes);
}

fn main() -> ExitCode {
    let Some(args) = parse() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if let Some(minutes) = args.hunt_minutes {
        std::panic::set_hook(Box::new(|_| {})); // told as failures
        let time = Duration::from_secs_f64(minutes * 60.0);
        let found = hunt(args.options, args.from, args.count, time, args.twice);
        print_stats(&found.stats);
        println!("  branches missed: {:?}", found.probes_missed());
        println!("{}", found.summary());
        return ExitCode::from(u8::from(!found.failures.is_empty()));
    }
    let outcome = run_caught(args.options);
    print_stats(&outcome.stats);
    println!(
        "seed {} with {} nodes: trace {:016x}, {} events, {:.3} s of virtual time",
        outcome.seed,
        outcome.nodes,
        outcome.trace,
        outcome.steps,
        Duration::from_nanos(outcome.virtual_ns).as_secs_f64()
    );
    match outcome.violation {
        None => ExitCode::SUCCESS,
        Some(violation) => {
            println!("VIOLATION {violation}");
            ExitCode::FAILURE
        }
    }
}
