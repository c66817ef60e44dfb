//! The world: virtual time, one queue of events, nodes over simulated disks, clients, and faults.

use super::catalog::{Slot, Volume};
use super::client::{Client, Conn};
use super::host::{Host, State};
use super::keys::Provider;
use super::oracle::Oracle;
use super::plan::{Options, Plan};
use super::stamps::StampWatch;
use super::stats::{Outcome, Stats};
use crate::check::trace::Trace;
use crate::sim::SimRng;
use bytes::Bytes;
use esker_base::{DiskOp, IoId, Moment, WallClock};
use esker_engine::format::record::RecordHeader;
use esker_node::{Effect, Event, KeyAsk, Machine, Node, PeerFrame};
use std::collections::{BTreeMap, BTreeSet};

/// Events without time passing, after which a run counts as stuck.
const INSTANT_STEPS_MAX: u64 = 50_000;
/// The longest that an operation of a slow disk takes.
const SLOW_DISK_NS_MAX: u64 = 2_000_000_000;
/// Time between two looks at what is overdue.
const WATCH_NS: u64 = 5_000_000;
/// How many of a thousand turns take more than one event, and how long such a turn lasts at most.
const LONG_TURNS: u64 = 400;
const TURN_NS_MAX: u64 = 80_000;

/// A record of a store's log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    pub offset: u64,
    pub bytes: u64,
    /// Those of its header pages.
    pub header_bytes: u64,
    pub seq: u64,
    /// Records through this one are durable, it says.
    pub durable: u64,
}

