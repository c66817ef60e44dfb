//! Rewind with the real clock: what a clone at a moment holds, before and after `kill -9`.

use crate::client::FUA;
use crate::harness::{run, Daemon, Folder, Start};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long the volume is written to.
const WRITTEN: Duration = Duration::from_secs(8);
/// Longest that the test lets the daemon sleep: the machine may be busy with something else.
const LATE_US_MAX: u64 = 20_000_000;

fn now_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_micros() as u64
}

/// `{2026-11-21T10:05:00.000000Z}`
fn moment(us: u64) -> String {
    let at = format!("@{}.{:06}", us / 1_000_000, us % 1_000_000);
    let text = run("date", &["-u", "-d", &at, "+%Y-%m-%dT%H:%M:%S.%6NZ"]).ok();
    format!("{{{}}}", text.trim())
}

fn start(folder: &Folder) -> Daemon {
    let start = Start::new(&folder.join("d"));
    start.with(&["--store-size", "1GiB"]).ready()
}

/// A write: when it was sent, when it was answered, what it wrote.
struct Written {
    sent_us: u64,
    answered_us: u64,
    value: u64,
}

/// Writes numbers to the first block.
fn write_on(daemon: &Daemon, values: &mut u64) -> Vec<Written> {
    let mut client = daemon.client("v");
    let begin = SystemTime::now();
    let mut history = Vec::new();
    while begin.elapsed().unwrap() < WRITTEN {
        *values += 1;
        let mut block = vec![0; 4096];
        block[..8].copy_from_slice(&values.to_le_bytes());
        let sent_us = now_us();
        client.write(0, &block, FUA).unwrap().unwrap();
        history.push(Written {
            sent_us,
            answered_us: now_us(),
            value: *values,
        });
        std::thread::sleep(Duration::from_millis(20));
    }
    history
}

/// What a clone holds is not younger than its moment, and not much older.
fn check(daemon: &Daemon, history: &[Written], moments: &[u64]) -> Vec<u64> {
    static CLONES: AtomicU32 = AtomicU32::new(0);
    let mut seen = Vec::new();
    for at_us in moments {
        let name = format!("c{}", CLONES.fetch_add(1, Ordering::Relaxed));
        daemon
            .esker(&["clone", &format!("v@{}", moment(*at_us)), &name])
            .ok();
        let block = daemon.client(&name).read(0, 4096).unwrap().unwrap();
        let value = u64::from_le_bytes(block[..8].try_into().unwrap());
        let written = history.iter().find(|w| w.value == value);
        let sent_us = written.map_or(0, |w| w.sent_us);
        assert!(
            sent_us <= *at_us,
            "{value} of {sent_us} is younger than {at_us}"
        );
        let before = at_us - LATE_US_MAX;
        let answered = history.iter().filter(|w| w.answered_us <= before);
        let least = answered.map(|w| w.value).max().unwrap_or(0);
        assert!(
            value >= least,
            "{value} at {at_us}, and {least} was answered long before"
        );
        seen.push(value);
    }
    seen
}

#[test]
fn a_volume_can_be_had_as_it_was_at_any_second() {
    let folder = Folder::new();
    let daemon = start(&folder);
    let create = ["volume", "create", "v", "--size", "16MiB", "--rewind", "1h"];
    assert_eq!(daemon.json(&create)["rewind_seconds"], 3600);
    let mut values = 0;
    let history = write_on(&daemon, &mut values);
    let first = history[0].answered_us + 1_500_000;
    let last = history.last().unwrap().answered_us;
    let moments: Vec<u64> = (first..last).step_by(1_000_000).collect();
    let seen = check(&daemon, &history, &moments);
    let mut different = seen.clone();
    different.dedup();
    assert!(different.is_sorted() && different.len() >= 3, "{seen:?}");
    daemon.kill();

    // What points hold outlives the daemon, and so does the last moment before its end.
    let daemon = start(&folder);
    let away_us = now_us() - 1000;
    assert_eq!(
        check(&daemon, &history, &moments),
        seen,
        "the past does not change"
    );
    let more = write_on(&daemon, &mut values);
    let left = check(&daemon, &history, &[away_us]);
    assert_eq!(left, [history.last().unwrap().value], "as it was left");
    let all: Vec<Written> = history.into_iter().chain(more).collect();
    let shown = daemon.json(&["volume", "show", "v"]);
    let used = shown["used_bytes"].as_u64().unwrap();
    let held = shown["rewind_bytes"].as_u64().unwrap();
    assert_eq!(used, 4096);
    // One version of the block for each point at most, and points at most once a second.
    let seconds = (now_us() - all[0].sent_us) / 1_000_000 + 3;
    assert!(
        (2 * 4096..=seconds * 4096).contains(&held),
        "{held} in {seconds} s"
    );
    assert_eq!(daemon.json(&["snapshot", "list"]), serde_json::json!([]));
    assert_eq!(shown["snapshots"], 0);

    let refused = daemon.esker(&["clone", "v@{-2h}", "x"]).line(1);
    assert!(refused.contains("can be rewound by"), "{refused}");
    let refused = daemon.esker(&["clone", "v@{yesterday}", "x"]).line(1);
    assert!(refused.contains("no moment"), "{refused}");
    daemon.stop();
}
