//! The loop of one store: one thread, one ring, one machine.

use crate::accept::Acceptor;
use crate::disk::Disk;
use crate::error::RuntimeError;
use crate::handle::{Inbound, LoopHandle, LoopStatus, Outbound, Shared};
use crate::listener::Listener;
use crate::net::{Events, Net};
use crate::pace::{Outlook, Pacer, Wait};
use crate::peers::{DirectorySlot, Peers};
use crate::record::Recorder;
use crate::ring::{Completion, Op, OpKey, Owner, Ring};
use crate::store_file::StoreFile;
use crate::sync_way::SyncWay;
use crate::timer::{self, Timer};
use crate::tls::TlsSlot;
use esker_base::num::to_usize;
use esker_base::{limits, AlignedBuf, DiskOp, IoId, Moment, WallClock};
use esker_node::{Effect, Event, Machine, TlsPolicy};
use rustix::event::EventfdFlags;
use std::os::fd::AsRawFd;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Default of [`LoopConfig::ring_entries`].
pub const RING_ENTRIES: u32 = 256;
/// Default of [`LoopConfig::receive_buffer_bytes`].
pub const RECEIVE_BUFFER_BYTES: usize = 64 * 1024;

/// How a loop is run.
#[derive(Clone, Debug)]
pub struct LoopConfig {
    /// The store's index in this node.
    pub store_index: usize,
    /// Name of the thread and in the log; the kernel shows its first 15 bytes.
    pub name: String,
    /// Submission entries of the ring, 8 to 4096.
    pub ring_entries: u32,
    /// Size of a receive, in bytes; at least 4096.
    pub receive_buffer_bytes: usize,
    /// Writes up to this size, in bytes, are copied into registered buffers; at most 256 KiB. Zero,
    /// the default, copies only what is not aligned for direct I/O.
    pub staged_bytes_max: usize,
    /// Connections of the node past which new ones are closed at once.
    pub connections_max: usize,
    /// What new TLS connections are served with.
    pub tls: TlsSlot,
    /// The other nodes; one slot for all loops of a node.
    pub directory: DirectorySlot,
    /// Where to record all disk operations and client bytes, for tests of power cuts.
    pub record: Option<PathBuf>,
}

impl LoopConfig {
    /// The defaults for the store at this index.
    #[must_use]
    pub fn new(store_index: usize) -> Self {
        Self {
            store_index,
            name: format!("store-{store_index}"),
            ring_entries: RING_ENTRIES,
            receive_buffer_bytes: RECEIVE_BUFFER_BYTES,
            staged_bytes_max: 0,
            connections_max: limits::NODE_CONNECTIONS_MAX,
            tls: TlsSlot::default(),
            directory: DirectorySlot::default(),
            record: None,
        }
    }
}

/// Where a loop's messages go. Runs on the loop's thread and must not block.
pub type OutboundFn = Box<dyn Fn(Outbound) + Send>;

/// Starts the loop of a store. `make` builds the machine on the loop's thread and yields its first
/// effects. The last message to `outbound` is `Stopped`, `OpenFailed` or `LoopFailed`; the thread
/// ends right after it.
///
/// # Errors
/// When io_uring is not available, or the thread or the trace file cannot be made. The store and
/// the listeners are closed then.
pub fn spawn<M, F>(
    config: LoopConfig,
    store: StoreFile,
    listeners: Vec<Listener>,
    make: F,
    outbound: OutboundFn,
) -> Result<(LoopHandle, JoinHandle<()>), RuntimeError>
where
    M: Machine + 'static,
    F: FnOnce(Moment, WallClock, &mut Vec<Effect>) -> M + Send + 'static,
{
    let name = config.name.clone();
    let failed = |operation: &'static str, source| RuntimeError::Start {
        name: name.clone(),
        operation,
        source,
    };
    // Blocking, so that the ring waits for it; nothing else reads it.
    let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)
        .map_err(|e| failed("create an eventfd", e.into()))?;
    let recorder = match &config.record {
        Some(path) => Recorder::create(path, store.size_bytes())?,
        None => Recorder::off(),
    };
    let shared = Arc::new(Shared::new(config.store_index, config.name.clone(), wake));
    let handle = LoopHandle::new(Arc::clone(&shared));
    let (started, wait_started) = sync_channel(1);
    let body = move || {
        // The ring belongs to the thread that makes it.
        let ring = match Ring::new(&config, &store) {
            Ok(ring) => ring,
            Err(error) => {
                let _ = started.send(Err(error)); // the caller waits for it
                return;
            }
        };
        let _ = started.send(Ok(()));
        drop(started);
        let last = {
            let driver_shared = Arc::clone(&shared);
            let run = || {
                Driver::new(
                    &config,
                    ring,
                    store,
                    listeners,
                    recorder,
                    driver_shared,
                    &outbound,
                )
                .run(make)
            };
            // A panic of the machine ends this loop in order: memory in flight is reaped, the
            // store unlocked, and the daemon told.
            catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Outbound::LoopFailed {
                message: format!("{}: {}", config.name, text_of(panic.as_ref())),
            })
        };
        shared.close();
        outbound(last);
    };
    let thread = std::thread::Builder::new()
        .name(handle.thread_name())
        .spawn(body)
        .map_err(|e| failed("create its thread", e))?;
    let error = match wait_started.recv() {
        Ok(Ok(())) => return Ok((handle, thread)),
        Ok(Err(error)) => error,
        Err(_) => failed("set up its ring", std::io::Error::other("the thread ended")),
    };
    let _ = thread.join(); // the store is unlocked when the error is seen
    Err(error)
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|t| (*t).to_string());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!(
        "internal error: {}",
        text.unwrap_or_else(|| "no message".into())
    )
}

