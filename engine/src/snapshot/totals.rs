//! Sums over the versions of each volume, kept while versions change and not walked when somebody asks:
//! what [`super::sums`] says of them, as of the last checkpoint.

use crate::engine::Engine;
use crate::error::StoreError;
use crate::format::versions::{Version, VersionId, VersionKind};
use esker_base::GroupId;
use std::collections::{BTreeMap, BTreeSet};

/// What one version adds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Part {
    group: GroupId,
    /// Blocks that are held by snapshots and not by the volume.
    held: i128,
    /// Blocks of its own, of a version that is no head.
    own: u64,
    /// Its own blocks are not known yet: what was cut off its parent is not taken apart.
    is_unsure: bool,
    /// It begins at another volume's version.
    is_foreign: bool,
}

/// The sum of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Total {
    /// See [`Part::held`].
    pub held: i128,
    /// See [`Part::own`].
    pub own: u64,
    /// Versions of which that is not known.
    pub unsure: u64,
    /// Versions that begin at another volume's.
    pub foreign: u64,
    parts: u64,
}

/// The sums of all groups that have versions.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    parts: BTreeMap<VersionId, Part>,
    groups: BTreeMap<GroupId, Total>,
}

impl Totals {
    fn set(&mut self, id: VersionId, part: Option<Part>) {
        if let Some(old) = self.parts.remove(&id) {
            let total = self.groups.entry(old.group).or_default();
            total.held -= old.held;
            total.own -= old.own;
            total.unsure -= u64::from(old.is_unsure);
            total.foreign -= u64::from(old.is_foreign);
            total.parts -= 1;
            if total.parts == 0 {
                self.groups.remove(&old.group);
            }
        }
        if let Some(new) = part {
            let total = self.groups.entry(new.group).or_default();
            total.held += new.held;
            total.own += new.own;
            total.unsure += u64::from(new.is_unsure);
            total.foreign += u64::from(new.is_foreign);
            total.parts += 1;
            self.parts.insert(id, new);
        }
    }

    /// The sum of a group.
    pub fn of(&self, group: GroupId) -> Total {
        self.groups.get(&group).copied().unwrap_or_default()
    }

    /// By group.
    pub fn iter(&self) -> impl Iterator<Item = (GroupId, &Total)> {
        self.groups.iter().map(|(group, total)| (*group, total))
    }
}

impl Engine {
    /// Takes the sums of what changed anew; when a checkpoint has ended. What hangs on a version that no
    /// checkpoint has merged hangs on what that one begins at, and so changes with it.
    pub(crate) fn take_totals(&mut self) {
        let mut stale = self.forest.take_stale();
        for list in self.dead.take_stale() {
            stale.extend(self.forest.owner(list).map(|v| v.id));
        }
        let mut queue: Vec<VersionId> = stale.iter().copied().collect();
        while let Some(id) = queue.pop() {
            let pending = |v: &&Version| v.kind != VersionKind::Head && v.root.is_none();
            if self.forest.get(id).filter(pending).is_some() {
                let below = self
                    .forest
                    .children(id)
                    .filter(|child| stale.insert(*child));
                queue.extend(below);
            }
        }
        for id in stale {
            let part = self.forest.get(id).map(|v| self.part_of(v));
            self.totals.set(id, part);
        }
    }

    fn part_of(&self, v: &Version) -> Part {
        let parent = self.forest.get(v.parent);
        let mut part = Part {
            group: v.group,
            is_foreign: parent.is_some_and(|parent| parent.group != v.group),
            ..Part::default()
        };
        part.held = self.held_by(v).unwrap_or(0);
        let merged = v.root.filter(|_| v.kind != VersionKind::Head);
        if let Some((root, _)) = merged {
            let shared = self.shared_blocks(v);
            part.is_unsure = shared.is_none();
            let own = shared.map_or(0, |shared| root.live.saturating_sub(shared));
            part.own = own.saturating_sub(v.released);
        }
        part
    }

    /// For tests: holds the sums against a walk of all versions.
    pub(crate) fn audit_totals(&self) -> Result<(), StoreError> {
        let mut whole = Totals::default();
        for v in self.forest.iter() {
            whole.set(v.id, Some(self.part_of(v)));
        }
        let gone: BTreeSet<_> = self.totals.parts.keys().collect();
        match whole.groups == self.totals.groups && gone.len() == whole.parts.len() {
            true => Ok(()),
            false => Err(StoreError::Invariant(format!(
                "sums of versions are {:?} and not {:?}",
                self.totals.groups, whole.groups
            ))),
        }
    }
}
