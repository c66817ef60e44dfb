//! What another node sends: frame headers, and Raft messages that a replica takes. A liar may break
//! agreement; it never makes a replica panic, and what the replica says of itself stays in order.

use crate::nbd_client::to_u64;
use arbitrary::{Arbitrary, Unstructured};
use bytes::Bytes;
use esker_base::checksum::crc32;
use esker_base::{GroupId, Moment, RaftIndex, ReplicaId, Term};
use esker_replication::{
    decode_frame_header, Frame, Group, GroupConfig, GroupError, HardState, Membership, Output,
    PayloadRef, RecoveredGroup,
};
use prost_raft::Message as _;
use raft::eraftpb::{Entry, Message};

const GROUP: GroupId = GroupId(7);
const STEPS_MAX: usize = 200;

/// A frame header, as it is and with its checksum and lengths mended.
pub(crate) fn frame(data: &[u8]) {
    let check = |bytes: &[u8]| {
        if let Ok(frame) = decode_frame_header(bytes) {
            let again = frame.encode().expect("within its limits");
            assert_eq!(again, bytes, "a frame header has one encoding");
            assert_eq!(decode_frame_header(&again), Ok(frame));
        }
    };
    check(data);
    if data.len() >= 72 {
        let mut sealed = data.to_vec();
        sealed[0] = 1;
        sealed[2..4].fill(0);
        sealed[20..24].fill(0);
        // As many payloads as the second byte says and the length allows; the rest is the message.
        let payloads = usize::from(sealed[16]).min((sealed.len() - 72) / 16);
        let message = sealed.len() - 72 - 16 * payloads;
        let number = |n: usize| u32::try_from(n).expect("short").to_le_bytes();
        sealed[12..16].copy_from_slice(&number(message));
        sealed[16..20].copy_from_slice(&number(payloads));
        crate::formats::seal(&mut sealed, 4);
        check(&sealed);
    }
}

/// A number near to one that means something.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Near {
    Same,
    Below(u8),
    Above(u8),
    Any(u64),
}

impl Near {
    fn of(self, value: u64) -> u64 {
        match self {
            Self::Same => value,
            Self::Below(by) => value.saturating_sub(u64::from(by)),
            Self::Above(by) => value.saturating_add(u64::from(by)),
            Self::Any(number) => number,
        }
    }
}

#[derive(Arbitrary, Debug)]
struct LyingEntry<'a> {
    kind: u8,
    index: Near,
    term: Near,
    data: &'a [u8],
    payload_bytes: Option<u8>,
    context: Option<&'a [u8]>,
}

#[derive(Arbitrary, Debug)]
struct LyingMessage<'a> {
    kind: u8,
    from: u8,
    term: Near,
    log_term: Near,
    index: Near,
    commit: Near,
    commit_term: Near,
    reject: bool,
    reject_hint: Near,
    request_snapshot: u8,
    priority: u8,
    context: &'a [u8],
    entries: Vec<LyingEntry<'a>>,
    /// Bytes of payload that are missing.
    missing: u8,
}

