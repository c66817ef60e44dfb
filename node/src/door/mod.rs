//! Any node that holds a replica is a door to its volume: a client attaches where it likes, and never
//! learns who leads.
//!
//! Reads are carried out at the door, once the leader has said how far its replica must have applied the
//! log. What changes the volume goes to the leader as an [`wire::Ask`] and comes back as an
//! [`wire::Answer`]; when the leader changes, or an answer does not come, it is asked again, of whoever leads
//! then. That it takes effect once all the same is the matter of [`esker_engine::requests`]; that a late copy of it does
//! nothing, of the term it names: in another term it is refused, and in the same one the leader knows it.
//!
//! Requests that have neither entered this replica's group nor are on their way to another node are
//! *homeless*: no leader is known, or it has refused them for now.

mod desk;
mod members;
pub(crate) mod wire;

use crate::event::{FrameKind, PeerFrame};
use crate::keys::Lock;
use crate::node::Node;
use crate::volume::{Action, Op, OpId, Volume};
use bytes::Bytes;
use esker_base::{ConnId, GroupId, Place, RaftIndex, ReplicaId, SessionId, Term};
use esker_engine::REQUEST_WINDOW;
use esker_nbd::{Reply, RequestError};
use esker_replication::{Group, Role};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use wire::{Answer, AnswerKind, Ask, AskKind, Note};

/// Ticks after which a request that was not answered is asked again.
const ASK_AGAIN_TICKS: u64 = 5;
/// Ticks after which one is asked again that was refused for now.
const REFUSED_TICKS: u64 = 1;
/// Questions about reads that a group has at a time.
const READ_QUESTIONS_MAX: usize = 2;
/// How long a read waits for this replica to see what is in force, before the leader is asked for it.
const READ_HERE_TIME: Duration = Duration::from_secs(2);

/// Who asked for a request that another node took from its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    /// Where the answer goes.
    pub place: Place,
    /// Its process.
    pub session: SessionId,
    /// Which ask the answer names.
    pub ask: u64,
    /// How many of its numbers right below this one may be without an answer.
    pub behind: u32,
}

/// The requests of a volume that spans nodes, on their way to whoever leads it.
#[derive(Debug, Default)]
pub(crate) struct Route {
    /// Number of the last request of this process that changes the volume.
    last: u64,
    /// This process's requests that change the volume and have no answer, by number.
    unanswered: BTreeMap<u64, OpId>,
    /// Asked of another node, in which tick.
    away: BTreeMap<OpId, u64>,
    /// Homeless ones, and the tick from which on they may be asked.
    homeless: BTreeMap<OpId, u64>,
    /// Requests of other nodes that are carried out here, by session and number.
    guests: BTreeMap<(SessionId, u64), OpId>,
    /// Where this replica takes no part any more: the leader as others tell, and which replica was asked.
    hint: Option<(Term, ReplicaId)>,
    /// Counts the replicas asked for a hint.
    probes: usize,
    /// Sessions that attach once this replica has seen what is in force.
    attaching: BTreeMap<OpId, ConnId>,
    /// Reads that the group has still to be asked about.
    unasked: BTreeSet<OpId>,
    /// Reads that it was asked about, all of one number at once.
    asked: BTreeMap<u64, BTreeSet<OpId>>,
}

/// Where a request goes.
enum Heading {
    /// This replica leads and serves.
    Here,
    /// It leads, and will serve soon.
    Soon,
    /// Another one leads.
    There(Place, Term),
    /// Nobody is known to lead.
    Nowhere,
}

impl Route {
    /// Where this process has given out numbers up to one before.
    pub fn after(last: u64) -> Self {
        Self {
            last,
            ..Self::default()
        }
    }

    /// The highest number of this process.
    pub fn numbers_given(&self) -> u64 {
        self.last
    }

    /// How many of this process's numbers right below one may be without an answer.
    pub fn behind(&self, sequence: u64) -> u32 {
        let lowest = self.unanswered.keys().next().copied();
        let behind = sequence.saturating_sub(lowest.unwrap_or(sequence));
        u32::try_from(behind).unwrap_or(u32::MAX)
    }

    /// Something of it must be looked at with the ticks.
    pub fn needs_tick(&self) -> bool {
        !self.away.is_empty() || !self.homeless.is_empty()
    }

