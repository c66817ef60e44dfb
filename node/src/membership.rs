//! Replicas come and go while a volume is used.
//!
//! A new replica begins as a learner: it receives the log, or what has changed, and gets its vote from whoever
//! leads when it has nearly all of the log; nobody has to stay for that. The entry that makes it a member says where it lives,
//! and every replica keeps that with the membership.
//!
//! A volume with one copy is made to span nodes first: for an instant its requests are held, until those before
//! them are over and everything that was answered is durable. From then on requests have numbers, and nothing is
//! answered before it is durable.

use crate::admin::{AdminError, AdminReply};
use crate::catchup::{Note, Outsider};
use crate::control::Outcome;
use crate::event::AdminToken;
use crate::groups::{stored_membership, unsure};
use crate::node::Node;
use crate::volume::{OpId, Proposal};
use esker_base::{GroupId, Moment, Place, RaftIndex, ReplicaId};
use esker_engine::event as engine_event;
use esker_engine::format::checkpoint::MemberPlace;
use esker_engine::format::operation::Operation;
use esker_replication::{Group, Membership, PeerChange, Role};
use std::collections::BTreeMap;
use std::time::Duration;

/// Entries that a learner may lack when it gets its vote.
const PROMOTED_LAG_MAX: u64 = 64;
/// Ticks between two looks at learners.
const PROMOTION_TICKS: u64 = 2;
/// How long requests of a volume may be held before it spans nodes.
const HELD_TIME_MAX: Duration = Duration::from_secs(5);

/// A volume with one copy that is to span nodes.
#[derive(Debug)]
pub(crate) struct Growth {
    token: AdminToken,
    added: (ReplicaId, Option<ReplicaId>),
    places: Vec<MemberPlace>,
    /// Requests that came since.
    held: Vec<OpId>,
    until: Moment,
}

impl Node {
    /// Where a replica lives, as this node was told or a volume's log says.
    pub(crate) fn place_of(&self, replica: ReplicaId) -> Option<Place> {
        let told = self.config.places.get(&replica);
        told.or_else(|| self.learned.get(&replica)).copied()
    }

    pub(crate) fn learn_places(&mut self, places: &[MemberPlace]) {
        let places = places.iter().map(|member| (member.replica, member.place));
        self.learned.extend(places);
    }

    /// A committed entry has changed who belongs to a group.
    pub(crate) fn membership_changed(
        &mut self,
        id: GroupId,
        index: RaftIndex,
        membership: Membership,
        context: &[u8],
    ) {
        let added = MemberPlace::decode_all(context).unwrap_or_else(|error| {
            tracing::error!(group = id.0, %error, "places of new members");
            Vec::new()
        });
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        let me = volume.group.as_ref().map(|group| group.config().replica);
        let mut places = std::mem::take(&mut volume.member_places);
        places.retain(|old| added.iter().all(|new| new.replica != old.replica));
        places.extend(added);
        places.retain(|member| membership.contains(member.replica));
        for member in &mut places {
            if !membership.contains(member.replaces) {
                member.replaces = ReplicaId(0);
            }
        }
        places.sort_by_key(|member| member.replica);
        volume.member_places.clone_from(&places);
        // It was opened as it was some entries ago; it has not served since.
        volume.spans |= me != membership.voters.first().copied()
            || membership.voters.len() + membership.learners.len() > 1
            || !membership.voters_outgoing.is_empty();
        tracing::info!(
            volume = volume.name,
            index = index.0,
            ?membership,
            "another membership"
        );
        let is_in = me.is_some_and(|me| membership.contains(me));
        // What is told of the time before it came says nothing of this replica.
        let is_out = std::mem::replace(&mut volume.is_member, is_in) && !is_in;
        volume.removed &= !is_in;
        self.learn_places(&places);
        self.tell_engine(engine_event::Event::ApplyMembership {
            group: id,
            through: index,
            membership: stored_membership(membership, places),
        });
        if let Some(group) = self.volumes.get_mut(&id).and_then(|v| v.group.as_mut()) {
            group.on_applied(index);
        }
        if is_out {
            self.removed.push(id);
        }
    }

