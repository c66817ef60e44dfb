//! The way to another node: a link, or the wait for one.

use super::backoff::Backoff;
use super::directory::{DropReason, PeerMeter};
use super::link::LinkId;
use bytes::Bytes;
use esker_base::Moment;
use std::collections::VecDeque;
use std::sync::Arc;

/// Bytes that may wait for one node, on their way through its link or for there to be one; frames past it are
/// dropped, which Raft makes up for.
pub const PEER_QUEUE_BYTES_MAX: usize = 64 << 20;
/// The same in frames.
pub const PEER_QUEUE_FRAMES_MAX: usize = 16_384;

/// Where the link to a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// There is none, and nothing is known against making one.
    None,
    /// None before this moment.
    Later(Moment),
    /// A thread connects.
    Connecting(u64),
    /// There is a connection; frames wait until TLS is through its handshake.
    Begun(LinkId),
    /// Frames go.
    Up(LinkId, Moment),
}

/// A node, as this loop sends to it.
pub(super) struct Outgoing {
    pub(super) way: Way,
    pub(super) backoff: Backoff,
    pub(super) meter: Arc<PeerMeter>,
    /// Frames without a link, encoded, in order.
    waiting: VecDeque<Vec<Bytes>>,
    waiting_bytes: usize,
}

impl Outgoing {
    pub(super) fn new(meter: Arc<PeerMeter>) -> Self {
        Self {
            way: Way::None,
            backoff: Backoff::default(),
            meter,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
        }
    }

    /// Takes a frame that has to wait; true when it is taken.
    pub(super) fn wait(&mut self, pieces: Vec<Bytes>) -> bool {
        let bytes: usize = pieces.iter().map(Bytes::len).sum();
        if !fits(self.waiting_bytes + bytes, self.waiting.len() + 1) {
            self.meter.dropped(DropReason::QueueFull, 1);
            return false;
        }
        self.waiting_bytes += bytes;
        self.waiting.push_back(pieces);
        true
    }

    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(super) fn take_waiting(&mut self) -> VecDeque<Vec<Bytes>> {
        self.waiting_bytes = 0;
        std::mem::take(&mut self.waiting)
    }

    /// The way to the node has ended, or did not come about.
    pub(super) fn failed(&mut self, now: Moment, spread: u64) -> Moment {
        PeerMeter::add(&self.meter.failures, 1);
        if let Way::Up(_, since) = self.way {
            if now.since(since) >= super::backoff::BACKOFF_MAX {
                self.backoff.forget();
            }
        }
        let reason = match self.way {
            Way::Up(..) => DropReason::LinkBroken,
            _ => DropReason::NoLink,
        };
        let dropped = self.take_waiting().len();
        self.meter.dropped(reason, dropped);
        let until = self.backoff.next(now, spread);
        self.way = Way::Later(until);
        until
    }
}

/// Whether so much may wait for a node. One frame always may.
pub(super) fn fits(bytes: usize, frames: usize) -> bool {
    frames <= 1 || (bytes <= PEER_QUEUE_BYTES_MAX && frames <= PEER_QUEUE_FRAMES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_bounded_by_bytes_and_by_count() {
        let meter = Arc::<PeerMeter>::default();
        let mut way = Outgoing::new(Arc::clone(&meter));
        let frame = |bytes: usize| vec![Bytes::from(vec![0; bytes])];
        let half = PEER_QUEUE_BYTES_MAX / 2;
        assert!(way.wait(frame(half)) && way.wait(frame(half)) && !way.wait(frame(1)));
        assert_eq!(way.take_waiting().len(), 2);
        for _ in 0..PEER_QUEUE_FRAMES_MAX {
            assert!(way.wait(frame(1)));
        }
        assert!(!way.wait(frame(1)));
        way.failed(Moment(0), 0);
        let dropped =
            |reason| meter.dropped[reason as usize].load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(dropped(DropReason::QueueFull), 2);
        assert_eq!(dropped(DropReason::NoLink), 16_384);
        assert!(!way.has_waiting() && matches!(way.way, Way::Later(_)));
    }
}