    /// A request is no more.
    pub fn forget(&mut self, id: OpId, op: &Op) {
        self.away.remove(&id);
        self.homeless.remove(&id);
        self.forget_read(id);
        match op.caller {
            None => {
                self.unanswered.remove(&op.sequence);
            }
            Some(caller) => {
                self.guests.remove(&(caller.session, op.sequence));
            }
        }
    }

    fn forget_read(&mut self, id: OpId) {
        self.unasked.remove(&id);
        self.asked
            .values_mut()
            .for_each(|reads| _ = reads.remove(&id));
    }

    /// The group says how far reads must see: those that it was asked about.
    pub fn reads_allowed(&mut self, number: u64) -> BTreeSet<OpId> {
        self.asked.remove(&number).unwrap_or_default()
    }

    /// What the group was asked and did not answer.
    pub fn asked(&self) -> impl Iterator<Item = u64> + '_ {
        self.asked.keys().copied()
    }

    /// Reads whose answer by the group is still to come.
    fn unanswered_reads(&self) -> impl Iterator<Item = OpId> + '_ {
        self.unasked
            .iter()
            .chain(self.asked.values().flatten())
            .copied()
    }

    /// A client is gone.
    pub fn detach(&mut self, conn: ConnId) {
        self.attaching.retain(|_, waiting| *waiting != conn);
    }

    /// The session that waits for this read of the group, if that is what it is for.
    pub fn attached(&mut self, context: u64) -> Option<ConnId> {
        self.attaching.remove(&context)
    }

    /// All sessions that wait to attach.
    pub fn take_attaching(&mut self) -> Vec<ConnId> {
        std::mem::take(&mut self.attaching).into_values().collect()
    }
}

impl Node {
    /// Takes a request of a volume that spans nodes on its way.
    pub(crate) fn route(&mut self, id: OpId) {
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        let group = op.group;
        if matches!(op.action, Action::Flush) {
            // Whatever was answered is durable on a majority.
            return self.finish_op(id, Ok(Reply::Done));
        }
        let Some(volume) = self.volumes.get_mut(&group) else {
            return self.fail_op(id, RequestError::Io);
        };
        let route = &mut volume.route;
        if op.mutates() && op.caller.is_none() {
            route.last += 1;
            op.sequence = route.last;
            route.unanswered.insert(op.sequence, id);
        }
        if let (true, Some(caller)) = (op.mutates(), op.caller) {
            route.guests.insert((caller.session, op.sequence), id);
        }
        route.homeless.insert(id, 0);
        self.send_home(group);
    }

    /// Sends homeless requests to where they are carried out.
    pub(crate) fn send_home(&mut self, group: GroupId) {
        let Some(volume) = self.volumes.get(&group) else {
            return;
        };
        let route = &volume.route;
        if route.homeless.is_empty() {
            return;
        }
        let lowest = route.unanswered.keys().next().copied().unwrap_or(0);
        let due = route
            .homeless
            .iter()
            .filter(|(_, from)| **from <= self.ticks);
        let due: Vec<OpId> = due.map(|(id, _)| *id).collect();
        for id in due {
            self.send_one_home(id, group, lowest);
        }
    }

    fn send_one_home(&mut self, id: OpId, group: GroupId, lowest: u64) {
        let (Some(op), Some(volume)) = (self.ops.get(&id), self.volumes.get_mut(&group)) else {
            return;
        };
        let (reads, is_guest, bytes) = (op.reads(), op.caller.is_some(), op.range().bytes());
        let is_held = !is_guest && !reads && op.sequence >= lowest + REQUEST_WINDOW;
        let left = !is_guest && !self.conns.contains_key(&op.conn);
        if left {
            // Nobody waits for it any more, and it need not happen.
            return self.fail_op(id, RequestError::Shutdown);
        }
        if is_held {
            return;
        }
        let reads_here = volume.takes_part() && volume.lock == Lock::Open;
        if reads && !op.is_forwarded && reads_here {
            volume.route.homeless.remove(&id);
            return self.enter(id, bytes, true);
        }
        match self.heading(group) {
            Heading::Here => {
                let full = self.no_room_for(id);
                let waits = full && self.comes_again(id);
                if full && !waits {
                    return self.fail_op(id, RequestError::NoSpace);
                }
                let again = self.ticks + REFUSED_TICKS;
                let Some(volume) = self.volumes.get_mut(&group) else {
                    return;
                };
                if waits {
                    volume.route.homeless.insert(id, again);
                    return;
                }
                volume.route.homeless.remove(&id);
                self.enter(id, bytes, true);
            }
            Heading::Soon => {}
            Heading::There(..) | Heading::Nowhere if is_guest => self.send_back(id),
            Heading::There(place, term) => self.ask_leader(id, group, place, term),
            Heading::Nowhere => self.probe(id, group),
        }
    }

