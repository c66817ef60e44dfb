//! Three daemons on this machine and a volume with a copy on each: it takes writes with one of them gone, and one that
//! returns catches up.

use crate::client::{Client, WRITE};
use crate::harness::{free_address, signal, Daemon, Folder, Start};
use crate::networks::Network;
use crate::pattern::{content, fill, Content, BLOCK};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
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
    /// They have certificates, `n1.pem` and so on.
    has_tls: bool,
    /// Further lines of `[cluster]`.
    settings: String,
    /// Settings of no section.
    top: String,
    /// No configuration names members: they are agreed on.
    is_agreed: bool,
    /// Namespaces, one for each, if they have their own.
    networks: Vec<String>,
    store_size: &'static str,
}

impl Members {
    pub fn new(count: usize) -> Self {
        let own = (0..count).map(|_| (free_address(), free_address()));
        Self::at(own.collect())
    }

    /// Each in its network namespace, with certificates.
    pub fn in_network(network: &Network, count: usize) -> Self {
        let own = (1..=count).map(|id| {
            let host = Network::host(id);
            (format!("{host}:10811"), format!("{host}:10812"))
        });
        let members = Self {
            has_tls: true,
            networks: (1..=count).map(|id| network.node(id)).collect(),
            ..Self::at(own.collect())
        };
        members.certify("first", 1..=count);
        members
    }

    fn at(own: Vec<(String, String)>) -> Self {
        let list = own.iter().zip(1..).map(|((links, control), id)| {
            format!("[[cluster.node]]\nid = {id}\naddress = '{links}'\ncontrol = '{control}'\n")
        });
        Self {
            _one: ONE.lock().unwrap_or_else(PoisonError::into_inner),
            folder: Folder::new(),
            list: list.collect(),
            own,
            has_tls: false,
            settings: String::new(),
            top: String::new(),
            is_agreed: false,
            networks: Vec::new(),
            store_size: "800MiB",
        }
    }

    /// With stores of this size.
    pub fn with_stores_of(mut self, size: &'static str) -> Self {
        self.store_size = size;
        self
    }

    /// Its folder.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Whose configurations name no members: all but the first wait to be added.
    pub fn agreed(count: usize) -> Self {
        Self {
            is_agreed: true,
            ..Self::new(count)
        }
    }

    /// The same with certificates of one authority.
    pub fn agreed_with_tls(count: usize) -> Self {
        Self {
            is_agreed: true,
            ..Self::with_tls(count)
        }
    }

    /// Where a node answers others.
    pub fn control(&self, id: usize) -> &str {
        &self.own[id - 1].1
    }

    /// Whether configurations name all members from now on, or none.
    pub fn name_all(&mut self, all: bool) {
        self.is_agreed = !all;
    }

    /// With further settings of no section.
    pub fn with(mut self, top: &str) -> Self {
        self.top = top.into();
        self
    }

    /// With a zone for each, and further settings of `[cluster]`.
    pub fn in_zones(zones: &[&str], settings: &str) -> Self {
        let mut members = Self::new(zones.len());
        let list = members.list.split_inclusive("[[cluster.node]]\n").skip(1);
        let list: Vec<_> = list.map(|l| l.replace("[[cluster.node]]\n", "")).collect();
        let list = list.iter().zip(zones);
        members.list = list
            .map(|(member, zone)| {
                format!("[[cluster.node]]\n{member}labels = {{ zone = '{zone}' }}\n")
            })
            .collect();
        members.settings = settings.to_owned();
        members
    }

    /// With certificates of one authority.
    fn with_tls(count: usize) -> Self {
        let members = Self {
            has_tls: true,
            ..Self::new(count)
        };
        members.certify("first", 1..=count);
        members
    }

    /// Gives these members certificates of the authority of this name.
    fn certify(&self, authority: &str, ids: std::ops::RangeInclusive<usize>) {
        let esker = |words: &[&str]| {
            let program = crate::harness::program("esker");
            crate::harness::run(program.to_str().unwrap(), words).ok()
        };
        let ca = self.folder.join(authority).display().to_string();
        if !Path::new(&ca).exists() {
            esker(&["cert", "init", "--out", &ca]);
        }
        for id in ids {
            let (name, number) = (format!("n{id}"), id.to_string());
            esker(&[
                "cert",
                "node",
                &name,
                "--id",
                &number,
                "--authority",
                &ca,
                "--host",
                "localhost",
            ]);
            for end in ["key", "pem"] {
                let new = self.folder.join(&format!("{name}.new"));
                fs::copy(format!("{ca}/{name}.{end}"), &new).unwrap();
                fs::rename(&new, self.folder.join(&format!("{name}.{end}"))).unwrap();
            }
            fs::copy(
                format!("{ca}/ca.pem"),
                self.folder.join(&format!("{name}-ca.pem")),
            )
            .unwrap();
        }
    }

