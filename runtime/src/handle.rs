//! What goes into a loop from other threads and what comes out of it.

use crate::disk::DiskCounts;
use crate::tls::Tls;
use bytes::Bytes;
use esker_base::{ConnId, NodeId};
use esker_nbd::Session;
use esker_node::admin::{AdminError, AdminReply};
use esker_node::{AdminToken, Event, ExportInfo, ReadyReport, Transport};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

/// Events that may wait in a loop's inbox; further ones are refused, see [`LoopHandle::send`].
/// Connections and `Stop` are always taken: the first are bounded by the node's connections.
pub const INBOX_EVENTS_MAX: usize = 65_536;

/// Something for a loop.
#[derive(Debug)]
pub enum Inbound {
    /// An event for the machine: an administrative request, a peer's frame, another store's
    /// exports, [`Event::Stop`].
    Event(Event),
    /// A connected socket to serve from now on.
    NewConnection(OwnedFd, Transport),
    /// A connection of another loop of this node, handed over.
    Adopt {
        /// The socket.
        fd: OwnedFd,
        /// How the client is connected.
        transport: Transport,
        /// The session as the other loop left it.
        session: Box<Session>,
        /// Its TLS, if it has begun.
        tls: Option<Box<Tls>>,
        /// Bytes that were received and not given to the other machine, in order.
        unread: Vec<Bytes>,
        /// Bytes the other machine sent that the kernel has not taken yet, in order; sealed with TLS.
        unsent: Vec<Bytes>,
    },
    /// A connection to another node that was asked for is there, or why not.
    PeerLink {
        /// The node.
        node: NodeId,
        /// Which attempt of this loop.
        attempt: u64,
        /// The socket, or one line.
        result: Result<OwnedFd, String>,
    },
    /// Another node has begun a link to this one: it is worth connecting to it at once.
    PeerIsThere(NodeId),
    /// The state of the loop, for tests and for the log.
    Inspect(SyncSender<LoopStatus>),
    /// The same as [`Event::Stop`].
    Stop,
}

/// Something a loop tells the daemon. The callback runs on the loop's thread and must not block.
#[derive(Debug)]
pub enum Outbound {
    /// The answer to an administrative request.
    AdminReply {
        /// The request's token.
        token: AdminToken,
        /// The answer.
        result: Result<AdminReply, AdminError>,
    },
    /// This store's exports changed; for the other loops as [`Event::Exports`].
    ExportsChanged {
        /// The store.
        store: usize,
        /// All its exports.
        exports: Vec<ExportInfo>,
    },
    /// Recovery is done.
    Ready(ReadyReport),
    /// The store takes no more writes.
    Fenced {
        /// What failed.
        message: String,
    },
    /// For the providers of keys; answered by [`Event::Keys`].
    Keys(esker_node::KeyAsk),
    /// Last message: the loop has ended as asked. Everything is durable, the sockets are closed and
    /// the store is unlocked.
    Stopped,
    /// Last message: the store could not be opened.
    OpenFailed {
        /// One line that names the thing and the remedy.
        message: String,
    },
    /// Last message: the loop broke: the machine panicked, or the kernel refused its ring.
    LoopFailed {
        /// What happened.
        message: String,
    },
}

/// The state of a loop at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoopStatus {
    /// Its connections, by id.
    pub connections: Vec<ConnectionStatus>,
    /// What was asked of the disk.
    pub disk: DiskCounts,
    /// Turns of the loop so far.
    pub turns: u64,
    /// Operations the kernel holds, those on sockets included.
    pub operations_in_flight: usize,
}

/// The state of a connection at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionStatus {
    /// Its id.
    pub conn: ConnId,
    /// Bytes sent by the machine that the kernel has not taken yet.
    pub queued_bytes: usize,
    /// True between pause and resume.
    pub is_paused: bool,
    /// True once its end has begun.
    pub is_closing: bool,
}

/// Sends things to a loop from any thread.
#[derive(Clone)]
pub struct LoopHandle {
    shared: Arc<Shared>,
}

/// What a loop's thread and its handles share.
pub(crate) struct Shared {
    pub(crate) store_index: usize,
    name: String,
    inbox: Mutex<Inbox>,
    wake: OwnedFd,
    peers: OnceLock<Vec<Weak<Shared>>>,
    connections: AtomicUsize,
}

