//! One client connection: its queue of output and where it is between open and gone.

use crate::net::Events;
use crate::ring::{OpKey, VECTORS_MAX};
use crate::tls::Tls;
use bytes::{Buf, Bytes};
use esker_base::{ConnId, Moment};
use esker_nbd::Session;
use esker_node::{Event, Transport};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;

/// What a small receive brings at most, in bytes.
const SMALL_RECEIVE_BYTES: usize = 2048;
/// After so many of them in a row a client is awaited in a small buffer again.
const SMALL_RECEIVES_MIN: u32 = 32;

/// Where a connection is.
pub(crate) enum Phase {
    /// It serves.
    Open,
    /// Its end is decided: what is queued is sent, what arrives is dropped.
    Closing {
        /// When waiting for a slow reader ends.
        deadline: Moment,
        /// Why, for the machine and the log.
        reason: String,
        /// True when the machine asked for it: it sends nothing more.
        is_asked: bool,
    },
    /// The machine has forgotten it. Our end of the stream is sent; the client's is awaited, so
    /// that unread bytes don't turn into a reset that destroys our last bytes on their way.
    Lingering {
        /// When waiting ends.
        deadline: Moment,
    },
    /// It goes to another loop as soon as the kernel has let go of it.
    Leaving(Box<Leaving>),
    /// Shut down; gone as soon as the kernel has let go of it.
    Dead,
}

/// What goes along with a connection to another loop.
pub(crate) struct Leaving {
    pub(crate) store: usize,
    pub(crate) transport: Transport,
    pub(crate) session: Box<Session>,
    pub(crate) unread: Vec<Bytes>,
}

/// A piece of output. The last piece of each send of the machine is marked.
struct Piece {
    bytes: Bytes,
    ends_send: bool,
}

/// Output in order, as the machine sent it.
#[derive(Default)]
pub(crate) struct SendQueue {
    pieces: VecDeque<Piece>,
    bytes: usize,
}

/// A connection of this loop.
pub(crate) struct Connection {
    pub(crate) fd: OwnedFd,
    pub(crate) phase: Phase,
    /// The receive in flight.
    pub(crate) receive: Option<OpKey>,
    /// The send in flight: at most one, which keeps the order.
    pub(crate) send: Option<OpKey>,
    pub(crate) queue: SendQueue,
    /// From its handshake on.
    pub(crate) tls: Option<Box<Tls>>,
    pub(crate) is_paused: bool,
    /// What a receive that was in flight at a pause brought.
    pub(crate) held: Option<Bytes>,
    /// The client has ended its stream, or the stream broke.
    pub(crate) is_at_end: bool,
    /// It is in the list of connections to settle.
    pub(crate) is_touched: bool,
    /// Interruptions in a row, of receives and sends.
    pub(crate) tries: u32,
    /// It is awaited in a large buffer.
    pub(crate) receives_much: bool,
    /// Receives in a row that a small buffer would have held.
    small_receives: u32,
}

impl SendQueue {
    /// Queues one send of the machine.
    pub(crate) fn push(&mut self, bufs: Vec<Bytes>) {
        let mut bufs: Vec<_> = bufs.into_iter().filter(|b| !b.is_empty()).collect();
        let last = bufs.pop().unwrap_or_default(); // an empty send still gets its answer
        for bytes in bufs {
            self.bytes += bytes.len();
            self.pieces.push_back(Piece {
                bytes,
                ends_send: false,
            });
        }
        self.bytes += last.len();
        self.pieces.push_back(Piece {
            bytes: last,
            ends_send: true,
        });
    }

    /// Queues bytes whose machine has no interest in an answer.
    pub(crate) fn push_unanswered(&mut self, bufs: Vec<Bytes>) {
        for bytes in bufs.into_iter().filter(|b| !b.is_empty()) {
            self.bytes += bytes.len();
            self.pieces.push_back(Piece {
                bytes,
                ends_send: false,
            });
        }
    }

    /// Bytes the kernel has not taken yet.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The pieces for one operation, from the front. They stay queued until they are sent.
    pub(crate) fn front(&self) -> Vec<Bytes> {
        self.pieces
            .iter()
            .take(VECTORS_MAX)
            .map(|piece| piece.bytes.clone())
            .collect()
    }

