//! Whether this node is drained: `DIR/drained` is there while it is.

use crate::data_dir::write_durably;
use crate::error::DaemonError;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

const FILE: &str = "drained";
const TEXT: &str = "This node takes no new copies of volumes. See `esker node drain --help`.\n";

/// Kept through restarts.
#[derive(Debug)]
pub struct Drained {
    data: PathBuf,
    is: AtomicBool,
}

impl Drained {
    /// As this node's folder says.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn load(data: &Path) -> Result<Self, DaemonError> {
        let path = data.join(FILE);
        let is = path
            .try_exists()
            .map_err(DaemonError::file("read", &path))?;
        Ok(Self {
            data: data.to_owned(),
            is: AtomicBool::new(is),
        })
    }

    /// Whether it is.
    #[must_use]
    pub fn is(&self) -> bool {
        self.is.load(Relaxed)
    }

    /// Makes it so, durably.
    ///
    /// # Errors
    /// When that cannot be written; then it is as it was.
    pub fn set(&self, is: bool) -> Result<(), DaemonError> {
        let path = self.data.join(FILE);
        let written = match is {
            true => write_durably(&self.data, FILE, TEXT),
            false => remove(&self.data, &path),
        };
        written.map_err(DaemonError::file("write", &path))?;
        self.is.store(is, Relaxed);
        Ok(())
    }
}

fn remove(folder: &Path, path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => other?,
    }
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_kept_through_a_restart_in_both_directions() {
        let folder = tempfile::tempdir().unwrap();
        let drained = Drained::load(folder.path()).unwrap();
        assert!(!drained.is());
        for is in [true, true, false, false] {
            drained.set(is).unwrap();
            assert_eq!(drained.is(), is);
            assert_eq!(Drained::load(folder.path()).unwrap().is(), is);
        }
    }
}
