//! Why the daemon cannot start or go on. Each error is one line that names the thing and the remedy.

use crate::config::ConfigError;
use esker_runtime::RuntimeError;
use std::io;
use std::path::{Path, PathBuf};

/// A failure that ends the daemon with exit code 1.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Where keys come from is not said in a way that can work.
    #[error("{0}")]
    Keys(String),
    /// The configuration is not acceptable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Another daemon owns the data directory.
    #[error("{} is in use by {holder}; stop that daemon first, or give this one another --data", directory.display())]
    DataInUse {
        /// The data directory.
        directory: PathBuf,
        /// Who holds it.
        holder: String,
    },
    /// A file operation failed.
    #[error("cannot {operation} {}: {source}", path.display())]
    File {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// The file that names this node cannot be understood.
    #[error("{}: {reason}; restore it from a backup: the stores of this node belong to the ids in it", path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The configuration names another node or cluster than the data directory.
    #[error("{}: {what}; a node keeps its ids for life: correct the configuration, or give a new node an empty --data", path.display())]
    OtherIdentity {
        /// The file that names this node.
        path: PathBuf,
        /// What differs.
        what: String,
    },
    /// What is said of the cluster cannot work here.
    #[error("cluster: {0}")]
    Cluster(String),
    /// An address or a socket cannot be listened on.
    #[error("cannot listen on {address} ({purpose}): {source}; {remedy}")]
    Listen {
        /// The address or path.
        address: String,
        /// What would be served there.
        purpose: &'static str,
        /// The error.
        source: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// A host name has no address.
    #[error("cannot resolve {address} ({purpose}): {reason}")]
    Resolve {
        /// The host and port.
        address: String,
        /// What would be served there.
        purpose: &'static str,
        /// What the resolver said.
        reason: String,
    },
    /// Sockets handed over by systemd are not what was expected.
    #[error("socket activation: {0}")]
    Handed(String),
    /// A store file, an NBD socket or a loop could not be set up.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A store could not be opened, or its loop broke.
    #[error("{message}")]
    Store {
        /// One line; it names the store.
        message: String,
    },
    /// A loop did not end in time.
    #[error("{stores} did not stop within {seconds} s; what was not flushed may be lost, and the next start recovers what was")]
    StopTimeout {
        /// Which.
        stores: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The certificate or its key does not do.
    #[error("{0}")]
    Tls(esker_keys::KeyError),
    /// The operating system refused something the daemon itself needs.
    #[error("cannot {operation}: {source}")]
    System {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The error.
        source: io::Error,
    },
}

impl DaemonError {
    /// For `map_err` on file operations.
    pub(crate) fn file(
        operation: &'static str,
        path: &Path,
    ) -> impl FnOnce(io::Error) -> Self + 'static {
        let path = path.to_path_buf();
        move |source| Self::File {
            operation,
            path,
            source,
        }
    }
}
