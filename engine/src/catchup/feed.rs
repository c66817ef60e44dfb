//! Applying a feed's entries to the group that it feeds.

use crate::apply::insert_extent;
use crate::engine::Engine;
use crate::error::StoreError;
use crate::event::{Outcome, SnapshotRefusal};
use crate::format::checkpoint::FeedEntry;
use crate::format::ingest::{Run, RunContent};
use crate::format::node::{ChildPointer, LeafKind};
use crate::format::operation::Operation;
use crate::format::vaddr::VAddr;
use crate::format::versions::SnapshotMeta;
use crate::group::{kill, Group, LogEntry};
use crate::map::delta::{Auths, Extent};
use crate::snapshot::forest::Forest;
use crate::snapshot::operations;
use crate::space::Segments;
use esker_base::num::to_u64;
use esker_base::{GroupId, Stamp};

impl Engine {
    /// The group whose map an entry of `id` changes.
    pub(crate) fn subject_of(&self, id: GroupId) -> GroupId {
        let feeds = self.groups.get(&id).map(|g| g.meta.feeds);
        feeds.filter(|target| target.0 != 0).unwrap_or(id)
    }

    /// A group that is fed applies nothing of its own log.
    pub(crate) fn is_fed(&self, id: GroupId) -> bool {
        let feed = self.groups.get(&super::feed_of(id));
        feed.is_some_and(|g| !g.deleting && g.meta.feeds == id)
    }

    /// Applies an entry of a feed.
    pub(crate) fn apply_fed(
        &mut self,
        id: GroupId,
        entry: &LogEntry,
    ) -> Result<Outcome, StoreError> {
        let target = self.subject_of(id);
        let next = self.counters.checkpoints + 1;
        let at = self.groups.get(&id).and_then(|g| g.feed);
        let group = self.groups.get_mut(&target).filter(|g| !g.deleting);
        let (Some(group), Some(mut at)) = (group, at) else {
            // Nobody needs it any more.
            if !entry.vaddr.is_none() {
                kill(&mut self.segs, entry.vaddr, u64::from(entry.payload_pages))?;
            }
            return Ok(Outcome::Done);
        };
        let before = group.load();
        let operation = entry.operation.as_deref();
        let outcome = fed(
            group,
            &mut self.forest,
            &mut self.segs,
            operation,
            entry.vaddr,
            &mut at,
        )?;
        if matches!(outcome, Outcome::RolledBack(_)) {
            group.rolled_back_in = next;
        }
        self.load.replace(before, group.load());
        if let Some(feed) = self.groups.get_mut(&id) {
            feed.feed = Some(at);
        }
        Ok(outcome)
    }
}

fn fed(
    group: &mut Group,
    forest: &mut Forest,
    segs: &mut Segments,
    operation: Option<&Operation>,
    vaddr: VAddr,
    at: &mut FeedEntry,
) -> Result<Outcome, StoreError> {
    match operation {
        Some(Operation::Ingest { runs }) => {
            ingest(group, segs, runs, vaddr)?;
            let highest = runs.iter().map(Run::max_stamp).max();
            at.reach = at.reach.max(highest.unwrap_or_default());
            Ok(Outcome::Done)
        }
        Some(Operation::Resize { size_bytes }) => {
            group.meta.size_bytes = group.meta.size_bytes.max(*size_bytes);
            Ok(Outcome::Resized(group.meta.size_bytes))
        }
        Some(Operation::Snapshot {
            stamp,
            created_us,
            name,
            labels,
        }) => {
            if *stamp < at.reach {
                return Err(StoreError::Invariant(format!(
                    "group {}: its head has stamps up to {}, which is above the snapshot {stamp}",
                    group.meta.group, at.reach
                )));
            }
            // What was fetched before and left again may have higher ones.
            group.max_stamp = group.max_stamp.max(*stamp);
            let meta = SnapshotMeta {
                name: name.clone(),
                created_us: *created_us,
                labels: labels.clone(),
                size_bytes: 0,
            };
            let outcome = operations::keep(group, forest, *stamp, meta);
            if outcome == Outcome::SnapshotTaken(*stamp) {
                (at.base, at.reach) = (*stamp, *stamp);
            }
            Ok(outcome)
        }
        Some(Operation::DeleteSnapshot { cut }) => Ok(operations::delete(group, forest, *cut)),
        Some(Operation::Branch { to }) => {
            let outcome = branch(group, forest, *to)?;
            if matches!(outcome, Outcome::RolledBack(_)) {
                (at.base, at.reach) = (*to, *to);
            }
            Ok(outcome)
        }
        _ => Ok(Outcome::Done),
    }
}

