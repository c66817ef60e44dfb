//! Carrying between the Raft groups and the store: what a group wants appended goes into the store's
//! log, what the store has made durable goes back to the group, what is committed goes into the map.

use crate::admin::AdminError;
use crate::catchup::Source;
use crate::control::too_many_labels;
use crate::door::Route;
use crate::event::{Effect, FrameKind, PeerFrame};
use crate::keys::Lock;
use crate::node::{Node, Phase, ReadFor};
use crate::rewind::Rewind;
use crate::volume::{EpochState, Proposal, Volume};
use crate::ReadyReport;
use bytes::Bytes;
use esker_base::{GroupId, NodeId, Place, RaftIndex, ReplicaId, Term};
use esker_engine::event::{
    self as engine_event, Append, AppendEntry, Opened, Outcome, RecoveredGroup,
};
use esker_engine::format::checkpoint as format;
use esker_engine::format::record::{EntryKind as StoredKind, HardState as StoredHardState};
use esker_engine::{feed_target, Sabotage};
use esker_replication as repl;
use esker_replication::{Group, GroupConfig, Output};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Why an operator is refused whose change is in no log and will not be.
pub(crate) fn leadership_changed() -> AdminError {
    AdminError::NotLeading("the leadership changed; try again".into())
}

/// The same when the change was in this replica's log: others may have it in theirs, and commit it.
pub(crate) fn unsure() -> AdminError {
    AdminError::Unsure(
        "the leadership changed, and whether this takes effect is not known yet: look before you try again"
            .into(),
    )
}

const STOPPED_SERVING: &str =
    "the volume stopped serving meanwhile: list the volumes to see what is in force";
/// Ticket of an append that nobody waits for.
const NO_TICKET: u64 = u64::MAX;

fn stored_kind(kind: repl::EntryKind) -> StoredKind {
    match kind {
        repl::EntryKind::Normal => StoredKind::Normal,
        repl::EntryKind::ConfChange => StoredKind::ConfChange,
        repl::EntryKind::ConfChangeV2 => StoredKind::ConfChangeV2,
    }
}

fn raft_kind(kind: StoredKind) -> repl::EntryKind {
    match kind {
        StoredKind::Normal => repl::EntryKind::Normal,
        StoredKind::ConfChange => repl::EntryKind::ConfChange,
        StoredKind::ConfChangeV2 => repl::EntryKind::ConfChangeV2,
    }
}

fn stored_hard_state(hs: repl::HardState) -> StoredHardState {
    StoredHardState {
        term: hs.term,
        vote: hs.vote,
        commit: hs.commit,
    }
}

fn raft_membership(m: &format::Membership) -> repl::Membership {
    repl::Membership {
        voters: m.voters.clone(),
        learners: m.learners.clone(),
        voters_outgoing: m.voters_outgoing.clone(),
        learners_next: m.learners_next.clone(),
        auto_leave: m.auto_leave,
    }
}

pub(crate) fn stored_membership(
    m: repl::Membership,
    places: Vec<format::MemberPlace>,
) -> format::Membership {
    format::Membership {
        places,
        voters: m.voters,
        learners: m.learners,
        voters_outgoing: m.voters_outgoing,
        learners_next: m.learners_next,
        auto_leave: m.auto_leave,
    }
}

/// Whether a group's own replica is a member of it.
pub(crate) fn is_member(meta: &format::GroupMeta) -> bool {
    raft_membership(&meta.membership).contains(meta.replica)
}

pub(crate) fn raft_state(group: RecoveredGroup) -> repl::RecoveredGroup {
    let entries = group
        .entries
        .into_iter()
        .map(|(term, index, kind, data, payload_length)| repl::LogEntry {
            term,
            index,
            kind: raft_kind(kind),
            data,
            payload_length,
        });
    repl::RecoveredGroup {
        hard_state: repl::HardState {
            term: group.hard_state.term,
            vote: group.hard_state.vote,
            commit: group.hard_state.commit,
        },
        membership: raft_membership(&group.meta.membership),
        truncated: group.truncated,
        applied: group.applied,
        entries: entries.collect(),
        suspended: group.suspended,
    }
}