/// What the thread holds. The ring comes first: when it is dropped it waits for the kernel to let
/// go of descriptors and memory, which are dropped after it.
struct Driver<'a> {
    ring: Ring,
    net: Net,
    peers: Peers,
    acceptor: Acceptor,
    disk: Disk,
    recorder: Recorder,
    timer: Timer,
    pacer: Pacer,
    sync_way: SyncWay,
    /// Syncs to be called in the loop, once what else is to be submitted is.
    syncs: Vec<IoId>,
    /// The alarm that is set, which rings no later than anything is due.
    alarm: Option<(Moment, OpKey)>,
    /// Events the machine has not been told yet.
    events: Events,
    inbox_is_ready: bool,
    stage: Stage,
    turns: u64,
    shared: Arc<Shared>,
    outbound: &'a OutboundFn,
    store: StoreFile,
}

enum Stage {
    /// The machine runs.
    Running,
    /// The machine has ended; connections are being closed. Then this is the last message.
    Ending(Box<Outbound>),
}

impl<'a> Driver<'a> {
    fn new(
        config: &LoopConfig,
        ring: Ring,
        store: StoreFile,
        listeners: Vec<Listener>,
        recorder: Recorder,
        shared: Arc<Shared>,
        outbound: &'a OutboundFn,
    ) -> Self {
        let name = config.name.clone();
        Self {
            ring,
            net: Net::new(
                Arc::clone(&shared),
                name.clone(),
                config.receive_buffer_bytes,
                config.tls.clone(),
            ),
            peers: Peers::new(
                config.directory.clone(),
                Arc::clone(&shared),
                name.clone(),
                config.receive_buffer_bytes,
            ),
            acceptor: Acceptor::new(listeners, config.connections_max, Arc::clone(&shared), name),
            disk: Disk::new(store.size_bytes(), config.staged_bytes_max),
            recorder,
            timer: Timer::default(),
            pacer: Pacer::default(),
            sync_way: SyncWay::default(),
            syncs: Vec::new(),
            alarm: None,
            events: Events::new(),
            inbox_is_ready: true,
            stage: Stage::Running,
            turns: 0,
            shared,
            outbound,
            store,
        }
    }

    fn run<M: Machine>(
        mut self,
        make: impl FnOnce(Moment, WallClock, &mut Vec<Effect>) -> M,
    ) -> Outbound {
        let mut effects = Vec::new();
        let mut now = timer::now();
        let mut machine = make(now, timer::wall_now(), &mut effects);
        self.arm_wake();
        for effect in effects.drain(..) {
            self.interpret(effect, now);
        }
        loop {
            let is_running = matches!(self.stage, Stage::Running);
            if is_running {
                self.acceptor.arm(&mut self.ring, now);
            }
            self.net.settle(&mut self.ring, now, &mut self.events);
            self.peers.settle(&mut self.ring, now, &mut self.events);
            if !is_running && self.net.is_empty() && self.peers.is_empty() {
                break;
            }
            let deadlines = [
                self.timer.due(),
                self.net.next_deadline(),
                self.peers.next_deadline(),
                self.acceptor.next_deadline(),
            ];
            let due = deadlines.into_iter().flatten().min();
            let begin = timer::now();
            let has_work = !self.events.is_empty() || !self.syncs.is_empty() || self.inbox_is_ready;
            let wait = match has_work || due.is_some_and(|due| due <= begin) {
                true => Wait::No,
                false => {
                    self.arm_alarm(due);
                    self.pacer.plan(begin, self.outlook(&machine))
                }
            };
            let found = match self.ring.wait(wait, None) {
                Ok(found) => found,
                Err(error) => {
                    let message = format!("io_uring_enter: {error}");
                    self.stage = Stage::Ending(Box::new(Outbound::LoopFailed { message }));
                    break;
                }
            };
            self.turns += 1;
            now = timer::now();
            self.pacer.waited(wait, found, now.since(begin));
            if !self.syncs.is_empty() {
                now = self.sync_here(now);
            }
            self.turn(&mut machine, now, &mut effects);
        }
        self.recorder.flush();
        match self.stage {
            Stage::Ending(last) => *last,
            Stage::Running => unreachable!("the loop ends only after its stage has changed"),
        }
    }

