//! A file system of the kernel on a volume: nbdfuse makes the volume a file, a loop device makes it
//! a disk, ext4 lives on it.

use crate::harness::{has, run, skip, verify, Daemon, Folder, Start};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A volume as a mounted disk; undone in order, also when the test fails.
struct Disk {
    nbdfuse: Option<Child>,
    folder: PathBuf,
    device: Option<String>,
    mounted: bool,
}

impl Disk {
    /// None when this machine does not let us.
    fn new(folder: &Folder, uri: &str) -> Option<Self> {
        let at = folder.join("fuse");
        fs::create_dir_all(&at).unwrap();
        fs::create_dir_all(folder.join("mnt")).unwrap();
        let file = at.join("volume");
        let log = fs::File::create(folder.join("nbdfuse.log")).unwrap();
        let child = Command::new("nbdfuse")
            .args([file.to_str().unwrap(), uri])
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut disk = Self {
            nbdfuse: Some(child),
            folder: folder.0.clone(),
            device: None,
            mounted: false,
        };
        let until = Instant::now() + Duration::from_secs(10);
        while !file.exists() {
            let gone = disk.nbdfuse.as_mut().unwrap().try_wait().unwrap().is_some();
            if gone || Instant::now() > until {
                let log = fs::read_to_string(folder.join("nbdfuse.log")).unwrap();
                skip(&format!("nbdfuse does not mount: {}", log.trim()));
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let attached = run("losetup", &["--find", "--show", file.to_str().unwrap()]);
        if attached.code != Some(0) {
            skip(&format!("no loop device: {}", attached.err.trim()));
            return None;
        }
        disk.device = Some(attached.ok().trim().to_string());
        Some(disk)
    }

    fn device(&self) -> &str {
        self.device.as_ref().unwrap()
    }

    fn mnt(&self) -> PathBuf {
        self.folder.join("mnt")
    }

    fn mount(&mut self) -> bool {
        let mnt = self.mnt();
        let mount = run(
            "mount",
            &["-o", "discard", self.device(), mnt.to_str().unwrap()],
        );
        if mount.code != Some(0) {
            skip(&format!("mount: {}", mount.err.trim()));
            return false;
        }
        self.mounted = true;
        true
    }

    fn unmount(&mut self) {
        run("umount", &[self.mnt()]).ok();
        self.mounted = false;
    }

    fn detach(&mut self) {
        if self.mounted {
            let _ = Command::new("umount").arg(self.mnt()).status();
        }
        if let Some(device) = self.device.take() {
            let _ = Command::new("losetup").args(["-d", &device]).status();
        }
        if let Some(mut child) = self.nbdfuse.take() {
            let fuse = self.folder.join("fuse/volume");
            // A loop device lets go of its file a moment after it is detached.
            for _ in 0..50 {
                let done = Command::new("umount")
                    .arg(&fuse)
                    .stderr(Stdio::null())
                    .status();
                if done.is_ok_and(|s| s.success()) {
                    break;
                }
                let folder = Command::new("umount")
                    .arg(self.folder.join("fuse"))
                    .stderr(Stdio::null())
                    .status();
                if folder.is_ok_and(|s| s.success()) || child.try_wait().unwrap().is_some() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            let until = Instant::now() + Duration::from_secs(5);
            while child.try_wait().unwrap().is_none() {
                if Instant::now() > until {
                    let _ = child.kill();
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.detach();
    }
}

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
    if !has(&[
        "nbdfuse",
        "losetup",
        "mkfs.ext4",
        "e2fsck",
        "mount",
        "fstrim",
    ]) {
        return;
    }
    if !Path::new("/dev/fuse").exists() || !Path::new("/dev/loop-control").exists() {
        return skip("no /dev/fuse or no /dev/loop-control");
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