impl Node {
    /// The store is open: every group starts.
    pub(crate) fn opened(&mut self, opened: Opened, effects: &mut Vec<Effect>) {
        self.phase = Phase::Serving;
        self.meters.opened(self.now);
        let r = opened.report;
        self.rewinds.last_wall_us = r.last_wall.0;
        self.report = ReadyReport {
            formatted: r.formatted,
            volumes: opened.groups.iter().filter(|g| g.meta.feeds.0 == 0).count(),
            records_replayed: r.records_replayed,
            bytes_scanned: r.bytes_scanned,
            torn_tail: r.torn_tail,
            damaged_blocks: r.damaged_blocks,
            damaged_records: r.damaged_records,
            suspended_volumes: opened.groups.iter().filter(|g| g.suspended).count(),
        };
        let (feeds, volumes): (Vec<_>, Vec<_>) = opened
            .groups
            .into_iter()
            .partition(|group| group.meta.feeds.0 != 0);
        // A name that a volume with several copies has given up may be another one's before its log says so here again.
        let mut volumes = volumes;
        volumes.sort_by_key(|group| group.meta.membership.voters.len() > 1);
        for group in volumes {
            self.add_volume(group);
        }
        for feed in feeds {
            let last = feed.entries.last().map_or(feed.truncated.0, |e| e.1);
            self.resume_feed(feed.meta.feeds, last);
        }
        self.keys_begin();
        effects.push(Effect::Ready(self.report.clone()));
        self.exports_changed(effects);
    }

    /// Takes a group up; a group of one elects itself.
    pub(crate) fn add_volume(&mut self, group: RecoveredGroup) {
        let meta = group.meta.clone();
        let alone = meta.membership.voters == [meta.replica]
            && meta.membership.learners.is_empty()
            && meta.membership.voters_outgoing.is_empty();
        self.learn_places(&meta.membership.places);
        let id = meta.group;
        let applied = group.applied;
        let mut volume = Volume {
            id: meta.volume,
            key_id: meta.key_id,
            map_refused: false,
            lock: Lock::Waits,
            name: self.free_name_for(meta.group, &meta.name).0,
            size_bytes: meta.size_bytes,
            attachment: crate::attachment::Attachment::of(&meta.labels),
            changing_hands: None,
            hold: None,
            holds_over: VecDeque::new(),
            labels: meta.labels.clone(),
            group: None,
            epoch: EpochState::None,
            proposals: BTreeMap::new(),
            written: applied,
            applied,
            driven: applied,
            leads_from: applied,
            waiting: VecDeque::new(),
            asks: VecDeque::new(),
            is_rolling_back: false,
            locked: BTreeMap::new(),
            flushes: Vec::new(),
            read_waits: Vec::new(),
            lazy_hard_state: None,
            urgent: false,
            sessions: BTreeSet::new(),
            readers: BTreeMap::new(),
            leaving: BTreeSet::new(),
            attaching: Vec::new(),
            deleting: false,
            trouble: None,
            meter: self.meters.volume(),
            state_told: None,
            stamps_taken: 0,
            given_back: None,
            rewind: Rewind::default(),
            uncommitted_counted: 0,
            spans: !alone,
            route: Route::after(self.numbers_given.get(&id).copied().unwrap_or(0)),
            sink: None,
            source: Source::default(),
            repairs: BTreeMap::new(),
            rekey: None,
            reseal: None,
            is_member: is_member(&meta),
            removed: !is_member(&meta),
            member_places: meta.membership.places,
            growth: None,
            stands_ticks_left: 0,
        };
        if group.suspended && alone {
            volume.trouble = Some(format!(
                "volume {} is suspended: a damaged log record may have held writes to it. \
                 Restore it from a copy, or run `esker volume accept-loss {} --yes` to go on \
                 with what is left",
                meta.name, meta.name
            ));
        } else {
            let config = self.group_config(id, meta.replica);
            match Group::new(config, raft_state(group)) {
                Ok(group) => volume.group = Some(group),
                Err(error) => {
                    volume.trouble = Some(format!(
                        "volume {}: its group does not start: {error}",
                        meta.name
                    ));
                }
            }
        }
        self.by_name.insert(volume.name.clone(), id);
        self.volumes.insert(id, volume);
        self.dirty.insert(id);
        self.key_changed(id);
        self.note_rewind(id);
    }