/// Puts blocks into the map as they are on another replica.
fn ingest(
    group: &mut Group,
    segs: &mut Segments,
    runs: &[Run],
    vaddr: VAddr,
) -> Result<(), StoreError> {
    let mut slot = 0;
    for run in runs {
        if run.min_stamp() <= group.newest_cut {
            return Err(StoreError::Invariant(format!(
                "group {}: a block at {} has stamp {}, which is not above the snapshot {}",
                group.meta.group,
                run.lba,
                run.min_stamp(),
                group.newest_cut
            )));
        }
        group.max_stamp = group.max_stamp.max(run.max_stamp());
        match &run.content {
            RunContent::Hollow { count, kind, stamp } => {
                let extent = Extent {
                    count: *count,
                    kind: *kind,
                    stamp: *stamp,
                    vaddr: VAddr::NONE,
                    auths: Auths::None,
                };
                insert_extent(group, run.lba, extent, segs)?;
            }
            RunContent::Data(blocks) => {
                let mut from = 0;
                while from < blocks.len() {
                    let first = blocks[from].0;
                    let stamps = blocks[from..].iter().zip(first.0..);
                    let count = stamps.take_while(|((s, _), expected)| s.0 == *expected);
                    let count = count.count();
                    let auths = blocks[from..from + count].iter().map(|(_, auth)| *auth);
                    let extent = Extent {
                        count: to_u64(count),
                        kind: LeafKind::Data,
                        stamp: first,
                        vaddr: vaddr.plus(slot),
                        auths: Auths::of(auths),
                    };
                    insert_extent(group, run.lba + to_u64(from), extent, segs)?;
                    slot += to_u64(count);
                    from += count;
                }
            }
        }
    }
    Ok(())
}

/// The head goes on from a snapshot, or from nothing. Nothing is in the deltas.
fn branch(group: &mut Group, forest: &mut Forest, to: Stamp) -> Result<Outcome, StoreError> {
    let id = group.meta.group;
    let target = forest.at(id, to).cloned();
    if target.is_none() && to.0 != 0 {
        return Ok(Outcome::SnapshotRefused(SnapshotRefusal::Unknown));
    }
    if !group.active.is_empty() {
        let text = format!("group {id}: its head branches off over what is not merged");
        return Err(StoreError::Invariant(text));
    }
    let parent = forest.head(id).and_then(|head| forest.get(head.parent));
    let kept = parent.and_then(|p| p.root);
    let holds_more = match kept {
        Some((root, _)) => root.vaddr != group.root.vaddr || root.max_stamp != group.root.max_stamp,
        None => !group.root.vaddr.is_none() || group.root.max_stamp.0 > 0,
    };
    if holds_more {
        // It becomes a version that nobody needs, and is taken apart like one. Its cut is nobody's stamp: the next snapshot may
        // have the same.
        let above = Stamp(group.max_stamp.0 + 1);
        let meta = SnapshotMeta {
            size_bytes: group.meta.size_bytes,
            ..SnapshotMeta::default()
        };
        let left = forest.cut(id, above, meta);
        forest.settle(left, (group.root, group.root_level));
        forest.hide(left);
    }
    match target.as_ref().and_then(|v| Some((v, v.root?))) {
        Some((version, (root, level))) => {
            forest.go_on_from(id, version);
            (group.root, group.root_level) = (root, level);
        }
        None => {
            forest.go_on_from_nothing(id);
            (group.root, group.root_level) = (ChildPointer::default(), 0);
        }
    }
    group.newest_cut = to;
    Ok(Outcome::RolledBack(to))
}