    fn config(&self, id: usize, cluster: &str) -> String {
        let (links, control) = &self.own[id - 1];
        let top = &self.top;
        let tls = match self.has_tls {
            true => {
                format!(
                    "{top}tls_cert = 'n{id}.pem'\ntls_key = 'n{id}.key'\ntls_ca = 'n{id}-ca.pem'\n"
                )
            }
            false => top.clone(),
        };
        if self.is_agreed {
            return format!(
                "{tls}[cluster]\nlisten = '{links}'\ncontrol = '{control}'\njoin = {}\n{}",
                id != 1,
                self.settings
            );
        }
        format!(
            "{tls}[node]\nid = {id}\n[cluster]\nid = '{cluster}'\nlisten = '{links}'\ncontrol = '{control}'\n{}{}",
            self.settings, self.list
        )
    }

    /// The folder of a node.
    pub fn data(&self, id: usize) -> std::path::PathBuf {
        self.folder.join(&format!("n{id}"))
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
            self.store_size,
        ];
        let network = self.networks.get(id - 1).cloned();
        Start::new(&data).with(&words).within(network)
    }
}

fn state(daemon: &Daemon, name: &str) -> String {
    let shown = daemon.json(&["volume", "show", name]);
    shown["state"].as_str().unwrap().to_owned()
}