/// Something that will happen.
#[derive(Debug)]
pub(crate) enum Ev {
    /// A disk operation ends.
    Disk {
        host: usize,
        incarnation: u64,
        io: IoId,
    },
    /// A node's timer.
    Timer {
        host: usize,
        incarnation: u64,
        number: u64,
    },
    /// A node's turn ends: it settles what its events led to.
    TurnEnds { host: usize, incarnation: u64 },
    /// Bytes reach a node.
    ToNode(u64),
    /// Bytes reach a client.
    ToClient(u64),
    /// A connection that the node closed ends.
    Closed(u64),
    /// All nodes are asked to stop.
    StopAll,
    /// A node learns that a client is gone.
    Gone(u64),
    /// A client looks for something to do.
    Think(usize),
    /// A frame reaches a node.
    Peer {
        from: usize,
        to: usize,
        incarnation: u64,
        frame: PeerFrame,
    },
    /// The provider of keys answers a node.
    Key {
        host: usize,
        incarnation: u64,
        ask: Box<KeyAsk>,
    },
    /// An operator looks whether a node has its replicas.
    Replicas { host: usize, incarnation: u64 },
    /// A process starts.
    Start(usize),
    /// Something bad happens.
    Fault,
    /// A process ends.
    Crash(usize, Crash),
    /// An operator restarts a node that is fenced.
    Restart(usize),
    /// Disk operations of a node fail no more.
    DiskHeals(usize),
    /// A partition ends.
    NetHeals,
    /// A look at what is overdue.
    Watch,
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crash {
    Power,
    Kill,
}

/// Why an operator's request was made.
#[derive(Clone, Debug)]
pub(crate) enum Purpose {
    Change(usize),
    Replica(usize),
    Reconcile,
    AcceptLoss(usize),
    Info,
    /// A volume is given another data key.
    Rekey,
    /// A part of what is under older ones is sealed anew.
    Reseal,
    /// A resize of a volume that is deleted next.
    Doomed(usize),
    /// It must be refused.
    Refused,
    /// A volume of three is to have this many bytes.
    Grow(usize, u64),
    Compare,
    /// About snapshots.
    Snapshot(super::snapshots::Asked),
    /// The store is to settle, after a restart.
    Rest,
    /// The clones of a restarted store, once its logs are applied.
    Clones,
    /// It is to give back what was deleted, at the end; how often that was asked.
    Settle(u32),
    /// A volume of three goes back to what this may hold.
    GoBack(usize, super::oracle::Frozen),
    /// A volume of three is cloned.
    CloneOfThree(super::clones::CloneAsk),
    /// A node is to keep the key of a clone.
    KeyOfClone(usize, usize),
    /// A volume of three gets another data key.
    Renewal(super::rekeys::RenewalAsk),
    /// A volume changes hands.
    Holder(usize),
    /// A part of a cut through several volumes.
    Cut(super::cuts::CutAsk),
    /// A clone that lacks a copy is to have one.
    MendClone,
    /// About a copy of a volume.
    Seat(usize, super::seats::SeatAsk),
    /// A part of a scrub.
    Scrub(super::scrubs::Scrub),
}

/// A world.
pub struct World {
    pub(crate) plan: Plan,
    pub(crate) now: u64,
    pub(crate) step: u64,
    instant_steps: u64,
    pub(crate) queue: BTreeMap<(u64, u64), Ev>,
    order: u64,
    pub(crate) rng: SimRng,
    /// Decides how many events a turn of a node takes.
    turns: SimRng,
    pub(crate) hosts: Vec<Host>,
    pub(crate) clients: Vec<Client>,
    pub(crate) conns: BTreeMap<u64, Conn>,
    pub(crate) next_conn: u64,
    pub(crate) slots: Vec<Slot>,
    /// The copies of volumes, where they move.
    pub(crate) seats: Vec<super::seats::Seats>,
    /// Volumes of three that begin as clones, by their places.
    pub(crate) late: BTreeMap<usize, super::clones::Late>,
    /// Keys that were made for clones of volumes of three.
    pub(crate) clone_keys: Vec<esker_crypto::WrappedKey>,
    /// A data key that a volume of three is to get.
    pub(crate) renewal: Option<super::rekeys::Renewal>,
    pub(crate) holders: super::holders::Holders,
    pub(crate) cuts: super::cuts::Cuts,
    pub(crate) next_write: u64,
    pub(crate) admin: BTreeMap<u64, (usize, Purpose)>,
    pub(crate) next_token: u64,
    /// Pairs of nodes that hear nothing from each other: (from, to).
    pub(crate) cut: BTreeSet<(usize, usize)>,
    /// Moments of volumes that clones may begin at.
    pub(crate) past: super::past::Past,
    pub(crate) stamps: StampWatch,
    pub(crate) provider: Provider,
    pub(crate) stats: Stats,
    pub(crate) trace: Trace,
    pub(crate) violation: Option<String>,
    pub(crate) stage: super::finish::Stage,
    pub(crate) stage_since: u64,
    /// Clients make no requests until then.
    pub(crate) hush_until: u64,
    /// A fault at the end of the hush.
    pub(crate) quiet_damage: bool,
    /// Sizes that an operator asked for, and the largest that was answered: volumes of three.
    pub(crate) growth: Vec<super::operator::Growth>,
    /// Where records were written last, per node.
    pub(crate) records: Vec<Vec<Written>>,
}

/// Runs a seed to its end.
#[must_use]
pub fn run(options: Options) -> Outcome {
    let mut world = World::new(Plan::new(options));
    world.begin();
    while world.violation.is_none() && !world.is_done() {
        world.pump();
    }
    world.outcome()
}

impl World {
    fn new(plan: Plan) -> Self {
        let mut rng = SimRng::new(plan.seed, 2);
        let hosts = (0..plan.nodes)
            .map(|i| Host::new(&plan, i, &mut rng))
            .collect();
        let slots = (0..plan.volumes).map(|_| Slot::default()).collect();
        let clients = (0..plan.volumes * plan.clients)
            .map(|i| Client::new(i % plan.volumes, &plan, &mut rng))
            .collect();
        Self {
            now: 1_000_000,
            step: 1,
            instant_steps: 0,
            queue: BTreeMap::new(),
            order: 0,
            rng,
            turns: SimRng::new(plan.seed, 3),
            hosts,
            clients,
            conns: BTreeMap::new(),
            next_conn: 1,
            slots,
            seats: Vec::new(),
            clone_keys: Vec::new(),
            renewal: None,
            holders: super::holders::Holders::new(plan.seed),
            cuts: super::cuts::Cuts::new(plan.seed),
            late: plan
                .late_slots()
                .map(|slot| (slot, super::clones::Late::default()))
                .collect(),
            next_write: 1,
            admin: BTreeMap::new(),
            next_token: 1,
            cut: BTreeSet::new(),
            past: super::past::Past::default(),
            stamps: StampWatch::default(),
            provider: Provider::new(plan.seed),
            stats: Stats::default(),
            trace: Trace::default(),
            violation: None,
            stage: super::finish::Stage::Storm,
            stage_since: 0,
            hush_until: 0,
            quiet_damage: false,
            records: vec![Vec::new(); plan.nodes],
            growth: Vec::new(),
            plan,
        }
    }

