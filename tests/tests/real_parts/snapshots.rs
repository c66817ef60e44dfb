//! Snapshots as users have them: each command, what it prints, what it refuses, and `kill -9`.

use crate::client::{Client, FUA};
use crate::harness::{free_address, program, run, verify, Daemon, Folder, Start};
use serde_json::{json, Value};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;

fn start(folder: &Folder) -> Daemon {
    let start = Start::new(&folder.join("d"));
    start.with(&["--store-size", "1GiB"]).ready()
}

/// Writes blocks of one byte; answered when it is on the device.
#[track_caller]
fn write(client: &mut Client, offset: u64, length: u64, byte: u8) {
    let data = vec![byte; length as usize];
    client.write(offset, &data, 0).unwrap().unwrap();
}

#[track_caller]
fn read(client: &mut Client, offset: u64, length: u64) -> Vec<u8> {
    client.read(offset, length as u32).unwrap().unwrap()
}

/// `snapshot diff` as (offset, length, type).
#[track_caller]
fn diff(daemon: &Daemon, words: &[&str]) -> Vec<(u64, u64, String)> {
    let words = [&["snapshot", "diff"], words].concat();
    let shown = daemon.json(&words);
    let extents = shown.as_array().unwrap().iter().map(|extent| {
        assert_eq!(fields(extent), "length offset type");
        let number = |field: &str| extent[field].as_u64().unwrap();
        let kind = extent["type"].as_str().unwrap().to_string();
        (number("offset"), number("length"), kind)
    });
    extents.collect()
}

fn extent(offset: u64, length: u64, kind: &str) -> (u64, u64, String) {
    (offset, length, kind.into())
}

fn fields(value: &Value) -> String {
    let object = value.as_object().unwrap();
    let mut names: Vec<&str> = object.keys().map(String::as_str).collect();
    names.sort_unstable();
    names.join(" ")
}

/// The content of a snapshot, over its export.
#[track_caller]
fn content(daemon: &Daemon, snapshot: &str, offset: u64, length: u64) -> Vec<u8> {
    read(&mut daemon.client(snapshot), offset, length)
}

