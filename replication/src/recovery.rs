//! What a group starts from, checked before raft-rs sees it (it panics over contradictions).

use crate::config::GroupConfig;
use crate::error::GroupError;
use crate::membership::Membership;
use crate::raft_log::RaftLog;
use crate::types::{entry_to_raft, HardState, LogEntry};
use esker_base::num::to_u64;
use esker_base::{RaftIndex, ReplicaId, Term};

/// Terms and indices beyond this are refused, from disk and from peers, so that arithmetic on
/// them can't overflow.
pub(crate) const NUMBER_MAX: u64 = 1 << 62;

/// How far a suspended group moves its term forward, see [`RecoveredGroup::suspended`].
pub const SUSPENSION_TERM_JUMP: u64 = 1 << 32;

/// A group as the store recovered it. A new group has all of it empty but the membership.
#[derive(Clone, Debug, Default)]
pub struct RecoveredGroup {
    /// The last durable hard state.
    pub hard_state: HardState,
    /// The membership as of `applied`.
    pub membership: Membership,
    /// The index and term of the last entry that was cut from the log; (0, 0) when none was.
    pub truncated: (RaftIndex, Term),
    /// The last applied index.
    pub applied: RaftIndex,
    /// The entries that follow `truncated`, without a gap.
    pub entries: Vec<LogEntry>,
    /// True when the group may have lost durable log entries or its last vote.
    ///
    /// A suspended replica grants no vote and starts no election. To find a leader that was
    /// elected without it, it moves its own term [`SUSPENSION_TERM_JUMP`] beyond the recovered
    /// one, far above any term it may have voted in and forgotten: every leader it then accepts
    /// was elected in a later term, hence after this start and by a quorum without this replica.
    /// That quorum shares a replica with every quorum this one was ever counted in, so the
    /// leader's log holds every entry that was committed with this replica's lost copy (leader
    /// completeness, Raft §5.4.3). The suspension ends when an entry *of such a leader's own
    /// term* is committed and durable here: the log up to it equals the leader's (log matching),
    /// so nothing this replica ever acknowledged and that was committed is missing any more.
    /// Waiting for the leader's commit index at first contact instead would not do: a new leader
    /// may not know yet that an entry of an earlier term is committed. The idea is that of
    /// "Protocol-Aware Recovery for Consensus-Based Storage" (FAST'18, §3.4).
    ///
    /// The price is one election when the replica returns, and no recovery at all while the
    /// others have no quorum without it: there the log is at stake and an operator decides.
    pub suspended: bool,
}

/// Checked state, ready for raft-rs.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) hard_state: HardState,
    pub(crate) applied: u64,
    /// The lowest term of a leader that can end the suspension.
    pub(crate) suspension: Option<u64>,
}

impl RecoveredGroup {
    /// Checks what was recovered.
    ///
    /// * `commit` below `applied` or `truncated` is raised to them: commit is only a lower bound
    ///   on disk, and nothing but committed entries is ever applied or cut.
    /// * `commit` or `applied` beyond the log's end is [`GroupError::CommitBeyondLog`]; for a
    ///   suspended group a `commit` beyond it is clamped to the end instead. (`applied` beyond it
    ///   stays an error: start such a group with `truncated` = what was applied, no entries.)
    /// * anything else that contradicts itself is [`GroupError::Inconsistent`].
    pub(crate) fn check(&self) -> Result<Checked, GroupError> {
        let fail = |why: &str| Err(GroupError::Inconsistent(why.to_owned()));
        self.membership.validate()?;
        let (cut_index, cut_term) = (self.truncated.0 .0, self.truncated.1 .0);
        if (cut_index == 0) != (cut_term == 0) {
            return fail("truncated index and term must both be zero or not");
        }
        let hard_state = self.hard_state;
        let numbers = [
            cut_index,
            cut_term,
            hard_state.term.0,
            hard_state.commit.0,
            self.applied.0,
        ];
        if numbers.iter().any(|number| *number > NUMBER_MAX) {
            return fail("a number is out of range");
        }
        let (mut index, mut term) = (cut_index, cut_term);
        for entry in &self.entries {
            if entry.index.0 != index + 1 {
                return fail("entries have a gap");
            }
            if entry.term.0 < term.max(1) || entry.term.0 > NUMBER_MAX {
                return fail("entry terms fall");
            }
            (index, term) = (entry.index.0, entry.term.0);
        }
        if self.applied.0 < cut_index {
            return fail("log truncated beyond what is applied");
        }
        let last = RaftIndex(index);
        if self.applied > last {
            return Err(GroupError::CommitBeyondLog {
                known: self.applied,
                last,
            });
        }
        let mut commit = hard_state.commit.max(self.applied);
        if commit > last {
            if !self.suspended {
                return Err(GroupError::CommitBeyondLog {
                    known: commit,
                    last,
                });
            }
            commit = last;
        }
        if !self.suspended {
            if hard_state.term.0 < term {
                return fail("the last entry's term is above the current term");
            }
            let hard_state = HardState {
                commit,
                ..hard_state
            };
            return Ok(Checked {
                hard_state,
                applied: self.applied.0,
                suspension: None,
            });
        }
        let jumped = hard_state.term.0.max(term) + SUSPENSION_TERM_JUMP;
        let hard_state = HardState {
            term: Term(jumped),
            vote: ReplicaId(0),
            commit,
        };
        Ok(Checked {
            hard_state,
            applied: self.applied.0,
            suspension: Some(jumped),
        })
    }

    /// The mirror of the recovered log.
    pub(crate) fn into_log(self, config: &GroupConfig, checked: &Checked) -> RaftLog {
        RaftLog::new(
            checked.hard_state.to_raft(),
            self.membership.to_raft(),
            (self.truncated.0 .0, self.truncated.1 .0),
            self.entries.iter().map(entry_to_raft).collect(),
            config
                .size_per_message_max
                .min(to_u64(config.inflight_payload_bytes_max)),
        )
    }
}
