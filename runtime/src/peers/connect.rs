//! Making a connection to another node: names are looked up and connections awaited on a thread that lives
//! for one attempt, since both block and neither is anything for a ring.

use crate::handle::{Inbound, Shared};
use esker_base::NodeId;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// How long a connection to one address may take.
pub const CONNECT_TIME_MAX: Duration = Duration::from_secs(2);
/// Addresses of a name that are tried.
const ADDRESSES_MAX: usize = 4;
/// What was sent and is not acknowledged for so long ends a link.
const UNACKNOWLEDGED_TIME_MAX: Duration = Duration::from_secs(5);
/// Idle time after which TCP asks whether the other node is still there, and between two questions.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_TRIES: u32 = 3;

/// What to connect to.
pub(super) struct Target {
    pub(super) node: NodeId,
    pub(super) address: String,
    /// The link will be plain, and that is for this machine alone.
    pub(super) only_here: bool,
}

/// Begins to connect; the outcome comes as [`Inbound::PeerLink`], with the same number.
///
/// # Errors
/// When there is no thread for it.
pub(super) fn begin(target: Target, attempt: u64, shared: &Arc<Shared>) -> io::Result<()> {
    let shared = Arc::downgrade(shared);
    let body = move || {
        let result = connect(&target);
        // A loop that has ended needs no link; the socket is closed.
        if let Some(shared) = shared.upgrade() {
            shared.send(Inbound::PeerLink {
                node: target.node,
                attempt,
                result,
            });
        }
    };
    let builder = std::thread::Builder::new().name("peer-connect".into());
    builder.spawn(body).map(drop)
}

fn connect(target: &Target) -> Result<OwnedFd, String> {
    let Target { address, .. } = target;
    let found = address.to_socket_addrs();
    let found = found.map_err(|e| format!("{address}: {e}"))?;
    let mut failure = format!("{address}: the name has no address");
    for place in found.take(ADDRESSES_MAX) {
        if target.only_here && !place.ip().is_loopback() {
            failure = format!(
                "{place} is not on this machine and the link would be plain; give the nodes certificates \
                 (`esker cert node`), or set insecure = true in [cluster]"
            );
            continue;
        }
        match connect_to(place) {
            Ok(socket) => return Ok(socket),
            Err(e) => failure = format!("{place}: {e}"),
        }
    }
    Err(failure)
}

fn connect_to(place: SocketAddr) -> io::Result<OwnedFd> {
    let socket = Socket::new(
        Domain::for_address(place),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.connect_timeout(&SockAddr::from(place), CONNECT_TIME_MAX)?;
    let socket = OwnedFd::from(socket);
    // A port from which nobody listens may be given to the connection itself; then it talks to itself.
    let (own, other) = (
        SockRef::from(&socket).local_addr()?,
        SockRef::from(&socket).peer_addr()?,
    );
    if own.as_socket() == other.as_socket() {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(socket)
}

/// Sets the options of either end of a link.
pub(super) fn prepare(fd: &OwnedFd) -> io::Result<()> {
    let socket = SockRef::from(fd);
    // With O_NONBLOCK the ring would not wait.
    socket.set_nonblocking(false)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_TIME_MAX))?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_TRIES);
    socket.set_tcp_keepalive(&keepalive)
}

/// Whether the other end of a connection is on this machine.
pub(super) fn is_from_here(fd: &OwnedFd) -> bool {
    let peer = SockRef::from(fd).peer_addr().ok();
    peer.and_then(|address| address.as_socket())
        .is_some_and(|address| address.ip().is_loopback())
}
