//! Frames of other nodes, for the stores of this one.

use super::admission;
use super::connect;
use super::decoder::{Arrived, ArrivedFrame, Partial};
use super::directory::{DropReason, PeerMeter};
use super::link::{Link, LinkId, Sender, Side};
use super::wire::{Hello, WireKind};
use super::{Due, Peers, LINKS_UNKNOWN_MAX, LINK_BEGIN_TIME_MAX, TRIES_MAX};
use crate::handle::Inbound;
use crate::net::Events;
use crate::ring::{Completion, Op};
use crate::tls::{Channel, End};
use esker_base::{Moment, NodeId, Place};
use esker_node::{Event, FrameKind, PeerFrame};
use rustls::ServerConnection;
use std::cmp::Reverse;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::Arc;

impl Peers {
    /// Takes in a connection that another node, or who says so, has begun.
    pub(crate) fn accepted(&mut self, fd: OwnedFd, now: Moment) {
        let unknown = self.links.values().filter(|link| {
            matches!(&link.side, Side::From(incoming) if incoming.from.is_none() && !link.is_dead)
        });
        let directory = self.slot.get().filter(|_| !self.is_stopping);
        let refusal = match &directory {
            None => Some("this node is in no cluster"),
            Some(_) if unknown.count() >= LINKS_UNKNOWN_MAX => {
                Some("too many links have not said whose they are")
            }
            Some(d) if d.tls.is_none() && !d.allows_plain && !connect::is_from_here(&fd) => Some(
                "it comes from another machine and would be plain; give the nodes certificates \
                      (`esker cert node`), or set insecure = true in [cluster]",
            ),
            Some(_) => None,
        };
        let tls = directory.and_then(|d| d.tls.as_ref().map(|tls| Arc::clone(&tls.server)));
        let tls = tls.map(ServerConnection::new).transpose();
        let tls = tls.map(|tls| tls.map(|tls| Channel::new(tls.into())));
        let (link, refusal) = match tls {
            Ok(tls) => {
                let side = Side::From(Box::default());
                (Link::new(fd, side, tls), refusal.map(str::to_owned))
            }
            Err(error) => {
                let side = Side::From(Box::default());
                (Link::new(fd, side, None), Some(format!("TLS: {error}")))
            }
        };
        if let Some(why) = refusal {
            return self.note_refused(&link.remote(), &why, now);
        }
        let id = self.add(link);
        self.deadlines
            .push(Reverse((now + LINK_BEGIN_TIME_MAX, Due::Begin(id))));
    }

    /// Takes the completion of a receive.
    pub(crate) fn received(
        &mut self,
        id: LinkId,
        completion: Completion,
        now: Moment,
        events: &mut Events,
    ) {
        self.touch(id);
        let Some(link) = self.links.get_mut(&id) else {
            return self.recycle(completion.op);
        };
        link.receive = None;
        if link.is_dead {
            return self.recycle(completion.op);
        }
        match completion.result {
            Ok(_) => link.tries = 0,
            Err(libc::EINTR | libc::EAGAIN) if link.tries < TRIES_MAX => link.tries += 1,
            Err(errno) => {
                self.recycle(completion.op);
                let why = std::io::Error::from_raw_os_error(errno).to_string();
                return self.ended(id, &why, now, events);
            }
        }
        let count = completion.result.unwrap_or(0);
        let is_end = completion.result == Ok(0);
        let mut arrived = Vec::new();
        let outcome = match completion.op {
            Some(Op::Receive { buf, .. }) => {
                let outcome = self.take(id, &buf[..count], now, &mut arrived);
                self.buffers.give_back(buf);
                outcome
            }
            Some(Op::ReceiveRest { buf, done, .. }) => {
                let filled = done + count;
                let partial = Partial { buf, filled };
                match &mut link.side {
                    Side::From(incoming) => {
                        let put = incoming.decoder.put_partial(partial, &mut arrived);
                        put.map_err(|e| e.to_string())
                    }
                    Side::To(_) => Ok(()),
                }
            }
            _ => Ok(()),
        };
        self.count_received(id, count);
        self.arrived(id, arrived, now, events);
        let outcome = match is_end {
            true => Err("end of stream".into()),
            false => outcome,
        };
        if let Err(why) = outcome {
            self.ended(id, &why, now, events);
        }
    }

    /// Gives the buffer of a receive back that nobody looks at.
    fn recycle(&self, op: Option<Op>) {
        if let Some(Op::Receive { buf, .. }) = op {
            self.buffers.give_back(buf);
        }
    }

    fn count_received(&self, id: LinkId, count: usize) {
        if let Some(Side::From(incoming)) = self.links.get(&id).map(|link| &link.side) {
            if let Some(sender) = &incoming.from {
                PeerMeter::add(&sender.meter.received_bytes, count);
            }
        }
    }

