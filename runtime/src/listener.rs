//! Listening sockets. They are made before the loops start, so that a busy address is an error of
//! the start, and given to the loop of store 0.

use crate::error::RuntimeError;
use esker_node::{TlsPolicy, Transport};
use rustix::fs::Mode;
use socket2::{Domain, SockAddr, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Connections the kernel keeps before they are accepted. The kernel caps it at
/// `net.core.somaxconn`.
const BACKLOG: i32 = 1024;
/// Permission of a unix socket: the node's user and group.
const UNIX_MODE: u32 = 0o660;

/// A bound, listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    text: String,
    is_unix: bool,
    tls: TlsPolicy,
    is_for_peers: bool,
    /// The socket file to remove at the end, with its inode: a successor's file is not touched.
    file: Option<(PathBuf, u64)>,
}

impl Listener {
    /// Listens on a unix socket with mode 0660. A socket file that nobody answers on is replaced.
    ///
    /// # Errors
    /// When somebody answers on it, when the path is something else than a socket, or when it
    /// cannot be bound.
    pub fn unix(path: impl AsRef<Path>) -> Result<Self, RuntimeError> {
        let path = path.as_ref();
        let text = format!("unix:{}", path.display());
        let failed = |source| RuntimeError::Listen {
            address: text.clone(),
            source,
        };
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
        // Before bind, the mode of the socket is that of the file to be: it is never wider.
        let mode = Mode::from_raw_mode(UNIX_MODE);
        rustix::fs::fchmod(&socket, mode).map_err(|e| failed(e.into()))?;
        let address = SockAddr::unix(path).map_err(failed)?;
        match socket.bind(&address) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                Self::remove_stale(path, &text)?;
                socket.bind(&address).map_err(failed)?;
            }
            other => other.map_err(failed)?,
        }
        rustix::fs::chmod(path, mode).map_err(|e| failed(e.into()))?; // undo the umask
        let inode = std::fs::symlink_metadata(path).map_err(failed)?.ino();
        socket.listen(BACKLOG).map_err(failed)?;
        Ok(Self {
            socket,
            text,
            is_unix: true,
            tls: TlsPolicy::Off,
            is_for_peers: false,
            file: Some((path.to_path_buf(), inode)),
        })
    }

    /// Listens on a TCP address.
    ///
    /// # Errors
    /// When the address is in use or cannot be bound.
    pub fn tcp(address: SocketAddr) -> Result<Self, RuntimeError> {
        let text = address.to_string();
        let failed = |source: io::Error| {
            if source.kind() == io::ErrorKind::AddrInUse {
                RuntimeError::InUse { what: text.clone() }
            } else {
                RuntimeError::Listen {
                    address: text.clone(),
                    source,
                }
            }
        };
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::STREAM, None).map_err(failed)?;
        socket.set_reuse_address(true).map_err(failed)?;
        if address.is_ipv6() {
            socket.set_only_v6(true).map_err(failed)?;
        }
        socket.bind(&address.into()).map_err(failed)?;
        socket.listen(BACKLOG).map_err(failed)?;
        let bound = socket.local_addr().map_err(failed)?;
        let text = bound.as_socket().map_or(text, |a| a.to_string());
        Ok(Self {
            socket,
            text,
            is_unix: false,
            tls: TlsPolicy::Off,
            is_for_peers: false,
            file: None,
        })
    }

    /// Takes over a socket that already listens, as systemd's socket activation hands it out.
    ///
    /// # Errors
    /// When it is not a listening stream socket.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, RuntimeError> {
        let socket = Socket::from(fd);
        let failed = |source| RuntimeError::Listen {
            address: "the inherited socket".into(),
            source,
        };
        let is_stream = socket.r#type().map_err(failed)? == Type::STREAM;
        if !is_stream || !socket.is_listener().map_err(failed)? {
            return Err(failed(io::Error::from(io::ErrorKind::InvalidInput)));
        }
        let address = socket.local_addr().map_err(failed)?;
        let text = match (address.as_socket(), address.as_pathname()) {
            (Some(inet), _) => inet.to_string(),
            (None, Some(path)) => format!("unix:{}", path.display()),
            (None, None) => "unix:unnamed".into(),
        };
        Ok(Self {
            socket,
            text,
            is_unix: address.is_unix(),
            tls: TlsPolicy::Off,
            is_for_peers: false,
            file: None,
        })
    }

    /// Serves TLS like this to whoever connects here.
    #[must_use]
    pub fn with_tls(mut self, policy: TlsPolicy) -> Self {
        self.tls = policy;
        self
    }

    /// What is done with TLS here.
    #[must_use]
    pub fn tls(&self) -> TlsPolicy {
        self.tls
    }

    /// Takes links of other nodes rather than clients. TCP only.
    #[must_use]
    pub fn for_peers(mut self) -> Self {
        self.is_for_peers = true;
        self
    }

    pub(crate) fn is_for_peers(&self) -> bool {
        self.is_for_peers
    }

    /// The address as text: `unix:PATH`, or `HOST:PORT` with the port that was really bound.
    #[must_use]
    pub fn local_addr(&self) -> &str {
        &self.text
    }

    /// The TCP port it listens on; none for a unix socket.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.socket
            .local_addr()
            .ok()?
            .as_socket()
            .map(|address| address.port())
    }

    /// The transport of a connection that was accepted here.
    pub(crate) fn transport_of(&self, accepted: BorrowedFd<'_>) -> Transport {
        if self.is_unix {
            return Transport::Unix;
        }
        let peer = socket2::SockRef::from(&accepted).peer_addr().ok();
        let text = peer
            .and_then(|a| a.as_socket())
            .map_or("unknown".into(), |a| a.to_string());
        Transport::Tcp(text)
    }

    fn remove_stale(path: &Path, text: &str) -> Result<(), RuntimeError> {
        let failed = |source| RuntimeError::Listen {
            address: text.to_string(),
            source,
        };
        // Connecting to any other file is refused just like connecting to a stale socket.
        let is_socket = |m: std::fs::Metadata| m.file_type().is_socket();
        if !std::fs::symlink_metadata(path).is_ok_and(is_socket) {
            let other = io::Error::other("the path is taken by something that is not a socket");
            return Err(failed(other));
        }
        match UnixStream::connect(path) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(failed)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Ok(_) => Err(RuntimeError::InUse {
                what: text.to_string(),
            }),
            // EAGAIN: somebody listens and is busy. Anything else is not a socket to remove.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(RuntimeError::InUse {
                what: text.to_string(),
            }),
            Err(e) => Err(failed(e)),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some((path, inode)) = &self.file {
            if std::fs::symlink_metadata(path).is_ok_and(|m| m.ino() == *inode) {
                let _ = std::fs::remove_file(path); // a file that stays is replaced at the next start
            }
        }
    }
}
