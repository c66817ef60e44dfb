//! Three daemons on this machine and a volume with a copy on each: it takes writes with one of them gone, and one that
//! returns catches up.

use crate::client::Client;
use crate::harness::{free_address, Daemon, Folder, Start};
use crate::pattern::{content, fill, Content, BLOCK};
use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const CLUSTER: &str = "0d2f4a9e-7c31-4b58-9a60-1f2e3d4c5b6a";
/// An election, a restart and a catch-up, on a machine that runs other tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// One cluster at a time: each takes 2.4 GiB of disk.
static ONE: Mutex<()> = Mutex::new(());

/// Members of one cluster and how to start them.
pub struct Members {
    _one: MutexGuard<'static, ()>,
    folder: Folder,
    list: String,
    own: Vec<(String, String)>,
}

impl Members {
    pub fn new(count: usize) -> Self {
        let own: Vec<_> = (0..count)
            .map(|_| (free_address(), free_address()))
            .collect();
        let list = own.iter().zip(1..).map(|((links, control), id)| {
            format!("[[cluster.node]]\nid = {id}\naddress = '{links}'\ncontrol = '{control}'\n")
        });
        Self {
            _one: ONE.lock().unwrap_or_else(PoisonError::into_inner),
            folder: Folder::new(),
            list: list.collect(),
            own,
        }
    }

    fn config(&self, id: usize, cluster: &str) -> String {
        let (links, control) = &self.own[id - 1];
        format!(
            "[node]\nid = {id}\n[cluster]\nid = '{cluster}'\nlisten = '{links}'\ncontrol = '{control}'\n{}",
            self.list
        )
    }

    pub fn start(&self, id: usize) -> Start {
        self.start_in(id, CLUSTER)
    }

    fn start_in(&self, id: usize, cluster: &str) -> Start {
        let data = self.folder.join(&format!("n{id}"));
        let config = self.folder.join(&format!("n{id}.toml"));
        fs::write(&config, self.config(id, cluster)).unwrap();
        let words = [
            "--config",
            config.to_str().unwrap(),
            "--store-size",
            "800MiB",
        ];
        Start::new(&data).with(&words)
    }
}

fn state(daemon: &Daemon, name: &str) -> String {
    let shown = daemon.json(&["volume", "show", name]);
    shown["state"].as_str().unwrap().to_owned()
}

