//! The node: one step takes one event in and gives effects out.

use crate::admin::{AdminError, AdminReply};
use crate::conns::Conn;
use crate::control::AdminPending;
use crate::event::{AdminToken, Effect, Event, ExportInfo};
use crate::sums::{DiffAsk, Settle};
use crate::volume::{Op, OpId, Volume};
use crate::{Machine, ReadyReport};
use esker_base::{
    ClusterId, ConnId, GroupId, Moment, NodeId, Place, ReplicaId, SessionId, WallClock,
};
use esker_engine::event as engine_event;
use esker_engine::{Engine, EngineConfig};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long a stop waits for requests on their way before sessions are cut.
const STOP_TIME_MAX: Duration = Duration::from_secs(10);
/// Ticks after which a read asks again whether this is still the leader.
const READ_CHECK_TICKS: u64 = 5;
/// Ticks after which a leader without its key asks another replica again to lead.
const LOCKED_TICKS: u64 = 10;

/// How a node works.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Which of the node's stores this is.
    pub store_index: usize,
    /// The node.
    pub node: NodeId,
    /// The cluster.
    pub cluster: ClusterId,
    /// The engine. `store_entropy`, `node` and `cluster` are filled in from here.
    pub engine: EngineConfig,
    /// Random bits: the only source of randomness. Different at every start.
    pub seed: [u8; 32],
    /// Length of a tick of the Raft groups that need one.
    pub tick: Duration,
    /// How long a leader answers reads without asking its peers, once it has; zero: never. It is shorter than the nine ticks of
    /// the fastest clock, and no clock of a node may be faster than another one's by that ratio.
    pub lease: Duration,
    /// Where replicas live, for groups that span nodes; see [`Event::Places`].
    pub places: BTreeMap<ReplicaId, Place>,
    /// Limits of a session.
    pub session_limits: esker_nbd::SessionLimits,
    /// What can be changed later.
    pub tuning: crate::admin::Tuning,
    /// There are providers of keys: the store has key slots, and volumes can be encrypted.
    pub keys: bool,
    /// Keep what [`Node::take_seals`] gives.
    pub note_seals: bool,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            store_index: 0,
            node: NodeId(1),
            cluster: ClusterId(0),
            engine: EngineConfig {
                format_if_blank: true,
                ..EngineConfig::default()
            },
            seed: [0; 32],
            tick: Duration::from_millis(100),
            lease: Duration::from_millis(600),
            places: BTreeMap::new(),
            session_limits: esker_nbd::SessionLimits::default(),
            tuning: crate::admin::Tuning::default(),
            keys: false,
            note_seals: false,
        }
    }
}

/// What a node is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Opening,
    Serving,
    /// Waits for requests on their way, until the moment given.
    Draining(Moment),
    /// The engine is making everything durable.
    Closing,
    Ended,
}

/// What a read of the engine is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadFor {
    /// The data of a read request; which of its pieces.
    Data(OpId, usize),
    /// The extents of a block status request.
    Status(OpId),
    /// What changed, for such a request.
    Changes(OpId),
    /// The first block of a request that covers it in part.
    Head(OpId),
    /// The last block of such a request.
    Tail(OpId),
    /// Blocks of an answer to a replica that lags: which answer, and which of its runs.
    Harvest(u64, usize),
    /// Which blocks of a volume are under older keys, for this part of a pass.
    ResealFind(GroupId, u64),
    /// Such blocks, for this part and under this lock.
    Reseal(GroupId, u64, OpId),
    /// A block that another replica wants.
    Wanted,
    /// The repair of a block.
    Repair(GroupId, crate::repair::Spot),
    /// A block that a scrub found damaged: which scrub's, and which of its places.
    Check(u64, usize),
    /// The payload of an entry, for a follower.
    Payload {
        group: GroupId,
        index: esker_base::RaftIndex,
        term: esker_base::Term,
    },
}