    /// Gives a volume another replica.
    pub(crate) fn replica_add(
        &mut self,
        token: AdminToken,
        name: &str,
        added: (ReplicaId, Option<ReplicaId>),
        places: &BTreeMap<ReplicaId, Place>,
    ) -> Outcome {
        let id = self.find(name)?;
        self.writable()?;
        let membership = self.leading(id)?;
        if membership.contains(added.0) {
            return Ok(Some(AdminReply::Done));
        }
        let refuse = |why: String| Err(AdminError::Refused(format!("volume {name} {why}")));
        let members = membership.voters.iter().chain(&membership.learners);
        let all_placed = members.chain([&added.0]).all(|r| places.contains_key(r));
        let replaced = added.1.is_none_or(|r| membership.voters.contains(&r));
        if !all_placed || !replaced || added.0 .0 == 0 {
            return Err(AdminError::Invalid(format!(
                "the replicas of volume {name} are not those that were named; try again"
            )));
        }
        let Some(volume) = self.volumes.get_mut(&id) else {
            return Ok(None);
        };
        if !membership.learners.is_empty() || volume.growth.is_some() {
            return refuse("is being given another replica; wait until that one votes".into());
        }
        if volume.rekey.is_some() {
            return refuse("is being given another data key; try again".into());
        }
        if volume.is_rolling_back || volume.deleting {
            return refuse("is being changed; try again".into());
        }
        let member = |(replica, place): (&ReplicaId, &Place)| MemberPlace {
            replica: *replica,
            place: *place,
            replaces: match *replica == added.0 {
                true => added.1.unwrap_or_default(),
                false => ReplicaId(0),
            },
        };
        let places: Vec<MemberPlace> = places.iter().map(member).collect();
        if volume.spans {
            let change = PeerChange::AddLearner(added.0);
            return self.propose_members(id, &[change], &places, Proposal::Membership(token));
        }
        volume.growth = Some(Box::new(Growth {
            token,
            added,
            places,
            held: Vec::new(),
            until: self.now + HELD_TIME_MAX,
        }));
        self.note_ticking(id);
        self.dirty.insert(id);
        Ok(None)
    }

    /// Takes a replica out of a volume's group.
    pub(crate) fn replica_remove(
        &mut self,
        token: AdminToken,
        name: &str,
        replica: ReplicaId,
        only_outsider: bool,
    ) -> Outcome {
        let id = self.find(name)?;
        self.writable()?;
        let membership = self.leading(id)?;
        if only_outsider && membership.contains(replica) {
            return Err(AdminError::Invalid(format!(
                "replica {replica} is one of volume {name}"
            )));
        }
        if self.lacks_keys(id) {
            return Err(AdminError::Refused(format!(
                "a key of volume {name} is not on node {}, which leads it, and the copy to be removed may be the last one whose \
                 node has that key: try again when `esker key show {name}` lists it here, or another node leads",
                self.config.node
            )));
        }
        // Also one that is no member as far as this replica knows: only what is committed says so for certain, and
        // whoever asks may delete its copy then.
        let Some(group) = self.volumes.get_mut(&id).and_then(|v| v.group.as_mut()) else {
            return Ok(None);
        };
        let refuse = |why: &str| Err(AdminError::Refused(format!("volume {name} {why}")));
        let is_voter = membership.voters.contains(&replica);
        let me = group.config().replica;
        let rest = membership.voters.iter().filter(|r| **r != replica);
        let rest: Vec<ReplicaId> = rest.copied().collect();
        if rest.is_empty() {
            return refuse("has no other copy: delete it, or add a replica first");
        }
        if replica == me {
            group.hand_over();
            self.dirty.insert(id);
            return refuse(
                "is led by this very replica, which hands over to another one; try again",
            );
        }
        // A voter that the log does not reach cannot acknowledge anything either, and one that lacks much of it may be passed by
        // the log's beginning before it is needed.
        let (first, last) = (group.first_index().0, group.last_index().0);
        let is_able = |(matched, answers): (RaftIndex, bool)| {
            answers && matched.0 + 1 >= first && matched.0 + PROMOTED_LAG_MAX >= last
        };
        let answers = |r: &&ReplicaId| **r == me || group.progress(**r).is_some_and(is_able);
        let answering = rest.iter().filter(answers).count();
        if is_voter && answering * 2 <= rest.len() {
            return refuse(
                "would be left without a majority that answers and has caught up: bring another node back, or wait, or add a replica first",
            );
        }
        let change = PeerChange::Remove(replica);
        self.propose_members(id, &[change], &[], Proposal::Removal(token))
    }

