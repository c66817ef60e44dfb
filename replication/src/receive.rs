//! Messages from peers: what raft-rs would panic over, or must not see, is refused here.
//!
//! raft-rs trusts its peers. Inputs that make it panic, and where they are stopped:
//!
//! | input | raft-rs | here |
//! |---|---|---|
//! | unknown message, entry or change type | accessor panics | `check_shape` |
//! | proposal without entries, read without an entry | `fatal!`, index out of bounds | `check_shape` |
//! | transfer or read with a term, forwarded by a follower | `fatal!` in `send` | `check_shape`, `admit` |
//! | heartbeat whose commit lies beyond the log | `fatal!` in `commit_to` | `admit` |
//! | read answer with term 0 and an index beyond the log | `fatal!` in `commit_to` | `check_shape` |
//! | acknowledgement beyond the leader's log | wrong `matched`: unsafe commit | `admit` |
//! | entries out of sequence | wrong log, later panics | `check_entries` |
//! | snapshot, request for one | restores, stops replicating | `check_shape` |
//! | vote answer nobody asked for, entries not durable | assertion in `become_leader` | `admit` |
//! | numbers near 2^64 | overflow | `check_shape` |

use crate::codec::{decode_frame_header, split_payloads, Frame, PayloadRef};
use crate::error::GroupError;
use crate::group::{Group, READS_PENDING_MAX};
use crate::payload::{ENTRY_DATA_BYTES_MAX, ENTRY_PAYLOAD_BYTES_MAX};
use crate::recovery::NUMBER_MAX;
use crate::types::{payload_length, EntryKind};
use bytes::Bytes;
use esker_base::num::to_u64;
use esker_base::{RaftIndex, ReplicaId, Term};
use prost::Message as _;
use raft::eraftpb::{
    ConfChange, ConfChangeTransition, ConfChangeType, ConfChangeV2, Entry, Message, MessageType,
};
use raft::StateRole;

/// Length of a read's identity: replica id and a number.
const READ_IDENTITY_BYTES: usize = 16;

impl Group {
    /// Takes a peer's frame: its header, and the payload pieces that followed it, chunked in any
    /// way. The pieces become the payloads of entries without being copied.
    ///
    /// # Errors
    /// [`GroupError`]: the frame was refused and changed nothing. A frame that Raft has no use for
    /// (stale, duplicate, a vote request during the vote grace) is not an error.
    pub fn receive(&mut self, frame_header: &[u8], payloads: Vec<Bytes>) -> Result<(), GroupError> {
        let frame = decode_frame_header(frame_header)?;
        let me = self.config.replica;
        if frame.group != self.config.group {
            return Err(GroupError::WrongGroup(frame.group));
        }
        if frame.to != me || frame.from == me || frame.from.0 == 0 {
            return Err(GroupError::WrongReplica {
                from: frame.from,
                to: frame.to,
            });
        }
        let message = Message::decode(frame.message)
            .map_err(|_| GroupError::Malformed("not a Raft message"))?;
        let kind = check_shape(&message, &frame)?;
        let payloads = split_payloads(&frame.payloads, payloads)?;
        if self.admit(&message, kind)? {
            self.step(message, kind, &frame.payloads, payloads)?;
        }
        Ok(())
    }