    /// How a group of this node's works.
    pub(crate) fn group_config(&mut self, id: GroupId, replica: ReplicaId) -> GroupConfig {
        GroupConfig {
            lease: self.config.lease,
            ..GroupConfig::new(id, replica, self.random())
        }
    }

    /// Carries out what a group wants until it wants nothing more.
    pub(crate) fn drive(&mut self, id: GroupId, effects: &mut Vec<Effect>) {
        let mut outputs = Vec::new();
        loop {
            let Some(volume) = self.volumes.get_mut(&id) else {
                return;
            };
            let Some(group) = volume.group.as_mut() else {
                self.note_ticking(id);
                self.started(id, effects);
                return;
            };
            group.take_ready(self.now, &mut outputs);
            if outputs.is_empty() {
                let elect = volume.is_single() && self.phase == Phase::Serving;
                let group = self.volumes.get_mut(&id).and_then(|v| v.group.as_mut());
                let Some(group) = group.filter(|_| elect) else {
                    break;
                };
                // A group of one leads as soon as its log is durable.
                if matches!(group.role(), repl::Role::Leader) || group.campaign().is_err() {
                    break;
                }
                continue;
            }
            let mut rest = outputs.drain(..).peekable();
            while let Some(output) = rest.next() {
                match output {
                    Output::Committed { entries } => {
                        // A membership is stored together with the entry that led to it.
                        while let Some(Output::MembershipChanged {
                            index,
                            membership,
                            context,
                        }) = rest.next_if(|o| matches!(o, Output::MembershipChanged { .. }))
                        {
                            self.membership_changed(id, index, membership, &context);
                        }
                        self.commit(id, &entries);
                    }
                    output => self.group_output(id, output, effects),
                }
            }
        }
        self.note_ticking(id);
        self.count_uncommitted(id);
        self.volume_progress(id);
        self.feed_progress(id);
        self.started(id, effects);
    }

    fn group_output(&mut self, id: GroupId, output: Output, effects: &mut Vec<Effect>) {
        match output {
            Output::Append {
                ticket,
                entries,
                hard_state,
                must_sync,
            } => {
                let hard_state = hard_state.map(stored_hard_state);
                self.append(id, ticket.0, entries, hard_state, must_sync);
            }
            Output::Send {
                to,
                header,
                payloads,
            } => {
                if let Some(to) = self.place_of(to) {
                    let frame = PeerFrame {
                        kind: FrameKind::Group,
                        header,
                        payloads,
                    };
                    effects.push(Effect::Peer { to, frame });
                }
            }
            // Carried out together in `drive`.
            Output::Committed { .. } | Output::MembershipChanged { .. } => {}
            Output::NeedPayload { index, term } => {
                let token = self.read_token(ReadFor::Payload {
                    group: id,
                    index,
                    term,
                });
                self.tell_engine(engine_event::Event::ReadPayload {
                    token,
                    group: id,
                    index,
                });
            }
            Output::RoleChanged { role, .. } => self.role_changed(id, role),
            Output::ReadReady { context, index } => self.read_allowed(id, context, index),
            Output::CatchUpNeeded { to } => self.tell_behind(id, to),
            Output::Resumed => self.tell_engine(engine_event::Event::Resume { group: id }),
        }
    }

