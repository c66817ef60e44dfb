//! Benchmarks that drive the daemon: that they run, and that what they write is whole. Their numbers are
//! not looked at.

use crate::disk;
use crate::harness::{has, program, repository, run_for, skip, Folder};
use std::fs;
use std::path::Path;

/// Runs a script of `benches/` in a folder of its own, with the daemon that is tested.
fn script(seconds: u32, name: &str, folder: &Folder, words: &[&str]) -> String {
    let script = repository()
        .join("benches")
        .join(name)
        .display()
        .to_string();
    let bin = program("esker").parent().unwrap().display().to_string();
    let scratch = folder.join("b").display().to_string();
    let mut all = vec![script.as_str(), "--dir", &scratch, "--bin", &bin];
    all.extend(words);
    let out = run_for(seconds, "python3", &all).ok();
    assert!(!folder.join("b").exists(), "the scratch folder is left");
    out
}

/// Each row was measured on each of these. A single second of a machine that does much else may see no I/O end; not
/// every row's.
fn assert_measured(rows: &serde_json::Value, of: &[&str]) {
    let rows = rows.as_object().unwrap().values();
    let ios = |target: &&str| -> Vec<u64> {
        let rows = rows.clone();
        rows.map(|row| row[*target][0]["ios"].as_u64().unwrap())
            .collect()
    };
    for target in of {
        let ios = ios(target);
        assert!(ios.iter().sum::<u64>() > 0, "{target}: {ios:?}");
    }
}

/// A filesystem on a store that runs full and gets room back: `benches/fill.py` ends with an error at the first
/// file that is not what was synced, a trim that is refused, and room that does not come back.
#[test]
fn a_filesystem_outlives_a_full_store() {
    if !has(&["python3", "qemu-io", "fstrim"]) || !has(&disk::NEEDS) {
        return;
    }
    if !Path::new("/dev/fuse").exists() || !Path::new("/dev/loop-control").exists() {
        return skip("no /dev/fuse or no /dev/loop-control");
    }
    let folder = Folder::new();
    let words = ["--rounds", "2", "--room-mib", "96", "--file-mib", "8"];
    let out = script(240, "fill.py", &folder, &words);
    assert_eq!(out.matches("\"round\"").count(), 2, "{out}");
    assert!(
        out.contains("2 rounds: every synced file was as it was"),
        "{out}"
    );
}

/// `benches/catch_up.py` compares a copy that was away with its leader's: after an absence that the log reaches
/// back over, and after one that it does not, with snapshots.
#[test]
fn what_a_copy_that_was_away_receives_is_measured() {
    if !has(&["python3", "fio", "nbdcopy"]) {
        return;
    }
    let folder = Folder::new();
    let words = [
        "--size",
        "268435456",
        "--store-size",
        "2GiB",
        "--base-mib",
        "32",
        "--cases",
        "inside:300:0,beyond:17500:5",
    ];
    let out = script(300, "catch_up.py", &folder, &words);
    assert_eq!(out.matches("\"case\"").count(), 2, "{out}");
    let beyond = out.lines().find(|line| line.contains("beyond"));
    let fetched = format!("\"fetched_bytes\": {}", 17_500 * 4096);
    assert!(beyond.is_some_and(|line| line.contains(&fetched)), "{out}");
    assert!(
        out.contains("every copy that was away is the same"),
        "{out}"
    );
}

/// `benches/diff.py` counts the blocks of each comparison against those that were written.
#[test]
fn what_comparing_snapshots_takes_is_measured() {
    if !has(&["python3", "fio"]) {
        return;
    }
    let words = [
        "--sizes",
        "64MiB,1TiB",
        "--changed",
        "0,100",
        "--base",
        "500",
        "--rounds",
        "1",
        "--store-size",
        "2GiB",
    ];
    let out = script(120, "diff.py", &Folder::new(), &words);
    assert_eq!(
        out.lines().filter(|l| l.starts_with("| 64MiB |")).count(),
        2,
        "{out}"
    );
    assert_eq!(
        out.lines().filter(|l| l.starts_with("| 1TiB |")).count(),
        2,
        "{out}"
    );
}

/// `benches/steady.py` counts what a full store of overwrites writes: never less than clients do.
#[test]
fn the_steady_state_is_measured() {
    if !has(&["python3", "fio"]) {
        return;
    }
    let folder = Folder::new();
    let path = |name: &str| folder.join(name).display().to_string();
    let (json, svg) = (path("found.json"), path("found.svg"));
    let words = [
        ["--store-size", "1GiB"],
        ["--shares", "50"],
        ["--seconds", "6"],
        ["--json", &json],
        ["--svg", &svg],
    ];
    let table = script(120, "steady.py", &folder, words.as_flattened());
    assert!(table.contains("| 50 % | zipfian |"), "{table}");
    let found: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    let rows = found["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    for row in rows {
        // Of the whole run: what a second writes is not always on the device in the same second.
        let bytes = |of: &str| row[of].as_u64().unwrap();
        assert!(
            bytes("device_bytes") >= bytes("client_bytes") && bytes("client_bytes") > 0,
            "{row}"
        );
        assert!(row["amplification"].as_f64().unwrap() > 0.0, "{row}");
        assert!(row["turns"].as_f64().unwrap() > 0.0, "{row}");
        assert!(!row["seconds"].as_array().unwrap().is_empty(), "{row}");
    }
    assert!(fs::read_to_string(&svg).unwrap().contains("<polyline"));
}

