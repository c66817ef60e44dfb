//! What may leave, and what counts, before it is durable: single replicas fed by hand.

#![allow(clippy::unwrap_used, missing_docs)] // tests

mod harness;

use bytes::Bytes;
use esker_base::{Moment, RaftIndex, ReplicaId};
use esker_replication::{
    decode_frame_header, Frame, Group, GroupConfig, GroupError, Membership, Output, PayloadRef,
    RecoveredGroup, Role, Ticket,
};
use harness::{small, Cluster, Options, GROUP};
use prost::Message as _;
use raft::eraftpb::{Entry, Message, MessageType};

fn replica(id: u64, seed: u64, membership: Membership) -> Group {
    let recovered = RecoveredGroup {
        membership,
        ..RecoveredGroup::default()
    };
    Group::new(GroupConfig::new(GROUP, ReplicaId(id), seed), recovered).unwrap()
}

fn three() -> Membership {
    Membership::of_voters(&[ReplicaId(1), ReplicaId(2), ReplicaId(3)])
}

fn one_and_a_learner() -> Membership {
    Membership {
        learners: vec![ReplicaId(2)],
        ..Membership::of_voters(&[ReplicaId(1)])
    }
}

fn ready(group: &mut Group) -> Vec<Output> {
    let mut out = Vec::new();
    group.take_ready(Moment(0), &mut out);
    out
}

fn tickets(out: &[Output]) -> Vec<Ticket> {
    let synced = |o: &Output| match o {
        Output::Append {
            ticket,
            must_sync: true,
            ..
        } => Some(*ticket),
        _ => None,
    };
    out.iter().filter_map(synced).collect()
}

fn sent(out: &[Output]) -> Vec<Message> {
    let message = |o: &Output| match o {
        Output::Send { header, .. } => {
            Some(Message::decode(decode_frame_header(header).unwrap().message).unwrap())
        }
        _ => None,
    };
    out.iter().filter_map(message).collect()
}

fn commits(out: &[Output]) -> bool {
    out.iter().any(|o| matches!(o, Output::Committed { .. }))
}

fn entry(index: u64, term: u64, payload: u32) -> Entry {
    let context = if payload == 0 {
        vec![]
    } else {
        payload.to_le_bytes().to_vec()
    };
    Entry {
        index,
        term,
        context,
        data: b"d".to_vec(),
        ..Entry::default()
    }
}

/// An append to replica 2; each payload is filled with its entry's term.
fn append(
    group: &mut Group,
    from: u64,
    term: u64,
    at: (u64, u64),
    commit: u64,
    entries: Vec<Entry>,
) {
    let (mut refs, mut payload) = (Vec::new(), Vec::new());
    for entry in entries.iter().filter(|e| !e.context.is_empty()) {
        let length = u32::from_le_bytes(entry.context[..].try_into().unwrap());
        let bytes = vec![entry.term.to_le_bytes()[0]; usize::try_from(length).unwrap()];
        let (index, crc) = (RaftIndex(entry.index), esker_base::checksum::crc32(&bytes));
        refs.push(PayloadRef { index, length, crc });
        payload.extend_from_slice(&bytes);
    }
    let message = Message {
        msg_type: MessageType::MsgAppend as i32,
        from,
        to: 2,
        term,
        index: at.0,
        log_term: at.1,
        commit,
        entries,
        ..Message::default()
    };
    let frame = Frame {
        group: GROUP,
        from: ReplicaId(from),
        to: ReplicaId(2),
        qos_class: 0,
        operation_version: 0,
        request_id: 0,
        trace_id: 0,
        payloads: refs,
        message: &message.encode_to_vec(),
    };
    group
        .receive(&frame.encode().unwrap(), vec![payload.into()])
        .unwrap();
}

/// An entry is written, rewritten by another leader and written again by the first, all before
/// the first write is durable. raft-rs sees the entry it waits for in the mirror and takes it for
/// durable when the first write is; the disk could still come back with the second.
#[test]
fn an_entry_that_is_rewritten_in_flight_is_durable_only_with_the_last_write() {
    let mut group = replica(2, 1, three());
    append(&mut group, 1, 1, (0, 0), 0, vec![entry(1, 1, 0)]);
    let first = tickets(&ready(&mut group));
    append(&mut group, 3, 2, (0, 0), 0, vec![entry(1, 2, 0)]);
    let second = tickets(&ready(&mut group));
    append(
        &mut group,
        1,
        3,
        (0, 0),
        0,
        vec![entry(1, 1, 0), entry(2, 3, 0)],
    );
    append(&mut group, 1, 3, (2, 3), 2, vec![]);
    let third = tickets(&ready(&mut group));
    assert_eq!((first.len(), second.len(), third.len()), (1, 1, 1));
    group.on_persisted(first[0]);
    assert!(
        !commits(&ready(&mut group)),
        "the second write is still to come"
    );
    group.on_persisted(second[0]);
    let out = ready(&mut group);
    assert!(!commits(&out));
    let acknowledged =
        |m: &Message| m.term == 3 && m.msg_type == MessageType::MsgAppendResponse as i32;
    assert!(!sent(&out).iter().any(acknowledged));
    group.on_persisted(third[0]);
    let out = ready(&mut group);
    assert!(commits(&out));
    assert!(sent(&out).iter().any(|m| acknowledged(m) && m.index == 2));
}