    /// Applies what is committed.
    fn commit(&mut self, id: GroupId, entries: &[repl::LogEntry]) {
        let Some(through) = entries.last().map(|last| last.index) else {
            return;
        };
        self.tell_engine(engine_event::Event::Apply { group: id, through });
        if let Some(group) = self.volumes.get_mut(&id).and_then(|v| v.group.as_mut()) {
            group.on_applied(through);
        }
    }

    /// A leader knows of a commit that this replica's log does not reach: it has lost entries that
    /// it acknowledged. It takes no further part until it is opened again as suspended.
    fn lost_entries(&mut self, id: GroupId, error: &repl::GroupError) {
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        volume.group = None;
        volume.trouble = Some(format!(
            "volume {}: this replica has lost entries of its log ({error}); restart eskerd on \
             this node to let it catch up",
            volume.name
        ));
        self.tell_engine(engine_event::Event::Suspend { group: id });
        self.fail_volume(id);
    }

    /// Forgets a volume.
    pub(crate) fn remove_volume(&mut self, id: GroupId) {
        self.rekey_stop(id);
        self.repairs_stop(id);
        if let Some(volume) = self.volumes.remove(&id) {
            self.uncommitted_bytes -= volume.uncommitted_counted;
            self.numbers_given.insert(id, volume.route.numbers_given());
        }
    }

    /// Answers everything of a volume that does not serve any more with an error.
    pub(crate) fn fail_volume(&mut self, id: GroupId) {
        self.rekey_stop(id);
        self.growth_stop(id, STOPPED_SERVING);
        self.refuse_asks(id, &AdminError::Refused(STOPPED_SERVING.into()));
        self.free_names(id);
        self.count_uncommitted(id);
        let others_serve = |v: &Volume| v.spans && !v.deleting;
        if self.volumes.get(&id).is_some_and(others_serve) {
            self.reroute_all(id);
        }
        if let Some(volume) = self.volumes.get_mut(&id) {
            volume.waiting.clear();
            volume.locked.clear();
            volume.flushes.clear();
            volume.read_waits.clear();
            let operators = volume.take_operators().into_iter();
            self.refused
                .extend(operators.map(|token| (token, AdminError::Unsure(STOPPED_SERVING.into()))));
        }
        self.refuse_attaching(id);
        // An operator who waits for it to serve waits no longer.
        let starting = self.starting.remove(&id);
        self.refused
            .extend(starting.map(|token| (token, AdminError::Unsure(STOPPED_SERVING.into()))));
        if self.volumes.get(&id).is_some_and(others_serve) {
            return;
        }
        let ops = self.ops.iter().filter(|(_, op)| op.group == id);
        let ops: Vec<_> = ops.map(|(op, _)| *op).collect();
        for id in ops {
            // What another node asked for is carried out by whoever leads: a copy that was replaced goes, not the volume.
            match self.ops.get(&id).is_some_and(|op| op.caller.is_some()) {
                true => self.send_back(id),
                false => self.fail_op(id, esker_nbd::RequestError::Io),
            }
        }
    }

