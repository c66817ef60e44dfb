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

/// How long a peer may neither acknowledge nor receive anything of what is in flight before that is taken for lost, in
/// heartbeats.
const SILENT_HEARTBEATS_MAX: u64 = 3;

/// The same for a peer that has received all of it and has yet to acknowledge it: it syncs. What is sent again to such a one
/// is sent in vain, and slows its disk further; the bound is for one whose log only looks as if it had received it.
const SYNCING_HEARTBEATS_MAX: u64 = 50;

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
    /// The tick at which it last acknowledged or received something of that, or at which there came to be something.
    progressed_at: u64,
    /// Where its log ended when it last answered a heartbeat, durable or not.
    received: u64,
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
    heartbeat_ticks: u64,
    /// Payloads asked for and not answered yet.
    requested: BTreeSet<(u64, u64)>,
}

impl Peers {
    pub(crate) fn new(
        inflight_bytes_max: usize,
        message_bytes_max: u64,
        heartbeat_ticks: u64,
    ) -> Self {
        Self {
            peers: BTreeMap::new(),
            inflight_bytes_max,
            message_bytes_max,
            heartbeat_ticks,
            requested: BTreeSet::new(),
        }
    }

    /// Forgets everything: this replica no longer leads, or leads in another term.
    pub(crate) fn clear(&mut self) {
        self.peers.clear();
        self.requested.clear();
    }

    /// Of a message whose entries are all under way already, leaves the question whether the last of them has arrived. A peer
    /// that is probed is sent the same with each heartbeat that it answers while it syncs.
    pub(crate) fn ask_after(&self, message: &mut Message) {
        let Some(peer) = self.peers.get(&message.to) else {
            return;
        };
        let waiting = peer.waiting.iter().filter_map(|w| w.message.entries.last());
        let sent = peer.inflight.back().map(|(last, _)| *last);
        let under_way = waiting.map(|entry| entry.index).chain(sent).max();
        if let Some(last) = message.entries.last() {
            if under_way.is_some_and(|index| last.index <= index) {
                (message.index, message.log_term) = (last.index, last.term);
                message.entries.clear();
            }
        }
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
    pub(crate) fn on_acknowledged(&mut self, from: u64, index: u64, now: u64) {
        let Some(peer) = self.peers.get_mut(&from) else {
            return;
        };
        peer.received = peer.received.max(index);
        while let Some(&(last, bytes)) = peer.inflight.front() {
            if last > index {
                break;
            }
            peer.inflight.pop_front();
            peer.inflight_bytes -= bytes;
            peer.progressed_at = now;
        }
    }

    /// The peer refused an append: what was in flight and what waits starts at the wrong place.
    pub(crate) fn on_rejected(&mut self, from: u64) {
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.waiting.clear();
            peer.forget_inflight();
        }
    }

    /// The peer answered a heartbeat at tick `now`, and its log ended at `received`. Returns false when nothing of what is in
    /// flight has arrived for long: that is taken for lost, or the budget would never be freed, and raft-rs must be told that
    /// the peer is unreachable. Time counts, not answers: reads have heartbeats of their own.
    pub(crate) fn on_heartbeat_answered(&mut self, from: u64, received: u64, now: u64) -> bool {
        let Some(peer) = self.peers.get_mut(&from) else {
            return true;
        };
        if received > peer.received {
            peer.progressed_at = now;
        }
        peer.received = received;
        let Some((last, _)) = peer.inflight.back() else {
            return true;
        };
        let heartbeats = match received >= *last {
            true => SYNCING_HEARTBEATS_MAX,
            false => SILENT_HEARTBEATS_MAX,
        };
        if now.saturating_sub(peer.progressed_at) < heartbeats * self.heartbeat_ticks {
            return true;
        }
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
    /// `needed`. Returns the peers whose messages were dropped because they need the payload of
    /// an entry below `first`: the store may have given it up.
    pub(crate) fn pump(
        &mut self,
        cache: &PayloadCache,
        sendable: &mut Vec<Sendable>,
        needed: &mut Vec<(u64, u64)>,
        first: u64,
        now: u64,
    ) -> Vec<u64> {
        let mut cut_off = Vec::new();
        for (id, peer) in &mut self.peers {
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
                if head
                    .message
                    .entries
                    .iter()
                    .filter(missing)
                    .any(|entry| entry.index < first)
                {
                    peer.waiting.clear();
                    cut_off.push(*id);
                    break;
                }
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
                    if peer.inflight.is_empty() {
                        peer.progressed_at = now;
                    }
                    peer.inflight.push_back((last.index, head.payload_bytes));
                    peer.inflight_bytes += head.payload_bytes;
                }
                sendable.push(Sendable {
                    message: head.message,
                    payloads,
                });
            }
        }
        cut_off
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

#[cfg(test)]
mod tests {
    use super::*;

