//! Group snapshots: several volumes at one moment, while one write waits for the other across the volumes.

use crate::client::Client;
use crate::cluster::{until, Members};
use crate::harness::{Daemon, Folder, Start};
use crate::pattern::BLOCK;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;

const VOLUMES: [&str; 3] = ["a", "b", "c"];

/// So many chains at a time, each in a block of its own.
const CHAINS: usize = 8;

/// Each writes 1 to the first volume, and when that is answered 1 to the second one, and so on; then 2, from the first one on.
struct Chains {
    ends: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Chains {
    /// By way of these daemons: at first each volume by its own, and by the first one of them when that has gone.
    fn begin(homes: [&Daemon; 3]) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let threads = (0..CHAINS).map(|chain| {
            let (ends, rounds) = (Arc::clone(&ends), Arc::clone(&rounds));
            let refuge = homes[0].socket();
            let clients = VOLUMES.iter().zip(homes).map(|(v, d)| d.client(v));
            let mut clients: Vec<Client> = clients.collect();
            std::thread::spawn(move || {
                let (mut block, at) = (vec![0; BLOCK], (chain * BLOCK) as u64);
                for round in 1_u64.. {
                    if ends.load(Ordering::Relaxed) {
                        return;
                    }
                    block[..8].copy_from_slice(&round.to_le_bytes());
                    for (client, volume) in clients.iter_mut().zip(VOLUMES) {
                        let answer = client.write(at, &block, 0).or_else(|_| {
                            *client = Client::unix(&refuge, volume).unwrap();
                            client.write(at, &block, 0)
                        });
                        assert_eq!(answer.unwrap(), Ok(vec![]));
                    }
                    rounds.fetch_max(round, Ordering::Relaxed);
                }
            })
        });
        let threads = threads.collect();
        Self {
            ends,
            rounds,
            threads,
        }
    }

    fn goes_on(&self) {
        let before = self.rounds.load(Ordering::Relaxed);
        until("the chain goes on", || {
            self.rounds.load(Ordering::Relaxed) > before + 3
        });
    }

    fn end(self) -> u64 {
        self.ends.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|t| t.join().unwrap());
        self.rounds.load(Ordering::Relaxed)
    }
}

/// What each chain had got to in the volumes' snapshots of this name.
fn held(daemon: &Daemon, snapshot: &str) -> Vec<[u64; 3]> {
    let blocks = VOLUMES.map(|volume| {
        let mut client = daemon.client(&format!("{volume}@{snapshot}"));
        let blocks = client.read(0, (CHAINS * BLOCK) as u32).unwrap().unwrap();
        let rounds = blocks.chunks(BLOCK);
        rounds
            .map(|block| u64::from_le_bytes(block[..8].try_into().unwrap()))
            .collect::<Vec<_>>()
    });
    (0..CHAINS)
        .map(|chain| [0, 1, 2].map(|volume: usize| blocks[volume][chain]))
        .collect()
}

/// No write is missing that was answered before another one was asked for that is there.
fn is_one_moment(held: &[[u64; 3]]) -> bool {
    held.iter().all(|[a, b, c]| a >= b && b >= c && c + 1 >= *a)
}

fn create(daemon: &Daemon, snapshot: &str) -> serde_json::Value {
    let places = VOLUMES.map(|volume| format!("{volume}@{snapshot}"));
    let mut words = vec!["snapshot", "create"];
    words.extend(places.iter().map(String::as_str));
    daemon.json(&words)
}

/// The group snapshots that a volume is in, by the names of its snapshots.
fn cuts(daemon: &Daemon, volume: &str) -> Vec<(String, String)> {
    let listed = daemon.json(&["snapshot", "list", volume]);
    let of = |s: &serde_json::Value| {
        let cut = s["group_snapshot"]["id"].as_str()?;
        assert_eq!(s["group_snapshot"]["volumes"], 3, "{s}");
        Some((s["name"].as_str()?.to_owned(), cut.to_owned()))
    };
    listed.as_array().unwrap().iter().filter_map(of).collect()
}

/// Which nodes lead the volumes, as one of them tells; each of them is led.
fn leaders(nodes: &[Option<Daemon>]) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    until("all volumes are led", || {
        let status = nodes.iter().flatten().next().unwrap().json(&["status"]);
        let volumes = status["volumes"].as_array().unwrap().iter();
        let led = volumes.filter_map(|v| v["leader"].as_str()?.parse::<usize>().ok());
        let led: Vec<usize> = led.map(|id| id - 1).collect();
        found = led.iter().copied().collect();
        led.len() == VOLUMES.len() && led.iter().all(|at| nodes[*at].is_some())
    });
    found
}

