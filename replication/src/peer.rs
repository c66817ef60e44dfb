//! Append messages on their way to peers: what waits, what is in flight, and the payload budget.
//!
//! raft-rs counts messages and descriptor bytes; payloads are much larger, so each peer has a
//! budget of payload bytes in flight. Past it append messages wait here, in order, without
//! holding their payloads; past [`PEER_HELD_MESSAGES_MAX`] of them the queue is dropped and
//! raft-rs told to probe the peer, from which it resends.

use crate::payload::{length_of, PayloadCache};
use crate::types::payload_length;
use bytes::Bytes;
use esker_base::num::{to_u64, to_usize};
use raft::eraftpb::{Entry, Message};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Append messages waiting for one peer; past it they are dropped, and Raft resends.
pub const PEER_HELD_MESSAGES_MAX: usize = 512;

/// Heartbeat answers without an acknowledgement after which what is in flight is taken for lost.
const SILENT_HEARTBEATS_MAX: u32 = 3;

/// A message that may leave now, with its payload pieces.
pub(crate) struct Sendable {
    pub(crate) message: Message,
    pub(crate) payloads: Vec<Vec<Bytes>>,
}

struct Waiting {
    message: Message,
    payload_bytes: usize,
    /// Payloads read back from the log for this message, by index.
    loaded: BTreeMap<u64, Vec<Bytes>>,
}

#[derive(Default)]
struct Peer {
    waiting: VecDeque<Waiting>,
    /// (last index, payload bytes) of messages sent and not acknowledged.
    inflight: VecDeque<(u64, usize)>,
    inflight_bytes: usize,
    /// Heartbeat answers in a row without an acknowledgement while something is in flight.
    silent_heartbeats: u32,
}

impl Peer {
    fn forget_inflight(&mut self) {
        self.inflight.clear();
        self.inflight_bytes = 0;
    }
}

/// All peers of a leader.
pub(crate) struct Peers {
    peers: BTreeMap<u64, Peer>,
    inflight_bytes_max: usize,
    message_bytes_max: u64,
    /// Payloads asked for and not answered yet.
    requested: BTreeSet<(u64, u64)>,
}

impl Peers {
    pub(crate) fn new(inflight_bytes_max: usize, message_bytes_max: u64) -> Self {
        Self {
            peers: BTreeMap::new(),
            inflight_bytes_max,
            message_bytes_max,
            requested: BTreeSet::new(),
        }
    }

    /// Forgets everything: this replica no longer leads, or leads in another term.
    pub(crate) fn clear(&mut self) {
        self.peers.clear();
        self.requested.clear();
    }

    /// Queues an append message. Returns false when the peer's queue was full: it is now empty,
    /// and raft-rs must be told that the peer is unreachable.
    pub(crate) fn enqueue(&mut self, message: Message) -> bool {
        let peer = self.peers.entry(message.to).or_default();
        for message in split(message, self.message_bytes_max) {
            if peer.waiting.len() >= PEER_HELD_MESSAGES_MAX {
                peer.waiting.clear();
                peer.forget_inflight();
                return false;
            }
            let payload_bytes = message.entries.iter().map(payload_of).sum();
            peer.waiting.push_back(Waiting {
                message,
                payload_bytes,
                loaded: BTreeMap::new(),
            });
        }
        true
    }

    /// The peer holds everything up to `index`.
    pub(crate) fn on_acknowledged(&mut self, from: u64, index: u64) {
        let Some(peer) = self.peers.get_mut(&from) else {
            return;
        };
        while let Some(&(last, bytes)) = peer.inflight.front() {
            if last > index {
                break;
            }
            peer.inflight.pop_front();
            peer.inflight_bytes -= bytes;
            peer.silent_heartbeats = 0;
        }
    }

