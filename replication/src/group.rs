//! One replica of one Raft group.
//!
//! # The caller's contract
//!
//! 1. One `Group` is driven by one caller, synchronously. After every batch of inputs
//!    ([`Group::tick`], [`Group::receive`], [`Group::propose`], [`Group::on_persisted`], …) call
//!    [`Group::take_ready`] and carry out the outputs in order.
//! 2. [`Output::Append`]: put the entries (payloads beside them) and the hard state into the
//!    store's log. Appends become durable in ticket order. Entries overwrite any suffix from the
//!    first one's index on. Entries and hard state of one append become durable together.
//! 3. [`Group::on_persisted`] only once the append *and all before it* are synced to the device.
//!    Everything Raft promises to peers hangs on this. Appends with `must_sync: false` need no
//!    answer.
//! 4. [`Output::Send`] may leave at once, whatever the order of the appends beside it: messages
//!    that must wait for durability are held here until [`Group::on_persisted`].
//! 5. [`Output::Committed`]: apply in order, then [`Group::on_applied`]. What is committed here is
//!    also durable here.
//! 6. [`Output::MembershipChanged`]: store the membership with `applied = index`, and give that
//!    pair back in [`RecoveredGroup`].
//! 7. [`Output::NeedPayload`] is answered exactly once with [`Group::payload_loaded`].
//! 8. [`Group::truncate`] before the store forgets entries, at or below what is *durably* applied.
//!    A payload may only be given up by the store when its entry is truncated.
//! 9. [`Group::tick`] at a fixed interval while [`Group::needs_tick`]. Lost messages are not
//!    reported back; [`Group::report_unreachable`] when the connection to a peer breaks.
//! 10. After a start: `take_ready`, apply what is committed, and then, for a group of one,
//!     [`Group::campaign`]. The `seed` of the configuration differs between two starts.
//! 11. A `Group` that has returned [`GroupError::CommitBeyondLog`] from `receive` has lost
//!     acknowledged entries: restart it with `suspended: true`.
//! 12. Reads ([`Group::read_index`]) may be dropped at any time: ask again after a timeout.
//! 13. The time that [`Group::read_index`] and [`Group::take_ready`] are given was read after all that the group was told
//!     before had happened: leases are judged by it. It never goes back, and runs as fast as that of the other replicas
//!     within a third.
//!
//! # Panics
//!
//! Bytes from peers and from disk give errors. Contradictory calls (`on_applied` beyond what was
//! handed out) are bugs of the caller and panic.

use crate::config::GroupConfig;
use crate::error::{GroupError, ProposeError};
use crate::lease::Lease;
use crate::membership::{to_conf_change, Membership, PeerChange};
use crate::output::{Output, Proposed, Role, Ticket};
use crate::payload::{length_of, PayloadCache, ENTRY_DATA_BYTES_MAX, ENTRY_PAYLOAD_BYTES_MAX};
use crate::peer::Peers;
use crate::raft_log::RaftLog;
use crate::recovery::RecoveredGroup;
use crate::timeout::election_timeout;
use crate::types::{payload_context, EntryKind, HardState};
use bytes::Bytes;
use esker_base::num::to_u64;
use esker_base::{Moment, RaftIndex, ReplicaId, Term};
use raft::eraftpb::Message;
use raft::{Changer, RawNode, StateRole};
use std::collections::{BTreeMap, VecDeque};

/// Reads waiting for their index; past it further ones are dropped.
pub const READS_PENDING_MAX: usize = 4096;

/// For how many election timeouts a leader that stepped down leaves elections to the others: each of them may take two,
/// and two may collide.
const SHY_ELECTIONS: usize = 5;

/// Times that one context is asked for and not answered, of which the answers count.
const READ_TRIES_MAX: usize = 4;

/// A ready whose effects on the outside wait for durability.
pub(crate) struct Pending {
    /// raft-rs's number of the ready; 0 for the append that opens a suspension.
    pub(crate) number: u64,
    /// The append to wait for; `None` when only earlier ones have to be waited for.
    pub(crate) ticket: Option<Ticket>,
    /// The term that becomes durable with it.
    pub(crate) term: Option<u64>,
    /// First and last index of the entries.
    pub(crate) span: Option<(u64, u64)>,
    /// Messages to send when it is durable.
    pub(crate) messages: Vec<Message>,
}

