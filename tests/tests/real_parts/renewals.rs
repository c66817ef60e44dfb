//! Another data key for volumes with several copies.

use crate::cluster::{copies, holds, until, write, write_many, Members};
use crate::harness::Daemon;
use serde_json::Value;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

fn keys(daemon: &Daemon, name: &str) -> Vec<Value> {
    let keys = daemon.json(&["key", "show", name]);
    keys.as_array().unwrap().clone()
}

fn numbers(daemon: &Daemon, name: &str) -> Vec<u64> {
    let keys = keys(daemon, name);
    keys.iter().map(|k| k["key_id"].as_u64().unwrap()).collect()
}

/// Which node leads the volume, as one with a copy tells.
fn leader_of(daemon: &Daemon) -> usize {
    let mut id = None;
    until("somebody leads", || {
        let status = daemon.json(&["status"]);
        let mut volumes = status["volumes"].as_array().unwrap().iter();
        let volume = volumes.find(|v| v["name"] == "s").unwrap();
        id = volume["leader"]
            .as_str()
            .map(|id| id.parse::<usize>().unwrap());
        id.is_some()
    });
    id.unwrap() - 1
}

fn is_sealed_anew(daemon: &Daemon, name: &str) -> bool {
    daemon.json(&["volume", "show", name])["reseal"].is_null()
}

/// A client writes a few blocks, again and again, through a node that stays.
fn busy(daemon: &Daemon, stop: &Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    let (mut client, stop) = (daemon.client("s"), Arc::clone(stop));
    std::thread::spawn(move || {
        let mut version = 10;
        while !stop.load(Ordering::Relaxed) {
            version += 1;
            write(&mut client, 4000..4008, version);
            holds(&mut client, 4000..4008, version);
        }
        version
    })
}

/// Each node is given the new key before anything is under it. The leader is killed while blocks are sealed anew, and another one goes on; a snapshot
/// keeps the old key on each node, and with it the key goes from each. A copy that is added gets all keys.
#[test]
fn a_volume_with_three_copies_gets_another_data_key_under_load() {
    let members = Members::new(4).with("reseal_rate = '4MiB'\n");
    let mut nodes: Vec<_> = (1..=4).map(|id| Some(members.start(id).ready())).collect();
    let words = "volume create s --size 16MiB --replicas 3 --encrypt";
    let first = nodes[0].as_ref().unwrap();
    first.esker(&words.split(' ').collect::<Vec<_>>()).ok();
    let has = |daemon: &Daemon| daemon.esker(&["key", "show", "s"]).code == Some(0);
    let without = nodes.iter().flatten().position(|node| !has(node)).unwrap();
    let one = nodes.iter().flatten().find(|node| has(node)).unwrap();
    let leader = leader_of(one);
    let stays = (0..4).find(|at| ![leader, without].contains(at)).unwrap();
    let node = |nodes: &[Option<Daemon>], at: usize, words: &[&str]| {
        nodes[at].as_ref().unwrap().esker(words)
    };
    write_many(&mut nodes[leader].as_ref().unwrap().client("s"), 0..3000, 1);
    node(&nodes, stays, &["snapshot", "create", "s@before"]).ok();

    let stop = Arc::new(AtomicBool::new(false));
    let client = busy(nodes[stays].as_ref().unwrap(), &stop);
    // One that has no copy passes it on.
    let rotate = ["key", "rotate", "s", "--data-key", "--no-wait"];
    node(&nodes, without, &rotate).ok();
    until("it has begun", || {
        let shown = nodes[leader]
            .as_ref()
            .unwrap()
            .json(&["volume", "show", "s"]);
        shown["reseal"]["resealed_bytes"].as_u64() > Some(1 << 20)
    });
    nodes[leader].take().unwrap().kill();
    let refused = node(&nodes, stays, &rotate).line(1);
    let id = (leader + 1).to_string();
    assert!(
        refused.contains(&format!("node {id}")) && refused.contains("keeps its data key"),
        "{refused}"
    );
    nodes[leader] = Some(members.start(leader + 1).ready());
    let others = |nodes: &[Option<Daemon>], without: usize| -> Vec<usize> {
        (0..nodes.len()).filter(|at| *at != without).collect()
    };
    for at in others(&nodes, without) {
        let daemon = nodes[at].as_ref().unwrap();
        until("all is under the new key", || is_sealed_anew(daemon, "s"));
        assert_eq!(
            numbers(daemon, "s"),
            [1, 2],
            "the snapshot needs the old key"
        );
    }
    stop.store(true, Ordering::Relaxed);
    assert!(client.join().unwrap() > 11);

    // A copy that moves gets both keys, and reads what was there before.
    let (from, to) = ((leader + 1).to_string(), (without + 1).to_string());
    let words = ["replica", "add", "s", "--node", &to, "--replace", &from];
    node(&nodes, stays, &words).ok();
    let daemon = nodes[without].as_ref().unwrap();
    until("both keys are there", || {
        has(daemon) && keys(daemon, "s").iter().all(|k| k["state"] == "open")
    });
    assert_eq!(numbers(daemon, "s"), [1, 2]);
    for at in [without, stays] {
        let daemon = nodes[at].as_ref().unwrap();
        holds(&mut daemon.client("s"), 0..3000, 1);
    }
    until("the old copy has gone", || {
        let all = copies(nodes[stays].as_ref().unwrap(), "s");
        all.len() == 3 && all.iter().all(|(node, _)| *node != from)
    });
    let now = leader_of(nodes[stays].as_ref().unwrap());
    holds(
        &mut nodes[now].as_ref().unwrap().client("s@before"),
        0..3000,
        1,
    );
    // The one that came leads, too, and opens what is under either key.
    for at in others(&nodes, leader)
        .into_iter()
        .filter(|at| *at != without)
    {
        nodes[at].take().unwrap().kill();
        nodes[at] = Some(members.start(at + 1).ready());
    }
    let now = leader_of(nodes[stays].as_ref().unwrap());
    holds(
        &mut nodes[now].as_ref().unwrap().client("s@before"),
        0..3000,
        1,
    );

    // With the snapshot the old key goes from each node.
    node(&nodes, stays, &["snapshot", "delete", "s@before"]).ok();
    for at in others(&nodes, leader) {
        let daemon = nodes[at].as_ref().unwrap();
        until("the old key is destroyed", || numbers(daemon, "s") == [2]);
    }
    // A copy of a volume that has no first key any more.
    let words = ["replica", "add", "s", "--node", &from, "--replace", &to];
    node(&nodes, stays, &words).ok();
    let daemon = nodes[leader].as_ref().unwrap();
    until("its key is there", || {
        has(daemon) && keys(daemon, "s")[0]["state"] == "open"
    });
    assert_eq!(numbers(daemon, "s"), [2]);
    holds(&mut daemon.client("s"), 0..3000, 1);
}