    fn begin(&mut self) {
        for host in 0..self.hosts.len() {
            self.start_host(host);
        }
        if self.plan.nodes > 1 {
            self.make_replica_keys();
            if self.moves_copies() {
                self.seat_first();
            }
            for slot in 0..self.slots.len() {
                let name = self.slots[slot].fresh_name(slot);
                let size_bytes = self.plan.blocks_first * 4096;
                let oracle = self.new_oracle();
                self.growth.push(super::operator::Growth::new(size_bytes));
                if self.late.contains_key(&slot) {
                    continue;
                }
                self.slots[slot].volume = Some(Volume {
                    name,
                    sizes: BTreeSet::from([size_bytes]),
                    oracle,
                    loss_asked: false,
                    born: 0,
                    kept: super::snapshots::Kept::default(),
                });
            }
        }
        for client in 0..self.clients.len() {
            self.think_soon(client);
        }
        self.at(WATCH_NS, Ev::Watch);
        let first = self.rng.below(self.plan.fault_ns * 2);
        // A group of three is first created in peace: placing replicas is not the node's work.
        let peace = if self.plan.nodes > 1 { 500_000_000 } else { 0 };
        self.at(peace + first, Ev::Fault);
    }

    pub(crate) fn new_oracle(&self) -> Oracle {
        let blocks = usize::try_from(self.plan.blocks_max).unwrap_or(usize::MAX);
        let grid = self.plan.grid.clone();
        Oracle::new(grid, blocks, self.plan.nodes > 1, self.plan.damages())
    }

    /// Queues an event `delay` from now.
    pub(crate) fn at(&mut self, delay: u64, ev: Ev) {
        self.at_time(self.now + delay, ev);
    }

    pub(crate) fn at_time(&mut self, at: u64, ev: Ev) {
        self.order += 1;
        self.queue.insert((at.max(self.now), self.order), ev);
    }

    /// A latency around `usual`, with a long tail.
    pub(crate) fn latency(&mut self, usual: u64) -> u64 {
        match self.rng.below(100) {
            0 => usual * 50 + self.rng.below(usual * 50),
            1..10 => usual * self.rng.range(2, 10),
            _ => usual / 2 + self.rng.below(usual + 1),
        }
    }

    /// The first thing found wrong stays.
    pub(crate) fn violate(&mut self, text: String) {
        if self.violation.is_none() {
            self.violation = Some(format!("at event {}, {} ns: {text}", self.step, self.now));
        }
    }

    pub(crate) fn log(&self, text: impl FnOnce() -> String) {
        if self.plan.options.verbose {
            println!("{:>9} {:>12} {}", self.step, self.now, text());
        }
    }

