//! What changed between two versions: asked of the engine, and found by comparing two copies.

use super::group::GroupModel;
use super::world::World;
use super::Violation;
use esker_base::{BlockRange, GroupId, Stamp, BLOCK_SIZE_U64};
use esker_engine::event::{Diff, DiffRequest, DiffRun};
use esker_engine::{Event, ReadError};

/// A comparison on its way.
#[derive(Clone, Debug)]
pub struct PendingDiff {
    group: GroupId,
    old: GroupId,
    from: u64,
    to: Option<u64>,
    range: BlockRange,
    /// What was told of the blocks before the range.
    runs: Vec<DiffRun>,
    /// What must be told of all of them; none when that changes while the question is on its way.
    expected: Option<Vec<(u64, bool)>>,
}

impl World {
    /// Which blocks differ, and whether they hold data in the newer version.
    fn differences(
        &self,
        id: GroupId,
        (old, from): (GroupId, u64),
        to: Option<u64>,
    ) -> Option<Vec<(u64, bool)>> {
        let applied = &self.groups.get(&id)?.applied;
        let old = &self.groups.get(&old)?.applied.snapshots;
        let old = &old.get(&from)?.blocks;
        let new = match to {
            Some(cut) => &applied.snapshots.get(&cut)?.blocks,
            None => &applied.blocks,
        };
        let mut lbas: Vec<u64> = old.keys().chain(new.keys()).copied().collect();
        lbas.sort_unstable();
        lbas.dedup();
        let differing = lbas.into_iter().filter(|lba| old.get(lba) != new.get(lba));
        Some(differing.map(|lba| (lba, new.contains_key(&lba))).collect())
    }

    /// Asks what changed. The answer is checked; of the head only if nothing is applied meanwhile.
    ///
    /// # Errors
    /// When a rule is broken.
    pub fn diff(
        &mut self,
        id: GroupId,
        from: u64,
        to: Option<u64>,
        still: bool,
    ) -> Result<(), Violation> {
        self.diff_with(id, (id, from), to, still)
    }

    /// Asks what a group has that a snapshot of perhaps another one has not, likewise.
    ///
    /// # Errors
    /// When a rule is broken.
    pub fn diff_with(
        &mut self,
        id: GroupId,
        (old, from): (GroupId, u64),
        to: Option<u64>,
        still: bool,
    ) -> Result<(), Violation> {
        let (Some(model), Some(other)) = (self.groups.get(&id), self.groups.get(&old)) else {
            return Ok(());
        };
        let size = |of: &GroupModel, cut: u64| {
            let snapshot = of.applied.snapshots.get(&cut);
            snapshot.map_or(0, |s| s.size_bytes)
        };
        let new = to.map_or(model.applied.size_bytes, |to| size(model, to));
        let blocks = size(other, from).max(new) / BLOCK_SIZE_U64;
        let expected = self
            .differences(id, (old, from), to)
            .filter(|_| still || to.is_some());
        self.ask_diff(PendingDiff {
            group: id,
            old,
            from,
            to,
            range: BlockRange::new(0, blocks),
            runs: Vec::new(),
            expected,
        })
    }

    fn ask_diff(&mut self, diff: PendingDiff) -> Result<(), Violation> {
        let token = self.token();
        let request = DiffRequest {
            one: token.is_multiple_of(3),
            token,
            group: diff.group,
            old: diff.old,
            from: Stamp(diff.from),
            to: diff.to.map(Stamp),
            range: diff.range,
        };
        self.diffs.insert(token, diff);
        self.step(Event::Diff(request))
    }

    /// An answer came.
    ///
    /// # Errors
    /// When it is not the one that two copies give.
    pub(super) fn diff_done(
        &mut self,
        token: u64,
        result: Result<Diff, ReadError>,
    ) -> Result<(), Violation> {
        let Some(mut diff) = self.diffs.remove(&token) else {
            return Err(Violation::new(format!("comparison {token} ended twice")));
        };
        let id = diff.group;
        let told = match result {
            Ok(told) => told,
            Err(error) => {
                let excused = self.excuses(diff.old, Some(diff.from), &error)
                    || diff.to.is_some_and(|to| self.excuses(id, Some(to), &error));
                return match excused {
                    true => Ok(()),
                    false => Err(Violation::new(format!(
                        "group {id}: comparing failed: {error}"
                    ))),
                };
            }
        };
        let (start, end) = (diff.range.start.0, diff.range.end());
        if told.through > end || told.through <= start && start < end {
            let text = format!(
                "group {id}: a comparison of {:?} got to {}",
                diff.range, told.through
            );
            return Err(Violation::new(text));
        }
        diff.runs.extend(told.runs);
        if told.through < end {
            diff.range = BlockRange::new(told.through, end - told.through);
            return self.ask_diff(diff);
        }
        let Some(expected) = diff.expected else {
            return Ok(());
        };
        let blocks = |run: &DiffRun| {
            let data = run.is_data;
            (run.lba..run.lba + run.count).map(move |lba| (lba, data))
        };
        let found: Vec<(u64, bool)> = diff.runs.iter().flat_map(blocks).collect();
        if found != expected {
            let text = format!(
                "group {id}: from {} to {:?} differ {found:?} instead of {expected:?}",
                diff.from, diff.to
            );
            return Err(Violation::new(text));
        }
        Ok(())
    }

    /// Compares snapshots of a group with each other and with the head, while nothing else goes on.
    ///
    /// # Errors
    /// When a rule is broken.
    pub fn check_diffs(&mut self, id: GroupId) -> Result<(), Violation> {
        let Some(model) = self.groups.get(&id) else {
            return Ok(());
        };
        let cuts: Vec<u64> = model.applied.snapshots.keys().copied().collect();
        for (n, from) in cuts.iter().enumerate() {
            // The next one, another one, and the head.
            let others = [cuts.get(n + 1), cuts.get((n * 7 + 3) % cuts.len())];
            for to in others.into_iter().flatten() {
                self.diff(id, *from, Some(*to), true)?;
            }
            self.diff(id, *from, None, true)?;
            self.run(false)?;
        }
        // Snapshots of others: what it was cloned from, its clones, and what it has nothing to do with.
        let others = self
            .groups
            .iter()
            .filter(|(other, m)| **other != id && !m.deleting);
        let others = others.flat_map(|(other, m)| {
            let cuts = m.applied.snapshots.keys();
            cuts.take(2).map(|cut| (*other, *cut))
        });
        for old in others.take(8).collect::<Vec<_>>() {
            self.diff_with(id, old, None, true)?;
            self.diff_with(id, old, cuts.first().copied(), true)?;
            self.run(false)?;
        }
        match self.diffs.is_empty() {
            true => Ok(()),
            false => Err(Violation::new("a comparison does not end")),
        }
    }
}
