//! Frames of this store's machine, to other nodes.

use super::connect::{self, Target};
use super::directory::{DropReason, PeerMeter};
use super::link::{Link, LinkId, Side};
use super::outgoing::{self, Outgoing, Way};
use super::wire::{self, Hello, WireKind, WIRE_VERSION};
use super::{Due, Peers, LINK_BEGIN_TIME_MAX, TRIES_MAX};
use crate::net::Events;
use crate::tls::Channel;
use bytes::Bytes;
use esker_base::{Moment, NodeId, Place};
use esker_node::{Event, FrameKind, PeerFrame};
use rustls::ClientConnection;
use std::cmp::Reverse;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::Arc;

impl Peers {
    /// Sends a frame of this store's machine, or drops it.
    pub(crate) fn send(&mut self, to: Place, frame: PeerFrame, now: Moment, events: &mut Events) {
        self.look_up(now, events);
        let Some(directory) = self.directory.clone().filter(|_| !self.is_stopping) else {
            return self
                .slot
                .meter(NodeId(0))
                .dropped(DropReason::UnknownNode, 1);
        };
        let from_store = self.own_store();
        if to.node == directory.node {
            let from = Place {
                node: directory.node,
                store: from_store,
            };
            return self.deliver(from, to.store, frame, None, events);
        }
        if !directory.neighbours.contains_key(&to.node) {
            return self
                .slot
                .meter(NodeId(0))
                .dropped(DropReason::UnknownNode, 1);
        }
        let slot = &self.slot;
        let way = self.outgoing.entry(to.node);
        let way = way.or_insert_with(|| Outgoing::new(slot.meter(to.node)));
        let kind = match frame.kind {
            FrameKind::Group => WireKind::Group,
            FrameKind::Door => WireKind::Door,
            FrameKind::CatchUp => WireKind::CatchUp,
        };
        let stores = (from_store, to.store);
        let Some(pieces) = wire::frame(kind, stores, &frame.header, frame.payloads) else {
            return way.meter.dropped(DropReason::TooLong, 1);
        };
        if let Way::Up(id, _) = way.way {
            let meter = Arc::clone(&way.meter);
            return self.queue(id, pieces, &meter);
        }
        if way.wait(pieces) && way.way == Way::None {
            self.connect(to.node, now, events);
        }
    }

    /// Takes the outcome of an attempt to connect.
    pub(crate) fn connected(
        &mut self,
        (node, attempt): (NodeId, u64),
        result: Result<OwnedFd, String>,
        now: Moment,
        events: &mut Events,
    ) {
        self.look_up(now, events);
        let Some(way) = self.outgoing.get(&node) else {
            return; // it is not in the directory any more
        };
        if way.way != Way::Connecting(attempt) || self.is_stopping {
            return;
        }
        let made = result.and_then(|fd| Ok((fd, self.client(node)?)));
        let (fd, mut tls) = match made {
            Ok(made) => made,
            Err(why) => return self.failed(node, &why, now, events),
        };
        let first_words = tls.as_mut().map(Channel::written);
        let is_plain = tls.is_none();
        let mut link = Link::new(fd, Side::To(node), tls);
        link.queue
            .push_unanswered(first_words.into_iter().collect());
        let id = self.add(link);
        if let Some(way) = self.outgoing.get_mut(&node) {
            way.way = Way::Begun(id);
        }
        if is_plain {
            self.begin(id, node, now);
        } else {
            let due = now + LINK_BEGIN_TIME_MAX;
            self.deadlines.push(Reverse((due, Due::Begin(id))));
        }
    }

    /// TLS towards a node; none for a plain link.
    fn client(&self, node: NodeId) -> Result<Option<Channel>, String> {
        let Some(directory) = &self.directory else {
            return Ok(None);
        };
        let Some(tls) = &directory.tls else {
            return Ok(None);
        };
        let client = directory
            .neighbours
            .get(&node)
            .and_then(|n| n.client.clone());
        let client = client.ok_or("no certificate is configured")?;
        let inner = ClientConnection::new(client, tls.server_name.clone());
        let inner = inner.map_err(|e| format!("TLS: {e}"))?;
        Ok(Some(Channel::new(inner.into())))
    }

    /// Another node has begun a link, to any store of this node: it is there.
    pub(crate) fn is_there(&mut self, node: NodeId, now: Moment, events: &mut Events) {
        let Some(way) = self.outgoing.get_mut(&node) else {
            return;
        };
        if let Way::Later(_) = way.way {
            way.backoff.forget();
            self.again(node, now, events);
        }
    }