    /// The peer refused an append: what was in flight and what waits starts at the wrong place.
    pub(crate) fn on_rejected(&mut self, from: u64) {
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.waiting.clear();
            peer.forget_inflight();
        }
    }

    /// The peer answered a heartbeat. Returns false when it answered several and acknowledged
    /// nothing of what is in flight: that is taken for lost, or the budget would never be freed,
    /// and raft-rs must be told that the peer is unreachable.
    pub(crate) fn on_heartbeat_answered(&mut self, from: u64) -> bool {
        let Some(peer) = self.peers.get_mut(&from) else {
            return true;
        };
        if peer.inflight.is_empty() {
            peer.silent_heartbeats = 0;
            return true;
        }
        peer.silent_heartbeats += 1;
        if peer.silent_heartbeats < SILENT_HEARTBEATS_MAX {
            return true;
        }
        peer.silent_heartbeats = 0;
        peer.waiting.clear();
        peer.forget_inflight();
        false
    }

    /// A payload that was asked for. Returns the peers whose messages can't be sent without it
    /// when it could not be read.
    pub(crate) fn on_loaded(
        &mut self,
        index: u64,
        term: u64,
        result: Result<Vec<Bytes>, ()>,
    ) -> Vec<u64> {
        if !self.requested.remove(&(index, term)) {
            return Vec::new();
        }
        let mut failed = Vec::new();
        for (id, peer) in &mut self.peers {
            let Some(head) = peer.waiting.front_mut() else {
                continue;
            };
            let Some(entry) = head
                .message
                .entries
                .iter()
                .find(|e| e.index == index && e.term == term)
            else {
                continue;
            };
            match &result {
                Ok(pieces) if length_of(pieces) == payload_of(entry) => {
                    head.loaded.insert(index, pieces.clone());
                }
                _ => {
                    peer.waiting.clear();
                    failed.push(*id);
                }
            }
        }
        failed
    }

    /// Moves messages that may leave now to `sendable`, and asks for missing payloads through
    /// `needed`.
    pub(crate) fn pump(
        &mut self,
        cache: &PayloadCache,
        sendable: &mut Vec<Sendable>,
        needed: &mut Vec<(u64, u64)>,
    ) {
        for peer in self.peers.values_mut() {
            while let Some(head) = peer.waiting.front() {
                let over = peer.inflight_bytes + head.payload_bytes > self.inflight_bytes_max;
                if over && !peer.inflight.is_empty() && head.payload_bytes > 0 {
                    break;
                }
                let missing = |e: &&Entry| {
                    payload_of(e) > 0
                        && cache.get(e.index, e.term).is_none()
                        && !head.loaded.contains_key(&e.index)
                };
                let mut complete = true;
                for entry in head.message.entries.iter().filter(missing) {
                    complete = false;
                    if self.requested.insert((entry.index, entry.term)) {
                        needed.push((entry.index, entry.term));
                    }
                }
                if !complete {
                    break;
                }
                let Some(mut head) = peer.waiting.pop_front() else {
                    break;
                };
                let mut payloads = Vec::new();
                for entry in head.message.entries.iter().filter(|e| payload_of(e) > 0) {
                    let pieces = head
                        .loaded
                        .remove(&entry.index)
                        .or_else(|| cache.get(entry.index, entry.term).map(<[Bytes]>::to_vec));
                    payloads.extend(pieces);
                }
                if let Some(last) = head
                    .message
                    .entries
                    .last()
                    .filter(|_| head.payload_bytes > 0)
                {
                    peer.inflight.push_back((last.index, head.payload_bytes));
                    peer.inflight_bytes += head.payload_bytes;
                }
                sendable.push(Sendable {
                    message: head.message,
                    payloads,
                });
            }
        }
    }

    /// Payload bytes in flight to `to`.
    pub(crate) fn inflight_bytes(&self, to: u64) -> usize {
        self.peers.get(&to).map_or(0, |peer| peer.inflight_bytes)
    }
}

fn payload_of(entry: &Entry) -> usize {
    to_usize(u64::from(payload_length(entry).unwrap_or(0)))
}

/// Cuts an append message into several so that none carries more than `bytes_max` of payload (one
/// entry is always let through).
fn split(mut message: Message, bytes_max: u64) -> Vec<Message> {
    let total: u64 = message.entries.iter().map(|e| to_u64(payload_of(e))).sum();
    if total <= bytes_max || message.entries.len() <= 1 {
        return vec![message];
    }
    let entries = std::mem::take(&mut message.entries);
    let mut parts = Vec::new();
    let (mut part, mut bytes) = (message.clone(), 0u64);
    for entry in entries {
        let payload = to_u64(payload_of(&entry));
        if let Some(last) = part.entries.last().filter(|_| bytes + payload > bytes_max) {
            let (index, log_term) = (last.index, last.term);
            let next = Message {
                index,
                log_term,
                ..message.clone()
            };
            parts.push(std::mem::replace(&mut part, next));
            bytes = 0;
        }
        bytes += payload;
        part.entries.push(entry);
    }
    parts.push(part);
    parts
}