    fn append(index: u64, payloads: &[u32]) -> Message {
        let entries = (index + 1..).zip(payloads).map(|(index, length)| Entry {
            index,
            term: 1,
            context: crate::types::payload_context(*length),
            ..Entry::default()
        });
        Message {
            to: 2,
            index,
            log_term: 1,
            entries: entries.collect(),
            ..Message::default()
        }
    }

    fn cache(indices: std::ops::Range<u64>) -> PayloadCache {
        let mut cache = PayloadCache::default();
        for index in indices {
            cache.insert(index, 1, vec![Bytes::from(vec![0; 100])]);
        }
        cache
    }

    fn pump(peers: &mut Peers, cache: &PayloadCache, first: u64) -> (Vec<u64>, Vec<u64>, Vec<u64>) {
        let (mut sendable, mut needed) = (Vec::new(), Vec::new());
        let cut_off = peers.pump(cache, &mut sendable, &mut needed, first, 0);
        let sent = sendable.iter().map(|s| s.message.index).collect();
        (sent, needed.iter().map(|n| n.0).collect(), cut_off)
    }

    #[test]
    fn messages_are_split_by_payload_and_stay_within_the_budget() {
        let (mut peers, cache) = (Peers::new(250, 200, 2), cache(1..8));
        assert!(peers.enqueue(append(0, &[100, 100, 100, 100, 100])));
        assert_eq!(
            pump(&mut peers, &cache, 1).0,
            [0],
            "two entries are in flight"
        );
        assert_eq!(peers.inflight_bytes(2), 200);
        assert!(pump(&mut peers, &cache, 1).0.is_empty());
        peers.on_acknowledged(2, 1, 1);
        assert!(
            pump(&mut peers, &cache, 1).0.is_empty(),
            "half a message is not acknowledged"
        );
        peers.on_acknowledged(2, 2, 1);
        assert_eq!(pump(&mut peers, &cache, 1).0, [2]);
    }

    #[test]
    fn what_has_not_arrived_for_long_is_lost_and_what_has_arrived_is_being_synced() {
        let cache = cache(1..8);
        let sent = |at: u64| {
            let mut peers = Peers::new(1000, 1000, 2);
            peers.enqueue(append(0, &[100, 100, 100]));
            peers.pump(&cache, &mut Vec::new(), &mut Vec::new(), 1, at);
            peers
        };
        let mut lost = sent(10);
        assert!((0..100).all(|_| lost.on_heartbeat_answered(2, 0, 15)));
        assert_eq!(lost.inflight_bytes(2), 300);
        assert!(!lost.on_heartbeat_answered(2, 0, 16), "taken for lost");
        assert_eq!(lost.inflight_bytes(2), 0);
        let mut arriving = sent(10);
        for (received, now) in [(1, 15), (2, 20), (2, 25), (3, 26)] {
            assert!(arriving.on_heartbeat_answered(2, received, now));
        }
        assert!(arriving.on_heartbeat_answered(2, 3, 125), "it syncs");
        assert!(!arriving.on_heartbeat_answered(2, 3, 126));
        let mut acknowledging = sent(10);
        acknowledging.enqueue(append(3, &[100]));
        acknowledging.pump(&cache, &mut Vec::new(), &mut Vec::new(), 1, 12);
        acknowledging.on_acknowledged(2, 3, 15);
        assert!(acknowledging.on_heartbeat_answered(2, 3, 20));
        assert!(!acknowledging.on_heartbeat_answered(2, 3, 21));
    }

    #[test]
    fn a_full_queue_is_dropped() {
        let mut peers = Peers::new(250, 200, 2);
        for index in 0..to_u64(PEER_HELD_MESSAGES_MAX) {
            assert!(peers.enqueue(append(index, &[100])));
        }
        assert!(!peers.enqueue(append(1000, &[100])));
        assert!(pump(&mut peers, &cache(0..2000), 1).0.is_empty());
    }

    #[test]
    fn missing_payloads_are_asked_for_once_and_not_below_the_log() {
        let (mut peers, cache) = (Peers::new(1000, 1000, 2), cache(1..3));
        peers.enqueue(append(0, &[100, 100, 100]));
        assert_eq!(pump(&mut peers, &cache, 1), (vec![], vec![3], vec![]));
        assert_eq!(pump(&mut peers, &cache, 1), (vec![], vec![], vec![]));
        assert!(peers
            .on_loaded(3, 1, Ok(vec![Bytes::from(vec![0; 100])]))
            .is_empty());
        assert_eq!(pump(&mut peers, &cache, 1).0, [0]);
        peers.enqueue(append(3, &[100]));
        assert_eq!(pump(&mut peers, &cache, 1).1, [4]);
        assert_eq!(
            peers.on_loaded(4, 1, Ok(vec![Bytes::from(vec![0; 99])])),
            [2]
        );
        peers.enqueue(append(3, &[100]));
        assert_eq!(pump(&mut peers, &cache, 5), (vec![], vec![], vec![2]));
    }
}
