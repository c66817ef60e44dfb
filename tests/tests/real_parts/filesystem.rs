//! A file system of the kernel on a volume: nbdfuse makes the volume a file, a loop device makes it
//! a disk, ext4 lives on it.

use crate::disk::{Disk, NEEDS};
use crate::harness::{has, run, verify, Daemon, Folder, Start};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn used_bytes(daemon: &Daemon) -> u64 {
    daemon.json(&["volume", "show", "v"])["used_bytes"]
        .as_u64()
        .unwrap()
}

/// Files with content that depends on their names.
fn files(root: &Path, round: u64) -> Vec<(PathBuf, Vec<u8>)> {
    let mut dice = crate::pattern::Dice::new(round);
    (0..200)
        .map(|i| {
            let path = root.join(format!("folder{}/file{i}", i % 7));
            let length = dice.below(1 << 18) as usize;
            let bytes = (0..length / 8 + 1)
                .flat_map(|_| dice.next().to_le_bytes())
                .take(length)
                .collect();
            (path, bytes)
        })
        .collect()
}

#[test]
fn ext4_lives_on_a_volume() {
    if !has(&NEEDS) || !has(&["fstrim"]) {
        return;
    }
    let folder = Folder::new();
    let how = Start::new(&folder.join("d")).with(&["--store-size", "2GiB"]);
    let daemon = how.ready();
    daemon.create("v", "512MiB");
    let Some(mut disk) = Disk::new(&folder, &daemon.uri("v")) else {
        return;
    };
    run("mkfs.ext4", &["-q", "-F", disk.device()]).ok();
    if !disk.mount() {
        return;
    }
    let mnt = disk.mnt();
    for (path, bytes) in files(&mnt, 1) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    run("sync", &["-f", mnt.to_str().unwrap()]).ok();
    let full = used_bytes(&daemon);
    assert!(full > 20 << 20, "{full}");
    // Half goes, and its space with it.
    for (path, _) in files(&mnt, 1).iter().skip(100) {
        fs::remove_file(path).unwrap();
    }
    run("sync", &["-f", mnt.to_str().unwrap()]).ok();
    run("fstrim", &["-v", mnt.to_str().unwrap()]).ok();
    let until = Instant::now() + Duration::from_secs(10);
    while used_bytes(&daemon) > full - (8 << 20) {
        assert!(
            Instant::now() < until,
            "trim frees nothing: {} of {full}",
            used_bytes(&daemon)
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    disk.unmount();
    run("e2fsck", &["-f", "-n", disk.device()]).ok();
    disk.detach();
    drop(disk);
    daemon.kill();

    // After a kill everything is as it was unmounted.
    let daemon = how.ready();
    let Some(mut disk) = Disk::new(&folder, &daemon.uri("v")) else {
        return;
    };
    run("e2fsck", &["-f", "-n", disk.device()]).ok();
    assert!(disk.mount());
    for (path, bytes) in files(&mnt, 1).iter().take(100) {
        assert!(&fs::read(path).unwrap() == bytes, "{}", path.display());
    }
    disk.unmount();
    drop(disk);
    daemon.stop();
    verify(&folder.join("d/store-0.esker"));
}
