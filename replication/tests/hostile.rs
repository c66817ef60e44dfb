//! Bytes from peers give errors, never panics, and leave the group able to work.

#![allow(clippy::unwrap_used, missing_docs)] // tests

mod harness;

use bytes::Bytes;
use esker_base::{Moment, RaftIndex, ReplicaId};
use esker_replication::{Frame, Group, GroupError, Output, PayloadRef, Role};
use harness::{Cluster, Options, Rng, GROUP};
use prost::Message as _;
use raft::eraftpb::{Entry, Message, MessageType};

fn receive(group: &mut Group, message: &Message, payload: &[u8]) -> Result<(), GroupError> {
    let mut rest = payload;
    let payloads = message
        .entries
        .iter()
        .filter(|e| e.context.len() == 4)
        .map(|e| {
            let length = u32::from_le_bytes(e.context[..].try_into().unwrap());
            let own = rest.len().min(usize::try_from(length).unwrap());
            let (bytes, after) = rest.split_at(own);
            rest = after;
            let (index, crc) = (RaftIndex(e.index), esker_base::checksum::crc32(bytes));
            PayloadRef { index, length, crc }
        });
    let frame = Frame {
        group: GROUP,
        from: ReplicaId(message.from),
        to: ReplicaId(message.to),
        qos_class: 0,
        operation_version: 0,
        request_id: 0,
        trace_id: 0,
        payloads: payloads.filter(|payload| payload.length > 0).collect(),
        message: &message.encode_to_vec(),
    };
    group.receive(
        &frame.encode().unwrap(),
        vec![Bytes::copy_from_slice(payload)],
    )
}

/// A settled cluster, its leader and one follower.
fn cluster(seed: u64) -> (Cluster, u64, u64) {
    let mut cluster = Cluster::new(seed, &[1, 2, 3], Options::default());
    cluster.write_everywhere();
    cluster.run(30);
    let leader = cluster.leader().unwrap();
    (cluster, leader, if leader == 1 { 2 } else { 1 })
}

fn message(kind: MessageType, from: u64, to: u64, term: u64) -> Message {
    Message {
        msg_type: kind as i32,
        from,
        to,
        term,
        ..Message::default()
    }
}

fn entry(index: u64, term: u64) -> Entry {
    Entry {
        index,
        term,
        data: b"d".to_vec(),
        ..Entry::default()
    }
}

fn assert_malformed(result: Result<(), GroupError>) {
    assert!(
        matches!(result, Err(GroupError::Malformed(_))),
        "{result:?}"
    );
}