    fn append(
        &mut self,
        id: GroupId,
        ticket: u64,
        entries: Vec<(repl::LogEntry, Vec<Bytes>)>,
        hard_state: Option<StoredHardState>,
        must_sync: bool,
    ) {
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        if entries.is_empty() && !must_sync {
            // Only the commit index moved: not worth a record of its own.
            if let Some(hard_state) = hard_state {
                volume.lazy_hard_state = Some(hard_state);
                self.tell_engine(engine_event::Event::NoteHardState {
                    group: id,
                    hard_state,
                });
            }
            return;
        }
        let lazy = volume.lazy_hard_state.take();
        let urgent = volume.urgent || !volume.is_single() || entries.is_empty();
        // The entries of the group itself (a leader's first, epochs) bring no payload.
        let urgent = urgent || entries.iter().any(|(e, _)| e.payload_length == 0);
        volume.urgent = false;
        let mut overwritten = Vec::new();
        if let (Some((first, _)), Some((last, _))) = (entries.first(), entries.last()) {
            // An overwritten suffix takes it back as well.
            volume.driven = last.index;
            // What was proposed in an earlier term at or behind the first of these is gone.
            let gone = volume.proposals.range(first.index..);
            let gone = gone.filter(|(_, (term, _))| *term < last.term);
            overwritten.extend(gone.map(|(index, _)| *index));
        }
        let overwritten: Vec<Proposal> = overwritten
            .into_iter()
            .filter_map(|index| Some(volume.proposals.remove(&index)?.1))
            .collect();
        let entries = entries.into_iter().map(|(entry, payload)| AppendEntry {
            term: entry.term,
            index: entry.index,
            kind: stored_kind(entry.kind),
            data: entry.data,
            payload,
        });
        let append = Append {
            group: id,
            ticket: if must_sync { ticket } else { NO_TICKET },
            entries: entries.collect(),
            hard_state: hard_state.or(lazy),
            urgent,
        };
        self.tell_engine(engine_event::Event::Append(append));
        for proposal in overwritten {
            match proposal {
                Proposal::Op(op) => self.entry_done(op, false),
                Proposal::Reseal(part) => self.reseal_applied(id, part, false),
                Proposal::Promotion => {}
                Proposal::Resize(token)
                | Proposal::Rename(token)
                | Proposal::Relabel(token)
                | Proposal::Membership(token)
                | Proposal::Removal(token) => {
                    self.refused.push((token, unsure()));
                }
                Proposal::Snapshot(token, ask) => {
                    self.free_name(&ask);
                    self.refused.push((token, unsure()));
                    if let Some(volume) = self.volumes.get_mut(&id) {
                        volume.forget_ask(&ask);
                    }
                }
            }
        }
    }

    fn role_changed(&mut self, id: GroupId, role: repl::Role) {
        self.rekey_stop(id);
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        // Every leadership writes under an epoch of its own.
        volume.epoch = EpochState::None;
        self.manifest_failed(id);
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        if self.config.engine.sabotage == Sabotage::ResumeStamps {
            let view = self.engine.group(id).filter(|v| v.epoch.0 > 0);
            if let Some((epoch, last)) = view.map(|v| (v.epoch, v.max_stamp)) {
                let counter = last.counter() + 1;
                volume.epoch = EpochState::Open { epoch, counter };
            }
        }
        if matches!(role, repl::Role::Leader) {
            let last = volume.group.as_ref().map(Group::last_index);
            volume.leads_from = last.unwrap_or_default();
            volume.rewind.is_new = volume.spans;
        }
        if volume.spans {
            self.leader_changed(id);
            return self.refuse_asks(id, &leadership_changed());
        }
        // Also when this replica leads again: another leader may have written in between. Requests
        // whose edges are being read are among these: what was read may be overwritten by now.
        let locked = std::mem::take(&mut volume.locked);
        let mut orphans: Vec<_> = volume.waiting.drain(..).collect();
        orphans.extend(locked.into_keys());
        for op in orphans {
            self.fail_op(op, esker_nbd::RequestError::Io);
        }
        self.fail_reads_and_flushes(id);
        self.refuse_asks(id, &leadership_changed());
    }