/// A node's logic over one store.
pub struct Node {
    pub(crate) config: NodeConfig,
    pub(crate) engine: Engine,
    pub(crate) engine_effects: Vec<engine_event::Effect>,
    /// The engine has been given something, and has not advanced since.
    pub(crate) engine_told: bool,
    /// The time is one that was read after all events until now.
    pub(crate) is_settling: bool,
    pub(crate) rng: ChaCha8Rng,
    pub(crate) phase: Phase,
    pub(crate) now: Moment,
    pub(crate) wall: WallClock,
    pub(crate) volumes: BTreeMap<GroupId, Volume>,
    pub(crate) by_name: BTreeMap<String, GroupId>,
    /// Groups whose Raft may have something to do.
    pub(crate) dirty: BTreeSet<GroupId>,
    pub(crate) ops: BTreeMap<OpId, Op>,
    pub(crate) next_op: OpId,
    pub(crate) op_bytes: usize,
    /// Requests and bytes that sessions have in flight, arriving payloads included.
    pub(crate) in_flight: (usize, usize),
    /// Groups that need ticks.
    pub(crate) ticking: BTreeSet<GroupId>,
    pub(crate) ticks: u64,
    pub(crate) reads: BTreeMap<u64, ReadFor>,
    /// Those whose blocks may be repaired.
    pub(crate) repeatable: crate::repair::Repeatable,
    /// Blocks that are being read for other replicas.
    pub(crate) wanted: crate::repair::Wanted,
    pub(crate) next_read: u64,
    pub(crate) conns: BTreeMap<ConnId, Conn>,
    pub(crate) paused: BTreeSet<ConnId>,
    /// Connections that wait for room for more than a little.
    pub(crate) limited: BTreeSet<ConnId>,
    /// Connections served in this step.
    pub(crate) touched: BTreeSet<ConnId>,
    /// Reads and flushes that go to the engine once the proposals before them are there.
    pub(crate) reads_after_drive: Vec<(OpId, usize, u64)>,
    /// Whose request enters the engine next.
    pub(crate) turns: crate::turns::Turns,
    /// Questions for what changed.
    pub(crate) comparisons: crate::comparisons::Comparisons,
    /// Bytes of all volumes that are proposed and not committed.
    pub(crate) uncommitted_bytes: u64,
    /// The session that was served last.
    pub(crate) served_last: ConnId,
    /// When to look for sessions that do not move, while memory is short.
    pub(crate) stall_check: Option<Moment>,
    /// Volumes whose changes are held back, by when that ends at the latest.
    pub(crate) holds: BTreeSet<(Moment, GroupId)>,
    pub(crate) flush_after_drive: BTreeSet<GroupId>,
    /// Connections with something to parse or to send.
    pub(crate) conns_dirty: BTreeSet<ConnId>,
    pub(crate) others: BTreeMap<usize, Vec<ExportInfo>>,
    /// Rewind windows.
    pub(crate) rewinds: crate::rewind::Rewinds,
    /// Writes that wait for room.
    pub(crate) parking: crate::parking::Parking,
    /// Snapshots came or went, and the other stores have not been told.
    pub(crate) snapshots_changed: bool,
    /// Sessions in their handshake, with the moment at which they are ended.
    pub(crate) handshakes: BTreeSet<(Moment, ConnId)>,
    pub(crate) admin: BTreeMap<u64, AdminPending>,
    pub(crate) next_admin: u64,
    /// Comparisons on their way, by the engine's token.
    pub(crate) diffs: BTreeMap<u64, DiffAsk>,
    pub(crate) scrubs: BTreeMap<u64, crate::scrub::ScrubAsk>,
    /// Parts of scrubs that wait for repairs.
    pub(crate) scrubs_held: BTreeMap<u64, crate::scrub::ScrubHeld>,
    /// Those that need not wait any more.
    pub(crate) scrubs_over: Vec<(AdminToken, crate::admin::ScrubPage)>,
    pub(crate) catch_ups: crate::catchup::CatchUps,
    /// Answers to replicas that lag, by the engine's token.
    pub(crate) harvests: BTreeMap<u64, crate::catchup::Serving>,
    /// Questions for exact sums that wait for writes to be applied.
    pub(crate) settles: Vec<Settle>,
    /// Requests about volumes that are starting.
    pub(crate) deferred: Vec<(GroupId, AdminToken, crate::admin::AdminRequest)>,
    /// Any of these waits for writes to be applied.
    pub(crate) waits_for_rest: bool,
    /// Volumes being created, with the operator who waits for them to serve.
    pub(crate) starting: BTreeMap<GroupId, AdminToken>,
    /// Operators whose request will never be carried out, and why.
    pub(crate) refused: Vec<(AdminToken, AdminError)>,
    /// Other answers to operators, given when the step ends.
    pub(crate) answers: Vec<(AdminToken, Result<AdminReply, AdminError>)>,
    /// The volume that was sealed anew last.
    pub(crate) reseal_last: Option<GroupId>,
    pub(crate) next_tick: Moment,
    pub(crate) timer: Option<Moment>,
    pub(crate) report: ReadyReport,
    pub(crate) fenced: Option<String>,
    pub(crate) meters: crate::meters::Meters,
    /// Keys of encrypted volumes.
    pub(crate) keys: crate::keys::Keys,
    /// This process, to others; not 0.
    pub(crate) session: SessionId,
    /// The highest number of a request of this process, for volumes whose copy went from here: the group remembers
    /// them, and a copy may come back.
    pub(crate) numbers_given: BTreeMap<GroupId, u64>,
    /// Where members live, as logs of volumes say.
    pub(crate) learned: BTreeMap<ReplicaId, Place>,
    /// Replicas that were removed from their groups.
    pub(crate) removed: Vec<GroupId>,
    /// Volumes whose labels were changed: sessions of attachments that have passed are to be ended.
    pub(crate) refenced: Vec<GroupId>,
    /// To be sent to other nodes when the step ends.
    pub(crate) notes: Vec<(Place, crate::event::PeerFrame)>,
}

