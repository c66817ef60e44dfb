//! Three daemons, each in a network namespace of its own, and a switch between them: links are cut, made deaf, parted and
//! slowed, processes killed and held up, while clients at one of the nodes write and read. They see pauses and nothing else,
//! and what they were answered is on every copy in the end.

use crate::client::Client;
use crate::cluster::Members;
use crate::disk::{Disk, NEEDS};
use crate::failover::{check, leader, wait_for_leader, writer};
use crate::harness::{has, run, run_for, setting, signal, skip, Daemon};
use crate::pattern::{content, fill, Content, BLOCK};
use crate::postgres::{programs, transactions, Postgres};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const NODES: usize = 3;
/// Elections, reconnections and whatever else this machine has to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// Networks that this process has made: several tests may have one at a time.
static MADE: AtomicUsize = AtomicUsize::new(0);

/// A switch, and a namespace for each node, whose interface has the address that [`Network::host`] tells.
pub struct Network {
    name: String,
}

impl Network {
    /// None where this machine does not allow it, which is told.
    pub fn new() -> Option<Self> {
        if !has(&["ip", "tc", "nsenter"]) {
            return None;
        }
        let network = Self {
            name: format!(
                "esker-{}-{}",
                std::process::id(),
                MADE.fetch_add(1, Ordering::Relaxed)
            ),
        };
        let hub = network.hub();
        let made = run("ip", &["netns", "add", &hub]);
        if made.code != Some(0) {
            skip(&format!("no network namespaces: {}", made.err.trim()));
            return None;
        }
        network.at_hub("link add switch type bridge");
        network.at_hub("link set switch up");
        for id in 1..=NODES {
            let node = network.node(id);
            run("ip", &["netns", "add", &node]).ok();
            network.at_hub(&format!(
                "link add p{id} type veth peer name e0 netns {node}"
            ));
            network.at_hub(&format!("link set p{id} master switch up"));
            let host = Self::host(id);
            for words in [
                "link set lo up",
                &format!("addr add {host}/24 dev e0"),
                "link set e0 up",
            ] {
                network.ip(&node, words);
            }
        }
        Some(network)
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.name)
    }

    /// Name of a node's namespace.
    pub fn node(&self, id: usize) -> String {
        format!("{}-{id}", self.name)
    }

    /// Its address.
    pub fn host(id: usize) -> String {
        format!("10.99.0.{id}")
    }

    #[track_caller]
    fn ip(&self, namespace: &str, words: &str) {
        let all: Vec<&str> = ["-n", namespace]
            .into_iter()
            .chain(words.split(' '))
            .collect();
        run("ip", &all).ok();
    }

    #[track_caller]
    fn at_hub(&self, words: &str) {
        self.ip(&self.hub(), words);
    }

    #[track_caller]
    fn queue(&self, id: usize, words: &str) {
        let hub = self.hub();
        let text = format!("-n {hub} qdisc replace dev p{id} root {words}");
        run("tc", &text.split(' ').collect::<Vec<_>>()).ok();
    }

    /// Nothing goes in or out.
    pub fn cut(&self, id: usize) {
        self.at_hub(&format!("link set p{id} down"));
    }

    /// What it says is heard, and it hears nothing.
    fn deafen(&self, id: usize) {
        self.queue(id, "pfifo limit 0");
    }

    /// It hears what others say at 4 Mbit/s, and up to 0.3 s later.
    fn slow(&self, id: usize) {
        self.queue(id, "tbf rate 4mbit burst 16kb latency 300ms");
    }

    /// Two do not hear each other, and both hear the third.
    fn part(&self, pair: [usize; 2]) {
        for id in pair {
            self.at_hub(&format!("link set p{id} type bridge_slave isolated on"));
        }
    }

    /// As it was in the beginning.
    pub fn heal(&self) {
        for id in 1..=NODES {
            self.at_hub(&format!("link set p{id} type bridge_slave isolated off"));
            self.at_hub(&format!("link set p{id} up"));
            self.queue(id, "pfifo limit 1000");
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let nodes = (1..=NODES).map(|id| self.node(id));
        for namespace in nodes.chain([self.hub()]) {
            let _ = run("ip", &["netns", "del", &namespace]); // as far as it was made
        }
    }
}

/// What is done to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Cut,
    Deaf,
    Parted,
    Slow,
    Killed,
    HeldUp,
    HeldUpAndCut,
}

const FAULTS: [Fault; 7] = [
    Fault::Cut,
    Fault::Deaf,
    Fault::Parted,
    Fault::Slow,
    Fault::Killed,
    Fault::HeldUp,
    Fault::HeldUpAndCut,
];