#[test]
fn each_input_that_makes_raft_rs_panic_is_refused() {
    let (mut cluster, leader, follower) = cluster(1);
    let term = cluster.node(leader).group().term().0;
    let last = cluster.node(follower).group().last_index().0;
    let to_follower = |kind| message(kind, leader, follower, term);
    let to_leader = |kind| message(kind, follower, leader, term);
    let group = cluster.node(follower).group();

    let mut unknown = to_follower(MessageType::MsgHeartbeat);
    unknown.msg_type = 99;
    assert_malformed(receive(group, &unknown, b""));
    for local in [
        MessageType::MsgHup,
        MessageType::MsgBeat,
        MessageType::MsgPropose,
        MessageType::MsgSnapshot,
        MessageType::MsgTransferLeader,
        MessageType::MsgUnreachable,
    ] {
        assert_malformed(receive(group, &to_follower(local), b""));
    }
    let mut heartbeat = to_follower(MessageType::MsgHeartbeat);
    heartbeat.commit = last + 1;
    assert_eq!(
        receive(group, &heartbeat, b""),
        Err(GroupError::CommitBeyondLog {
            known: RaftIndex(last + 1),
            last: RaftIndex(last)
        })
    );
    let mut read = to_follower(MessageType::MsgReadIndexResp);
    (read.term, read.index) = (0, last + 5);
    read.entries = vec![Entry {
        data: vec![0; 16],
        ..Entry::default()
    }];
    assert_malformed(receive(group, &read, b""));
    let mut huge = to_follower(MessageType::MsgHeartbeat);
    huge.term = u64::MAX;
    assert_malformed(receive(group, &huge, b""));

    let mut append = to_follower(MessageType::MsgAppend);
    (append.index, append.log_term) = (last, term);
    append.entries = vec![entry(last + 2, term)];
    assert_malformed(receive(group, &append, b""));
    append.entries = vec![entry(last + 1, term + 1)];
    assert_malformed(receive(group, &append, b""));
    append.entries = vec![Entry {
        entry_type: 7,
        ..entry(last + 1, term)
    }];
    assert_malformed(receive(group, &append, b""));
    append.entries = vec![Entry {
        entry_type: 2,
        data: b"\xff\xff".to_vec(),
        ..entry(last + 1, term)
    }];
    assert_malformed(receive(group, &append, b""));
    append.entries = vec![Entry {
        context: vec![1, 0, 0],
        ..entry(last + 1, term)
    }];
    assert_malformed(receive(group, &append, b""));
    append.entries = vec![Entry {
        context: vec![5, 0, 0, 0],
        ..entry(last + 1, term)
    }];
    let missing = Err(GroupError::Payload(RaftIndex(last + 1)));
    assert_eq!(receive(group, &append, b""), missing);
    assert_eq!(receive(group, &append, b"four"), missing);
    assert_eq!(receive(group, &append, b"sixsix"), missing);
    assert_eq!(group.last_index().0, last, "nothing was taken");
    assert_eq!(receive(group, &append, b"five!"), Ok(()));
    assert_eq!(group.last_index().0, last + 1);
    let third = 6 - leader - follower;
    let rival = message(MessageType::MsgHeartbeat, third, follower, term);
    assert!(matches!(
        receive(group, &rival, b""),
        Err(GroupError::TwoLeaders { .. })
    ));

    let group = cluster.node(leader).group();
    assert_malformed(receive(group, &to_leader(MessageType::MsgReadIndex), b""));
    let mut ack = to_leader(MessageType::MsgAppendResponse);
    ack.index = last + 100;
    assert_malformed(receive(group, &ack, b""));
    (ack.index, ack.request_snapshot) = (last, 1);
    assert_malformed(receive(group, &ack, b""));
    let stranger = message(MessageType::MsgAppendResponse, 9, leader, term);
    assert_eq!(
        receive(group, &stranger, b""),
        Err(GroupError::UnknownPeer(ReplicaId(9)))
    );
    let myself = message(MessageType::MsgAppendResponse, leader, leader, term);
    assert!(matches!(
        receive(group, &myself, b""),
        Err(GroupError::WrongReplica { .. })
    ));
}

/// raft-rs (0.7) lets a late rejection move a probing peer's next index to or below what it has
/// acknowledged; with a truncated log it then wants to send a snapshot.
#[test]
fn a_late_rejection_does_not_move_a_peer_back() {
    let (mut cluster, leader, follower) = cluster(2);
    let term = cluster.node(leader).group().term().0;
    let group = cluster.node(leader).group();
    let matched = group.matched_index(ReplicaId(follower)).unwrap().0;
    group.truncate(group.applied_index());
    group.report_unreachable(ReplicaId(follower));
    let mut rejection = message(MessageType::MsgAppendResponse, follower, leader, term);
    (rejection.index, rejection.reject, rejection.reject_hint) = (matched, true, 0);
    for index in [matched, matched - 1, 0] {
        rejection.index = index;
        receive(group, &rejection, b"").unwrap();
        let mut out = Vec::new();
        group.take_ready(Moment(0), &mut out);
        assert!(
            !out.iter()
                .any(|o| matches!(o, Output::CatchUpNeeded { .. })),
            "{out:?}"
        );
    }
    cluster.write_everywhere();
}

