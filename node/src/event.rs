//! What a node is told and what it asks for: the seam between the logic and its interpreters.
//!
//! One [`Event`] goes in, any number of [`Effect`]s come out. The ring of the runtime and the
//! simulator both interpret the same effects, so what the simulator proves is what production runs.
//!
//! The contract of an interpreter:
//! 1. Every [`Effect::Disk`] is answered by exactly one [`Event::Disk`] with the same id. Operations
//!    may run and complete in any order; a `Sync` covers the writes that *completed* before it was
//!    taken from the effects.
//! 2. [`Effect::Send`] buffers of one connection leave in order; each is answered by one
//!    [`Event::Sent`] when the kernel has taken all of it, or by [`Event::Disconnected`].
//! 3. After [`Effect::Close`] the queued sends are still delivered (for a bounded time), then the
//!    connection ends and exactly one [`Event::Disconnected`] follows.
//! 4. After [`Event::Disconnected`] no event names that connection again.
//! 5. There is one timer: a later [`Effect::SetTimer`] replaces an earlier one. [`Event::Timer`] may
//!    come late and may come spuriously, never never.
//! 6. Effects are taken in the order in which they were given.
//! 7. Every [`KeyAsk::Make`] and [`KeyAsk::Rewrap`] is answered by one [`Event::Keys`]; [`KeyAsk::Open`] by
//!    one for each time its provider failed, and a last one with the key. They may take any time.
//! 8. After one or more events comes [`crate::Machine::settle`], before any waiting.

use crate::admin::{AdminError, AdminReply, AdminRequest};
use bytes::Bytes;
use esker_base::{ConnId, DiskError, DiskOp, IoId, Moment, NodeId, Place, ReplicaId};
use esker_crypto::{DataKey, KeyName, WrappedKey};

/// How a client reached the node; decides when its writes are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// The node's own unix socket: a write is answered once it is written, like a disk with a
    /// write cache; FLUSH and FUA wait for the sync.
    Unix,
    /// TCP: every write is answered when it is durable. Carries the peer's address, for the log.
    Tcp(String),
}

/// Correlates an administrative request with its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdminToken(pub u64);

/// An export of any store of this node, as clients can list it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Export name: the volume's name.
    pub name: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Which store of the node holds it.
    pub store: usize,
    /// Names and sizes in bytes of its newest snapshots, newest first.
    pub snapshots: Vec<(String, u64)>,
}

/// What a node asks of the providers of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyAsk {
    /// Make a DEK, and wrap it.
    Make(KeyName),
    /// Open a wrapped one; ask again until that succeeds, where it can.
    Open(WrappedKey),
    /// Wrap it anew under the newest KEK; one that is the newest already makes way for another.
    Rewrap(WrappedKey),
}

/// The answer to a [`KeyAsk`]; what failed says why in one line.
#[derive(Debug)]
pub enum KeyAnswer {
    /// A DEK, and how it is stored.
    Made(KeyName, Result<(DataKey, WrappedKey), String>),
    /// A DEK.
    Opened(KeyName, Result<DataKey, String>),
    /// The same DEK as it is stored from now on.
    Rewrapped(KeyName, Result<WrappedKey, String>),
}

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// A disk operation ended. Reads carry their bytes; writes and syncs carry none.
    Disk {
        /// The id its effect carried.
        io: IoId,
        /// The outcome.
        result: Result<Bytes, DiskError>,
    },
    /// The timer asked for has passed.
    Timer,
    /// A client connected.
    Connected {
        /// A new id.
        conn: ConnId,
        /// How.
        transport: Transport,
        /// What the listener does with TLS.
        tls: esker_nbd::TlsPolicy,
    },
    /// TLS is established on a connection ([`Effect::StartTls`]); what it receives from now on came
    /// through it.
    Secured {
        /// Which.
        conn: ConnId,
        /// What its client may see and open.
        access: esker_nbd::Access,
    },
    /// A connection that another store's loop had accepted and handed over (see
    /// [`Effect::HandOver`]); its session waits for an answer about an export of this store.
    Adopted {
        /// A new id in this loop.
        conn: ConnId,
        /// How the client is connected.
        transport: Transport,
        /// The session as the other loop left it.
        session: Box<esker_nbd::Session>,
    },
    /// Bytes arrived, in order. Any split is allowed.
    Received {
        /// From which connection.
        conn: ConnId,
        /// The bytes; not empty.
        data: Bytes,
    },
    /// One [`Effect::Send`] was handed to the kernel in full.
    Sent {
        /// On which connection.
        conn: ConnId,
    },
    /// The connection is gone.
    Disconnected {
        /// Which.
        conn: ConnId,
        /// Why, for the log: "end of stream" for a clean close by the client.
        reason: String,
    },
    /// The exports of another store of this node changed.
    Exports {
        /// The other store.
        store: usize,
        /// All its exports, by name.
        exports: Vec<ExportInfo>,
    },
    /// An administrative request for this store.
    Admin {
        /// Comes back with the reply.
        token: AdminToken,
        /// What is asked.
        request: AdminRequest,
    },
    /// Of the providers of keys.
    Keys(KeyAnswer),
    /// A frame from another node.
    Peer {
        /// The sender.
        from: Place,
        /// The frame as it came.
        frame: PeerFrame,
    },
    /// The way to another node broke or could not be made; what was sent last may be lost.
    PeerLost {
        /// The node.
        node: NodeId,
    },
    /// Where replicas of the volumes live that span nodes: all of them, in place of what was known.
    Places(std::collections::BTreeMap<ReplicaId, Place>),
    /// End: tell the sessions, make everything durable, write a checkpoint, then
    /// [`Effect::Stopped`].
    Stop,
}

