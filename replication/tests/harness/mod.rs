//! A cluster in memory: groups with a fake durable log each, a seeded network, and oracles that
//! look at every message and every committed entry.

#![allow(clippy::unwrap_used, missing_docs, dead_code)] // test support, shared by several tests

use bytes::Bytes;
use esker_base::{GroupId, Moment, RaftIndex, ReplicaId, Term};
use esker_replication::{
    decode_frame_header, Frame, Group, GroupConfig, GroupError, HardState, LogEntry, Membership,
    Output, RecoveredGroup, Role, Ticket,
};
use prost::Message as _;
use raft::eraftpb::{Message, MessageType};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub const GROUP: GroupId = GroupId(7);

pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A payload that can be recomputed from the id in its descriptor.
pub fn payload_of(id: u64) -> Vec<u8> {
    let mut rng = Rng::new(id);
    let length = rng.below(5) * 97;
    (0..length).map(|_| rng.next().to_le_bytes()[0]).collect()
}

/// The id in a descriptor of ours.
pub fn value_of(data: &[u8]) -> Option<u64> {
    let (kind, id) = data.split_first()?;
    (*kind == b'v').then(|| u64::from_le_bytes(id.try_into().unwrap()))
}

pub fn descriptor(id: u64) -> Bytes {
    let mut data = vec![b'v'];
    data.extend_from_slice(&id.to_le_bytes());
    data.into()
}

pub fn pieces_of(payload: &[u8]) -> Vec<Bytes> {
    payload.chunks(64).map(Bytes::copy_from_slice).collect()
}

/// What a store would have kept through a crash.
#[derive(Clone, Default)]
pub struct Disk {
    pub hard_state: HardState,
    pub entries: BTreeMap<u64, (LogEntry, Vec<u8>)>,
    pub truncated: (u64, u64),
    pub applied: u64,
    pub membership: Membership,
    /// Memberships by the index that made them.
    pub memberships: BTreeMap<u64, Membership>,
    pub suspended: bool,
}

impl Disk {
    pub fn last(&self) -> u64 {
        self.entries
            .last_key_value()
            .map_or(self.truncated.0, |(index, _)| *index)
    }

    fn write(&mut self, append: &Append) {
        if let Some((first, _)) = append.entries.first() {
            assert!(
                first.index.0 > self.truncated.0 && first.index.0 <= self.last() + 1,
                "gap"
            );
            self.entries.split_off(&first.index.0);
        }
        for (entry, payload) in &append.entries {
            assert_eq!(entry.index.0, self.last() + 1);
            self.entries
                .insert(entry.index.0, (entry.clone(), payload.clone()));
        }
        if let Some(hard_state) = append.hard_state {
            assert!(hard_state.term >= self.hard_state.term);
            self.hard_state = hard_state;
        }
    }

    pub fn recovered(&self) -> RecoveredGroup {
        RecoveredGroup {
            hard_state: self.hard_state,
            membership: self.membership.clone(),
            truncated: (RaftIndex(self.truncated.0), Term(self.truncated.1)),
            applied: RaftIndex(self.applied),
            entries: self
                .entries
                .values()
                .map(|(entry, _)| entry.clone())
                .collect(),
            suspended: self.suspended,
        }
    }
}

pub struct Append {
    pub ticket: Ticket,
    pub entries: Vec<(LogEntry, Vec<u8>)>,
    pub hard_state: Option<HardState>,
    pub must_sync: bool,
}

pub struct Node {
    pub id: u64,
    pub group: Option<Group>,
    pub disk: Disk,
    pub queue: VecDeque<Append>,
    /// Volatile state machine: (index, id).
    pub applied: Vec<(u64, u64)>,
    pub lives: u64,
    /// Payloads on its disk are damaged, all of them.
    pub unreadable: bool,
    /// Its disk syncs nothing before this moment.
    pub syncs_from: u64,
    wanted: VecDeque<(u64, u64)>,
    reads: BTreeMap<u64, u64>,
}