#[derive(Arbitrary, Debug)]
enum Happens<'a> {
    Message(LyingMessage<'a>),
    /// Bytes as a Raft message.
    RawMessage(&'a [u8]),
    Tick(u8),
    Persist,
    Apply,
    Propose,
    Read,
    Campaign,
    Truncate,
    Unreachable(u8),
}

struct Replica {
    group: Group,
    tickets: Vec<esker_replication::Ticket>,
    /// Last index handed out as committed and not applied yet.
    to_apply: Option<RaftIndex>,
    wanted: Vec<(RaftIndex, Term)>,
}

/// One replica of three, and what `data` lets happen to it.
pub(crate) fn messages(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let recovered = RecoveredGroup {
        hard_state: HardState {
            term: Term(u64::from(u.arbitrary::<bool>().unwrap_or(true))),
            ..HardState::default()
        },
        membership: Membership::of_voters(&[ReplicaId(1), ReplicaId(2), ReplicaId(3)]),
        suspended: u.arbitrary().unwrap_or(false),
        ..RecoveredGroup::default()
    };
    let config = GroupConfig::new(GROUP, ReplicaId(1), 5);
    let group = Group::new(config, recovered).expect("consistent");
    let mut replica = Replica {
        group,
        tickets: Vec::new(),
        to_apply: None,
        wanted: Vec::new(),
    };
    replica.drain();
    for _ in 0..STEPS_MAX {
        if u.is_empty() {
            return;
        }
        let Ok(happens) = Happens::arbitrary(&mut u) else {
            return;
        };
        if replica.take(&happens).is_err() {
            return;
        }
        replica.drain();
    }
}

impl Replica {
    /// An error ends the replica, as it does in a node: it has lost what it acknowledged.
    fn take(&mut self, happens: &Happens<'_>) -> Result<(), GroupError> {
        match happens {
            Happens::Message(lie) => return self.message(lie),
            Happens::RawMessage(bytes) => {
                let header = header(2, bytes, Vec::new());
                _ = self.group.receive(&header, Vec::new());
            }
            Happens::Tick(count) => (0..count % 32).for_each(|_| self.group.tick()),
            Happens::Persist if !self.tickets.is_empty() => {
                let ticket = self.tickets.remove(0);
                self.group.on_persisted(ticket);
            }
            Happens::Persist => {}
            Happens::Apply => {
                if let Some(index) = self.to_apply.take() {
                    self.group.on_applied(index);
                }
            }
            Happens::Propose => {
                let payload = vec![Bytes::from_static(b"payload")];
                _ = self.group.propose(Bytes::from_static(b"d"), payload);
            }
            Happens::Read => _ = self.group.read_index(Moment(0), 9),
            Happens::Campaign => _ = self.group.campaign(),
            Happens::Truncate => {
                let applied = self.group.applied_index();
                self.group.truncate(applied);
            }
            Happens::Unreachable(who) => {
                self.group.report_unreachable(ReplicaId(u64::from(who % 4)));
            }
        }
        Ok(())
    }

    fn message(&mut self, lie: &LyingMessage<'_>) -> Result<(), GroupError> {
        let (term, last) = (self.group.term().0, self.group.last_index().0);
        let mut message = Message {
            msg_type: i32::from(lie.kind % 21) - 1,
            to: 1,
            from: u64::from(lie.from % 5),
            term: lie.term.of(term),
            log_term: lie.log_term.of(term),
            index: lie.index.of(last),
            commit: lie.commit.of(self.group.commit_index().0),
            commit_term: lie.commit_term.of(term),
            reject: lie.reject,
            reject_hint: lie.reject_hint.of(last),
            request_snapshot: u64::from(lie.request_snapshot / 250),
            priority: i64::from(lie.priority),
            context: lie.context.to_vec(),
            ..Message::default()
        };
        let (mut payload, mut refs) = (Vec::new(), Vec::new());
        for (at, lying) in (1..).zip(&lie.entries) {
            let index = lying.index.of(message.index.wrapping_add(at));
            let length = lying.payload_bytes.unwrap_or(0);
            let own = lying
                .payload_bytes
                .map(|n| u32::from(n).to_le_bytes().to_vec());
            let context = lying.context.map(<[u8]>::to_vec).or(own);
            message.entries.push(Entry {
                entry_type: i32::from(lying.kind % 5),
                index,
                term: lying.term.of(message.term),
                data: lying.data.to_vec(),
                context: context.unwrap_or_default(),
                ..Entry::default()
            });
            if length > 0 {
                let bytes = vec![length; usize::from(length)];
                refs.push(PayloadRef {
                    index: RaftIndex(index),
                    length: u32::from(length),
                    crc: crc32(&bytes),
                });
                payload.extend(bytes);
            }
        }
        let missing = if lie.missing > 250 { 1 } else { 0 };
        payload.truncate(payload.len().saturating_sub(missing));
        let header = header(message.from, &message.encode_to_vec(), refs);
        let pieces = payload.chunks(17).map(Bytes::copy_from_slice).collect();
        match self.group.receive(&header, pieces) {
            Err(lost @ GroupError::CommitBeyondLog { .. }) => Err(lost),
            _ => Ok(()),
        }
    }

    fn drain(&mut self) {
        let mut out = Vec::new();
        self.group.take_ready(Moment(0), &mut out);
        for output in out {
            match output {
                Output::Append {
                    ticket, must_sync, ..
                } if must_sync => self.tickets.push(ticket),
                Output::Committed { entries } => {
                    self.to_apply = entries.last().map(|entry| entry.index).or(self.to_apply);
                }
                Output::Send {
                    to,
                    header,
                    payloads,
                } => {
                    let frame = decode_frame_header(&header).expect("our own frame");
                    assert_eq!((frame.to, frame.from), (to, ReplicaId(1)));
                    let bytes: usize = payloads.iter().map(Bytes::len).sum();
                    assert_eq!(frame.payload_bytes(), to_u64(bytes));
                }
                Output::NeedPayload { index, term } => self.wanted.push((index, term)),
                _ => {}
            }
        }
        for (index, term) in std::mem::take(&mut self.wanted) {
            self.group.payload_loaded(index, term, Err(()));
        }
        let group = &self.group;
        assert!(group.applied_index() <= group.commit_index());
        assert!(group.commit_index() <= group.last_index());
    }
}

fn header(from: u64, message: &[u8], payloads: Vec<PayloadRef>) -> Bytes {
    let frame = Frame {
        group: GROUP,
        from: ReplicaId(from),
        to: ReplicaId(1),
        qos_class: 0,
        operation_version: 0,
        request_id: 0,
        trace_id: 0,
        payloads,
        message,
    };
    frame.encode().expect("within its limits")
}