    /// Who belongs to a volume that this replica leads.
    pub(crate) fn leading(&self, id: GroupId) -> Result<Membership, AdminError> {
        let volume = self.volumes.get(&id).filter(|v| v.is_serving());
        let group = volume.and_then(|v| v.group.as_ref());
        group.map(Group::membership).ok_or_else(|| {
            let name = self.volumes.get(&id).map_or("", |v| v.name.as_str());
            AdminError::Refused(format!("volume {name} is not led by this node"))
        })
    }

    fn propose_members(
        &mut self,
        id: GroupId,
        changes: &[PeerChange],
        places: &[MemberPlace],
        proposal: Proposal,
    ) -> Outcome {
        let context = match places.is_empty() {
            true => Vec::new(),
            false => MemberPlace::encode_all(places),
        };
        let Some(volume) = self.volumes.get_mut(&id) else {
            return Ok(None);
        };
        let Some(group) = volume.group.as_mut() else {
            return Ok(None);
        };
        match group.propose_membership(changes, &context) {
            Ok(placed) => {
                let proposal = (placed.term, proposal);
                volume.proposals.insert(placed.index, proposal);
                volume.urgent = true;
                self.dirty.insert(id);
                Ok(None)
            }
            Err(error) => Err(AdminError::Refused(format!(
                "volume {}: {error}",
                volume.name
            ))),
        }
    }

    /// Holds a request of a volume that is about to span nodes. False when it is not.
    pub(crate) fn hold_back(&mut self, id: OpId, group: GroupId) -> bool {
        let volume = self.volumes.get_mut(&group);
        let growth = volume.and_then(|v| v.growth.as_mut());
        growth.map(|growth| growth.held.push(id)).is_some()
    }

    /// Lets a volume span nodes as soon as nothing from before is on its way.
    pub(crate) fn growth_progress(&mut self, id: GroupId) {
        let Some(volume) = self.volumes.get(&id) else {
            return;
        };
        let (Some(growth), Some(group)) = (&volume.growth, &volume.group) else {
            return;
        };
        let mut ours = self.ops.iter().filter(|(_, op)| op.group == id);
        let is_busy = ours.any(|(op, _)| !growth.held.contains(op))
            || !volume.flushes.is_empty()
            || volume.applied < group.last_index();
        if is_busy && self.now < growth.until {
            return;
        }
        if is_busy || !volume.is_serving() {
            return self.growth_stop(id, "its requests did not come to an end; try again");
        }
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        let Some(growth) = volume.growth.take() else {
            return;
        };
        volume.spans = true;
        let change = PeerChange::AddLearner(growth.added.0);
        let proposal = Proposal::Membership(growth.token);
        if let Err(error) = self.propose_members(id, &[change], &growth.places, proposal) {
            self.answers.push((growth.token, Err(error)));
        }
        growth.held.into_iter().for_each(|op| self.admit(op));
    }

    /// A volume does not come to span nodes.
    pub(crate) fn growth_stop(&mut self, id: GroupId, why: &str) {
        let volume = self.volumes.get_mut(&id);
        let Some((name, growth)) = volume.and_then(|v| Some((&v.name, v.growth.take()?))) else {
            return;
        };
        let refused = AdminError::Refused(format!("volume {name}: {why}"));
        self.answers.push((growth.token, Err(refused)));
        growth.held.into_iter().for_each(|op| self.admit(op));
    }

