//! Connecting to a node's admin socket.

use crate::v1::admin_client::AdminClient;
use crate::MESSAGE_BYTES_MAX;
use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// How long a daemon may take to accept a connection.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a request may take; longer than the daemon itself waits for a store.
const REQUEST_WAIT_MAX: Duration = Duration::from_secs(90);

/// Why no daemon could be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens there.
    #[error("no daemon answers on {}; start one with `eskerd --data DIR`, or name its folder with --data", .0.display())]
    NobodyThere(PathBuf),
    /// The socket belongs to somebody else.
    #[error("not allowed to connect to {}; run as the user that runs eskerd", .0.display())]
    NotAllowed(PathBuf),
    /// The path cannot be a socket's.
    #[error("{} cannot be the path of a socket: {reason}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },
    /// Anything else.
    #[error("cannot connect to {}: {reason}", path.display())]
    Other {
        /// The path.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
}

/// Connects to the admin API on the unix socket at `path`.
///
/// # Errors
/// One line that names the socket and what to do.
pub async fn connect(path: &Path) -> Result<AdminClient<Channel>, ConnectError> {
    let bad_path = |reason| ConnectError::Path {
        path: path.to_path_buf(),
        reason,
    };
    let text = path.to_str().ok_or_else(|| bad_path("it is not UTF-8"))?;
    let endpoint = Endpoint::from_shared(format!("unix://{text}"))
        .map_err(|_| bad_path("it is not UTF-8"))?
        .connect_timeout(CONNECT_WAIT_MAX)
        .timeout(REQUEST_WAIT_MAX);
    let channel = endpoint
        .connect()
        .await
        .map_err(|error| explain(path, &error))?;
    Ok(AdminClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
}

/// Finds the operating system's error under the layers of the transport.
fn explain(path: &Path, error: &tonic::transport::Error) -> ConnectError {
    let mut reason = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        reason = inner.to_string();
        match inner.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return ConnectError::NobodyThere(path.to_path_buf());
            }
            Some(io::ErrorKind::PermissionDenied) => {
                return ConnectError::NotAllowed(path.to_path_buf());
            }
            Some(io::ErrorKind::InvalidInput) => {
                let reason = "it is longer than 107 bytes";
                return ConnectError::Path {
                    path: path.to_path_buf(),
                    reason,
                };
            }
            _ => cause = inner.source(),
        }
    }
    ConnectError::Other {
        path: path.to_path_buf(),
        reason,
    }
}
