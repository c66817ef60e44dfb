//! A volume with several copies gets another name: at once on all nodes, under its clients, with a node away, and also
//! where that one has given the name to another volume meanwhile.

use crate::client::Client;
use crate::cluster::{holds, until, write, Members};
use crate::harness::Daemon;
use serde_json::Value;
use std::sync::atomic::{AtomicBool, Ordering};

fn names(daemon: &Daemon) -> Vec<String> {
    let listed = daemon.json(&["volume", "list"]);
    let name = |v: &Value| v["name"].as_str().unwrap().to_owned();
    listed.as_array().unwrap().iter().map(name).collect()
}

fn rename(daemon: &Daemon, from: &str, to: &str) -> crate::harness::Done {
    daemon.esker(&["volume", "rename", from, to])
}

fn create(daemon: &Daemon, name: &str) {
    let words = [
        "volume",
        "create",
        name,
        "--size",
        "64MiB",
        "--replicas",
        "3",
    ];
    daemon.esker(&words).ok();
}

/// Ends the load when the test ends, also when it fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Writes until it is told to stop; how often.
fn load(mut client: Client, stop: &AtomicBool) -> u64 {
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        write(&mut client, 0..32, round);
    }
    round
}

#[test]
fn a_name_changes_on_all_nodes_at_once_and_under_load() {
    let members = Members::new(4);
    let mut nodes: Vec<_> = (1..=4).map(|id| Some(members.start(id).ready())).collect();
    create(nodes[0].as_ref().unwrap(), "v");
    let without = (0..4).find(|at| names(nodes[*at].as_ref().unwrap()).is_empty());
    let without = without.unwrap();
    let at = |n: usize| (without + n) % 4; // 1, 2, 3 have copies
    let (door, away) = (at(1), at(3));
    let stop = AtomicBool::new(false);
    let rounds = std::thread::scope(|s| {
        let client = nodes[door].as_ref().unwrap().client("v");
        let writer = s.spawn(|| load(client, &stop));
        let ends = Stop(&stop);
        let ask = nodes[without].as_ref().unwrap();
        ask.esker(&["snapshot", "create", "v@s"]).ok();
        // Taken on a node that has nothing to do with the volume.
        ask.create("taken", "16MiB");
        let told = rename(nodes[door].as_ref().unwrap(), "v", "taken").line(1);
        assert!(told.contains("taken already"), "{told}");
        // Any node is asked, under load.
        let mut last = "v".to_owned();
        for (n, node) in nodes.iter().flatten().enumerate() {
            let new = format!("v{n}");
            rename(node, &last, &new).ok();
            last = new;
        }
        for n in 1..4 {
            let node = nodes[at(n)].as_ref().unwrap();
            until("every copy goes by it", || names(node) == ["v3"]);
        }
        // One is away.
        nodes[away].take().unwrap().kill();
        let node = nodes[door].as_ref().unwrap();
        until("it is renamed by those that stay", || {
            rename(node, "v3", "w").code == Some(0)
        });
        nodes[away] = Some(members.start(away + 1).ready());
        let back = nodes[away].as_ref().unwrap();
        until("it is renamed there, too", || names(back) == ["w"]);
        drop(ends);
        writer.join().unwrap()
    });
    // Nobody was detached; clients that come now ask for the new name.
    for n in 1..4 {
        let node = nodes[at(n)].as_ref().unwrap();
        holds(&mut node.client("w"), 0..32, rounds);
        assert!(Client::unix(&node.socket(), "v").is_err());
        drop(node.client("w@s"));
    }
    // The old name is free, and names are what they were after a restart.
    for node in nodes.iter_mut() {
        node.take().unwrap().kill();
    }
    let nodes: Vec<_> = (1..=4).map(|id| members.start(id).ready()).collect();
    until("a volume of the old name", || {
        let words = [
            "volume",
            "create",
            "v",
            "--size",
            "64MiB",
            "--replicas",
            "3",
        ];
        nodes[door].esker(&words).code == Some(0)
    });
    for n in 1..4 {
        until("names after a restart", || {
            let mut names = names(&nodes[at(n)]);
            names.retain(|name| name != "v");
            names == ["w"]
        });
    }
    for node in nodes {
        node.stop();
    }
}

#[test]
fn where_a_name_was_taken_meanwhile_both_volumes_stay() {
    let members = Members::new(3);
    let mut nodes: Vec<_> = (1..=3).map(|id| Some(members.start(id).ready())).collect();
    create(nodes[0].as_ref().unwrap(), "v");
    let mut client = nodes[0].as_ref().unwrap().client("v");
    write(&mut client, 0..8, 1);
    drop(client);
    until("all have it", || {
        nodes.iter().flatten().all(|node| names(node) == ["v"])
    });
    nodes[2].take().unwrap().kill();
    until("it is renamed", || {
        rename(nodes[0].as_ref().unwrap(), "v", "w").code == Some(0)
    });
    for node in &mut nodes[..2] {
        node.take().unwrap().kill();
    }
    // Alone, a node gives the name to a volume of its own.
    nodes[2] = Some(members.start(3).ready());
    nodes[2].as_ref().unwrap().create("w", "16MiB");
    let mut own = nodes[2].as_ref().unwrap().client("w");
    write(&mut own, 0..8, 2);
    for id in 1..=2 {
        nodes[id - 1] = Some(members.start(id).ready());
    }
    let nodes: Vec<Daemon> = nodes.into_iter().flatten().collect();
    let is_longer = |name: &String| name.starts_with("w-");
    until("the copy goes by a longer name", || {
        let names = names(&nodes[2]);
        names.len() == 2 && names[0] == "w" && is_longer(&names[1])
    });
    let longer = names(&nodes[2])[1].clone();
    holds(&mut own, 0..8, 2);
    holds(&mut nodes[2].client("w"), 0..8, 2);
    until("its clients are served", || {
        Client::unix(&nodes[2].socket(), &longer).is_ok()
    });
    holds(&mut nodes[2].client(&longer), 0..8, 1);
    // Who asks for that copy by the name of the others means the volume, not the one that has the name there.
    let with = |verb: &str, name: &str| {
        let words = ["replica", verb, name, "--node", "3"];
        let rest: &[&str] = if verb == "add" { &["--no-wait"] } else { &[] };
        nodes[0].esker(&[&words[..], rest].concat())
    };
    until("the copy goes", || with("remove", "w").code == Some(0));
    assert_eq!(names(&nodes[2]), ["w"]);
    let told = with("add", "w").line(1);
    assert!(told.contains("volume w exists"), "{told}");
    // Renamed again, the volume has a place there.
    until("it is renamed", || {
        rename(&nodes[0], "w", "x").code == Some(0)
    });
    until("it comes back", || with("add", "x").code == Some(0));
    until("one name", || {
        names(&nodes[0]) == ["x"] && names(&nodes[1]) == ["x"] && names(&nodes[2]) == ["w", "x"]
    });
    holds(&mut nodes[1].client("x"), 0..8, 1);
    holds(&mut own, 0..8, 2);
    drop(own);
    for node in nodes {
        node.stop();
    }
}
