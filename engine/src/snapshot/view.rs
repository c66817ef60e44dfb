//! What others see of snapshots.

use crate::engine::Engine;
use crate::format::versions::{SnapshotMeta, Version};
use esker_base::num::to_u64;
use esker_base::{GroupId, Stamp};
use std::sync::Arc;

/// A snapshot as its users see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotView {
    /// Its stamp.
    pub cut: Stamp,
    /// Name, size and labels.
    pub meta: Arc<SnapshotMeta>,
    /// Blocks of data in it; none until a checkpoint has merged it.
    pub referenced_blocks: Option<u64>,
    /// Blocks of data that nothing but it uses, as of the last checkpoint: what deleting it frees. None
    /// while several versions begin at it (clones, rollbacks) and each of them has replaced something:
    /// then what deleting it frees is what all of them have replaced, which no sum tells. A deleted
    /// snapshot at which several begin counts as a user like any other.
    pub unique_blocks: Option<u64>,
    /// Hash of its content: equal on all replicas.
    pub logical_hash: u64,
}

/// What a volume takes, in blocks of data, as of the last checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeSpace {
    /// In the volume as it is now.
    pub referenced_blocks: u64,
    /// Of these, what no snapshot has, of this volume or of the one it began from: what overwriting all
    /// of it would free. What a deleted snapshot has counts as had as long as several versions begin at
    /// it.
    pub unique_blocks: u64,
    /// Written to the volume and still there, in it, in its snapshots, or in a deleted snapshot at which
    /// clones begin. What a clone has from its origin counts there: the sum over all volumes is what the
    /// store holds, but for what volumes left behind that were deleted and have clones.
    pub own_blocks: u64,
}

/// How much of a group's delta index is what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeltaSize {
    /// Extents that the head looks at.
    pub newest: u64,
    /// Extents that only snapshots look at.
    pub older: u64,
    /// Snapshots that no checkpoint has merged.
    pub cuts: u64,
}

impl Engine {
    /// What waits for the next checkpoint in a group's delta index.
    #[must_use]
    pub fn delta_size(&self, group: GroupId) -> DeltaSize {
        let size = self.groups.get(&group).map(|g| DeltaSize {
            newest: to_u64(g.active.index.len()),
            older: to_u64(g.active.older.len()),
            cuts: to_u64(g.active.cuts.len()),
        });
        size.unwrap_or_default()
    }

    /// The snapshots of a group, oldest first.
    #[must_use]
    pub fn snapshots(&self, group: GroupId) -> Vec<SnapshotView> {
        let all = self.forest.snapshots(group);
        all.map(|v| self.snapshot_view(v)).collect()
    }

    /// The newest snapshots of a group that are older than a stamp, newest first, without rewind points.
    #[must_use]
    pub fn snapshots_before(
        &self,
        group: GroupId,
        before: Stamp,
        most: usize,
    ) -> Vec<SnapshotView> {
        let older = self.forest.snapshots_before(group, before);
        let older = older.filter(|v| !v.meta.is_point());
        older.take(most).map(|v| self.snapshot_view(v)).collect()
    }

    /// Whether a snapshot of the group has this name, and which. Rewind points have none.
    #[must_use]
    pub fn snapshot_named(&self, group: GroupId, name: &str) -> Option<SnapshotView> {
        self.forest
            .named(group, name)
            .filter(|v| !v.meta.is_point())
            .map(|v| self.snapshot_view(v))
    }

    pub(crate) fn snapshot_view(&self, v: &Version) -> SnapshotView {
        SnapshotView {
            cut: v.cut,
            meta: v.meta.clone(),
            referenced_blocks: v.root.map(|(root, _)| root.live),
            unique_blocks: self.unique_blocks(v),
            logical_hash: v.root.map_or(0, |(root, _)| root.logical_hash),
        }
    }

    /// What a volume takes; none when a discarded part of it is still being taken apart, and for a clone
    /// that no checkpoint has merged.
    #[must_use]
    pub fn volume_space(&self, group: GroupId) -> Option<VolumeSpace> {
        let g = self.groups.get(&group).filter(|g| !g.deleting)?;
        if g.base.is_some() {
            return None;
        }
        let live = g.root.live;
        let mut space = VolumeSpace {
            referenced_blocks: live,
            unique_blocks: live,
            own_blocks: 0,
        };
        let Some(head) = self.forest.head(group) else {
            space.own_blocks = live;
            return Some(space);
        };
        let total = self.totals.of(group);
        if total.unsure > 0 {
            return None;
        }
        space.unique_blocks = live.saturating_sub(self.shared_blocks(head)?);
        space.own_blocks = total.own + space.unique_blocks;
        Some(space)
    }

    /// Blocks that a version and its nearest merged ancestor both use.
    pub(super) fn shared_blocks(&self, v: &Version) -> Option<u64> {
        let mut replaced = 0;
        let mut at = v;
        loop {
            if let Some(list) = self.dead.get(at.deadlist) {
                if !list.subtrees.is_empty() {
                    return None;
                }
                replaced += list.data;
            }
            let Some(parent) = self.forest.get(at.parent) else {
                return Some(0);
            };
            if let Some((root, _)) = parent.root {
                return Some(root.live.saturating_sub(replaced));
            }
            at = parent;
        }
    }

    /// Blocks that one version alone uses, where sums tell.
    fn unique_blocks(&self, v: &Version) -> Option<u64> {
        let (root, _) = v.root?;
        let children = self.forest.children(v.id);
        let children = children.filter_map(|id| self.forest.get(id));
        // What each of those that begin at it lacks of what is its own.
        let mut lacks = children.map(|child| match self.dead.get(child.deadlist) {
            Some(list) if !list.subtrees.is_empty() => None,
            list => Some(list.map_or(0, |list| list.exclusive)),
        });
        match (lacks.next(), lacks.next()) {
            (None, _) => Some(root.live.saturating_sub(self.shared_blocks(v)?)),
            (Some(only), None) => only,
            // One that has all of it is enough.
            (Some(a), Some(b)) => {
                let has_all = [a, b].contains(&Some(0)) || lacks.any(|lacks| lacks == Some(0));
                has_all.then_some(0)
            }
        }
    }
}
