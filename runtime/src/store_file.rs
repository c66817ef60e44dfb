//! A store's file or device: opened for direct I/O and locked, so that one process owns it.

use crate::error::RuntimeError;
use esker_base::BLOCK_SIZE_U64;
use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often the lock is tried: udev holds a device's for a moment while it probes, and the kernel
/// gives up a killed daemon's only once it has ended its ring.
const LOCK_TRIES: u32 = 20;
/// The pause between two tries.
const LOCK_PAUSE: Duration = Duration::from_millis(50);
/// How often an interrupted preallocation is taken up again.
const ALLOCATE_TRIES_MAX: u32 = 100;

/// An open store: a regular file or a block device, with `O_DIRECT`, locked exclusively until it is
/// dropped.
#[derive(Debug)]
pub struct StoreFile {
    file: File,
    path: PathBuf,
    size_bytes: u64,
}

impl StoreFile {
    /// Opens an existing store.
    ///
    /// # Errors
    /// When it does not exist, is neither a file nor a block device, is locked, mounted, or on a
    /// filesystem without direct I/O.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, RuntimeError> {
        let path = path.as_ref();
        let failed = |operation, source| RuntimeError::File {
            path: path.to_path_buf(),
            operation,
            source,
        };
        let kind = std::fs::metadata(path)
            .map_err(|e| failed("open", e))?
            .file_type();
        let is_device = kind.is_block_device();
        if !is_device && !kind.is_file() {
            return Err(RuntimeError::Unsuitable {
                path: path.to_path_buf(),
                reason: "is neither a regular file nor a block device".into(),
            });
        }
        // On a block device O_EXCL fails with EBUSY when it is mounted or claimed.
        let exclusive = if is_device { libc::O_EXCL } else { 0 };
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT | exclusive)
            .open(path);
        let file = match opened {
            Ok(file) => file,
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                return Err(RuntimeError::NoDirectIo {
                    path: path.to_path_buf(),
                })
            }
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                return Err(RuntimeError::InUse {
                    what: path.display().to_string(),
                })
            }
            Err(e) => return Err(failed("open", e)),
        };
        Self::lock(&file, path, LOCK_TRIES)?;
        // Seeking to the end gives the size of files and of block devices alike.
        let end = (&file)
            .seek(SeekFrom::End(0))
            .map_err(|e| failed("find the size of", e))?;
        let size_bytes = end - end % BLOCK_SIZE_U64;
        Ok(Self {
            file,
            path: path.to_path_buf(),
            size_bytes,
        })
    }

    /// Creates a store file of `size_bytes`, all of it allocated on the filesystem. Leaves nothing
    /// behind when it fails.
    ///
    /// # Errors
    /// When the file exists, the size is not a positive multiple of 4096, the filesystem has no
    /// room, or cannot preallocate or do direct I/O.
    pub fn create(path: impl AsRef<Path>, size_bytes: u64) -> Result<Self, RuntimeError> {
        let path = path.as_ref();
        if size_bytes == 0 || !size_bytes.is_multiple_of(BLOCK_SIZE_U64) {
            return Err(RuntimeError::Unsuitable {
                path: path.to_path_buf(),
                reason: format!("the size {size_bytes} is not a positive multiple of 4096"),
            });
        }
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_DIRECT)
            .open(path);
        let file = match opened {
            Ok(file) => file,
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                // The kernel makes the file before its filesystem refuses the flag. It was not
                // there before (O_EXCL), so it is ours to remove.
                let _ = std::fs::remove_file(path);
                return Err(RuntimeError::NoDirectIo {
                    path: path.to_path_buf(),
                });
            }
            Err(source) => {
                return Err(RuntimeError::File {
                    path: path.to_path_buf(),
                    operation: "create",
                    source,
                })
            }
        };
        let prepared = Self::prepare(&file, path, size_bytes);
        if let Err(error) = prepared {
            let _ = std::fs::remove_file(path); // the first error is the one to tell
            return Err(error);
        }
        Ok(Self {
            file,
            path: path.to_path_buf(),
            size_bytes,
        })
    }

    /// A block device, not a file.
    #[must_use]
    pub fn is_device(&self) -> bool {
        rustix::fs::fstat(&self.file)
            .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_block_device())
    }

    /// Size in bytes, a multiple of 4096.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Where it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn prepare(file: &File, path: &Path, size_bytes: u64) -> Result<(), RuntimeError> {
        let failed = |operation, source| RuntimeError::File {
            path: path.to_path_buf(),
            operation,
            source,
        };
        Self::lock(file, path, 1)?;
        Self::allocate(file, path, size_bytes)?;
        file.sync_all().map_err(|e| failed("sync", e))?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(parent)
            .and_then(|directory| directory.sync_all())
            .map_err(|e| failed("sync the directory of", e))
    }

    fn allocate(file: &File, path: &Path, size_bytes: u64) -> Result<(), RuntimeError> {
        let mut tries = 0;
        loop {
            tries += 1;
            match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size_bytes) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) if tries < ALLOCATE_TRIES_MAX => {}
                Err(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => {
                    // What a failed preallocation took is given back before the rest is counted.
                    let _ = file.set_len(0);
                    let available_bytes = rustix::fs::fstatvfs(file)
                        .map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize));
                    return Err(RuntimeError::NoRoom {
                        path: path.to_path_buf(),
                        needed_bytes: size_bytes,
                        available_bytes,
                    });
                }
                Err(Errno::OPNOTSUPP) => {
                    return Err(RuntimeError::Unsuitable {
                        path: path.to_path_buf(),
                        reason: "its filesystem cannot preallocate files; use ext4 or xfs, or a \
                                 block device"
                            .into(),
                    })
                }
                Err(e) => {
                    return Err(RuntimeError::File {
                        path: path.to_path_buf(),
                        operation: "preallocate",
                        source: e.into(),
                    })
                }
            }
        }
    }

    fn lock(file: &File, path: &Path, tries_max: u32) -> Result<(), RuntimeError> {
        let mut tries = 0;
        loop {
            tries += 1;
            match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(()),
                Err(Errno::WOULDBLOCK) if tries < tries_max => {
                    std::thread::sleep(LOCK_PAUSE);
                }
                Err(Errno::WOULDBLOCK) => {
                    return Err(RuntimeError::InUse {
                        what: path.display().to_string(),
                    })
                }
                Err(e) => {
                    return Err(RuntimeError::File {
                        path: path.to_path_buf(),
                        operation: "lock",
                        source: e.into(),
                    })
                }
            }
        }
    }
}

impl AsFd for StoreFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
