//! Reads by the leader's lease: what they cost, when there is none, and that none is ever stale. The harness's oracle
//! compares each answer with all that was committed anywhere when the read was asked for.

#![allow(clippy::unwrap_used, missing_docs)] // tests

mod harness;

use esker_base::{Moment, ReplicaId};
use esker_replication::{GroupConfig, PeerChange};
use harness::{Cluster, Options};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::time::Duration;

/// A cluster whose leader has just read, and so holds a lease.
fn leased(seed: u64, tweak: fn(&mut GroupConfig)) -> (Cluster, u64) {
    let options = Options {
        tweak,
        ..Options::default()
    };
    let mut cluster = Cluster::new(seed, &[1, 2, 3], options);
    cluster.write_everywhere();
    cluster.run(20);
    let leader = cluster.leader().unwrap();
    let before = cluster.reads_served;
    cluster.read(leader);
    assert_eq!(cluster.reads_served, before, "peers are asked first");
    cluster.run_until(20, |c| c.reads_served > before);
    assert!(cluster.has_lease(leader));
    (cluster, leader)
}

/// Whether a read at a node is answered at once.
fn reads_at_once(cluster: &mut Cluster, id: u64) -> bool {
    let before = cluster.reads_served;
    cluster.read(id);
    cluster.reads_served > before
}

#[test]
fn a_leader_with_a_lease_answers_reads_alone_until_it_is_over() {
    let (mut cluster, leader) = leased(1, |_| {});
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    cluster.isolate(leader);
    assert!(reads_at_once(&mut cluster, leader));
    assert!(reads_at_once(&mut cluster, leader));
    let asked = cluster.time();
    cluster.run_until(6, |c| !c.has_lease(leader));
    assert!(
        cluster.time().since(asked) < Duration::from_millis(600),
        "it began when the question was put"
    );
    assert!(!reads_at_once(&mut cluster, leader));
    // And nobody was elected before that.
    assert!(others.iter().all(|id| !cluster.nodes[id].leads()));
}

#[test]
fn reads_that_go_on_renew_it_and_wait_for_nobody() {
    let (mut cluster, leader) = leased(2, |_| {});
    for _ in 0..200 {
        assert!(reads_at_once(&mut cluster, leader));
        cluster.run(1);
    }
    assert!(cluster.node(leader).group().reads_by_lease() >= 200);
    let sent = |cluster: &Cluster| cluster.packets_sent();
    // With nobody reading, nobody is asked.
    cluster.run(60);
    assert!(!cluster.has_lease(leader));
    let before = sent(&cluster);
    cluster.run(60);
    let idle = sent(&cluster) - before;
    cluster.read(leader);
    cluster.run_until(20, |c| c.has_lease(leader));
    let before = sent(&cluster);
    for _ in 0..60 {
        for _ in 0..50 {
            cluster.read(leader);
        }
        cluster.run(1);
    }
    let busy = sent(&cluster) - before;
    assert!(
        busy < idle + 150,
        "3,000 reads took {busy} messages, none {idle}"
    );
}

#[test]
fn the_question_of_a_follower_is_answered_by_the_lease_of_its_leader() {
    let (mut cluster, leader) = leased(3, |_| {});
    let follower = 1 + leader % 3;
    let third = 6 - leader - follower;
    // Nobody else can say anything.
    cluster.isolate(third);
    let (before, by_lease) = (
        cluster.reads_served,
        cluster.node(leader).group().reads_by_lease(),
    );
    cluster.read(follower);
    cluster.run_until(3, |c| c.reads_served > before);
    assert_eq!(cluster.node(leader).group().reads_by_lease(), by_lease + 1);
}

#[test]
fn a_hand_over_that_was_begun_ends_it_for_the_term() {
    let (mut cluster, leader) = leased(4, |_| {});
    let to = 1 + leader % 3;
    cluster.cut.insert((leader.min(to), leader.max(to)));
    let handed = cluster.node(leader).group().transfer_leader(ReplicaId(to));
    handed.unwrap();
    cluster.drain(leader);
    assert!(!cluster.has_lease(leader));
    // The message to the successor is lost, and the leader leads on; but it cannot know.
    let before = cluster.reads_served;
    let mut by_lease = 0;
    cluster.run_until(300, |c| {
        if c.nodes[&leader].leads() {
            c.read(leader);
            by_lease += u64::from(c.has_lease(leader));
        }
        c.reads_served > before + 50
    });
    assert_eq!(by_lease, 0);
}