/// What a frame between nodes is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrameKind {
    /// A group's Raft message (`esker_replication::codec`).
    Group,
    /// A client's request on its way to the leader, or the answer to one.
    Door,
    /// What a replica lacks that the retained log does not reach any more.
    CatchUp,
}

/// A message between nodes: a small header and raw payloads beside it, which no codec copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerFrame {
    /// What it is about.
    pub kind: FrameKind,
    /// The encoded header.
    pub header: Bytes,
    /// Payloads, in the order the header names them, cut in any way.
    pub payloads: Vec<Bytes>,
}

/// Something to be done.
#[derive(Debug)]
pub enum Effect {
    /// Run a disk operation.
    Disk {
        /// Comes back in [`Event::Disk`].
        io: IoId,
        /// What to do.
        op: DiskOp,
    },
    /// Send these buffers, in order, on a connection.
    Send {
        /// On which connection.
        conn: ConnId,
        /// The bytes, in pieces.
        bufs: Vec<Bytes>,
    },
    /// Stop reading from a connection: the client is ahead of its limits.
    PauseReceive {
        /// Which.
        conn: ConnId,
    },
    /// Read from it again.
    ResumeReceive {
        /// Which.
        conn: ConnId,
    },
    /// End a connection after what is queued for it has been sent.
    Close {
        /// Which.
        conn: ConnId,
        /// Why, for the log.
        reason: String,
    },
    /// Begin TLS on a connection, as its server, after what was sent so far: [`Event::Secured`] follows,
    /// or [`Event::Disconnected`]. What was received and not told yet belongs to TLS.
    StartTls {
        /// Which.
        conn: ConnId,
    },
    /// Move a connection to the loop of another store of this node: give its socket and this
    /// session to that loop, which gets [`Event::Adopted`]. Bytes received later go there too.
    HandOver {
        /// Which connection; this loop never hears of it again.
        conn: ConnId,
        /// The store whose loop takes over.
        store: usize,
        /// How the client is connected.
        transport: Transport,
        /// The session, with any bytes it has received and not yet parsed.
        session: Box<esker_nbd::Session>,
    },
    /// Ask for [`Event::Timer`] at this moment; replaces the previous request.
    SetTimer {
        /// When.
        at: Moment,
    },
    /// Answer an administrative request.
    AdminReply {
        /// The request's token.
        token: AdminToken,
        /// The answer.
        result: Result<AdminReply, AdminError>,
    },
    /// Ask the providers of keys.
    Keys(KeyAsk),
    /// Send a frame to another node. May be lost, delayed, duplicated or reordered.
    Peer {
        /// The receiver.
        to: Place,
        /// The frame.
        frame: PeerFrame,
    },
    /// This store's exports changed; to be told to the node's other stores.
    ExportsChanged {
        /// All exports of this store, by name.
        exports: Vec<ExportInfo>,
    },
    /// Recovery is done; I/O is served from now on.
    Ready(crate::ReadyReport),
    /// The store cannot be opened; nothing was written. One line that names the thing and the
    /// remedy. No further effect follows.
    OpenFailed {
        /// The message.
        message: String,
    },
    /// A write or a sync failed: the store takes no more writes until the process is restarted.
    Fenced {
        /// What failed.
        message: String,
    },
    /// The answer to [`Event::Stop`]: everything is durable. No further effect follows.
    Stopped,
}
