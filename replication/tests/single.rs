//! A group of one: no messages, no ticks, and a durable tail that commits after a restart.

#![allow(clippy::unwrap_used, missing_docs)] // tests

mod harness;

use bytes::Bytes;
use esker_base::{Moment, RaftIndex, ReplicaId, Term};
use esker_replication::{
    Group, GroupConfig, GroupError, HardState, Membership, Output, ProposeError, RecoveredGroup,
    Role, Ticket,
};
use harness::{Disk, GROUP};

fn config(seed: u64) -> GroupConfig {
    GroupConfig::new(GROUP, ReplicaId(1), seed)
}

fn fresh() -> RecoveredGroup {
    RecoveredGroup {
        membership: Membership::of_voters(&[ReplicaId(1)]),
        ..RecoveredGroup::default()
    }
}

fn ready(group: &mut Group) -> Vec<Output> {
    let mut out = Vec::new();
    group.take_ready(Moment(0), &mut out);
    assert!(
        !out.iter().any(|o| matches!(o, Output::Send { .. })),
        "nobody to talk to"
    );
    out
}

fn appends(out: &[Output]) -> Vec<Ticket> {
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

fn committed(out: &[Output]) -> Vec<u64> {
    let of = |o: &Output| match o {
        Output::Committed { entries } => entries.iter().map(|e| e.index.0).collect(),
        _ => Vec::new(),
    };
    out.iter().flat_map(of).collect()
}

#[test]
fn propose_append_persist_commit() {
    let mut group = Group::new(config(1), fresh()).unwrap();
    assert!(group.needs_tick());
    group.campaign().unwrap();
    assert_eq!(group.role(), Role::Leader);
    assert!(!group.needs_tick(), "an idle group of one sleeps");
    let out = ready(&mut group);
    let Output::Append {
        hard_state: Some(hard_state),
        ..
    } = &out[1]
    else {
        panic!("{out:?}")
    };
    assert_eq!((hard_state.term, hard_state.vote), (Term(1), ReplicaId(1)));
    let [opening] = appends(&out)[..] else {
        panic!("{out:?}")
    };
    let pieces = vec![Bytes::from(vec![1; 4096]), Bytes::from(vec![2; 4096])];
    let proposed = group.propose("d".into(), pieces.clone()).unwrap();
    assert_eq!((proposed.term, proposed.index), (Term(1), RaftIndex(2)));
    let out = ready(&mut group);
    let [write] = appends(&out)[..] else {
        panic!("{out:?}")
    };
    let Output::Append { entries, .. } = &out[0] else {
        panic!("{out:?}")
    };
    assert_eq!(
        (entries[0].0.payload_length, &entries[0].1),
        (8192, &pieces)
    );
    assert_eq!(group.payload_bytes_held(), 0, "no reference is kept");
    assert!(committed(&out).is_empty());
    group.on_persisted(opening);
    assert_eq!(committed(&ready(&mut group)), [1]);
    assert_eq!(group.uncommitted_bytes(), 8193);
    group.on_persisted(write);
    let out = ready(&mut group);
    assert_eq!(committed(&out), [2]);
    assert!(
        appends(&out).is_empty(),
        "the commit index alone needs no sync"
    );
    assert_eq!(group.uncommitted_bytes(), 0);
    group.on_applied(RaftIndex(2));
    assert_eq!(group.truncate(RaftIndex(9)), RaftIndex(3));
    assert!(group.read_index(Moment(0), 77));
    let out = ready(&mut group);
    assert!(matches!(
        out[..],
        [Output::ReadReady {
            context: 77,
            index: RaftIndex(2)
        }]
    ));
}

#[test]
fn a_batch_of_proposals_is_one_append_and_one_sync_covers_many() {
    let mut group = Group::new(config(1), fresh()).unwrap();
    group.campaign().unwrap();
    let mut tickets = appends(&ready(&mut group));
    for _ in 0..32 {
        group.propose("d".into(), vec![]).unwrap();
    }
    let out = ready(&mut group);
    assert_eq!(out.len(), 1);
    tickets.extend(appends(&out));
    group.propose("d".into(), vec![]).unwrap();
    tickets.extend(appends(&ready(&mut group)));
    group.on_persisted(*tickets.last().unwrap());
    assert_eq!(committed(&ready(&mut group)), (1..=34).collect::<Vec<_>>());
}

#[test]
fn a_durable_tail_commits_after_a_restart() {
    let mut disk = Disk {
        membership: fresh().membership,
        ..Disk::default()
    };
    let mut group = Group::new(config(1), fresh()).unwrap();
    group.campaign().unwrap();
    for _ in 0..3 {
        group
            .propose("d".into(), vec![Bytes::from_static(b"payload")])
            .unwrap();
    }
    for output in ready(&mut group) {
        if let Output::Append {
            entries,
            hard_state,
            ..
        } = output
        {
            for (entry, pieces) in entries {
                disk.entries.insert(entry.index.0, (entry, pieces.concat()));
            }
            disk.hard_state = hard_state.unwrap_or(disk.hard_state);
        }
    }
    // Durable, never reported as such: the process died. The commit index on disk is still 0.
    assert_eq!(disk.hard_state.commit, RaftIndex(0));
    let mut group = Group::new(config(2), disk.recovered()).unwrap();
    assert!(committed(&ready(&mut group)).is_empty());
    group.campaign().unwrap();
    assert_eq!(group.term(), Term(2));
    let out = ready(&mut group);
    group.on_persisted(*appends(&out).last().unwrap());
    assert_eq!(committed(&ready(&mut group)), [1, 2, 3, 4, 5]);
}

#[test]
fn proposals_are_bounded() {
    let mut small = config(1);
    small.uncommitted_bytes_max = 10_000;
    small.size_per_message_max = 1000;
    let mut group = Group::new(small, fresh()).unwrap();
    let refused = group.propose("d".into(), vec![]);
    assert_eq!(refused, Err(ProposeError::NotLeader { leader_hint: None }));
    group.campaign().unwrap();
    let tickets = appends(&ready(&mut group));
    let payload = || vec![Bytes::from(vec![0; 20_000])];
    group.propose("d".into(), payload()).unwrap();
    assert_eq!(
        group.propose("d".into(), payload()),
        Err(ProposeError::Busy)
    );
    assert_eq!(group.propose("d".into(), vec![]), Err(ProposeError::Busy));
    assert!(matches!(
        group.propose(Bytes::new(), vec![]),
        Err(ProposeError::Invalid(_))
    ));
    let huge = vec![Bytes::from(vec![0; 1 << 20]); 5];
    assert_eq!(group.propose("d".into(), huge), Err(ProposeError::TooLarge));
    let long = Bytes::from(vec![0; 1 << 20]);
    assert_eq!(group.propose(long, vec![]), Err(ProposeError::TooLarge));
    let out = ready(&mut group);
    group.on_persisted(*appends(&out).last().unwrap());
    assert!(!tickets.is_empty());
    ready(&mut group);
    group.propose("d".into(), payload()).unwrap();
}

/// raft-rs asserts that everything is durable when it becomes leader.
#[test]
fn a_group_of_one_does_not_lead_twice_over_entries_in_flight() {
    let mut group = Group::new(config(1), fresh()).unwrap();
    group.campaign().unwrap();
    ready(&mut group);
    group.campaign().unwrap();
    for _ in 0..100 {
        group.tick();
    }
    assert!(ready(&mut group).is_empty());
    assert_eq!(group.term(), Term(1));
}

fn entry(index: u64, term: u64) -> esker_replication::LogEntry {
    esker_replication::LogEntry {
        term: Term(term),
        index: RaftIndex(index),
        kind: esker_replication::EntryKind::Normal,
        data: Bytes::from_static(b"d"),
        payload_length: 0,
    }
}

#[test]
fn inconsistent_recovered_state_is_an_error_and_a_low_commit_is_raised() {
    let good = RecoveredGroup {
        hard_state: HardState {
            term: Term(3),
            vote: ReplicaId(1),
            commit: RaftIndex(1),
        },
        truncated: (RaftIndex(4), Term(2)),
        applied: RaftIndex(5),
        entries: vec![entry(5, 2), entry(6, 3)],
        ..fresh()
    };
    let group = Group::new(config(1), good.clone()).unwrap();
    assert_eq!(
        (group.commit_index(), group.applied_index()),
        (RaftIndex(5), RaftIndex(5))
    );
    let open = |change: &dyn Fn(&mut RecoveredGroup)| {
        let mut bad = good.clone();
        change(&mut bad);
        Group::new(config(1), bad).map(|_| ()).unwrap_err()
    };
    let beyond = |known| GroupError::CommitBeyondLog {
        known: RaftIndex(known),
        last: RaftIndex(6),
    };
    assert_eq!(open(&|r| r.hard_state.commit = RaftIndex(7)), beyond(7));
    assert_eq!(open(&|r| r.applied = RaftIndex(9)), beyond(9));
    for error in [
        open(&|r| r.applied = RaftIndex(3)),
        open(&|r| r.entries[1].index = RaftIndex(7)),
        open(&|r| r.entries[1].term = Term(1)),
        open(&|r| r.entries[0].index = RaftIndex(4)),
        open(&|r| r.hard_state.term = Term(2)),
        open(&|r| r.truncated.1 = Term(0)),
        open(&|r| r.hard_state.term = Term(u64::MAX)),
        open(&|r| r.membership.voters.clear()),
        open(&|r| r.membership.voters = vec![ReplicaId(0)]),
    ] {
        assert!(matches!(error, GroupError::Inconsistent(_)), "{error}");
    }
    let mut clamped = good.clone();
    clamped.suspended = true;
    clamped.hard_state.commit = RaftIndex(70);
    let mut group = Group::new(config(1), clamped).unwrap();
    assert_eq!(group.commit_index(), RaftIndex(6));
    assert_eq!(group.campaign(), Err(GroupError::Suspended));
    let mut bad = config(0);
    bad.election_ticks = 1;
    assert!(matches!(Group::new(bad, good), Err(GroupError::Config(_))));
}
