//! Members that a cluster agrees on: one node begins, others are added while volumes are used, nodes go.

use crate::client::Client;
use crate::cluster::{copies, holds, until, write, Members};
use crate::harness::{Daemon, Start};
use std::fs;
use std::thread::JoinHandle;

/// A node that waits to be added, and is ready some time after it was.
fn waiting(members: &Members, id: usize) -> JoinHandle<Daemon> {
    let start: Start = members.start(id);
    let log = members.data(id).with_extension("log");
    let lines = |log: &std::path::Path| {
        let text = fs::read_to_string(log).unwrap_or_default();
        text.matches("waits to be added to a cluster").count()
    };
    let before = lines(&log);
    let joining = std::thread::spawn(move || start.ready());
    until("it waits", || lines(&log) > before);
    joining
}

fn nodes_of(daemon: &Daemon) -> Vec<String> {
    let nodes = daemon.json(&["node", "list"]);
    let nodes = nodes.as_array().unwrap().iter();
    nodes
        .map(|n| n["id"].as_str().unwrap().to_owned())
        .collect()
}

/// Where the members are kept, in order.
fn metadata_nodes(daemon: &Daemon) -> Vec<String> {
    let listed = daemon.esker(&["replica", "list", ".cluster"]);
    if listed.code != Some(0) {
        return Vec::new(); // one copy, wherever it is
    }
    let mut nodes: Vec<_> = copies(daemon, ".cluster")
        .into_iter()
        .map(|c| c.0)
        .collect();
    nodes.sort();
    nodes
}

#[test]
fn a_cluster_begins_with_one_node_and_others_come_and_go() {
    let mut members = Members::agreed(4);
    let mut nodes: Vec<Option<Daemon>> = vec![Some(members.start(1).ready()), None, None, None];
    let first = nodes[0].as_ref().unwrap();
    first.create("alone", "16MiB");
    let mut client = first.client("alone");
    write(&mut client, 0..16, 1);
    let second = waiting(&members, 2);
    let add = |at: &Daemon, id: usize, more: &[&str]| {
        at.esker(&[&["node", "add", members.control(id)], more].concat())
    };
    assert!(add(first, 2, &[]).line(1).contains("esker cluster init"));
    let told = first
        .esker(&["cluster", "init", "--control", "0.0.0.0:7"])
        .line(1);
    assert!(told.contains("others cannot reach `0.0.0.0:7`"), "{told}");
    let told = first
        .esker(&["cluster", "init", "--label", "zone="])
        .line(1);
    assert!(told.contains("labels"), "{told}");
    let begun = first.json(&["cluster", "init", "--label", "zone=a"]);
    assert!(first
        .esker(&["cluster", "init"])
        .line(1)
        .contains("already"));
    assert_eq!(nodes_of(first), [begun["node"].as_str().unwrap()]);

    // What members are kept in is nobody's volume.
    let volumes = first.json(&["volume", "list"]);
    assert_eq!(volumes.as_array().unwrap().len(), 1, "{volumes}");
    holds(&mut first.client(""), 0..16, 1);
    assert!(Client::unix(&first.socket(), ".cluster").is_err());
    let told = first.esker(&["volume", "delete", ".cluster"]).line(1);
    assert!(told.contains("keeps its members in"), "{told}");

    // Two more, under the client of the first one.
    let added = add(first, 2, &["--id", "20", "--label", "zone=b"]).ok();
    assert_eq!(added, "node 20 is added and up\n");
    nodes[1] = Some(second.join().unwrap());
    let third = waiting(&members, 3);
    let second = nodes[1].as_ref().unwrap();
    let added = second.json(&["node", "add", members.control(3)]);
    let three = added["node"].as_str().unwrap().to_owned();
    assert_eq!(three, "21");
    nodes[2] = Some(third.join().unwrap());
    let second = nodes[1].as_ref().unwrap();
    // Asked again it is the same one, and another one cannot be it.
    let again = second.json(&["node", "add", members.control(3), "--id", &three]);
    assert_eq!(again["node"], three.as_str());
    let told = add(second, 3, &["--id", "20"]).line(1);
    assert!(told.contains("and not node 20"), "{told}");
    write(&mut client, 0..16, 2);
    let words = [
        "volume",
        "create",
        "v",
        "--size",
        "16MiB",
        "--replicas",
        "3",
    ];
    nodes[2].as_ref().unwrap().esker(&words).ok();
    write(&mut nodes[2].as_ref().unwrap().client("v"), 0..64, 1);
    let first = nodes[0].as_ref().unwrap();
    until("three copies of the list", || {
        metadata_nodes(first).len() == 3
    });
    let listed = first.json(&["node", "list"]);
    assert_eq!(listed[0]["labels"]["zone"], "b", "{listed}");
    drop(client);

    // All of them go away at once, and come back knowing each other.
    for node in &mut nodes {
        if let Some(node) = node.take() {
            node.kill();
        }
    }
    members.name_all(true);
    let told = members.start(1).refusal(1);
    assert!(
        told.contains("members.json") && told.contains("[[cluster.node]]"),
        "{told}"
    );
    members.name_all(false);
    nodes[0] = Some(members.start(1).ready());
    // One of three: its own volumes serve, and the members stay what they are.
    let first = nodes[0].as_ref().unwrap();
    holds(&mut first.client("alone"), 0..16, 2);
    let told = first.esker(&["node", "add", members.control(4)]).line(1);
    assert!(told.contains("no answer at"), "{told}");
    nodes[1] = Some(members.start(2).ready());
    nodes[2] = Some(members.start(3).ready());
    holds(&mut nodes[0].as_ref().unwrap().client("v"), 0..64, 1);

    // One goes for good, and another one comes in its place.
    let fourth = waiting(&members, 4);
    let first = nodes[0].as_ref().unwrap();
    first
        .esker(&["node", "add", members.control(4), "--label", "zone=d"])
        .ok();
    nodes[3] = Some(fourth.join().unwrap());
    let first = nodes[0].as_ref().unwrap();
    let told = first.esker(&["node", "remove", "20"]).line(1);
    assert!(told.contains("esker node drain 20"), "{told}");
    first.esker(&["node", "drain", "20"]).ok();
    first.esker(&["node", "remove", "20"]).ok();
    assert_eq!(nodes_of(first).len(), 3);
    let removed = nodes[1].as_ref().unwrap();
    until("it learns that", || {
        let status = removed.esker(&["status", "--why"]).out;
        status.contains("was removed from the cluster")
    });
    nodes[1].take().unwrap().stop();
    holds(&mut nodes[3].as_ref().unwrap().client("v"), 0..64, 1);
    let first = nodes[0].as_ref().unwrap();
    until("the list has moved, too", || {
        metadata_nodes(first).len() == 3 && !metadata_nodes(first).contains(&"20".to_owned())
    });

    // One that is dead goes with its copy of the list, once no volume counts on it.
    nodes[3].take().unwrap().kill();
    let first = nodes[0].as_ref().unwrap();
    let four = nodes_of(first)[1].clone();
    let told = first.esker(&["node", "remove", &four]).line(1);
    assert!(told.contains("esker replica remove VOLUME"), "{told}");
    until("the copy there is none any more", || {
        let removed = first.esker(&["replica", "remove", "v", "--node", &four]);
        removed.code == Some(0) || copies(first, "v").len() == 2
    });
    first.esker(&["node", "remove", &four]).ok();
    assert_eq!(nodes_of(first).len(), 2);
    // The list goes on changing with the two that are left.
    let three = members.control(3);
    first
        .esker(&["node", "add", three, "--label", "zone=z"])
        .ok();
    let third = nodes[2].as_ref().unwrap();
    until("the third has another label", || {
        third.json(&["node", "list"])[0]["labels"]["zone"] == "z"
    });
    holds(&mut first.client("v"), 0..64, 1);
    for node in nodes.into_iter().flatten() {
        node.stop();
    }
}

