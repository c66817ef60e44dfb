//! Clones of volumes with several copies.

use crate::cluster::{copies, holds, on_leader, serving, until, write, write_many, Members};
use crate::harness::{verify, Daemon};
use std::collections::BTreeSet;

fn nodes_of(daemon: &Daemon, name: &str) -> BTreeSet<String> {
    let copies = copies(daemon, name).into_iter();
    copies.map(|(node, _)| node).collect()
}

fn has(daemon: &Daemon, name: &str) -> bool {
    let listed = daemon.json(&["volume", "list"]);
    let mut listed = listed.as_array().unwrap().iter();
    listed.any(|volume| volume["name"] == name)
}

#[test]
fn a_clone_begins_where_its_origin_is_and_then_lives_alone() {
    lives_alone("volume create v --size 64MiB --replicas 3");
}

#[test]
fn an_encrypted_clone_begins_where_its_origin_is_and_then_lives_alone() {
    lives_alone("volume create v --size 64MiB --replicas 3 --encrypt");
}

fn lives_alone(words: &str) {
    let members = Members::new(4);
    let nodes: Vec<_> = (1..=4).map(|id| members.start(id).ready()).collect();
    nodes[0].esker(&words.split(' ').collect::<Vec<_>>()).ok();
    let without = nodes.iter().position(|node| !has(node, "v")).unwrap();
    let mut client = nodes[0].client("v");
    write(&mut client, 0..64, 1);
    nodes[0].esker(&["snapshot", "create", "v@s"]).ok();
    write(&mut client, 32..64, 2);

    // Any node takes the command, and the name has to be free on all.
    nodes[without].create("taken", "64MiB");
    let told = nodes[0].esker(&["clone", "v@s", "taken"]).line(1);
    assert!(told.contains("has a volume named taken already"), "{told}");
    for (node, name) in nodes.iter().zip(["w1", "w2", "w3", "w4"]) {
        let made = node.esker(&["-o", "json", "clone", "v@s", name, "--label", "by=hand"]);
        let made: serde_json::Value = serde_json::from_str(&made.ok()).unwrap();
        assert_eq!(made["replicas"], 3, "{made}");
        assert_eq!(made["labels"]["by"], "hand", "{made}");
    }
    let told = nodes[without].esker(&["clone", "v@s", "w1"]).line(1);
    assert!(told.contains("w1"), "{told}");
    let on = nodes_of(&nodes[0], "v");
    for (at, node) in nodes.iter().enumerate().filter(|(at, _)| *at != without) {
        for name in ["w1", "w2", "w3", "w4"] {
            assert_eq!(nodes_of(node, name), on, "{name} as node {at} tells");
            holds(&mut node.client(name), 0..64, 1);
        }
    }

    // Each goes its own way, and so do clones of clones.
    let at = (0..4).find(|at| *at != without).unwrap();
    let mut own = nodes[at].client("w1");
    write(&mut own, 0..16, 3);
    nodes[at].esker(&["snapshot", "create", "w1@t"]).ok();
    nodes[without].esker(&["clone", "w1@t", "x"]).ok();
    write(&mut own, 0..8, 4);
    holds(&mut client, 0..32, 1);
    holds(&mut client, 32..64, 2);
    holds(&mut nodes[at].client("w2"), 0..64, 1);
    drop((client, own));
    // The origin may go; what its clones need of it stays.
    for name in ["v", "w2"] {
        let words = ["volume", "delete", name, "--with-snapshots", "--yes"];
        nodes[without].esker(&words).ok();
    }
    for node in nodes.iter().enumerate().filter(|(at, _)| *at != without) {
        let (mut first, mut second) = (node.1.client("w1"), node.1.client("x"));
        holds(&mut first, 0..8, 4);
        holds(&mut first, 8..16, 3);
        holds(&mut first, 16..64, 1);
        holds(&mut second, 0..16, 3);
        holds(&mut second, 16..64, 1);
    }
    // One copy of a clone moves to the node that has none.
    let (from, to) = ((at + 1).to_string(), (without + 1).to_string());
    let words = ["replica", "add", "x", "--node", &to];
    nodes[at].esker(&words).ok();
    let words = ["replica", "remove", "x", "--node", &from];
    nodes[without].esker(&words).ok();
    holds(&mut nodes[without].client("x"), 0..16, 3);
    holds(&mut nodes[without].client("x"), 16..64, 1);
    holds(&mut nodes[at].client("w1"), 8..16, 3);
    for (node, id) in nodes.into_iter().zip(1..) {
        node.stop();
        verify(&members.data(id).join("store-0.esker"));
    }
}

