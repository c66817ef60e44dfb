//! Which requests a group's log has carried out: one that is asked for again takes effect once.
//!
//! A request that changes a volume whose group spans nodes is named by the process that took it from its
//! client and by its number there, and its entries carry both. Every replica notes them as it applies them,
//! and checkpoints keep what was noted; so a new leader, which has applied all that was in its log when it was
//! elected, knows what it need not do again.
//!
//! An entry also says how many of the numbers below its own may still be without an answer. What lies
//! further below has been answered, or is nobody's any more, and is not carried out again. So no more is kept
//! than is on its way.

use crate::format::checkpoint::SessionEntry;
use crate::format::operation::RequestId;
use esker_base::{RaftIndex, SessionId};
use std::collections::{BTreeMap, BTreeSet};

/// Numbers of a session between the lowest that may be without an answer and the highest, at most.
pub const REQUEST_WINDOW: u64 = 4096;
/// Sessions that are remembered, by when they were last heard of.
const SESSIONS_MAX: usize = 64;

/// What is known of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It was not applied, as far as is remembered.
    No,
    /// It was.
    Applied,
    /// Nobody waits for its request any more.
    Stale,
}

#[derive(Debug, Default)]
struct Session {
    /// Numbers up to this one are over.
    floor: u64,
    /// Numbers above it, with their parts.
    applied: BTreeSet<(u64, u16)>,
    /// The last entry of it.
    heard: RaftIndex,
}

/// What a group's log has carried out.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    sessions: BTreeMap<SessionId, Session>,
}

impl Requests {
    /// The entry at an index is applied.
    pub fn note(&mut self, request: RequestId, index: RaftIndex) {
        let Some(behind) = request.behind.filter(|_| request.session.0 != 0) else {
            return;
        };
        if self.sessions.len() >= SESSIONS_MAX && !self.sessions.contains_key(&request.session) {
            let oldest = self.sessions.iter().min_by_key(|(_, s)| s.heard);
            if let Some(oldest) = oldest.map(|(id, _)| *id) {
                self.sessions.remove(&oldest);
            }
        }
        let session = self.sessions.entry(request.session).or_default();
        session.heard = index;
        session.applied.insert((request.sequence, request.part));
        let behind = u64::from(behind).min(REQUEST_WINDOW);
        let floor = request.sequence.saturating_sub(behind + 1);
        session.floor = session.floor.max(floor);
        let floor = session.floor;
        while session.applied.first().is_some_and(|(n, _)| *n <= floor) {
            session.applied.pop_first();
        }
    }

    /// What is known of an entry.
    pub fn knows(&self, request: RequestId) -> Known {
        match self.sessions.get(&request.session) {
            Some(s) if request.sequence <= s.floor => Known::Stale,
            Some(s) if s.applied.contains(&(request.sequence, request.part)) => Known::Applied,
            _ => Known::No,
        }
    }

    /// For a checkpoint.
    pub fn to_entries(&self) -> Vec<SessionEntry> {
        let entry = |(id, s): (&SessionId, &Session)| SessionEntry {
            session: *id,
            floor: s.floor,
            heard: s.heard,
            applied: s.applied.iter().copied().collect(),
        };
        self.sessions.iter().map(entry).collect()
    }

    /// As a checkpoint has it.
    pub fn from_entries(entries: Vec<SessionEntry>) -> Self {
        let session = |e: SessionEntry| {
            let session = Session {
                floor: e.floor,
                applied: e.applied.into_iter().collect(),
                heard: e.heard,
            };
            (e.session, session)
        };
        Self {
            sessions: entries.into_iter().map(session).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(session: u64, sequence: u64, part: u16, behind: u32) -> RequestId {
        RequestId {
            session: SessionId(session),
            sequence,
            part,
            behind: Some(behind),
        }
    }

    #[test]
    fn what_was_applied_is_known_and_what_was_answered_is_stale() {
        let mut done = Requests::default();
        assert_eq!(done.knows(request(1, 5, 0, 0)), Known::No);
        done.note(request(1, 5, 0, 2), RaftIndex(10));
        assert_eq!(done.knows(request(1, 5, 0, 0)), Known::Applied);
        assert_eq!(done.knows(request(1, 5, 1, 0)), Known::No);
        assert_eq!(done.knows(request(1, 3, 0, 0)), Known::No);
        assert_eq!(done.knows(request(1, 2, 0, 0)), Known::Stale);
        assert_eq!(done.knows(request(2, 5, 0, 0)), Known::No);
        done.note(request(1, 7, 0, 1), RaftIndex(11));
        assert_eq!(done.knows(request(1, 5, 1, 0)), Known::Stale);
        assert_eq!(done.knows(request(1, 6, 0, 0)), Known::No);
        // What comes late does not take back what is known.
        done.note(request(1, 6, 0, 5), RaftIndex(12));
        assert_eq!(done.knows(request(1, 5, 0, 0)), Known::Stale);
        assert_eq!(done.sessions[&SessionId(1)].applied.len(), 2);
        let again = Requests::from_entries(done.to_entries());
        assert_eq!(again.to_entries(), done.to_entries());
        assert_eq!(again.knows(request(1, 7, 0, 0)), Known::Applied);
    }

    #[test]
    fn sessions_that_are_not_heard_of_make_way_and_the_nodes_own_entries_are_none() {
        let mut done = Requests::default();
        done.note(request(0, 1, 0, 0), RaftIndex(1));
        let unsaid = RequestId {
            behind: None,
            ..request(9, 1, 0, 0)
        };
        done.note(unsaid, RaftIndex(2));
        assert!(done.sessions.is_empty());
        for session in 1..=65 {
            done.note(request(1000, session, 0, 0), RaftIndex(2 * session));
            done.note(request(session, 1, 0, 0), RaftIndex(2 * session + 1));
        }
        assert_eq!(done.sessions.len(), SESSIONS_MAX);
        assert_eq!(done.knows(request(1, 1, 0, 0)), Known::No);
        assert_eq!(done.knows(request(65, 1, 0, 0)), Known::Applied);
        assert_eq!(done.knows(request(1000, 65, 0, 0)), Known::Applied);
    }

    #[test]
    fn no_more_is_kept_than_the_window_whatever_an_entry_says() {
        let mut done = Requests::default();
        (1..=3 * REQUEST_WINDOW).for_each(|n| done.note(request(1, n, 0, u32::MAX), RaftIndex(n)));
        assert_eq!(
            done.sessions[&SessionId(1)].applied.len() as u64,
            REQUEST_WINDOW + 1
        );
    }
}
