//! What an administrator meets: the commands of docs/operating.md, the files under dist/, and the
//! log.

use crate::client::FUA;
use crate::harness::{free_address, has, program, repository, run, skip, Folder, Start};
use crate::readme::blocks;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// What the document says once.
const DATA: &str = "export ESKER_DATA=/var/lib/esker";

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
    let mut blocks = blocks("docs/operating.md");
    blocks.retain(|block| !is_of_certificates(block));
    assert_eq!(blocks.len(), 9, "tell this test about a new one");
    let metrics = free_address();
    shell(&folder, &metrics, &blocks[0]);
    assert!(!folder.join("d").exists(), "a check touches nothing");
    let start = Start::new(&folder.join("d")).metrics(&metrics);
    let daemon = start.with(&["--store-size", "1GiB"]).ready();
    shell(&folder, &metrics, &blocks[1]);
    for block in &blocks[2..8] {
        shell(&folder, &metrics, &format!("{DATA}\n{block}"));
    }
    daemon.stop();
    shell(&folder, &metrics, &blocks[8]);
}

fn is_of_certificates(block: &str) -> bool {
    block.contains("esker cert") || block.contains("ESKER_CERTS")
}

/// Made, used, renewed and exchanged, as the document says.
#[test]
fn the_commands_for_certificates_work_as_they_stand() {
    if !has(&["bash", "jq", "nbdinfo", "install"]) {
        return;
    }
    let folder = Folder::new();
    fs::copy(
        repository().join("dist/eskerd.toml"),
        folder.join("eskerd.toml"),
    )
    .unwrap();
    let mut blocks = blocks("docs/operating.md");
    blocks.retain(|block| is_of_certificates(block));
    assert_eq!(blocks.len(), 4, "tell this test about a new one");
    let (admin, nbd) = (free_address(), free_address());
    let port = |address: &str| address.rsplit(':').next().unwrap().to_owned();
    let run = |block: &str| {
        let block = block
            .replace(":10810", &format!(":{}", port(&admin)))
            .replace(
                "nbds://localhost/",
                &format!("nbds://localhost:{}/", port(&nbd)),
            );
        shell(&folder, "none", &block);
    };
    run(&blocks[0]);
    let config = folder.join("eskerd.toml").display().to_string();
    let start = Start::new(&folder.join("d")).nbd(&nbd);
    let daemon = start
        .with(&["--store-size", "1GiB", "--config", &config])
        .ready();
    run(&blocks[1]);
    let remote = blocks[1].replace("esker volume create remote --size 1GiB\n", "");
    assert_ne!(remote, blocks[1]);
    let delete = "export ESKER_ADMIN=localhost:10810 ESKER_CERTS=/etc/esker/alice\n\
                  (esker volume delete remote --yes || true) 2>&1 | grep 'needs admin'";
    run(delete);
    for (count, block) in blocks[2..].iter().enumerate() {
        run(block);
        crate::tls::wait_for(&daemon, "new certificates are in use", count + 1);
        run(&remote);
    }
    // In the end the node shows what the second authority issued.
    let ca = folder.join("ca-2/ca.pem").display().to_string();
    let certs = folder.join("alice").display().to_string();
    let words = ["--admin", &admin, "--certs", &certs, "--ca", &ca, "status"];
    let begun = Instant::now();
    while crate::tls::esker(&words).code != Some(0) {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{}",
            daemon.log()
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    daemon.stop();
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
fn systemd_takes_the_units() {
    if !has(&["systemd-analyze"]) {
        return;
    }
    let folder = Folder::new();
    let unit = folder.join("eskerd.service");
    let text = fs::read_to_string(repository().join("dist/systemd/eskerd.service")).unwrap();
    let eskerd = program("eskerd").display().to_string();
    assert!(text.contains("ExecStart=/usr/bin/eskerd "));
    fs::write(&unit, text.replace("/usr/bin/eskerd", &eskerd)).unwrap();
    let socket = folder.join("eskerd.socket");
    fs::copy(repository().join("dist/systemd/eskerd.socket"), &socket).unwrap();
    let units = [unit.to_str().unwrap(), socket.to_str().unwrap()];
    let done = run(
        "systemd-analyze",
        &["verify", "--man=no", units[0], units[1]],
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

/// The fields of an object, in order.
fn fields(value: &serde_json::Value) -> String {
    let mut names: Vec<&str> = value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    names.sort_unstable();
    names.join(" ")
}

/// Scripts rely on these fields and on what they hold: they may be added to, and this test with them.
#[test]
fn json_is_what_scripts_rely_on() {
    const SPACE: &str = "client_bytes_written device_bytes_written free_bytes garbage_bytes \
                         live_bytes reserve_bytes rewind_bytes snapshot_bytes";
    let folder = Folder::new();
    let start = Start::new(&folder.join("d"));
    let daemon = start.with(&["--store-size", "1GiB"]).ready();
    daemon.create("v", "64MiB");
    let mut client = daemon.client("v");
    client.write(0, &[1; 65_536], FUA).unwrap().unwrap();

    let list = daemon.json(&["volume", "list"]);
    let volume = daemon.json(&["volume", "show", "v"]);
    assert_eq!(list, serde_json::json!([volume]));
    assert_eq!(
        fields(&volume),
        "attachment encrypted labels name replicas reseal rewind_bytes rewind_from_unix rewind_seconds sessions \
         size_bytes snapshot_bytes snapshot_schedule snapshots state store tcp_uri unique_bytes uri \
         used_bytes uuid"
    );
    assert_eq!(volume["size_bytes"], 64 << 20);
    assert_eq!(
        (&volume["used_bytes"], &volume["unique_bytes"]),
        (&65_536.into(), &65_536.into())
    );
    assert_eq!(
        (&volume["replicas"], &volume["snapshots"]),
        (&1.into(), &0.into())
    );
    assert_eq!(
        (&volume["encrypted"], &volume["sessions"]),
        (&false.into(), &1.into())
    );
    assert_eq!(volume["uri"], daemon.uri("v"));
    assert_eq!(volume["tcp_uri"], daemon.tcp_uri("v"));

    let space = daemon.json(&["space"]);
    assert_eq!(fields(&space), format!("{SPACE} stores total_bytes"));
    assert_eq!(
        fields(&space["stores"][0]),
        "client_bytes_written device_bytes_written free_bytes garbage_bytes live_bytes path \
         reserve_bytes rewind_bytes snapshot_bytes store total_bytes"
    );
    let bytes = |field: &str| space[field].as_u64().unwrap();
    let parts = bytes("live_bytes") + bytes("garbage_bytes") + bytes("free_bytes");
    assert_eq!(parts + bytes("snapshot_bytes"), bytes("total_bytes"));
    assert_eq!(bytes("client_bytes_written"), 65_536);
    assert!(bytes("device_bytes_written") > 65_536 && bytes("live_bytes") >= 65_536);
    let part = daemon.json(&["space", "v"]);
    assert_eq!(fields(&part), format!("{SPACE} stores total_bytes volume"));
    assert_eq!(
        (&part["volume"], &part["live_bytes"]),
        (&"v".into(), &65_536.into())
    );

    let status = daemon.json(&["status"]);
    assert_eq!(fields(&status), "healthy nodes problems volumes");
    assert_eq!(
        (&status["healthy"], &status["problems"]),
        (&true.into(), &serde_json::json!([]))
    );
    let (node, volume) = (&status["nodes"][0], &status["volumes"][0]);
    assert_eq!(fields(node), "id state stores version");
    assert_eq!(
        fields(&node["stores"][0]),
        "damaged_blocks path recovered_records sessions size_bytes state store"
    );
    assert_eq!(fields(volume), "leader name replicas sessions state");
    let replica = &volume["replicas"][0];
    assert_eq!(fields(replica), "lag_bytes node role state");
    assert_eq!(
        (&volume["name"], &volume["state"]),
        (&"v".into(), &"ready".into())
    );
    assert_eq!(
        (&volume["leader"], &replica["node"]),
        (&node["id"], &node["id"])
    );
    assert_eq!(
        (&replica["role"], &replica["lag_bytes"]),
        (&"voter".into(), &0.into())
    );

    drop(client);
    let store = daemon.data.join("store-0.esker").display().to_string();
    let deleted = daemon.json(&["volume", "delete", "v", "--yes"]);
    assert_eq!(fields(&deleted), "deleted name");
    daemon.stop();
    let offline = |verb: &str| -> serde_json::Value {
        let words = [verb, &store, "-o", "json"];
        serde_json::from_str(&run(program("esker").to_str().unwrap(), &words).ok()).unwrap()
    };
    let verified = offline("verify");
    assert_eq!(
        fields(&verified),
        "blocks nodes ok problem_count problems records_replayed store torn_tail volumes"
    );
    assert_eq!(
        (&verified["ok"], &verified["volumes"]),
        (&true.into(), &0.into())
    );
    assert_eq!(fields(&offline("inspect")), "lines store");
}
