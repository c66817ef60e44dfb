//! Clones: groups that begin at a snapshot of another one.
//!
//! A clone is an entry of its origin's log. Applying it makes a group whose head begins at the snapshot:
//! nothing is copied. As long as no checkpoint has merged the snapshot, what the clone does not have itself
//! is looked up as a read of the snapshot is. The item that says so in the store's log stands before
//! everything the clone ever appends; replaying it first applies the origin as far as it was.

use crate::config::Sabotage;
use crate::engine::Engine;
use crate::error::StoreError;
use crate::event::{Outcome, SnapshotRefusal};
use crate::format::checkpoint::{GroupMeta, Membership};
use crate::format::operation::Operation;
use crate::format::record::{EntryKind, HardState, ItemBody};
use crate::format::versions::VersionId;
use crate::group::{Group, Load, LogEntry};
use crate::recovery::Probe;
use crate::snapshot::operations;
use crate::vouch::Proof;
use esker_base::{GroupId, RaftIndex, ReplicaId, Term};

/// Index and term behind which a clone's log begins: a replica made from nothing but the log would lack
/// what the clone began with.
const FIRST: (RaftIndex, Term) = (RaftIndex(1), Term(1));
/// Most clones of clones that reads go through before a checkpoint has merged what they began with; the
/// next one waits for that.
const DEPTH_MAX: usize = 16;

/// What a clone began with, until a checkpoint has merged it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Base {
    /// The snapshot.
    pub version: VersionId,
    /// The volume's size then, in bytes.
    pub size_bytes: u64,
}

impl Engine {
    /// Whether an entry that makes a clone is to be applied after the next checkpoint. A rollback is
    /// not applied when the log is replayed, and so neither is what follows it: it must be in a
    /// checkpoint before anything is built on it.
    pub(crate) fn clone_waits(&self, origin: GroupId, operation: Option<&Operation>) -> bool {
        let Some(Operation::Clone { cut, .. }) = operation else {
            return false;
        };
        let (Some(group), Some(base)) = (self.groups.get(&origin), self.forest.at(origin, *cut))
        else {
            return false;
        };
        let rolled_back = group.rolled_back_in > self.checkpoints_done;
        rolled_back || base.root.is_none() && self.depth(group) >= DEPTH_MAX
    }

    /// How many groups a read goes through.
    fn depth(&self, group: &Group) -> usize {
        let origin_of = |group: &Group| {
            let version = self.forest.get(group.base?.version)?;
            self.groups.get(&version.group)
        };
        std::iter::successors(Some(group), |group| origin_of(group)).count()
    }

    /// Applies an entry that makes a clone.
    pub(crate) fn begin_clone(
        &mut self,
        origin: GroupId,
        entry: RaftIndex,
        operation: &Operation,
    ) -> Outcome {
        let Operation::Clone {
            cut,
            group: id,
            volume,
            created_us,
            name,
            labels,
            members,
        } = operation
        else {
            return Outcome::Done;
        };
        if self.groups.contains_key(id) {
            return Outcome::SnapshotRefused(SnapshotRefusal::GroupExists);
        }
        let (Some(base), Some(from)) = (self.forest.at(origin, *cut), self.groups.get(&origin))
        else {
            return Outcome::SnapshotRefused(SnapshotRefusal::Unknown);
        };
        let me = from.meta.replica;
        if !members.is_empty() && members.iter().all(|m| m.replica != me) {
            // It was taken in later, or let go: others begin it.
            return Outcome::Done;
        }
        let membership = match members.is_empty() {
            true => from.meta.membership.clone(),
            false => Membership {
                voters: members.iter().map(|m| m.replica).collect(),
                places: members.clone(),
                ..Membership::default()
            },
        };
        let (version, size_bytes) = (base.id, base.meta.size_bytes);
        let mut group = Group::new(GroupMeta {
            group: *id,
            volume: *volume,
            name: name.clone(),
            size_bytes,
            created_us: *created_us,
            labels: labels.clone(),
            membership,
            // A clone of an encrypted volume writes under a key of its own, the first one.
            key_id: from.meta.key_id.min(1),
            ..from.meta.clone()
        });
        group.proof = match &from.proof {
            Proof::Vouched(_) => Proof::Fresh,
            Proof::Fresh | Proof::Origin(_) | Proof::Claimed(_) => Proof::Origin(origin),
        };
        (group.truncated, group.applied) = (FIRST, FIRST.0);
        group.hard_state = HardState {
            term: FIRST.1,
            vote: ReplicaId(0),
            commit: FIRST.0,
        };
        (group.max_stamp, group.newest_cut) = (*cut, *cut);
        let is_clean = from.is_resealed(cut.epoch());
        let older = from.epochs.iter().filter(|e| e.epoch <= cut.epoch());
        let older = older.filter(|e| !(is_clean && from.is_under_older_key(e)));
        let older = older.filter(|e| !self.leaving(origin).any(|epoch| epoch == e.epoch));
        group.epochs = older.copied().collect();
        match base.root {
            Some((root, level)) => (group.root, group.root_level) = (root, level),
            None => {
                group.base = Some(Base {
                    version,
                    size_bytes,
                });
                self.based.insert(*id);
            }
        }
        group.suspended = self.doubtful.remove(id);
        self.forest.begin_clone(*id, version);
        self.groups.insert(*id, group);
        self.clones_begun += 1;
        if self.is_open() {
            self.enqueue(*id, ItemBody::GroupClone { origin, entry }, None);
        }
        Outcome::Cloned(*id)
    }

