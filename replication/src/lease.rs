//! The leader's lease for reads.
//!
//! A leader may answer a read alone as long as nobody else can have been elected. A replica that hears from a leader
//! promises it, for [`GroupConfig::election_ticks`] of its own ticks, to elect nobody else ([`Group::has_promised`]). An
//! answered ReadIndex question shows that a quorum made this promise *after* the question was put, so from that moment on
//! the leader holds a lease of [`GroupConfig::lease`], which is shorter than the promise by more than clocks may drift.
//!
//! What ends it early: another term; a hand-over that was begun, for the rest of the term (the message that asks the
//! successor to stand may arrive at any time, and such an election breaks promises); another membership (the quorum was
//! one of the old one).
//!
//! A read by lease is answered as of the moment `now` that is given with it. `now` must have been read *after* the
//! question came in: a process that was held up between the two would judge by a time that is long past.
//! (C. Gray and D. Cheriton, "Leases", SOSP'89; D. Ongaro's dissertation on Raft, section 6.4.1.)
//!
//! [`GroupConfig::election_ticks`]: crate::GroupConfig::election_ticks
//! [`GroupConfig::lease`]: crate::GroupConfig::lease

use crate::group::Group;
use crate::timeout::mix;
use esker_base::num::to_u64;
use esker_base::Moment;
use raft::eraftpb::{Entry, Message, MessageType};
use raft::ReadOnlyOption;
use std::collections::VecDeque;
use std::time::Duration;

/// Questions whose answers may still begin a lease; of more the oldest are forgotten.
const ASKED_MAX: usize = 64;

/// A leader's lease, and what could begin the next one.
#[derive(Debug, Default)]
pub(crate) struct Lease {
    /// Length; zero for none.
    length: Duration,
    /// When the question was put that a quorum has answered.
    since: Option<Moment>,
    /// Questions without an answer, by identity, the oldest first.
    asked: VecDeque<(u64, Moment)>,
    /// No lease any more in this term.
    is_over: bool,
}

impl Lease {
    pub fn new(length: Duration) -> Self {
        Self {
            length,
            ..Self::default()
        }
    }

    /// Another term.
    pub fn reset(&mut self) {
        *self = Self::new(self.length);
    }

    /// Another membership: what was shown holds no more.
    pub fn drop_now(&mut self) {
        self.since = None;
        self.asked.clear();
    }

    /// A hand-over was begun.
    pub fn end(&mut self) {
        self.drop_now();
        self.is_over = true;
    }

    /// A question was put.
    pub fn asked(&mut self, id: u64, now: Moment) {
        if self.is_over || self.length.is_zero() {
            return;
        }
        self.asked.push_back((id, now));
        if self.asked.len() > ASKED_MAX {
            self.asked.pop_front();
        }
    }

    /// A quorum has answered a question, and with it all that were put before.
    pub fn answered(&mut self, id: u64) {
        if !self.asked.iter().any(|(asked, _)| *asked == id) {
            return;
        }
        while let Some((asked, at)) = self.asked.pop_front() {
            self.since = self.since.max(Some(at));
            if asked == id {
                break;
            }
        }
    }

    /// What is left of it.
    fn left(&self, now: Moment) -> Duration {
        let end = self.since.map(|since| since + self.length);
        end.map_or(Duration::ZERO, |end| end.since(now))
    }

    /// Whether a read may be answered by it.
    pub fn holds(&self, now: Moment) -> bool {
        // A clock that stands behind the question's time is not to be trusted.
        self.since.is_some_and(|since| since <= now) && !self.left(now).is_zero()
    }

    /// Whether it should be asked for again: half of it is over, and no question is on its way.
    fn is_due(&self, now: Moment) -> bool {
        let half = self.length / 2;
        let waits = |(_, at): &(u64, Moment)| now.since(*at) < half;
        !self.length.is_zero()
            && !self.is_over
            && self.left(now) < half
            && !self.asked.back().is_some_and(waits)
    }
}

impl Group {
    /// Whether this replica has promised a leader to elect nobody else yet. It holds whatever the replica heard since: a
    /// message of a later term makes raft-rs forget whom it followed.
    pub(crate) fn has_promised(&self) -> bool {
        let within = to_u64(self.config.election_ticks);
        self.followed.is_some_and(|at| self.ticks - at < within)
    }

    /// Puts a question to raft-rs, which asks the peers, or answers it at once under a lease.
    pub(crate) fn put_question(&mut self, message: Message, by_lease: bool) {
        if by_lease {
            self.raw.raft.read_only.option = ReadOnlyOption::LeaseBased;
            self.reads_by_lease += 1;
        }
        // Errors: a question that nobody can answer is dropped, and asked again.
        let _ = self.raw.raft.step(message);
        // Answers of peers count in this mode only.
        self.raw.raft.read_only.option = ReadOnlyOption::Safe;
    }

