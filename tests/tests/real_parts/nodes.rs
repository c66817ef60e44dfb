//! Nodes that are drained or stay away: their copies go elsewhere while clients use the volumes.

use crate::cluster::{copies, holds, serving, until, write, Members};
use crate::harness::{signal, Daemon};
use std::fs;

/// Nodes with a copy of a volume, as one of them says, in order.
fn nodes_of(daemon: &Daemon, volume: &str) -> Vec<String> {
    let mut nodes: Vec<_> = copies(daemon, volume)
        .into_iter()
        .map(|(node, _)| node)
        .collect();
    nodes.sort();
    nodes
}

/// A field of a node, as another one says.
fn field(daemon: &Daemon, node: usize, key: &str) -> serde_json::Value {
    daemon.json(&["node", "list"])[node - 1][key].clone()
}

#[test]
fn copies_leave_nodes_that_are_drained_or_stay_away() {
    let members = Members::in_zones(&["a", "a", "b", "c"], "replace_after = '10s'\n");
    let mut nodes: Vec<_> = (1..=4).map(|id| Some(members.start(id).ready())).collect();
    let node = |nodes: &[Option<Daemon>], id: usize, words: &[&str]| {
        nodes[id - 1].as_ref().unwrap().esker(words)
    };
    let create = |name: &str, replicas: &str, encrypt: Option<&str>| {
        let words = [
            "volume",
            "create",
            name,
            "--size",
            "64MiB",
            "--replicas",
            replicas,
        ];
        let words = words.into_iter().chain(encrypt);
        node(&nodes, 1, &Vec::from_iter(words)).ok();
    };
    create("v", "3", Some("--encrypt"));
    create("alone", "1", Some("--encrypt"));
    create("plain", "1", None);
    // One in each zone, and the first node of two in one zone because it was asked.
    let first = nodes[0].as_ref().unwrap();
    until("three copies", || nodes_of(first, "v") == ["1", "3", "4"]);
    for id in 1..=4 {
        assert_eq!(field(first, id, "state"), "up");
    }
    assert_eq!(field(first, 2, "labels")["zone"], "a");
    let healthy = first.json(&["cluster", "status"]);
    assert_eq!(healthy["healthy"], true, "{healthy}");
    for (name, version) in [("alone", 7), ("plain", 8)] {
        write(&mut first.client(name), 0..16, version);
    }

    // The third is drained under a client that is attached to it. What it held goes to the only node that had none.
    let mut client = nodes[2].as_ref().unwrap().client("v");
    write(&mut client, 0..64, 1);
    node(&nodes, 1, &["node", "drain", "3", "--no-wait"]).ok();
    let first = nodes[0].as_ref().unwrap();
    until("the copy leaves node 3", || {
        nodes_of(first, "v") == ["1", "2", "4"]
    });
    write(&mut client, 32..96, 2);
    holds(&mut client, 0..32, 1);
    until("the client alone keeps it", || {
        field(first, 3, "removed") == 1
    });
    let told = node(&nodes, 3, &["volume", "create", "w", "--size", "1MiB"]).line(1);
    assert!(
        told.contains("drained") && told.contains("--cancel"),
        "{told}"
    );
    drop(client);
    let drained = node(&nodes, 1, &["node", "drain", "3"]).ok();
    assert!(
        drained.contains("node 3 is drained and holds nothing"),
        "{drained}"
    );
    // It is so after a restart, too.
    nodes[2].take().unwrap().stop();
    nodes[2] = Some(members.start(3).ready());
    assert_eq!(field(nodes[2].as_ref().unwrap(), 3, "drained"), true);
    node(&nodes, 3, &["node", "drain", "3", "--cancel"]).ok();
    assert_eq!(field(nodes[0].as_ref().unwrap(), 3, "drained"), false);

    // The fourth goes away for good, and comes back all the same.
    nodes[3].take().unwrap().kill();
    let first = nodes[0].as_ref().unwrap();
    until("the silence is told", || {
        let why = first.esker(&["status", "--why"]).ok();
        why.contains("node 4 has not answered for") && why.contains("after 10s its copies")
    });
    until("node 3 takes its place", || {
        nodes_of(first, "v") == ["1", "2", "3"]
    });
    nodes[3] = Some(members.start(4).ready());
    let fourth = nodes[3].as_ref().unwrap();
    until("what it had is deleted", || {
        fourth
            .json(&["volume", "list"])
            .as_array()
            .unwrap()
            .is_empty()
    });

    a_reload_changes_members(&members, &nodes);
    // The first holds a volume of its own, too.
    node(&nodes, 2, &["node", "drain", "1"]).ok();
    let now = serving(&nodes[1..], "v") + 1;
    let mut client = nodes[now].as_ref().unwrap().client("v");
    holds(&mut client, 0..32, 1);
    holds(&mut client, 32..96, 2);
    for (name, version) in [("alone", 7), ("plain", 8)] {
        let has_it = |d: &&Daemon| d.esker(&["volume", "show", name]).code == Some(0);
        let there = nodes.iter().flatten().find(has_it).unwrap();
        holds(&mut there.client(name), 0..16, version);
    }
    drop(client);
    abandoned(&members, &mut nodes);
    for node in nodes.into_iter().flatten() {
        node.stop();
    }
}