    /// Takes the completion of a send.
    pub(crate) fn sent(
        &mut self,
        id: LinkId,
        result: Result<usize, i32>,
        now: Moment,
        events: &mut Events,
    ) {
        self.touch(id);
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        link.send = None;
        if link.is_dead {
            return;
        }
        match result {
            Ok(count) => {
                link.tries = 0;
                let frames = link.queue.advance(count);
                link.frames -= frames;
                if let Side::To(node) = link.side {
                    if let Some(way) = self.outgoing.get(&node) {
                        PeerMeter::add(&way.meter.sent_bytes, count);
                        PeerMeter::add(&way.meter.sent_frames, frames);
                    }
                }
            }
            Err(libc::EINTR | libc::EAGAIN) if link.tries < TRIES_MAX => link.tries += 1,
            Err(errno) => {
                let why = std::io::Error::from_raw_os_error(errno).to_string();
                self.ended(id, &why, now, events);
            }
        }
    }

    /// Queues a frame on a link.
    fn queue(&mut self, id: LinkId, pieces: Vec<Bytes>, meter: &Arc<PeerMeter>) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let bytes: usize = pieces.iter().map(Bytes::len).sum();
        if !outgoing::fits(link.queue.bytes() + bytes, link.frames + 1) {
            return meter.dropped(DropReason::QueueFull, 1);
        }
        let pieces = match &mut link.tls {
            None => pieces,
            Some(tls) => tls.seal(&pieces),
        };
        link.queue.push(pieces);
        link.frames += 1;
        self.touch(id);
    }

    /// Frames go on a link from now on, those that wait first.
    pub(super) fn begin(&mut self, id: LinkId, node: NodeId, now: Moment) {
        let Some(directory) = &self.directory else {
            return;
        };
        let hello = Hello {
            cluster: directory.cluster.0.to_be_bytes().to_vec(),
            from_node: directory.node.0,
            from_store: u32::from(self.own_store()),
            to_node: node.0,
            started_us: directory.started_us,
            link: id.0,
            version_min: u32::from(WIRE_VERSION),
            version_max: u32::from(WIRE_VERSION),
        };
        let Some(way) = self.outgoing.get_mut(&node) else {
            return;
        };
        way.way = Way::Up(id, now);
        way.meter.links.fetch_add(1, Ordering::Relaxed);
        let (waiting, meter) = (way.take_waiting(), Arc::clone(&way.meter));
        if let Some(link) = self.links.get_mut(&id) {
            let pieces = hello.to_frame();
            let pieces = match &mut link.tls {
                None => pieces,
                Some(tls) => tls.seal(&pieces),
            };
            link.queue.push_unanswered(pieces);
            tracing::info!(
                "{}: the link to node {node} at {} is up",
                self.name,
                link.remote()
            );
        }
        for pieces in waiting {
            self.queue(id, pieces, &meter);
        }
        self.touch(id);
    }

    /// Connects to a node, when something waits for it.
    pub(super) fn again(&mut self, node: NodeId, now: Moment, events: &mut Events) {
        let Some(way) = self.outgoing.get_mut(&node) else {
            return;
        };
        way.way = Way::None;
        if way.has_waiting() {
            self.connect(node, now, events);
        }
    }

    fn connect(&mut self, node: NodeId, now: Moment, events: &mut Events) {
        let Some(directory) = &self.directory else {
            return;
        };
        let (Some(way), Some(neighbour)) = (
            self.outgoing.get_mut(&node),
            directory.neighbours.get(&node),
        ) else {
            return;
        };
        let attempt = self.next_attempt;
        self.next_attempt += 1;
        way.way = Way::Connecting(attempt);
        let target = Target {
            node,
            address: neighbour.address.clone(),
            only_here: directory.tls.is_none() && !directory.allows_plain,
        };
        if let Err(error) = connect::begin(target, attempt, &self.shared) {
            self.failed(
                node,
                &format!("no thread to connect with: {error}"),
                now,
                events,
            );
        }
    }

    /// There is no way to a node for now.
    pub(super) fn failed(&mut self, node: NodeId, why: &str, now: Moment, events: &mut Events) {
        let Some(way) = self.outgoing.get_mut(&node) else {
            return;
        };
        let was_up = matches!(way.way, Way::Up(..));
        if was_up {
            way.meter.links.fetch_sub(1, Ordering::Relaxed);
        }
        let spread = self.next_attempt ^ (u64::from(self.generation != 0) << 32) ^ node.0;
        let until = way.failed(now, spread);
        self.deadlines.push(Reverse((until, Due::Again(node))));
        events.push_back(Event::PeerLost { node });
        if was_up {
            tracing::warn!("{}: the link to node {node} broke: {why}", self.name);
        } else if let Some(count) = self.failed.note(now) {
            tracing::warn!("{}: no link to node {node}: {why} ({count}×)", self.name);
        }
    }
}