impl Node {
    pub fn group(&mut self) -> &mut Group {
        self.group.as_mut().unwrap()
    }
    pub fn leads(&self) -> bool {
        self.group
            .as_ref()
            .is_some_and(|group| group.role() == Role::Leader)
    }
}

struct Packet {
    at: u64,
    order: u64,
    to: u64,
    from: u64,
    header: Bytes,
    payloads: Vec<Bytes>,
}

pub struct Options {
    pub loss: u64,
    pub duplicate: u64,
    pub delay: u64,
    pub lazy_sync: u64,
    pub tweak: fn(&mut GroupConfig),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            loss: 0,
            duplicate: 0,
            delay: 1,
            lazy_sync: 1,
            tweak: |_| {},
        }
    }
}

pub struct Cluster {
    pub nodes: BTreeMap<u64, Node>,
    pub rng: Rng,
    pub options: Options,
    pub cut: BTreeSet<(u64, u64)>,
    /// The oracle: what was committed at each index, by anyone.
    pub committed: BTreeMap<u64, (Term, Bytes)>,
    pub trace: u64,
    pub resumed: u64,
    pub needed: u64,
    pub caught_up: u64,
    pub reads_served: u64,
    /// Payload bytes that were sent to each.
    pub bytes_to: BTreeMap<u64, usize>,
    pub now: u64,
    next_id: u64,
    next_read: u64,
    packets: Vec<Packet>,
    packets_sent: u64,
    seed: u64,
}

pub fn small(config: &mut GroupConfig) {
    config.size_per_message_max = 600;
    config.inflight_payload_bytes_max = 900;
    config.inflight_messages_max = 4;
    config.uncommitted_bytes_max = 6000;
    config.committed_bytes_per_ready_max = 200;
}

impl Cluster {
    pub fn new(seed: u64, voters: &[u64], options: Options) -> Self {
        let membership =
            Membership::of_voters(&voters.iter().copied().map(ReplicaId).collect::<Vec<_>>());
        let mut cluster = Self {
            nodes: BTreeMap::new(),
            rng: Rng::new(seed),
            options,
            cut: BTreeSet::new(),
            committed: BTreeMap::new(),
            trace: 0xcbf2_9ce4_8422_2325,
            resumed: 0,
            needed: 0,
            caught_up: 0,
            reads_served: 0,
            bytes_to: BTreeMap::new(),
            now: 0,
            next_id: 0,
            next_read: 0,
            packets: Vec::new(),
            packets_sent: 0,
            seed,
        };
        for id in voters {
            cluster.add_node(*id, membership.clone());
        }
        cluster
    }

    pub fn add_node(&mut self, id: u64, membership: Membership) {
        let memberships = BTreeMap::from([(0, membership.clone())]);
        let disk = Disk {
            membership,
            memberships,
            ..Disk::default()
        };
        let node = Node {
            id,
            group: None,
            disk,
            queue: VecDeque::new(),
            applied: Vec::new(),
            lives: 0,
            unreadable: false,
            syncs_from: 0,
            wanted: VecDeque::new(),
            reads: BTreeMap::new(),
        };
        self.nodes.insert(id, node);
        self.start(id);
    }

