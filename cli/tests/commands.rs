//! The `esker` binary against the daemon's admin API with stores in memory.

#![allow(clippy::unwrap_used)] // helpers of tests may panic, like tests

#[path = "../../daemon/tests/support/fake.rs"]
mod fake;

use esker_node::admin::{VolumeReport, VolumeState};
use fake::FakeNode;
use serde_json::{json, Value};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// A daemon's admin API in this process, and its folder.
struct Daemon {
    folder: TempDir,
    node: Arc<FakeNode>,
}

impl Daemon {
    fn start(node: FakeNode) -> Self {
        let daemon = Self {
            folder: tempfile::tempdir().unwrap(),
            node: Arc::new(node),
        };
        let (data, node) = (daemon.folder.path().to_path_buf(), Arc::clone(&daemon.node));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(node.serve_admin(&data));
        });
        for _ in 0..500 {
            if daemon.folder.path().join("admin.sock").exists() {
                return daemon;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the admin API does not come up");
    }

    fn esker(&self, words: &[&str]) -> Output {
        esker(self.folder.path(), words)
    }

    /// The JSON a command prints; it must succeed, silently on stderr.
    fn json(&self, words: &[&str]) -> Value {
        let output = self.esker(&[words, &["-o", "json"]].concat());
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{words:?}");
        assert_eq!(output.status.code(), Some(0), "{words:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn text(&self, words: &[&str]) -> String {
        let output = self.esker(words);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{words:?}");
        assert_eq!(output.status.code(), Some(0), "{words:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The one line with which a command is refused.
    fn refusal(&self, words: &[&str]) -> String {
        refusal(&self.esker(words))
    }
}

fn esker(data: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_esker"));
    command
        .args(words)
        .env("ESKER_DATA", data)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn refusal(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.starts_with("esker: ") && text.lines().count() == 1,
        "{text}"
    );
    text
}

#[test]
fn volume_json_is_what_scripts_rely_on() {
    let daemon = Daemon::start(FakeNode::new(&[1 << 30]));
    let create = [
        "volume",
        "create",
        "vm-1",
        "--size",
        "10GiB",
        "--label",
        "team=blue",
    ];
    let expected = json!({
        "name": "vm-1",
        "uuid": "00000000-0000-4000-8000-000000000001",
        "size_bytes": 10_737_418_240_u64,
        "used_bytes": 0,
        "unique_bytes": 0,
        "snapshot_bytes": 0,
        "replicas": 1,
        "encrypted": false,
        "snapshots": 0,
        "uri": "nbd+unix:///vm-1?socket=/data/nbd.sock",
        "tcp_uri": "nbd://127.0.0.1:10809/vm-1",
        "labels": {"team": "blue"},
        "state": "ready",
        "sessions": 0,
        "store": 0,
        "snapshot_schedule": null,
        "rewind_seconds": 0,
        "rewind_from_unix": null,
        "rewind_bytes": null,
        "reseal": null,
        "attachment": null,
    });
    assert_eq!(daemon.json(&create), expected);
    assert_eq!(daemon.json(&["volume", "show", "vm-1"]), expected);
    assert_eq!(daemon.json(&["volume", "list"]), json!([expected]));
    let grown = daemon.json(&["volume", "resize", "vm-1", "--size", "20GiB"]);
    assert_eq!(grown["size_bytes"], 20_u64 << 30);
    assert_eq!(
        daemon.json(&["volume", "rename", "vm-1", "vm-2"])["name"],
        "vm-2"
    );
    let deleted = daemon.json(&["volume", "delete", "vm-2"]);
    assert_eq!(deleted, json!({"name": "vm-2", "deleted": true}));
    assert_eq!(daemon.json(&["volume", "list"]), json!([]));
}

#[test]
fn tables_are_aligned() {
    let daemon = Daemon::start(FakeNode::new(&[1 << 30]));
    daemon.text(&["volume", "create", "a", "--size", "512MiB"]);
    daemon.text(&["volume", "create", "longer-name", "--size", "10GiB"]);
    let expected = "\
NAME            SIZE  USED  UNIQUE  REPLICAS  SNAPSHOTS  SESSIONS  STATE
a            512 MiB   0 B     0 B         1          0         0  ready
longer-name   10 GiB   0 B     0 B         1          0         0  ready
";
    assert_eq!(daemon.text(&["volume", "list"]), expected);
    let space = daemon.text(&["space"]);
    assert!(space.contains("free                1 GiB\n"), "{space}");
}

#[test]
fn space_and_status_json() {
    let daemon = Daemon::start(FakeNode::new(&[1 << 30]));
    let figures = json!({
        "live_bytes": 1 << 20,
        "snapshot_bytes": 0,
        "rewind_bytes": null,
        "garbage_bytes": 1 << 10,
        "free_bytes": 1 << 30,
        "total_bytes": 1_u64 << 40,
        "reserve_bytes": 1 << 30,
        "device_bytes_written": 5 << 20,
        "client_bytes_written": 4 << 20,
    });
    let mut store = figures.clone();
    store["store"] = json!(0);
    store["path"] = json!("/stores/0");
    let mut space = figures;
    space["stores"] = json!([store]);
    assert_eq!(daemon.json(&["space"]), space);

    daemon.text(&["volume", "create", "v", "--size", "1MiB"]);
    assert_eq!(daemon.json(&["space", "v"])["volume"], "v");
    let status = json!({
        "healthy": true,
        "nodes": [{
            "id": "7",
            "state": "up",
            "version": env!("CARGO_PKG_VERSION"),
            "stores": [{
                "store": 0,
                "path": "/stores/0",
                "state": "ready",
                "size_bytes": 1_u64 << 40,
                "sessions": 0,
                "damaged_blocks": 3,
                "recovered_records": 4,
            }],
        }],
        "volumes": [{
            "name": "v",
            "state": "ready",
            "leader": "7",
            "replicas": [{"node": "7", "role": "voter", "state": "ready", "lag_bytes": 0}],
            "sessions": 0,
        }],
        "problems": [],
    });
    assert_eq!(daemon.json(&["status"]), status);
    assert!(daemon.text(&["status"]).starts_with("healthy\n"));
}

#[test]
fn status_why_says_what_to_do() {
    let node = FakeNode::new(&[1 << 30]).with(0, |store| {
        store
            .problems
            .push("volume v is suspended; look at `esker volume accept-loss`".into());
    });
    let report = VolumeReport {
        name: "v".into(),
        state: VolumeState::Suspended,
        ..Default::default()
    };
    node.stores[0]
        .volumes
        .lock()
        .unwrap()
        .insert("v".into(), report);
    let daemon = Daemon::start(node);
    assert!(daemon
        .text(&["status"])
        .starts_with("NOT HEALTHY: 1 problem\n"));
    assert!(daemon
        .text(&["status", "--why"])
        .contains("1. volume v is suspended; "));
    let status = daemon.json(&["status"]);
    assert_eq!(status["healthy"], false);
    assert_eq!(status["volumes"][0]["leader"], Value::Null);

    // It destroys something for good: never without --yes.
    assert!(daemon
        .refusal(&["volume", "accept-loss", "v"])
        .contains("--yes"));
    assert_eq!(
        daemon.json(&["volume", "accept-loss", "v", "--yes"])["state"],
        "ready"
    );
}

#[test]
fn the_loss_of_all_suspended_volumes_is_accepted_at_once() {
    let node = FakeNode::new(&[1 << 30, 1 << 30]);
    for (store, name, state) in [
        (0, "idle-1", VolumeState::Suspended),
        (0, "good", VolumeState::Ready),
        (1, "idle-2", VolumeState::Suspended),
        (1, "fenced", VolumeState::Fenced),
    ] {
        let name = String::from(name);
        let report = VolumeReport {
            name: name.clone(),
            state,
            ..Default::default()
        };
        node.stores[store]
            .volumes
            .lock()
            .unwrap()
            .insert(name, report);
    }
    let daemon = Daemon::start(node);
    let line = daemon.refusal(&["volume", "accept-loss", "--all"]);
    assert!(line.contains("--yes") && line.contains("every"), "{line}");
    let all = ["volume", "accept-loss", "--all", "--yes"];
    assert_eq!(
        daemon.text(&all),
        "accepted the loss of idle-1\naccepted the loss of idle-2\n"
    );
    let states: Vec<_> = daemon
        .json(&["volume", "list"])
        .as_array()
        .unwrap()
        .iter()
        .map(|volume| format!("{} {}", volume["name"], volume["state"]).replace('"', ""))
        .collect();
    let expected = [
        "fenced fenced",
        "good ready",
        "idle-1 ready",
        "idle-2 ready",
    ];
    assert_eq!(states, expected);
    assert_eq!(daemon.text(&all), "no volume is suspended\n");
    assert_eq!(daemon.json(&all), json!([]));
    for words in [
        &["volume", "accept-loss", "--yes"][..],
        &["volume", "accept-loss", "good", "--all", "--yes"],
    ] {
        assert_eq!(daemon.esker(words).status.code(), Some(2), "{words:?}");
    }
}

#[test]
fn refusals_are_code_1_and_one_line() {
    let daemon = Daemon::start(FakeNode::new(&[1 << 30]));
    daemon.text(&["volume", "create", "v", "--size", "1MiB"]);
    for (words, part) in [
        (&["volume", "show", "none"][..], "no volume none"),
        (&["volume", "create", "v", "--size", "1MiB"], "exists"),
        (&["volume", "create", "w", "--size", "5"], "4096"),
        (
            &["volume", "create", "w", "--size", "1MiB", "--replicas", "3"],
            "needs a cluster",
        ),
        (&["volume", "resize", "v", "--size", "4KiB"], "shrink"),
        (&["space", "none"], "no volume none"),
    ] {
        let line = daemon.refusal(words);
        assert!(line.contains(part), "{part} in {line}");
    }
    let nowhere = tempfile::tempdir().unwrap();
    let line = refusal(&esker(nowhere.path(), &["volume", "list"]));
    assert!(
        line.contains("no daemon answers") && line.contains("admin.sock"),
        "{line}"
    );
    let long = format!("/{}", "x".repeat(200));
    assert!(refusal(&esker(Path::new(&long), &["status"])).contains("107 bytes"));
}

#[test]
fn the_daemon_can_be_named_in_three_ways() {
    let daemon = Daemon::start(FakeNode::new(&[1 << 30]));
    let data = daemon.folder.path().to_str().unwrap();
    let socket = format!("unix:{data}/admin.sock");
    for words in [
        ["--data", data],
        ["--admin", &socket],
        ["--admin", &socket["unix:".len()..]],
    ] {
        let elsewhere = Path::new("/nowhere");
        let output = esker(elsewhere, &[&["volume", "list"][..], &words].concat());
        assert_eq!(output.status.code(), Some(0), "{words:?}");
    }
}

#[test]
fn wrong_usage_is_code_2() {
    for words in [
        &[][..],
        &["volume"],
        &["volume", "create", "v"],
        &["volume", "create", "v", "--size", "10GB"],
        &["volume", "create", "v", "--size", "1GiB", "--replicas", "0"],
        &["volume", "create", "v", "--size", "1GiB", "--label", "x"],
        &["volume", "list", "-o", "yaml"],
        &["nonsense"],
    ] {
        let output = esker(Path::new("/nowhere"), words);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
    }
    for words in [&["--help"][..], &["--version"], &["completions", "bash"]] {
        assert_eq!(
            esker(Path::new("/nowhere"), words).status.code(),
            Some(0),
            "{words:?}"
        );
    }
}

/// `esker volume list | head -0` must end quietly.
#[test]
fn nobody_reading_is_no_failure() {
    let daemon = Daemon::start(FakeNode::new(&[1 << 30]));
    for words in [&["volume", "list"][..], &["completions", "bash"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_esker"));
        command
            .args(words)
            .env("ESKER_DATA", daemon.folder.path())
            .stdout(writer);
        let output = command
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{words:?}");
        assert_eq!(output.status.code(), Some(0), "{words:?}");
    }
}