    /// Checks a message against this replica's state. `Ok(false)`: dropped, and rightly so.
    fn admit(&mut self, message: &Message, kind: MessageType) -> Result<bool, GroupError> {
        let from = ReplicaId(message.from);
        let alone = self.is_single_voter();
        let raft = &self.raw.raft;
        let member = raft.prs().get(message.from).is_some();
        // Appends, heartbeats and vote requests may come from replicas this one has not heard of
        // yet: its membership may be behind. Not when it is the only voter: then nobody leads or
        // campaigns without it.
        if !member && (alone || is_response(kind)) {
            return Err(GroupError::UnknownPeer(from));
        }
        let log = &raft.raft_log;
        let last = log.last_index();
        match kind {
            MessageType::MsgAppend if self.log_stopped || self.log_held => Ok(false),
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => {
                let promised = self.grace_ticks_left > 0 && !alone;
                // raft-rs checks that, too, while it knows whom it follows.
                let is_asked_to = *message.context == *raft::CAMPAIGN_TRANSFER;
                let newer = message.term >= raft.term && !is_asked_to;
                let follows = newer && !alone && self.has_promised();
                Ok(!promised && !follows && self.suspension.is_none())
            }
            MessageType::MsgTimeoutNow => {
                let promised = self.grace_ticks_left > 0 || self.suspension.is_some();
                Ok(!promised && !alone && message.from == raft.leader_id)
            }
            MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse => {
                // Requests leave when everything before them is durable; answers can't be earlier.
                Ok(self.all_durable())
            }
            MessageType::MsgAppend | MessageType::MsgHeartbeat => {
                let same_term = message.term == raft.term;
                let other = raft.leader_id != 0 && raft.leader_id != message.from;
                if same_term && other {
                    return Err(GroupError::TwoLeaders {
                        term: Term(raft.term),
                        other: from,
                    });
                }
                let current = message.term >= raft.term;
                if kind == MessageType::MsgHeartbeat && current && message.commit > last {
                    let known = RaftIndex(message.commit);
                    return Err(GroupError::CommitBeyondLog {
                        known,
                        last: RaftIndex(last),
                    });
                }
                Ok(true)
            }
            MessageType::MsgAppendResponse if self.leads() && message.term == raft.term => {
                if !message.reject && message.index > last {
                    return Err(GroupError::Malformed("acknowledgement beyond the log"));
                }
                let matched = raft.prs().get(message.from).map_or(0, |pr| pr.matched);
                // A rejection at or below what was acknowledged is old. raft-rs notices that only
                // while replicating; while probing it would move `next_idx` below `matched`.
                Ok(!message.reject || message.index > matched)
            }
            MessageType::MsgReadIndex => {
                let waiting = raft.pending_read_count() + self.questions.len();
                Ok(self.leads() && waiting < READS_PENDING_MAX)
            }
            MessageType::MsgReadIndexResp => Ok(raft.state == StateRole::Follower),
            _ => Ok(true),
        }
    }

    fn step(
        &mut self,
        message: Message,
        kind: MessageType,
        refs: &[PayloadRef],
        payloads: Vec<Vec<Bytes>>,
    ) -> Result<(), GroupError> {
        let from = message.from;
        let as_leader = self.leads() && message.term == self.raw.raft.term;
        let (index, reject) = (message.index, message.reject);
        let last_entry = message.entries.last().map(|entry| entry.index);
        let terms: Vec<u64> = message.entries.iter().map(|entry| entry.term).collect();
        let first_entry = message.entries.first().map_or(0, |entry| entry.index);
        if as_leader && kind == MessageType::MsgHeartbeatResponse {
            self.notice_caught_up(from, message.commit);
        }
        if is_response(kind) {
            self.heard.insert(from, self.ticks);
        }
        if kind == MessageType::MsgReadIndex {
            // What it is answered with depends on the time, which `take_ready` is given.
            self.questions.push(message);
            return Ok(());
        }
        let leads_us = matches!(kind, MessageType::MsgAppend | MessageType::MsgHeartbeat);
        if leads_us && message.term >= self.raw.raft.term {
            self.followed = Some(self.ticks);
        }
        let stepped = self.raw.step(message);
        if kind == MessageType::MsgAppend && last_entry.is_some() {
            // What raft-rs took is in its unstable part, from where it goes to `Output::Append`.
            let unstable = self.raw.raft.raft_log.unstable();
            let offset = unstable.offset;
            let taken =
                |index: u64, term: u64| index >= offset && unstable.maybe_term(index) == Some(term);
            for (payload, pieces) in refs.iter().zip(payloads) {
                let at = payload.index.0;
                let term = usize::try_from(at - first_entry)
                    .ok()
                    .and_then(|i| terms.get(i));
                if let Some(&term) = term.filter(|term| taken(at, **term)) {
                    self.payloads.insert(at, term, pieces);
                }
            }
            self.payloads
                .truncate_from(self.raw.raft.raft_log.last_index() + 1);
        }
        let mut lost = false;
        if as_leader && self.leads() {
            match kind {
                MessageType::MsgAppendResponse if reject => self.peers.on_rejected(from),
                MessageType::MsgAppendResponse => {
                    self.peers.on_acknowledged(from, index, self.ticks);
                }
                MessageType::MsgHeartbeatResponse => {
                    lost = !self.peers.on_heartbeat_answered(from, index, self.ticks);
                }
                _ => {}
            }
        }
        if lost {
            self.raw.report_unreachable(from);
            self.begin_behind(from, index);
        }
        self.settle();
        match stepped {
            Ok(()) | Err(raft::Error::ProposalDropped) => Ok(()),
            Err(raft::Error::StepPeerNotFound) => Err(GroupError::UnknownPeer(ReplicaId(from))),
            Err(_) => Err(GroupError::Malformed("refused by raft-rs")),
        }
    }
}

