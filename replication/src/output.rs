//! What a group asks of its caller.

use crate::membership::Membership;
use crate::types::{HardState, LogEntry};
use bytes::Bytes;
use esker_base::{RaftIndex, ReplicaId, Term};

/// Names an [`Output::Append`]. Rises strictly while the group lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Where a proposal was placed. It commits there or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Proposed {
    /// The term it was proposed in.
    pub term: Term,
    /// Its index in the log.
    pub index: RaftIndex,
}

/// A replica's role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower {
        /// The leader, if known.
        leader: Option<ReplicaId>,
    },
    /// Asks whether an election could be won.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

/// One thing for the caller to do. Outputs are in order.
#[derive(Clone, Debug)]
pub enum Output {
    /// Put this in the store's log. Entries overwrite any existing suffix from the first one's
    /// index on. Appends become durable in the order of their tickets.
    Append {
        /// To be given to `Group::on_persisted` once durable. Not needed when `must_sync` is
        /// false.
        ticket: Ticket,
        /// Entries, contiguous, each with the pieces of its payload; may be empty.
        entries: Vec<(LogEntry, Vec<Bytes>)>,
        /// The new hard state, when it changed.
        hard_state: Option<HardState>,
        /// False when only the commit index moved: such an append may be written lazily, folded
        /// into a later one or lost in a crash.
        must_sync: bool,
    },
    /// Send this to a peer. May be lost, delayed, duplicated or reordered.
    Send {
        /// The receiver.
        to: ReplicaId,
        /// The frame header, for `Group::receive` of the receiver.
        header: Bytes,
        /// The payload pieces that follow it, in order.
        payloads: Vec<Bytes>,
    },
    /// Apply these entries, in order. Contiguous with the previous ones; durable here.
    Committed {
        /// The entries, without payloads.
        entries: Vec<LogEntry>,
    },
    /// The membership after the entry at `index`, which was in the `Committed` before this. To be
    /// stored with `applied = index`.
    MembershipChanged {
        /// The entry that changed it.
        index: RaftIndex,
        /// The new membership.
        membership: Membership,
        /// What the proposer gave with the change.
        context: Bytes,
    },
    /// The payload of a retained entry is no longer in memory and a peer needs it: read it from
    /// the log and answer with `Group::payload_loaded`. Messages to that peer wait; heartbeats
    /// don't.
    NeedPayload {
        /// The entry's index.
        index: RaftIndex,
        /// The entry's term.
        term: Term,
    },
    /// The role or the term changed.
    RoleChanged {
        /// The role now.
        role: Role,
        /// The term now.
        term: Term,
    },
    /// A read asked for by `Group::read_index` may be served once `index` is applied.
    ReadReady {
        /// The caller's context.
        context: u64,
        /// The index to wait for.
        index: RaftIndex,
    },
    /// A follower is behind the truncated log: it must catch up by versions. Repeated every
    /// election timeout for as long as it lasts.
    ///
    /// The follower is then opened anew with `truncated` = `applied` = the (index, term) it caught
    /// up to, which must lie above its commit index; its term and vote are kept. Entries that
    /// follow are kept if its log had that very (index, term), else dropped (the rule for Raft
    /// snapshots: what follows a matching entry may have been acknowledged). The leader resumes
    /// by itself when the follower answers its next heartbeat.
    CatchUpNeeded {
        /// The follower.
        to: ReplicaId,
    },
    /// The group is no longer suspended: it caught up with a leader elected without it. To be
    /// stored, so that the next start does not suspend it again.
    Resumed,
}
