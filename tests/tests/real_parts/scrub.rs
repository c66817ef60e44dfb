//! Scrub: damage on the device is named before anybody reads it, on demand and in the background.

use crate::harness::{Daemon, Folder, Start};
use serde_json::{json, Value};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

const BLOCK: u64 = 4096;
const DAMAGED: u64 = 100;

fn start(folder: &Folder, rate: &str) -> Daemon {
    let start = Start::new(&folder.join("d"));
    start
        .with(&["--store-size", "1GiB", "--scrub-rate", rate])
        .ready()
}

/// A block that no other is like.
fn block(number: u64) -> Vec<u8> {
    let words = (0..BLOCK / 8).map(|i| (number << 32 | i).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).collect()
}

/// Finds a block on the device and flips one of its bits.
fn spoil(store: &Path, content: &[u8]) {
    let file = File::options().read(true).write(true).open(store).unwrap();
    let size = file.metadata().unwrap().len();
    let mut window = vec![0; 1 << 20];
    for at in (0..size).step_by(window.len()) {
        let count = file.read_at(&mut window, at).unwrap();
        let mut pages = window[..count].chunks(content.len());
        if let Some(page) = pages.position(|page| page == content) {
            let at = at + page as u64 * BLOCK + 123;
            file.write_all_at(&[!content[123]], at).unwrap();
            return;
        }
    }
    panic!("the block is not in {}", store.display());
}

/// A store with a volume in which one block of its snapshot is damaged, and one that is whole.
fn damaged(folder: &Folder) {
    let daemon = start(folder, "none");
    for name in ["v", "whole"] {
        daemon.create(name, "16MiB");
    }
    let mut client = daemon.client("v");
    for lba in 0..256 {
        client.write(lba * BLOCK, &block(lba), 0).unwrap().unwrap();
    }
    let mut other = daemon.client("whole");
    other.write(0, &block(1 << 20), 0).unwrap().unwrap();
    daemon.esker(&["snapshot", "create", "v@s"]).ok();
    client
        .write(DAMAGED * BLOCK, &block(1 << 21), 0)
        .unwrap()
        .unwrap();
    drop((client, other));
    daemon.stop();
    spoil(&folder.join("d/store-0.esker"), &block(DAMAGED));
}

#[test]
fn a_scrub_names_volume_snapshot_and_offset() {
    let folder = Folder::new();
    damaged(&folder);
    let daemon = start(&folder, "none");
    let done = daemon.esker(&["volume", "scrub", "whole"]).ok();
    assert!(done.contains("nothing damaged"), "{done}");

    let words = ["-o", "json", "volume", "scrub", "v"];
    let done = daemon.esker(&words);
    assert_eq!(done.code, Some(1));
    let found: Value = serde_json::from_str(&done.out).unwrap();
    let damage = json!([{
        "volume": "v",
        "snapshot": "s",
        "offset": DAMAGED * BLOCK,
        "length": BLOCK,
        "type": "data",
        "repaired": false,
    }]);
    assert_eq!(found["damaged"], damage);
    assert_eq!(found["damaged_count"], 1);
    // 257 blocks, with leaves and roots over them.
    let checked = found["checked_bytes"].as_u64().unwrap() / BLOCK;
    assert!((260..280).contains(&checked), "{checked}");

    let line = daemon.esker(&["volume", "scrub", "v"]).line(1);
    assert!(line.contains("damaged") && line.contains('v'), "{line}");
    let line = daemon.esker(&["volume", "scrub", "none"]).line(1);
    assert!(line.contains("none"), "{line}");
    // The volume itself is whole: it has another block there.
    let read = daemon.client("v").read(DAMAGED * BLOCK, 4096);
    assert_eq!(read.unwrap().unwrap(), block(1 << 21));
    daemon.stop();
}

#[test]
fn the_background_finds_damage_that_nobody_reads_and_remembers_how_far_it_is() {
    let folder = Folder::new();
    damaged(&folder);
    let daemon = start(&folder, "64MiB");
    let deadline = Instant::now() + Duration::from_secs(60);
    let book = folder.join("d/scrub.json");
    while !std::fs::read_to_string(&book).is_ok_and(|text| text.contains("\"running\": false")) {
        assert!(Instant::now() < deadline, "no pass ends: {}", daemon.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    let log = daemon.log();
    assert!(log.contains("this block is damaged on the device"), "{log}");
    let stores = daemon.json(&["status"])["nodes"][0]["stores"].clone();
    assert_eq!(stores[0]["damaged_blocks"], 1);
    let text = std::fs::read_to_string(&book).unwrap();
    assert!(text.contains("\"damaged\": 1"), "{text}");
    daemon.stop();

    // The next pass is not due: another start leaves the file as it is.
    let daemon = start(&folder, "64MiB");
    daemon.esker(&["status"]).ok();
    daemon.stop();
    assert_eq!(std::fs::read_to_string(&book).unwrap(), text);
}