/// Certificates say which node is which; a new disk in an old node is that node again.
#[test]
fn certified_nodes_are_added_as_what_they_are() {
    let members = Members::agreed_with_tls(2);
    let first = members.start(1).ready();
    first.esker(&["cluster", "init"]).ok();
    assert_eq!(nodes_of(&first), ["1"]);
    let second = waiting(&members, 2);
    let told = first
        .esker(&["node", "add", members.control(2), "--id", "7"])
        .line(1);
    assert!(told.contains("is node 2 and not node 7"), "{told}");
    first.esker(&["node", "add", members.control(2)]).ok();
    let second = second.join().unwrap();
    assert_eq!(nodes_of(&second), ["1", "2"]);
    let told = second.esker(&["node", "remove", "1"]).line(1);
    assert!(told.contains("the only copy of the list"), "{told}");
    assert_eq!(nodes_of(&second), ["1", "2"]);
    let words = [
        "volume",
        "create",
        "s",
        "--size",
        "16MiB",
        "--replicas",
        "2",
        "--encrypt",
    ];
    first.esker(&words).ok();
    write(&mut second.client("s"), 0..64, 1);

    second.kill();
    fs::remove_dir_all(members.data(2)).unwrap();
    let second = waiting(&members, 2);
    first.esker(&["node", "add", members.control(2)]).ok();
    let second = second.join().unwrap();
    assert_eq!(nodes_of(&second), ["1", "2"]);
    assert_eq!(second.json(&["node", "list"])[1]["here"], true);
    first.stop();
    second.stop();
}