#[derive(Default)]
struct Inbox {
    items: Vec<Inbound>,
    is_closed: bool,
}

impl LoopHandle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Queues something for the loop and wakes it. False when it was not taken: the loop has ended,
    /// or [`INBOX_EVENTS_MAX`] events wait.
    pub fn send(&self, inbound: Inbound) -> bool {
        self.shared.send(inbound)
    }

    /// The store this loop serves.
    #[must_use]
    pub fn store_index(&self) -> usize {
        self.shared.store_index
    }

    /// The state of the loop; none when it has ended or does not answer within a second.
    #[must_use]
    pub fn inspect(&self) -> Option<LoopStatus> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.send(Inbound::Inspect(sender));
        receiver
            .recv_timeout(std::time::Duration::from_secs(1))
            .ok()
    }

    pub(crate) fn thread_name(&self) -> String {
        self.shared.name.clone()
    }

    /// Open connections of this loop.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }
}

impl std::fmt::Debug for LoopHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LoopHandle({})", self.shared.name)
    }
}

/// Makes the loops of one node known to each other, so that they can hand connections over and
/// count them together. To be called once, when all have been spawned and before clients connect;
/// a later call changes nothing.
pub fn link(handles: &[LoopHandle]) {
    for handle in handles {
        let peers = handles
            .iter()
            .map(|peer| Arc::downgrade(&peer.shared))
            .collect();
        let _ = handle.shared.peers.set(peers); // the first call has decided
    }
}

impl Shared {
    pub(crate) fn new(store_index: usize, name: String, wake: OwnedFd) -> Self {
        Self {
            store_index,
            name,
            inbox: Mutex::default(),
            wake,
            peers: OnceLock::new(),
            connections: AtomicUsize::new(0),
        }
    }

    pub(crate) fn send(&self, inbound: Inbound) -> bool {
        let was_empty = {
            let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
            let is_bounded = matches!(&inbound, Inbound::Event(e) if !matches!(e, Event::Stop));
            if inbox.is_closed || (is_bounded && inbox.items.len() >= INBOX_EVENTS_MAX) {
                return false;
            }
            inbox.items.push(inbound);
            inbox.items.len() == 1
        };
        if was_empty {
            // The counter cannot overflow: the loop resets it whenever the inbox was empty once.
            let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        }
        true
    }

    /// Everything that has arrived.
    pub(crate) fn take_all(&self) -> Vec<Inbound> {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut inbox.items)
    }

    /// Refuses everything from now on; what had arrived is dropped.
    pub(crate) fn close(&self) {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        inbox.is_closed = true;
        let dropped = std::mem::take(&mut inbox.items);
        drop(inbox);
        drop(dropped);
        self.connections.store(0, Ordering::Relaxed);
    }

    pub(crate) fn wake_fd(&self) -> &OwnedFd {
        &self.wake
    }

    /// Gives something to the loop of another store of this node; false when there is none.
    pub(crate) fn send_to_peer(&self, store: usize, inbound: Inbound) -> bool {
        let peers = self.peers.get().map_or(&[][..], Vec::as_slice);
        let found = peers
            .iter()
            .filter_map(Weak::upgrade)
            .find(|p| p.store_index == store);
        found.is_some_and(|peer| peer.send(inbound))
    }

    /// Gives something to the loops of all other stores of this node.
    pub(crate) fn send_to_others(&self, make: impl Fn() -> Inbound) {
        let peers = self.peers.get().map_or(&[][..], Vec::as_slice);
        let others = peers.iter().filter_map(Weak::upgrade);
        for other in others.filter(|p| p.store_index != self.store_index) {
            other.send(make());
        }
    }

    /// Connections of all linked loops.
    pub(crate) fn node_connections(&self) -> usize {
        match self.peers.get() {
            None => self.connections.load(Ordering::Relaxed),
            Some(peers) => peers
                .iter()
                .filter_map(Weak::upgrade)
                .map(|peer| peer.connections.load(Ordering::Relaxed))
                .sum(),
        }
    }

    pub(crate) fn set_connections(&self, count: usize) {
        self.connections.store(count, Ordering::Relaxed);
    }
}
