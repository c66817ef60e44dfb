//! Turns: which session's request enters the engine next, and how much of it.
//!
//! A request costs its bytes and [`REQUEST_COST`], for what it takes however small it is. Sessions whose
//! requests wait take turns by cost (deficit round robin: M. Shreedhar, G. Varghese, "Efficient Fair
//! Queueing using Deficit Round Robin", 1995), and what is in the engine is bounded, for the device
//! serves what it was given first.
//!
//! A session that has more than [`MODEST_COST_MAX`] on its way is *greedy* for [`SHARED_TIME`]; others are
//! *modest*. Modest sessions enter first. While one of them was seen within [`SHARED_TIME`], greedy
//! sessions share the engine with it: they enter in pieces, and all of them together keep no more than
//! [`SHARED_COST_MAX`] inside. Nobody starves: that much is theirs whatever the modest do.

use crate::volume::OpId;
use esker_base::{ConnId, Moment};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// What a request costs besides its bytes: the bytes the device could have moved meanwhile.
pub(crate) const REQUEST_COST: usize = 16 << 10;
/// What a modest session has on its way, at most.
pub(crate) const MODEST_COST_MAX: usize = 256 << 10;
/// How long a session stays greedy, and how long a modest one is remembered.
pub(crate) const SHARED_TIME: Duration = Duration::from_millis(500);
/// What greedy sessions have in the engine beside a modest one, all of them together. One piece always
/// enters.
pub(crate) const SHARED_COST_MAX: usize = 4 * QUANTUM_COST;
/// What all sessions have in the engine. One piece always enters.
pub(crate) const COST_MAX: usize = 24 << 20;
/// Bytes of a request that enter at a time beside a modest session.
pub(crate) const SHARED_PIECE_BYTES: usize = 128 << 10;
/// Bytes of a request that enter at a time otherwise: what an entry of the log holds.
pub(crate) const PIECE_BYTES: usize = 1 << 20;
/// What a session may enter in one turn.
pub(crate) const QUANTUM_COST: usize = SHARED_PIECE_BYTES + REQUEST_COST;

/// What a piece costs.
pub(crate) fn cost_of(bytes: usize) -> usize {
    bytes.saturating_add(REQUEST_COST)
}

/// A piece of a request that enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    pub conn: ConnId,
    pub op: OpId,
    pub bytes: usize,
    /// Nothing of the request is left.
    pub is_last: bool,
}

#[derive(Debug)]
struct Waiting {
    op: OpId,
    bytes: usize,
}

/// What is known of a session.
#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<Waiting>,
    /// Cost of `waiting`, each request counted as one piece.
    waiting_cost: usize,
    /// Cost of what is in the engine.
    inside: usize,
    deficit: usize,
    is_greedy: bool,
    greedy_until: Moment,
    /// Its client has gone.
    is_gone: bool,
}

/// The sessions, and whose turn it is.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    lanes: BTreeMap<ConnId, Lane>,
    /// Modest sessions with something waiting, in turn.
    modest: VecDeque<ConnId>,
    /// Greedy ones.
    greedy: VecDeque<ConnId>,
    inside: usize,
    inside_greedy: usize,
    shared_until: Moment,
    shared_by: Option<ConnId>,
}

impl Turns {
    /// A request of a session waits for its turn.
    pub fn push(&mut self, now: Moment, conn: ConnId, op: OpId, bytes: usize) {
        let lane = self.lanes.entry(conn).or_default();
        let was_waiting = !lane.waiting.is_empty();
        lane.waiting.push_back(Waiting { op, bytes });
        lane.waiting_cost += cost_of(bytes);
        if lane.inside + lane.waiting_cost > MODEST_COST_MAX {
            lane.greedy_until = now + SHARED_TIME;
        }
        let is_greedy = now < lane.greedy_until;
        if is_greedy != lane.is_greedy {
            lane.is_greedy = is_greedy;
            if is_greedy {
                self.inside_greedy += lane.inside;
            } else {
                self.inside_greedy -= lane.inside;
            }
            if was_waiting {
                self.modest.retain(|c| *c != conn);
                self.greedy.retain(|c| *c != conn);
            }
        } else if was_waiting {
            return self.seen(now, conn, is_greedy);
        }
        match is_greedy {
            true => self.greedy.push_back(conn),
            false => self.modest.push_back(conn),
        }
        self.seen(now, conn, is_greedy);
    }