/// `benches/snapshots.py --quick` measures every count of snapshots that it names, and of each
/// everything; a snapshot that was not taken or not listed ends it.
#[test]
fn what_snapshots_cost_is_measured() {
    if !has(&["python3", "fio", "qemu-nbd", "qemu-img"]) {
        return;
    }
    let folder = Folder::new();
    let path = |name: &str| folder.join(name).display().to_string();
    let (json, svg) = (path("found.json"), path("found.svg"));
    let words = ["--quick", "--json", &json, "--svg", &svg];
    let table = script(240, "snapshots.py", &folder, &words);
    assert!(table.contains("not to be quoted"), "{table}");
    let found: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    let counts = |of: &str| -> Vec<u64> {
        let levels = found[of].as_array().unwrap().iter();
        levels
            .map(|level| level["snapshots"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(counts("esker"), [0, 1, 40]);
    assert_eq!(counts("qcow2"), [0, 1, 40]);
    for level in found["esker"].as_array().unwrap() {
        for key in [
            "first_read_s",
            "resident_mib",
            "scrape_ms",
            "snapshot_list_ms",
        ] {
            assert!(level[key].as_f64().unwrap() > 0.0, "{key}: {level}");
        }
        assert!(
            level["checkpoint"]["bytes"].as_u64().unwrap() > 0,
            "{level}"
        );
        let taken = level["under_load"]["create"]["count"].as_u64();
        assert_eq!(taken.unwrap_or(0) > 0, level["snapshots"] != 0, "{level}");
    }
    assert_eq!(found["after"]["clone"]["count"], 4);
    let plot = fs::read_to_string(&svg).unwrap();
    assert!(plot.ends_with("</svg>\n") && plot.contains("qcow2, random write"));
}

/// `benches/tls.py --quick` measures each row with TLS and without.
#[test]
fn what_tls_costs_is_measured() {
    if !has(&["python3", "fio", "setpriv"]) {
        return;
    }
    let folder = Folder::new();
    let json = folder.join("found.json").display().to_string();
    let table = script(240, "tls.py", &folder, &["--quick", "--json", &json]);
    assert_eq!(table.matches(" instead of ").count(), 6, "{table}");
    let found: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    assert_measured(&found, &["plain", "tls"]);
}

/// `benches/encrypted.py --quick` measures each row on both volumes.
#[test]
fn what_encryption_costs_is_measured() {
    if !has(&["python3", "fio"]) {
        return;
    }
    let folder = Folder::new();
    let json = folder.join("found.json").display().to_string();
    let table = script(240, "encrypted.py", &folder, &["--quick", "--json", &json]);
    assert_eq!(table.matches(" instead of ").count(), 6, "{table}");
    let found: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    assert_measured(&found, &["plain", "encrypted"]);
}

/// `benches/replicated.py --quick` measures rows on a volume with three copies and on one with one, and snapshots
/// between writes. What was answered is at least at two of the three devices.
#[test]
fn three_copies_are_measured() {
    if !has(&["python3", "fio"]) {
        return;
    }
    let folder = Folder::new();
    let json = folder.join("found.json").display().to_string();
    let words = ["--quick", "--json", &json, "--targets", "three,one"];
    let rows = ["--rows", "^random write, qd (32|1)$|^snapshots"];
    let table = script(120, "replicated.py", &folder, &[&words[..], &rows].concat());
    assert!(!table.contains("does not have its stores"), "{table}");
    let found: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    let row = &found["runs"]["random write, qd 32"];
    assert!(row["one"][0]["ios"].as_u64().unwrap() > 0, "{row}");
    let bytes = &row["three"][0]["device_per_client_byte"];
    assert!(bytes.as_f64().unwrap() >= 2.0, "{row}");
    let snapshots = &found["runs"]["snapshots while writing, qd 32"]["three"][0];
    for way in ["command_ms", "api_ms"] {
        assert_eq!(snapshots[way].as_array().unwrap().len(), 1, "{snapshots}");
    }
}

/// `benches/failover.py --quick` kills a leader under load; an error at a client, a block that is not what was
/// written and copies that differ end it with an error.
#[test]
fn the_pause_of_a_failover_is_measured() {
    if !has(&["python3", "fio", "nbdcopy"]) {
        return;
    }
    let folder = Folder::new();
    let path = |name: &str| folder.join(name).display().to_string();
    let (json, svg) = (path("found.json"), path("found.svg"));
    let words = ["--quick", "--json", &json, "--svg", &svg];
    let table = script(120, "failover.py", &folder, &words);
    assert!(table.contains("1 kills of the leader, no error"), "{table}");
    let found: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    let clients = found["kills"][0]["clients"].as_object().unwrap();
    assert_eq!(clients.len(), 2, "{found}");
    for client in clients.values() {
        for count in ["writes", "checked"] {
            assert!(client[count].as_u64().unwrap() > 0, "{count}");
        }
    }
    assert!(fs::read_to_string(&svg).unwrap().contains("<polyline"));
}