/// A node is away for longer than the log reaches back, while its volume is cloned: it catches up with the volume by versions, and
/// is past the entry that made the clone.
#[test]
fn a_node_that_was_away_for_long_gets_its_copy_of_a_clone() {
    let members = Members::new(3);
    let mut nodes: Vec<_> = (1..=3).map(|id| Some(members.start(id).ready())).collect();
    let words = "volume create v --size 256MiB --replicas 3 --encrypt";
    let words: Vec<_> = words.split(' ').collect();
    nodes[0].as_ref().unwrap().esker(&words).ok();
    let leader = serving(&nodes, "v");
    let away = (leader + 1) % 3;
    nodes[away].take().unwrap().kill();
    let mut client = nodes[leader].as_ref().unwrap().client("v");
    write(&mut client, 0..64, 1);
    on_leader(&nodes, &["snapshot", "create", "v@s"]);
    on_leader(&nodes, &["clone", "v@s", "w"]);
    write_many(&mut client, 1000..18_000, 2);
    on_leader(&nodes, &["snapshot", "create", "v@t"]);
    write(&mut client, 32..96, 3);
    let mut clone = nodes[leader].as_ref().unwrap().client("w");
    write(&mut clone, 16..32, 4);
    drop((client, clone));
    // A comparison waits for a checkpoint, and that cuts the log.
    for node in nodes.iter().flatten() {
        node.esker(&["snapshot", "diff", "v@s", "v@t"]).ok();
    }
    let leader = on_leader(&nodes, &["snapshot", "diff", "v@s", "v@t"]);
    nodes[away] = Some(members.start(away + 1).ready());
    let returned = nodes[away].as_ref().unwrap();
    until("the node has its copy, and it votes", || {
        // The one that is missing counts as a voter; the one in its place is a learner until it has what the others have.
        let is_there = has(returned, "w")
            && returned.json(&["volume", "show", "w"])["state"].as_str() == Some("ready");
        // And each node that is up has to know it: before that, one of them may need a vote of the one that is missing.
        let settled = |node: &Daemon| {
            let listed = copies(node, "w");
            listed.len() == 3 && listed.iter().all(|copy| copy.1 == "voter")
        };
        is_there && nodes.iter().flatten().all(settled)
    });
    assert!(returned.log().contains("this replica has caught up"));
    // It is a majority with one of the others.
    nodes[leader].take().unwrap().kill();
    let third = 3 - away - leader;
    let returned = nodes[away].as_ref().unwrap();
    let mut clone = returned.client("w");
    holds(&mut clone, 0..16, 1);
    holds(&mut clone, 16..32, 4);
    holds(&mut clone, 32..64, 1);
    write(&mut clone, 0..16, 5);
    holds(&mut nodes[third].as_ref().unwrap().client("w"), 0..16, 5);
    drop(clone);
    for node in nodes.into_iter().flatten() {
        node.stop();
    }
    verify(&members.data(away + 1).join("store-0.esker"));
}

/// A node is away while an encrypted volume is cloned, and the one that made the clone's key dies before it is back: the third one has
/// the key. The first gets the entry that makes the clone from the log, without the key: whoever leads the clone gives it that.
#[test]
fn a_node_that_was_away_gets_the_key_of_a_clone() {
    let members = Members::new(3);
    let mut nodes: Vec<_> = (1..=3).map(|id| Some(members.start(id).ready())).collect();
    let words = "volume create v --size 64MiB --replicas 3 --encrypt";
    let words: Vec<_> = words.split(' ').collect();
    nodes[0].as_ref().unwrap().esker(&words).ok();
    let leader = serving(&nodes, "v");
    let away = (leader + 1) % 3;
    nodes[away].take().unwrap().kill();
    let mut client = nodes[leader].as_ref().unwrap().client("v");
    write(&mut client, 0..64, 1);
    on_leader(&nodes, &["snapshot", "create", "v@s"]);
    on_leader(&nodes, &["clone", "v@s", "w"]);
    let mut clone = nodes[leader].as_ref().unwrap().client("w");
    write(&mut clone, 0..16, 2);
    nodes[leader].take().unwrap().kill();
    drop((client, clone));
    nodes[away] = Some(members.start(away + 1).ready());
    let returned = nodes[away].as_ref().unwrap();
    until("the clone opens there", || {
        has(returned, "w")
            && returned.json(&["volume", "show", "w"])["state"].as_str() == Some("ready")
    });
    let returned = nodes[away].as_ref().unwrap();
    let mut clone = returned.client("w");
    holds(&mut clone, 0..16, 2);
    holds(&mut clone, 16..64, 1);
    write(&mut clone, 16..32, 3);
    // The key lies in its own slots from then on.
    drop(clone);
    let returned = nodes[away].take().unwrap();
    returned.stop();
    nodes[away] = Some(members.start(away + 1).ready());
    let mut clone = nodes[away].as_ref().unwrap().client("w");
    holds(&mut clone, 16..32, 3);
    drop(clone);
    for node in nodes.into_iter().flatten() {
        node.stop();
    }
}

/// A node comes back with an empty folder: it has lost its copy, and gets it anew without anybody's asking.
#[test]
fn a_node_that_lost_its_disk_gets_its_copy_anew() {
    let members = Members::new(3);
    let mut nodes: Vec<_> = (1..=3).map(|id| Some(members.start(id).ready())).collect();
    let words = "volume create v --size 64MiB --replicas 3";
    let words: Vec<_> = words.split(' ').collect();
    nodes[0].as_ref().unwrap().esker(&words).ok();
    let leader = serving(&nodes, "v");
    let mut client = nodes[leader].as_ref().unwrap().client("v");
    write(&mut client, 0..64, 1);
    on_leader(&nodes, &["snapshot", "create", "v@s"]);
    let lost = (leader + 1) % 3;
    nodes[lost].take().unwrap().kill();
    std::fs::remove_dir_all(members.data(lost + 1)).unwrap();
    write(&mut client, 32..64, 2);
    nodes[lost] = Some(members.start(lost + 1).ready());
    let returned = nodes[lost].as_ref().unwrap();
    until("the node has a copy again, and it votes", || {
        let is_there = has(returned, "v")
            && returned.json(&["volume", "show", "v"])["state"].as_str() == Some("ready");
        let listed = copies(nodes[leader].as_ref().unwrap(), "v");
        let voters = listed.iter().filter(|copy| copy.1 == "voter").count();
        is_there && listed.len() == 3 && voters == 3
    });
    holds(&mut returned.client("v"), 0..32, 1);
    holds(&mut returned.client("v"), 32..64, 2);
    holds(&mut returned.client("v@s"), 0..64, 1);
    drop(client);
    for node in nodes.into_iter().flatten() {
        node.stop();
    }
}