    pub fn node(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).unwrap()
    }

    pub fn start(&mut self, id: u64) {
        let seed = self.seed;
        let tweak = self.options.tweak;
        let node = self.node(id);
        node.lives += 1;
        let mut config = GroupConfig::new(GROUP, ReplicaId(id), seed ^ (node.lives << 32));
        tweak(&mut config);
        // The state machine comes back as of the durable applied index.
        let applied = node.disk.applied;
        node.applied.retain(|(index, _)| *index <= applied);
        node.group = Some(Group::new(config, node.disk.recovered()).unwrap());
        self.drain(id);
    }

    /// Loses everything volatile; a prefix of what was written and not synced may survive.
    pub fn crash(&mut self, id: u64) {
        let survivors = self.rng.below(4);
        let node = self.node(id);
        for _ in 0..survivors {
            if let Some(append) = node.queue.pop_front() {
                node.disk.write(&append);
            }
        }
        node.queue.clear();
        node.group = None;
        node.wanted.clear();
        node.reads.clear();
    }

    pub fn leader(&self) -> Option<u64> {
        let leads = self.nodes.values().filter(|node| node.leads());
        leads
            .max_by_key(|node| node.group.as_ref().unwrap().term())
            .map(|node| node.id)
    }

    pub fn propose(&mut self, id: u64) -> Option<u64> {
        self.next_id += 1;
        let value = self.next_id;
        let node = self.node(id);
        let group = node.group.as_mut()?;
        let data = descriptor(value);
        let proposed = group.propose(data, pieces_of(&payload_of(value))).ok();
        self.drain(id);
        proposed.map(|_| value)
    }

    pub fn read(&mut self, id: u64) {
        self.next_read += 1;
        let context = self.next_read;
        let index = self
            .committed
            .last_key_value()
            .map_or(0, |(index, _)| *index);
        let time = self.time();
        let node = self.node(id);
        if node.group().read_index(time, context) {
            node.reads.insert(context, index);
        }
        self.drain(id);
    }

    /// Whether a replica would answer a read alone.
    pub fn has_lease(&self, id: u64) -> bool {
        let group = self.nodes[&id].group.as_ref();
        group.is_some_and(|group| group.has_lease(self.time()))
    }

    /// Messages that were sent.
    pub fn packets_sent(&self) -> u64 {
        self.packets_sent
    }

    /// A refusal of a question before an election, in a later term, that was late.
    pub fn refuse_pre_vote(&mut self, from: u64, to: u64, term: u64) {
        let mut message = Message {
            from,
            to,
            term,
            reject: true,
            ..Message::default()
        };
        message.set_msg_type(MessageType::MsgRequestPreVoteResponse);
        let frame = Frame {
            group: GROUP,
            from: ReplicaId(from),
            to: ReplicaId(to),
            qos_class: 0,
            operation_version: 0,
            request_id: 0,
            trace_id: 0,
            payloads: Vec::new(),
            message: &message.encode_to_vec(),
        };
        let header = frame.encode().unwrap();
        self.node(to).group().receive(&header, Vec::new()).unwrap();
        self.drain(to);
        self.sync(to, usize::MAX);
    }

    /// What all clocks show: a step is as long as the shortest time between two ticks.
    pub fn time(&self) -> Moment {
        Moment(self.now * 100_000_000)
    }

    pub fn tick(&mut self, id: u64) {
        if let Some(group) = self.node(id).group.as_mut() {
            if group.needs_tick() {
                group.tick();
            }
            self.drain(id);
        }
    }

    /// Makes the oldest `count` appends durable and says so.
    pub fn sync(&mut self, id: u64, count: usize) {
        let node = self.node(id);
        let mut last = None;
        for _ in 0..count {
            let Some(append) = node.queue.pop_front() else {
                break;
            };
            node.disk.write(&append);
            last = append.must_sync.then_some(append.ticket).or(last);
        }
        if let (Some(ticket), Some(group)) = (last, node.group.as_mut()) {
            group.on_persisted(ticket);
        }
        self.drain(id);
    }

    /// Carries out everything a group asks for.
    pub fn drain(&mut self, id: u64) {
        let mut out = Vec::new();
        let time = self.time();
        let Some(group) = self.node(id).group.as_mut() else {
            return;
        };
        group.take_ready(time, &mut out);
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        let group = self.node(id).group();
        for to in ids {
            let inflight = group.payload_bytes_inflight(ReplicaId(to));
            assert!(
                inflight <= group.config().inflight_payload_bytes_max,
                "over the budget"
            );
        }
        for output in out {
            self.record(&format!("{id} {output:?}"));
            self.carry_out(id, output);
        }
    }

    fn record(&mut self, text: &str) {
        for byte in text.bytes() {
            self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn carry_out(&mut self, id: u64, output: Output) {
        match output {
            Output::Append {
                ticket,
                entries,
                hard_state,
                must_sync,
            } => {
                let flatten = |(entry, pieces): (LogEntry, Vec<Bytes>)| {
                    let payload = pieces.concat();
                    assert_eq!(u64::from(entry.payload_length), payload.len() as u64);
                    if let Some(value) = value_of(&entry.data) {
                        assert_eq!(payload, payload_of(value), "payload beside another entry");
                    }
                    (entry, payload)
                };
                let entries = entries.into_iter().map(flatten).collect();
                let append = Append {
                    ticket,
                    entries,
                    hard_state,
                    must_sync,
                };
                self.node(id).queue.push_back(append);
            }
            Output::Send {
                to,
                header,
                payloads,
            } => {
                *self.bytes_to.entry(to.0).or_default() +=
                    payloads.iter().map(Bytes::len).sum::<usize>();
                self.send(id, to.0, header, payloads);
            }
            Output::Committed { entries } => self.commit(id, &entries),
            Output::MembershipChanged {
                index, membership, ..
            } => {
                let node = self.node(id);
                node.disk.memberships.insert(index.0, membership);
            }
            Output::NeedPayload { index, term } => {
                self.needed += 1;
                let durable = self.nodes[&id].disk.entries.get(&index.0);
                let is_it = durable.is_some_and(|(entry, _)| entry.term == term);
                assert!(is_it, "a payload is asked back that is not on disk");
                self.node(id).wanted.push_back((index.0, term.0));
            }
            Output::ReadReady { context, index } => {
                let asked = self
                    .node(id)
                    .reads
                    .remove(&context)
                    .expect("a read of this life");
                assert!(
                    index.0 >= asked,
                    "read at {index} misses what was committed at {asked}"
                );
                self.reads_served += 1;
            }
            Output::CatchUpNeeded { to } => self.catch_up(id, to.0),
            Output::Resumed => {
                self.resumed += 1;
                self.node(id).disk.suspended = false;
            }
            Output::RoleChanged { .. } => {}
        }
    }

    /// Checks a message against what its sender has on disk, then lets it travel.
    fn send(&mut self, id: u64, to: u64, header: Bytes, payloads: Vec<Bytes>) {
        let frame = decode_frame_header(&header).unwrap();
        let message = Message::decode(frame.message).unwrap();
        let disk = &self.nodes[&id].disk;
        match message.get_msg_type() {
            MessageType::MsgAppendResponse if !message.reject && message.index > 0 => {
                assert!(
                    disk.last() >= message.index,
                    "{id} acknowledged {} with only {} durable",
                    message.index,
                    disk.last()
                );
            }
            MessageType::MsgRequestVoteResponse if !message.reject => {
                let vote = (disk.hard_state.term.0, disk.hard_state.vote.0);
                assert!(
                    vote == (message.term, to) || vote.0 > message.term,
                    "vote not durable"
                );
            }
            MessageType::MsgRequestVote => {
                let vote = (disk.hard_state.term.0, disk.hard_state.vote.0);
                assert!(
                    vote == (message.term, id) || vote.0 > message.term,
                    "vote not durable"
                );
            }
            _ => {}
        }
        if message.term > 0 && !message.get_msg_type().eq(&MessageType::MsgRequestPreVote) {
            let pre = message.get_msg_type() == MessageType::MsgRequestPreVoteResponse;
            assert!(
                pre || disk.hard_state.term.0 >= message.term,
                "term not durable"
            );
        }
        if std::env::var("ESKER_TRACE").is_ok() {
            println!(
                "{} {id}->{to} {:?} term {} index {} log_term {} entries {} commit {} reject {} hint {}",
                self.now, message.get_msg_type(), message.term, message.index, message.log_term,
                message.entries.len(), message.commit, message.reject, message.reject_hint,
            );
        }
        if self.options.loss > 0 && self.rng.one_in(self.options.loss) {
            return;
        }
        let copies =
            1 + u64::from(self.options.duplicate > 0 && self.rng.one_in(self.options.duplicate));
        for _ in 0..copies {
            let at = self.now + 1 + self.rng.below(self.options.delay);
            self.packets_sent += 1;
            self.packets.push(Packet {
                at,
                order: self.packets_sent,
                to,
                from: id,
                header: header.clone(),
                payloads: payloads.clone(),
            });
        }
    }

    fn commit(&mut self, id: u64, entries: &[LogEntry]) {
        for entry in entries {
            let index = entry.index.0;
            let node = self.nodes.get_mut(&id).unwrap();
            let durable = node.disk.entries.get(&index);
            let (on_disk, payload) = durable.expect("a committed entry is durable here");
            assert_eq!(on_disk, entry, "the disk holds another entry");
            let known = self
                .committed
                .entry(index)
                .or_insert((entry.term, entry.data.clone()));
            assert_eq!(
                known,
                &(entry.term, entry.data.clone()),
                "two entries commit at {index}"
            );
            if let Some(value) = value_of(&entry.data) {
                assert_eq!(payload, &payload_of(value));
                assert!(
                    node.applied.last().is_none_or(|(last, _)| *last < index),
                    "applied twice"
                );
                node.applied.push((index, value));
            }
        }
        let last = entries.last().unwrap().index;
        let late = self.rng.one_in(3);
        let node = self.node(id);
        node.group().on_applied(last);
        if !late {
            node.disk.applied = last.0;
            let membership = node.disk.memberships.range(..=last.0).next_back();
            node.disk.membership = membership.map(|(_, m)| m.clone()).unwrap_or_default();
        }
        // `on_applied` may have produced work; the caller drains again at the next event.
    }

    /// Stands in for catch-up by versions: the follower restarts from the leader's applied state.
    fn catch_up(&mut self, leader: u64, to: u64) {
        let first = self.node(leader).group().first_index().0;
        let Some(node) = self.nodes.get(&to) else {
            return;
        };
        let Some(group) = &node.group else { return };
        if group.commit_index().0 + 1 >= first || self.is_cut(leader, to) {
            return;
        }
        let from = &self.nodes[&leader];
        let at = from.disk.applied.max(from.disk.truncated.0);
        let term = match from.disk.entries.get(&at) {
            Some((entry, _)) => entry.term.0,
            None => from.disk.truncated.1,
        };
        if at + 1 < first {
            return;
        }
        let applied: Vec<_> = from
            .applied
            .iter()
            .copied()
            .filter(|(index, _)| *index <= at)
            .collect();
        let membership = from.disk.membership.clone();
        self.crash(to);
        let node = self.node(to);
        // As for a Raft snapshot: what follows a matching entry may have been acknowledged.
        let matches = node
            .disk
            .entries
            .get(&at)
            .is_some_and(|(entry, _)| entry.term.0 == term);
        let tail = node.disk.entries.split_off(&(at + 1));
        node.disk.entries = if matches { tail } else { BTreeMap::new() };
        node.disk.truncated = (at, term);
        node.disk.applied = at;
        node.disk.membership = membership.clone();
        node.disk.memberships = BTreeMap::from([(0, membership)]);
        node.disk.hard_state.commit = RaftIndex(at);
        node.disk.hard_state.term = node.disk.hard_state.term.max(Term(term));
        node.applied = applied;
        self.caught_up += 1;
        self.start(to);
    }

    pub fn is_cut(&self, a: u64, b: u64) -> bool {
        self.cut.contains(&(a.min(b), a.max(b)))
    }

    pub fn isolate(&mut self, id: u64) {
        let others: Vec<u64> = self
            .nodes
            .keys()
            .copied()
            .filter(|other| *other != id)
            .collect();
        self.cut.extend(
            others
                .into_iter()
                .map(|other| (id.min(other), id.max(other))),
        );
    }

    pub fn deliver(&mut self) {
        let now = self.now;
        let mut due: Vec<Packet> = Vec::new();
        let mut rest = Vec::new();
        for packet in std::mem::take(&mut self.packets) {
            if packet.at <= now {
                due.push(packet)
            } else {
                rest.push(packet)
            }
        }
        self.packets = rest;
        due.sort_by_key(|packet| (packet.at, packet.order));
        for packet in due {
            if self.is_cut(packet.from, packet.to) {
                continue;
            }
            let Some(node) = self.nodes.get_mut(&packet.to) else {
                continue;
            };
            let Some(group) = node.group.as_mut() else {
                continue;
            };
            match group.receive(&packet.header, packet.payloads) {
                Ok(()) | Err(GroupError::UnknownPeer(_)) => {}
                Err(error) => panic!("{} refused a peer's message: {error}", packet.to),
            }
            self.drain(packet.to);
        }
    }

    fn load_payloads(&mut self, id: u64, fail: bool) {
        let node = self.node(id);
        let fail = fail || node.unreadable;
        while let Some((index, term)) = node.wanted.pop_front() {
            let found = node
                .disk
                .entries
                .get(&index)
                .into_iter()
                .find(|(entry, _)| (entry.index.0, entry.term.0) == (index, term))
                .map(|(_, payload)| pieces_of(payload));
            let result = found.filter(|_| !fail).ok_or(());
            node.group()
                .payload_loaded(RaftIndex(index), Term(term), result);
        }
        self.drain(id);
    }

    /// One unit of time: messages arrive, disks sync, clocks tick.
    pub fn step(&mut self) {
        self.now += 1;
        self.deliver();
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            if self.nodes[&id].group.is_none() {
                continue;
            }
            let slow = self.nodes[&id].syncs_from > self.now;
            if self.rng.one_in(self.options.lazy_sync) && !slow {
                let count = 1 + self.rng.below(3);
                self.sync(id, usize::try_from(count).unwrap());
            }
            if self.rng.one_in(2) {
                let fail = self.options.loss > 0 && self.rng.one_in(20);
                self.load_payloads(id, fail);
            }
            if self.rng.one_in(3) {
                self.tick(id);
            }
        }
    }

    pub fn run(&mut self, steps: u64) {
        for _ in 0..steps {
            self.step();
        }
    }

    pub fn run_until(&mut self, steps: u64, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..steps {
            if done(self) {
                return;
            }
            self.step();
        }
        for node in self.nodes.values() {
            if let Some(g) = &node.group {
                println!(
                    "{}: {:?} term {} first {} last {} commit {} applied {} susp {} disk {:?} last {} queue {} wanted {:?} matched {:?}",
                    node.id, g.role(), g.term(), g.first_index(), g.last_index(), g.commit_index(),
                    g.applied_index(), g.is_suspended(), node.disk.hard_state, node.disk.last(),
                    node.queue.len(), node.wanted,
                    self.nodes.keys().map(|id| g.matched_index(ReplicaId(*id))).collect::<Vec<_>>(),
                );
            }
        }
        panic!("not reached in {steps} steps");
    }

    pub fn wait_for_leader(&mut self) -> u64 {
        self.run_until(2000, |cluster| cluster.leader().is_some());
        self.leader().unwrap()
    }

    /// Proposes until one is accepted, and waits until every running node has applied it.
    pub fn write_everywhere(&mut self) -> u64 {
        let mut value = None;
        self.run_until(6000, |cluster| {
            let running: Vec<u64> = cluster
                .nodes
                .values()
                .filter(|n| n.group.is_some())
                .map(|n| n.id)
                .collect();
            let applied = |v: u64| {
                running
                    .iter()
                    .all(|id| cluster.nodes[id].applied.iter().any(|(_, x)| *x == v))
            };
            if value.is_some_and(applied) {
                return true;
            }
            // A proposal can be lost with its leader: propose anew now and then.
            if cluster.now % 100 == 0 || value.is_none() {
                value = cluster
                    .leader()
                    .and_then(|id| cluster.propose(id))
                    .or(value);
            }
            false
        });
        value.unwrap()
    }

    /// Everything committed is on every node, in the same order.
    pub fn assert_converged(&mut self) {
        let longest = self
            .nodes
            .values()
            .map(|node| node.applied.clone())
            .max_by_key(Vec::len);
        for node in self.nodes.values() {
            assert_eq!(
                Some(&node.applied),
                longest.as_ref(),
                "node {} differs",
                node.id
            );
        }
        for (index, (_, data)) in &self.committed {
            if let Some(value) = value_of(data) {
                assert!(
                    longest.as_ref().unwrap().contains(&(*index, value)),
                    "lost {index}"
                );
            }
        }
    }
}