/// One replica of one Raft group. See the module's contract.
pub struct Group {
    pub(crate) config: GroupConfig,
    pub(crate) raw: RawNode<RaftLog>,
    pub(crate) payloads: PayloadCache,
    pub(crate) peers: Peers,
    pub(crate) pending: VecDeque<Pending>,
    /// The last ready that is durable and not reported to raft-rs yet, because a later append
    /// that is still in flight rewrites its entries.
    pub(crate) unreported: Option<(u64, u64)>,
    pub(crate) next_ticket: u64,
    /// The term on disk. Nothing that speaks for a higher term may leave.
    pub(crate) durable_term: u64,
    /// Outputs produced outside `take_ready`.
    pub(crate) outbox: Vec<Output>,
    pub(crate) reported: (Role, Term),
    /// The last index handed out as committed.
    pub(crate) handed_out: u64,
    /// (index, bytes) proposed in this term and not committed.
    uncommitted: VecDeque<(u64, u64)>,
    uncommitted_bytes: u64,
    /// Identity of a read -> the caller's context.
    pub(crate) reads: BTreeMap<u64, u64>,
    /// The identities under which a context was asked for, the oldest first.
    read_tries: BTreeMap<u64, VecDeque<u64>>,
    pub(crate) reads_issued: u64,
    /// Questions of peers about reads, for the next [`Group::take_ready`].
    pub(crate) questions: Vec<Message>,
    pub(crate) lease: Lease,
    pub(crate) reads_by_lease: u64,
    /// The tick in which it last heard from a leader, and promised it to elect nobody else.
    pub(crate) followed: Option<u64>,
    pub(crate) grace_ticks_left: usize,
    /// It stepped down: for so many ticks the others elect.
    pub(crate) shy_ticks_left: usize,
    /// While suspended: the lowest term of a leader that ends it.
    pub(crate) suspension: Option<u64>,
    attempt: u64,
    led_term: Option<u64>,
    pub(crate) ticks: u64,
    /// The tick of each member's last answer.
    pub(crate) heard: BTreeMap<u64, u64>,
    pub(crate) catch_up_reported: BTreeMap<u64, u64>,
    pub(crate) log_stopped: bool,
    pub(crate) log_held: bool,
}

impl Group {
    /// Opens a group.
    ///
    /// # Errors
    /// [`GroupError::Config`], [`GroupError::Inconsistent`], or [`GroupError::CommitBeyondLog`]
    /// when the log ends below what is known to be committed or applied. A durable commit index
    /// below `applied` is raised to it.
    pub fn new(config: GroupConfig, recovered: RecoveredGroup) -> Result<Group, GroupError> {
        let checked = recovered.check()?;
        let raft_config = config.to_raft(checked.applied)?;
        if config.vote_grace_ticks > 1 << 20 {
            return Err(GroupError::Config("vote grace too long".into()));
        }
        let never_ran = recovered.hard_state == HardState::default()
            && recovered.entries.is_empty()
            && !recovered.suspended;
        let durable_term = recovered.hard_state.term.0;
        let log = recovered.into_log(&config, &checked);
        let raw = RawNode::new(&raft_config, log, &crate::logger::logger())
            .map_err(|error| GroupError::Inconsistent(error.to_string()))?;
        let peers = Peers::new(
            config.inflight_payload_bytes_max,
            config.size_per_message_max,
            to_u64(config.heartbeat_ticks),
        );
        let grace_ticks_left = if never_ran {
            0
        } else {
            config.vote_grace_ticks
        };
        let (first_ticket, lease) = (config.first_ticket, config.lease);
        let mut group = Group {
            handed_out: checked.applied,
            config,
            raw,
            payloads: PayloadCache::default(),
            peers,
            pending: VecDeque::new(),
            unreported: None,
            next_ticket: first_ticket.max(1),
            durable_term,
            outbox: Vec::new(),
            reported: (Role::Follower { leader: None }, checked.hard_state.term),
            uncommitted: VecDeque::new(),
            uncommitted_bytes: 0,
            reads: BTreeMap::new(),
            read_tries: BTreeMap::new(),
            reads_issued: 0,
            questions: Vec::new(),
            lease: Lease::new(lease),
            reads_by_lease: 0,
            followed: None,
            grace_ticks_left,
            shy_ticks_left: 0,
            suspension: checked.suspension,
            attempt: 0,
            led_term: None,
            ticks: 0,
            heard: BTreeMap::new(),
            catch_up_reported: BTreeMap::new(),
            log_stopped: false,
            log_held: false,
        };
        if group.suspension.is_some() {
            // raft-rs takes what it starts from as durable; the moved term is not.
            let ticket = group.take_ticket();
            group.outbox.push(Output::Append {
                ticket,
                entries: Vec::new(),
                hard_state: Some(checked.hard_state),
                must_sync: true,
            });
            group.pending.push_back(Pending {
                number: 0,
                ticket: Some(ticket),
                term: Some(checked.hard_state.term.0),
                span: None,
                messages: Vec::new(),
            });
        }
        group.settle();
        Ok(group)
    }

