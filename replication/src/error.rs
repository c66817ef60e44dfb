//! What can go wrong, as a small stable kind with its context.

use esker_base::{GroupId, RaftIndex, ReplicaId, Term};
use thiserror::Error;

/// A group could not be opened, or refused an input. The group is unchanged by a refused input.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum GroupError {
    /// The configuration is out of range.
    #[error("invalid group configuration: {0}")]
    Config(String),
    /// What was recovered contradicts itself.
    #[error("recovered state is inconsistent: {0}")]
    Inconsistent(String),
    /// The log ends below an index that is known to be committed or applied: acknowledged entries
    /// may be lost. From `Group::new`: open it as suspended. From `Group::receive`: restart it as
    /// suspended.
    #[error("log ends at {last}, below index {known} that was committed")]
    CommitBeyondLog {
        /// The index known to be committed or applied.
        known: RaftIndex,
        /// The last index of the log.
        last: RaftIndex,
    },
    /// A frame or the Raft message in it is malformed.
    #[error("malformed peer message: {0}")]
    Malformed(&'static str),
    /// The frame names another group.
    #[error("frame for group {0}")]
    WrongGroup(GroupId),
    /// The frame is not for this replica, or claims to be from it.
    #[error("frame from replica {from} to replica {to}")]
    WrongReplica {
        /// Who sent it.
        from: ReplicaId,
        /// Whom it names.
        to: ReplicaId,
    },
    /// The sender is not a member, and the message is one that only members send.
    #[error("replica {0} is not a member")]
    UnknownPeer(ReplicaId),
    /// The payload pieces do not match what the header announces.
    #[error("payload is missing or has the wrong length at index {0}")]
    Payload(RaftIndex),
    /// Two replicas lead in the same term: one of them broke a promise.
    #[error("replica {other} also leads in term {term}")]
    TwoLeaders {
        /// The term.
        term: Term,
        /// The second leader.
        other: ReplicaId,
    },
    /// The group may not campaign or vote yet: see `RecoveredGroup::suspended`.
    #[error("the group is suspended")]
    Suspended,
    /// The group may not campaign now (not a voter, entries not durable yet, vote grace, or a
    /// committed membership change not applied yet).
    #[error("cannot campaign: {0}")]
    CannotCampaign(&'static str),
    /// Only the leader can do this.
    #[error("not the leader")]
    NotLeader,
}

/// A proposal was refused; nothing was appended.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ProposeError {
    /// This replica does not lead.
    #[error("not the leader")]
    NotLeader {
        /// Who leads, if known.
        leader_hint: Option<ReplicaId>,
    },
    /// Too many bytes are proposed and not committed, leadership is being handed off, or another
    /// membership change is pending. Try again later.
    #[error("busy")]
    Busy,
    /// The descriptor or the payload exceeds its maximum.
    #[error("entry too large")]
    TooLarge,
    /// The proposal can never be accepted.
    #[error("invalid proposal: {0}")]
    Invalid(String),
}
