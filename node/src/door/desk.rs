//! Where a leader takes requests that other nodes have from their clients, and answers them.

use super::wire::{self, Answer, AnswerKind, Ask, AskKind, Note};
use super::Caller;
use crate::keys::Lock;
use crate::node::{Node, Phase};
use crate::volume::{Action, Op, OpId, Volume, NOBODY};
use bytes::Bytes;
use esker_base::num::{to_u64, to_usize};
use esker_base::{limits, GroupId, Place, SessionId, Stamp};
use esker_engine::format::operation::RequestId;
use esker_engine::Known;
use esker_nbd::{Reply, RequestError};
use esker_replication::Role;
use std::cmp::Ordering;

/// Bytes of requests that a node has on their way, past which it takes none of other nodes.
const GUEST_BYTES_MAX: usize = 2 * limits::NODE_BYTES_MAX;
/// The same for their number.
const GUESTS_MAX: usize = 2 * limits::NODE_REQUESTS_MAX;

impl Node {
    /// Another node asks for a request of a client of its own.
    pub(super) fn asked(&mut self, from: Place, ask: &Ask, payloads: Vec<Bytes>) {
        let caller = Caller {
            place: from,
            session: SessionId(ask.session),
            ask: ask.ask,
            behind: ask.behind,
        };
        let group = GroupId(ask.group);
        let Some(action) = action_of(ask, payloads) else {
            tracing::warn!(%from, group = group.0, "peer frame refused: not a request");
            return;
        };
        let mut op = Op::new(NOBODY, group, action, (ask.offset, ask.length), self.now);
        op.at = ask.at.map(Stamp);
        op.caller = Some(caller);
        op.sequence = ask.sequence;
        op.attachment = ask.attachment;
        if op.mutates() == (ask.sequence == 0) || (op.mutates() && op.at.is_some()) {
            tracing::warn!(%from, group = group.0, "peer frame refused: a request with a wrong number");
            return;
        }
        let guest = self
            .volumes
            .get(&group)
            .and_then(|v| v.guest(caller.session, ask.sequence));
        if let Some(known) = guest.and_then(|id| self.ops.get_mut(&id)) {
            known.caller = Some(caller); // it is on its way, and the answer goes to the last who asked
            return;
        }
        let first = RequestId {
            session: caller.session,
            sequence: ask.sequence,
            part: 0,
            behind: Some(ask.behind),
        };
        if op.mutates() && self.engine.knows_request(group, first) == Known::Stale {
            return; // a late copy: it was answered long ago
        }
        let serves = |v: &&Volume| v.spans && op.at.is_none() && v.is_serving();
        let now = self.volumes.get(&group).filter(serves);
        match now.map(|v| ask.attachment.cmp(&v.attachment.number)) {
            // Its node has not heard yet that the session is fenced.
            Some(Ordering::Less) => {
                self.answer_caller(&op, caller, Err(RequestError::Shutdown), None);
            }
            // This one has not applied yet what that node has.
            Some(Ordering::Greater) => self.tell_again(group, caller),
            Some(Ordering::Equal) | None => match self.takes(ask, &op) {
                true => self.submit(op),
                false => self.tell_again(group, caller),
            },
        }
    }

    /// Whether this replica carries a request out.
    fn takes(&self, ask: &Ask, op: &Op) -> bool {
        let Some(volume) = self
            .volumes
            .get(&op.group)
            .filter(|v| v.spans && !v.deleting && v.lock == Lock::Open)
        else {
            return false;
        };
        let Some(raft) = volume
            .group
            .as_ref()
            .filter(|_| self.phase == Phase::Serving)
        else {
            return false;
        };
        let room =
            self.op_bytes + op.bytes_counted <= GUEST_BYTES_MAX && self.ops.len() < GUESTS_MAX;
        let inside = ask.offset.checked_add(ask.length);
        let inside = inside.is_some_and(|end| end <= volume.size_bytes);
        let leads = matches!(raft.role(), Role::Leader) && raft.term().0 == ask.term;
        room && inside && (leads || op.reads())
    }

    fn tell_again(&mut self, group: GroupId, caller: Caller) {
        let raft = self.volumes.get(&group).and_then(|v| v.group.as_ref());
        let answer = Answer {
            kind: AnswerKind::Again.into(),
            term: raft.map_or(0, |raft| raft.term().0),
            leader: raft
                .and_then(|raft| raft.leader())
                .map_or(0, |leader| leader.0),
            ..answer_to(group, caller)
        };
        self.send_note(caller.place, Note::Answer(answer), Vec::new());
    }

    /// A request of another node is not carried out here.
    pub(crate) fn send_back(&mut self, id: OpId) {
        if let Some(op) = self.take_op(id, None) {
            if let Some(caller) = op.caller {
                self.tell_again(op.group, caller);
            }
        }
    }

    /// A request of another node is done, or failed.
    pub(crate) fn answer_caller(
        &mut self,
        op: &Op,
        caller: Caller,
        result: Result<Reply, RequestError>,
        place: Option<u64>,
    ) {
        let mut answer = answer_to(op.group, caller);
        let mut payloads = Vec::new();
        let kind = match result {
            Ok(Reply::Done) => AnswerKind::Done,
            Ok(Reply::Data(pieces)) => {
                (answer.runs, payloads) = wire::runs_of(pieces);
                answer.crc = wire::crc_of(&payloads);
                AnswerKind::Data
            }
            Ok(Reply::BlockStatus(_)) => return, // nobody asks for it
            Err(RequestError::NoSpace) => AnswerKind::NoSpace,
            Err(_) => AnswerKind::Failed,
        };
        answer.kind = kind.into();
        answer.place = place;
        self.send_note(caller.place, Note::Answer(answer), payloads);
    }
}

fn answer_to(group: GroupId, caller: Caller) -> Answer {
    Answer {
        group: group.0,
        session: caller.session.0,
        ask: caller.ask,
        ..Answer::default()
    }
}

/// What is asked for; none when it contradicts itself.
fn action_of(ask: &Ask, payloads: Vec<Bytes>) -> Option<Action> {
    let kind = AskKind::from_i32(ask.kind)?;
    if ask.session == 0 || wire::crc_of(&payloads) != ask.crc {
        return None;
    }
    let payload = wire::joined(payloads);
    let most = to_u64(limits::REQUEST_BYTES_MAX);
    let action = match kind {
        AskKind::Unknown => return None,
        AskKind::Write if ask.length <= most && payload.len() == to_usize(ask.length) => {
            return (ask.length > 0).then_some(Action::Write(payload));
        }
        AskKind::Write => return None,
        AskKind::Read if ask.length > most => return None,
        AskKind::Read => Action::Read,
        AskKind::Zeroes => Action::Zeroes { no_hole: false },
        AskKind::ZeroesAllocated => Action::Zeroes { no_hole: true },
        AskKind::Trim => Action::Trim,
    };
    payload.is_empty().then_some(action)
}