impl Node {
    /// Begins to open the store; the first effects are reads.
    #[must_use]
    pub fn new(
        config: NodeConfig,
        now: Moment,
        wall: WallClock,
        effects: &mut Vec<Effect>,
    ) -> Self {
        let mut rng = ChaCha8Rng::from_seed(config.seed);
        let mut engine_config = config.engine.clone();
        let high = u128::from(rng.next_u64());
        engine_config.store_entropy = high << 64 | u128::from(rng.next_u64());
        engine_config.node = config.node;
        engine_config.cluster = config.cluster;
        let session = SessionId(rng.next_u64() | 1);
        let mut engine_effects = Vec::new();
        let engine = Engine::open(engine_config, &mut engine_effects);
        let next_tick = now + config.tick;
        let meters = crate::meters::Meters::new(config.tuning, now);
        let keys = crate::keys::Keys::new(config.keys, config.note_seals);
        let mut node = Self {
            config,
            engine,
            engine_effects,
            engine_told: false,
            is_settling: false,
            rng,
            phase: Phase::Opening,
            now,
            wall,
            volumes: BTreeMap::new(),
            by_name: BTreeMap::new(),
            dirty: BTreeSet::new(),
            ops: BTreeMap::new(),
            next_op: 1,
            op_bytes: 0,
            in_flight: (0, 0),
            ticking: BTreeSet::new(),
            ticks: 0,
            reads: BTreeMap::new(),
            repeatable: BTreeMap::new(),
            wanted: BTreeMap::new(),
            next_read: 1,
            conns: BTreeMap::new(),
            paused: BTreeSet::new(),
            limited: BTreeSet::new(),
            touched: BTreeSet::new(),
            reads_after_drive: Vec::new(),
            turns: crate::turns::Turns::default(),
            comparisons: crate::comparisons::Comparisons::default(),
            uncommitted_bytes: 0,
            served_last: ConnId(0),
            stall_check: None,
            holds: BTreeSet::new(),
            flush_after_drive: BTreeSet::new(),
            conns_dirty: BTreeSet::new(),
            others: BTreeMap::new(),
            rewinds: crate::rewind::Rewinds::default(),
            parking: crate::parking::Parking::default(),
            snapshots_changed: false,
            handshakes: BTreeSet::new(),
            admin: BTreeMap::new(),
            next_admin: 1,
            diffs: BTreeMap::new(),
            scrubs: BTreeMap::new(),
            scrubs_held: BTreeMap::new(),
            scrubs_over: Vec::new(),
            catch_ups: crate::catchup::CatchUps::default(),
            harvests: BTreeMap::new(),
            settles: Vec::new(),
            deferred: Vec::new(),
            waits_for_rest: false,
            starting: BTreeMap::new(),
            refused: Vec::new(),
            answers: Vec::new(),
            reseal_last: None,
            next_tick,
            timer: None,
            report: ReadyReport::default(),
            fenced: None,
            meters,
            keys,
            session,
            numbers_given: BTreeMap::new(),
            learned: BTreeMap::new(),
            removed: Vec::new(),
            refenced: Vec::new(),
            notes: Vec::new(),
        };
        node.follow_up(effects);
        node
    }

