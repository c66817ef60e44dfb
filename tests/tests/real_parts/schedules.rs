//! Snapshot schedules: snapshots come and go by themselves, others stay, and the schedule outlives the daemon.

use crate::client::FUA;
use crate::harness::{free_address, Daemon, Folder, Start};
use crate::metrics::Scrape;
use serde_json::{json, Value};
use std::time::{Duration, Instant};

/// Longest that a test waits for something that takes a second or two.
const WAIT_MAX: Duration = Duration::from_secs(60);

fn start(folder: &Folder, words: &[&str]) -> Daemon {
    let start = Start::new(&folder.join("d"));
    let words = [&["--store-size", "1GiB"], words].concat();
    start.with(&words).ready()
}

/// The snapshots of a volume.
fn snapshots(daemon: &Daemon, volume: &str) -> Vec<Value> {
    let list = daemon.json(&["snapshot", "list", volume]);
    list.as_array().unwrap().clone()
}

/// Names of the automatic ones, oldest first.
fn automatic(daemon: &Daemon, volume: &str) -> Vec<String> {
    let all = snapshots(daemon, volume).into_iter();
    let all = all.filter(|s| !s["automatic"].is_null());
    all.map(|s| s["name"].as_str().unwrap().to_string())
        .collect()
}

#[track_caller]
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(
            begin.elapsed() < WAIT_MAX,
            "{what}: not within {WAIT_MAX:?}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn snapshots_come_and_go_by_themselves() {
    let folder = Folder::new();
    let metrics = free_address();
    let daemon = Start::new(&folder.join("d")).metrics(&metrics);
    let daemon = daemon.with(&["--store-size", "1GiB"]).ready();
    daemon.create("v", "64MiB");
    daemon
        .esker(&["snapshot", "create", "v@mine", "--label", "by=me"])
        .ok();
    let words = [
        "volume",
        "set",
        "v",
        "--snapshot-schedule",
        "every 1s keep 2",
    ];
    let set = daemon.json(&words);
    assert_eq!(set["snapshot_schedule"], "every 1s keep 2");
    assert_eq!(set["labels"], json!({}), "Esker's own labels are not shown");

    // One that is attached stays beyond its time, and goes when nobody reads it any more.
    until("the first snapshot", || !automatic(&daemon, "v").is_empty());
    let held = automatic(&daemon, "v").pop().unwrap();
    let client = daemon.client(&format!("v@{held}"));
    let kept = |name: &str| automatic(&daemon, "v").contains(&name.to_string());
    until("two newer ones", || {
        let names = automatic(&daemon, "v");
        let newer = names.iter().filter(|name| **name > held).count();
        assert!(kept(&held) && newer <= 3, "{names:?}");
        let plan = daemon.json(&["snapshot", "prune", "v", "--dry-run"]);
        plan["postponed"] == json!([held])
    });
    drop(client);
    until("what was attached goes", || !kept(&held));

    let names = automatic(&daemon, "v");
    let mut sorted = names.clone();
    sorted.sort();
    assert_eq!(names, sorted, "names are in the order of time");
    assert!(names
        .iter()
        .all(|name| name.starts_with("auto-20") && name.ends_with('Z')));
    let all = snapshots(&daemon, "v");
    let mine = all.iter().find(|s| s["name"] == "mine").unwrap();
    assert_eq!(
        (&mine["automatic"], &mine["labels"]),
        (&Value::Null, &json!({"by": "me"}))
    );
    assert!(
        all.len() <= 4,
        "two are kept, one may just have been taken: {all:?}"
    );

    let metrics = Scrape::of(&metrics).text;
    let count = |result: &str| {
        let series = format!("esker_automatic_snapshots_total{{result=\"{result}\"}} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&series));
        line.unwrap().parse::<u64>().unwrap()
    };
    assert!(
        count("taken") >= 3 && count("deleted") >= 1 && count("postponed") >= 1,
        "{metrics}"
    );
    assert_eq!(count("failed"), 0);
    daemon.stop();
}

/// The schedule lies with the volume: after kill -9 it goes on. A dry run changes nothing, and without a schedule
/// nothing is taken or deleted.
#[test]
fn a_schedule_outlives_the_daemon_and_ends_when_it_is_taken_away() {
    let folder = Folder::new();
    let daemon = start(&folder, &["--snapshot-schedule", "every 1s keep 3"]);
    let create = |name: &str, more: &[&str]| {
        let words = [&["volume", "create", name, "--size", "16MiB"], more].concat();
        daemon.json(&words)["snapshot_schedule"].clone()
    };
    assert_eq!(
        create("v", &["--label", "a=b"]),
        "every 1s keep 3",
        "the default"
    );
    assert_eq!(
        create("none", &["--snapshot-schedule", "none"]),
        Value::Null
    );
    let own = "hourly keep 24, daily keep 7";
    assert_eq!(create("own", &["--snapshot-schedule", own]), own);
    until("a snapshot", || !automatic(&daemon, "v").is_empty());
    daemon.kill();

    let daemon = start(&folder, &[]);
    let before = automatic(&daemon, "v");
    let fresh = |name: &String| !before.contains(name);
    until("a snapshot after the crash", || {
        automatic(&daemon, "v").iter().any(fresh)
    });
    let shown = daemon.json(&["volume", "show", "v"]);
    assert_eq!(shown["snapshot_schedule"], "every 1s keep 3");
    assert_eq!(shown["labels"], json!({"a": "b"}));
    assert!(automatic(&daemon, "none").is_empty());
    assert_eq!(
        automatic(&daemon, "own").len(),
        1,
        "one for both its periods"
    );
    assert_eq!(snapshots(&daemon, "own")[0]["automatic"], "hourly, daily");

    until("three snapshots", || automatic(&daemon, "v").len() >= 3);
    let words = [
        "volume",
        "set",
        "v",
        "--snapshot-schedule",
        "none",
        "--unlabel",
        "a",
    ];
    let set = daemon.json(&[&words[..], &["--label", "c=d"]].concat());
    assert_eq!(
        (&set["snapshot_schedule"], &set["labels"]),
        (&Value::Null, &json!({"c": "d"}))
    );
    // A look that was on its way when the schedule was taken away may still end.
    until("nothing more is taken", || {
        let before = automatic(&daemon, "v");
        std::thread::sleep(Duration::from_secs(2));
        before == automatic(&daemon, "v")
    });
    let refused = daemon.esker(&["snapshot", "prune", "v"]).line(1);
    assert!(refused.contains("no snapshot schedule"), "{refused}");

    let names = automatic(&daemon, "v");
    let schedule = ["--dry-run", "--snapshot-schedule", "yearly keep 1"];
    let plan = daemon.json(&[&["snapshot", "prune", "v"], &schedule[..]].concat());
    let newest = names.last().unwrap();
    assert_eq!(plan["kept"], json!([{"name": newest, "rules": "yearly"}]));
    assert_eq!(plan["deleted"].as_array().unwrap().len(), names.len() - 1);
    assert_eq!(plan["dry_run"], true);
    assert_eq!(automatic(&daemon, "v"), names, "a dry run deletes nothing");
    daemon.stop();
}

#[test]
fn what_cannot_be_a_schedule_is_refused() {
    let folder = Folder::new();
    let daemon = start(&folder, &[]);
    daemon.create("v", "16MiB");
    for (words, part) in [
        (&["--snapshot-schedule", "hourly"][..], "PERIOD keep N"),
        (&["--snapshot-schedule", "last keep 3"], "when to take one"),
        (&["--label", "esker.snapshot-schedule=x"], "Esker's own"),
        (&["--unlabel", "esker.snapshot-schedule"], "Esker's own"),
    ] {
        let refused = daemon
            .esker(&[&["volume", "set", "v"], words].concat())
            .line(1);
        assert!(refused.contains(part), "{refused}");
    }
    let words = ["snapshot", "create", "v@s", "--label", "esker.automatic=x"];
    assert!(daemon.esker(&words).line(1).contains("Esker's own"));
    let mut client = daemon.client("v");
    client.write(0, &[1; 4096], FUA).unwrap().unwrap();
    assert!(snapshots(&daemon, "v").is_empty());
    drop(client);
    daemon.stop();
}
