//! Sessions that hold memory and let nothing through.

use crate::conns::{Conn, Room};
use crate::event::Effect;
use crate::node::Node;
use esker_base::{limits, ConnId, Moment};
use std::time::Duration;

/// How often the node looks for sessions that do not move, while memory is short.
const STALL_CHECK_INTERVAL: Duration = Duration::from_secs(1);

impl Conn {
    /// What it has not done for too long, if it holds memory by that.
    fn stalled(&self, now: Moment) -> Option<&'static str> {
        let is_long = |since: Moment| now.since(since) >= limits::STALL_TIME_MAX;
        if !self.unsent.is_empty() && is_long(self.sending_since) {
            Some("did not take a reply")
        } else if self.payload_since.is_some_and(|(_, since)| is_long(since)) {
            Some("did not send the rest of a write")
        } else {
            None
        }
    }
}

impl Node {
    /// A session is no longer in its handshake.
    pub(crate) fn handshake_over(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get(&id) {
            self.handshakes.remove(&(conn.handshake_until, id));
        }
    }

    /// Ends sessions whose handshake takes longer than [`limits::HANDSHAKE_TIME_MAX`], so that who says
    /// nothing does not hold a place for ever. One that waits for an answer of ours has that time anew.
    pub(crate) fn cut_unfinished(&mut self, effects: &mut Vec<Effect>) {
        while let Some((until, id)) = self.handshakes.first().copied() {
            if until > self.now {
                return;
            }
            self.handshakes.pop_first();
            let Some(conn) = self.conns.get_mut(&id).filter(|c| !c.closing) else {
                continue;
            };
            if conn.session.export_asked().is_some() {
                conn.handshake_until = self.now + limits::HANDSHAKE_TIME_MAX;
                self.handshakes.insert((conn.handshake_until, id));
                continue;
            }
            let seconds = limits::HANDSHAKE_TIME_MAX.as_secs();
            let reason = format!("its handshake was not over after {seconds} s");
            tracing::info!(conn = id.0, peer = ?conn.transport, reason, "session cut");
            self.meters.sessions.broken += 1;
            self.close(id, reason, effects);
        }
    }

    /// While memory is short, ends sessions that hold some and let nothing through: a payload or a reply
    /// has [`limits::STALL_TIME_MAX`]. One that holds nothing may rest for ever, and so may all while
    /// there is room.
    pub(crate) fn cut_stalled(&mut self, effects: &mut Vec<Effect>) {
        if self.room() == Room::All {
            self.stall_check = None;
            return;
        }
        if self.stall_check.is_some_and(|at| at > self.now) {
            return;
        }
        self.stall_check = Some(self.now + STALL_CHECK_INTERVAL);
        let now = self.now;
        let stalled = |(id, conn): (&ConnId, &Conn)| Some((*id, conn.stalled(now)?));
        let stalled: Vec<_> = self.conns.iter().filter_map(stalled).collect();
        for (id, what) in stalled {
            let Some(conn) = self.conns.get(&id).filter(|c| !c.closing) else {
                continue;
            };
            let (peer, held) = (&conn.transport, conn.counted.1);
            let seconds = limits::STALL_TIME_MAX.as_secs();
            let reason = format!("it {what} for {seconds} s while others waited for memory");
            tracing::warn!(conn = id.0, ?peer, bytes = held, reason, "session cut");
            self.meters.sessions.broken += 1;
            self.close(id, reason, effects);
        }
    }
}
