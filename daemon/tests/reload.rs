//! SIGHUP on the `eskerd` binary: what is changed, what waits for a restart, what is refused, and
//! what systemd is told.

#![allow(clippy::unwrap_used)] // helpers of tests may panic, like tests

use rustix::process::{kill_process, Pid, Signal};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{channel, Receiver};
use std::time::Duration;

/// Longest a line may take to come.
const LINE_WAIT_MAX: Duration = Duration::from_secs(30);

/// A running daemon; killed when the test fails.
struct Daemon {
    child: Child,
    log: Receiver<String>,
}

impl Daemon {
    fn start(config: &str, socket: &str, more: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_eskerd"))
            .args(["--config", config])
            .args(more)
            .env_remove("RUST_LOG")
            .env("NOTIFY_SOCKET", socket)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, log) = channel();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        std::thread::spawn(move || {
            for line in lines {
                let _ = sender.send(line.unwrap());
            }
        });
        let mut ready = [0; 13];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut ready)
            .unwrap();
        assert_eq!(&ready, b"eskerd ready:");
        Self { child, log }
    }

    /// The next line of the log with these words; lines before it are skipped.
    #[track_caller]
    fn line(&self, words: &str) -> String {
        loop {
            let line = self.log.recv_timeout(LINE_WAIT_MAX);
            let line = line.unwrap_or_else(|_| panic!("no line with {words:?}"));
            if line.contains(words) {
                return line;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Node {
    folder: tempfile::TempDir,
    config: PathBuf,
}

impl Node {
    fn new(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("esker.toml");
        let node = Self { folder, config };
        node.write(more);
        node
    }

    fn write(&self, more: &str) {
        let fixed = "data = 'd'\nnbd = 'none'\nmetrics = 'none'\nstore_size = '1GiB'\n";
        fs::write(&self.config, format!("{fixed}{more}")).unwrap();
    }
}

/// The next message to systemd.
fn told(socket: &UnixDatagram) -> String {
    socket.set_read_timeout(Some(LINE_WAIT_MAX)).unwrap();
    let mut bytes = [0; 256];
    let count = socket.recv(&mut bytes).unwrap();
    String::from_utf8(bytes[..count].to_vec()).unwrap()
}

#[test]
fn sighup_changes_what_it_can_and_names_the_rest() {
    let node = Node::new("");
    let path = node.folder.path().join("notify");
    let systemd = UnixDatagram::bind(&path).unwrap();
    let config = node.config.to_str().unwrap();
    let mut daemon = Daemon::start(config, path.to_str().unwrap(), &["--slow-request", "3s"]);
    assert!(told(&systemd).starts_with("READY=1"));

    // The command line goes before the file.
    node.write(
        "log_format = 'json'\nlog = 'debug'\nmetrics_volumes_max = 7\nslow_request = '5s'\n\
         cache_size = '32MiB'\n",
    );
    daemon.signal(Signal::HUP);
    let line = daemon.line("the configuration is reloaded");
    assert!(line.starts_with('{') && line.ends_with('}'), "{line}");
    for part in [
        "\"level\":\"INFO\"",
        "\"changed\":\"log, log_format, metrics_volumes_max\"",
        "\"needs_restart\":\"cache_size\"",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
    let reloading = told(&systemd);
    assert!(
        reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="),
        "{reloading}"
    );
    assert!(told(&systemd).starts_with("READY=1"));

    // A file that is wrong changes nothing, and is told in one line that names the place.
    node.write("log_format = 'text'\nslow_request = 'soon'\n");
    daemon.signal(Signal::HUP);
    let line = daemon.line("not reloaded");
    for part in [
        "{",
        "ERROR",
        "esker.toml:6: slow_request: ",
        "500ms",
        "old settings stay",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
    assert!(told(&systemd).starts_with("RELOADING=1"));
    assert!(told(&systemd).starts_with("READY=1"));

    node.write("");
    daemon.signal(Signal::HUP);
    let line = daemon.line("the configuration is reloaded");
    let plain = "changed=\"log, log_format, metrics_volumes_max\" needs_restart=\"none\"";
    assert!(line.contains(plain), "{line}");
    assert!(told(&systemd).starts_with("RELOADING=1"));
    assert!(told(&systemd).starts_with("READY=1"));

    daemon.signal(Signal::TERM);
    assert!(told(&systemd).starts_with("STOPPING=1"));
    daemon.line("everything is durable");
    assert_eq!(daemon.child.wait().unwrap().code(), Some(0));
}

/// Nobody reads the log: the daemon goes on, and is ended by SIGTERM as ever. Its lines used to be
/// written by the thread that had something to say, which then waited for the reader.
#[test]
fn a_log_that_nobody_reads_holds_nothing_up() {
    let node = Node::new("log = 'trace'\n");
    let mut child = Command::new(env!("CARGO_BIN_EXE_eskerd"))
        .args(["--config", node.config.to_str().unwrap()])
        .env_remove("RUST_LOG")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped()) // never read
        .spawn()
        .unwrap();
    let mut ready = [0; 13];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut ready)
        .unwrap();
    assert_eq!(&ready, b"eskerd ready:");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let socket = node.folder.path().join("d/admin.sock");
    // At this level each request logs more than a pipe holds within a few hundred of them.
    runtime.block_on(async {
        let mut client = esker_api::client::connect(&socket).await.unwrap();
        for _ in 0..2000 {
            client
                .status(esker_api::v1::StatusRequest::default())
                .await
                .unwrap();
        }
    });
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let mut log = child.stderr.take().unwrap();
    let mut first = [0; 1];
    // It has not ended: what it says last still waits for a reader, for a bounded time.
    log.read_exact(&mut first).unwrap();
    let mut rest = Vec::new();
    log.read_to_end(&mut rest).unwrap();
    assert!(
        rest.len() > 64 << 10,
        "more than a pipe holds: {}",
        rest.len()
    );
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
