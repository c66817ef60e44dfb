//! The clean stop: sessions are told, what was answered is durable, and it ends at once.

use crate::client::{ESHUTDOWN, WRITE};
use crate::harness::{verify, Folder, Start};
use crate::pattern::fill;
use std::time::{Duration, Instant};

#[test]
fn sigterm_with_open_sessions_ends_cleanly_and_keeps_all() {
    let folder = Folder::new();
    let how = Start::new(&folder.join("d")).with(&["--store-size", "1GiB"]);
    let daemon = how.ready();
    daemon.create("v", "64MiB");
    let mut idle = daemon.client("v");
    let mut busy = [daemon.client("v"), daemon.tcp_client("v")];
    // Answered before the signal.
    for lba in 0..64 {
        idle.write(lba * 4096, &fill(1, lba, 1), 0)
            .unwrap()
            .unwrap();
    }
    daemon.terminate();
    // Each client writes until it is told or cut off.
    let mut answered = vec![Vec::new(); busy.len()];
    for (which, client) in busy.iter_mut().enumerate() {
        for i in 0..100_000u64 {
            let lba = 1000 + 4000 * which as u64 + i % 4000;
            if client
                .send(0, WRITE, lba * 4096, 4096, &fill(1, lba, 2 + i))
                .is_err()
            {
                break;
            }
            match client.reply() {
                Ok((_, 0)) => answered[which].push((lba, 2 + i)),
                Ok((_, error)) => {
                    assert_eq!(error, ESHUTDOWN);
                    break;
                }
                Err(_) => break,
            }
        }
    }
    let began = Instant::now();
    assert_eq!(daemon.wait(), Some(0));
    assert!(
        began.elapsed() < Duration::from_secs(6),
        "{:?}",
        began.elapsed()
    );
    assert!(!folder.join("d/nbd.sock").exists() && !folder.join("d/admin.sock").exists());
    verify(&folder.join("d/store-0.esker"));

    let daemon = how.ready();
    let mut client = daemon.client("v");
    for lba in 0..64 {
        assert_eq!(
            client.read(lba * 4096, 4096).unwrap().unwrap(),
            fill(1, lba, 1)
        );
    }
    for (lba, version) in answered.into_iter().flatten() {
        let got = client.read(lba * 4096, 4096).unwrap().unwrap();
        assert_eq!(got, fill(1, lba, version), "block {lba}");
    }
    daemon.stop();
}

#[test]
fn the_sockets_of_a_killed_daemon_are_replaced() {
    let folder = Folder::new();
    let how = Start::new(&folder.join("d")).with(&["--store-size", "1GiB"]);
    how.ready().kill();
    assert!(folder.join("d/nbd.sock").exists());
    let daemon = how.ready();
    daemon.create("v", "1MiB");
    daemon.client("v").flush().unwrap().unwrap();
    daemon.stop();
}
