//! A daemon's life on real loops, with a machine that only answers: ready line aside, everything
//! from the lock to the clean stop on SIGTERM. One test, because signals reach the whole process.

#![allow(clippy::unwrap_used)] // helpers of tests may panic, like tests

#[path = "support/fake.rs"]
mod fake;

use clap::Parser;
use esker_api::v1;
use esker_base::{Moment, WallClock};
use esker_daemon::args::Args;
use esker_daemon::config::Config;
use esker_daemon::error::DaemonError;
use esker_daemon::loops::StoreSetup;
use esker_daemon::run;
use esker_node::{Effect, Event, ExportInfo, Machine, ReadyReport};
use fake::{FakeNode, FakeStore};
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Answers administrative requests and ends when asked.
struct Answering {
    store: Arc<FakeStore>,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Machine for Answering {
    fn step(&mut self, _: Moment, _: WallClock, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Admin { token, request } => {
                let result = self.store.answer(request);
                effects.push(Effect::AdminReply { token, result });
            }
            Event::Exports { store, exports } => {
                let seen = format!(
                    "{} hears {} exports of {store}",
                    self.store.index,
                    exports.len()
                );
                self.seen.lock().unwrap().push(seen);
            }
            Event::Stop => effects.push(Effect::Stopped),
            _ => {}
        }
    }
}

type Daemon = JoinHandle<Result<(), DaemonError>>;

/// Starts a daemon in this process.
fn start(data: &Path, metrics: &str, fails: bool, seen: &Arc<Mutex<Vec<String>>>) -> Daemon {
    let data = data.to_str().unwrap().to_string();
    let words = ["eskerd", "--nbd", "127.0.0.1:0", "--metrics", metrics];
    let stores = ["a", "b"].map(|name| format!("--store={data}/{name}"));
    let words = words.map(String::from).into_iter().chain(stores);
    let words = words.chain(["--store-size=16MiB".into(), format!("--data={data}")]);
    let args = Args::try_parse_from(words).unwrap();
    let seen = Arc::clone(seen);
    let make = move |setup: StoreSetup| {
        assert_eq!(setup.size_bytes, 16 << 20);
        let store = Arc::clone(&FakeNode::new(&[1, 2]).stores[setup.index]);
        let seen = Arc::clone(&seen);
        move |_: Moment, _: WallClock, effects: &mut Vec<Effect>| {
            if fails && setup.index == 1 {
                effects.push(Effect::OpenFailed {
                    message: "foreign".into(),
                });
            } else {
                let size_bytes = 4096;
                let export = ExportInfo {
                    name: "x".into(),
                    size_bytes,
                    store: setup.index,
                    snapshots: Vec::new(),
                };
                effects.push(Effect::ExportsChanged {
                    exports: vec![export],
                });
                effects.push(Effect::Ready(ReadyReport::default()));
            }
            Answering { store, seen }
        }
    };
    let config = Config::load(&args).unwrap();
    std::thread::spawn(move || run::run(&args, config, None, make))
}

fn wait_for(path: &Path) {
    for _ in 0..500 {
        if path.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{} does not appear", path.display());
}

fn create(socket: &Path, name: &str) -> v1::Volume {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut client = esker_api::client::connect(socket).await.unwrap();
        let (name, size_bytes) = (name.into(), 4096);
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
    })
}

#[test]
fn starts_serves_and_stops() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let admin = data.join("admin.sock");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let metrics = free.to_string();

    let daemon = start(&data, &metrics, false, &seen);
    wait_for(&admin);
    let identity = std::fs::read_to_string(data.join("node.toml")).unwrap();
    let volume = create(&admin, "x");
    assert_eq!(volume.store, 1, "the fake with more space");
    assert!(volume.tcp_uri.starts_with("nbd://127.0.0.1:") && !volume.tcp_uri.contains(":0/"));
    assert!(data.join("nbd.sock").exists());

    let mut scrape = TcpStream::connect(&metrics).unwrap();
    scrape.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    scrape.read_to_string(&mut text).unwrap();
    assert!(
        text.starts_with("HTTP/1.0 200") && text.contains("esker_up{store=\"0\"} 1"),
        "{text}"
    );

    // A second daemon is refused and disturbs nothing.
    let second = Command::new(env!("CARGO_BIN_EXE_eskerd"))
        .arg("--data")
        .arg(&data)
        .output();
    let second = second.unwrap();
    assert_eq!(second.status.code(), Some(1));
    let reason = String::from_utf8(second.stderr).unwrap();
    assert!(
        reason.contains(&format!("pid {}", std::process::id())),
        "{reason}"
    );
    create(&admin, "y");

    let this = rustix::process::getpid();
    rustix::process::kill_process(this, rustix::process::Signal::TERM).unwrap();
    daemon.join().unwrap().unwrap();
    assert!(
        !admin.exists() && !data.join("nbd.sock").exists(),
        "the sockets are gone"
    );
    let mut heard = seen.lock().unwrap().clone();
    heard.sort();
    assert_eq!(heard, ["0 hears 1 exports of 1", "1 hears 1 exports of 0"]);

    // What the fake machine has not written: a store that has been ready and is blank is refused.
    let refused = start(&data, &metrics, false, &seen).join().unwrap();
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("data/a was in use"), "{refused}");
    for name in ["a", "b"] {
        let store = OpenOptions::new().write(true).open(data.join(name));
        store.unwrap().write_all(b"fake").unwrap();
    }

    // A store that cannot be opened ends the whole, with its line, and the others in order.
    let failed = start(&data, &metrics, true, &seen)
        .join()
        .unwrap()
        .unwrap_err()
        .to_string();
    assert!(
        failed.contains("data/b: ") && failed.contains("foreign"),
        "{failed}"
    );
    assert!(!admin.exists() && !data.join("admin.sock.new").exists());

    // The next start is the same node on the same stores.
    let daemon = start(&data, &metrics, false, &seen);
    wait_for(&admin);
    assert_eq!(
        std::fs::read_to_string(data.join("node.toml")).unwrap(),
        identity
    );
    rustix::process::kill_process(this, rustix::process::Signal::INT).unwrap();
    daemon.join().unwrap().unwrap();
}
