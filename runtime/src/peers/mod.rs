//! Links between nodes, inside a store's loop: frames of this store's machine leave through one link for each
//! node, and what other nodes send comes in on links of theirs, which the loop of the first store takes.
//!
//! A link carries frames one way; what comes back comes on a link of the other node's. It is made when there is
//! first something to send, and again, with growing waits, when it broke. What finds no link within its bounds
//! is dropped and counted: everything above repeats what it needs. Bytes on the wire: [`wire`].

mod admission;
mod backoff;
mod connect;
pub mod decoder;
mod directory;
mod link;
mod outgoing;
mod receiving;
mod sending;
pub mod wire;

pub use admission::{EARLIER_PROCESS_WAIT, PEER_STORES_MAX};
pub use backoff::{BACKOFF_MAX, BACKOFF_MIN};
pub use connect::CONNECT_TIME_MAX;
pub use directory::{
    Directory, DirectorySlot, DropReason, Neighbour, NodeOf, PeerCounts, PeerTls, DROP_REASONS,
};
pub(crate) use link::LinkId;
pub use outgoing::{PEER_QUEUE_BYTES_MAX, PEER_QUEUE_FRAMES_MAX};

use crate::accept::Sparse;
use crate::handle::Shared;
use crate::net::Events;
use crate::ring::{Op, Owner, ReceiveBuffers, Ring, Vectors};
use crate::tls::Channel;
use admission::Newest;
use decoder::Partial;
use esker_base::{Moment, NodeId};
use link::{Link, Sender, Side};
use outgoing::{Outgoing, Way};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

/// How long a link may take from its connection to its hello, or to the end of its handshake.
pub const LINK_BEGIN_TIME_MAX: Duration = Duration::from_secs(5);
/// Links whose sender is not known yet; further ones are closed at once.
pub const LINKS_UNKNOWN_MAX: usize = 64;
/// How often in a row a socket operation may be interrupted.
const TRIES_MAX: u32 = 64;

/// The links of a loop.
pub(crate) struct Peers {
    slot: DirectorySlot,
    directory: Option<Arc<Directory>>,
    generation: u64,
    links: HashMap<LinkId, Link>,
    outgoing: HashMap<NodeId, Outgoing>,
    newest: Newest,
    touched: Vec<LinkId>,
    deadlines: BinaryHeap<Reverse<(Moment, Due)>>,
    next_link: u64,
    next_attempt: u64,
    is_stopping: bool,
    buffers: ReceiveBuffers,
    shared: Arc<Shared>,
    name: String,
    refused: Sparse,
    failed: Sparse,
}

/// What a deadline is about; it may be over by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// A link has to have begun.
    Begin(LinkId),
    /// A node may be connected to again.
    Again(NodeId),
}

impl Peers {
    pub(crate) fn new(
        slot: DirectorySlot,
        shared: Arc<Shared>,
        name: String,
        receive_buffer_bytes: usize,
    ) -> Self {
        Self {
            slot,
            directory: None,
            generation: 0,
            links: HashMap::new(),
            outgoing: HashMap::new(),
            newest: Newest::default(),
            touched: Vec::new(),
            deadlines: BinaryHeap::new(),
            next_link: 1,
            next_attempt: 1,
            is_stopping: false,
            buffers: ReceiveBuffers::new(receive_buffer_bytes),
            shared,
            name,
            refused: Sparse::default(),
            failed: Sparse::default(),
        }
    }