impl Group {
    /// The next entry for a peer that is probed is the one behind what it has received: only that is lost. When its log differs
    /// there it refuses, and says where to begin.
    fn begin_behind(&mut self, peer: u64, received: u64) {
        let last = self.raw.raft.raft_log.last_index();
        if let Some(progress) = self.raw.raft.mut_prs().get_mut(peer) {
            if received > progress.matched && received <= last {
                progress.next_idx = received + 1;
            }
        }
    }

    /// A peer whose next entry was truncated is never probed again by raft-rs, which waits for a
    /// snapshot to be taken. It may hold more than it has acknowledged or knows to be committed,
    /// though: what it answered was lost, or it caught up by versions. So it is asked, with every
    /// heartbeat it answers, whether it holds the cut point, and goes on from there if it does.
    fn notice_caught_up(&mut self, peer: u64, commit: u64) {
        let (first, last) = (
            self.raw.store().first(),
            self.raw.raft.raft_log.last_index(),
        );
        if let Some(progress) = self.raw.raft.mut_prs().get_mut(peer) {
            if progress.next_idx < first && commit <= last {
                progress.next_idx = first.max(commit + 1);
            }
        }
    }
}

fn is_response(kind: MessageType) -> bool {
    matches!(
        kind,
        MessageType::MsgAppendResponse
            | MessageType::MsgHeartbeatResponse
            | MessageType::MsgRequestVoteResponse
            | MessageType::MsgRequestPreVoteResponse
            | MessageType::MsgReadIndexResp
            | MessageType::MsgReadIndex
            | MessageType::MsgTimeoutNow
    )
}

/// Checks everything about a message that does not depend on this replica's state.
fn check_shape(message: &Message, frame: &Frame<'_>) -> Result<MessageType, GroupError> {
    let fail = |why| Err(GroupError::Malformed(why));
    let Some(kind) = MessageType::from_i32(message.msg_type) else {
        return fail("unknown message type");
    };
    if message.from != frame.from.0 || message.to != frame.to.0 {
        return fail("message and frame name different replicas");
    }
    let numbers = [
        message.term,
        message.log_term,
        message.index,
        message.commit,
        message.commit_term,
        message.reject_hint,
    ];
    if numbers.iter().any(|number| *number > NUMBER_MAX) {
        return fail("a number is out of range");
    }
    if message.snapshot.is_some() || message.request_snapshot != 0 {
        return fail("snapshots are not used");
    }
    if message.priority != 0 || message.deprecated_priority != 0 {
        return fail("priorities are not used");
    }
    if message.context.len() > 64 {
        return fail("context too long");
    }
    let (entries, with_term) = match kind {
        MessageType::MsgAppend => (None, true),
        MessageType::MsgReadIndex => (Some(1), false),
        MessageType::MsgReadIndexResp => (Some(1), true),
        MessageType::MsgAppendResponse
        | MessageType::MsgRequestVote
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse
        | MessageType::MsgHeartbeat
        | MessageType::MsgHeartbeatResponse
        | MessageType::MsgTimeoutNow => (Some(0), true),
        // Local to a replica, or never sent by one of ours.
        MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgCheckQuorum
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgSnapshot
        | MessageType::MsgPropose
        | MessageType::MsgTransferLeader => return fail("message type not for peers"),
    };
    if with_term != (message.term != 0) {
        return fail("term");
    }
    match entries {
        None => check_entries(message, &frame.payloads)?,
        Some(count) => {
            if message.entries.len() != count || !frame.payloads.is_empty() {
                return fail("entries or payloads where none belong");
            }
            if message
                .entries
                .iter()
                .any(|entry| entry.data.len() != READ_IDENTITY_BYTES)
            {
                return fail("read identity");
            }
            if message
                .entries
                .iter()
                .any(|entry| EntryKind::from_raft(entry.entry_type).is_none())
            {
                return fail("unknown entry type");
            }
        }
    }
    Ok(kind)
}

