//! The data directory: made when it is missing, and locked, so that one daemon owns it.

use crate::error::DaemonError;
use rustix::fs::{flock, FlockOperation};
use rustix::io::Errno;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// How much of a lock file is read to find who holds it, in bytes.
const HOLDER_BYTES_MAX: u64 = 64;

/// The right to use a data directory; given back when it is dropped, or when the process dies.
#[derive(Debug)]
pub struct DataDir {
    _lock: File,
}

impl DataDir {
    /// Makes the directory when it is missing (mode 0700: what clients need is a socket that they
    /// are let in to) and locks it through its file `lock`, which says who holds it.
    ///
    /// # Errors
    /// When another process holds it, or the directory cannot be used.
    pub fn lock(path: &Path) -> Result<Self, DaemonError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(DaemonError::file("create the data directory", path))?;
        let lock_path = path.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false) // it names the holder, which may be somebody else
            .mode(0o600)
            .open(&lock_path)
            .map_err(DaemonError::file("open", &lock_path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(DaemonError::DataInUse {
                    directory: path.to_path_buf(),
                    holder: holder(&mut lock),
                })
            }
            Err(e) => return Err(DaemonError::file("lock", &lock_path)(e.into())),
        }
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(DaemonError::file("write", &lock_path))?;
        Ok(Self { _lock: lock })
    }
}

/// Who holds a lock, as it says itself.
fn holder(lock: &mut File) -> String {
    let mut text = String::new();
    let read = lock.take(HOLDER_BYTES_MAX).read_to_string(&mut text);
    match text.trim().parse::<u32>() {
        Ok(pid) if read.is_ok() => format!("another eskerd (pid {pid})"),
        _ => "another process".into(),
    }
}

/// Writes a file of the data directory: whole or not at all, and durable when it returns.
///
/// # Errors
/// When it cannot be written; the old one is as it was.
pub(crate) fn write_durably(folder: &Path, name: &str, text: &str) -> io::Result<()> {
    let temporary = folder.join(format!("{name}.new"));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, folder.join(name))?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn one_holder_at_a_time_and_it_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("deep/data");
        let first = DataDir::lock(&data).unwrap();
        let refusal = DataDir::lock(&data).unwrap_err().to_string();
        assert!(
            refusal.contains(&format!("pid {}", std::process::id())),
            "{refusal}"
        );
        drop(first);
        DataDir::lock(&data).unwrap();
    }

    #[test]
    fn a_lock_file_without_a_pid_is_still_a_lock() {
        let folder = tempfile::tempdir().unwrap();
        let held = DataDir::lock(folder.path()).unwrap();
        fs::write(folder.path().join("lock"), "what?").unwrap();
        let refusal = DataDir::lock(folder.path()).unwrap_err().to_string();
        assert!(refusal.contains("another process"), "{refusal}");
        drop(held);
    }
}