    /// The next moment at which [`Peers::expire`] has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Moment> {
        self.deadlines.peek().map(|Reverse((at, _))| *at)
    }

    /// Ends what has taken too long, and connects again where it is time.
    pub(crate) fn expire(&mut self, now: Moment, events: &mut Events) {
        while let Some(Reverse((at, due))) = self.deadlines.peek().copied() {
            if at > now {
                break;
            }
            self.deadlines.pop();
            match due {
                Due::Begin(id) => {
                    let is_late = self.links.get(&id).is_some_and(|link| match &link.side {
                        Side::From(incoming) => incoming.from.is_none(),
                        Side::To(_) => !link.tls.as_ref().is_none_or(Channel::is_secured),
                    });
                    if is_late {
                        let seconds = LINK_BEGIN_TIME_MAX.as_secs();
                        self.ended(id, &format!("no hello within {seconds} s"), now, events);
                    }
                }
                Due::Again(node) => {
                    let way = self.outgoing.get(&node).map(|way| way.way);
                    if matches!(way, Some(Way::Later(until)) if until <= now) {
                        self.again(node, now, events);
                    }
                }
            }
        }
    }

    /// Brings the kernel's side of every touched link in line with what is to happen on it.
    pub(crate) fn settle(&mut self, ring: &mut Ring, now: Moment, events: &mut Events) {
        self.look_up(now, events);
        while let Some(id) = self.touched.pop() {
            let Some(link) = self.links.get_mut(&id) else {
                continue;
            };
            link.is_touched = false;
            if link.is_dead {
                if link.is_busy() {
                    link.shut_down();
                } else {
                    self.links.remove(&id);
                }
                continue;
            }
            let fd = link.raw_fd();
            if link.receive.is_none() {
                let op = match receiving::receive_of(link) {
                    Some(Partial { buf, filled }) => Op::ReceiveRest {
                        fd,
                        buf,
                        done: filled,
                    },
                    None => {
                        let wants_large = matches!(&link.side, Side::From(i) if i.from.is_some());
                        let buf = self.buffers.take(wants_large);
                        Op::Receive { fd, buf }
                    }
                };
                link.receive = Some(ring.submit(op, Owner::LinkReceive(id)));
            }
            if link.send.is_none() && link.queue.bytes() > 0 {
                let op = Op::Send {
                    fd,
                    bufs: link.queue.front(),
                    vectors: Vectors::default(),
                };
                link.send = Some(ring.submit(op, Owner::LinkSend(id)));
            }
        }
    }

    /// Begins the end of all links; nothing is sent or received any more.
    pub(crate) fn close_all(&mut self) {
        self.is_stopping = true;
        self.deadlines.clear();
        for way in self.outgoing.values_mut() {
            if let Way::Up(..) = way.way {
                way.meter.links.fetch_sub(1, Ordering::Relaxed);
            }
            way.way = Way::None;
            way.take_waiting();
        }
        let all: Vec<_> = self.links.keys().copied().collect();
        for id in all {
            self.bury(id, Moment(0));
        }
    }

    /// True when no link is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// Takes note of a new directory.
    fn look_up(&mut self, now: Moment, events: &mut Events) {
        let generation = self.slot.generation();
        if generation == self.generation {
            return;
        }
        self.generation = generation;
        let Some(directory) = self.slot.get() else {
            return;
        };
        self.directory = Some(Arc::clone(&directory));
        let is_known = |node: &NodeId| directory.neighbours.contains_key(node);
        let gone = self.links.iter().filter(|(_, link)| match &link.side {
            Side::To(node) => !is_known(node),
            Side::From(incoming) => {
                let node = incoming.from.as_ref().map(|sender| sender.place.node);
                node.is_some_and(|node| !is_known(&node))
            }
        });
        let gone: Vec<_> = gone.map(|(id, _)| *id).collect();
        for id in gone {
            self.ended(id, "its node was taken out of the cluster", now, events);
        }
        self.outgoing.retain(|node, _| is_known(node));
        self.newest.retain(&directory);
    }

    fn own_store(&self) -> u16 {
        u16::try_from(self.shared.store_index).unwrap_or(u16::MAX)
    }

    fn add(&mut self, link: Link) -> LinkId {
        let id = LinkId(self.next_link);
        self.next_link += 1;
        self.links.insert(id, link);
        self.touch(id);
        id
    }

    fn touch(&mut self, id: LinkId) {
        if let Some(link) = self.links.get_mut(&id) {
            if !link.is_touched {
                link.is_touched = true;
                self.touched.push(id);
            }
        }
    }

    /// Ends a link.
    fn ended(&mut self, id: LinkId, why: &str, now: Moment, events: &mut Events) {
        let Some(link) = self.links.get(&id).filter(|link| !link.is_dead) else {
            return;
        };
        match &link.side {
            Side::To(node) => {
                let (node, frames) = (*node, link.frames);
                if let Some(way) = self.outgoing.get(&node) {
                    way.meter.dropped(DropReason::LinkBroken, frames);
                }
                self.failed(node, why, now, events);
            }
            Side::From(incoming) => match &incoming.from {
                Some(sender) => {
                    let place = sender.place;
                    tracing::info!("{}: the link from store {place} ended: {why}", self.name);
                }
                None => {
                    let remote = link.remote();
                    self.note_refused(&remote, why, now);
                }
            },
        }
        self.bury(id, now);
    }

    /// A link is over; the kernel has to let go of it.
    fn bury(&mut self, id: LinkId, now: Moment) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        if !link.is_dead {
            link.is_dead = true;
            link.queue.take_all();
            if let Side::From(incoming) = &mut link.side {
                incoming.decoder = decoder::Decoder::default();
                if let Some(Sender { place, meter }) = incoming.from.take() {
                    meter.links_in.fetch_sub(1, Ordering::Relaxed);
                    self.newest.ended(place, id, now);
                }
            }
        }
        self.touch(id);
    }
}
