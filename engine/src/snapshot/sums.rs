//! What versions hold, as far as sums tell: no map is walked.

use crate::engine::Engine;
use crate::format::versions::{Version, VersionId, VersionKind};
use crate::snapshot::view::SnapshotView;
use esker_base::num::to_u64;
use esker_base::{GroupId, Stamp};
use std::collections::BTreeMap;

/// A version of a volume, with its place in the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionView {
    /// Its number, unique in the store.
    pub id: u64,
    /// The version it began from; none for the first of a volume.
    pub parent: Option<u64>,
    /// What it is.
    pub kind: VersionKind,
    /// Name, stamp and sums; of a head only the sums have a meaning.
    pub snapshot: SnapshotView,
}

impl Engine {
    /// Number of a group's snapshots, rewind points not counted.
    #[must_use]
    pub fn snapshot_count(&self, group: GroupId) -> u64 {
        let points = self.forest.points_count(group);
        to_u64(self.forest.count(group).saturating_sub(points))
    }

    /// The oldest snapshots of a group that are younger than a stamp, oldest first, without rewind points.
    #[must_use]
    pub fn snapshots_after(&self, group: GroupId, after: Stamp, most: usize) -> Vec<SnapshotView> {
        let later = self.forest.snapshots_after(group, after);
        let later = later.filter(|v| !v.meta.is_point());
        later.take(most).map(|v| self.snapshot_view(v)).collect()
    }

    /// All versions of a group with a number above `after`, in the order of numbers: snapshots, the
    /// head, and what was deleted while others begin at it; rewind points are passed over. None when the
    /// volume never had a snapshot.
    #[must_use]
    pub fn versions_after(&self, group: GroupId, after: u64, most: usize) -> Vec<VersionView> {
        let all = self.forest.of_group_after(group, VersionId(after));
        let all = all.filter(|v| !v.meta.is_point());
        let views = all.take(most).map(|v| {
            let mut snapshot = self.snapshot_view(v);
            if v.kind == VersionKind::Head {
                snapshot.referenced_blocks = self.group(group).map(|g| g.used_blocks);
            }
            let mut parent = self.forest.get(v.parent);
            while let Some(point) = parent.filter(|p| p.meta.is_point()) {
                parent = self.forest.get(point.parent);
            }
            VersionView {
                id: v.id.0,
                parent: parent.map(|p| p.id.0),
                kind: v.kind,
                snapshot,
            }
        });
        views.collect()
    }

    /// By group: blocks of data that its snapshots, or what was deleted and is still needed or not yet
    /// given back, hold and the volume itself does not. As of the last checkpoint; groups without are left
    /// out. What a clone's snapshots share with its origin counts for both.
    ///
    /// A version holds what its parent does, less its deadlist, and what is its own. Every block has one
    /// highest version that holds it, so all that a tree holds is the sum of what is their own. A clone's
    /// first version counts as if all of it were its own.
    #[must_use]
    pub fn snapshot_blocks(&self) -> BTreeMap<GroupId, u64> {
        let groups = self.totals.iter();
        groups
            .filter_map(|(group, total)| {
                let held = u64::try_from(total.held).ok();
                Some((group, held.filter(|n| *n > 0)?))
            })
            .collect()
    }

    /// Whether a volume began at a snapshot of another one that is still needed, as of the last
    /// checkpoint, or has done so just now.
    #[must_use]
    pub fn is_clone(&self, group: GroupId) -> bool {
        let base = self
            .forest
            .head(group)
            .and_then(|h| self.forest.get(h.parent));
        let began = base.is_some_and(|base| base.group != group);
        began || self.totals.of(group).foreign > 0
    }

    /// What one version adds to that: none before a checkpoint has merged it.
    pub(super) fn held_by(&self, v: &Version) -> Option<i128> {
        let live = match (v.kind, v.root) {
            // What it holds is not counted, only what it shares with nobody is taken off.
            (VersionKind::Head, _) => 0,
            (_, Some((root, _))) => i128::from(root.live) - i128::from(v.released),
            // It has nothing that its parent does not have.
            (_, None) => return None,
        };
        let (shared, dead) = self.shared_with_parent(v);
        Some(live + dead - shared)
    }

    /// Blocks of the nearest merged version of the same volume that one began from, and how many of them it
    /// has no more.
    fn shared_with_parent(&self, v: &Version) -> (i128, i128) {
        let (mut at, mut dead) = (v, 0);
        loop {
            dead += self
                .dead
                .get(at.deadlist)
                .map_or(0, |list| i128::from(list.data));
            match self.forest.get(at.parent).filter(|p| p.group == v.group) {
                None => return (0, 0),
                Some(parent) => match parent.root {
                    Some((root, _)) => return (i128::from(root.live), dead),
                    None => at = parent,
                },
            }
        }
    }

    /// Whether all sums are exact now: nothing waits for a checkpoint.
    #[must_use]
    pub fn sums_are_exact(&self) -> bool {
        let merged =
            |g: &crate::group::Group| g.active.is_empty() && g.frozen.is_none() && g.base.is_none();
        self.checkpoint.is_none() && self.groups.values().all(merged) && !self.reclaims()
    }

    /// Whether checkpoints still take apart what was deleted or discarded.
    #[must_use]
    pub fn reclaims(&self) -> bool {
        let lonely = |id| self.forest.children(id).nth(1).is_none();
        self.dead.unexpanded().is_some() || self.forest.hidden().any(lonely)
    }
}
