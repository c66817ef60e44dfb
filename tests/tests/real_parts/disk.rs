//! A volume as a disk of this machine's kernel, where it has no nbd.ko: nbdfuse makes the volume a
//! file, a loop device makes the file a disk.

use crate::harness::{run, skip, Folder};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The programs it takes, those for ext4 included.
pub const NEEDS: [&str; 5] = ["nbdfuse", "losetup", "mkfs.ext4", "e2fsck", "mount"];

/// A volume as a mounted disk; undone in order, also when the test fails.
pub struct Disk {
    nbdkit: Option<Child>,
    nbdfuse: Option<Child>,
    folder: PathBuf,
    device: Option<String>,
    mounted: bool,
}

impl Disk {
    /// None when this machine does not let us.
    pub fn new(folder: &Folder, uri: &str) -> Option<Self> {
        if !Path::new("/dev/fuse").exists() || !Path::new("/dev/loop-control").exists() {
            skip("no /dev/fuse or no /dev/loop-control");
            return None;
        }
        let mut disk = Self {
            nbdkit: None,
            nbdfuse: None,
            folder: folder.0.clone(),
            device: None,
            mounted: false,
        };
        disk.attach(uri).then_some(disk)
    }

    /// One that waits for a daemon that is gone, and connects again: through nbdkit's retry filter.
    pub fn patient(folder: &Folder, uri: &str) -> Option<Self> {
        let socket = folder.join("nbdkit.sock");
        let _ = fs::remove_file(&socket);
        let nbdkit = Command::new("nbdkit")
            .args(["--foreground", "--unix", socket.to_str().unwrap()])
            .args(["--filter=retry", "nbd", &format!("uri={uri}")])
            .args(["retries=60", "retry-delay=1", "retry-exponential=no"])
            .stdin(Stdio::null())
            .stderr(File::create(folder.join("nbdkit.log")).unwrap())
            .spawn()
            .unwrap();
        wait_for(&socket);
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        let disk = Self::new(folder, &uri);
        let mut nbdkit = Some(nbdkit);
        let mut disk = disk.or_else(|| {
            end(nbdkit.as_mut().unwrap());
            None
        })?;
        disk.nbdkit = nbdkit;
        Some(disk)
    }

    /// False when this machine does not let us.
    fn attach(&mut self, uri: &str) -> bool {
        let at = self.folder.join("fuse");
        fs::create_dir_all(&at).unwrap();
        fs::create_dir_all(self.mnt()).unwrap();
        let file = at.join("volume");
        let log = self.folder.join("nbdfuse.log");
        let child = Command::new("nbdfuse")
            .args([file.to_str().unwrap(), uri])
            .stdin(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        self.nbdfuse = Some(child);
        let until = Instant::now() + Duration::from_secs(10);
        while !file.exists() {
            let gone = self.nbdfuse.as_mut().unwrap().try_wait().unwrap().is_some();
            if gone || Instant::now() > until {
                let log = fs::read_to_string(&log).unwrap();
                skip(&format!("nbdfuse does not mount: {}", log.trim()));
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let attached = run("losetup", &["--find", "--show", file.to_str().unwrap()]);
        if attached.code != Some(0) {
            skip(&format!("no loop device: {}", attached.err.trim()));
            return false;
        }
        self.device = Some(attached.ok().trim().to_string());
        true
    }

    pub fn device(&self) -> &str {
        self.device.as_ref().unwrap()
    }

    pub fn mnt(&self) -> PathBuf {
        self.folder.join("mnt")
    }

    /// False when this machine does not let us.
    pub fn mount(&mut self) -> bool {
        let mnt = self.mnt();
        let words = ["-o", "discard", self.device(), mnt.to_str().unwrap()];
        let mount = run("mount", &words);
        if mount.code != Some(0) {
            skip(&format!("mount: {}", mount.err.trim()));
            return false;
        }
        self.mounted = true;
        true
    }

    pub fn unmount(&mut self) {
        run("umount", &[self.mnt()]).ok();
        self.mounted = false;
    }

    pub fn detach(&mut self) {
        // What waits for a daemon that never comes back waits no longer.
        if std::thread::panicking() {
            self.nbdkit.iter_mut().for_each(end);
        }
        if self.mounted && !umount(&self.mnt(), &[]) {
            umount(&self.mnt(), &["--lazy"]);
        }
        if let Some(device) = self.device.take() {
            let _ = Command::new("losetup").args(["-d", &device]).status();
        }
        if let Some(mut child) = self.nbdfuse.take() {
            umount(&self.folder.join("fuse"), &[]);
            let until = Instant::now() + Duration::from_secs(5);
            while child.try_wait().unwrap().is_none() {
                if Instant::now() > until {
                    let _ = child.kill();
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        if let Some(mut nbdkit) = self.nbdkit.take() {
            end(&mut nbdkit);
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.detach();
    }
}

/// Unmounts; what uses it lets go of it a moment later.
fn umount(path: &Path, words: &[&str]) -> bool {
    for _ in 0..50 {
        let mut umount = Command::new("umount");
        let done = umount.args(words).arg(path).stderr(Stdio::null()).status();
        if done.is_ok_and(|status| status.success()) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    false
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn wait_for(path: &Path) {
    let until = Instant::now() + Duration::from_secs(10);
    while !path.exists() {
        assert!(Instant::now() < until, "no {}", path.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}