    /// The engine, for tests and tools.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Whether this node leads the volume and serves it.
    #[must_use]
    pub fn serves(&self, name: &str) -> bool {
        let volume = self.by_name.get(name).and_then(|id| self.volumes.get(id));
        self.phase == Phase::Serving && volume.is_some_and(Volume::is_serving)
    }

    /// The volume's group in this store, by name.
    #[must_use]
    pub fn group_of(&self, name: &str) -> Option<GroupId> {
        self.by_name.get(name).copied()
    }

    /// Requests of clients on their way.
    #[must_use]
    pub fn requests_in_flight(&self) -> usize {
        self.ops.len()
    }

    /// Reads that groups of this node answered under a lease.
    #[must_use]
    pub fn reads_by_lease(&self) -> u64 {
        let groups = self.volumes.values().filter_map(|v| v.group.as_ref());
        groups.map(esker_replication::Group::reads_by_lease).sum()
    }

    /// Gives an event to the engine; what follows is handled in `follow_up`.
    pub(crate) fn tell_engine(&mut self, event: engine_event::Event) {
        self.engine.take(self.now, event, &mut self.engine_effects);
        self.engine_told = true;
    }

    fn take(&mut self, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Disk { io, result } if crate::keys::is_key_io(io) => {
                self.key_io_done(io, result, effects);
            }
            Event::Disk { io, result } => {
                self.tell_engine(engine_event::Event::Disk { io, result })
            }
            Event::Timer => self.timer = None,
            Event::Connected {
                conn,
                transport,
                tls,
            } => self.connected(conn, transport, tls),
            Event::Secured { conn, access } => self.secured(conn, access),
            Event::Adopted {
                conn,
                transport,
                session,
            } => self.adopted(conn, transport, *session),
            Event::Received { conn, data } => self.received(conn, data),
            Event::Sent { conn } => self.sent(conn),
            Event::Disconnected { conn, reason } => self.disconnected(conn, &reason),
            Event::Exports { store, exports } => {
                self.others.insert(store, exports);
            }
            Event::Admin { token, request } => self.admin_request(token, request, effects),
            Event::Peer { from, frame } => self.peer_frame(from, frame),
            Event::PeerLost { node } => self.peer_lost(node),
            Event::Places(places) => self.config.places = places,
            Event::Keys(answer) => self.key_answer(answer, effects),
            Event::Stop => self.stop(effects),
        }
    }

    fn stop(&mut self, effects: &mut Vec<Effect>) {
        match self.phase {
            Phase::Opening => {
                self.phase = Phase::Ended;
                effects.push(Effect::Stopped);
            }
            Phase::Serving => {
                self.phase = Phase::Draining(self.now + STOP_TIME_MAX);
                // Others lead from now on, and carry out what is on its way.
                for (id, volume) in self.volumes.iter_mut().filter(|(_, v)| v.spans) {
                    if let Some(group) = volume.group.as_mut() {
                        group.hand_over();
                        self.dirty.insert(*id);
                    }
                }
                // What was written since the last points gets one.
                self.rewinds.due = Some(self.now);
                for (id, conn) in &mut self.conns {
                    conn.session.shutdown();
                    self.conns_dirty.insert(*id);
                }
            }
            Phase::Draining(_) | Phase::Closing | Phase::Ended => {}
        }
    }

    fn passage_of_time(&mut self) {
        if self.now >= self.next_tick {
            self.next_tick = self.now + self.config.tick;
            self.ticks += 1;
            let ask_again = self.ticks.is_multiple_of(READ_CHECK_TICKS);
            for id in self.ticking.clone() {
                self.route_tick(id);
                self.source_tick(id);
                self.feed_tick(id);
                self.repair_tick(id);
                self.membership_tick(id);
                let Some(volume) = self.volumes.get_mut(&id) else {
                    continue;
                };
                let Some(group) = volume.group.as_mut() else {
                    continue;
                };
                group.tick();
                if volume.stands_ticks_left > 0 {
                    volume.stands_ticks_left -= 1;
                    if group.leader().is_some() {
                        volume.stands_ticks_left = 0;
                    } else if let Err(error) = group.campaign() {
                        tracing::debug!(%error, "no election of a clone's leader");
                    }
                }
                // Without its key it can carry out nothing of what it leads.
                let is_locked = matches!(volume.lock, crate::keys::Lock::Away(_));
                if volume.spans && is_locked && self.ticks.is_multiple_of(LOCKED_TICKS) {
                    group.hand_over();
                }
                // The answer to a read's question may have been lost.
                if ask_again {
                    for number in volume.route.asked() {
                        group.read_index(self.now, number);
                    }
                }
                self.dirty.insert(id);
            }
        }
        self.end_holds();
        self.rewind_if_due();
        self.read_slots_if_due();
        if self.engine.deadline().is_some_and(|at| at <= self.now) {
            self.tell_engine(engine_event::Event::Timer);
        }
    }

    /// Notes whether a group needs ticks.
    pub(crate) fn note_ticking(&mut self, id: GroupId) {
        let volume = self.volumes.get(&id);
        let group = volume.and_then(|v| v.group.as_ref());
        let needs = group.is_some_and(esker_replication::Group::needs_tick);
        let waits =
            |v: &Volume| v.route.needs_tick() || v.growth.is_some() || !v.repairs.is_empty();
        if needs || volume.is_some_and(waits) {
            if self.ticking.is_empty() {
                self.next_tick = self.now + self.config.tick;
            }
            self.ticking.insert(id);
        } else {
            self.ticking.remove(&id);
        }
    }

    /// Handles everything that follows from events, until nothing does. The order gathers: all
    /// sessions are parsed before the groups take what they propose, and the engine builds records
    /// when it has been told everything.
    fn follow_up(&mut self, effects: &mut Vec<Effect>) {
        loop {
            if !self.engine_effects.is_empty() {
                let mut follow = std::mem::take(&mut self.engine_effects);
                for effect in follow.drain(..) {
                    self.engine_effect(effect, effects);
                }
                if self.engine_effects.is_empty() {
                    self.engine_effects = follow; // its memory serves again
                }
                continue;
            }
            if let Some(conn) = self.next_to_serve() {
                self.serve_conn(conn, effects);
                continue;
            }
            if self.take_turns() {
                continue;
            }
            if let Some(id) = self.dirty.pop_first() {
                self.drive(id, effects);
                continue;
            }
            if !self.reads_after_drive.is_empty() || !self.flush_after_drive.is_empty() {
                self.release_after_drive();
                continue;
            }
            if std::mem::take(&mut self.engine_told) {
                self.engine
                    .advance(self.now, self.wall, &mut self.engine_effects);
                continue;
            }
            self.fence_sessions(effects);
            if self.leave_groups() || self.release_parked() || self.rest_reached(effects) {
                continue;
            }
            if !self.resume_paused() {
                break;
            }
        }
        self.answer_scrubs(effects);
        for (to, frame) in self.notes.drain(..) {
            effects.push(Effect::Peer { to, frame });
        }
        for (token, error) in std::mem::take(&mut self.refused) {
            Self::answer(token, Err(error), effects);
        }
        for (token, result) in std::mem::take(&mut self.answers) {
            Self::answer(token, result, effects);
        }
        self.tell_key_asks(effects);
        self.tell_snapshots_changed(effects);
        self.cut_stalled(effects);
        self.cut_unfinished(effects);
        self.pace(effects);
        self.end_if_drained(effects);
        self.set_timer(effects);
    }

    fn end_if_drained(&mut self, effects: &mut Vec<Effect>) {
        let Phase::Draining(until) = self.phase else {
            return;
        };
        let sessions_done = self.conns.values().all(|c| c.closing);
        if !(self.ops.is_empty() && sessions_done) && self.now < until && self.fenced.is_none() {
            // Sessions still in their handshake have nothing to lose.
            let idle: Vec<ConnId> = self
                .conns
                .iter()
                .filter(|(_, c)| !c.closing && c.volume.is_none())
                .map(|(id, _)| *id)
                .collect();
            for conn in idle {
                self.close(conn, "the node stops".into(), effects);
            }
            if !self.ops.is_empty() || self.conns.values().any(|c| !c.closing) {
                return;
            }
        }
        let open: Vec<ConnId> = self
            .conns
            .iter()
            .filter(|(_, c)| !c.closing)
            .map(|(id, _)| *id)
            .collect();
        for conn in open {
            self.close(conn, "the node stops".into(), effects);
        }
        self.phase = Phase::Closing;
        self.tell_engine(engine_event::Event::Stop);
        // What it says now is an answer to this event: whoever asked to stop sees it at once.
        self.engine
            .advance(self.now, self.wall, &mut self.engine_effects);
        for effect in std::mem::take(&mut self.engine_effects) {
            self.engine_effect(effect, effects);
        }
    }

    fn set_timer(&mut self, effects: &mut Vec<Effect>) {
        if self.phase == Phase::Ended {
            return;
        }
        let ticks = !self.ticking.is_empty();
        let drain = match self.phase {
            Phase::Draining(until) => Some(until),
            _ => None,
        };
        let due = self
            .engine
            .deadline()
            .into_iter()
            .chain(ticks.then_some(self.next_tick))
            .chain(drain)
            .chain(self.stall_check)
            .chain(self.holds.first().map(|(until, _)| *until))
            .chain(self.rewinds.due)
            .chain(self.keys.read_again.as_ref().map(|(at, _)| *at))
            .chain(self.handshakes.first().map(|(until, _)| *until))
            .min()
            .map(|at| at.max(self.now));
        // An earlier timer that is still set only wakes the loop once too often.
        if let Some(at) = due.filter(|at| self.timer.is_none_or(|set| set > *at)) {
            self.timer = Some(at);
            effects.push(Effect::SetTimer { at });
        }
    }

    /// Random bits.
    pub(crate) fn random(&mut self) -> u64 {
        self.rng.next_u64()
    }

    /// A new token for the admin table.
    pub(crate) fn admin_token(&mut self, pending: AdminPending) -> u64 {
        let token = self.next_admin;
        self.next_admin += 1;
        self.admin.insert(token, pending);
        token
    }

    /// Answers an operator.
    pub(crate) fn answer(
        token: AdminToken,
        result: Result<crate::admin::AdminReply, crate::admin::AdminError>,
        effects: &mut Vec<Effect>,
    ) {
        if token != crate::rewind::NOBODY {
            effects.push(Effect::AdminReply { token, result });
        }
    }
}

impl Machine for Node {
    fn step(&mut self, now: Moment, wall: WallClock, event: Event, effects: &mut Vec<Effect>) {
        if self.phase == Phase::Ended {
            return;
        }
        self.now = self.now.max(now);
        self.wall = wall;
        self.take(event, effects);
    }

    fn requests_in_flight(&self) -> usize {
        self.ops.len()
    }

    fn requests_begun(&self) -> u64 {
        self.next_op
    }

    fn settle(&mut self, now: Moment, wall: WallClock, effects: &mut Vec<Effect>) {
        if self.phase == Phase::Ended {
            return;
        }
        self.now = self.now.max(now);
        self.wall = wall;
        self.is_settling = true;
        self.passage_of_time();
        self.follow_up(effects);
        self.is_settling = false;
    }
}