    /// One logical tick.
    pub fn tick(&mut self) {
        self.ticks += 1;
        let in_grace = self.grace_ticks_left > 0;
        self.grace_ticks_left = self.grace_ticks_left.saturating_sub(1);
        let is_shy = self.shy_ticks_left > 0;
        self.shy_ticks_left = self.shy_ticks_left.saturating_sub(1);
        let leads = self.leads();
        if !leads {
            if self.suspension.is_some() {
                return;
            }
            let due =
                self.raw.raft.election_elapsed + 1 >= self.raw.raft.randomized_election_timeout();
            // An election that this replica wins alone is over at once, and raft-rs panics when
            // entries are not durable by then.
            let alone = self.is_single_voter();
            let stays = in_grace || is_shy;
            if due && ((stays && !alone) || (alone && !self.all_durable())) {
                return;
            }
        }
        self.raw.tick();
        if !leads && self.raw.raft.election_elapsed == 0 {
            self.attempt += 1;
        }
        self.settle();
    }

    /// Whether ticks matter: false for a group of one that leads, so that idle groups sleep.
    #[must_use]
    pub fn needs_tick(&self) -> bool {
        !self.leads()
            || self
                .raw
                .raft
                .prs()
                .iter()
                .any(|(id, _)| *id != self.config.replica.0)
    }

    /// This replica may vote at once: it began in this process, and so has promised nobody anything.
    pub fn end_grace(&mut self) {
        self.grace_ticks_left = 0;
    }

    /// Starts an election now. A group of one calls it at its start and leads when it returns.
    ///
    /// # Errors
    /// [`GroupError::Suspended`] or [`GroupError::CannotCampaign`].
    pub fn campaign(&mut self) -> Result<(), GroupError> {
        if self.leads() {
            return Ok(());
        }
        if self.suspension.is_some() {
            return Err(GroupError::Suspended);
        }
        if !self.raw.raft.promotable() {
            return Err(GroupError::CannotCampaign("not a voter"));
        }
        let alone = self.is_single_voter();
        if self.grace_ticks_left > 0 && !alone {
            return Err(GroupError::CannotCampaign("vote grace after a start"));
        }
        if self.has_promised() && !alone {
            return Err(GroupError::CannotCampaign("it follows a leader"));
        }
        if alone && !self.all_durable() {
            return Err(GroupError::CannotCampaign("entries are not durable yet"));
        }
        let asked = self
            .raw
            .campaign()
            .map_err(|_| GroupError::CannotCampaign("refused"));
        self.settle();
        asked?;
        match self.raw.raft.state {
            StateRole::Follower => Err(GroupError::CannotCampaign(
                "a committed membership change is not applied",
            )),
            _ => Ok(()),
        }
    }

    /// Proposes an entry: `data` is its descriptor, not empty; `payload` travels beside it.
    ///
    /// # Errors
    /// [`ProposeError`]; nothing was appended then.
    pub fn propose(&mut self, data: Bytes, payload: Vec<Bytes>) -> Result<Proposed, ProposeError> {
        let payload_length = length_of(&payload);
        if data.len() > ENTRY_DATA_BYTES_MAX || payload_length > ENTRY_PAYLOAD_BYTES_MAX {
            return Err(ProposeError::TooLarge);
        }
        if data.is_empty() {
            return Err(ProposeError::Invalid("empty descriptor".into()));
        }
        self.check_leads()?;
        let bytes = to_u64(data.len() + payload_length);
        let full = self.uncommitted_bytes.saturating_add(bytes) > self.config.uncommitted_bytes_max;
        if full && !self.uncommitted.is_empty() {
            return Err(ProposeError::Busy);
        }
        let Ok(length) = u32::try_from(payload_length) else {
            return Err(ProposeError::TooLarge);
        };
        // Dropped by raft-rs only while leadership is handed off, or by its own cap.
        let proposed = self.raw.propose(payload_context(length), data.to_vec());
        let result = proposed
            .map_err(|_| ProposeError::Busy)
            .map(|()| self.placed());
        if let Ok(Proposed { term, index }) = result {
            if length > 0 {
                self.payloads.insert(index.0, term.0, payload);
            }
            self.uncommitted.push_back((index.0, bytes));
            self.uncommitted_bytes += bytes;
        }
        self.settle();
        result
    }

