//! The `eskerd` binary with a real store: the ready line, the clean stop, the kill, and stores that
//! are not to be opened.

#![allow(clippy::unwrap_used)] // helpers of tests may panic, like tests

use esker_api::v1;
use rustix::process::{kill_process, Pid, Signal};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

const QUIET: [&str; 4] = ["--nbd", "none", "--metrics", "none"];
const SMALL: &str = "--store-size=1GiB";

fn command(data: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eskerd"));
    command
        .arg("--data")
        .arg(data)
        .args(QUIET)
        .args(more)
        .env_remove("RUST_LOG");
    command
}

/// A running daemon; killed when the test fails.
struct Daemon {
    child: Child,
    ready_line: String,
}

impl Daemon {
    fn start(data: &Path, more: &[&str]) -> Self {
        Self::spawn(command(data, more))
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready_line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut ready_line).unwrap();
        if ready_line.is_empty() {
            panic!("not ready: {:?}", child.wait_with_output().unwrap());
        }
        Self { child, ready_line }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends a signal and waits; gives the exit code and the log.
    fn end(mut self, signal: Signal) -> (Option<i32>, String) {
        kill_process(self.pid(), signal).unwrap();
        let mut log = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut log)
            .unwrap();
        (self.child.wait().unwrap().code(), log)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn with_client<T>(
    data: &Path,
    action: impl AsyncFnOnce(v1::admin_client::AdminClient<tonic::transport::Channel>) -> T,
) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        action(
            esker_api::client::connect(&data.join("admin.sock"))
                .await
                .unwrap(),
        )
        .await
    })
}

fn failure(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    text.lines().last().unwrap().to_string()
}

#[test]
fn a_volume_outlives_a_clean_stop_and_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let daemon = Daemon::start(&data, &[SMALL]);
    let line = daemon.ready_line.clone();
    assert!(
        line.starts_with("eskerd ready: node ") && line.ends_with("nbd.sock\n"),
        "{line}"
    );
    assert!(
        line.contains("1 store, 0 volumes, nbd+unix:///?socket="),
        "{line}"
    );
    let made = with_client(&data, async |mut client| {
        let (name, size_bytes) = ("v".into(), 64 << 20);
        let request = v1::CreateVolumeRequest {
            name,
            size_bytes,
            ..Default::default()
        };
        client
            .create_volume(request)
            .await
            .unwrap()
            .into_inner()
            .volume
            .unwrap()
    });
    let (code, log) = daemon.end(Signal::TERM);
    assert_eq!(code, Some(0), "{log}");
    assert!(!data.join("admin.sock").exists() && !data.join("nbd.sock").exists());

    // A kill leaves the sockets; the next start replaces them.
    let daemon = Daemon::start(&data, &[SMALL]);
    assert!(
        daemon.ready_line.contains("1 volume,"),
        "{}",
        daemon.ready_line
    );
    assert_eq!(daemon.end(Signal::KILL).0, None);
    assert!(data.join("admin.sock").exists());
    let daemon = Daemon::start(&data, &["--store-size=2GiB"]);
    let shown = with_client(&data, async |mut client| {
        let request = v1::ShowVolumeRequest { name: "v".into() };
        client
            .show_volume(request)
            .await
            .unwrap()
            .into_inner()
            .volume
            .unwrap()
    });
    assert_eq!(shown.uuid, made.uuid);
    let (code, log) = daemon.end(Signal::INT);
    assert_eq!(code, Some(0), "{log}");
    assert!(
        log.contains("WARN") && log.contains("has 1 GiB and keeps it"),
        "{log}"
    );
}

/// The kernel frees an io_uring's sockets and its store's lock some milliseconds after a killed
/// process has been reaped. A supervisor that restarts at once was told that the socket is "in use
/// by another process", and the node stayed down.
#[test]
fn a_killed_daemon_can_be_followed_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    for _ in 0..8 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_eskerd"));
        command
            .arg("--data")
            .arg(folder.path())
            .args(["--metrics", "none", "--nbd", &free, SMALL]);
        Daemon::spawn(command).end(Signal::KILL);
    }
}

#[test]
fn a_foreign_file_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("precious");
    fs::write(&store, vec![7; 1 << 20]).unwrap();
    let data = folder.path().join("data");
    let more = ["--store", store.to_str().unwrap(), SMALL];
    let line = failure(&command(&data, &more).output().unwrap());
    assert!(
        line.starts_with("eskerd: ") && line.contains("precious: "),
        "{line}"
    );
    assert_eq!(fs::read(&store).unwrap(), vec![7; 1 << 20]);
    assert!(!data.join("admin.sock").exists());
}

#[test]
fn a_store_of_another_daemon_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = ["a", "b"].map(|name| folder.path().join(name));
    let store: PathBuf = folder.path().join("store");
    let more = ["--store", store.to_str().unwrap(), SMALL];
    let daemon = Daemon::start(&data[0], &more);
    let line = failure(&command(&data[1], &more).output().unwrap());
    assert!(
        line.contains("store is in use by another process"),
        "{line}"
    );
    assert_eq!(daemon.end(Signal::TERM).0, Some(0));
}