    /// A tick of a volume that this replica may lead: learners that have what they need get their vote.
    pub(crate) fn membership_tick(&mut self, id: GroupId) {
        if self.volumes.get(&id).is_some_and(|v| v.growth.is_some()) {
            self.dirty.insert(id);
        }
        if !self.ticks.is_multiple_of(PROMOTION_TICKS) {
            return;
        }
        let Some(volume) = self.volumes.get_mut(&id).filter(|v| v.is_serving()) else {
            return;
        };
        let Some(group) = volume.group.as_mut() else {
            return;
        };
        let membership = group.membership();
        let me = group.config().replica;
        let leaves = |new: ReplicaId| {
            let member = volume.member_places.iter().find(|m| m.replica == new);
            let old = member.map(|m| m.replaces);
            old.filter(|old| membership.voters.contains(old))
        };
        let able = membership.learners.iter().find(|learner| {
            let (matched, answers) = group.progress(**learner).unwrap_or_default();
            // One that the log does not reach yet counts for nothing: with its vote, nothing might be committed any more,
            // and what it lacks comes with an entry.
            let reached = matched.0 + 1 >= group.first_index().0 && matched.0 > 0;
            answers && reached && matched.0 + PROMOTED_LAG_MAX >= group.last_index().0
        });
        let mut changes = Vec::new();
        if let Some(learner) = able {
            changes.push(PeerChange::AddVoter(*learner));
            // The one that goes hands over first, if there is anybody.
            changes.extend(
                leaves(*learner)
                    .filter(|old| *old != me)
                    .map(PeerChange::Remove),
            );
            if leaves(*learner) == Some(me) && membership.voters.len() > 1 {
                changes.clear();
                group.hand_over();
            }
        } else if let Some(old) = membership.voters.iter().find_map(|new| leaves(*new)) {
            match old == me {
                true => group.hand_over(),
                false => changes.push(PeerChange::Remove(old)),
            }
        }
        if !changes.is_empty() && membership.voters_outgoing.is_empty() {
            // Refused while another change is on its way: the next look tries again.
            let _ = self.propose_members(id, &changes, &[], Proposal::Promotion);
        }
        self.dirty.insert(id);
    }

    /// Tells a replica that is not a member any more, as far as this one knows.
    pub(crate) fn tell_outsider(&mut self, id: GroupId, from: Place, replica: ReplicaId) {
        let Some(volume) = self.volumes.get(&id).filter(|v| v.takes_part()) else {
            return;
        };
        let stranger = volume
            .group
            .as_ref()
            .is_some_and(|g| !g.membership().contains(replica));
        // Who hears it deletes its copy and its keys, and one of those may be lacking here.
        if stranger && !self.lacks_keys(id) {
            let note = Note::Outsider(Outsider {
                group: id.0,
                replica: replica.0,
                applied: volume.applied.0,
            });
            self.send_catch_up(from, note, Vec::new());
        }
    }

    /// Another replica says that this one is no member. It is right if it knows more of the log than this one does:
    /// otherwise it has not heard of this one yet.
    pub(crate) fn told_outsider(&mut self, told: &Outsider) {
        let id = GroupId(told.group);
        let Some(group) = self.volumes.get(&id).and_then(|v| v.group.as_ref()) else {
            return;
        };
        let is_me = group.config().replica.0 == told.replica;
        let leads = matches!(group.role(), Role::Leader);
        let knows = self.volumes.get(&id).is_some_and(|v| v.removed);
        if is_me && !leads && !knows && told.applied >= group.commit_index().0 {
            self.removed.push(id);
        }
    }

    /// A removal is in force here. It is told when those that stay cannot forget it any more: with one entry behind
    /// it, a majority of them has made durable that it is committed.
    pub(crate) fn removal_applied(&mut self, id: GroupId, token: AdminToken, committed: bool) {
        let nothing = Operation::Relabel {
            labels: BTreeMap::new(),
        };
        let followed = match committed {
            true => {
                let proposed = self.propose_change(id, &nothing, Proposal::Membership(token));
                proposed.map_err(|_| unsure())
            }
            false => Err(unsure()),
        };
        if let Err(error) = followed {
            self.answers.push((token, Err(error)));
        }
    }

    /// Replicas that were removed take no further part; clients that came through them are served by the others.
    pub(crate) fn leave_groups(&mut self) -> bool {
        let left = std::mem::take(&mut self.removed);
        for id in &left {
            if let Some(volume) = self.volumes.get_mut(id) {
                tracing::warn!(volume = volume.name, "this replica was removed");
                // It still votes: those that stay may need that until they know that it is gone.
                volume.removed = true;
                volume.sink = None;
                volume.trouble = Some(format!(
                    "volume {0}: this node's copy is no longer one of its replicas: it is deleted when no client is attached \
                     through it, or by `esker replica remove {0} --node {1}`",
                    volume.name, self.config.node.0
                ));
                self.fail_volume(*id);
                self.note_ticking(*id);
            }
        }
        !left.is_empty()
    }
}