    /// Notes that a modest session is there; or that the one that was has turned out to be greedy.
    fn seen(&mut self, now: Moment, conn: ConnId, is_greedy: bool) {
        if !is_greedy {
            (self.shared_until, self.shared_by) = (now + SHARED_TIME, Some(conn));
        } else if self.shared_by == Some(conn) {
            (self.shared_until, self.shared_by) = (Moment(0), None);
        }
    }

    /// The next piece that may enter now; it is counted as inside until [`Self::left`]. Requests that
    /// are no longer `wanted` are forgotten.
    pub fn next(&mut self, now: Moment, wanted: impl Fn(OpId) -> bool) -> Option<Turn> {
        let is_shared = now < self.shared_until;
        if let Some(turn) = self.next_of(false, COST_MAX, PIECE_BYTES, &wanted) {
            return Some(turn);
        }
        let (most, piece) = match is_shared {
            true => (SHARED_COST_MAX, SHARED_PIECE_BYTES),
            false => (COST_MAX, PIECE_BYTES),
        };
        self.next_of(true, most, piece, &wanted)
    }

    fn next_of(
        &mut self,
        is_greedy: bool,
        most: usize,
        piece: usize,
        wanted: &impl Fn(OpId) -> bool,
    ) -> Option<Turn> {
        loop {
            let ring = match is_greedy {
                true => &mut self.greedy,
                false => &mut self.modest,
            };
            let conn = *ring.front()?;
            let Some(lane) = self.lanes.get_mut(&conn) else {
                ring.pop_front();
                continue;
            };
            while lane.waiting.front().is_some_and(|w| !wanted(w.op)) {
                if let Some(gone) = lane.waiting.pop_front() {
                    lane.waiting_cost -= cost_of(gone.bytes);
                }
            }
            let Some(first) = lane.waiting.front_mut() else {
                ring.pop_front();
                lane.deficit = 0;
                self.remove_if_done(conn);
                continue;
            };
            let bytes = first.bytes.min(piece);
            let cost = cost_of(bytes);
            let inside = match is_greedy {
                true => self.inside_greedy,
                false => self.inside - self.inside_greedy,
            };
            if inside > 0 && inside + cost > most {
                return None;
            }
            if lane.deficit < cost {
                lane.deficit += QUANTUM_COST;
                ring.rotate_left(1);
                continue;
            }
            lane.deficit -= cost;
            lane.inside += cost;
            self.inside += cost;
            if is_greedy {
                self.inside_greedy += cost;
            }
            let op = first.op;
            let is_last = bytes == first.bytes;
            if is_last {
                lane.waiting_cost -= cost;
                lane.waiting.pop_front();
            } else {
                first.bytes -= bytes;
                lane.waiting_cost -= bytes;
            }
            return Some(Turn {
                conn,
                op,
                bytes,
                is_last,
            });
        }
    }

    /// So much of what a session had in the engine has left it.
    pub fn left(&mut self, conn: ConnId, cost: usize) {
        let Some(lane) = self.lanes.get_mut(&conn) else {
            return;
        };
        lane.inside -= cost;
        self.inside -= cost;
        if lane.is_greedy {
            self.inside_greedy -= cost;
        }
        self.remove_if_done(conn);
    }

    /// A client has gone. What it asked for is carried out.
    pub fn gone(&mut self, conn: ConnId) {
        if let Some(lane) = self.lanes.get_mut(&conn) {
            lane.is_gone = true;
            self.remove_if_done(conn);
        }
    }