    /// Handles what the engine says.
    pub(crate) fn engine_effect(
        &mut self,
        effect: engine_event::Effect,
        effects: &mut Vec<Effect>,
    ) {
        use engine_event::Effect as E;
        match effect {
            E::Disk { io, op } => effects.push(Effect::Disk { io, op }),
            E::Opened(opened) => {
                if self.phase == Phase::Opening {
                    self.opened(*opened, effects);
                }
            }
            E::OpenFailed(error) => {
                self.phase = Phase::Ended;
                effects.push(Effect::OpenFailed {
                    message: error.to_string(),
                });
            }
            E::Written { group, through } => self.written(group, through),
            E::Durable { group, ticket } => {
                if let Some(target) = feed_target(group) {
                    return self.feed_durable(target, ticket);
                }
                let group_of = self.volumes.get_mut(&group).and_then(|v| v.group.as_mut());
                if let Some(raft) = group_of.filter(|_| ticket != NO_TICKET) {
                    raft.on_persisted(repl::Ticket(ticket));
                    self.dirty.insert(group);
                }
            }
            E::Applied {
                group,
                index,
                term,
                outcome,
                ..
            } => match feed_target(group) {
                Some(target) => self.feed_applied(target, &outcome),
                None => self.applied(group, index, term, &outcome, effects),
            },
            E::ReadDone { token, result } => self.read_done(token, result),
            E::RepairDone { token, result } => self.repair_done(token, result),
            E::ExtentsDone { token, result } => self.extents_done(token, result),
            E::DiffDone { token, result } if token & crate::comparisons::TOKEN != 0 => {
                self.changes_done(token, result);
            }
            E::DiffDone { token, result } => self.diff_done(token, result, effects),
            E::ScrubDone { token, result } => self.scrub_done(token, result, effects),
            E::HarvestDone { token, result } => self.harvest_done(token, result),
            E::PayloadDone { token, payload } => self.payload_done(token, payload),
            E::CatalogDone { token, result } => self.catalog_done(token, result, effects),
            E::LogTruncated { group, index, .. } => {
                if let Some(raft) = self.volumes.get_mut(&group).and_then(|v| v.group.as_mut()) {
                    raft.truncate(index);
                    self.dirty.insert(group);
                }
            }
            E::CheckpointDone { token } => self.checkpoint_done(token, effects),
            E::Fenced(error) => self.store_fenced(error.to_string(), effects),
            E::Stopped => {
                self.phase = Phase::Ended;
                effects.push(Effect::Stopped);
            }
        }
    }

    fn payload_done(&mut self, token: u64, payload: Option<Bytes>) {
        let Some(ReadFor::Payload { group, index, term }) = self.reads.remove(&token) else {
            return;
        };
        if let Some(raft) = self.volumes.get_mut(&group).and_then(|v| v.group.as_mut()) {
            raft.payload_loaded(index, term, payload.map(|bytes| vec![bytes]).ok_or(()));
            self.dirty.insert(group);
        }
    }

    /// An entry of ours, or of another leader, is in the map.
    fn applied(
        &mut self,
        id: GroupId,
        index: RaftIndex,
        term: Term,
        outcome: &Outcome,
        effects: &mut Vec<Effect>,
    ) {
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        match outcome {
            Outcome::EpochOpened { epoch, nonce } => {
                let ours = EpochState::Opening {
                    nonce: *nonce,
                    term,
                };
                volume.epoch = match volume.epoch {
                    state if state == ours => EpochState::Open {
                        epoch: *epoch,
                        counter: 1,
                    },
                    // Somebody else's epoch ends ours: stamps rise in the order of the log.
                    EpochState::Open { .. } => EpochState::None,
                    other => other,
                };
                // Writes wait for an epoch; nothing else may ever come to wake them.
                self.dirty.insert(id);
                self.epoch_opened(id, effects);
            }
            Outcome::Resized(size_bytes) => {
                volume.size_bytes = *size_bytes;
                self.exports_changed(effects);
            }
            Outcome::Renamed => {
                if let Some(view) = self.engine.group(id) {
                    self.take_name(id, &view.meta.name);
                }
                self.exports_changed(effects);
            }
            Outcome::Relabelled(_) => {
                if let Some(view) = self.engine.group(id) {
                    volume.take_labels(view.meta.labels);
                }
                self.labels_changed(id);
                self.note_rewind(id);
            }
            // Nobody sees it.
            Outcome::SnapshotTaken(cut) if self.engine.is_rewind_point(id, *cut) => {
                self.manifest_taken(id);
            }
            Outcome::SnapshotTaken(_) | Outcome::SnapshotDeleted(_) | Outcome::RolledBack(_) => {
                self.snapshots_changed = true;
            }
            Outcome::Done | Outcome::Membership | Outcome::SnapshotRefused(_) => {}
            Outcome::Cloned(clone) => self.clone_begun(id, *clone, effects),
        }
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        // Only now: what an entry changed, a new size for instance, is known to whoever waits for it.
        volume.applied = index;
        self.dirty.insert(id);
        let mut done = Vec::new();
        while let Some(entry) = volume.proposals.first_entry() {
            if *entry.key() > index {
                break;
            }
            let (proposed, (proposed_term, proposal)) = entry.remove_entry();
            done.push((proposal, proposed == index && proposed_term == term));
        }
        for (proposal, committed) in done {
            match proposal {
                Proposal::Op(op) => self.entry_done(op, committed),
                Proposal::Reseal(part) => self.reseal_applied(id, part, committed),
                Proposal::Resize(token) | Proposal::Rename(token) => {
                    self.resize_done(id, token, committed, effects);
                }
                Proposal::Relabel(token) if *outcome == Outcome::Relabelled(false) && committed => {
                    Self::answer(token, Err(too_many_labels("volume")), effects);
                }
                Proposal::Relabel(token) | Proposal::Membership(token) => {
                    self.resize_done(id, token, committed, effects);
                }
                Proposal::Removal(token) => self.removal_applied(id, token, committed),
                Proposal::Promotion => {}
                Proposal::Snapshot(token, ask) => {
                    let outcome = committed.then_some(outcome);
                    self.snapshot_done(id, token, &ask, outcome, effects);
                }
            }
        }
    }

