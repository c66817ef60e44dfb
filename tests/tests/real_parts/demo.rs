//! `esker demo` as scripts use it: what it tells, what it leaves, and how it ends before its end.

use crate::client::Client;
use crate::harness::{program, run, run_for, signal, Done, Folder};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn demo(folder: &Folder, words: &[&str]) -> Done {
    let mut all = vec!["demo", "--dir", folder.0.to_str().unwrap()];
    all.extend(words);
    run_for(100, program("esker").to_str().unwrap(), &all)
}

/// Processes that work on something in this folder.
fn processes(folder: &Path) -> Vec<String> {
    let needle = format!("{}/", folder.display());
    let all = fs::read_dir("/proc").unwrap().flatten();
    let numbered = all.filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok());
    let lines = numbered.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(&needle)).collect()
}

/// Neither a process nor a file of a demo that ran in this folder.
#[track_caller]
pub fn nothing_is_left(folder: &Folder) {
    assert_eq!(processes(&folder.0), Vec::<String>::new());
    let files: Vec<_> = fs::read_dir(&folder.0).unwrap().flatten().collect();
    assert!(files.is_empty(), "{files:?}");
}

/// With one node, which is killed and started again; it runs on until it is told to stop.
#[test]
fn a_demo_that_is_kept_tells_in_json_where_it_is_and_serves_until_stopped() {
    let folder = Folder::new();
    let text = demo(&folder, &["--nodes", "1", "--keep", "-o", "json"]).ok();
    let told: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (field, value) in [
        ("nodes", 1.into()),
        ("replicas", 1.into()),
        ("encrypted", true.into()),
        ("errors", 0.into()),
        ("blocks_lost", 0.into()),
        ("catch_up", serde_json::Value::Null),
    ] {
        assert_eq!(told[field], value, "{field} of {told}");
    }
    for (part, field) in [
        ("fill", "bytes_per_second"),
        ("full_speed", "write_iops"),
        ("full_speed", "write_p99_us"),
        ("snapshot", "requests_meanwhile"),
        ("kill", "requests"),
    ] {
        assert!(
            told[part][field].as_u64().unwrap() > 0,
            "{part}.{field} of {told}"
        );
    }
    assert!(told["kill"]["longest_pause_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(told["verified"][0]["blocks"], 32 << 10);
    let writes = told["writes_acknowledged"].as_u64().unwrap();
    assert!(writes > 32 << 10, "{writes}");

    let left = Path::new(told["folder"].as_str().unwrap());
    assert_eq!(processes(&folder.0).len(), 1);
    let mut client = Client::unix(&left.join("n1/nbd.sock"), "demo@before").unwrap();
    let block = client.read(17 << 12, 4096).unwrap().unwrap();
    assert_eq!(block[..8], 17u64.to_le_bytes());
    drop(client);
    let esker = program("esker");
    let stop = ["demo", "--stop", left.to_str().unwrap()];
    run(esker.to_str().unwrap(), &stop).ok();
    nothing_is_left(&folder);
    // Once is enough, and a folder of somebody else's is not touched.
    for other in [left, &folder.0] {
        let stop = ["demo", "--stop", other.to_str().unwrap()];
        let line = run(esker.to_str().unwrap(), &stop).line(1);
        assert!(line.contains("esker demo --keep"), "{line}");
    }
}

#[test]
fn a_demo_that_is_interrupted_stops_its_nodes_and_removes_its_folder() {
    let folder = Folder::new();
    let child = Command::new(program("esker"))
        .args(["demo", "--dir", folder.0.to_str().unwrap()])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    while processes(&folder.0).len() < 3 {
        assert!(Instant::now() < end, "its nodes do not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_secs(1));
    signal(child.id(), "INT");
    let done = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(1), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(told.contains("interrupted"), "{told}");
    nothing_is_left(&folder);
}

#[test]
fn demos_that_cannot_be_are_refused_in_a_line() {
    let folder = Folder::new();
    let told = demo(&folder, &["--nodes", "2"]);
    assert_eq!(told.code, Some(2), "{told:?}");
    assert!(told.err.contains("majority"), "{told:?}");
    let told = demo(&folder, &["-o", "dot"]).line(2);
    assert!(told.contains("table or json"), "{told}");
    let missing = folder.join("missing");
    let words = ["demo", "--dir", missing.to_str().unwrap()];
    let told = run(program("esker").to_str().unwrap(), &words).line(1);
    assert!(told.contains("missing"), "{told}");
    // No daemon beside the command line, nor on the PATH.
    let esker = folder.join("esker");
    fs::copy(program("esker"), &esker).unwrap();
    let words = ["PATH=/nowhere", esker.to_str().unwrap(), "demo", "--dir"];
    let words = [&words[..], &[folder.0.to_str().unwrap()]].concat();
    let told = run("env", &words).line(1);
    assert!(
        told.contains("no eskerd in") && told.contains("cargo build"),
        "{told}"
    );
    fs::remove_file(esker).unwrap();
    nothing_is_left(&folder);
}
