//! Rewind points: snapshots that the layer above takes every second while a volume is written to, and deletes as
//! its window slides. To the store they are versions like any other; only their names, which nobody can give a
//! snapshot, tell them apart, so that they are not counted and not shown.

use crate::engine::Engine;
use crate::format::versions::{Deadlist, Version, VersionId, VersionKind};
use crate::snapshot::view::SnapshotView;
use esker_base::{GroupId, Stamp};
use std::collections::BTreeMap;

/// Rewind points of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RewindPoints {
    /// How many there are.
    pub count: u64,
    /// When the oldest was taken, in microseconds since the Unix epoch; zero without one.
    pub oldest_us: u64,
    /// When the newest was.
    pub newest_us: u64,
}

impl Engine {
    /// The rewind points of a group.
    #[must_use]
    pub fn rewind_points(&self, group: GroupId) -> RewindPoints {
        let mut of_group = self.forest.points(group);
        let first = of_group.next().map(|(_, us)| us);
        let last = of_group.next_back().map(|(_, us)| us).or(first);
        RewindPoints {
            count: esker_base::num::to_u64(self.forest.points_count(group)),
            oldest_us: first.unwrap_or(0),
            newest_us: last.unwrap_or(0),
        }
    }

    /// Whether a snapshot is a rewind point.
    #[must_use]
    pub fn is_rewind_point(&self, group: GroupId, cut: Stamp) -> bool {
        let found = self.forest.at(group, cut);
        found.is_some_and(|v| v.meta.is_point())
    }

    /// The oldest rewind points of a group that a window from `from_us` on does not need: those that a younger one
    /// follows which is not younger than that moment. At most `most`.
    #[must_use]
    pub fn rewind_points_before(&self, group: GroupId, from_us: u64, most: usize) -> Vec<Stamp> {
        let all = self.forest.points(group);
        let next = self.forest.points(group).skip(1);
        let passed = all
            .zip(next)
            .filter(|(_, (_, next_us))| *next_us <= from_us);
        passed.take(most).map(|((cut, _), _)| cut).collect()
    }

    /// The oldest rewind points of a group, at most `most`.
    #[must_use]
    pub fn rewind_points_oldest(&self, group: GroupId, most: usize) -> Vec<Stamp> {
        let all = self.forest.points(group).take(most);
        all.map(|(cut, _)| cut).collect()
    }

    /// The volume as it was at a moment, in microseconds since the Unix epoch: the last of its rewind points, in the
    /// order of its log, that is not younger.
    #[must_use]
    pub fn rewound_to(&self, group: GroupId, at_us: u64) -> Option<SnapshotView> {
        let mut points = self.forest.points(group).rev();
        let (cut, _) = points.find(|(_, us)| *us <= at_us)?;
        self.forest.at(group, cut).map(|v| self.snapshot_view(v))
    }

    /// Blocks of data that nothing but rewind points of a group holds, as of the last checkpoint: what would come
    /// back without them. None where sums do not tell: while something is taken apart, and where entries of a
    /// deadlist may be older or younger than the version that its points begin at.
    ///
    /// Points follow each other between two versions that stay, A and B. What was born after A and is used by
    /// one of them and not by B died in between: it is in a deadlist of those after the first one, up to B's. After a
    /// rollback there may be no B: then what the last of them holds counts as well.
    #[must_use]
    pub fn rewind_blocks(&self, group: GroupId) -> Option<u64> {
        if self.forest.points(group).next().is_none() {
            return Some(0);
        }
        let mut runs: BTreeMap<VersionId, Run> = BTreeMap::new();
        let mut sum = 0i128;
        // Parents before what begins at them: numbers rise, but for the head's.
        let is_head = |v: &&Version| v.kind == VersionKind::Head;
        let of_group = || self.forest.of_group(group);
        let heads = of_group().filter(is_head);
        for v in of_group().filter(|v| !is_head(v)).chain(heads) {
            let list = self.dead.get(v.deadlist);
            if list.is_some_and(|list| !list.subtrees.is_empty()) {
                return None;
            }
            let parent = self.forest.get(v.parent);
            let mut run = match parent.and_then(|parent| runs.remove(&parent.id)) {
                Some(mut run) => {
                    let after = blocks_after(list, run.cut)?;
                    sum += after;
                    run.counted += after;
                    run
                }
                None => Run {
                    cut: parent.map_or(Stamp(0), |p| p.cut),
                    live: live(parent),
                    ..Run::default()
                },
            };
            if !self.forest.only_leads_on(v) {
                continue;
            }
            if v.has_gaps() {
                return None;
            }
            run.dead += list.map_or(0, |list| i128::from(list.data));
            match self.forest.children(v.id).next() {
                Some(_) => _ = runs.insert(v.id, run),
                None => sum += live(Some(v))? - run.live? + run.dead - run.counted,
            }
        }
        u64::try_from(sum).ok()
    }
}

/// Points that follow each other, from the version that the first of them begins at.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    /// That one's cut.
    cut: Stamp,
    /// Blocks of data in it; none until a checkpoint has merged it.
    live: Option<i128>,
    /// Blocks in the deadlists so far.
    dead: i128,
    /// Those of them that were counted.
    counted: i128,
}

/// Blocks in a deadlist that are younger than a cut.
fn blocks_after(list: Option<&Deadlist>, cut: Stamp) -> Option<i128> {
    let mut sum = 0;
    for chunk in list.map_or(&[][..], |list| &list.chunks) {
        if chunk.oldest > cut {
            sum += i128::from(chunk.data);
        } else if chunk.youngest > cut {
            return None;
        }
    }
    Some(sum)
}

/// Blocks of data in a version; none in no version, and not known until a checkpoint has merged it.
fn live(v: Option<&Version>) -> Option<i128> {
    match v {
        None => Some(0),
        Some(v) => v.root.map(|(root, _)| i128::from(root.live)),
    }
}