    fn heading(&self, group: GroupId) -> Heading {
        let Some(volume) = self.volumes.get(&group) else {
            return Heading::Nowhere;
        };
        let place = |replica: ReplicaId| self.place_of(replica);
        match &volume.group {
            _ if volume.is_serving() => Heading::Here,
            Some(raft) if matches!(raft.role(), Role::Leader) => Heading::Soon,
            Some(raft) if !volume.removed => match raft.leader().and_then(place) {
                Some(place) => Heading::There(place, raft.term()),
                None => Heading::Nowhere,
            },
            _ => match volume.route.hint {
                Some((term, leader)) => match place(leader) {
                    Some(place) => Heading::There(place, term),
                    None => Heading::Nowhere,
                },
                None => Heading::Nowhere,
            },
        }
    }

    /// Asks another node for a request of a client of this one.
    fn ask_leader(&mut self, id: OpId, group: GroupId, place: Place, term: Term) {
        let (Some(op), Some(volume)) = (self.ops.get(&id), self.volumes.get_mut(&group)) else {
            return;
        };
        let (kind, payload) = match &op.action {
            Action::Write(payload) => (AskKind::Write, vec![payload.clone()]),
            Action::Zeroes { no_hole: false } => (AskKind::Zeroes, Vec::new()),
            Action::Zeroes { no_hole: true } => (AskKind::ZeroesAllocated, Vec::new()),
            Action::Trim => (AskKind::Trim, Vec::new()),
            Action::Read => (AskKind::Read, Vec::new()),
            Action::Status(_) => return self.tell_all_is_data(id),
            Action::Flush => return,
        };
        let ask = Ask {
            group: group.0,
            term: term.0,
            session: self.session.0,
            ask: id,
            sequence: op.sequence,
            behind: volume.route.behind(op.sequence),
            attachment: op.attachment,
            kind: kind.into(),
            offset: op.offset,
            length: op.length,
            at: op.at.map(|stamp| stamp.0),
            crc: wire::crc_of(&payload),
        };
        volume.route.homeless.remove(&id);
        volume.route.away.insert(id, self.ticks);
        self.note_ticking(group);
        self.send_note(place, Note::Ask(ask), payload);
    }

    /// Asks one replica after the other who leads, where this one takes no part any more.
    fn probe(&mut self, id: OpId, group: GroupId) {
        let Some(volume) = self.volumes.get_mut(&group) else {
            return;
        };
        if volume.group.is_some() && !volume.removed {
            return self.note_ticking(group);
        }
        let Some(view) = self.engine.group(group) else {
            return;
        };
        let others = view.meta.membership.voters.iter();
        let others: Vec<ReplicaId> = others
            .filter(|r| **r != view.meta.replica)
            .copied()
            .collect();
        let Some(volume) = self.volumes.get_mut(&group) else {
            return;
        };
        volume.route.probes += 1;
        let chosen = others.get(volume.route.probes % others.len().max(1));
        let chosen = chosen.copied();
        volume.route.homeless.insert(id, self.ticks + REFUSED_TICKS);
        self.note_ticking(group);
        if let Some(place) = chosen.and_then(|replica| self.place_of(replica)) {
            // In a term that never was nothing is carried out, and the answer tells the one that is.
            self.ask_leader(id, group, place, Term(0));
        }
    }

    /// Where this replica knows nothing any more, everything may be data.
    fn tell_all_is_data(&mut self, id: OpId) {
        let Some(op) = self.ops.get(&id) else {
            return;
        };
        let Action::Status(status) = &op.action else {
            return;
        };
        let told = status.everything(op.length);
        self.finish_op(id, Ok(Reply::BlockStatus(told)));
    }

    pub(crate) fn send_note(&mut self, to: Place, note: Note, payloads: Vec<Bytes>) {
        let frame = PeerFrame {
            kind: FrameKind::Door,
            header: note.pack(),
            payloads,
        };
        self.notes.push((to, frame));
    }