    fn pump(&mut self) {
        let Some(((at, _), ev)) = self.queue.pop_first() else {
            return self.violate("nothing will ever happen again".into());
        };
        self.step += 1;
        if at > self.now {
            (self.now, self.instant_steps) = (at, 0);
        } else {
            self.instant_steps += 1;
            if self.instant_steps > INSTANT_STEPS_MAX {
                return self.violate(format!("time stands still; last event {ev:?}"));
            }
        }
        self.trace.note(&[self.step, self.now]);
        let stalled_until = self.host_of(&ev).map_or(0, |h| self.hosts[h].stalled_until);
        if stalled_until > self.now {
            return self.at_time(stalled_until, ev);
        }
        match ev {
            Ev::Disk {
                host,
                incarnation,
                io,
            } => {
                if self.hosts[host].incarnation != incarnation {
                    return;
                }
                if let Some(result) = self.hosts[host].disk.complete(io) {
                    self.log(|| format!("node {host} disk op {io} ends: {}", result.is_ok()));
                    self.trace.note(&[io.0, u64::from(result.is_ok())]);
                    self.note_disk_failures(host);
                    self.step_node(host, Event::Disk { io, result });
                }
            }
            Ev::Timer {
                host,
                incarnation,
                number,
            } => {
                let h = &self.hosts[host];
                if h.incarnation == incarnation && h.timers == number {
                    self.step_node(host, Event::Timer);
                }
            }
            Ev::TurnEnds { host, incarnation } => {
                let h = &mut self.hosts[host];
                if h.incarnation == incarnation && std::mem::take(&mut h.in_turn) {
                    self.settle_node(host);
                }
            }
            Ev::ToNode(conn) => self.deliver_to_node(conn),
            Ev::ToClient(conn) => self.deliver_to_client(conn),
            Ev::Closed(conn) => self.connection_closed(conn),
            Ev::StopAll => self.stop_all(),
            Ev::Gone(conn) => self.connection_gone(conn),
            Ev::Think(client) => self.think(client),
            Ev::Peer {
                from,
                to,
                incarnation,
                frame,
            } => {
                let from = super::host::place_of(from);
                if self.hosts[to].incarnation == incarnation && self.hosts[to].node.is_some() {
                    self.step_node(to, Event::Peer { from, frame });
                }
            }
            Ev::Key {
                host,
                incarnation,
                ask,
            } => self.provider_answers(host, incarnation, ask),
            Ev::Replicas { host, incarnation } => {
                self.hosts[host].looked_at_soon = false;
                if self.hosts[host].incarnation == incarnation && self.may_be_told(host) {
                    use esker_node::admin::AdminRequest;
                    self.ask_operator(host, AdminRequest::VolumeList, Purpose::Reconcile);
                }
            }
            Ev::Start(host) => self.start_host(host),
            Ev::Fault => self.fault(),
            Ev::Crash(host, crash) if !self.is_calm() => self.crash(host, crash),
            Ev::Crash(..) => {}
            Ev::Restart(host) => self.restart(host),
            Ev::DiskHeals(host) => {
                if self.hosts[host].faulty_until <= self.now {
                    self.hosts[host].disk.faults = crate::sim::DiskFaults::default();
                }
            }
            Ev::NetHeals => self.cut.clear(),
            Ev::Watch => {
                self.watch();
                self.at(WATCH_NS, Ev::Watch);
            }
        }
    }

    /// The node whose process an event goes to.
    fn host_of(&self, ev: &Ev) -> Option<usize> {
        match ev {
            Ev::Disk { host, .. }
            | Ev::Timer { host, .. }
            | Ev::TurnEnds { host, .. }
            | Ev::Key { host, .. }
            | Ev::Replicas { host, .. } => Some(*host),
            Ev::Peer { to, .. } => Some(*to),
            Ev::ToNode(id) | Ev::ToClient(id) | Ev::Closed(id) | Ev::Gone(id) => {
                self.conns.get(id).map(|conn| conn.host)
            }
            _ => None,
        }
    }

    pub(crate) fn wall(&self) -> WallClock {
        WallClock(1_700_000_000_000_000 + self.now / 1000)
    }