/// A payload belongs to an entry, not to an index: a late message of an old leader must not
/// replace the payload of an entry that was not handed out yet.
#[test]
fn a_late_payload_does_not_replace_the_one_of_the_entry_taken() {
    let mut group = replica(2, 1, three());
    append(&mut group, 1, 2, (0, 0), 0, vec![entry(1, 2, 8)]);
    append(&mut group, 3, 1, (0, 0), 0, vec![entry(1, 1, 8)]);
    // And a conflicting one replaces entry and payload, those after it included.
    append(
        &mut group,
        1,
        2,
        (1, 2),
        0,
        vec![entry(2, 2, 4), entry(3, 2, 4)],
    );
    append(&mut group, 3, 3, (1, 2), 0, vec![entry(2, 3, 16)]);
    let out = ready(&mut group);
    let appended: Vec<_> = out
        .iter()
        .filter_map(|o| match o {
            Output::Append { entries, .. } => Some(entries.clone()),
            _ => None,
        })
        .flatten()
        .map(|(e, p)| (e.index.0, e.term.0, p.concat()))
        .collect();
    assert_eq!(appended, [(1, 2, vec![2; 8]), (2, 3, vec![3; 16])]);
}

/// A single voter leads at once, before its term is durable. What it sent to a learner in that
/// term must not come back with other content after a crash.
#[test]
fn a_leader_of_one_voter_speaks_to_its_learner_only_when_its_term_is_durable() {
    let mut group = replica(1, 1, one_and_a_learner());
    group.campaign().unwrap();
    group
        .propose("d".into(), vec![Bytes::from_static(b"payload")])
        .unwrap();
    let out = ready(&mut group);
    assert!(sent(&out).is_empty(), "{out:?}");
    group.on_persisted(*tickets(&out).last().unwrap());
    assert!(!sent(&ready(&mut group)).is_empty());
}

/// A learner can be in a higher term (it was suspended): the single voter steps down with entries
/// in flight, and raft-rs panics when it wins the next election before they are durable.
#[test]
fn a_deposed_single_voter_campaigns_only_when_its_entries_are_durable() {
    let mut group = replica(1, 1, one_and_a_learner());
    group.campaign().unwrap();
    let opening = tickets(&ready(&mut group));
    group.on_persisted(opening[0]);
    ready(&mut group);
    group.propose("d".into(), vec![]).unwrap();
    let written = tickets(&ready(&mut group));
    let message = Message {
        msg_type: MessageType::MsgAppendResponse as i32,
        from: 2,
        to: 1,
        term: 9,
        ..Message::default()
    };
    let frame = Frame {
        group: GROUP,
        from: ReplicaId(2),
        to: ReplicaId(1),
        qos_class: 0,
        operation_version: 0,
        request_id: 0,
        trace_id: 0,
        payloads: vec![],
        message: &message.encode_to_vec(),
    };
    group.receive(&frame.encode().unwrap(), vec![]).unwrap();
    let higher = tickets(&ready(&mut group));
    assert_eq!(group.role(), Role::Follower { leader: None });
    assert!(matches!(
        group.campaign(),
        Err(GroupError::CannotCampaign(_))
    ));
    for _ in 0..60 {
        group.tick();
        ready(&mut group);
    }
    assert_eq!(group.role(), Role::Follower { leader: None });
    group.on_persisted(written[0]);
    group.on_persisted(higher[0]);
    ready(&mut group);
    for _ in 0..20 {
        group.tick();
    }
    assert_eq!(group.role(), Role::Leader);
}

/// An answer to a read of an earlier life must not serve a read of this one.
#[test]
fn reads_of_two_lives_have_different_identities() {
    let identity = |seed| {
        let mut group = replica(2, seed, three());
        append(&mut group, 1, 1, (0, 0), 0, vec![]);
        let out = ready(&mut group);
        group.on_persisted(tickets(&out)[0]);
        ready(&mut group);
        assert!(group.read_index(Moment(0), 5));
        let out = sent(&ready(&mut group));
        assert_eq!(out[0].msg_type, MessageType::MsgReadIndex as i32);
        out[0].entries[0].data.clone()
    };
    assert_ne!(identity(1), identity(2));
}

/// Everything in flight is lost while the budget is full and more waits: no acknowledgement will
/// ever free it.
#[test]
fn a_full_budget_whose_messages_were_lost_is_freed() {
    for inflight_messages_max in [4usize, 2000] {
        let tweak: fn(&mut GroupConfig) = if inflight_messages_max == 4 {
            small
        } else {
            |config| {
                small(config);
                config.inflight_messages_max = 2000;
                config.uncommitted_bytes_max = 1 << 20;
            }
        };
        let mut cluster = Cluster::new(
            11,
            &[1, 2, 3],
            Options {
                tweak,
                ..Options::default()
            },
        );
        cluster.write_everywhere();
        let leader = cluster.leader().unwrap();
        let away = if leader == 1 { 2 } else { 1 };
        cluster.isolate(away);
        for _ in 0..700 {
            cluster.propose(leader);
            cluster.deliver();
            cluster.now += 1;
            for id in 1..=3 {
                cluster.sync(id, 9);
            }
        }
        cluster.cut.clear();
        // Only heartbeats: nothing new is proposed.
        let last = cluster.node(leader).group().last_index();
        cluster.run_until(6000, |c| {
            c.node(leader)
                .group()
                .matched_index(ReplicaId(away))
                .is_none_or(|m| m >= last)
        });
        assert!(cluster.nodes[&leader].leads());
        cluster.write_everywhere();
        cluster.assert_converged();
    }
}
