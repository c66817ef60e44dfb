//! One connection between two nodes, in either direction.

use super::connect;
use super::decoder::Decoder;
use super::directory::PeerMeter;
use crate::connection::SendQueue;
use crate::ring::OpKey;
use crate::tls::Channel;
use esker_base::{NodeId, Place};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

/// A link's number in its loop; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LinkId(pub(crate) u64);

/// A socket, what the kernel does with it, and which side of a link this is.
pub(super) struct Link {
    pub(super) fd: OwnedFd,
    /// The receive in flight.
    pub(super) receive: Option<OpKey>,
    /// The send in flight: at most one, which keeps the order.
    pub(super) send: Option<OpKey>,
    pub(super) queue: SendQueue,
    /// Frames in the queue.
    pub(super) frames: usize,
    pub(super) tls: Option<Channel>,
    /// Its end is decided; it goes as soon as the kernel has let go of it.
    pub(super) is_dead: bool,
    /// It is in the list of links to settle.
    pub(super) is_touched: bool,
    /// Interruptions in a row.
    pub(super) tries: u32,
    pub(super) side: Side,
}

/// Which way frames go.
pub(super) enum Side {
    /// To a node.
    To(NodeId),
    /// From a node that has connected to this one.
    From(Box<Incoming>),
}

/// The receiving side.
#[derive(Default)]
pub(super) struct Incoming {
    pub(super) decoder: Decoder,
    /// Who sends, once that is known.
    pub(super) from: Option<Sender>,
    /// Who its certificate says it is.
    pub(super) certified: Option<NodeId>,
}

/// Who sends on a link.
pub(super) struct Sender {
    pub(super) place: Place,
    pub(super) meter: Arc<PeerMeter>,
}

impl Link {
    pub(super) fn new(fd: OwnedFd, side: Side, tls: Option<Channel>) -> Self {
        if let Err(error) = connect::prepare(&fd) {
            tracing::debug!("a link's socket: {error}");
        }
        Self {
            fd,
            receive: None,
            send: None,
            queue: SendQueue::default(),
            frames: 0,
            tls,
            is_dead: false,
            is_touched: false,
            tries: 0,
            side,
        }
    }

    pub(super) fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// True while the kernel may still act on it.
    pub(super) fn is_busy(&self) -> bool {
        self.receive.is_some() || self.send.is_some()
    }

    /// Ends the operations in flight: they complete soon.
    pub(super) fn shut_down(&self) {
        // Fails when the other side is gone already, which is what is wanted.
        let _ = socket2::SockRef::from(&self.fd).shutdown(Shutdown::Both);
    }

    /// The other end, for the log.
    pub(super) fn remote(&self) -> String {
        let address = socket2::SockRef::from(&self.fd).peer_addr().ok();
        let address = address.and_then(|address| address.as_socket());
        address.map_or("a socket that is gone".into(), |address| {
            address.to_string()
        })
    }
}
