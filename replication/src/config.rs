//! Configuration of a group.

use crate::error::GroupError;
use esker_base::{GroupId, ReplicaId};
use raft::ReadOnlyOption;
use std::time::Duration;

/// How a group behaves. [`GroupConfig::new`] gives values for a tick of about 100 ms.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// The group.
    pub group: GroupId,
    /// This replica's identity in it; not 0.
    pub replica: ReplicaId,
    /// Ticks without a leader after which an election starts; the actual timeout is drawn from
    /// `[election_ticks, 2 * election_ticks)`. More than `heartbeat_ticks`.
    pub election_ticks: usize,
    /// Ticks between a leader's heartbeats; at least 1.
    pub heartbeat_ticks: usize,
    /// Ticks after a start during which a replica neither grants votes nor campaigns, because it
    /// may have promised a leader its lease before it stopped. 0 switches it off. It does not
    /// apply to a group of one voter, nor to a replica that was never part of a term.
    pub vote_grace_ticks: usize,
    /// How long after a quorum was asked a leader answers reads without asking again; zero switches it off. Shorter than
    /// `election_ticks - 1` ticks of the fastest clock that a replica may have.
    pub lease: Duration,
    /// Payload bytes in flight to one peer; past it append messages wait. One message is always
    /// let through. Also the payload bytes of durable entries a leader keeps for its peers; past
    /// it the oldest are dropped and read back through `Output::NeedPayload`.
    pub inflight_payload_bytes_max: usize,
    /// Append messages in flight to one peer; at least 1.
    pub inflight_messages_max: usize,
    /// Bytes (descriptors and payloads) a leader has proposed and not yet seen committed; past it
    /// proposals are refused as busy. One proposal is always let through.
    pub uncommitted_bytes_max: u64,
    /// Bytes of descriptors, and likewise of payloads, in one append message. One entry is always
    /// let through.
    pub size_per_message_max: u64,
    /// Bytes of descriptors in one `Output::Committed`. One entry is always let through.
    pub committed_bytes_per_ready_max: u64,
    /// Seeds election timeouts and the identities of reads. Must differ between two starts of the
    /// same replica (the runtime draws it), and be the same to replay a simulation.
    pub seed: u64,
    /// The first ticket that it gives; at least 1. A group that is opened anew in the same process goes on
    /// behind the last one of before, so that what is on its way for that one is not taken for its own.
    pub first_ticket: u64,
}

impl GroupConfig {
    /// The defaults for a replica.
    #[must_use]
    pub fn new(group: GroupId, replica: ReplicaId, seed: u64) -> Self {
        Self {
            group,
            replica,
            election_ticks: 10,
            heartbeat_ticks: 2,
            vote_grace_ticks: 10,
            lease: Duration::from_millis(600),
            inflight_payload_bytes_max: 32 << 20,
            inflight_messages_max: 256,
            uncommitted_bytes_max: 256 << 20,
            size_per_message_max: 1 << 20,
            committed_bytes_per_ready_max: 4 << 20,
            seed,
            first_ticket: 1,
        }
    }

    /// raft-rs's configuration. Every cap and check is set: its defaults leave pre-vote and
    /// check-quorum off, sizes unlimited and one entry per message.
    pub(crate) fn to_raft(&self, applied: u64) -> Result<raft::Config, GroupError> {
        let bounded = |value: u64| value != 0 && value < u64::MAX;
        if !bounded(self.uncommitted_bytes_max)
            || !bounded(self.size_per_message_max)
            || !bounded(self.committed_bytes_per_ready_max)
            || self.inflight_payload_bytes_max == 0
        {
            return Err(GroupError::Config(
                "a byte limit is zero or unlimited".into(),
            ));
        }
        if self.inflight_messages_max > 4096 || self.election_ticks > 1 << 20 {
            return Err(GroupError::Config(
                "messages in flight or election ticks too many".into(),
            ));
        }
        let config = raft::Config {
            id: self.replica.0,
            election_tick: self.election_ticks,
            heartbeat_tick: self.heartbeat_ticks,
            applied,
            max_size_per_msg: self.size_per_message_max,
            max_inflight_msgs: self.inflight_messages_max,
            check_quorum: true,
            pre_vote: true,
            read_only_option: ReadOnlyOption::Safe,
            // raft-rs wants this not below `max_size_per_msg`; the cap that counts payloads too
            // is enforced by the group itself.
            max_uncommitted_size: self.uncommitted_bytes_max.max(self.size_per_message_max),
            max_committed_size_per_ready: self.committed_bytes_per_ready_max,
            ..raft::Config::default()
        };
        config
            .validate()
            .map_err(|error| GroupError::Config(error.to_string()))?;
        Ok(config)
    }
}