/// Which of them serves the volume.
#[track_caller]
pub fn serving(daemons: &[Option<Daemon>], name: &str) -> usize {
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

pub fn write(client: &mut Client, blocks: std::ops::Range<u64>, version: u64) {
    for lba in blocks {
        let written = client.write(lba * BLOCK as u64, &fill(1, lba, version), 0);
        assert_eq!(written.unwrap(), Ok(vec![]), "block {lba}");
    }
    assert_eq!(client.flush().unwrap(), Ok(vec![]));
}

/// The same with many on their way at a time.
pub fn write_many(client: &mut Client, blocks: std::ops::Range<u64>, version: u64) {
    const AT_A_TIME: u64 = 64;
    for (n, lba) in (0..).zip(blocks.clone()) {
        client
            .send(
                0,
                WRITE,
                lba * BLOCK as u64,
                BLOCK as u32,
                &fill(1, lba, version),
            )
            .unwrap();
        if n >= AT_A_TIME {
            assert_eq!(client.reply().unwrap().1, 0);
        }
    }
    for _ in 0..AT_A_TIME.min(blocks.end - blocks.start) {
        assert_eq!(client.reply().unwrap().1, 0);
    }
}

#[track_caller]
pub fn holds(client: &mut Client, blocks: std::ops::Range<u64>, version: u64) {
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

/// One copy is away for longer than the log reaches back, and when it returns another one is gone: what it lacks comes from the
/// only one that is left, though nothing can be committed before it has that.
#[test]
fn a_copy_that_was_away_for_long_makes_the_majority() {
    let members = Members::new(3);
    let mut nodes: Vec<_> = (1..=3).map(|id| Some(members.start(id).ready())).collect();
    let words = ["--size", "256MiB", "--replicas", "3"];
    let first = nodes[0].as_ref().unwrap();
    first
        .esker(&[&["volume", "create", "v"][..], &words].concat())
        .ok();
    let leader = serving(&nodes, "v");
    let mut client = nodes[leader].as_ref().unwrap().client("v");
    write(&mut client, 0..64, 1);
    let away = (leader + 1) % 3;
    nodes[away].take().unwrap().kill();
    write_many(&mut client, 1000..18_000, 2);
    for name in ["v@a", "v@b"] {
        on_leader(&nodes, &["snapshot", "create", name]);
        write(&mut client, 32..96, 3);
    }
    drop(client);
    // A comparison waits for a checkpoint, and that cuts the log. Who has done that is who stays.
    let leader = on_leader(&nodes, &["snapshot", "diff", "v@a", "v@b"]);
    let third = 3 - away - leader;
    let mut client = nodes[leader].as_ref().unwrap().client("v");
    write(&mut client, 32..96, 3);
    nodes[third].take().unwrap().kill();
    nodes[away] = Some(members.start(away + 1).ready());
    write(&mut client, 80..128, 4);
    drop(client);
    assert!(nodes[leader]
        .as_ref()
        .unwrap()
        .log()
        .contains("no majority is there for more"));
    let returned = nodes[away].as_ref().unwrap();
    assert!(returned.log().contains("this replica has caught up"));
    // It leads then, or nobody does: the third one lacks the last writes.
    nodes[leader].take().unwrap().kill();
    nodes[third] = Some(members.start(third + 1).ready());
    let now = serving(&nodes, "v");
    assert_eq!(now, away);
    let returned = nodes[away].as_ref().unwrap();
    let mut client = returned.client("v");
    holds(&mut client, 0..32, 1);
    holds(&mut client, 32..80, 3);
    holds(&mut client, 80..128, 4);
    holds(&mut client, 17_900..18_000, 2);
    let snapshots = returned.json(&["snapshot", "list", "v"]);
    assert_eq!(snapshots.as_array().unwrap().len(), 2);
    holds(&mut returned.client("v@a"), 0..64, 1);
    drop(client);
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
    // One that is away costs nothing where the others are enough; a minority does not know whether the name is free.
    let mut nodes = nodes;
    nodes.pop().unwrap().kill();
    let told = create(&nodes[0], "v", "3").line(1);
    assert!(
        told.contains("node 3") && told.contains("no answer"),
        "{told}"
    );
    create(&nodes[0], "v", "2").ok();
    nodes.pop().unwrap().kill();
    create(&nodes[0], "x", "1").ok();
    let told = create(&nodes[0], "y", "2").line(1);
    assert!(told.contains("2 of 3 nodes do not answer"), "{told}");
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

fn create_encrypted(node: &Daemon, name: &str) {
    let words = [
        "volume",
        "create",
        name,
        "--size",
        "16MiB",
        "--replicas",
        "3",
        "--encrypt",
    ];
    node.esker(&words).ok();
}

/// Whether a store's file holds these bytes.
fn on_disk(members: &Members, id: usize, bytes: &[u8]) -> bool {
    let path = members.folder.join(&format!("n{id}/store-0.esker"));
    let mut file = fs::File::open(path).unwrap();
    let (mut window, mut kept) = (vec![0; 1 << 20], 0);
    loop {
        let read = file.read(&mut window[kept..]).unwrap();
        if read == 0 {
            return false;
        }
        let filled = kept + read;
        if window[..filled].iter().any(|b| *b != 0)
            && window[..filled].windows(bytes.len()).any(|w| w == bytes)
        {
            return true;
        }
        kept = filled.min(bytes.len() - 1);
        window.copy_within(filled - kept..filled, 0);
    }
}

/// Each node wraps the key of an encrypted volume with its own keyring; leaders are killed, and a replica whose keyring is
/// away says so and leaves leading to others.
#[test]
fn an_encrypted_volume_has_its_key_on_each_node() {
    let members = Members::new(3);
    let mut nodes: Vec<_> = (1..=3).map(|id| Some(members.start(id).ready())).collect();
    create_encrypted(nodes[0].as_ref().unwrap(), "s");
    let mut wrapped_by = std::collections::BTreeSet::new();
    for node in nodes.iter().flatten() {
        assert_eq!(node.json(&["volume", "show", "s"])["encrypted"], true);
        let keys = node.json(&["key", "show", "s"]);
        assert_eq!(
            (&keys[0]["state"], &keys[0]["key_id"]),
            (&"open".into(), &1.into())
        );
        wrapped_by.insert(keys[0]["kek"].as_str().unwrap().to_owned());
    }
    assert_eq!(wrapped_by.len(), 3, "three keyrings: {wrapped_by:?}");

    let leader = leader_of(&nodes, "s");
    let client = (leader + 1) % 3;
    let mut session = nodes[client].as_ref().unwrap().client("s");
    write(&mut session, 0..128, 1);
    // The client stays where it is and sees no error.
    nodes[leader].take().unwrap().kill();
    write(&mut session, 64..256, 2);
    holds(&mut session, 0..64, 1);
    holds(&mut session, 64..256, 2);
    let pattern = &fill(1, 100, 2)[..64];
    for id in (1..=3).filter(|id| *id != leader + 1) {
        assert!(
            !on_disk(&members, id, pattern),
            "node {id} has it in the clear"
        );
    }

    // The one that was killed comes back without its keyring.
    let keyring = members.folder.join(&format!("n{}/keyring", leader + 1));
    let away = members.folder.join("away");
    fs::rename(&keyring, &away).unwrap();
    nodes[leader] = Some(members.start(leader + 1).ready());
    let back = nodes[leader].as_ref().unwrap();
    until("it is locked", || state(back, "s") == "locked");
    let refused = Client::unix(&back.socket(), "s").map(drop);
    assert!(refused.is_err(), "a locked replica was attached to");
    // It follows all the same, and whoever else leads is killed: of the two that are left, the one with the key leads.
    let now = leader_of(&nodes, "s");
    let third = (0..3).find(|at| *at != leader && *at != now).unwrap();
    if now == client {
        drop(session);
    }
    nodes[now].take().unwrap().kill();
    let mut session = nodes[third].as_ref().unwrap().client("s");
    write(&mut session, 0..32, 3);
    holds(&mut session, 64..256, 2);
    drop(session);
    fs::rename(&away, &keyring).unwrap();
    let back = nodes[leader].as_ref().unwrap();
    signal(back.pid(), "HUP");
    until("it opens", || state(back, "s") == "ready");
    holds(&mut back.client("s"), 0..32, 3);
    for node in nodes.into_iter().flatten() {
        node.stop();
    }
}

/// Within a generous time.
#[track_caller]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Which node leads the volume, by what a node says that is there.
#[track_caller]
fn leader_of(nodes: &[Option<Daemon>], name: &str) -> usize {
    let mut found = None;
    until("somebody leads", || {
        let asked = nodes.iter().flatten().next().unwrap();
        let status = asked.json(&["status"]);
        let volumes = status["volumes"].as_array().unwrap().clone();
        let volume = volumes.iter().find(|v| v["name"] == name).cloned();
        let leader = volume.and_then(|v| v["leader"].as_str()?.parse::<usize>().ok());
        let leader = leader.map(|id| id - 1);
        found = leader.filter(|at| nodes[*at].is_some());
        found.is_some()
    });
    found.unwrap()
}

/// Runs a command at whoever leads `v`, which may be another one each time; tells who that was.
pub fn on_leader(nodes: &[Option<Daemon>], words: &[&str]) -> usize {
    let mut done = None;
    until("a leader does as it is told", || {
        let leader = leader_of(nodes, "v");
        let told = nodes[leader].as_ref().unwrap().esker(words);
        done = (told.code == Some(0)).then_some(leader);
        assert!(done.is_some() || told.err.contains("try again"), "{told:?}");
        done.is_some()
    });
    done.unwrap()
}

/// What members ask of each other goes over TLS when they have certificates, with nodes of the same authority alone; new
/// certificates count without a restart.
#[test]
fn members_ask_each_other_over_tls_and_new_certificates_count_at_once() {
    let members = Members::with_tls(3);
    let nodes: Vec<_> = (1..=3).map(|id| members.start(id).ready()).collect();
    let create = |name: &str| {
        let words = [
            "volume",
            "create",
            name,
            "--size",
            "16MiB",
            "--replicas",
            "3",
            "--encrypt",
        ];
        nodes[0].esker(&words)
    };
    create("a").ok();
    let mut session = nodes[1].client("a");
    write(&mut session, 0..16, 1);

    // Without TLS nobody is answered: what comes back is an alert of TLS, or nothing.
    let mut plain = TcpStream::connect(&members.own[1].1).unwrap();
    plain
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(answer.is_empty() || answer[0] == 21, "{answer:?}");

    // One node has certificates of another authority: it is no member for the others, nor they for it.
    members.certify("second", 1..=1);
    signal(nodes[0].pid(), "HUP");
    until("the others are strangers", || {
        let line = create("b");
        match line.code {
            Some(0) => {
                nodes[0].esker(&["volume", "delete", "b"]).ok();
                false
            }
            _ => line.line(1).contains("node "),
        }
    });
    members.certify("second", 2..=3);
    signal(nodes[1].pid(), "HUP");
    signal(nodes[2].pid(), "HUP");
    until("all know each other again", || create("c").code == Some(0));
    // Links that were there stay.
    write(&mut session, 8..32, 2);
    holds(&mut session, 0..8, 1);
    holds(&mut session, 8..32, 2);
    drop(session);
    for node in nodes {
        node.stop();
    }
}

pub fn copies(daemon: &Daemon, name: &str) -> Vec<(String, String)> {
    let listed = daemon.json(&["replica", "list", name]);
    let replicas = listed["replicas"].as_array().unwrap().iter();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    replicas
        .map(|r| (text(&r["node"]), text(&r["role"])))
        .collect()
}

/// A volume with one copy gets two more while a client writes, loses the first one, and is what it was.
fn holds_nothing(nodes: &[Option<Daemon>], id: usize) -> bool {
    let list = nodes[id - 1].as_ref().unwrap().json(&["volume", "list"]);
    list.as_array().unwrap().is_empty()
}

#[test]
fn a_volume_moves_to_other_nodes_under_a_client_that_sees_no_error() {
    let members = Members::new(4);
    let mut nodes: Vec<_> = (1..=4).map(|id| Some(members.start(id).ready())).collect();
    let node = |nodes: &[Option<Daemon>], id: usize, words: &[&str]| {
        nodes[id - 1].as_ref().unwrap().esker(words)
    };
    nodes[0].as_ref().unwrap().create("v", "64MiB");
    let mut client = nodes[0].as_ref().unwrap().client("v");
    write(&mut client, 0..64, 1);
    node(&nodes, 1, &["snapshot", "create", "v@early"]).ok();
    write(&mut client, 32..96, 2);
    // Copies that are made when it has grown know how large it was.
    node(&nodes, 1, &["volume", "resize", "v", "--size", "96MiB"]).ok();

    for id in ["2", "3"] {
        node(&nodes, 1, &["replica", "add", "v", "--node", id]).ok();
        write(&mut client, 64..128, 3);
    }
    let voters: Vec<_> = ["1", "2", "3"]
        .map(|id| (id.to_owned(), "voter".to_owned()))
        .into();
    let mut found = copies(nodes[0].as_ref().unwrap(), "v");
    found.sort();
    assert_eq!(found, voters);
    let told = node(&nodes, 1, &["replica", "add", "v", "--node", "2"]).line(1);
    assert!(told.contains("node 2 has a copy"), "{told}");
    let told = node(&nodes, 1, &["replica", "remove", "v", "--node", "4"]).line(1);
    assert!(told.contains("node 4"), "{told}");

    // The fourth takes the place of the second, whichever leads; then the first goes, which its client is attached to.
    let moved = ["replica", "add", "v", "--node", "4", "--replace", "2"];
    node(&nodes, 3, &moved).ok();
    until("the copy on node 2 goes by itself", || {
        holds_nothing(&nodes, 2)
    });
    let told = node(&nodes, 3, &["replica", "remove", "v", "--node", "1"]).line(1);
    assert!(
        told.contains("attached") && told.contains("node 1"),
        "{told}"
    );
    // Its own copy counts no more, and it is a door all the same.
    write(&mut client, 100..110, 4);
    holds(&mut client, 0..32, 1);
    drop(client);
    until("the copy on node 1 goes when nobody is attached", || {
        holds_nothing(&nodes, 1)
    });
    for (at, volumes) in [(0, 0), (1, 0), (2, 1), (3, 1)] {
        let list = nodes[at].as_ref().unwrap().json(&["volume", "list"]);
        assert_eq!(list.as_array().unwrap().len(), volumes, "node {}", at + 1);
    }

    // What is left knows each other after a restart of both.
    for at in [2, 3] {
        nodes[at].take().unwrap().kill();
    }
    for at in [2, 3] {
        nodes[at] = Some(members.start(at + 1).ready());
    }
    let now = serving(&nodes[2..], "v") + 2;
    let mut client = nodes[now].as_ref().unwrap().client("v");
    for (blocks, version) in [
        (0..32, 1),
        (32..64, 2),
        (64..100, 3),
        (100..110, 4),
        (110..128, 3),
    ] {
        holds(&mut client, blocks, version);
    }
    drop(client);
    let mut early = nodes[now].as_ref().unwrap().client("v@early");
    holds(&mut early, 0..64, 1);
    drop(early);
    let left = nodes[now].as_ref().unwrap();
    let listed = left.json(&["snapshot", "list", "v"]);
    assert_eq!(listed[0]["size_bytes"], 64 << 20, "{listed}");
    let shown = left.json(&["volume", "show", "v"]);
    assert_eq!(shown["size_bytes"], 96 << 20, "{shown}");
    node(
        &nodes,
        now + 1,
        &["volume", "delete", "v", "--with-snapshots"],
    )
    .ok();
    for node in nodes.into_iter().flatten() {
        assert_eq!(node.json(&["volume", "list"]).as_array().unwrap().len(), 0);
        node.stop();
    }
}
