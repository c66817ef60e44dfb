//! Operations of a volume's log that concern its versions. Each takes the same short time, whatever
//! the volume holds.

use crate::error::StoreError;
use crate::event::{Outcome, SnapshotRefusal};
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
    mut meta: SnapshotMeta,
) -> Result<Outcome, StoreError> {
    let id = group.meta.group;
    if stamp <= group.max_stamp {
        return Err(StoreError::Invariant(format!(
            "group {id}: cut {stamp} is not above {}",
            group.max_stamp
        )));
    }
    group.max_stamp = stamp;
    if forest.has_name(id, &meta.name) {
        return Ok(Outcome::SnapshotRefused(SnapshotRefusal::NameTaken));
    }
    if forest.count(id) >= limits::VOLUME_SNAPSHOTS_MAX {
        return Ok(Outcome::SnapshotRefused(SnapshotRefusal::TooMany));
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
    Ok(Outcome::SnapshotTaken(stamp))
}

/// A snapshot is deleted.
pub(crate) fn delete(group: &Group, forest: &mut Forest, cut: Stamp) -> Outcome {
    let Some(id) = forest.at(group.meta.group, cut).map(|v| v.id) else {
        return Outcome::SnapshotRefused(SnapshotRefusal::Unknown);
    };
    forest.hide(id);
    Outcome::SnapshotDeleted(cut)
}