    /// Proposes a membership change: one step, several (through a joint configuration that is
    /// left automatically), or none (leaves a joint configuration that was not left). `context` is the caller's, and
    /// comes back in [`Output::MembershipChanged`] of every replica.
    ///
    /// # Errors
    /// [`ProposeError::Busy`] while an earlier change is pending; [`ProposeError::Invalid`] when
    /// the change does not fit the current membership.
    pub fn propose_membership(
        &mut self,
        changes: &[PeerChange],
        context: &[u8],
    ) -> Result<Proposed, ProposeError> {
        self.check_leads()?;
        if context.len() > ENTRY_DATA_BYTES_MAX {
            return Err(ProposeError::TooLarge);
        }
        let change = to_conf_change(changes, context);
        if change.changes.iter().any(|single| single.node_id == 0) {
            return Err(ProposeError::Invalid("replica id 0".into()));
        }
        // raft-rs replaces a change it refuses by an empty entry: check first.
        if self.raw.raft.has_pending_conf() {
            return Err(ProposeError::Busy);
        }
        let mut changer = Changer::new(self.raw.raft.prs());
        let checked = if change.leave_joint() {
            changer.leave_joint()
        } else if let Some(auto_leave) = change.enter_joint() {
            changer.enter_joint(auto_leave, &change.changes)
        } else {
            changer.simple(&change.changes)
        };
        if let Err(error) = checked {
            return Err(ProposeError::Invalid(error.to_string()));
        }
        let proposed = self.raw.propose_conf_change(Vec::new(), change);
        let result = proposed
            .map_err(|_| ProposeError::Busy)
            .map(|()| self.placed());
        self.settle();
        result
    }

    /// The node has applied everything through `index`. Older indices change nothing.
    ///
    /// # Panics
    /// When `index` was not handed out as committed.
    pub fn on_applied(&mut self, index: RaftIndex) {
        assert!(
            index.0 <= self.handed_out,
            "applied {index}, but only {} was handed out",
            self.handed_out
        );
        if index.0 > self.raw.raft.raft_log.applied() {
            self.raw.advance_apply_to(index.0);
            self.settle();
        }
    }

    /// Cuts the mirror of the log up to and including `index`, but never beyond what is applied.
    /// Returns the first index that is still retained.
    pub fn truncate(&mut self, index: RaftIndex) -> RaftIndex {
        let through = index.0.min(self.raw.raft.raft_log.applied());
        self.raw.mut_store().truncate(through);
        self.first_index()
    }

    /// Answers [`Output::NeedPayload`]. `Err` when the payload can't be read (damaged, or given up
    /// by garbage collection): the messages that need it are dropped and Raft tries again later. A
    /// leader then hands over to a voter that has the whole log, if there is one: it cannot serve
    /// whoever needs that entry, and the other one may.
    #[allow(clippy::result_unit_err)] // the cause is the caller's and of no use here
    pub fn payload_loaded(&mut self, index: RaftIndex, term: Term, result: Result<Vec<Bytes>, ()>) {
        let failed = self.peers.on_loaded(index.0, term.0, result);
        for peer in &failed {
            self.raw.report_unreachable(*peer);
            // Whoever cannot be served from the log is served by versions.
            let to = ReplicaId(*peer);
            self.outbox.push(Output::CatchUpNeeded { to });
        }
        if let Some(to) = self.successor(&failed) {
            self.raw.transfer_leader(to.0);
        } else if !failed.is_empty() && self.others_can_do_without(index.0, &failed) {
            self.step_down();
        }
        self.settle();
    }