/// Which of them serves the volume.
#[track_caller]
fn serving(daemons: &[Option<Daemon>], name: &str) -> usize {
    let end = Instant::now() + PATIENCE;
    loop {
        for (at, daemon) in daemons.iter().enumerate() {
            if daemon.as_ref().is_some_and(|d| state(d, name) == "ready") {
                return at;
            }
        }
        assert!(Instant::now() < end, "nobody serves {name}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn write(client: &mut Client, blocks: std::ops::Range<u64>, version: u64) {
    for lba in blocks {
        let written = client.write(lba * BLOCK as u64, &fill(1, lba, version), 0);
        assert_eq!(written.unwrap(), Ok(vec![]), "block {lba}");
    }
    assert_eq!(client.flush().unwrap(), Ok(vec![]));
}

#[track_caller]
fn holds(client: &mut Client, blocks: std::ops::Range<u64>, version: u64) {
    for lba in blocks {
        let block = client
            .read(lba * BLOCK as u64, BLOCK as u32)
            .unwrap()
            .unwrap();
        assert_eq!(
            content(1, lba, &block).unwrap(),
            Content::Version(version),
            "block {lba}"
        );
    }
}

#[test]
fn three_copies_take_writes_without_one_node_and_it_catches_up_when_it_returns() {
    let members = Members::new(3);
    let mut nodes: Vec<_> = (1..=3).map(|id| Some(members.start(id).ready())).collect();
    let first = nodes[0].as_ref().unwrap();
    let create = |node: &Daemon, name: &str, replicas: &str| {
        node.esker(&[
            "volume",
            "create",
            name,
            "--size",
            "64MiB",
            "--replicas",
            replicas,
        ])
    };
    create(first, "v", "3").ok();
    for node in nodes.iter().flatten() {
        assert_eq!(node.json(&["volume", "show", "v"])["replicas"], 3);
    }

    let leader = serving(&nodes, "v");
    let mut client = nodes[leader].as_ref().unwrap().client("v");
    write(&mut client, 0..64, 1);
    // Another one is killed; the two that are left go on.
    let (away, third) = ((leader + 1) % 3, (leader + 2) % 3);
    nodes[away].take().unwrap().kill();
    write(&mut client, 32..96, 2);
    nodes[away] = Some(members.start(away + 1).ready());
    // Without the third, what is answered is on the one that has returned: it has all that came before.
    nodes[third].take().unwrap().kill();
    write(&mut client, 96..128, 3);
    // Of the two that are left then only that one has the last writes: it leads, or nobody does.
    drop(client);
    nodes[leader].take().unwrap().kill();
    nodes[third] = Some(members.start(third + 1).ready());
    let now = serving(&nodes, "v");
    let mut client = nodes[now].as_ref().unwrap().client("v");
    holds(&mut client, 0..32, 1);
    holds(&mut client, 32..96, 2);
    holds(&mut client, 96..128, 3);
    write(&mut client, 0..8, 4);
    drop(client);

    nodes[leader] = Some(members.start(leader + 1).ready());
    let now = serving(&nodes, "v");
    let deleting = nodes[now].as_ref().unwrap();
    deleting.esker(&["volume", "delete", "v"]).ok();
    for node in nodes.iter().flatten() {
        assert_eq!(node.json(&["volume", "list"]).as_array().unwrap().len(), 0);
    }
    for node in nodes.into_iter().flatten() {
        node.stop();
    }
}

#[test]
fn a_volume_with_copies_is_made_on_all_nodes_or_on_none() {
    let members = Members::new(3);
    let nodes: Vec<_> = (1..=3).map(|id| members.start(id).ready()).collect();
    let create = |node: &Daemon, name: &str, replicas: &str| {
        node.esker(&[
            "volume",
            "create",
            name,
            "--size",
            "64MiB",
            "--replicas",
            replicas,
        ])
    };
    let told = create(&nodes[0], "v", "4").line(1);
    assert!(told.contains("this cluster has 3"), "{told}");
    nodes[2].create("taken", "64MiB");
    let told = create(&nodes[0], "taken", "2").line(1);
    assert!(told.contains("node 3") && told.contains("taken"), "{told}");
    let odd = ["volume", "create", "v", "--size", "4097", "--replicas", "3"];
    let told = nodes[1].esker(&odd).line(1);
    assert!(told.contains("4096"), "{told}");
    for (node, volumes) in nodes.iter().zip([0, 0, 1]) {
        let list = node.json(&["volume", "list"]);
        assert_eq!(list.as_array().unwrap().len(), volumes, "{list}");
    }
    create(&nodes[1], "w", "3").ok();
    let told = nodes[0].esker(&["volume", "rename", "w", "x"]).line(1);
    assert!(told.contains("several copies"), "{told}");
    // A member that is away might have the name.
    let mut nodes = nodes;
    nodes.pop().unwrap().kill();
    let told = create(&nodes[0], "v", "2").line(1);
    assert!(
        told.contains("node 3") && told.contains("no answer"),
        "{told}"
    );
}

#[test]
fn a_node_keeps_its_ids_and_is_one_of_its_members() {
    let members = Members::new(2);
    members.start(1).ready().stop();
    let other = "ffffffff-ffff-4fff-bfff-ffffffffffff";
    let told = members.start_in(1, other).refusal(1);
    assert!(told.contains("node.toml") && told.contains(other), "{told}");
    let config = members.folder.join("n1.toml");
    let text = members.config(2, CLUSTER);
    fs::write(&config, text).unwrap();
    let words = ["--config", config.to_str().unwrap()];
    let told = Start::new(&members.folder.join("n1"))
        .with(&words)
        .refusal(1);
    assert!(
        told.contains("this is node 1") && told.contains("node 2"),
        "{told}"
    );
    let text = members
        .config(1, CLUSTER)
        .replace("listen = '127.0.0.1", "listen = '0.0.0.0");
    fs::write(&config, text).unwrap();
    let told = Start::new(&members.folder.join("n1"))
        .with(&words)
        .refusal(1);
    assert!(
        told.contains("cluster.listen") && told.contains("TLS"),
        "{told}"
    );
}