    /// Takes a request out of this replica's hands: its leader is another one now, or none. What of it is
    /// still on its way here is nobody's any more.
    pub(crate) fn reroute(&mut self, id: OpId) {
        let Some(op) = self.ops.get(&id) else {
            return;
        };
        let group = op.group;
        if let Some(volume) = self.volumes.get_mut(&group) {
            volume.locked.remove(&id);
            volume.route.forget_read(id);
            volume.read_waits.retain(|(op, _)| *op != id);
            volume.waiting.retain(|op| *op != id);
        }
        if op.caller.is_some() {
            return self.send_back(id);
        }
        let Some(op) = self.ops.remove(&id) else {
            return;
        };
        // Under a new number, so that what comes back of the old one finds nobody.
        let new = self.next_op;
        self.next_op += 1;
        if let Some(volume) = self.volumes.get_mut(&group) {
            volume.route.forget(id, &op);
            if op.sequence > 0 {
                volume.route.unanswered.insert(op.sequence, new);
            }
            volume.route.homeless.insert(new, 0);
        }
        self.turns.left(op.conn, op.inside);
        self.ops.insert(new, op.anew());
        self.dirty.insert(group);
    }

    /// All requests of a volume, but for reads that are with the engine.
    pub(crate) fn reroute_all(&mut self, group: GroupId) {
        let ours = self.ops.iter().filter(|(_, op)| op.group == group);
        let ours: Vec<OpId> = ours.map(|(id, _)| *id).collect();
        for id in ours {
            let reads = self
                .ops
                .get(&id)
                .is_some_and(|op| op.reads() && op.outstanding > 0);
            if !reads {
                self.reroute(id);
            }
        }
    }

    /// The leader of a volume that spans nodes is another one, or none, or this.
    pub(crate) fn leader_changed(&mut self, id: GroupId) {
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        let mut orphans: Vec<OpId> = volume.waiting.drain(..).collect();
        orphans.extend(std::mem::take(&mut volume.locked).into_keys());
        let away = std::mem::take(&mut volume.route.away);
        volume
            .route
            .homeless
            .extend(away.into_keys().map(|id| (id, 0)));
        for (number, reads) in std::mem::take(&mut volume.route.asked) {
            volume.route.unasked.extend(reads);
            if let Some(group) = volume.group.as_mut() {
                group.drop_read(number);
            }
        }
        for op in orphans {
            self.reroute(op);
        }
        self.dirty.insert(id);
    }

    /// Asks the group about reads that it was not asked about, all at once, if there is a leader to ask:
    /// what comes while it is being asked waits for the next time.
    pub(crate) fn ask_for_reads(&mut self, id: GroupId) {
        if !self.is_settling {
            // A lease is judged by a time that was read after the requests had come.
            self.dirty.insert(id);
            return;
        }
        let number = self.next_op;
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        let route = &mut volume.route;
        if route.unasked.is_empty() || route.asked.len() >= READ_QUESTIONS_MAX {
            return;
        }
        let group = volume.group.as_mut();
        if group.is_some_and(|group| group.read_index(self.now, number)) {
            self.next_op += 1;
            let reads = std::mem::take(&mut route.unasked);
            route.asked.insert(number, reads);
            self.dirty.insert(id);
        }
    }

    /// Begins a read where the group must first say how far to see: of a client, or of a session that
    /// attaches.
    pub(crate) fn check_read(&mut self, context: u64, group: GroupId) {
        if let Some(volume) = self.volumes.get_mut(&group) {
            volume.route.unasked.insert(context);
            self.dirty.insert(group);
        }
    }

    /// A session asks for a volume that spans nodes: it is answered once this replica has seen all that
    /// is in force.
    pub(crate) fn attach_later(&mut self, conn: ConnId, group: GroupId) {
        let context = self.next_op;
        self.next_op += 1;
        if let Some(volume) = self.volumes.get_mut(&group) {
            volume.route.attaching.insert(context, conn);
        }
        self.check_read(context, group);
    }

    /// A tick of a volume that spans nodes.
    pub(crate) fn route_tick(&mut self, group: GroupId) {
        let ticks = self.ticks;
        self.forward_late_reads(group);
        let Some(volume) = self.volumes.get_mut(&group) else {
            return;
        };
        let route = &mut volume.route;
        let late = route
            .away
            .iter()
            .filter(|(_, at)| **at + ASK_AGAIN_TICKS <= ticks);
        let late: Vec<OpId> = late.map(|(id, _)| *id).collect();
        for id in late {
            route.away.remove(&id);
            route.homeless.insert(id, 0);
            // Who did not answer may not lead any more.
            route.hint = None;
        }
        if !route.homeless.is_empty() {
            self.dirty.insert(group);
        }
    }