/// Draws faults by a seed.
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as usize % bound
    }
}

/// What is done, until when, and whether to the clients' own node, the first, too: it is never killed or held up otherwise.
struct Plan {
    draw: Draw,
    seconds: u64,
    spares_first: bool,
}

/// One fault after the other, at any node.
fn trouble(
    network: &Network,
    members: &Members,
    nodes: &mut [Option<Daemon>],
    plan: Plan,
) -> BTreeMap<Fault, usize> {
    let (mut draw, mut done) = (plan.draw, BTreeMap::new());
    let end = Instant::now() + Duration::from_secs(plan.seconds);
    while Instant::now() < end {
        let fault = FAULTS[draw.below(FAULTS.len())];
        let any = draw.below(NODES) + 1;
        let other = match plan.spares_first {
            true => draw.below(NODES - 1) + 2,
            false => any,
        };
        match fault {
            Fault::Cut => network.cut(any),
            Fault::Deaf => network.deafen(any),
            Fault::Parted => network.part([any, any % NODES + 1]),
            Fault::Slow => network.slow(any),
            Fault::Killed => nodes[other - 1].take().unwrap().kill(),
            Fault::HeldUp => signal(nodes[other - 1].as_ref().unwrap().pid(), "STOP"),
            Fault::HeldUpAndCut => {
                signal(nodes[other - 1].as_ref().unwrap().pid(), "STOP");
                network.cut(other);
            }
        }
        *done.entry(fault).or_default() += 1;
        std::thread::sleep(Duration::from_millis(500 + 100 * draw.below(26) as u64));
        match fault {
            Fault::Killed => nodes[other - 1] = Some(members.start(other).ready()),
            Fault::HeldUp => signal(nodes[other - 1].as_ref().unwrap().pid(), "CONT"),
            Fault::HeldUpAndCut => {
                signal(nodes[other - 1].as_ref().unwrap().pid(), "CONT");
                std::thread::sleep(Duration::from_millis(200));
            }
            _ => {}
        }
        network.heal();
        std::thread::sleep(Duration::from_millis(200 + 100 * draw.below(16) as u64));
    }
    done
}

fn started(members: &Members, size: &str) -> Vec<Option<Daemon>> {
    let nodes: Vec<_> = (1..=NODES)
        .map(|id| Some(members.start(id).ready()))
        .collect();
    let first = nodes[0].as_ref().unwrap();
    let words = format!("volume create v --size {size} --replicas 3");
    first.esker(&words.split(' ').collect::<Vec<_>>()).ok();
    wait_for_leader(first, None);
    nodes
}

/// ESKER_NETWORK_SECONDS says for how long, ESKER_NETWORK_SEED what is done.
#[test]
fn links_are_cut_and_slowed_and_clients_see_pauses_alone() {
    let Some(network) = Network::new() else {
        return;
    };
    let seconds = setting("ESKER_NETWORK_SECONDS", 20);
    let seed = setting("ESKER_NETWORK_SEED", 1);
    let members = Members::in_network(&network, NODES);
    let mut nodes = started(&members, "64MiB");
    let door_uri = nodes[0].as_ref().unwrap().uri("v");
    let client = nodes[0].as_ref().unwrap().client("v");
    let (stop, has_fio) = (AtomicBool::new(false), has(&["fio"]));
    let (longest, versions) = std::thread::scope(|s| {
        let plain = s.spawn(|| writer(client, &stop));
        let fio = s.spawn(|| {
            let mut passes = 0;
            while has_fio && !stop.load(Ordering::Relaxed) {
                let text = format!(
                    "--name=networks --ioengine=nbd --uri={door_uri} --offset=32M --size=8M --rw=randwrite --bs=4k \
                     --iodepth=16 --fsync=32 --verify=crc32c --verify_fatal=1 --verify_state_save=0 \
                     --randseed={passes} --output-format=terse"
                );
                let words: Vec<&str> = text.split_whitespace().collect();
                run_for(300, "fio", &words).ok();
                passes += 1;
            }
            passes
        });
        let plan = Plan {
            draw: Draw(seed),
            seconds,
            spares_first: true,
        };
        let done = trouble(&network, &members, &mut nodes, plan);
        stop.store(true, Ordering::Relaxed);
        let passes: usize = fio.join().unwrap();
        let (longest, versions) = plain.join().unwrap();
        eprintln!(
            "networks: {done:?}, {passes} passes of fio, longest request {:.2} s",
            longest.as_secs_f64()
        );
        (longest, versions)
    });
    assert!(longest < PATIENCE, "{longest:?}");
    for node in nodes.iter().flatten() {
        let mut client = node.client("v");
        for (lba, version) in (0..).zip(&versions) {
            check(&mut client, lba, *version);
        }
    }
}

