//! Operations of a volume's log that concern its versions. Each takes the same short time, whatever
//! the volume holds.

use crate::error::StoreError;
use crate::event::{Outcome, SnapshotRefusal};
use crate::format::operation::Operation;
use crate::format::versions::SnapshotMeta;
use crate::group::Group;
use crate::map::layer::Cut;
use crate::snapshot::forest::Forest;
use esker_base::{limits, Stamp};

/// A snapshot is taken.
pub(crate) fn take(
    group: &mut Group,
    forest: &mut Forest,
    stamp: Stamp,
    meta: SnapshotMeta,
) -> Result<Outcome, StoreError> {
    rise(group, stamp)?;
    Ok(keep(group, forest, stamp, meta))
}

/// The head is kept as a snapshot: nothing in it has a stamp above that one's.
pub(crate) fn keep(
    group: &mut Group,
    forest: &mut Forest,
    stamp: Stamp,
    mut meta: SnapshotMeta,
) -> Outcome {
    let id = group.meta.group;
    if forest.has_name(id, &meta.name) {
        return Outcome::SnapshotRefused(SnapshotRefusal::NameTaken);
    }
    if forest.count(id) >= limits::VOLUME_SNAPSHOTS_MAX {
        return Outcome::SnapshotRefused(SnapshotRefusal::TooMany);
    }
    meta.size_bytes = group.meta.size_bytes;
    let size_bytes = meta.size_bytes;
    let version = forest.cut(id, stamp, meta);
    group.newest_cut = stamp;
    group.active.cuts.push(Cut {
        stamp,
        version,
        size_bytes,
    });
    Outcome::SnapshotTaken(stamp)
}

/// A snapshot is deleted.
pub(crate) fn delete(group: &Group, forest: &mut Forest, cut: Stamp) -> Outcome {
    let Some(id) = forest.at(group.meta.group, cut).map(|v| v.id) else {
        return Outcome::SnapshotRefused(SnapshotRefusal::Unknown);
    };
    forest.hide(id);
    Outcome::SnapshotDeleted(cut)
}

/// A cut has a stamp like what is written.
fn rise(group: &mut Group, stamp: Stamp) -> Result<(), StoreError> {
    if stamp <= group.max_stamp {
        return Err(StoreError::Invariant(format!(
            "group {}: cut {stamp} is not above {}",
            group.meta.group, group.max_stamp
        )));
    }
    group.max_stamp = stamp;
    Ok(())
}

/// A rollback changes trees, so that both of them must be there: what is left, and what it goes to.
pub(crate) fn waits_for_checkpoint(
    group: &Group,
    forest: &Forest,
    operation: Option<&Operation>,
) -> bool {
    // A map that must grow is merged even with nothing: its height is part of its hash.
    let is_behind = || {
        !group.active.is_empty() || group.frozen.is_some() || group.is_low() || group.base.is_some()
    };
    match operation {
        Some(Operation::Branch { to: Stamp(0) }) => is_behind(),
        Some(Operation::Rollback { to, .. } | Operation::Branch { to }) => {
            let target = forest.at(group.meta.group, *to);
            target.is_some_and(|target| is_behind() || target.root.is_none())
        }
        _ => false,
    }
}

/// The volume goes on from a snapshot. Nothing is in the deltas.
pub(crate) fn roll_back(
    group: &mut Group,
    forest: &mut Forest,
    stamp: Stamp,
    to: Stamp,
    keep: bool,
    mut meta: SnapshotMeta,
) -> Result<Outcome, StoreError> {
    let id = group.meta.group;
    rise(group, stamp)?;
    let Some(target) = forest.at(id, to).cloned() else {
        return Ok(Outcome::SnapshotRefused(SnapshotRefusal::Unknown));
    };
    if keep && forest.has_name(id, &meta.name) {
        return Ok(Outcome::SnapshotRefused(SnapshotRefusal::NameTaken));
    }
    if keep && forest.count(id) >= limits::VOLUME_SNAPSHOTS_MAX {
        return Ok(Outcome::SnapshotRefused(SnapshotRefusal::TooMany));
    }
    let Some((root, level)) = target.root.filter(|_| group.active.is_empty()) else {
        let text = format!("group {id}: a rollback to {to} over what is not merged");
        return Err(StoreError::Invariant(text));
    };
    meta.size_bytes = group.meta.size_bytes;
    let left = forest.cut(id, stamp, meta);
    forest.settle(left, (group.root, group.root_level));
    forest.go_on_from(id, &target);
    if !keep {
        forest.hide(left);
    }
    (group.root, group.root_level) = (root, level);
    group.newest_cut = target.cut;
    if target.cut.epoch() < group.resealed {
        group.resealed = esker_base::Epoch(0); // what it goes on from may hold blocks under older keys
    }
    // The size stays: what is on its way in the log may lie behind the end that the snapshot had.
    Ok(Outcome::RolledBack(stamp))
}