    /// Reads that this replica is too far behind for go to the leader.
    fn forward_late_reads(&mut self, group: GroupId) {
        let Some(volume) = self.volumes.get(&group) else {
            return;
        };
        let waiting = volume.read_waits.iter().map(|(id, _)| *id);
        let waiting = waiting.chain(volume.route.unanswered_reads());
        let late = |id: &OpId| {
            let op = self.ops.get(id).filter(|op| op.caller.is_none());
            op.is_some_and(|op| self.now.since(op.since) >= READ_HERE_TIME)
        };
        let late: Vec<OpId> = waiting.filter(late).collect();
        if late.is_empty() || !matches!(self.heading(group), Heading::There(..)) {
            return;
        }
        for id in late {
            if let Some(op) = self.ops.get_mut(&id) {
                op.is_forwarded = true;
                self.reroute(id);
            }
        }
    }

    /// Another node answers.
    fn answered(&mut self, answer: &Answer, payload: Vec<Bytes>) {
        let (id, group) = (answer.ask, GroupId(answer.group));
        let Some(volume) = self.volumes.get_mut(&group) else {
            return;
        };
        let route = &mut volume.route;
        let awaited = route.away.contains_key(&id) || route.homeless.contains_key(&id);
        let Some(op) = self.ops.get(&id).filter(|_| awaited) else {
            return; // answered before
        };
        let kind = AnswerKind::from_i32(answer.kind).unwrap_or(AnswerKind::Unknown);
        match kind {
            AnswerKind::Done if op.mutates() => self.finish_op(id, Ok(Reply::Done)),
            AnswerKind::Data if op.reads() && wire::crc_of(&payload) == answer.crc => {
                match wire::pieces_of(&answer.runs, &wire::joined(payload), op.length) {
                    Ok(pieces) => self.finish_op(id, Ok(Reply::Data(pieces))),
                    Err(why) => tracing::warn!(group = group.0, why, "answer refused"),
                }
            }
            AnswerKind::NoSpace => self.fail_op(id, RequestError::NoSpace),
            AnswerKind::Failed => self.fail_op_at(id, RequestError::Io, answer.place),
            AnswerKind::Again => {
                let known = (Term(answer.term), ReplicaId(answer.leader));
                let newer = route.hint.is_none_or(|(term, _)| term <= known.0);
                if known.1 .0 != 0 && newer {
                    route.hint = Some(known);
                }
                route.away.remove(&id);
                route.homeless.insert(id, self.ticks + REFUSED_TICKS);
                self.note_ticking(group);
            }
            // It is asked again in a while.
            AnswerKind::Unknown | AnswerKind::Done | AnswerKind::Data => {}
        }
    }

    /// A frame about clients' requests.
    pub(crate) fn door_frame(&mut self, from: Place, frame: PeerFrame) {
        match Note::unpack(&frame.header) {
            Ok(Note::Ask(ask)) => self.asked(from, &ask, frame.payloads),
            Ok(Note::Answer(answer)) if answer.session == self.session.0 => {
                self.answered(&answer, frame.payloads);
            }
            Ok(Note::Answer(_)) => {} // to the process before this one
            Err(why) => tracing::warn!(%from, why, "peer frame refused"),
        }
    }
}

impl Volume {
    /// The request that an ask of another node stands for, while it is carried out.
    fn guest(&self, session: SessionId, sequence: u64) -> Option<OpId> {
        self.route.guests.get(&(session, sequence)).copied()
    }

    /// Whether this replica can tell how far a read must see.
    pub fn takes_part(&self) -> bool {
        let raft = self.group.as_ref();
        self.sink.is_none() && !self.removed && raft.is_some_and(|g: &Group| !g.is_suspended())
    }

    /// Reads of the group that are over: those of requests, and of sessions that attach.
    pub fn take_read_waits(&mut self, applied: RaftIndex) -> Vec<OpId> {
        let (done, rest) = self.read_waits.drain(..).partition(|(_, i)| *i <= applied);
        self.read_waits = rest;
        let done: Vec<(OpId, RaftIndex)> = done;
        done.into_iter().map(|(id, _)| id).collect()
    }
}