    /// Takes bytes of a link.
    fn take(
        &mut self,
        id: LinkId,
        data: &[u8],
        now: Moment,
        arrived: &mut Vec<Arrived>,
    ) -> Result<(), String> {
        let node_of = self.directory.as_ref().and_then(|d| d.tls.as_ref());
        let node_of = node_of.map(|tls| tls.node_of);
        let Some(link) = self.links.get_mut(&id) else {
            return Ok(());
        };
        let mut end = None;
        let (plaintext, mut is_secured) = (&mut Vec::new(), false);
        let data = match &mut link.tls {
            None => data,
            Some(tls) => {
                let was_secured = tls.is_secured();
                let mut shown = None;
                let mut opened = tls.open(data, |certificates| {
                    let node_of = node_of.ok_or("this node has no certificates any more")?;
                    shown = Some(node_of(certificates)?);
                    Ok(())
                });
                is_secured = !was_secured && tls.is_secured();
                link.queue.push_unanswered(vec![opened.answer]);
                match (&mut link.side, shown) {
                    (Side::From(incoming), Some(node)) => incoming.certified = Some(node),
                    (Side::To(node), Some(other)) if *node != other => {
                        end = Some(format!("the other side is node {other}"));
                    }
                    _ => {}
                }
                end = end.or(match opened.end {
                    None => None,
                    Some(End::Closed) => Some("end of stream".into()),
                    Some(End::Failed(why)) => Some(why),
                });
                plaintext.append(&mut opened.plaintext);
                &plaintext[..]
            }
        };
        let taken = match &mut link.side {
            Side::From(incoming) => incoming
                .decoder
                .push(data, arrived)
                .map_err(|e| e.to_string()),
            Side::To(_) if data.is_empty() => Ok(()),
            Side::To(_) => Err("it speaks on a link that only goes there".into()),
        };
        let to = match link.side {
            Side::To(node) => Some(node),
            Side::From(_) => None,
        };
        if let Some(why) = end {
            return Err(why);
        }
        if let Some(node) = to.filter(|_| is_secured) {
            self.begin(id, node, now);
        }
        taken
    }

    /// Takes what came out of a link's bytes.
    fn arrived(&mut self, id: LinkId, arrived: Vec<Arrived>, now: Moment, events: &mut Events) {
        for arrived in arrived {
            match arrived {
                Arrived::Hello(hello) => {
                    if let Err(why) = self.admit(id, &hello, now, events) {
                        return self.ended(id, &why, now, events);
                    }
                }
                Arrived::Frame(frame) => {
                    let Some(Side::From(incoming)) = self.links.get(&id).map(|link| &link.side)
                    else {
                        return;
                    };
                    let Some(Sender { place, meter }) = &incoming.from else {
                        return; // refused
                    };
                    if frame.from_store != place.store {
                        let why = "a frame of another store than the hello's";
                        return self.ended(id, why, now, events);
                    }
                    let (from, meter) = (*place, Arc::clone(meter));
                    PeerMeter::add(&meter.received_frames, 1);
                    let (to_store, frame) = frame_of(frame);
                    self.deliver(from, to_store, frame, Some(&meter), events);
                }
            }
        }
    }

    /// Takes a link whose sender is known now, or says why not.
    fn admit(
        &mut self,
        id: LinkId,
        hello: &Hello,
        now: Moment,
        events: &mut Events,
    ) -> Result<(), String> {
        self.look_up(now, events);
        let directory = self.directory.clone().ok_or("this node is in no cluster")?;
        let Some(Link {
            side: Side::From(incoming),
            ..
        }) = self.links.get_mut(&id)
        else {
            return Ok(());
        };
        let place = admission::sender(hello, &directory, incoming.certified)?;
        let older = self.newest.admit(hello, place, id, now)?;
        let meter = self.slot.meter(place.node);
        meter.links_in.fetch_add(1, Ordering::Relaxed);
        incoming.from = Some(Sender { place, meter });
        if let Some(older) = older {
            self.ended(older, "it has begun a newer link", now, events);
        }
        tracing::info!("{}: a link from store {place} is up", self.name);
        self.is_there(place.node, now, events);
        self.shared
            .send_to_others(|| Inbound::PeerIsThere(place.node));
        Ok(())
    }

    /// Gives a frame to the store of this node that it is for.
    pub(super) fn deliver(
        &self,
        from: Place,
        to_store: u16,
        frame: PeerFrame,
        meter: Option<&Arc<PeerMeter>>,
        events: &mut Events,
    ) {
        let event = Event::Peer { from, frame };
        if to_store == self.own_store() {
            events.push_back(event);
        } else if !self
            .shared
            .send_to_peer(usize::from(to_store), Inbound::Event(event))
        {
            let own = || self.slot.meter(NodeId(0));
            meter
                .map_or_else(own, Arc::clone)
                .dropped(DropReason::NoStore, 1);
        }
    }

    pub(super) fn note_refused(&mut self, remote: &str, why: &str, now: Moment) {
        self.slot.note_refused();
        if let Some(count) = self.refused.note(now) {
            tracing::warn!(
                "{}: refused a link from {remote}: {why} ({count}×)",
                self.name
            );
        }
    }
}

/// The payload whose rest is to be received in place, if there is one.
pub(super) fn receive_of(link: &mut Link) -> Option<Partial> {
    match (&mut link.side, &link.tls) {
        (Side::From(incoming), None) => incoming.decoder.take_partial(),
        _ => None,
    }
}

fn frame_of(frame: ArrivedFrame) -> (u16, PeerFrame) {
    let kind = match frame.kind {
        WireKind::Door => FrameKind::Door,
        WireKind::CatchUp => FrameKind::CatchUp,
        WireKind::Group | WireKind::Hello => FrameKind::Group, // the decoder gives no other hello
    };
    let payloads = frame.payload.into_iter().collect();
    let header = frame.header;
    (
        frame.to_store,
        PeerFrame {
            kind,
            header,
            payloads,
        },
    )
}