    /// Begins a process.
    pub(crate) fn start_host(&mut self, host: usize) {
        if self.hosts[host].state != State::Down {
            return;
        }
        let config = self.hosts[host].config(&self.plan, host, &mut self.rng);
        let now = self.hosts[host].clock.shows(self.now);
        let wall = self.wall();
        let mut effects = Vec::new();
        let h = &mut self.hosts[host];
        h.incarnation += 1;
        h.state = State::Opening;
        (h.fenced, h.fuse, h.in_turn) = (false, None, false);
        h.asks_for_restart = false;
        (h.stalled_until, h.looked_at_soon) = (0, false);
        h.node = Some(Node::new(config, now, wall, &mut effects));
        self.log(|| format!("node {host} starts"));
        self.stats.did("starts");
        self.keys_at_start(host);
        self.interpret(host, effects);
    }

    /// Gives an event to a node and does what it asks for.
    pub(crate) fn step_node(&mut self, host: usize, event: Event) {
        let wall = self.wall();
        let h = &mut self.hosts[host];
        let now: Moment = h.clock.shows(self.now);
        let Some(node) = h.node.as_mut() else { return };
        let mut effects = Vec::new();
        node.step(now, wall, event, &mut effects);
        let incarnation = h.incarnation;
        self.watch_seals(host);
        self.interpret(host, effects);
        let h = &mut self.hosts[host];
        if h.incarnation != incarnation || h.in_turn {
            return;
        }
        if self.turns.chance(LONG_TURNS) {
            h.in_turn = true;
            let length = self.turns.below(TURN_NS_MAX);
            self.at(length, Ev::TurnEnds { host, incarnation });
        } else {
            self.settle_node(host);
        }
    }

    fn settle_node(&mut self, host: usize) {
        let wall = self.wall();
        let h = &mut self.hosts[host];
        let now: Moment = h.clock.shows(self.now);
        let Some(node) = h.node.as_mut() else { return };
        let mut effects = Vec::new();
        node.settle(now, wall, &mut effects);
        self.watch_seals(host);
        self.interpret(host, effects);
    }

    fn interpret(&mut self, host: usize, effects: Vec<Effect>) {
        let incarnation = self.hosts[host].incarnation;
        for effect in effects {
            if let Some((left, crash)) = self.hosts[host].fuse.take() {
                if left == 0 {
                    return self.crash(host, crash);
                }
                self.hosts[host].fuse = Some((left - 1, crash));
            }
            self.effect(host, effect);
            if self.hosts[host].incarnation != incarnation || self.hosts[host].node.is_none() {
                return;
            }
        }
    }

    fn effect(&mut self, host: usize, effect: Effect) {
        match effect {
            Effect::Disk { io, op } => self.disk_effect(host, io, op),
            Effect::Send { conn, bufs } => self.send_effect(conn.0, bufs),
            Effect::PauseReceive { conn } => {
                if let Some(conn) = self.conns.get_mut(&conn.0) {
                    conn.paused = true;
                    self.stats.did("receives paused");
                }
            }
            Effect::ResumeReceive { conn } => {
                if let Some(c) = self.conns.get_mut(&conn.0) {
                    c.paused = false;
                }
                self.deliver_soon(conn.0);
            }
            Effect::Close { conn, reason } => self.close_effect(conn.0, &reason),
            Effect::StartTls { .. } => self.violate("TLS begins where it is not offered".into()),
            Effect::HandOver { .. } => self.violate("a connection is handed over".into()),
            Effect::SetTimer { at } => {
                let late = if self.rng.chance(100) {
                    self.rng.below(1_000_000)
                } else {
                    0
                };
                let h = &mut self.hosts[host];
                h.timers += 1;
                let (number, incarnation) = (h.timers, h.incarnation);
                let when = h.clock.when(at) + late;
                self.at_time(
                    when,
                    Ev::Timer {
                        host,
                        incarnation,
                        number,
                    },
                );
            }
            Effect::AdminReply { token, result } => self.admin_reply(host, token, result),
            Effect::Peer { to, frame } => self.peer_effect(host, super::host::index_of(to), frame),
            Effect::ExportsChanged { .. } => {}
            Effect::Keys(ask) => self.key_effect(host, ask),
            Effect::Ready(report) => self.host_ready(host, &report),
            Effect::OpenFailed { message } => self.open_failed(host, &message),
            Effect::Fenced { message } => self.host_fenced(host, &message),
            Effect::Stopped => self.host_stopped(host),
        }
    }

