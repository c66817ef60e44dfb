//! The demo's folder: made for it, and gone with it unless it is kept.

use super::failed;
use super::nodes::{random, terminate, STORE_BYTES};
use crate::error::CliError;
use esker_api::size;
use rustix::fs::{statfs, statvfs};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What it is called, before some letters that make it a new one. Short: the paths of sockets in it are bounded.
const PREFIX: &str = "esker-demo-";
/// Says what runs in a folder that was left.
const LEFT_FILE: &str = "demo.json";
/// Room beside the stores.
const SLACK_BYTES: u64 = 64 << 20;
/// `f_type` of a file system in memory.
const TMPFS: u64 = 0x0102_1994;
/// How long nodes may take to stop.
const STOP_WAIT_MAX: Duration = Duration::from_secs(20);

/// A folder of a demo; removed when dropped.
pub struct Folder {
    path: PathBuf,
    is_kept: bool,
}

impl Folder {
    /// Makes one where somebody said, or else where temporary files go: one on a disk, if there is room.
    ///
    /// # Errors
    /// When there is too little room, or it cannot be made.
    pub fn make(parent: Option<&Path>, nodes: usize) -> Result<Self, CliError> {
        let need_bytes = nodes as u64 * STORE_BYTES + SLACK_BYTES;
        let parent = match parent {
            Some(parent) => parent.to_path_buf(),
            None => {
                let usual = std::env::temp_dir();
                let disk = PathBuf::from("/var/tmp");
                let suits =
                    |p: &Path| !is_in_memory(p) && room_bytes(p).is_ok_and(|b| b >= need_bytes);
                if !suits(&usual) && suits(&disk) {
                    disk
                } else {
                    usual
                }
            }
        };
        let unusable = |source| CliError::Folder {
            path: parent.clone(),
            source,
        };
        let room = room_bytes(&parent).map_err(unusable)?;
        if room < need_bytes {
            return Err(failed(format!(
                "{} nodes need {} of disk and {} has {}: name another folder with --dir",
                nodes,
                size::format(need_bytes),
                parent.display(),
                size::format(room)
            )));
        }
        let parent = parent.canonicalize().map_err(unusable)?;
        let letters: [u8; 3] = random().map_err(unusable)?;
        let letters: String = letters.iter().map(|b| format!("{b:02x}")).collect();
        let path = parent.join(format!("{PREFIX}{letters}"));
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(unusable)?;
        Ok(Self {
            path,
            is_kept: false,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves it, with word of the nodes that run in it.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn keep(mut self, pids: &[u32]) -> Result<PathBuf, CliError> {
        self.is_kept = true;
        let left = Left {
            pids: pids.to_vec(),
        };
        let text = serde_json::to_string(&left).map_err(io::Error::from);
        let written = text.and_then(|text| fs::write(self.path.join(LEFT_FILE), text));
        match written {
            Ok(()) => Ok(self.path.clone()),
            Err(source) => Err(CliError::Folder {
                path: self.path.clone(),
                source,
            }),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.is_kept {
            let _ = fs::remove_dir_all(&self.path); // nobody to tell any more
        }
    }
}

/// What a kept folder tells.
#[derive(Debug, Serialize, Deserialize)]
struct Left {
    pids: Vec<u32>,
}

/// Stops the nodes of a folder that was left, and removes it.
///
/// # Errors
/// When it is no such folder, or a node does not stop.
pub fn stop(folder: &Path) -> Result<(), CliError> {
    let is_none = || {
        let folder = folder.display();
        failed(format!(
            "{folder} is no folder that `esker demo --keep` left"
        ))
    };
    let folder = folder.canonicalize().map_err(|_| is_none())?;
    let text = fs::read(folder.join(LEFT_FILE)).map_err(|_| is_none())?;
    let left: Left = serde_json::from_slice(&text).map_err(|_| is_none())?;
    // A number may be another process's by now: one that works on this folder is the demo's.
    let runs = |pid: u32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).into_owned();
        command.contains(&format!("{}/", folder.display()))
    };
    let end = Instant::now() + STOP_WAIT_MAX;
    for pid in left.pids.iter().filter(|pid| runs(**pid)) {
        terminate(*pid);
    }
    while let Some(pid) = left.pids.iter().find(|pid| runs(**pid)) {
        if Instant::now() > end {
            let seconds = STOP_WAIT_MAX.as_secs();
            let text =
                format!("process {pid} has not stopped within {seconds} s; its folder stays");
            return Err(failed(text));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    fs::remove_dir_all(&folder).map_err(|source| CliError::Folder {
        path: folder,
        source,
    })
}

fn is_in_memory(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| u64::try_from(fs.f_type) == Ok(TMPFS))
}

fn room_bytes(path: &Path) -> io::Result<u64> {
    let fs = statvfs(path)?;
    Ok(fs.f_bavail.saturating_mul(fs.f_frsize))
}