    fn outlook<M: Machine>(&self, machine: &M) -> Outlook {
        Outlook {
            begun: machine.requests_begun(),
            requests: machine.requests_in_flight(),
            disk_operations: to_usize(self.disk.counts().in_flight),
        }
    }

    /// Calls a sync for all that wait for one. Gives the time after it.
    fn sync_here(&mut self, begin: Moment) -> Moment {
        let result = rustix::fs::fdatasync(&self.store);
        let end = timer::now();
        self.sync_way.took(end.since(begin));
        for io in self.syncs.drain(..) {
            let errno = result.map_err(rustix::io::Errno::raw_os_error);
            self.events.push_back(self.disk.synced(io, errno));
        }
        end
    }

    /// Tells the machine everything that has happened, and lets it settle.
    fn turn<M: Machine>(&mut self, machine: &mut M, now: Moment, effects: &mut Vec<Effect>) {
        let wall = timer::wall_now();
        // What was there before this turn's completions comes first.
        self.tell(machine, now, wall, effects);
        while let Some(completion) = self.ring.next() {
            self.complete(completion, now);
            self.tell(machine, now, wall, effects);
        }
        if std::mem::take(&mut self.inbox_is_ready) {
            self.take_inbox(now);
            self.tell(machine, now, wall, effects);
        }
        self.net.expire(now, &mut self.events);
        self.peers.expire(now, &mut self.events);
        if self.timer.take_if_due(now) {
            self.events.push_back(Event::Timer);
        }
        self.tell(machine, now, wall, effects);
        if matches!(self.stage, Stage::Running) {
            // Of all that was told just now it can be said that it happened before this moment.
            machine.settle(timer::now(), wall, effects);
        }
        for effect in effects.drain(..) {
            self.interpret(effect, now);
        }
    }

    /// Gives the machine what is queued, and takes its effects. Disk operations are submitted and
    /// output is sent at the end of the turn, all at once. What the effects themselves bring about
    /// waits for the next call, so that no machine can keep the loop from the kernel.
    fn tell<M: Machine>(
        &mut self,
        machine: &mut M,
        now: Moment,
        wall: WallClock,
        effects: &mut Vec<Effect>,
    ) {
        for _ in 0..self.events.len() {
            let Some(event) = self.events.pop_front() else {
                break;
            };
            self.recorder.event(&event);
            if matches!(self.stage, Stage::Running) {
                machine.step(now, wall, event, effects);
            }
            for effect in effects.drain(..) {
                self.interpret(effect, now);
            }
        }
    }

    fn complete(&mut self, completion: Completion, now: Moment) {
        match completion.owner {
            Owner::Disk { io, tries } => {
                let event = self.disk.complete(&mut self.ring, io, tries, completion);
                self.events.extend(event);
            }
            Owner::Receive(conn) => self.net.received(conn, completion, now, &mut self.events),
            Owner::Send(conn) => self.net.sent(conn, completion.result, &mut self.events),
            Owner::LinkReceive(link) => {
                self.peers.received(link, completion, now, &mut self.events);
            }
            Owner::LinkSend(link) => {
                self.peers
                    .sent(link, completion.result, now, &mut self.events);
            }
            Owner::Accept(index) => {
                let takers = (&mut self.net, &mut self.peers);
                self.acceptor
                    .complete(index, completion, takers, now, &mut self.events);
            }
            Owner::Wake => {
                self.inbox_is_ready = true;
                self.arm_wake();
            }
            Owner::Alarm(at) => {
                if self.alarm.is_some_and(|(armed, _)| armed == at) {
                    self.alarm = None;
                }
            }
            Owner::Cancel => {}
        }
    }