    /// Whether an entry that this leader cannot send was never committed, and the others that lack it are enough to
    /// elect one of them.
    fn others_can_do_without(&self, index: u64, failed: &[u64]) -> bool {
        let raft = &self.raw.raft;
        let (me, progress) = (self.config.replica.0, raft.prs());
        let lack = |(id, p): &(&u64, &raft::Progress)| {
            **id != me && self.answers(**id) && p.matched < index
        };
        let lacking = progress.iter().filter(lack).map(|(id, _)| *id);
        let goes_elsewhere = raft.lead_transferee.is_some_and(|to| !failed.contains(&to));
        index > raft.raft_log.committed
            && !goes_elsewhere
            && progress.has_quorum(&lacking.collect())
    }

    /// Nothing that follows such an entry is ever committed under this leader.
    fn step_down(&mut self) {
        if self.leads() && !self.is_single_voter() {
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, raft::INVALID_ID);
            self.shy_ticks_left = SHY_ELECTIONS * self.config.election_ticks;
        }
    }

    /// A voter that could lead in place of this leader, which cannot send what `failed` need: one
    /// that holds everything committed and answered lately.
    fn successor(&self, failed: &[u64]) -> Option<ReplicaId> {
        if failed.is_empty() || !self.leads() || self.raw.raft.lead_transferee.is_some() {
            return None;
        }
        let committed = self.raw.raft.raft_log.committed;
        let (me, progress) = (self.config.replica, self.raw.raft.prs());
        let able = |to: &ReplicaId| {
            let peer = progress.get(to.0);
            *to != me
                && !failed.contains(&to.0)
                && self.answers(to.0)
                && peer.is_some_and(|p| p.matched >= committed)
        };
        self.membership().voters.iter().copied().find(able)
    }

    /// Asks for an index that a linearizable read must wait for. The answer is
    /// [`Output::ReadReady`], once; it may never come (leadership changed, message lost): ask again, under the
    /// same context. Returns false
    /// when it was dropped at once: no leader is known, it has not committed in its term yet, or
    /// too many reads wait.
    ///
    /// `now` is the time, read *after* whoever wants to read had asked: a leader with a lease answers as of then, without
    /// asking its peers.
    pub fn read_index(&mut self, now: Moment, context: u64) -> bool {
        let raft = &self.raw.raft;
        let ready = if self.leads() {
            raft.commit_to_current_term() && raft.pending_read_count() < READS_PENDING_MAX
        } else {
            raft.state == StateRole::Follower && raft.leader_id != 0
        };
        if !ready
            || (self.reads.len() >= READS_PENDING_MAX && !self.read_tries.contains_key(&context))
        {
            return false;
        }
        let (id, message) = self.new_question();
        self.reads.insert(id, context);
        // An answer to any of them will do; those that were lost must not add up.
        let tries = self.read_tries.entry(context).or_default();
        tries.push_back(id);
        if tries.len() > READ_TRIES_MAX {
            if let Some(oldest) = tries.pop_front() {
                self.reads.remove(&oldest);
            }
        }
        let by_lease = self.has_lease(now);
        if self.leads() && !by_lease {
            self.lease.asked(id, now);
        }
        self.put_question(message, by_lease);
        if by_lease {
            self.renew_lease(now);
        }
        self.settle();
        true
    }

    /// The caller's context of a read that is answered.
    pub(crate) fn take_read(&mut self, id: u64) -> Option<u64> {
        let context = self.reads.remove(&id)?;
        for other in self.read_tries.remove(&context).unwrap_or_default() {
            self.reads.remove(&other);
        }
        Some(context)
    }

    /// Nobody waits for a read any more.
    pub fn drop_read(&mut self, context: u64) {
        for id in self.read_tries.remove(&context).unwrap_or_default() {
            self.reads.remove(&id);
        }
    }

    /// Whether this is a leader that has committed an entry of its own term: everything committed
    /// before its election is then known to it as committed.
    #[must_use]
    pub fn has_committed_in_term(&self) -> bool {
        self.leads() && self.raw.raft.commit_to_current_term()
    }

    /// Hands leadership to another voter. Proposals are busy until it is done or an election
    /// timeout has passed.
    ///
    /// # Errors
    /// [`GroupError::NotLeader`]; [`GroupError::UnknownPeer`] when `to` is not a voter.
    pub fn transfer_leader(&mut self, to: ReplicaId) -> Result<(), GroupError> {
        if !self.leads() {
            return Err(GroupError::NotLeader);
        }
        if !self.membership().voters.contains(&to) {
            return Err(GroupError::UnknownPeer(to));
        }
        self.raw.transfer_leader(to.0);
        self.settle();
        Ok(())
    }

    /// Hands leadership to the voter that is closest behind, of those that answered lately: this replica is
    /// about to stop. Without one, or where it does not lead, nothing happens.
    pub fn hand_over(&mut self) {
        if !self.leads() || self.raw.raft.lead_transferee.is_some() {
            return;
        }
        let (me, progress) = (self.config.replica, self.raw.raft.prs());
        let others = self.membership().voters.into_iter().filter(|to| *to != me);
        let others = others.filter(|to| self.answers(to.0));
        let able = others.filter_map(|to| Some((to, progress.get(to.0)?)));
        if let Some((to, _)) = able.max_by_key(|(_, p)| p.matched) {
            self.raw.transfer_leader(to.0);
            self.settle();
        }
    }

    /// The connection to a peer broke: what was in flight to it is lost.
    pub fn report_unreachable(&mut self, to: ReplicaId) {
        self.peers.on_rejected(to.0);
        self.raw.report_unreachable(to.0);
        self.settle();
    }

    /// This replica takes no entries of others any more: what it lacks comes otherwise, and then it is opened
    /// anew. It votes as before.
    pub fn stop_log(&mut self) {
        self.log_stopped = true;
    }

    /// Takes no entries of others for now, or takes them again. They are sent once more.
    pub fn hold_log(&mut self, held: bool) {
        self.log_held = held;
    }

    /// The ticket that comes next.
    #[must_use]
    pub fn next_ticket(&self) -> u64 {
        self.next_ticket
    }

    /// The role.
    #[must_use]
    pub fn role(&self) -> Role {
        match self.raw.raft.state {
            StateRole::Follower => Role::Follower {
                leader: self.leader(),
            },
            StateRole::PreCandidate => Role::PreCandidate,
            StateRole::Candidate => Role::Candidate,
            StateRole::Leader => Role::Leader,
        }
    }

    /// The term.
    #[must_use]
    pub fn term(&self) -> Term {
        Term(self.raw.raft.term)
    }

    /// The leader, if known.
    #[must_use]
    pub fn leader(&self) -> Option<ReplicaId> {
        let leader = self.raw.raft.leader_id;
        (leader != 0).then_some(ReplicaId(leader))
    }

    /// Whether this replica alone is a quorum.
    #[must_use]
    pub fn is_single_voter(&self) -> bool {
        // Asked for every request: nothing is allocated here.
        let voters = self.raw.raft.prs().conf().voters();
        voters.contains(self.config.replica.0) && voters.ids().len() == 1
    }

    /// Whether the group waits for a leader elected without it; see [`RecoveredGroup::suspended`].
    #[must_use]
    pub fn is_suspended(&self) -> bool {
        self.suspension.is_some()
    }

    /// The last index of the log, durable or not.
    #[must_use]
    pub fn last_index(&self) -> RaftIndex {
        RaftIndex(self.raw.raft.raft_log.last_index())
    }

    /// The commit index.
    #[must_use]
    pub fn commit_index(&self) -> RaftIndex {
        RaftIndex(self.raw.raft.raft_log.committed)
    }

    /// The index last given to [`Group::on_applied`].
    #[must_use]
    pub fn applied_index(&self) -> RaftIndex {
        RaftIndex(self.raw.raft.raft_log.applied())
    }

    /// The first retained index.
    #[must_use]
    pub fn first_index(&self) -> RaftIndex {
        RaftIndex(self.raw.store().first())
    }

    /// The members, as of the last [`Output::Committed`].
    #[must_use]
    pub fn membership(&self) -> Membership {
        Membership::from_raft(&self.raw.raft.prs().conf().to_conf_state())
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &GroupConfig {
        &self.config
    }

    /// On a leader: the index up to which `peer` is known to hold the log, durably.
    #[must_use]
    pub fn matched_index(&self, peer: ReplicaId) -> Option<RaftIndex> {
        let progress = self.raw.raft.prs().get(peer.0).filter(|_| self.leads())?;
        Some(RaftIndex(progress.matched))
    }

    /// On a leader: the index up to which a member is known to hold the log, and whether it answered
    /// within the last election timeout.
    #[must_use]
    pub fn progress(&self, of: ReplicaId) -> Option<(RaftIndex, bool)> {
        let progress = self.raw.raft.prs().get(of.0).filter(|_| self.leads())?;
        Some((RaftIndex(progress.matched), self.answers(of.0)))
    }

    /// Whether a member answered within the last election timeout. raft-rs's own note of that begins anew with each of its
    /// looks at the quorum: for some ticks of every timeout it holds nobody.
    fn answers(&self, member: u64) -> bool {
        let within = to_u64(self.config.election_ticks);
        let heard = self.heard.get(&member);
        member == self.config.replica.0 || heard.is_some_and(|at| self.ticks - at <= within)
    }

    /// Bytes of payload kept in memory for peers.
    #[must_use]
    pub fn payload_bytes_held(&self) -> usize {
        self.payloads.handed_out_bytes()
    }

    /// Bytes of payload in flight to a peer.
    #[must_use]
    pub fn payload_bytes_inflight(&self, to: ReplicaId) -> usize {
        self.peers.inflight_bytes(to.0)
    }

    /// Bytes proposed here and not committed.
    #[must_use]
    pub fn uncommitted_bytes(&self) -> u64 {
        self.uncommitted_bytes
    }

    pub(crate) fn leads(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// Whether every entry of the log is durable and raft-rs knows it.
    pub(crate) fn all_durable(&self) -> bool {
        let log = &self.raw.raft.raft_log;
        log.persisted >= log.last_index() && self.pending.iter().all(|p| p.span.is_none())
    }

    pub(crate) fn take_ticket(&mut self) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        ticket
    }

    fn check_leads(&self) -> Result<(), ProposeError> {
        if self.leads() {
            return Ok(());
        }
        Err(ProposeError::NotLeader {
            leader_hint: self.leader(),
        })
    }

    fn placed(&self) -> Proposed {
        Proposed {
            term: self.term(),
            index: self.last_index(),
        }
    }

    /// What must hold after every call into raft-rs.
    pub(crate) fn settle(&mut self) {
        let replica = self.config.replica.0;
        let raft = &mut self.raw.raft;
        // raft-rs draws a timeout from thread_rng whenever it resets; nothing has looked at it
        // before it is replaced here.
        raft.set_randomized_election_timeout(election_timeout(
            self.config.seed,
            replica,
            raft.term,
            self.attempt,
            self.config.election_ticks,
        ));
        let led_term = (raft.state == StateRole::Leader).then_some(raft.term);
        if led_term != self.led_term {
            self.led_term = led_term;
            self.peers.clear();
            self.payloads.drop_handed_out();
            self.uncommitted.clear();
            self.uncommitted_bytes = 0;
            self.reads.clear();
            self.read_tries.clear();
            self.questions.clear();
            self.lease.reset();
            self.catch_up_reported.clear();
        }
        if raft.lead_transferee.is_some() {
            self.lease.end();
        }
        if led_term.is_some() {
            let mut held_by_all = raft.raft_log.persisted;
            for (id, progress) in raft.mut_prs().iter_mut().filter(|(id, _)| **id != replica) {
                debug_assert_ne!(*id, 0);
                held_by_all = held_by_all.min(progress.matched);
                // raft-rs lets a rejection in the probe state move `next_idx` to or below
                // `matched`, into a part of the log that may be truncated by now.
                progress.next_idx = progress.next_idx.max(progress.matched + 1);
            }
            let (committed, persisted) = (raft.raft_log.committed, raft.raft_log.persisted);
            self.payloads.release_through(held_by_all);
            self.payloads
                .shrink(self.config.inflight_payload_bytes_max, persisted);
            while let Some(&(index, bytes)) = self.uncommitted.front() {
                if index > committed {
                    break;
                }
                self.uncommitted.pop_front();
                self.uncommitted_bytes -= bytes;
            }
        }
        self.maybe_resume();
    }

    /// Ends a suspension once an entry of a term above the suspension's is committed and durable.
    fn maybe_resume(&mut self) {
        let Some(term_min) = self.suspension else {
            return;
        };
        let log = &self.raw.raft.raft_log;
        // Only a leader of a *later* term: this replica never was in the moved term before.
        let of_new_leader = log.term(log.committed).is_ok_and(|term| term > term_min);
        if of_new_leader && log.persisted >= log.committed && self.durable_term > term_min {
            self.suspension = None;
            self.outbox.push(Output::Resumed);
        }
    }

    /// The kind of the entry at `index` in the mirror, for tests and assertions.
    #[must_use]
    pub fn entry_kind(&self, index: RaftIndex) -> Option<EntryKind> {
        EntryKind::from_raft(self.raw.store().get(index.0)?.entry_type)
    }
}