#[test]
fn another_membership_ends_it() {
    let (mut cluster, leader) = leased(5, |_| {});
    let gone = 1 + leader % 3;
    let group = cluster.node(leader).group();
    let change = [PeerChange::Remove(ReplicaId(gone))];
    group.propose_membership(&change, b"x").unwrap();
    cluster.drain(leader);
    let mut renewed = false;
    cluster.run_until(100, |c| {
        let two = c.node(leader).group().membership().voters.len() == 2;
        let leases = c.has_lease(leader);
        if !two && !leases {
            c.read(leader);
        }
        renewed = leases;
        two
    });
    assert!(!renewed, "held on beyond the change");
}

#[test]
fn it_can_be_switched_off() {
    let options = Options {
        tweak: |config| config.lease = Duration::ZERO,
        ..Options::default()
    };
    let mut cluster = Cluster::new(6, &[1, 2, 3], options);
    cluster.write_everywhere();
    let leader = cluster.leader().unwrap();
    for _ in 0..50 {
        cluster.read(leader);
        cluster.run(1);
        assert!(!cluster.has_lease(leader));
    }
    assert_eq!(cluster.node(leader).group().reads_by_lease(), 0);
    assert!(cluster.reads_served > 40);
}

/// raft-rs forgets whom a replica follows when it hears of a later term, and with that what it promised: a late refusal of a
/// question from before the election was enough to let the others elect somebody beside a leader with a lease.
#[test]
fn a_promise_outlasts_the_news_of_a_later_term() {
    // As long as promises allow, where all clocks run alike.
    let (mut cluster, leader) = leased(7, |config| config.lease = Duration::from_millis(800));
    let follower = 1 + leader % 3;
    let third = 6 - leader - follower;
    // The third has not heard of the leader for so long that it has promised nothing any more.
    cluster.isolate(third);
    cluster.run(80);
    cluster.read(leader);
    cluster.run_until(20, |c| c.has_lease(leader));
    // From here on only the two others hear each other, and the follower hears of a later term.
    cluster.cut.clear();
    cluster.isolate(leader);
    let term = cluster.node(leader).group().term().0;
    cluster.refuse_pre_vote(third, follower, term + 1);
    assert_eq!(cluster.node(follower).group().term().0, term + 1);
    assert_eq!(cluster.node(follower).group().leader(), None);
    let (mut held, begun) = (0, cluster.now);
    cluster.run_until(100, |c| {
        // The third wants to lead, as often as an election takes.
        if (c.now - begun) % 5 == 0 {
            let _ = c.node(third).group().campaign();
            c.drain(third);
        }
        let elected = c.nodes[&third].leads() || c.nodes[&follower].leads();
        held += u64::from(c.has_lease(leader));
        assert!(!(elected && c.has_lease(leader)), "two could answer");
        elected
    });
    assert!(held > 2, "the lease was over at once");
}

/// Cuts, restarts, hand-overs and forced elections, with reads and writes wherever one may.
fn unrest(seed: u64, tweak: fn(&mut GroupConfig)) -> Cluster {
    let options = Options {
        loss: 20,
        duplicate: 12,
        delay: 2,
        lazy_sync: 1,
        tweak,
    };
    let mut cluster = Cluster::new(seed, &[1, 2, 3], options);
    for _ in 0..1500 {
        cluster.step();
        let id = 1 + cluster.rng.below(3);
        match cluster.rng.below(120) {
            0 => {
                cluster.crash(id);
                cluster.start(id);
            }
            1 => {
                if let Some(leader) = cluster.leader() {
                    cluster.isolate(leader);
                }
            }
            2 => {
                cluster.cut.insert((1 + id % 2, 3));
            }
            3..=5 => cluster.cut.clear(),
            6 => {
                let to = ReplicaId(1 + cluster.rng.below(3));
                let _ = cluster.node(id).group().transfer_leader(to);
                cluster.drain(id);
            }
            7..=9 => {
                let _ = cluster.node(id).group().campaign();
                cluster.drain(id);
            }
            10..=60 => _ = cluster.propose(id),
            _ => cluster.read(id),
        }
    }
    cluster
}

#[test]
fn no_read_is_stale_under_all_faults() {
    let mut by_lease = 0;
    for seed in 0..60 {
        let mut cluster = unrest(seed, |_| {});
        by_lease += (1..=3)
            .map(|id| cluster.node(id).group().reads_by_lease())
            .sum::<u64>();
    }
    assert!(by_lease > 2_000, "only {by_lease} reads by lease");
}

#[test]
fn a_lease_longer_than_the_promise_is_noticed() {
    let stale = |seed| {
        let tweak: fn(&mut GroupConfig) = |config| config.lease = Duration::from_secs(6);
        catch_unwind(AssertUnwindSafe(|| unrest(seed, tweak))).is_err()
    };
    assert!((0..40).any(stale), "the oracle sees nothing");
}

#[test]
fn a_time_before_the_question_begins_no_lease() {
    let (mut cluster, leader) = leased(8, |_| {});
    assert!(!cluster.node(leader).group().has_lease(Moment(0)));
}
