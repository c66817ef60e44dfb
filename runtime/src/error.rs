//! What can go wrong outside the data path: opening stores, listening, starting a loop. One clear
//! line each, that names the thing and the remedy.

use std::io;
use std::path::PathBuf;

/// Why a store, a listener or a loop could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The kernel has no io_uring, or forbids it to this process.
    #[error("io_uring is not available: {detail}; needs Linux 6.1 or later ({source})")]
    RingUnavailable {
        /// What the system says about it.
        detail: String,
        /// The error of the setup call.
        source: io::Error,
    },
    /// Another process (or this one) holds the store or the socket.
    #[error("{what} is in use by another process")]
    InUse {
        /// The path or address.
        what: String,
    },
    /// The filesystem cannot do direct I/O.
    #[error(
        "{}: its filesystem does not support O_DIRECT; use a file on ext4 or xfs, or a block device",
        path.display()
    )]
    NoDirectIo {
        /// The store.
        path: PathBuf,
    },
    /// The filesystem has no room for a store of the size asked for.
    #[error(
        "{}: no room for a store of {needed_bytes} bytes ({available_bytes} are free); \
         free some space or create a smaller store with --store-size",
        path.display()
    )]
    NoRoom {
        /// The store.
        path: PathBuf,
        /// The size asked for, in bytes.
        needed_bytes: u64,
        /// What the filesystem has left, in bytes.
        available_bytes: u64,
    },
    /// The path or the size cannot be a store.
    #[error("{}: {reason}", path.display())]
    Unsuitable {
        /// The store.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A file operation failed.
    #[error("{}: cannot {operation}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried, as a verb.
        operation: &'static str,
        /// The error.
        source: io::Error,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// The error.
        source: io::Error,
    },
    /// The kernel refused something a loop needs to start.
    #[error("cannot start the loop {name}: {operation}: {source}")]
    Start {
        /// The loop.
        name: String,
        /// What was tried.
        operation: &'static str,
        /// The error.
        source: io::Error,
    },
}
