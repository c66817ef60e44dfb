//! Writes that find no room while some may come.
//!
//! A write is refused for want of room when there is none and none is on its way. What is trimmed, replaced
//! or deleted gives its room back with the checkpoints that merge it and take it apart, and the oldest rewind
//! points go for those who write. A write that comes in between waits for that. Of merging it waits for so
//! many checkpoints only: on a store that is full for good, others' writes are merged all the time.

use crate::node::{Node, Phase};
use crate::volume::{Action, OpId, Volume};
use esker_nbd::RequestError;
use std::collections::VecDeque;
use std::time::Duration;

/// How long a write waits for room.
const PARKED_MAX: Duration = Duration::from_secs(20);
/// Checkpoints whose merging it waits for: one that had begun, one that merges what was acknowledged before, and
/// one more where that was being applied when the second began.
const CHECKPOINTS_MAX: u64 = 3;

/// Writes that wait for room.
#[derive(Debug, Default)]
pub(crate) struct Parking {
    /// In the order in which they came. As many as sessions may have on their way.
    writes: VecDeque<OpId>,
    /// Checkpoints that had ended when it was last looked whether they find room: that makes another one due.
    looked: u64,
}

impl Parking {
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
}

impl Node {
    /// Whether a write that found no room is to wait. Others are not: trims make room.
    fn waits_for_room(&mut self, id: OpId) -> bool {
        let done = self.engine.checkpoints_done();
        let Some(op) = self.ops.get_mut(&id) else {
            return false;
        };
        let since = *op.full_since.get_or_insert(done);
        let is_write = matches!(op.action, Action::Write(_));
        let (group, came) = (op.group, op.since);
        let serves = self.volumes.get(&group).is_some_and(Volume::is_serving);
        let late = self.now.since(came) >= PARKED_MAX || self.phase != Phase::Serving;
        let merges = done < since + CHECKPOINTS_MAX && self.engine.merging_may_give_room();
        let comes = merges || self.engine.takes_apart() || self.points_may_give_room();
        is_write && serves && !late && self.fenced.is_none() && comes
    }

    /// Keeps a write that found no room, if some may come. False when it is to be refused.
    pub(crate) fn park(&mut self, id: OpId) -> bool {
        let waits = self.waits_for_room(id);
        if waits {
            self.parking.writes.push_back(id);
            self.make_room();
            self.look_at_windows_soon();
        }
        waits
    }

    /// The same for a write of a volume with several replicas, which comes again by itself.
    pub(crate) fn comes_again(&mut self, id: OpId) -> bool {
        self.waits_for_room(id)
    }

    /// Lets writes go on that waited for room, or refuses them when none will come. True when any did.
    pub(crate) fn release_parked(&mut self) -> bool {
        let Some(id) = self.parking.writes.front().copied() else {
            return false;
        };
        let Some(op) = self.ops.get(&id) else {
            self.parking.writes.pop_front();
            return true; // its volume or its session has ended
        };
        let serves = self.volumes.get(&op.group).is_some_and(Volume::is_serving);
        // Asking whether it fits makes a checkpoint due: once after each.
        let done = self.engine.checkpoints_done();
        let fits = match self.parking.looked == done {
            true => self.would_fit(op),
            false => self.fits(op),
        };
        self.parking.looked = done;
        if fits && serves && self.fenced.is_none() {
            self.parking.writes.pop_front();
            self.admit(id);
            return true;
        }
        if self.waits_for_room(id) {
            return self.make_room();
        }
        self.parking.writes.pop_front();
        let error = match serves && self.fenced.is_none() {
            true => RequestError::NoSpace,
            false => RequestError::Io,
        };
        self.fail_op(id, error);
        true
    }
}