    /// A frame from another node.
    pub(crate) fn peer_frame(&mut self, from: Place, frame: PeerFrame) {
        match frame.kind {
            FrameKind::Group => self.group_frame(from, frame),
            FrameKind::Door => self.door_frame(from, frame),
            FrameKind::CatchUp => self.catch_up_frame(from, frame),
        }
    }

    fn group_frame(&mut self, from: Place, frame: PeerFrame) {
        let decoded = match repl::decode_frame_header(&frame.header) {
            Ok(decoded) => decoded,
            Err(error) => {
                tracing::warn!(%from, %error, "peer frame refused");
                return;
            }
        };
        let (id, sender) = (decoded.group, decoded.from);
        let is_stranger = self.place_of(sender).is_none();
        if is_stranger {
            // It says so of itself, on a link that is its node's; what the log says comes later.
            self.learned.insert(sender, from);
        }
        let Some(raft) = self.volumes.get_mut(&id).and_then(|v| v.group.as_mut()) else {
            return;
        };
        let is_stranger = is_stranger || !raft.membership().contains(sender);
        raft.hold_log(self.engine.awaits_first_mac(id));
        let refused = raft.receive(&frame.header, frame.payloads);
        if let Err(error) = refused {
            // For one that is missing, until this one, which takes its place, is a member.
            match error {
                repl::GroupError::WrongReplica { .. } => {
                    tracing::debug!(%from, group = id.0, %error, "peer frame refused");
                }
                _ => tracing::warn!(%from, group = id.0, %error, "peer frame refused"),
            }
            if let repl::GroupError::CommitBeyondLog { .. } = error {
                self.lost_entries(id, &error);
            }
        }
        if is_stranger {
            self.tell_outsider(id, from, sender);
        }
        self.dirty.insert(id);
    }

    /// The way to another node broke: leaders begin anew with the replicas there.
    pub(crate) fn peer_lost(&mut self, node: NodeId) {
        let (places, learned) = (&self.config.places, &self.learned);
        for (id, volume) in &mut self.volumes {
            let Some(raft) = volume.group.as_mut() else {
                continue;
            };
            let members = raft.membership();
            let there = members.voters.iter().chain(&members.learners);
            let there = there.filter(|r| {
                let place = places.get(r).or_else(|| learned.get(r));
                place.is_some_and(|place| place.node == node)
            });
            let there: Vec<_> = there.copied().collect();
            for replica in there {
                raft.report_unreachable(replica);
                self.dirty.insert(*id);
            }
        }
    }
}