    fn disk_effect(&mut self, host: usize, io: IoId, op: DiskOp) {
        self.trace.disk(io, &op);
        if let Err(text) = self.stamps.watch(&op, &self.provider.seals) {
            self.violate(text);
        }
        if let DiskOp::Write { offset, bufs } = &op {
            // What was there is not, once its segment is used again: whoever damages its header would damage something else.
            let end = offset + bufs.iter().map(|b| b.len() as u64).sum::<u64>();
            self.records[host].retain(|r| r.offset >= end || r.offset + r.bytes <= *offset);
            if let Ok((header, ..)) = RecordHeader::decode(&bufs[0]) {
                let records = &mut self.records[host];
                records.push(Written {
                    offset: *offset,
                    bytes: bufs.iter().map(|b| b.len() as u64).sum(),
                    header_bytes: bufs[0].len() as u64,
                    seq: header.seq.0,
                    durable: header.durable_seq.0,
                });
                if records.len() > 64 {
                    records.drain(..32);
                }
            }
        }
        self.log(|| super::words::disk_operation(host, io, &op));
        self.hosts[host].disk.submit(io, op);
        let (slow_until, factor) = self.hosts[host].slow_disk;
        let mut delay = self.latency(self.plan.disk_ns);
        if self.now < slow_until {
            delay = (delay * factor).min(SLOW_DISK_NS_MAX);
        }
        let incarnation = self.hosts[host].incarnation;
        self.at(
            delay,
            Ev::Disk {
                host,
                incarnation,
                io,
            },
        );
    }

    fn peer_effect(&mut self, from: usize, to: usize, frame: PeerFrame) {
        self.stats.did("peer frames");
        self.log(|| {
            let bytes: usize = frame.payloads.iter().map(Bytes::len).sum();
            format!(
                "frame {from} to {to}: {:?}, {bytes} bytes beside",
                frame.header
            )
        });
        if self.cut.contains(&(from, to)) {
            return self.stats.fault("net: frame into a partition");
        }
        if self.rng.chance(self.plan.net_loss) && !self.is_calm() {
            return self.stats.fault("net: frame lost");
        }
        let copies = if self.rng.chance(self.plan.net_duplicates) && !self.is_calm() {
            self.stats.fault("net: frame duplicated");
            2
        } else {
            1
        };
        for _ in 0..copies {
            let delay = self.latency(self.plan.net_ns);
            // A frame to a process that ended meanwhile can reach the next one.
            let incarnation = self.hosts[to].incarnation + u64::from(self.hosts[to].node.is_none());
            let frame = PeerFrame {
                kind: frame.kind,
                header: frame.header.clone(),
                payloads: received(&frame.payloads),
            };
            self.at(
                delay,
                Ev::Peer {
                    from,
                    to,
                    incarnation,
                    frame,
                },
            );
        }
    }

    fn outcome(mut self) -> Outcome {
        for host in &mut self.hosts {
            host.note_probes();
            self.stats.disk(&host.disk.counts);
            self.stats.probes.extend(&host.probes);
            self.stats.add_work("pages re-homed", host.rehomed);
        }
        let stamps = self.stamps.count() as u64;
        self.stats.work.insert("stamps", stamps);
        let seals = self.provider.seals.count;
        if seals > 0 {
            self.stats.work.insert("blocks sealed", seals);
        }
        Outcome {
            seed: self.plan.seed,
            nodes: self.plan.nodes,
            trace: self.trace.digest(),
            steps: self.step,
            virtual_ns: self.now,
            stats: self.stats,
            violation: self.violation,
        }
    }
}

/// Payloads as a peer's connection would give them: at page-aligned addresses, in memory of their
/// own.
fn received(payloads: &[Bytes]) -> Vec<Bytes> {
    payloads
        .iter()
        .map(|p| esker_base::AlignedBuf::copy_of(p).freeze())
        .collect()
}
