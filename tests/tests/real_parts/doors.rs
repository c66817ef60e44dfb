//! Any node of a cluster takes what operators ask about a volume with several copies, whoever leads it, also when
//! leaders die meanwhile.

use crate::cluster::Members;
use crate::harness::{signal, Daemon};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Who ask at a time.
const ASKING: usize = 6;
/// An election and whatever else this machine has to do.
const PATIENCE: Duration = Duration::from_secs(60);

fn volumes(daemon: &Daemon) -> usize {
    daemon.json(&["volume", "list"]).as_array().unwrap().len()
}

fn names(daemon: &Daemon) -> Vec<String> {
    let listed = daemon.json(&["snapshot", "list", "v"]);
    let name = |s: &serde_json::Value| s["name"].as_str().unwrap().to_owned();
    listed.as_array().unwrap().iter().map(name).collect()
}

/// Who leads the volume, as a node with a copy tells.
fn leader(daemon: &Daemon) -> Option<usize> {
    let status = daemon.json(&["status"]);
    let volumes = status["volumes"].as_array().unwrap();
    let volume = volumes.iter().find(|v| v["name"] == "v")?;
    let id: usize = volume["leader"].as_str()?.parse().ok()?;
    Some(id - 1)
}

/// Four nodes, a volume with a copy on three of them, and the one that has none.
fn four() -> (Members, Vec<Daemon>, usize) {
    let members = Members::new(4);
    let nodes: Vec<_> = (1..=4).map(|id| members.start(id).ready()).collect();
    let words = "volume create v --size 64MiB --replicas 3";
    nodes[0].esker(&words.split(' ').collect::<Vec<_>>()).ok();
    let without: Vec<_> = (0..4).filter(|at| volumes(&nodes[*at]) == 0).collect();
    assert_eq!(without.len(), 1);
    let without = without[0];
    (members, nodes, without)
}

#[test]
fn every_node_takes_what_the_leader_is_to_do() {
    let (_members, nodes, without) = four();
    for (n, node) in (1_u64..).zip(&nodes) {
        let ask = |text: &str| node.esker(&text.split(' ').collect::<Vec<_>>());
        ask(&format!("snapshot create v@s{n}")).ok();
        ask(&format!("snapshot create v@gone{n}")).ok();
        ask(&format!("snapshot delete v@gone{n}")).ok();
        ask(&format!("snapshot rollback v@s{n} --yes --discard")).ok();
        ask(&format!("volume resize v --size {}MiB", 64 + n * 4)).ok();
        ask(&format!("snapshot diff v@s{n}")).ok();
        // A refusal is the leader's own.
        let told = ask("snapshot create v@s1").line(1);
        assert_eq!(told, "esker: volume v has a snapshot named s1", "node {n}");
        let told = ask("snapshot delete v@none").line(1);
        assert_eq!(told, "esker: volume v has no snapshot named none", "{n}");
    }
    // Reading: what a node without a copy tells is another one's.
    let node = &nodes[without];
    assert_eq!(names(node), ["s1", "s2", "s3", "s4"]);
    let shown = node.json(&["volume", "show", "v"]);
    assert_eq!(shown["size_bytes"], 80 << 20);
    node.esker(&["space", "v"]).ok();
    let told = node.esker(&["volume", "show", "none"]).line(1);
    assert!(told.contains("no volume"), "{told}");

    // Copies come and go, and the volume goes, asked of a node that has none.
    let first = (0..4).find(|at| *at != without).unwrap();
    let id = (first + 1).to_string();
    node.esker(&["replica", "remove", "v", "--node", &id]).ok();
    let words = ["replica", "add", "v", "--node", &id, "--no-wait"];
    let added = node.esker(&words);
    assert!(added.code == Some(0) || added.line(1).contains("gets a copy"));
    let end = Instant::now() + PATIENCE;
    while crate::cluster::copies(&nodes[first], "v").len() < 3 {
        assert!(Instant::now() < end, "no third copy");
        std::thread::sleep(Duration::from_millis(100));
    }
    let words = ["volume", "delete", "v", "--with-snapshots", "--yes"];
    node.esker(&words).ok();
    for node in nodes {
        assert_eq!(volumes(&node), 0);
        node.stop();
    }
}

#[test]
fn what_is_told_is_true_when_leaders_are_killed_under_snapshots() {
    let (members, nodes, door) = four();
    let mut nodes: Vec<_> = nodes.into_iter().map(Some).collect();
    let door_node = nodes[door].take().unwrap();
    let stop = AtomicBool::new(false);
    let (mut done, mut failed, mut unknown) = (BTreeSet::new(), Vec::new(), 0);
    std::thread::scope(|s| {
        // Several at a time, so that some are on their way whenever a leader dies.
        let (door_node, stop) = (&door_node, &stop);
        let ask = |by: usize| {
            let mut told = Vec::new();
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let (name, begun) = (format!("k{by}-{n}"), Instant::now());
                let made = door_node.esker(&["snapshot", "create", &format!("v@{name}")]);
                assert!(begun.elapsed() < PATIENCE);
                told.push((name, made));
            }
            told
        };
        let asking: Vec<_> = (0..ASKING).map(|by| s.spawn(move || ask(by))).collect();
        for _ in 0..3 {
            std::thread::sleep(Duration::from_secs(1));
            let end = Instant::now() + PATIENCE;
            let victim = loop {
                let known = nodes.iter().flatten().find_map(leader);
                match known.filter(|at| nodes[*at].is_some()) {
                    Some(at) => break at,
                    None => assert!(Instant::now() < end, "nobody leads"),
                }
            };
            // Held up first: what is asked of it now is on its way when it dies.
            let leads = nodes[victim].take().unwrap();
            signal(leads.pid(), "STOP");
            std::thread::sleep(Duration::from_millis(300));
            leads.kill();
            std::thread::sleep(Duration::from_secs(2));
            nodes[victim] = Some(members.start(victim + 1).ready());
        }
        stop.store(true, Ordering::Relaxed);
        let told = asking.into_iter().flat_map(|one| one.join().unwrap());
        for (name, made) in told {
            match made.code {
                Some(0) => _ = done.insert(name),
                _ => {
                    let line = made.line(1);
                    match line.contains("not known") {
                        true => unknown += 1,
                        false => failed.push((name, line)),
                    }
                }
            }
        }
    });
    eprintln!(
        "doors: {} done, {} failed, {unknown} unknown",
        done.len(),
        failed.len()
    );
    // One more after all of them: the list of who leads is complete then.
    door_node.esker(&["snapshot", "create", "v@last"]).ok();
    let leads = nodes.iter().flatten().find_map(leader).unwrap();
    let there = names(nodes[leads].as_ref().unwrap());
    let distinct: BTreeSet<_> = there.iter().cloned().collect();
    assert_eq!(distinct.len(), there.len(), "twice: {there:?}");
    let lost: Vec<_> = done.difference(&distinct).collect();
    assert!(lost.is_empty(), "told as done, and not there: {lost:?}");
    for (name, line) in &failed {
        assert!(!distinct.contains(name), "{name} is there: {line}");
    }
    // Nobody waits for a person: at most the requests that were on their way when a leader died are in doubt.
    assert!(failed.is_empty(), "{failed:?}");
    assert!(
        unknown <= 3 * ASKING && done.len() > 10,
        "{unknown} unknown"
    );
    for node in nodes.into_iter().flatten().chain([door_node]) {
        node.stop();
    }
}