/// Checks that entries follow the message's position without a gap, in rising terms, and that the
/// payload list names exactly those with a payload.
fn check_entries(message: &Message, payloads: &[PayloadRef]) -> Result<(), GroupError> {
    let fail = |why| Err(GroupError::Malformed(why));
    if (message.index == 0) != (message.log_term == 0) || message.log_term > message.term {
        // A leader's log has no entry 0 and no term 0 but the empty start.
        return fail("append position");
    }
    let mut payloads = payloads.iter();
    let (mut index, mut term) = (message.index, message.log_term.max(1));
    for entry in &message.entries {
        index += 1;
        if entry.index != index {
            return fail("entries out of sequence");
        }
        if entry.term < term || entry.term > message.term {
            return fail("entry terms");
        }
        term = entry.term;
        check_entry(entry)?;
        let Some(length) = payload_length(entry) else {
            return fail("entry context");
        };
        if length == 0 {
            continue;
        }
        if usize::try_from(length).map_or(true, |length| length > ENTRY_PAYLOAD_BYTES_MAX) {
            return fail("payload too long");
        }
        let announced = payloads
            .next()
            .map(|payload| (payload.index, payload.length));
        if announced != Some((RaftIndex(index), length)) {
            return Err(GroupError::Payload(RaftIndex(index)));
        }
    }
    match payloads.next() {
        Some(payload) => Err(GroupError::Payload(payload.index)),
        None => Ok(()),
    }
}

fn check_entry(entry: &Entry) -> Result<(), GroupError> {
    let fail = |why| Err(GroupError::Malformed(why));
    let Some(kind) = EntryKind::from_raft(entry.entry_type) else {
        return fail("unknown entry type");
    };
    if to_u64(entry.data.len()) > to_u64(ENTRY_DATA_BYTES_MAX) {
        return fail("descriptor too long");
    }
    match kind {
        EntryKind::Normal => Ok(()),
        _ if !entry.context.is_empty() => fail("membership change with a payload"),
        _ if decode_change(kind, &entry.data).is_none() => fail("membership change"),
        _ => Ok(()),
    }
}

/// The membership change in an entry's data, or `None` when raft-rs would not understand it.
pub(crate) fn decode_change(kind: EntryKind, data: &[u8]) -> Option<ConfChangeV2> {
    let known_type = |kind| ConfChangeType::from_i32(kind).is_some();
    match kind {
        EntryKind::Normal => None,
        EntryKind::ConfChange => {
            let change = ConfChange::decode(data)
                .ok()
                .filter(|c| known_type(c.change_type))?;
            Some(raft_change(change))
        }
        EntryKind::ConfChangeV2 => {
            let change = ConfChangeV2::decode(data).ok()?;
            ConfChangeTransition::from_i32(change.transition)?;
            change
                .changes
                .iter()
                .all(|single| known_type(single.change_type))
                .then_some(change)
        }
    }
}

fn raft_change(change: ConfChange) -> ConfChangeV2 {
    let single = raft::eraftpb::ConfChangeSingle {
        change_type: change.change_type,
        node_id: change.node_id,
    };
    ConfChangeV2 {
        changes: vec![single],
        ..ConfChangeV2::default()
    }
}