    /// Sees to it that the loop wakes up at `due` or before. Programming a timer is dear (on virtual
    /// machines it leaves the guest), and a deadline usually moves on long before it comes; so an
    /// alarm is left as it is unless it would ring too late.
    fn arm_alarm(&mut self, due: Option<Moment>) {
        let Some(due) = due else {
            return;
        };
        if let Some((armed, key)) = self.alarm {
            if armed <= due {
                return;
            }
            self.ring.cancel(key);
        }
        let key = self.ring.submit(Op::alarm(due), Owner::Alarm(due));
        self.alarm = Some((due, key));
    }

    fn take_inbox(&mut self, now: Moment) {
        let is_running = matches!(self.stage, Stage::Running);
        for inbound in self.shared.take_all() {
            match inbound {
                Inbound::Event(event) => self.events.push_back(event),
                Inbound::Stop => self.events.push_back(Event::Stop),
                Inbound::PeerLink {
                    node,
                    attempt,
                    result,
                } => {
                    let which = (node, attempt);
                    self.peers.connected(which, result, now, &mut self.events);
                }
                Inbound::PeerIsThere(node) => self.peers.is_there(node, now, &mut self.events),
                Inbound::Inspect(reply) => {
                    let _ = reply.try_send(self.status()); // nobody may wait any more
                }
                // Dropping the socket of a loop that ends closes it.
                Inbound::NewConnection(..) | Inbound::Adopt { .. } if !is_running => {}
                Inbound::NewConnection(fd, transport) => {
                    let tls = TlsPolicy::Off; // it did not come from a listener
                    self.net.connect(fd, transport, tls, &mut self.events);
                }
                Inbound::Adopt {
                    fd,
                    transport,
                    session,
                    tls,
                    unread,
                    unsent,
                } => {
                    let way = (tls, unread, unsent);
                    self.net
                        .adopt(fd, transport, session, way, &mut self.events);
                }
            }
        }
    }

    fn interpret(&mut self, effect: Effect, now: Moment) {
        if !matches!(self.stage, Stage::Running) {
            return; // the machine promised no further effect
        }
        self.recorder.effect(&effect);
        match effect {
            Effect::Disk {
                io,
                op: DiskOp::Sync,
            } if self.sync_way.is_here(self.pacer.has_few()) => {
                self.disk.sync_begins();
                self.syncs.push(io);
            }
            Effect::Disk { io, op } => {
                let event = self.disk.start(&mut self.ring, io, op);
                self.events.extend(event);
            }
            Effect::Send { conn, bufs } => {
                self.pacer.replied(now);
                self.net.send(conn, bufs, &mut self.events);
            }
            Effect::PauseReceive { conn } => self.net.pause(conn),
            Effect::ResumeReceive { conn } => self.net.resume(conn),
            Effect::Close { conn, reason } => {
                self.net.close(conn, reason, now, &mut self.events);
            }
            Effect::StartTls { conn } => self.net.start_tls(conn, now, &mut self.events),
            Effect::HandOver {
                conn,
                store,
                transport,
                session,
            } => {
                let context = (&mut self.ring, &mut self.events);
                self.net.hand_over(conn, store, transport, session, context);
            }
            Effect::SetTimer { at } => self.timer.set(at),
            Effect::AdminReply { token, result } => {
                (self.outbound)(Outbound::AdminReply { token, result });
            }
            Effect::Keys(ask) => (self.outbound)(Outbound::Keys(ask)),
            Effect::Peer { to, frame } => self.peers.send(to, frame, now, &mut self.events),
            Effect::ExportsChanged { exports } => {
                let store = self.shared.store_index;
                (self.outbound)(Outbound::ExportsChanged { store, exports });
            }
            Effect::Ready(report) => (self.outbound)(Outbound::Ready(report)),
            Effect::Fenced { message } => (self.outbound)(Outbound::Fenced { message }),
            Effect::OpenFailed { message } => self.end(Outbound::OpenFailed { message }, now),
            Effect::Stopped => self.end(Outbound::Stopped, now),
        }
    }

    fn end(&mut self, last: Outbound, now: Moment) {
        self.stage = Stage::Ending(Box::new(last));
        self.timer = Timer::default();
        self.acceptor.stop(&mut self.ring);
        self.net.close_all("the node stops", now);
        self.peers.close_all();
    }

    fn arm_wake(&mut self) {
        let fd = self.shared.wake_fd().as_raw_fd();
        self.ring.submit(
            Op::Wake {
                fd,
                buf: AlignedBuf::zeroed(8),
            },
            Owner::Wake,
        );
    }

    fn status(&self) -> LoopStatus {
        LoopStatus {
            connections: self.net.status(),
            disk: self.disk.counts(),
            turns: self.turns,
            operations_in_flight: self.ring.in_flight(),
        }
    }
}
