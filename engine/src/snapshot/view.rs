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
    /// Blocks of data that nothing but it uses, as of the last checkpoint; none while that is not
    /// known.
    pub unique_blocks: Option<u64>,
    /// Hash of its content: equal on all replicas.
    pub logical_hash: u64,
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

    /// The newest snapshots of a group that are older than a stamp, newest first.
    #[must_use]
    pub fn snapshots_before(
        &self,
        group: GroupId,
        before: Stamp,
        most: usize,
    ) -> Vec<SnapshotView> {
        let older = self.forest.snapshots_before(group, before);
        older.take(most).map(|v| self.snapshot_view(v)).collect()
    }

    /// Whether a snapshot of the group has this name, and which.
    #[must_use]
    pub fn snapshot_named(&self, group: GroupId, name: &str) -> Option<SnapshotView> {
        self.forest
            .named(group, name)
            .map(|v| self.snapshot_view(v))
    }

    fn snapshot_view(&self, v: &Version) -> SnapshotView {
        SnapshotView {
            cut: v.cut,
            meta: v.meta.clone(),
            referenced_blocks: v.root.map(|(root, _)| root.live),
            unique_blocks: self.unique_blocks(v),
            logical_hash: v.root.map_or(0, |(root, _)| root.logical_hash),
        }
    }

    /// Blocks that one version alone uses, where sums tell.
    fn unique_blocks(&self, v: &Version) -> Option<u64> {
        let (root, _) = v.root?;
        let mut children = self
            .forest
            .children(v.id)
            .filter_map(|id| self.forest.get(id));
        match (children.next(), children.next()) {
            (Some(_), Some(_)) => None,
            (Some(child), None) => {
                let list = self.dead.get(child.deadlist);
                match list {
                    Some(list) if !list.subtrees.is_empty() => None,
                    list => Some(list.map_or(0, |list| list.exclusive)),
                }
            }
            (None, _) => {
                let list = self.dead.get(v.deadlist);
                if list.is_some_and(|list| !list.subtrees.is_empty()) {
                    return None;
                }
                let parent = self.forest.get(v.parent).and_then(|p| p.root);
                let shared = parent.map_or(0, |(p, _)| p.live) - list.map_or(0, |list| list.data);
                Some(root.live - shared)
            }
        }
    }
}
