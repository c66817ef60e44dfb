//! What a volume with several copies is born with: labels, a snapshot schedule and a rewind window, on all its copies
//! and on those that come later. Of its nodes the one that leads keeps the schedule.

use crate::cluster::{copies, on_leader, serving, until, write, Members};
use crate::harness::{free_address, Daemon};
use crate::metrics::Scrape;
use serde_json::{json, Value};
use std::collections::BTreeSet;

/// Seconds between two automatic snapshots.
const PERIOD: u64 = 4;

/// When each automatic snapshot of the volume was taken, as its copy at this node tells.
fn taken(daemon: &Daemon) -> Vec<u64> {
    let listed = daemon.json(&["snapshot", "list", "v"]);
    let all = listed.as_array().unwrap().iter();
    let all = all.filter(|s| !s["automatic"].is_null());
    let name = |s: &Value| s["name"].as_str().unwrap().to_owned();
    // auto-2026-11-21T10.05.00Z
    let parts = |name: String| {
        let digits: Vec<u64> = name[16..24]
            .split('.')
            .map(|n| n.parse().unwrap())
            .collect();
        (digits[0] * 60 + digits[1]) * 60 + digits[2]
    };
    all.map(name).map(parts).collect()
}

fn metric(address: &str, name: &str) -> f64 {
    Scrape::of(address).get(name)
}

#[track_caller]
fn is_whole(daemon: &Daemon) {
    let shown = daemon.json(&["volume", "show", "v"]);
    assert_eq!(shown["labels"], json!({"team": "red", "tier": "1"}));
    assert_eq!(shown["snapshot_schedule"], "every 4s keep 1000");
    assert_eq!(shown["rewind_seconds"], 1800);
}

#[test]
fn copies_have_labels_from_birth_and_leaders_keep_schedules() {
    let members = Members::new(4);
    let addresses: Vec<String> = (0..4).map(|_| free_address()).collect();
    let default = ["--snapshot-schedule", "every 4s keep 1000"];
    let start = |at: usize| {
        let start = members.start(at + 1).with(&default);
        start.metrics(&addresses[at]).ready()
    };
    let mut nodes: Vec<_> = (0..4).map(|at| Some(start(at))).collect();
    let words =
        "volume create v --size 64MiB --replicas 3 --label team=red --label tier=0 --rewind 30m";
    let words: Vec<_> = words.split(' ').collect();
    nodes[0].as_ref().unwrap().esker(&words).ok();
    // A change of them, which copies that come later find in the log.
    let words = ["volume", "set", "v", "--label", "tier=1"];
    nodes[3].as_ref().unwrap().esker(&words).ok();
    let held = |node: &Daemon| {
        !node
            .json(&["volume", "list"])
            .as_array()
            .unwrap()
            .is_empty()
    };
    let holders: Vec<usize> = (0..4)
        .filter(|at| held(nodes[*at].as_ref().unwrap()))
        .collect();
    let without = (0..4).find(|at| !holders.contains(at)).unwrap();
    for at in &holders {
        until("every copy has them", || {
            let shown = nodes[*at].as_ref().unwrap().json(&["volume", "show", "v"]);
            shown["labels"]["tier"] == "1"
        });
        is_whole(nodes[*at].as_ref().unwrap());
    }

    for _ in 0..2 {
        let leads = on_leader(&nodes, &["snapshot", "prune", "v"]);
        let (before, known) = {
            let node = nodes[leads].as_ref().unwrap();
            let mut client = node.client("v");
            write(&mut client, 0..8, 1);
            until("an automatic snapshot", || !taken(node).is_empty());
            (taken(node).len(), node.json(&["volume", "show", "v"]))
        };
        assert!(!known["rewind_from_unix"].is_null(), "{known}");
        nodes[leads].take().unwrap().kill();
        let door = nodes[without].as_ref().unwrap();
        until("the next leader takes them", || {
            taken(door).len() > before + 1
        });
        nodes[leads] = Some(start(leads));
    }
    // Each period has one, whoever led, and nobody else tried.
    let leads = on_leader(&nodes, &["snapshot", "prune", "v"]);
    let all = taken(nodes[leads].as_ref().unwrap());
    let periods: BTreeSet<u64> = all.iter().map(|second| second / PERIOD).collect();
    assert_eq!(periods.len(), all.len(), "twice in a period: {all:?}");
    let counted = |result: &str| {
        let name = format!("esker_automatic_snapshots_total{{result=\"{result}\"}}");
        addresses.iter().map(|at| metric(at, &name)).sum::<f64>()
    };
    assert!(counted("taken") >= 1.0);
    assert_eq!(counted("failed"), 0.0);

    // A copy that comes later has them, too: what it was born with, and what the log says.
    let gone = holders.iter().find(|at| **at != leads).unwrap();
    let id = (gone + 1).to_string();
    let node = nodes[leads].as_ref().unwrap();
    node.esker(&["replica", "remove", "v", "--node", &id]).ok();
    let id = (without + 1).to_string();
    node.esker(&["replica", "add", "v", "--node", &id]).ok();
    assert_eq!(copies(node, "v").len(), 3);
    is_whole(nodes[without].as_ref().unwrap());
    serving(&nodes, "v");
    for node in nodes.into_iter().flatten() {
        node.stop();
    }
}