/// A read that reaches a leader while it is held up is answered by what is in force when it goes on. Others lead by then, and
/// have written; and it cannot hear of them, since it is cut off.
#[test]
fn a_leader_that_was_held_up_does_not_tell_what_was() {
    let Some(network) = Network::new() else {
        return;
    };
    let members = Members::in_network(&network, NODES);
    let nodes = started(&members, "64MiB");
    let nodes: Vec<&Daemon> = nodes.iter().flatten().collect();
    for version in 1..=3 {
        let leads = wait_for_leader(nodes[0], None);
        let (mut at_leader, mut elsewhere) = (
            nodes[leads].client("v"),
            nodes[(leads + 1) % NODES].client("v"),
        );
        let before = 2 * version;
        let write = |client: &mut Client, version: u64| {
            let written = client.write(0, &fill(1, 0, version), 0).unwrap();
            assert_eq!(written, Ok(vec![]));
        };
        write(&mut elsewhere, before);
        for _ in 0..20 {
            check(&mut at_leader, 0, before); // under a lease
        }
        network.cut(leads + 1);
        signal(nodes[leads].pid(), "STOP");
        write(&mut elsewhere, before + 1); // when somebody else leads
        let answer = std::thread::scope(|s| {
            let asked = s.spawn(|| at_leader.read(0, BLOCK as u32).unwrap().unwrap());
            std::thread::sleep(Duration::from_millis(100));
            signal(nodes[leads].pid(), "CONT");
            std::thread::sleep(Duration::from_millis(500));
            network.heal();
            asked.join().unwrap()
        });
        let found = content(1, 0, &answer).unwrap();
        assert_eq!(found, Content::Version(before + 1));
        let end = Instant::now() + PATIENCE;
        while leader(nodes[leads]).is_none() {
            assert!(Instant::now() < end, "nobody leads");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// PostgreSQL on ext4 on a loop device on nbdfuse, at a node that is killed like the others: its client connects again.
/// ESKER_NETWORK_SECONDS and ESKER_NETWORK_SEED as above.
#[test]
fn postgres_goes_on_while_links_and_nodes_fail() {
    if !has(&NEEDS) || !has(&["nbdkit", "unshare"]) {
        return;
    }
    let (Some(programs), Some(network)) = (programs(), Network::new()) else {
        return;
    };
    let seconds = setting("ESKER_NETWORK_SECONDS", 20);
    let seed = setting("ESKER_NETWORK_SEED", 1);
    let members = Members::in_network(&network, NODES).with_stores_of("1600MiB");
    let mut nodes = started(&members, "384MiB");
    let (folder, uri) = (members.folder(), nodes[0].as_ref().unwrap().uri("v"));
    let Some(mut disk) = Disk::patient(folder, &uri) else {
        return;
    };
    run("mkfs.ext4", &["-q", "-F", disk.device()]).ok();
    if !disk.mount() {
        return;
    }
    let postgres = Postgres::new(programs, &folder.0, disk.mnt().join("data"));
    postgres.create();
    postgres.start();
    postgres.run("pgbench", &["-i", "-q", "-s", "2"]).ok();
    let mut bench = postgres.bench(seconds, "pgbench.log");
    let plan = Plan {
        draw: Draw(seed),
        seconds,
        spares_first: false,
    };
    let faults = trouble(&network, &members, &mut nodes, plan);
    assert!(bench.wait().unwrap().success(), "{faults:?}");
    let done = transactions(&folder.join("pgbench.log"));
    // What is in memory is gone, and the rest is read at a node that was not asked before.
    postgres.stop("immediate");
    disk.unmount();
    disk.detach();
    drop(disk);
    let uri = nodes[1].as_ref().unwrap().uri("v");
    let Some(mut disk) = Disk::patient(folder, &uri) else {
        return;
    };
    run("e2fsck", &["-f", "-p", disk.device()]).ok();
    assert!(disk.mount());
    postgres.start();
    postgres.check(done);
    postgres.stop("fast");
    postgres.run("pg_checksums", &["--check"]).ok();
    drop(postgres);
    disk.unmount();
    println!("networks: PostgreSQL did {done} transactions beside {faults:?}");
}