/// A copy is made on the first node, and whoever had it made is killed before the group of `v`, on the others, could take it in.
fn abandoned(members: &Members, nodes: &mut [Option<Daemon>]) {
    let first = |nodes: &[Option<Daemon>]| nodes[0].as_ref().unwrap().json(&["volume", "list"]);
    let second = nodes[1].take().unwrap();
    second.esker(&["node", "drain", "1", "--cancel"]).ok();
    for away in [2, 3] {
        nodes[away].take().unwrap().kill();
    }
    // A leader would log that it takes the copy in, and may be elected again after it was killed: then that is committed.
    until("nobody leads", || {
        let volumes = second.json(&["status"])["volumes"].clone();
        let volume = volumes
            .as_array()
            .unwrap()
            .iter()
            .find(|v| v["name"] == "v");
        volume.unwrap()["leader"].is_null()
    });
    let data = members.data(2).display().to_string();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let program = crate::harness::program("esker").display().to_string();
            let words = ["--data", &data, "replica", "add", "v", "--node", "1"];
            crate::harness::run(&program, &words)
        });
        until("a copy on node 1", || first(nodes)[0]["name"] == "v");
        second.kill();
    });
    for away in [1, 2, 3] {
        nodes[away] = Some(members.start(away + 1).ready());
    }
    until("a copy that nobody took in is deleted", || {
        first(nodes).as_array().unwrap().is_empty()
    });
    let now = serving(&nodes[1..], "v") + 1;
    let left = nodes_of(nodes[now].as_ref().unwrap(), "v");
    assert_eq!(left, ["2", "3", "4"]);
}

/// A reload takes up where nodes stand, but lets none go that has copies.
fn a_reload_changes_members(members: &Members, nodes: &[Option<Daemon>]) {
    let second = nodes[1].as_ref().unwrap();
    let path = members.data(2).with_extension("toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("zone = 'c'", "zone = 'd'")).unwrap();
    signal(second.pid(), "HUP");
    until("the other zone is known", || {
        field(second, 4, "labels")["zone"] == "d"
    });
    let fewer = text.rfind("[[cluster.node]]\nid = 4").unwrap();
    let fewer = text[..fewer].replace("id = 3\n", "id = 33\n");
    fs::write(&path, fewer).unwrap();
    signal(second.pid(), "HUP");
    until("it is refused", || {
        second.log().contains("`esker node drain 3` first")
    });
    assert_eq!(field(second, 4, "labels")["zone"], "d");
    fs::write(&path, text).unwrap();
    signal(second.pid(), "HUP");
    until("the first zone is back", || {
        field(second, 4, "labels")["zone"] == "c"
    });
}