/// Waits until nobody is attached: the daemon learns of a client's end a moment later.
#[track_caller]
fn settled(daemon: &Daemon, volume: &str) {
    for _ in 0..1000 {
        if daemon.json(&["volume", "show", volume])["sessions"] == 0 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("a session of {volume} does not end");
}

const FIELDS: &str =
    "automatic created_unix group_snapshot labels name referenced_bytes sessions size_bytes stamp store \
                      unique_bytes volume";

#[test]
fn snapshots_are_taken_listed_and_deleted_and_sums_are_exact() {
    let folder = Folder::new();
    let daemon = start(&folder);
    daemon.create("v", "64MiB");
    let mut client = daemon.client("v");
    write(&mut client, 0, MIB, 1);
    let before = daemon.json(&["space"])["live_bytes"].as_u64().unwrap();

    let taken = daemon.json(&[
        "snapshot",
        "create",
        "v@monday",
        "--label",
        "by=cron",
        "--label",
        "kind=daily",
    ]);
    assert_eq!(fields(&taken), FIELDS);
    assert_eq!(
        (&taken["volume"], &taken["name"]),
        (&json!("v"), &json!("monday"))
    );
    assert_eq!(taken["labels"], json!({"by": "cron", "kind": "daily"}));
    assert_eq!(taken["size_bytes"], 64 * MIB);
    let now = std::time::SystemTime::now();
    let now = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(taken["created_unix"].as_u64().unwrap().abs_diff(now) < 600);

    // 64 KiB are written anew and 128 KiB trimmed: only the snapshot has the old ones.
    write(&mut client, 0, 64 * KIB, 2);
    client.trim(512 * KIB, (128 * KIB) as u32).unwrap().unwrap();
    daemon.esker(&["snapshot", "create", "v@tuesday"]).ok();
    write(&mut client, 32 * MIB, 32 * KIB, 3);

    let list = daemon.json(&["snapshot", "list", "v"]);
    assert_eq!(list, daemon.json(&["snapshot", "list"]));
    let of = |n: usize, field: &str| list[n][field].clone();
    assert_eq!(
        (of(0, "name"), of(1, "name")),
        (json!("monday"), json!("tuesday"))
    );
    assert!(of(0, "stamp").as_u64() < of(1, "stamp").as_u64());
    assert_eq!(of(0, "labels"), taken["labels"]);
    let referenced = [of(0, "referenced_bytes"), of(1, "referenced_bytes")];
    assert_eq!(referenced, [json!(MIB), json!(MIB - 128 * KIB)]);
    let unique = [of(0, "unique_bytes"), of(1, "unique_bytes")];
    assert_eq!(unique, [json!(192 * KIB), json!(0)]);

    let volume = daemon.json(&["volume", "show", "v"]);
    assert_eq!(
        (&volume["snapshots"], &volume["sessions"]),
        (&json!(2), &json!(1))
    );
    let used = MIB - 128 * KIB + 32 * KIB;
    assert_eq!(volume["used_bytes"], used);
    assert_eq!(volume["snapshot_bytes"], 192 * KIB);
    assert_eq!(volume["unique_bytes"], used + 192 * KIB);
    let space = daemon.json(&["space"]);
    assert_eq!(space["snapshot_bytes"], 192 * KIB);
    let bytes = |field: &str| space[field].as_u64().unwrap();
    let parts = bytes("live_bytes") + bytes("garbage_bytes") + bytes("free_bytes");
    assert_eq!(parts + bytes("snapshot_bytes"), bytes("total_bytes"));
    let part = daemon.json(&["space", "v"]);
    assert_eq!(
        (&part["live_bytes"], &part["snapshot_bytes"]),
        (&json!(used), &json!(192 * KIB))
    );

    let table = daemon.esker(&["snapshot", "list"]).ok();
    let lines: Vec<&str> = table.lines().collect();
    assert!(
        lines[0].starts_with("SNAPSHOT") && lines.len() == 3,
        "{table}"
    );
    assert!(
        lines[1].starts_with("v@monday   20") && lines[1].contains("192 KiB"),
        "{table}"
    );

    let gone = daemon.json(&["snapshot", "delete", "v@monday"]);
    assert_eq!(
        gone,
        json!({"volume": "v", "name": "monday", "deleted": true})
    );
    let volume = daemon.json(&["volume", "show", "v"]);
    assert_eq!(
        (&volume["snapshots"], &volume["snapshot_bytes"]),
        (&json!(1), &json!(0))
    );
    assert_eq!(volume["unique_bytes"], used);
    daemon.esker(&["snapshot", "delete", "v@tuesday"]).ok();
    let after = daemon.json(&["space"]);
    assert_eq!(after["snapshot_bytes"], 0);
    // What is left of the map may be a few pages more than before.
    let live = after["live_bytes"].as_u64().unwrap();
    assert!(
        live < before + 64 * BLOCK,
        "{live} bytes are live, {before} were"
    );
    drop(client);
    let store = daemon.data.join("store-0.esker");
    daemon.stop();
    verify(&store);
}

#[test]
fn what_differs_is_told_exactly_whatever_is_compared() {
    let folder = Folder::new();
    let daemon = start(&folder);
    daemon.create("v", "64MiB");
    let mut client = daemon.client("v");
    write(&mut client, 0, MIB, 1);
    daemon.esker(&["snapshot", "create", "v@a"]).ok();
    assert_eq!(diff(&daemon, &["v@a"]), []);
    assert_eq!(diff(&daemon, &["v@a", "v@a"]), []);
    write(&mut client, 8 * KIB, 8 * KIB, 2);
    client.trim(64 * KIB, (16 * KIB) as u32).unwrap().unwrap();
    // Not flushed: what was acknowledged counts all the same.
    write(&mut client, 40 * MIB, 4 * KIB, 2);
    let changes = [
        extent(8 * KIB, 8 * KIB, "data"),
        extent(64 * KIB, 16 * KIB, "zero"),
        extent(40 * MIB, 4 * KIB, "data"),
    ];
    assert_eq!(diff(&daemon, &["v@a"]), changes);
    assert_eq!(diff(&daemon, &["v@a", "v"]), changes);
    daemon.esker(&["snapshot", "create", "v@b"]).ok();
    write(&mut client, 0, 4 * KIB, 3);
    assert_eq!(diff(&daemon, &["v@a", "v@b"]), changes);
    assert_eq!(diff(&daemon, &["v@b", "v"]), [extent(0, 4 * KIB, "data")]);
    // The other way round: what has to be written to come back.
    assert_eq!(
        diff(&daemon, &["v@b", "v@a"]),
        [
            extent(8 * KIB, 8 * KIB, "data"),
            extent(64 * KIB, 16 * KIB, "data"),
            extent(40 * MIB, 4 * KIB, "zero"),
        ]
    );
    // Behind the end of the older one.
    daemon
        .esker(&["volume", "resize", "v", "--size", "128MiB"])
        .ok();
    drop(client);
    let mut client = daemon.client("v");
    write(&mut client, 100 * MIB, 4 * KIB, 4);
    let grown = [
        extent(0, 4 * KIB, "data"),
        extent(100 * MIB, 4 * KIB, "data"),
    ];
    assert_eq!(diff(&daemon, &["v@b"]), grown);

    let table = daemon.esker(&["snapshot", "diff", "v@b"]).ok();
    let mut lines = table.lines();
    assert_eq!(lines.next(), Some("OFFSET        LENGTH        TYPE"));
    assert_eq!(lines.next(), Some("0             4096          data"));
}

/// More differences than one answer of the daemon holds; neighbours on both sides of a page are one.
#[test]
fn many_differences_come_in_pages() {
    let folder = Folder::new();
    let daemon = start(&folder);
    daemon.create("v", "64MiB");
    daemon.esker(&["snapshot", "create", "v@a"]).ok();
    let mut client = daemon.client("v");
    let mut expected = Vec::new();
    for n in 0..5000 {
        // Runs of one and two blocks, so that no page ends at a round number.
        let (offset, length) = (n * 3 * BLOCK, (1 + n % 2) * BLOCK);
        write(&mut client, offset, length, 7);
        expected.push(extent(offset, length, "data"));
    }
    assert_eq!(diff(&daemon, &["v@a"]), expected);
    write(&mut client, 0, 60 * MIB / 2, 8);
    write(&mut client, 60 * MIB / 2, 60 * MIB / 2, 8);
    assert_eq!(diff(&daemon, &["v@a"]), [extent(0, 60 * MIB, "data")]);
}

#[test]
fn a_volume_goes_back_and_what_it_held_is_kept_or_not() {
    let folder = Folder::new();
    let daemon = start(&folder);
    daemon.create("v", "64MiB");
    let mut client = daemon.client("v");
    write(&mut client, 0, MIB, 1);
    daemon.esker(&["snapshot", "create", "v@good"]).ok();
    write(&mut client, 0, 64 * KIB, 2);
    write(&mut client, 10 * MIB, 64 * KIB, 2);
    drop(client);
    settled(&daemon, "v");

    let done = daemon.json(&["snapshot", "rollback", "v@good", "--keep", "bad"]);
    assert_eq!(fields(&done), "kept snapshot volume");
    assert_eq!(
        (&done["snapshot"], &done["kept"]["name"]),
        (&json!("good"), &json!("bad"))
    );
    assert_eq!(fields(&done["kept"]), FIELDS);
    assert_eq!(done["volume"]["name"], "v");
    let mut client = daemon.client("v");
    assert_eq!(read(&mut client, 0, MIB), vec![1; MIB as usize]);
    assert_eq!(read(&mut client, 10 * MIB, 64 * KIB), vec![0; 64 << 10]);
    // A part of a block is laid over what the block is now.
    client.write(100, &[9; 10], FUA).unwrap().unwrap();
    let mut block = vec![1; 4096];
    block[100..110].fill(9);
    assert_eq!(read(&mut client, 0, BLOCK), block);
    drop(client);
    settled(&daemon, "v");

    // What was left is there, and the way back to it.
    let changes = [
        extent(0, 64 * KIB, "data"),
        extent(10 * MIB, 64 * KIB, "data"),
    ];
    assert_eq!(diff(&daemon, &["v@good", "v@bad"]), changes);
    assert_eq!(content(&daemon, "v@bad", 0, 64 * KIB), vec![2; 64 << 10]);
    assert_eq!(read(&mut daemon.client("v"), 0, BLOCK), block);
    settled(&daemon, "v");

    // Without a name one is chosen, and told.
    let done = daemon.json(&["snapshot", "rollback", "v@good"]);
    let kept = done["kept"]["name"].as_str().unwrap().to_string();
    assert!(kept.starts_with("before-rollback-"), "{kept}");
    let shown = daemon.esker(&["snapshot", "rollback", "v@good"]).ok();
    assert!(
        shown.contains("v is as v@good was; what it held before is v@before-rollback-"),
        "{shown}"
    );

    let count = || {
        daemon.json(&["volume", "show", "v"])["snapshots"]
            .as_u64()
            .unwrap()
    };
    let before = count();
    let done = daemon.json(&["snapshot", "rollback", "v@bad", "--discard"]);
    assert_eq!((&done["kept"], count()), (&Value::Null, before));
    assert_eq!(content(&daemon, "v@good", 0, MIB), vec![1; MIB as usize]);

    // The tree has what each began from.
    let graph = daemon.json(&["snapshot", "list", "v", "--graph"]);
    let row = |name: &str| {
        let mut rows = graph.as_array().unwrap().iter();
        rows.find(|r| r["name"] == name && r["kind"] == "snapshot")
            .unwrap()
            .clone()
    };
    assert_eq!(
        fields(&graph[0]),
        "created_unix id kind name parent referenced_bytes size_bytes stamp store unique_bytes volume"
    );
    assert_eq!(row("bad")["parent"], row("good")["id"]);
    assert_eq!(row(&kept)["parent"], row("good")["id"]);
    let head = graph
        .as_array()
        .unwrap()
        .iter()
        .find(|r| r["kind"] == "head")
        .unwrap();
    assert_eq!(head["parent"], row("bad")["id"]);
    let drawn = daemon.esker(&["snapshot", "list", "v", "--graph"]).ok();
    assert!(drawn.contains("├─● v@before-rollback-"), "{drawn}");
    let last = drawn.lines().last().unwrap();
    assert!(
        last.starts_with("◉ ") && last.contains("v (now)"),
        "{drawn}"
    );
    let dot = daemon.esker(&["snapshot", "list", "v", "-o", "dot"]).ok();
    assert!(
        dot.starts_with("digraph snapshots {") && dot.contains("v@bad"),
        "{dot}"
    );
    let svg = daemon.esker(&["snapshot", "list", "-o", "svg"]).ok();
    assert!(svg.starts_with("<svg ") && svg.contains("v@bad"), "{svg}");

    let store = daemon.data.join("store-0.esker");
    daemon.stop();
    verify(&store);
}

#[test]
fn a_rollback_does_not_pull_a_volume_from_under_its_client() {
    let folder = Folder::new();
    let daemon = start(&folder);
    daemon.create("v", "64MiB");
    daemon.esker(&["snapshot", "create", "v@a"]).ok();
    let mut client = daemon.client("v");
    write(&mut client, 0, MIB, 1);
    let line = daemon.esker(&["snapshot", "rollback", "v@a"]).line(1);
    assert!(line.contains("volume v is attached by session "), "{line}");
    assert!(
        line.contains("on the unix socket") && line.contains("--force"),
        "{line}"
    );
    let mut other = daemon.tcp_client("v");
    let line = daemon.esker(&["snapshot", "rollback", "v@a"]).line(1);
    assert!(line.contains("(from 127.0.0.1:"), "{line}");
    // They go on as if nothing had been asked.
    assert_eq!(read(&mut client, 0, MIB), vec![1; MIB as usize]);
    write(&mut other, MIB, BLOCK, 2);

    daemon
        .esker(&["snapshot", "rollback", "v@a", "--keep", "left", "--force"])
        .ok();
    assert!(client.read(0, 4096).is_err(), "the session is ended");
    assert!(
        other.write(0, &[5; 4096], FUA).is_err(),
        "the session is ended"
    );
    let mut client = daemon.client("v");
    assert_eq!(read(&mut client, 0, 2 * MIB), vec![0; 2 << 20]);
    let left = [extent(0, MIB + BLOCK, "data")];
    assert_eq!(diff(&daemon, &["v@a", "v@left"]), left);
}

#[test]
fn refusals_name_the_thing_and_the_remedy() {
    let folder = Folder::new();
    let daemon = start(&folder);
    daemon.create("v", "64MiB");
    daemon.esker(&["snapshot", "create", "v@a"]).ok();
    let refused = |words: &[&str]| daemon.esker(&[&["snapshot"], words].concat()).line(1);

    let bad = [
        "",
        "a b",
        "ü",
        "-a",
        ".a",
        "a/b",
        "a\nb",
        "a:b",
        &"x".repeat(129),
    ];
    for name in bad.iter().filter(|name| !name.is_empty()) {
        let line = refused(&["create", &format!("v@{name}")]);
        assert!(
            line.contains("is no snapshot name: 1 to 128 of A-Z"),
            "{line}"
        );
    }
    let long = "x".repeat(128);
    daemon
        .esker(&["snapshot", "create", &format!("v@{long}")])
        .ok();
    daemon
        .esker(&["snapshot", "delete", &format!("v@{long}")])
        .ok();
    for words in [
        &["create", "v"][..],
        &["create", "v@"],
        &["create", "@a"],
        &["create", "v@a@b"],
        &["rollback", "v"],
        &["rollback", "v@a", "--keep", "x", "--discard"],
        &["diff", "v"],
        &["list", "v", "x"],
    ] {
        let done = daemon.esker(&[&["snapshot"], words].concat());
        assert_eq!(done.code, Some(2), "{words:?}: {done:?}");
    }
    let done = daemon.esker(&["volume", "list", "-o", "dot"]);
    assert_eq!(done.code, Some(2), "{done:?}");

    let cases: [(&[&str], &str); 10] = [
        (&["create", "v@a"], "volume v has a snapshot named a"),
        (&["create", "w@a"], "no volume is named w"),
        (&["list", "w"], "no volume is named w"),
        (&["delete", "v@b"], "volume v has no snapshot named b"),
        (&["delete", "w@b"], "no volume is named w"),
        (&["rollback", "v@b"], "volume v has no snapshot named b"),
        (
            &["rollback", "v@a", "--keep", "a"],
            "volume v has a snapshot named a",
        ),
        (&["diff", "v@b"], "volume v has no snapshot named b"),
        (&["diff", "v@a", "v@b"], "volume v has no snapshot named b"),
        (&["diff", "v@a", "w"], "no volume is named w"),
    ];
    for (words, text) in cases {
        let line = refused(words);
        assert!(line.contains(text), "{words:?}: {line}");
    }
    let label = format!("k={}", "x".repeat(257));
    let line = refused(&["create", "v@c", "--label", &label]);
    assert!(line.contains("a snapshot has at most 32 labels"), "{line}");

    // A volume with snapshots is not deleted in passing.
    let line = daemon.esker(&["volume", "delete", "v", "--yes"]).line(1);
    assert!(
        line.contains("volume v has 1 snapshot: ") && line.contains("--with-snapshots"),
        "{line}"
    );
    assert_eq!(
        daemon.json(&["snapshot", "list"]).as_array().unwrap().len(),
        1
    );
    daemon
        .esker(&["volume", "delete", "v", "--with-snapshots", "--yes"])
        .ok();
    assert_eq!(daemon.json(&["snapshot", "list"]), json!([]));
    daemon.create("v", "64MiB");
    assert_eq!(daemon.json(&["volume", "show", "v"])["snapshots"], 0);
}

/// Snapshots keep their volume's new name, and several stores are one list.
#[test]
fn all_stores_are_one_list() {
    let folder = Folder::new();
    let start = Start::new(&folder.join("d"));
    let paths: Vec<String> = (0..2)
        .map(|n| folder.join(&format!("s{n}")).display().to_string())
        .collect();
    for path in &paths {
        let file = std::fs::File::create(path).unwrap();
        file.set_len(1 << 30).unwrap();
    }
    let daemon = start
        .with(&["--store", &paths[0], "--store", &paths[1]])
        .ready();
    let mut expected = Vec::new();
    for name in ["c", "a", "b"] {
        daemon.create(name, "64MiB");
        // The next volume goes to the store with more room.
        write(&mut daemon.client(name), 0, 8 * MIB, 1);
        settled(&daemon, name);
        for n in 0..2 {
            daemon
                .esker(&["snapshot", "create", &format!("{name}@s{n}")])
                .ok();
        }
    }
    daemon.esker(&["volume", "rename", "c", "d"]).ok();
    for name in ["a", "b", "d"] {
        expected.extend((0..2).map(|n| format!("{name}@s{n}")));
    }
    let list = daemon.json(&["snapshot", "list"]);
    let rows = list.as_array().unwrap();
    let names = rows.iter().map(|r| {
        format!(
            "{}@{}",
            r["volume"].as_str().unwrap(),
            r["name"].as_str().unwrap()
        )
    });
    assert_eq!(names.collect::<Vec<_>>(), expected);
    let stores: std::collections::BTreeSet<_> = rows.iter().map(|r| r["store"].as_u64()).collect();
    assert_eq!(stores.len(), 2, "{list}");
    daemon.esker(&["snapshot", "delete", "d@s0"]).ok();
}

#[test]
fn a_clone_lives_on_its_own() {
    let folder = Folder::new();
    let daemon = start(&folder);
    daemon.create("v", "64MiB");
    let mut client = daemon.client("v");
    write(&mut client, 0, MIB, 1);
    daemon.esker(&["snapshot", "create", "v@a"]).ok();
    write(&mut client, 0, 64 * KIB, 2);
    let words = ["clone", "v@a", "w", "--label", "of=v"];
    let clone = daemon.json(&words);
    assert_eq!(
        (&clone["name"], &clone["state"]),
        (&json!("w"), &json!("ready"))
    );
    assert_eq!(
        (&clone["labels"], &clone["snapshots"]),
        (&json!({"of": "v"}), &json!(0))
    );
    assert_eq!(clone["size_bytes"], 64 * MIB);
    let mut other = daemon.client("w");
    assert_eq!(read(&mut other, 0, MIB), vec![1; 1 << 20]);
    other.write(4096, &[3; 4096], FUA).unwrap().unwrap();
    write(&mut client, 8 * KIB, 4 * KIB, 4);
    assert_eq!(read(&mut client, 4 * KIB, 4 * KIB), vec![2; 4096]);
    let both = [vec![1; 4096], vec![3; 4096], vec![1; 4096]].concat();
    assert_eq!(read(&mut other, 0, 12 * KIB), both);

    // What it has that the snapshot it began as has not, and what its origin has that its own has not.
    let own = [extent(4 * KIB, 4 * KIB, "data")];
    assert_eq!(diff(&daemon, &["v@a", "w"]), own);
    daemon.esker(&["snapshot", "create", "w@b"]).ok();
    assert_eq!(diff(&daemon, &["v@a", "w@b"]), own);
    assert_eq!(diff(&daemon, &["w@b", "v@a"]), own);
    assert_eq!(diff(&daemon, &["w@b", "v"]), [extent(0, 64 * KIB, "data")]);
    daemon.esker(&["snapshot", "delete", "w@b"]).ok();

    // Answered means durable.
    daemon.esker(&["clone", "v@a", "x"]).ok();
    drop((client, other));
    daemon.kill();
    let daemon = start(&folder);
    assert_eq!(read(&mut daemon.client("x"), 0, MIB), vec![1; 1 << 20]);
    assert_eq!(read(&mut daemon.client("w"), 0, 12 * KIB), both);
    for name in ["v", "w", "x"] {
        settled(&daemon, name);
    }
    // What it has alone, and what it shares.
    let shown = daemon.json(&["volume", "show", "w"]);
    assert_eq!(
        (&shown["used_bytes"], &shown["unique_bytes"]),
        (&json!(MIB), &json!(BLOCK))
    );

    for (words, text) in [
        (&["clone", "v@a", "w"][..], "volume w exists already"),
        (&["clone", "v@b", "y"], "volume v has no snapshot named b"),
        (&["clone", "z@b", "y"], "no volume is named z"),
        (&["clone", "v@a", "a/b"], "is no volume name"),
    ] {
        let line = daemon.esker(words).line(1);
        assert!(line.contains(text), "{words:?}: {line}");
    }
    assert_eq!(daemon.esker(&["clone", "v", "y"]).code, Some(2));

    let drawn = daemon.esker(&["snapshot", "list", "w", "--graph"]).ok();
    assert!(
        drawn.contains("v@a") && drawn.contains("├─◉ w (now)"),
        "{drawn}"
    );
    // The snapshot is hidden, its clones stay; the same when its volume goes.
    daemon.esker(&["snapshot", "delete", "v@a"]).ok();
    assert_eq!(daemon.json(&["snapshot", "list"]), json!([]));
    let drawn = daemon.esker(&["snapshot", "list", "w", "--graph"]).ok();
    assert!(drawn.contains("(deleted)"), "{drawn}");
    daemon.esker(&["volume", "delete", "v", "--yes"]).ok();
    assert_eq!(read(&mut daemon.client("w"), 0, 12 * KIB), both);
    assert_eq!(read(&mut daemon.client("x"), 0, MIB), vec![1; 1 << 20]);
    // A clone has snapshots, and clones, of its own.
    daemon.esker(&["snapshot", "create", "w@own"]).ok();
    daemon.esker(&["clone", "w@own", "y"]).ok();
    assert_eq!(read(&mut daemon.client("y"), 0, 12 * KIB), both);
    for name in ["w", "x", "y"] {
        settled(&daemon, name);
        daemon
            .esker(&["volume", "delete", name, "--with-snapshots", "--yes"])
            .ok();
    }
    let live = daemon.json(&["space"])["live_bytes"].as_u64().unwrap();
    assert!(live < MIB, "{live} bytes are live without any volume");
    let store = daemon.data.join("store-0.esker");
    daemon.stop();
    verify(&store);
}

/// Who reads a snapshot keeps it, and is not disturbed by what becomes of its volume.
#[test]
fn a_snapshot_that_is_read_is_not_deleted() {
    let folder = Folder::new();
    let daemon = start(&folder);
    daemon.create("v", "64MiB");
    let mut client = daemon.client("v");
    write(&mut client, 0, MIB, 1);
    daemon.esker(&["snapshot", "create", "v@a"]).ok();
    write(&mut client, 0, MIB, 2);
    drop(client);
    settled(&daemon, "v");
    let mut reader = daemon.client("v@a");
    assert_eq!(read(&mut reader, 0, MIB), vec![1; 1 << 20]);
    assert_eq!(daemon.json(&["snapshot", "list"])[0]["sessions"], 1);
    let line = daemon.esker(&["snapshot", "delete", "v@a"]).line(1);
    let named = line.contains("snapshot v@a is attached by session ");
    assert!(named && line.contains("on the unix socket"), "{line}");
    for words in [
        &["volume", "delete", "v", "--with-snapshots", "--yes"][..],
        &["volume", "rename", "v", "w"],
    ] {
        let line = daemon.esker(words).line(1);
        assert!(line.contains("volume v has 1 session attached"), "{line}");
    }
    // The volume itself is nobody's.
    let words = ["snapshot", "rollback", "v@a", "--discard"];
    daemon.esker(&words).ok();
    assert_eq!(read(&mut reader, 0, MIB), vec![1; 1 << 20]);
    drop(reader);
    settled(&daemon, "v");
    daemon.esker(&["snapshot", "delete", "v@a"]).ok();
    assert!(Client::unix(&daemon.socket(), "v@a").is_err());
}

/// Pages of the list: more snapshots than one answer of the daemon holds.
#[test]
fn a_long_list_is_whole() {
    let folder = Folder::new();
    let daemon = start(&folder);
    daemon.create("v", "64MiB");
    daemon.create("w", "64MiB");
    let script = "for i in $(seq 1 1010); do echo $i; done | xargs -P 8 -I{} \
                  \"$ESKER\" --data \"$DATA\" snapshot create v@s{} >/dev/null";
    let done = std::process::Command::new("bash")
        .args(["-c", script])
        .env("ESKER", program("esker"))
        .env("DATA", &daemon.data)
        .status();
    assert!(done.unwrap().success());
    daemon.esker(&["snapshot", "create", "w@last"]).ok();
    let list = daemon.json(&["snapshot", "list"]);
    let rows = list.as_array().unwrap();
    assert_eq!(rows.len(), 1011);
    let names: std::collections::BTreeSet<_> = rows.iter().map(|r| r["name"].as_str()).collect();
    assert_eq!((names.len(), &rows[1010]["name"]), (1011, &json!("last")));
    assert!(rows.windows(2).all(|r| {
        let place = |r: &Value| (r["volume"].to_string(), r["stamp"].as_u64());
        place(&r[0]) < place(&r[1])
    }));
    let graph = daemon.json(&["snapshot", "list", "--graph"]);
    assert_eq!(graph.as_array().unwrap().len(), 1011 + 2);
}

/// The daemon is killed right after a snapshot was answered: it is there, with exactly what was
/// acknowledged before it was asked for, and nothing that was asked for after its answer.
#[test]
fn a_snapshot_that_was_answered_survives_kill_9_exactly() {
    const BLOCKS: u64 = 64;
    let folder = Folder::new();
    let mut daemon = start(&folder);
    daemon.create("v", "64MiB");
    for round in 0..6_u64 {
        let name = format!("v@r{round}");
        let next = AtomicU64::new(1);
        let (acknowledged, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let socket = daemon.socket();
        let (low, high) = std::thread::scope(|scope| {
            // One writer counts upwards: block n % BLOCKS holds the last n written there.
            scope.spawn(|| {
                let Ok(mut client) = Client::unix(&socket, "v") else {
                    return;
                };
                while !stop.load(Ordering::SeqCst) {
                    let n = next.fetch_add(1, Ordering::SeqCst);
                    let mut data = [0; 4096];
                    data[..8].copy_from_slice(&(round << 32 | n).to_le_bytes());
                    match client.write(n % BLOCKS * BLOCK, &data, 0) {
                        Ok(Ok(_)) => acknowledged.store(n, Ordering::SeqCst),
                        _ => return,
                    }
                }
            });
            while acknowledged.load(Ordering::SeqCst) < 200 {
                std::thread::yield_now();
            }
            let low = acknowledged.load(Ordering::SeqCst);
            daemon.esker(&["snapshot", "create", &name]).ok();
            // What is asked for from here on comes after the answer.
            let high = next.load(Ordering::SeqCst);
            if round % 2 == 0 {
                // Some more writes, so that there is something behind the snapshot.
                let more = acknowledged.load(Ordering::SeqCst) + 50;
                while acknowledged.load(Ordering::SeqCst) < more {
                    std::thread::yield_now();
                }
            }
            let data = daemon.data.clone();
            let old = std::mem::replace(&mut daemon, Daemon::gone(&data));
            old.kill();
            stop.store(true, Ordering::SeqCst);
            (low, high)
        });
        daemon = start(&folder);
        let held = content(&daemon, &name, 0, BLOCKS * BLOCK);
        let mut newest = 0;
        let mut seen = Vec::new();
        for block in held.chunks(4096) {
            let value = u64::from_le_bytes(block[..8].try_into().unwrap());
            assert_eq!(value >> 32, round, "a block of another round");
            seen.push(value & 0xffff_ffff);
            newest = newest.max(value & 0xffff_ffff);
        }
        assert!(
            newest >= low,
            "write {low} was acknowledged before; the newest in it is {newest}"
        );
        assert!(
            newest < high,
            "write {high} came after; the newest in it is {newest}"
        );
        // One writer, one at a time: a prefix of what it wrote.
        for (at, value) in (0..BLOCKS).zip(seen) {
            let last = newest - (newest + BLOCKS - at) % BLOCKS;
            assert_eq!(value, last, "block {at} of a snapshot up to write {newest}");
        }
    }
    let list = daemon.json(&["snapshot", "list", "v"]);
    assert_eq!(list.as_array().unwrap().len(), 6);
    let store = daemon.data.join("store-0.esker");
    daemon.stop();
    verify(&store);
}

#[test]
fn changes_survive_a_restart_and_metrics_tell_of_them() {
    let folder = Folder::new();
    let metrics = free_address();
    let start = Start::new(&folder.join("d")).metrics(&metrics);
    let start = start.with(&["--store-size", "1GiB"]);
    let daemon = start.ready();
    daemon.create("v", "64MiB");
    let mut client = daemon.client("v");
    write(&mut client, 0, MIB, 1);
    for n in 0..3 {
        daemon
            .esker(&["snapshot", "create", &format!("v@s{n}")])
            .ok();
        write(&mut client, n * 64 * KIB, 64 * KIB, 2);
    }
    drop(client);
    settled(&daemon, "v");
    daemon.esker(&["snapshot", "delete", "v@s1"]).ok();
    daemon
        .esker(&["snapshot", "rollback", "v@s0", "--keep", "left"])
        .ok();
    let list = daemon.json(&["snapshot", "list"]);
    daemon.kill();
    let daemon = start.ready();
    let again = daemon.json(&["snapshot", "list"]);
    assert_eq!(again, list);
    let names: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["name"].clone())
        .collect();
    assert_eq!(names, [json!("s0"), json!("s2"), json!("left")]);
    assert_eq!(read(&mut daemon.client("v"), 0, MIB), vec![1; MIB as usize]);

    let scraped = run("curl", &["-sf", &format!("http://{metrics}/metrics")]).ok();
    let value = |series: &str| {
        let line = scraped.lines().find(|l| l.starts_with(series));
        let line = line.unwrap_or_else(|| panic!("no {series} in {scraped}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert!((value("esker_volume_snapshots{") - 3.0).abs() < 0.1);
    let held = daemon.json(&["volume", "show", "v"])["snapshot_bytes"]
        .as_u64()
        .unwrap();
    assert_eq!(held, 192 * KIB);
    assert!((value("esker_volume_snapshot_bytes{") - held as f64).abs() < 0.1);
    assert!((value("esker_space_snapshot_bytes{") - held as f64).abs() < 0.1);
}

/// A store that is full takes no snapshot, and deleting one makes room.
#[test]
fn deleting_a_snapshot_makes_room_in_a_full_store() {
    let folder = Folder::new();
    let start = Start::new(&folder.join("d"));
    let daemon = start.with(&["--store-size", "1GiB"]).ready();
    daemon.create("v", "256MiB");
    let mut client = daemon.client("v");
    let data = vec![1; MIB as usize];
    let fill = |client: &mut Client| {
        for n in 0..256 {
            if client.write(n * MIB, &data, 0).unwrap().is_err() {
                return true;
            }
        }
        false
    };
    assert!(!fill(&mut client));
    daemon.esker(&["snapshot", "create", "v@a"]).ok();
    assert!(fill(&mut client), "two copies do not fit");
    daemon.esker(&["snapshot", "delete", "v@a"]).ok();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while fill(&mut client) {
        assert!(std::time::Instant::now() < end, "no room comes back");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(daemon.json(&["space"])["snapshot_bytes"], 0);
}