    /// A checkpoint has merged versions: clones that began at them have their maps.
    pub(crate) fn settle_clones(&mut self) -> Vec<GroupId> {
        let mut settled = Vec::new();
        for id in self.based.clone() {
            let Some(group) = self.groups.get_mut(&id) else {
                self.based.remove(&id);
                continue;
            };
            let version = group.base.and_then(|base| self.forest.get(base.version));
            let Some((root, level, grown)) =
                version.and_then(|v| Some((v.root?.0, v.root?.1, v.grown)))
            else {
                continue;
            };
            (group.root, group.root_level, group.base) = (root, level, None);
            self.forest.grown(id, grown);
            self.based.remove(&id);
            settled.push(id);
        }
        settled
    }

    /// A clone's first item is replayed: its origin had applied the entry that made it.
    pub(crate) fn replay_clone(
        &mut self,
        id: GroupId,
        origin: GroupId,
        entry: RaftIndex,
    ) -> Result<(), StoreError> {
        if self.groups.contains_key(&id) {
            return Ok(());
        }
        self.probes.insert(Probe::CloneReplayed);
        let load = |this: &Self| {
            this.groups
                .get(&origin)
                .map_or(Load::default(), Group::load)
        };
        let before = load(self);
        while let Some(next) = self.replay_next(origin, entry) {
            if let Some(group) = self.groups.get_mut(&origin) {
                if group.proof.is_open() {
                    self.probes.insert(Probe::ClaimPassed);
                }
                group.applied = next.index;
            }
            self.apply_one(origin, &next)?;
        }
        let after = load(self);
        self.load.replace(before, after);
        if !self.groups.contains_key(&id) {
            // Something of the origin was lost. If the clone begins later, it has lost that as well.
            self.doubtful.insert(id);
        }
        Ok(())
    }

    /// The next entry to apply on the way to `through`.
    fn replay_next(&self, origin: GroupId, through: RaftIndex) -> Option<LogEntry> {
        let group = self.groups.get(&origin)?;
        let lost = |r: &crate::recovery::Recovery| r.lost.contains(&origin);
        let is_lost = self.recovery.as_ref().is_some_and(lost);
        let forgets = self.config.sabotage == Sabotage::CloneForgotten;
        if group.applied >= through || is_lost || forgets {
            return None;
        }
        let entry = group.entry(RaftIndex(group.applied.0 + 1))?;
        let waits =
            operations::waits_for_checkpoint(group, &self.forest, entry.operation.as_deref());
        (!waits).then(|| entry.clone())
    }

    /// After a replay that found damage: clones that logs speak of and that do not exist may have
    /// existed.
    pub(crate) fn doubt_clones(&mut self) {
        let mut named = Vec::new();
        for group in self.groups.values() {
            let waiting = group.log.iter().filter(|e| e.index > group.applied);
            for entry in waiting.filter(|e| e.kind == EntryKind::Normal) {
                if let Some(Operation::Clone { group, .. }) = entry.operation.as_deref() {
                    named.push(*group);
                }
            }
        }
        named.retain(|id| !self.groups.contains_key(id));
        self.doubtful.extend(named);
    }
}