#[test]
fn volumes_of_one_node_are_kept_at_one_moment() {
    let folder = Folder::new();
    let how = Start::new(&folder.join("d")).with(&["--store-size", "1GiB"]);
    let daemon = how.ready();
    VOLUMES
        .iter()
        .for_each(|volume| daemon.create(volume, "16MiB"));
    let chains = Chains::begin([&daemon; 3]);
    chains.goes_on();
    // One after the other they are of different moments: what is looked for here can be found.
    let mut one_by_one = 0;
    for n in 0..20 {
        for volume in VOLUMES {
            let place = format!("{volume}@single{n}");
            daemon.esker(&["snapshot", "create", &place]).ok();
        }
        one_by_one += usize::from(is_one_moment(&held(&daemon, &format!("single{n}"))));
    }
    assert!(one_by_one < 20, "the check finds nothing");

    for n in 0..20 {
        let taken = create(&daemon, &format!("s{n}"));
        let told = taken["snapshots"].as_array().unwrap();
        assert_eq!(told.len(), 3, "{taken}");
        let held = held(&daemon, &format!("s{n}"));
        assert!(is_one_moment(&held), "{held:?}");
    }
    assert!(chains.end() > 20);
    assert_eq!(cuts(&daemon, "a").len(), 20);
    assert_eq!(cuts(&daemon, "a"), cuts(&daemon, "c"));

    // All or none.
    let refused = |places: &[&str]| {
        let mut words = vec!["snapshot", "create"];
        words.extend(places);
        daemon.esker(&words).line(1)
    };
    let told = refused(&["a@new", "b@s3", "c@new"]);
    assert!(told.contains("volume b has a snapshot named s3"), "{told}");
    let told = refused(&["a@new", "none@new"]);
    assert!(told.contains("no volume is named none"), "{told}");
    let told = refused(&["a@new", "a@other"]);
    assert!(told.contains("volume a is named twice"), "{told}");
    let listed = daemon.json(&["snapshot", "list", "a"]).to_string();
    assert!(!listed.contains("\"new\""), "{listed}");
    daemon.stop();
}

#[test]
fn volumes_that_other_nodes_lead_are_kept_at_one_moment_also_when_one_dies() {
    let members = Members::new(3);
    let mut nodes: Vec<_> = (1..=3).map(|id| Some(members.start(id).ready())).collect();
    for (volume, node) in VOLUMES.iter().zip(&nodes) {
        let words = [
            "volume",
            "create",
            volume,
            "--size",
            "16MiB",
            "--replicas",
            "3",
        ];
        node.as_ref().unwrap().esker(&words).ok();
    }
    // Whoever leads all is killed, until two lead.
    let mut led = leaders(&nodes);
    while led.len() < 2 {
        let at = led.first().copied().unwrap();
        nodes[at].take().unwrap().kill();
        until("others lead", || {
            led = leaders(&nodes);
            !led.contains(&at)
        });
        nodes[at] = Some(members.start(at + 1).ready());
    }
    let chains = Chains::begin([0, 1, 2].map(|at| nodes[at].as_ref().unwrap()));
    chains.goes_on();
    for n in 0..20 {
        let node = nodes[n % 3].as_ref().unwrap();
        let taken = create(node, &format!("s{n}"));
        let waited = taken["held_microseconds"].as_u64().unwrap();
        assert!(waited <= 500_000, "{taken}");
    }
    chains.goes_on();

    // One that leads is killed while moments are taken: of those that were told there are all, of others none or those of
    // one moment.
    let dies = leaders(&nodes).last().copied().unwrap();
    assert_ne!(dies, 0, "the last one of two");
    let places = VOLUMES.map(|volume| format!("{volume}@"));
    let victim = nodes[dies].take().unwrap();
    let node = nodes[0].as_ref().unwrap();
    let mut sure: Vec<String> = (0..20).map(|n| format!("s{n}")).collect();
    let victim = std::thread::scope(|scope| {
        let killer = scope.spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(300));
            victim.kill();
        });
        for n in 20..60 {
            let name = format!("s{n}");
            let named = places.clone().map(|place| place + &name);
            let mut words = vec!["snapshot", "create"];
            words.extend(named.iter().map(String::as_str));
            if node.esker(&words).code == Some(0) {
                sure.push(name);
            }
        }
        killer.join()
    });
    victim.unwrap();
    assert!(sure.len() > 30, "{sure:?}");
    chains.goes_on();
    assert!(chains.end() > 60);
    nodes[dies] = Some(members.start(dies + 1).ready());
    for node in nodes.iter().flatten() {
        until("every node has the snapshots of every moment", || {
            let all = VOLUMES.map(|volume| cuts(node, volume));
            sure.iter().all(|name| {
                let of = |cuts: &Vec<(String, String)>| cuts.iter().find(|c| c.0 == *name).cloned();
                let [a, b, c] = [&all[0], &all[1], &all[2]].map(of);
                a.is_some() && a == b && b == c
            })
        });
    }
    for name in &sure {
        let held = held(nodes[0].as_ref().unwrap(), name);
        assert!(is_one_moment(&held), "{name}: {held:?}");
    }
    for node in nodes.into_iter().flatten() {
        node.stop();
    }
}