/// Random messages, near to valid ones: whatever the answer, no panic, and what the group says
/// about itself stays in order.
#[test]
fn random_messages_never_panic() {
    for seed in 0..40 {
        let (mut cluster, leader, follower) = cluster(seed);
        let mut rng = Rng::new(seed);
        let term = cluster.node(leader).group().term().0;
        for round in 0..3000 {
            let to = if rng.one_in(2) { leader } else { follower };
            let group = cluster.node(to).group();
            let last = group.last_index().0;
            let near = |rng: &mut Rng, value: u64| match rng.below(8) {
                0 => rng.next(),
                1 => 0,
                2 => value.saturating_sub(rng.below(4)),
                3 => value + rng.below(4),
                _ => value,
            };
            let mut message = Message {
                msg_type: i32::try_from(rng.below(21)).unwrap() - 1,
                from: near(&mut rng, 6 - leader - follower),
                to,
                term: near(&mut rng, term),
                log_term: near(&mut rng, term),
                index: near(&mut rng, last),
                commit: near(&mut rng, last),
                commit_term: near(&mut rng, term),
                reject: rng.one_in(3),
                reject_hint: near(&mut rng, last),
                ..Message::default()
            };
            if rng.one_in(2) {
                for at in 0..rng.below(4) {
                    let mut entry = entry(message.index.wrapping_add(1 + at), message.term);
                    entry.entry_type = if rng.one_in(4) {
                        i32::try_from(rng.below(4)).unwrap()
                    } else {
                        0
                    };
                    if rng.one_in(3) {
                        entry.context = vec![3, 0, 0, 0];
                    }
                    if rng.one_in(6) {
                        entry.data = vec![0; 16];
                    }
                    message.entries.push(entry);
                }
            }
            let _ = receive(
                group,
                &message,
                &b"payloads"[..usize::try_from(rng.below(3)).unwrap() * 3],
            );
            // Outputs are drained without the harness's oracles: a liar may break agreement.
            let mut out = Vec::new();
            let group = cluster.node(to).group();
            group.take_ready(Moment(0), &mut out);
            for output in out {
                match output {
                    Output::Append { ticket, .. } if rng.one_in(2) => {
                        group.on_persisted(ticket);
                    }
                    Output::Committed { entries } => {
                        group.on_applied(entries.last().unwrap().index);
                    }
                    _ => {}
                }
            }
            if round % 5 == 0 {
                group.tick();
            }
            assert!(group.applied_index() <= group.commit_index());
            assert!(group.commit_index() <= group.last_index());
        }
    }
}

/// raft-rs asserts that everything is durable when an election is won, which holds as long as
/// nobody answers a request that was not sent yet.
#[test]
fn votes_nobody_asked_for_do_not_make_a_leader() {
    let (mut cluster, leader, follower) = cluster(3);
    let term = cluster.node(leader).group().term().0;
    let group = cluster.node(follower).group();
    let last = group.last_index().0;
    let mut append = message(MessageType::MsgAppend, leader, follower, term);
    (append.index, append.log_term) = (last, term);
    append.entries = vec![entry(last + 1, term)];
    receive(group, &append, b"").unwrap();
    let mut out = Vec::new();
    group.take_ready(Moment(0), &mut out);
    for _ in 0..20 {
        group.tick();
    }
    assert_eq!(group.role(), Role::PreCandidate);
    for from in [leader, 6 - leader - follower] {
        let vote = message(
            MessageType::MsgRequestPreVoteResponse,
            from,
            follower,
            term + 1,
        );
        receive(group, &vote, b"").unwrap();
        let vote = message(
            MessageType::MsgRequestVoteResponse,
            from,
            follower,
            term + 1,
        );
        receive(group, &vote, b"").unwrap();
    }
    group.take_ready(Moment(0), &mut out);
    assert_ne!(group.role(), Role::Leader);
}
