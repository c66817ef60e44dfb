//! What loops have to know of the other nodes, and what they count about them.

use esker_base::{ClusterId, NodeId};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ServerConfig};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// This node and the others, as the daemon knows them.
#[derive(Clone, Debug)]
pub struct Directory {
    /// This node.
    pub node: NodeId,
    /// The cluster; links of another one are refused.
    pub cluster: ClusterId,
    /// When this process began, in microseconds since the Unix epoch: links of a later process end those of
    /// an earlier one.
    pub started_us: u64,
    /// The other nodes.
    pub neighbours: BTreeMap<NodeId, Neighbour>,
    /// TLS of links; links are plain without it.
    pub tls: Option<PeerTls>,
    /// Plain links may go beyond this machine.
    pub allows_plain: bool,
}

/// Another node.
#[derive(Clone, Debug)]
pub struct Neighbour {
    /// Where it listens for links: HOST:PORT. The host is looked up at each attempt.
    pub address: String,
    /// TLS towards it; needed when [`Directory::tls`] is set. Takes no other node for this one.
    pub client: Option<Arc<ClientConfig>>,
}

/// Tells the node that a chain of certificates stands for, or why it stands for none.
pub type NodeOf = fn(Option<&[CertificateDer<'_>]>) -> Result<NodeId, String>;

/// TLS of links.
#[derive(Clone)]
pub struct PeerTls {
    /// For links that other nodes begin. Takes nobody without a certificate.
    pub server: Arc<ServerConfig>,
    /// What rustls is given as the server's name.
    pub server_name: ServerName<'static>,
    /// Who the other side is.
    pub node_of: NodeOf,
}

impl std::fmt::Debug for PeerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PeerTls")
    }
}

/// Why a frame was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// Its node is not in the directory.
    UnknownNode,
    /// No link could be made.
    NoLink,
    /// The link broke before it was sent.
    LinkBroken,
    /// Too much waited before it.
    QueueFull,
    /// It passes the maxima of a frame.
    TooLong,
    /// It is for a store that this node does not have, or that takes no more.
    NoStore,
}

/// [`DropReason`]s, as they are shown.
pub const DROP_REASONS: [&str; 6] = [
    "unknown_node",
    "no_link",
    "link_broken",
    "queue_full",
    "too_long",
    "no_store",
];

/// What is counted about a node.
#[derive(Debug, Default)]
pub struct PeerMeter {
    /// Links to it that are up.
    pub(super) links: AtomicU64,
    /// Links from it that are up.
    pub(super) links_in: AtomicU64,
    pub(super) sent_bytes: AtomicU64,
    pub(super) received_bytes: AtomicU64,
    pub(super) sent_frames: AtomicU64,
    pub(super) received_frames: AtomicU64,
    /// Times that a link to it broke or could not be made.
    pub(super) failures: AtomicU64,
    pub(super) dropped: [AtomicU64; DROP_REASONS.len()],
}

impl PeerMeter {
    pub(super) fn add(counter: &AtomicU64, count: usize) {
        counter.fetch_add(esker_base::num::to_u64(count), Ordering::Relaxed);
    }

    pub(super) fn dropped(&self, reason: DropReason, frames: usize) {
        Self::add(&self.dropped[reason as usize], frames);
    }

    fn counts(&self) -> PeerCounts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PeerCounts {
            links: get(&self.links),
            links_in: get(&self.links_in),
            sent_bytes: get(&self.sent_bytes),
            received_bytes: get(&self.received_bytes),
            sent_frames: get(&self.sent_frames),
            received_frames: get(&self.received_frames),
            failures: get(&self.failures),
            dropped: std::array::from_fn(|reason| get(&self.dropped[reason])),
        }
    }
}

/// What has been counted about a node since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerCounts {
    /// Links to it that are up: one per store that has something to say.
    pub links: u64,
    /// Links from it that are up.
    pub links_in: u64,
    /// Bytes sent to it.
    pub sent_bytes: u64,
    /// Bytes received from it.
    pub received_bytes: u64,
    /// Frames sent to it, hellos not counted.
    pub sent_frames: u64,
    /// Frames received from it, hellos not counted.
    pub received_frames: u64,
    /// Times that a link to it broke or could not be made.
    pub failures: u64,
    /// Frames that were dropped, by [`DROP_REASONS`].
    pub dropped: [u64; DROP_REASONS.len()],
}

#[derive(Default)]
struct Inner {
    directory: RwLock<Option<Arc<Directory>>>,
    /// Rises with every change.
    generation: AtomicU64,
    meters: Mutex<BTreeMap<NodeId, Arc<PeerMeter>>>,
    /// Links that were refused, of whoever began them.
    refused: AtomicU64,
}

/// Where loops look for the directory. One for all loops of a node; without a directory frames go nowhere.
#[derive(Clone, Default)]
pub struct DirectorySlot(Arc<Inner>);

impl DirectorySlot {
    /// From now on this is so. Links to and from nodes that are not in it end; others stay as they are.
    pub fn set(&self, directory: Directory) {
        let mut slot = self
            .0
            .directory
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *slot = Some(Arc::new(directory));
        self.0.generation.fetch_add(1, Ordering::Release);
    }

    /// What has been counted, by node.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<NodeId, PeerCounts> {
        let meters = self.0.meters.lock().unwrap_or_else(PoisonError::into_inner);
        meters
            .iter()
            .map(|(node, meter)| (*node, meter.counts()))
            .collect()
    }

    /// Links that were begun here and refused.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }

    pub(super) fn note_refused(&self) {
        self.0.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> Option<Arc<Directory>> {
        let slot = self
            .0
            .directory
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        slot.clone()
    }

    pub(super) fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// The meter of a node of the directory; they are never more than the nodes that ever were in it.
    pub(super) fn meter(&self, node: NodeId) -> Arc<PeerMeter> {
        let mut meters = self.0.meters.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(meters.entry(node).or_default())
    }
}

impl std::fmt::Debug for DirectorySlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DirectorySlot")
    }
}