    /// Takes `sent` bytes off the front, and empty pieces; returns how many sends that completed.
    pub(crate) fn advance(&mut self, mut sent: usize) -> usize {
        assert!(sent <= self.bytes, "the kernel sent more than was queued");
        self.bytes -= sent;
        let mut completed = 0;
        while let Some(front) = self.pieces.front_mut() {
            if front.bytes.len() > sent {
                front.bytes.advance(sent);
                break;
            }
            sent -= front.bytes.len();
            completed += usize::from(front.ends_send);
            self.pieces.pop_front();
        }
        completed
    }

    /// Empties the queue.
    pub(crate) fn take_all(&mut self) -> Vec<Bytes> {
        self.bytes = 0;
        let pieces = std::mem::take(&mut self.pieces);
        pieces
            .into_iter()
            .map(|piece| piece.bytes)
            .filter(|b| !b.is_empty())
            .collect()
    }
}

impl Connection {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            phase: Phase::Open,
            receive: None,
            send: None,
            queue: SendQueue::default(),
            tls: None,
            is_paused: false,
            held: None,
            is_at_end: false,
            is_touched: false,
            tries: 0,
            receives_much: false,
            small_receives: 0,
        }
    }

    /// Learns from a receive of `length` bytes into a buffer of `room` whether it needs a large one:
    /// idle clients, of which there can be thousands, must not hold large buffers.
    pub(crate) fn learn_of_receive(&mut self, length: usize, room: usize) {
        if length == room {
            (self.receives_much, self.small_receives) = (true, 0);
        } else if length <= SMALL_RECEIVE_BYTES {
            self.small_receives = self.small_receives.saturating_add(1);
            if self.small_receives >= SMALL_RECEIVES_MIN {
                self.receives_much = false;
            }
        } else {
            self.small_receives = 0;
        }
    }

    /// Takes what the client said.
    pub(crate) fn receive(&mut self, conn: ConnId, data: Bytes, events: &mut Events) {
        match &mut self.phase {
            Phase::Open if self.is_paused => {
                self.held = Some(match self.held.take() {
                    None => data,
                    Some(first) => [first, data].concat().into(),
                });
            }
            Phase::Open => events.push_back(Event::Received { conn, data }),
            Phase::Leaving(leaving) => leaving.unread.push(data),
            Phase::Closing { .. } | Phase::Lingering { .. } | Phase::Dead => {}
        }
    }

    /// True while the kernel may still act on it.
    pub(crate) fn is_busy(&self) -> bool {
        self.receive.is_some() || self.send.is_some()
    }

    /// True when a receive should be in flight.
    pub(crate) fn wants_receive(&self) -> bool {
        match self.phase {
            Phase::Open => !self.is_paused && self.held.is_none() && !self.is_at_end,
            Phase::Closing { .. } | Phase::Lingering { .. } => !self.is_at_end,
            Phase::Leaving(_) | Phase::Dead => false,
        }
    }

    /// True when queued output should be on its way.
    pub(crate) fn wants_send(&self) -> bool {
        let is_sending = matches!(self.phase, Phase::Open | Phase::Closing { .. });
        is_sending && !self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sends_complete_in_order_when_their_last_byte_is_taken() {
        let mut queue = SendQueue::default();
        queue.push(vec![
            Bytes::from_static(b"abc"),
            Bytes::new(),
            Bytes::from_static(b"de"),
        ]);
        queue.push(vec![]);
        queue.push(vec![Bytes::from_static(b"f")]);
        assert_eq!((queue.bytes(), queue.front().len()), (6, 4));
        assert_eq!(queue.advance(4), 0);
        assert_eq!(queue.front()[0], Bytes::from_static(b"e"));
        assert_eq!(queue.advance(1), 2);
        assert_eq!(
            (queue.advance(1), queue.bytes(), queue.is_empty()),
            (1, 0, true)
        );
    }

    #[test]
    fn what_is_left_goes_along_without_marks() {
        let mut queue = SendQueue::default();
        queue.push(vec![Bytes::from_static(b"abc")]);
        queue.advance(1);
        let left = queue.take_all();
        assert_eq!(
            (left.as_slice(), queue.bytes()),
            (&[Bytes::from_static(b"bc")][..], 0)
        );
        queue.push_unanswered(left);
        assert_eq!(queue.advance(2), 0);
    }
}
