//! What an administrator meets: the commands of docs/operating.md, the files under dist/, and the
//! log.

use crate::client::FUA;
use crate::harness::{free_address, has, program, repository, run, skip, Folder, Start};
use crate::readme::blocks;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Runs a block of the document with its paths and its port replaced.
fn shell(folder: &Folder, metrics: &str, block: &str) {
    let bin = program("esker").parent().unwrap().display().to_string();
    let block = block
        .replace("/var/lib/esker", folder.join("d").to_str().unwrap())
        .replace("/etc/esker", folder.0.to_str().unwrap())
        .replace("127.0.0.1:9809", metrics);
    let output = Command::new("bash")
        .args([
            "-c",
            &format!("set -euo pipefail\nPATH={bin}:$PATH\n{block}"),
        ])
        .env_remove("ESKER_DATA")
        .env_remove("RUST_LOG")
        .output()
        .unwrap();
    assert!(output.status.success(), "{block}: {output:?}");
}

#[test]
fn the_commands_of_the_document_work_as_they_stand() {
    if !has(&["bash", "jq", "curl"]) {
        return;
    }
    let folder = Folder::new();
    fs::copy(
        repository().join("dist/eskerd.toml"),
        folder.join("eskerd.toml"),
    )
    .unwrap();
    let blocks = blocks("docs/operating.md");
    assert_eq!(blocks.len(), 3, "tell this test about a new one");
    let metrics = free_address();
    shell(&folder, &metrics, &blocks[0]);
    assert!(!folder.join("d").exists(), "a check touches nothing");
    let start = Start::new(&folder.join("d")).metrics(&metrics);
    let daemon = start.with(&["--store-size", "1GiB"]).ready();
    shell(&folder, &metrics, &blocks[1]);
    daemon.stop();
    shell(&folder, &metrics, &blocks[2]);
}

fn files_of(folder: &Path) -> Vec<(String, String)> {
    let mut files = Vec::new();
    for part in ["man", "completions"] {
        for entry in fs::read_dir(folder.join(part)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(folder).unwrap().display().to_string();
            files.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
    files.sort();
    files
}

/// Man pages and completions lie in the repository as the programs write them.
#[test]
fn dist_is_what_the_programs_write() {
    let folder = Folder::new();
    let bin = program("esker").parent().unwrap().to_path_buf();
    let script = repository().join("scripts/dist.sh");
    let output = Command::new(script)
        .arg(folder.join("dist"))
        .env("ESKER_BIN_DIR", bin)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let (kept, written) = (
        files_of(&repository().join("dist")),
        files_of(&folder.join("dist")),
    );
    let names = |files: &[(String, String)]| -> Vec<String> {
        files.iter().map(|(name, _)| name.clone()).collect()
    };
    assert_eq!(names(&kept), names(&written), "run scripts/dist.sh");
    for (kept, written) in kept.iter().zip(&written) {
        assert!(kept == written, "{}: run scripts/dist.sh", kept.0);
    }
    assert!(names(&kept).len() > 10, "{:?}", names(&kept));
}

/// systemd's own check of the units, with the programs where this test has them.
#[test]
fn systemd_takes_the_unit() {
    if !has(&["systemd-analyze"]) {
        return;
    }
    let folder = Folder::new();
    let unit = folder.join("eskerd.service");
    let text = fs::read_to_string(repository().join("dist/systemd/eskerd.service")).unwrap();
    let eskerd = program("eskerd").display().to_string();
    assert!(text.contains("ExecStart=/usr/bin/eskerd "));
    fs::write(&unit, text.replace("/usr/bin/eskerd", &eskerd)).unwrap();
    let done = run(
        "systemd-analyze",
        &["verify", "--man=no", unit.to_str().unwrap()],
    );
    if done.code != Some(0) && done.err.contains("Failed to initialize manager") {
        return skip("systemd-analyze cannot look at units here");
    }
    assert_eq!(
        (done.code, done.err.as_str()),
        (Some(0), ""),
        "{}",
        done.out
    );
}

/// At debug level each request is told with its session and the client's cookie, as is its reply;
/// at info neither, but every change of a volume's state.
#[test]
fn the_log_tells_states_and_if_asked_requests() {
    for (level, tells_requests) in [("debug", true), ("info", false)] {
        let folder = Folder::new();
        let config = folder.join("eskerd.toml");
        let text = format!("log = 'warn,esker_node={level}'\nlog_format = 'json'\n");
        fs::write(&config, text).unwrap();
        let start = Start::new(&folder.join("d"));
        let words = ["--store-size", "1GiB", "--config", config.to_str().unwrap()];
        let daemon = start.with(&words).ready();
        daemon.create("v", "64MiB");
        let mut client = daemon.client("v").cookies_from(4711);
        client.write(4096, &[1; 8192], FUA).unwrap().unwrap();
        drop(client);
        daemon.terminate();
        let data = daemon.data.clone();
        assert_eq!(daemon.wait(), Some(0));

        let log = fs::read_to_string(data.with_extension("log")).unwrap();
        let lines: Vec<serde_json::Value> = log
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect();
        let find = |message: &str| -> Vec<&serde_json::Value> {
            lines.iter().filter(|l| l["message"] == message).collect()
        };
        let states: Vec<_> = find("volume changes state")
            .iter()
            .map(|l| l["state"].as_str().unwrap().to_string())
            .collect();
        assert_eq!(states, ["starting", "ready"]);
        assert_eq!(find("session attached").len(), 1);
        let (requests, replies) = (find("request"), find("reply"));
        assert_eq!(requests.len(), usize::from(tells_requests));
        assert_eq!(replies.len(), usize::from(tells_requests));
        let (Some(request), Some(reply)) = (requests.first(), replies.first()) else {
            continue;
        };
        assert_eq!(request["cookie"], 4711);
        assert_eq!(request["operation"], "write");
        assert_eq!(
            (&request["offset"], &request["length"]),
            (&4096.into(), &8192.into())
        );
        for field in ["cookie", "session", "request", "conn"] {
            assert!(!reply[field].is_null(), "{field} in {reply}");
            assert_eq!(reply[field], request[field], "{field}");
        }
    }
}
