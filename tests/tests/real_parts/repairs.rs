//! Blocks that are damaged on one of three devices: clients see no error, and the device gets them back from the others.

use crate::client::{Client, EIO};
use crate::cluster::{holds, on_leader, serving, until, write, Members};
use crate::harness::{free_address, run, Daemon};
use crate::pattern::{content, fill, Content, BLOCK};
use crate::tampering::{log_of, metric};
use esker_engine::format::node::NodePage;
use esker_engine::format::SEGMENTS_OFFSET;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn store_of(members: &Members, id: usize) -> PathBuf {
    members.data(id).join("store-0.esker")
}

/// Flips a bit of every version of some blocks of the sealed volume, or of the plain one. How many that were.
fn spoil(store: &Path, sealed: bool, spoilt: &[u64]) -> usize {
    let file = File::options().read(true).write(true).open(store).unwrap();
    let mut count = 0;
    for written in log_of(&file).1 {
        for (n, lba) in (0..written.blocks.len() as u64).zip(written.lba..) {
            if written.is_sealed == sealed && spoilt.contains(&lba) {
                let at = written.at + n * BLOCK as u64 + 123;
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ 4], at).unwrap();
                count += 1;
            }
        }
    }
    file.sync_all().unwrap();
    count
}

fn verify(store: &Path) -> crate::harness::Done {
    let program = crate::harness::program("esker");
    run(
        program.to_str().unwrap(),
        &["verify", store.to_str().unwrap()],
    )
}

fn create(node: &Daemon, name: &str, more: &[&str]) {
    let words = [
        "volume",
        "create",
        name,
        "--size",
        "16MiB",
        "--replicas",
        "3",
    ];
    node.esker(&[&words[..], more].concat()).ok();
}

#[track_caller]
fn version_of(client: &mut Client, lba: u64) -> u64 {
    let block = client.read(lba * BLOCK as u64, BLOCK as u32).unwrap();
    match content(1, lba, &block.unwrap()).unwrap() {
        Content::Version(version) => version,
        other => panic!("block {lba}: {other:?}"),
    }
}

#[test]
fn damaged_blocks_of_one_copy_come_back_from_the_others() {
    let members = Members::new(3);
    let metrics: Vec<String> = (0..3).map(|_| free_address()).collect();
    let start = |id: usize| Some(members.start(id).metrics(&metrics[id - 1]).ready());
    let mut nodes: Vec<_> = (1..=3).map(start).collect();
    create(nodes[0].as_ref().unwrap(), "v", &[]);
    create(nodes[0].as_ref().unwrap(), "sealed", &["--encrypt"]);
    let leader = serving(&nodes, "v");
    let (node, store) = (
        nodes[leader].as_ref().unwrap(),
        store_of(&members, leader + 1),
    );
    let (mut plain, mut sealed) = (node.client("v"), node.client("sealed"));
    for client in [&mut plain, &mut sealed] {
        write(client, 0..64, 1);
    }
    on_leader(&nodes, &["snapshot", "create", "v@s"]);
    write(&mut plain, 0..16, 2);

    // While it runs: what is read now and what only the snapshot has, a plain volume's and a sealed one's.
    assert_eq!(spoil(&store, false, &[3, 4, 20, 50]), 6);
    assert_eq!(spoil(&store, true, &[5, 7]), 2);
    // Of a block that is written in part the rest has to be known.
    let half = fill(1, 50, 1)[..512].to_vec();
    plain.write(50 * BLOCK as u64, &half, 0).unwrap().unwrap();
    holds(&mut plain, 0..16, 2);
    holds(&mut plain, 16..64, 1);
    let mut kept = node.client("v@s");
    holds(&mut kept, 0..64, 1);
    holds(&mut sealed, 0..64, 1);
    drop((plain, sealed, kept));
    assert_eq!(metric(&metrics[leader], "esker_blocks_repaired_total"), 8);
    assert_eq!(metric(&metrics[leader], "esker_damaged_blocks"), 0);
    let status = node.json(&["status"]).to_string();
    assert!(!status.contains("damaged blocks were met"), "{status}");

    // A copy that nobody reads from is scrubbed.
    let other = (leader + 1) % 3;
    let store_there = store_of(&members, other + 1);
    let there = nodes[other].as_ref().unwrap();
    assert_eq!(spoil(&store_there, true, &[30, 31]), 2);
    until("a checkpoint has merged the blocks", || {
        let done = there.json(&["volume", "scrub", "sealed"]);
        done["damaged_count"] == 2 && done["repaired_count"] == 2
    });
    let again = there.json(&["volume", "scrub", "sealed"]);
    assert_eq!(again["damaged_count"], 0, "{again}");

    // What came back is on the devices.
    for id in [leader, other] {
        nodes[id].take().unwrap().stop();
        verify(&store_of(&members, id + 1)).ok();
        nodes[id] = start(id + 1);
    }

    // Nobody has it any more: an error, without a long wait.
    for id in 1..=3 {
        assert_eq!(spoil(&store_of(&members, id), false, &[40]), 1);
    }
    let now = serving(&nodes, "v");
    let mut plain = nodes[now].as_ref().unwrap().client("v");
    let asked = Instant::now();
    let read = plain.read(40 * BLOCK as u64, BLOCK as u32).unwrap();
    assert_eq!(read, Err(EIO));
    assert!(
        asked.elapsed() < Duration::from_secs(5),
        "{:?}",
        asked.elapsed()
    );
    assert_eq!(version_of(&mut plain, 41), 1);
    // Until it is written again.
    write(&mut plain, 40..41, 3);
    assert_eq!(version_of(&mut plain, 40), 3);
    drop(plain);
    for node in nodes.into_iter().flatten() {
        node.stop();
    }
}

/// Damages every leaf of the maps in a store.
fn spoil_maps(store: &Path) -> usize {
    let file = File::options().read(true).write(true).open(store).unwrap();
    let size = file.metadata().unwrap().len();
    let (mut page, mut count) = (vec![0; BLOCK], 0);
    for at in (SEGMENTS_OFFSET..size).step_by(BLOCK) {
        file.read_exact_at(&mut page, at).unwrap();
        if NodePage::check(&page).is_ok_and(|head| head.level == 0) {
            file.write_all_at(&[!page[BLOCK - 1]], at + BLOCK as u64 - 1)
                .unwrap();
            count += 1;
        }
    }
    count
}

/// What a node's map does not tell any more another node does.
#[test]
fn readers_at_a_damaged_map_are_served_by_others() {
    let members = Members::new(3);
    let start = |id: usize| Some(members.start(id).ready());
    let mut nodes: Vec<_> = (1..=3).map(start).collect();
    create(nodes[0].as_ref().unwrap(), "v", &[]);
    let leader = serving(&nodes, "v");
    let mut client = nodes[leader].as_ref().unwrap().client("v");
    write(&mut client, 0..64, 1);
    drop(client);
    // A stop merges all that was written.
    let follower = (on_leader(&nodes, &["volume", "show", "v"]) + 1) % 3;
    nodes[follower].take().unwrap().stop();
    assert!(spoil_maps(&store_of(&members, follower + 1)) > 0);
    nodes[follower] = start(follower + 1);
    let mut client = nodes[follower].as_ref().unwrap().client("v");
    holds(&mut client, 0..64, 1);
    drop(client);
    for node in nodes.into_iter().flatten() {
        node.stop();
    }
}
