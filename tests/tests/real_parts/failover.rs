//! A volume with three copies while leaders die: clients at another node see a pause and no error. A node that
//! returns finds what it missed in the log of the others, or fetches what has changed.

use crate::client::Client;
use crate::cluster::Members;
use crate::harness::{has, run_for, setting, Daemon};
use crate::pattern::{content, fill, Content, BLOCK};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// An election and whatever else this machine has to do.
const PATIENCE: Duration = Duration::from_secs(60);
/// Blocks that the client writes one by one.
const BLOCKS: u64 = 256;
/// Where fio's part begins.
const FIO_OFFSET: u64 = 32 << 20;

/// Who leads the volume, as a node tells.
pub fn leader(daemon: &Daemon) -> Option<usize> {
    let status = daemon.json(&["status"]);
    let volumes = status["volumes"].as_array().unwrap();
    let volume = volumes.iter().find(|v| v["name"] == "v")?;
    let id: usize = volume["leader"].as_str()?.parse().ok()?;
    Some(id - 1)
}

#[track_caller]
pub fn wait_for_leader(daemon: &Daemon, other_than: Option<usize>) -> usize {
    let end = Instant::now() + PATIENCE;
    loop {
        match leader(daemon).filter(|id| Some(*id) != other_than) {
            Some(id) => return id,
            None => assert!(Instant::now() < end, "nobody leads: {}", daemon.log()),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Writes and reads one block after the other until told to stop; the longest that one request took, and the
/// version of each block.
pub fn writer(mut client: Client, stop: &AtomicBool) -> (Duration, Vec<u64>) {
    let (mut longest, mut versions) = (Duration::ZERO, vec![0; BLOCKS as usize]);
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        for lba in 0..BLOCKS {
            let begin = Instant::now();
            let written = client.write(lba * BLOCK as u64, &fill(1, lba, round), 0);
            assert_eq!(written.unwrap(), Ok(vec![]), "block {lba}");
            longest = longest.max(begin.elapsed());
            versions[lba as usize] = round;
            std::thread::sleep(Duration::from_millis(2));
            let other = lba * 7 % BLOCKS;
            let begin = Instant::now();
            check(&mut client, other, versions[other as usize]);
            longest = longest.max(begin.elapsed());
            if stop.load(Ordering::Relaxed) {
                break;
            }
        }
        assert_eq!(client.flush().unwrap(), Ok(vec![]));
    }
    (longest, versions)
}

#[track_caller]
pub fn check(client: &mut Client, lba: u64, version: u64) {
    let block = client.read(lba * BLOCK as u64, BLOCK as u32).unwrap();
    let expected = match version {
        0 => Content::Zeros,
        version => Content::Version(version),
    };
    let found = content(1, lba, &block.unwrap()).unwrap();
    assert_eq!(found, expected, "block {lba}");
}

#[test]
fn leaders_are_killed_and_clients_at_another_node_see_no_error() {
    let rounds = setting("ESKER_FAILOVERS", 4);
    let members = Members::new(3);
    let mut nodes: Vec<_> = (1..=3).map(|id| Some(members.start(id).ready())).collect();
    let words = "volume create v --size 64MiB --replicas 3";
    let words: Vec<&str> = words.split(' ').collect();
    nodes[0].as_ref().unwrap().esker(&words).ok();
    let first = wait_for_leader(nodes[0].as_ref().unwrap(), None);
    // The clients' node follows, and lives.
    let door = (first + 1) % 3;
    let door_node = nodes[door].take().unwrap();
    let (stop, has_fio) = (AtomicBool::new(false), has(&["fio"]));
    let (longest, versions) = std::thread::scope(|s| {
        let client = door_node.client("v");
        let plain = s.spawn(|| writer(client, &stop));
        let fio = s.spawn(|| {
            let mut passes = 0;
            while has_fio && !stop.load(Ordering::Relaxed) {
                let uri = door_node.uri("v");
                let text = format!(
                    "--name=failover --ioengine=nbd --uri={uri} --offset={FIO_OFFSET} --size=8M --rw=randwrite \
                     --bs=4k --iodepth=16 --fsync=32 --verify=crc32c --verify_fatal=1 \
                     --verify_state_save=0 --randseed={passes} --output-format=terse"
                );
                let words: Vec<&str> = text.split_whitespace().collect();
                run_for(300, "fio", &words).ok();
                passes += 1;
            }
            passes
        });
        for round in 0..rounds {
            std::thread::sleep(Duration::from_secs(2));
            let leader = wait_for_leader(&door_node, None);
            // The clients' own node may have taken over: then another one goes, and comes back.
            let victim = if leader == door {
                (door + 1) % 3
            } else {
                leader
            };
            nodes[victim].take().unwrap().kill();
            if victim == leader {
                wait_for_leader(&door_node, Some(leader));
            }
            // Every other time it is back before anything else happens, else after a while.
            std::thread::sleep(Duration::from_secs(round % 2 * 2));
            nodes[victim] = Some(members.start(victim + 1).ready());
        }
        stop.store(true, Ordering::Relaxed);
        let passes = fio.join().unwrap();
        let (longest, versions) = plain.join().unwrap();
        eprintln!(
            "failover: {rounds} nodes killed, {passes} passes of fio, longest request {:.2} s",
            longest.as_secs_f64()
        );
        (longest, versions)
    });
    assert!(longest < PATIENCE, "{longest:?}");
    // What was answered is there, whoever is asked.
    for node in nodes.iter().flatten().chain([&door_node]) {
        let mut client = node.client("v");
        for (lba, version) in (0..).zip(&versions) {
            check(&mut client, lba, *version);
        }
    }
    for node in nodes.into_iter().flatten().chain([door_node]) {
        node.stop();
    }
}
