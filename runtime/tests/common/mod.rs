//! Toy machines and a harness around one loop.
#![allow(dead_code, clippy::unwrap_used)] // each test file uses a part; tests may unwrap

use bytes::Bytes;
use esker_base::{DiskError, DiskOp, IoId, Moment, Place, WallClock};
use esker_node::{Effect, Event, FrameKind, Machine, PeerFrame};
use esker_runtime::{Inbound, Listener, LoopConfig, LoopHandle, Outbound, StoreFile};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub const PATIENCE: Duration = Duration::from_secs(20);
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A path on the filesystem of the build, which is a real one; /tmp may be in memory.
pub fn fresh_path(name: &str) -> PathBuf {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("{name}-{}-{number}", std::process::id());
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_file(&path);
    path
}

/// Unix socket paths are limited to 107 bytes, which a target directory may exceed.
pub fn fresh_socket() -> PathBuf {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("esker-rt-{}-{number}.sock", std::process::id()))
}

/// A machine made of a closure.
pub struct Toy<F>(pub F);

impl<F: FnMut(Moment, Event, &mut Vec<Effect>)> Machine for Toy<F> {
    fn step(&mut self, now: Moment, _: WallClock, event: Event, effects: &mut Vec<Effect>) {
        (self.0)(now, event, effects);
    }
}

/// A running loop; its store is removed at the end.
pub struct Running {
    pub handle: LoopHandle,
    pub outbound: Receiver<Outbound>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
}

impl Running {
    pub fn start<F>(config: LoopConfig, listeners: Vec<Listener>, step: F) -> Self
    where
        F: FnMut(Moment, Event, &mut Vec<Effect>) + Send + 'static,
    {
        let path = fresh_path("store");
        let store = StoreFile::create(&path, 64 << 20).unwrap();
        let (sender, outbound) = channel();
        let (handle, thread) = esker_runtime::spawn(
            config,
            store,
            listeners,
            move |_, _, _| Toy(step),
            Box::new(move |message| drop(sender.send(message))),
        )
        .unwrap();
        Self {
            handle,
            outbound,
            thread: Some(thread),
            path,
        }
    }

    /// Stops the loop and returns its last message.
    pub fn stop(mut self) -> Outbound {
        self.handle.send(Inbound::Stop);
        self.join()
    }

    /// Waits for the end of the loop and returns its last message.
    pub fn join(&mut self) -> Outbound {
        let deadline = Instant::now() + PATIENCE;
        let mut last = None;
        while let Ok(message) = self
            .outbound
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            last = Some(message);
        }
        assert!(Instant::now() < deadline, "the loop did not end");
        self.thread.take().unwrap().join().unwrap();
        last.unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.handle.send(Inbound::Stop);
        if let Some(thread) = self.thread.take() {
            if !std::thread::panicking() {
                let _ = thread.join();
            }
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Stops when asked.
pub fn obey(event: &Event, effects: &mut Vec<Effect>) {
    if matches!(event, Event::Stop) {
        effects.push(Effect::Stopped);
    }
}

/// Sends back what it receives.
pub fn echo(event: Event, effects: &mut Vec<Effect>) {
    obey(&event, effects);
    if let Event::Received { conn, data } = event {
        effects.push(Effect::Send {
            conn,
            bufs: vec![data],
        });
    }
}

/// An event that only serves to make a machine look around.
pub fn nudge(handle: &LoopHandle) {
    let frame = PeerFrame {
        kind: FrameKind::Group,
        header: Bytes::new(),
        payloads: vec![],
    };
    handle.send(Inbound::Event(Event::Peer {
        from: Place::default(),
        frame,
    }));
}

type Outcome = (IoId, Result<Bytes, DiskError>);

/// A loop whose machine does what the test tells it.
pub struct Commanded {
    pub running: Running,
    pub effects: Sender<Effect>,
    pub outcomes: Receiver<Outcome>,
    next_io: u64,
}

impl Commanded {
    pub fn start(config: LoopConfig) -> Self {
        let (effects, commands) = channel();
        let (report, outcomes) = channel();
        let step = move |_, event, effects: &mut Vec<Effect>| {
            obey(&event, effects);
            match event {
                Event::Peer { .. } => effects.extend(commands.try_iter()),
                Event::Disk { io, result } => drop(report.send((io, result))),
                _ => {}
            }
        };
        let running = Running::start(config, vec![], step);
        Self {
            running,
            effects,
            outcomes,
            next_io: 0,
        }
    }

    pub fn submit(&mut self, op: DiskOp) -> IoId {
        self.next_io += 1;
        let io = IoId(self.next_io);
        self.effects.send(Effect::Disk { io, op }).unwrap();
        io
    }

    /// Runs one operation to its end.
    pub fn run(&mut self, op: DiskOp) -> Result<Bytes, DiskError> {
        let io = self.submit(op);
        nudge(&self.running.handle);
        let (ended, result) = self.outcomes.recv_timeout(PATIENCE).unwrap();
        assert_eq!(ended, io);
        result
    }
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(5));
    }
}