    fn remove_if_done(&mut self, conn: ConnId) {
        let done = |l: &Lane| l.is_gone && l.inside == 0 && l.waiting.is_empty();
        if self.lanes.get(&conn).is_some_and(done) {
            self.lanes.remove(&conn);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const A: ConnId = ConnId(1);
    const B: ConnId = ConnId(2);
    const C: ConnId = ConnId(3);
    const NOW: Moment = Moment(1_000_000_000);

    fn all(turns: &mut Turns, now: Moment) -> Vec<Turn> {
        std::iter::from_fn(|| turns.next(now, |_| true)).collect()
    }

    fn inside(turns: &[Turn]) -> usize {
        turns.iter().map(|t| cost_of(t.bytes)).sum()
    }

    #[test]
    fn alone_a_session_fills_the_engine_and_no_more() {
        let mut turns = Turns::default();
        (0..64).for_each(|op| turns.push(NOW, A, op, 1 << 20));
        let entered = all(&mut turns, NOW);
        assert!(entered.iter().all(|t| t.bytes == 1 << 20 && t.is_last));
        assert!(inside(&entered) <= COST_MAX && inside(&entered) + cost_of(1 << 20) > COST_MAX);
        turns.left(A, cost_of(1 << 20));
        assert_eq!(all(&mut turns, NOW).len(), 1);
    }

    #[test]
    fn beside_a_modest_session_a_greedy_one_enters_in_pieces_and_a_few() {
        let mut turns = Turns::default();
        turns.push(NOW, A, 1, 32 << 20);
        turns.push(NOW, B, 2, 4096);
        let entered = all(&mut turns, NOW);
        assert_eq!((entered[0].conn, entered[0].is_last), (B, true));
        let greedy = &entered[1..];
        assert!(greedy.iter().all(|t| t.conn == A && !t.is_last));
        assert!(inside(greedy) <= SHARED_COST_MAX, "{entered:?}");
        // Full of the greedy one's: the modest one enters all the same.
        turns.push(NOW, B, 3, 4096);
        assert_eq!(all(&mut turns, NOW).len(), 1);
        // It is forgotten after a while.
        let later = NOW + SHARED_TIME;
        assert!(inside(&all(&mut turns, later)) > 8 * SHARED_COST_MAX);
    }

    #[test]
    fn one_session_is_not_shared_with_itself() {
        let mut turns = Turns::default();
        (0..64).for_each(|op| turns.push(NOW, A, op, 4096));
        assert_eq!(all(&mut turns, NOW).len(), 64);
    }

    #[test]
    fn many_tiny_requests_are_greedy_too() {
        let mut turns = Turns::default();
        (0..256).for_each(|op| turns.push(NOW, A, op, 4096));
        turns.push(NOW, B, 1000, 4096);
        let entered = all(&mut turns, NOW);
        assert_eq!(entered[0].conn, B);
        assert!(entered.len() <= 1 + SHARED_COST_MAX / REQUEST_COST);
    }

    #[test]
    fn greedy_sessions_share_by_bytes_whatever_their_ids_and_sizes() {
        let mut turns = Turns::default();
        let mut op = 0;
        let mut sums: BTreeMap<ConnId, usize> = BTreeMap::new();
        let mut queue = VecDeque::new();
        for _ in 0..2000 {
            for (conn, bytes) in [(A, 8 << 20), (B, 64 << 10), (C, 1 << 20)] {
                while turns.lanes.get(&conn).is_none_or(|l| l.waiting.len() < 512) {
                    op += 1;
                    turns.push(NOW, conn, op, bytes);
                }
            }
            while let Some(turn) = turns.next(NOW, |_| true) {
                *sums.entry(turn.conn).or_default() += cost_of(turn.bytes);
                queue.push_back(turn);
            }
            if let Some(turn) = queue.pop_front() {
                turns.left(turn.conn, cost_of(turn.bytes));
            }
        }
        let (least, most) = (sums.values().min().unwrap(), sums.values().max().unwrap());
        assert_eq!(sums.len(), 3);
        assert!(most - least <= 4 * PIECE_BYTES, "{sums:?}");
    }

    #[test]
    fn what_nobody_wants_any_more_takes_no_turn_and_who_has_gone_leaves_nothing() {
        let mut turns = Turns::default();
        (0..4).for_each(|op| turns.push(NOW, A, op, 4096));
        assert_eq!(turns.next(NOW, |op| op == 3).map(|t| t.op), Some(3));
        turns.gone(A);
        assert_eq!(turns.lanes.len(), 1);
        turns.left(A, cost_of(4096));
        assert_eq!(
            (turns.lanes.len(), turns.inside, turns.inside_greedy),
            (0, 0, 0)
        );
    }
}
