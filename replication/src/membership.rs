//! Who belongs to a group.

use crate::error::GroupError;
use esker_base::ReplicaId;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState};
use std::collections::BTreeSet;

/// The members of a group. Joint while `voters_outgoing` is not empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// The voters (the incoming half of a joint configuration).
    pub voters: Vec<ReplicaId>,
    /// Replicas that receive the log and do not vote.
    pub learners: Vec<ReplicaId>,
    /// The voters of the configuration being left; empty unless joint.
    pub voters_outgoing: Vec<ReplicaId>,
    /// Outgoing voters that become learners when the joint configuration is left.
    pub learners_next: Vec<ReplicaId>,
    /// Whether the leader leaves the joint configuration by itself.
    pub auto_leave: bool,
}

/// One step of a membership change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerChange {
    /// Add a voter, or promote a learner.
    AddVoter(ReplicaId),
    /// Add a learner, or demote a voter.
    AddLearner(ReplicaId),
    /// Remove a replica.
    Remove(ReplicaId),
}

impl Membership {
    /// A membership of voters only.
    #[must_use]
    pub fn of_voters(voters: &[ReplicaId]) -> Self {
        Self {
            voters: voters.to_vec(),
            ..Self::default()
        }
    }

    /// True when `replica` is in it in any way.
    #[must_use]
    pub fn contains(&self, replica: ReplicaId) -> bool {
        self.voters.contains(&replica)
            || self.learners.contains(&replica)
            || self.voters_outgoing.contains(&replica)
    }

    /// Checks what raft-rs would panic over, and what would make an empty configuration win
    /// elections.
    pub(crate) fn validate(&self) -> Result<(), GroupError> {
        let fail = |why: &str| Err(GroupError::Inconsistent(format!("membership: {why}")));
        let sets = [
            &self.voters,
            &self.learners,
            &self.voters_outgoing,
            &self.learners_next,
        ];
        for set in sets {
            if set.contains(&ReplicaId(0)) {
                return fail("replica id 0");
            }
            if set.iter().collect::<BTreeSet<_>>().len() != set.len() {
                return fail("a replica appears twice");
            }
        }
        if self.voters.is_empty() {
            return fail("no voters");
        }
        if self
            .learners
            .iter()
            .any(|id| self.voters.contains(id) || self.voters_outgoing.contains(id))
        {
            return fail("a learner is also a voter");
        }
        let staged = |id| self.voters_outgoing.contains(id) && !self.voters.contains(id);
        if !self.learners_next.iter().all(staged) {
            return fail("a staged learner is not an outgoing voter");
        }
        if self.voters_outgoing.is_empty() && self.auto_leave {
            return fail("auto-leave without a joint configuration");
        }
        Ok(())
    }

    pub(crate) fn from_raft(state: &ConfState) -> Self {
        // raft-rs keeps sets in hash order: sort, so that equal memberships are equal.
        let sorted = |ids: &[u64]| {
            let mut ids: Vec<ReplicaId> = ids.iter().copied().map(ReplicaId).collect();
            ids.sort_unstable();
            ids
        };
        Self {
            voters: sorted(&state.voters),
            learners: sorted(&state.learners),
            voters_outgoing: sorted(&state.voters_outgoing),
            learners_next: sorted(&state.learners_next),
            auto_leave: state.auto_leave,
        }
    }

    pub(crate) fn to_raft(&self) -> ConfState {
        let raw = |ids: &[ReplicaId]| {
            let mut ids: Vec<u64> = ids.iter().map(|id| id.0).collect();
            ids.sort_unstable();
            ids
        };
        ConfState {
            voters: raw(&self.voters),
            learners: raw(&self.learners),
            voters_outgoing: raw(&self.voters_outgoing),
            learners_next: raw(&self.learners_next),
            auto_leave: self.auto_leave,
        }
    }
}

/// The change raft-rs proposes: simple for one step, joint (left by itself) for more, leaving the
/// joint configuration for none.
pub(crate) fn to_conf_change(changes: &[PeerChange], context: &[u8]) -> ConfChangeV2 {
    let single = |change: &PeerChange| {
        let (kind, id) = match change {
            PeerChange::AddVoter(id) => (ConfChangeType::AddNode, id),
            PeerChange::AddLearner(id) => (ConfChangeType::AddLearnerNode, id),
            PeerChange::Remove(id) => (ConfChangeType::RemoveNode, id),
        };
        let mut single = ConfChangeSingle {
            node_id: id.0,
            ..ConfChangeSingle::default()
        };
        single.set_change_type(kind);
        single
    };
    ConfChangeV2 {
        changes: changes.iter().map(single).collect(),
        context: context.to_vec(),
        ..ConfChangeV2::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[u64]) -> Vec<ReplicaId> {
        ids.iter().copied().map(ReplicaId).collect()
    }

    #[test]
    fn contradictions_are_refused() {
        let good = Membership {
            voters: ids(&[1, 2]),
            learners: ids(&[4]),
            voters_outgoing: ids(&[1, 3]),
            learners_next: ids(&[3]),
            auto_leave: true,
        };
        assert_eq!(good.validate(), Ok(()));
        assert_eq!(Membership::from_raft(&good.to_raft()), good);
        let mut bad = vec![Membership::default()];
        bad.push(Membership::of_voters(&ids(&[1, 1])));
        bad.push(Membership::of_voters(&ids(&[0])));
        bad.push(Membership {
            learners: ids(&[1]),
            ..good.clone()
        });
        bad.push(Membership {
            learners: ids(&[3]),
            ..good.clone()
        });
        bad.push(Membership {
            learners_next: ids(&[2]),
            ..good.clone()
        });
        bad.push(Membership {
            voters_outgoing: vec![],
            ..good.clone()
        });
        bad.push(Membership {
            auto_leave: true,
            ..Membership::of_voters(&ids(&[1]))
        });
        for membership in bad {
            assert!(membership.validate().is_err(), "{membership:?}");
        }
    }
}
