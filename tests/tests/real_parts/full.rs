//! No more room: ENOSPC to the client, everything else goes on, and writes come back with the room.

use crate::client::ENOSPC;
use crate::harness::{has, run, skip, verify, Folder, Start};
use crate::pattern::{content, fill, Content};
use std::fs::File;

const CHUNK: u64 = 1 << 20;

fn chunk(at: u64, version: u64) -> Vec<u8> {
    (0..256)
        .flat_map(|i| fill(1, at * 256 + i, version))
        .collect()
}

#[test]
fn a_full_store_says_enospc_and_takes_writes_again_after_a_trim() {
    let folder = Folder::new();
    let how = Start::new(&folder.join("d")).with(&["--store-size", "1GiB"]);
    let daemon = how.ready();
    daemon.create("v", "4GiB");
    let mut client = daemon.client("v");
    for round in 1..=3 {
        let mut written = 0;
        let mut refusals = 0;
        let error = loop {
            assert!(written < 4096, "1 GiB holds no more than that");
            match client
                .write(written * CHUNK, &chunk(written, round), 0)
                .unwrap()
            {
                Ok(_) => (written, refusals) = (written + 1, 0),
                // What was refused makes the store look for room, and it may find some more.
                Err(_) if refusals < 5 => {
                    refusals += 1;
                    std::thread::sleep(std::time::Duration::from_millis(200));
                }
                Err(error) => break error,
            }
        };
        assert_eq!(error, ENOSPC);
        assert!(written > 300, "round {round}: only {written} MiB fit");
        // Full, and alive: reads, flushes, trims, a second client, the admin API.
        client.flush().unwrap().unwrap();
        for at in (0..written).step_by(37) {
            assert!(
                client.read(at * CHUNK, CHUNK as u32).unwrap().unwrap() == chunk(at, round),
                "chunk {at}"
            );
        }
        let mut other = daemon.tcp_client("v");
        assert_eq!(
            other.write(0, &chunk(0, round), 0).unwrap().unwrap_err(),
            ENOSPC
        );
        assert!(other.read(0, CHUNK as u32).unwrap().unwrap() == chunk(0, round));
        let space = daemon.json(&["space"]);
        assert!(
            space["live_bytes"].as_u64().unwrap() >= written * CHUNK,
            "{space}"
        );
        assert_ne!(daemon.json(&["status"])["volumes"][0]["state"], "suspended");
        // It may be killed and opened while it is full.
        if round == 2 {
            drop((client, other));
            daemon.kill();
            let daemon = how.ready();
            let mut client = daemon.client("v");
            for at in (0..written).step_by(41) {
                assert!(
                    client.read(at * CHUNK, CHUNK as u32).unwrap().unwrap() == chunk(at, round),
                    "chunk {at}"
                );
            }
            daemon.stop();
            verify(&folder.join("d/store-0.esker"));
            break;
        }
        // Room again.
        for at in 0..written {
            client.trim(at * CHUNK, CHUNK as u32).unwrap().unwrap();
        }
        client.flush().unwrap().unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while client.write(0, &chunk(0, 9), 0).unwrap().is_err() {
            assert!(
                std::time::Instant::now() < until,
                "no room after a trim: {}",
                daemon.json(&["space"])
            );
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let gone = client.read(CHUNK, 4096).unwrap().unwrap();
        assert_eq!(content(1, 256, &gone).unwrap(), Content::Zeros);
    }
}

#[test]
fn overwriting_the_same_blocks_never_fills_a_store() {
    let folder = Folder::new();
    let daemon = Start::new(&folder.join("d"))
        .with(&["--store-size", "1GiB"])
        .ready();
    daemon.create("v", "128MiB");
    let mut client = daemon.client("v");
    // Three times the store.
    for version in 1..=24 {
        for at in 0..128 {
            let answer = client.write(at * CHUNK, &chunk(at, version), 0).unwrap();
            assert_eq!(
                answer.err(),
                None,
                "version {version}, chunk {at}: {}",
                daemon.json(&["space"])
            );
        }
    }
    for at in 0..128 {
        assert!(client.read(at * CHUNK, CHUNK as u32).unwrap().unwrap() == chunk(at, 24));
    }
    daemon.stop();
    verify(&folder.join("d/store-0.esker"));
}

#[test]
fn a_data_folder_without_room_is_told_in_one_line() {
    if !has(&["mkfs.ext4", "mount", "umount", "losetup"]) {
        return;
    }
    let folder = Folder::new();
    let image = folder.join("disk");
    File::create(&image).unwrap().set_len(64 << 20).unwrap();
    run("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()]).ok();
    let mounted = folder.join("mnt");
    std::fs::create_dir(&mounted).unwrap();
    let (from, at) = (image.to_str().unwrap(), mounted.to_str().unwrap());
    let mount = run("mount", &["-o", "loop", from, at]);
    if mount.code != Some(0) {
        return skip(&format!("no loop mounts here: {}", mount.err.trim()));
    }
    let _mounted = Mounted(at.to_string());
    let line = Start::new(&mounted.join("d"))
        .with(&["--store-size", "1GiB"])
        .refusal(1);
    assert!(line.contains("no room for a store of"), "{line}");
    assert!(
        !mounted.join("d/store-0.esker").exists(),
        "nothing half made stays"
    );
    // Not even room for the node's own file.
    let rest = File::create(mounted.join("filler")).unwrap();
    while std::io::Write::write_all(&mut &rest, &[1; 65536]).is_ok() {}
    while std::io::Write::write_all(&mut &rest, &[1; 1]).is_ok() {}
    drop(rest);
    let line = Start::new(&mounted.join("e"))
        .with(&["--store-size", "1GiB"])
        .refusal(1);
    assert!(line.contains("No space left"), "{line}");
}

/// A mounted file system; unmounted in the end.
struct Mounted(String);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}