    /// Asks for the next lease in time, so that reads under way wait for nobody.
    pub(crate) fn renew_lease(&mut self, now: Moment) {
        if self.has_committed_in_term() && self.lease.is_due(now) {
            let (id, message) = self.new_question();
            self.lease.asked(id, now);
            self.put_question(message, false);
        }
    }

    /// A question of this replica's, under an identity of its own.
    pub(crate) fn new_question(&mut self) -> (u64, Message) {
        self.reads_issued += 1;
        // Unique across restarts too: an answer to a read of an earlier life of this replica must
        // not serve a later read.
        let id = mix(mix(mix(self.config.seed) ^ self.config.replica.0) ^ self.reads_issued);
        let mut identity = self.config.replica.0.to_le_bytes().to_vec();
        identity.extend_from_slice(&id.to_le_bytes());
        let entry = Entry {
            data: identity,
            ..Entry::default()
        };
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgReadIndex);
        message.set_entries(vec![entry]);
        (id, message)
    }

    /// Answers the questions that peers put.
    pub(crate) fn answer_questions(&mut self, now: Moment) {
        let questions = std::mem::take(&mut self.questions);
        if questions.is_empty() || !self.leads() {
            return; // whoever asked asks again
        }
        for message in questions {
            let by_lease = self.lease.holds(now);
            self.put_question(message, by_lease);
        }
        self.renew_lease(now);
        self.settle();
    }

    /// On a leader: whether a read would be answered without asking anybody, at a moment that was read after it came in.
    #[must_use]
    pub fn has_lease(&self, now: Moment) -> bool {
        self.leads() && self.lease.holds(now)
    }

    /// Reads that were answered by a lease, of this replica's and of peers.
    #[must_use]
    pub fn reads_by_lease(&self) -> u64 {
        self.reads_by_lease
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: Duration = Duration::from_millis(600);

    fn at(millis: u64) -> Moment {
        Moment(millis * 1_000_000)
    }

    #[test]
    fn it_lasts_from_the_question_and_not_from_the_answer() {
        let mut lease = Lease::new(LENGTH);
        lease.asked(7, at(100));
        assert!(!lease.holds(at(100)), "nobody has answered");
        lease.answered(8);
        assert!(!lease.holds(at(500)), "nobody asked that");
        lease.answered(7);
        assert!(lease.holds(at(500)) && lease.holds(at(699)));
        assert!(!lease.holds(at(700)));
        assert!(!lease.holds(at(99)), "the clock went back");
    }

    #[test]
    fn an_answer_holds_for_questions_before_it_and_never_shortens_a_lease() {
        let mut lease = Lease::new(LENGTH);
        for (id, time) in [(1, 100), (2, 200), (3, 300)] {
            lease.asked(id, at(time));
        }
        lease.answered(2);
        assert!(lease.holds(at(799)) && !lease.holds(at(800)));
        lease.answered(1);
        assert!(lease.holds(at(799)));
        lease.answered(3);
        assert!(lease.holds(at(899)) && !lease.holds(at(900)));
    }

    #[test]
    fn a_hand_over_ends_it_for_the_term_and_a_membership_for_now() {
        let mut lease = Lease::new(LENGTH);
        lease.asked(1, at(0));
        lease.asked(2, at(1));
        lease.answered(1);
        lease.drop_now();
        lease.answered(2);
        assert!(!lease.holds(at(2)));
        lease.asked(3, at(3));
        lease.answered(3);
        assert!(lease.holds(at(4)));
        lease.end();
        lease.asked(4, at(5));
        lease.answered(4);
        assert!(!lease.holds(at(6)) && !lease.is_due(at(6)));
        lease.reset();
        lease.asked(5, at(7));
        lease.answered(5);
        assert!(lease.holds(at(8)));
    }

    #[test]
    fn it_is_asked_for_again_when_half_of_it_is_over_and_once() {
        let mut lease = Lease::new(LENGTH);
        assert!(lease.is_due(at(0)));
        lease.asked(1, at(0));
        assert!(!lease.is_due(at(299)), "the question is on its way");
        lease.answered(1);
        assert!(!lease.is_due(at(300)) && lease.is_due(at(301)));
        lease.asked(2, at(301));
        assert!(!lease.is_due(at(600)) && lease.is_due(at(601)));
        assert!(!Lease::new(Duration::ZERO).is_due(at(5)));
    }
}
