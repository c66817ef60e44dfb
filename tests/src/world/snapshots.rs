//! Snapshots in the world: taken, deleted, compared and gone back to among the faults, and held against full
//! copies of what the oracle knew.

use super::catalog::Change;
use super::oracle::Frozen;
use super::world::{Purpose, World};
use esker_base::num::{to_u64, to_usize};
use esker_base::BLOCK_SIZE_U64;
use esker_node::admin::{AdminError, AdminReply, AdminRequest, SnapshotReport};
use std::collections::{BTreeMap, BTreeSet};

/// Snapshots of a volume in this world.
pub(crate) const SNAPSHOTS_MAX: usize = 12;
/// Questions for exact sums at the end, before something counts as never given back.
const SETTLES_MAX: u32 = 40;

/// What an operator asked about snapshots of a volume.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub slot: usize,
    /// Which volume of the slot: names change.
    pub born: u64,
    /// When.
    pub step: u64,
    pub what: What,
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    Create {
        name: String,
    },
    Delete {
        name: String,
    },
    Diff {
        from: String,
        to: String,
        /// Blocks told so far, and whether they hold data in the newer one.
        told: BTreeMap<u64, bool>,
    },
    /// All snapshots, after a restart.
    List,
}

/// The snapshots of a volume, as far as they are known.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// Those that exist, and what they may hold.
    pub sure: BTreeMap<String, Frozen>,
    /// Those that exist or not: nobody was answered.
    pub unsure: BTreeMap<String, Frozen>,
    /// Those whose deletion was not answered.
    pub leaving: BTreeSet<String>,
    /// Nothing is asked before the list of a restarted store was seen.
    pub is_known: bool,
    /// Names that were asked for in a volume of three; the same for its deletions.
    pub asked: BTreeSet<String>,
    pub deleted: BTreeSet<String>,
    pub names: u64,
}

impl Kept {
    pub fn fresh_name(&mut self) -> String {
        self.names += 1;
        format!("s{}", self.names)
    }
}

impl World {
    /// Something with snapshots by chance.
    pub(crate) fn play_with_snapshots(&mut self) {
        let slot = self.rng.index(self.slots.len());
        let choice = self.rng.below(100);
        if self.plan.nodes > 1 {
            return self.play_with_three(slot, choice);
        }
        let change = self.slots[slot].change.is_some();
        if !self.may_be_told(0) || change {
            return;
        }
        if self.plan.past_clones > 0 {
            self.note_past(slot);
        }
        let Some(volume) = self.slots[slot].volume.as_mut() else {
            return;
        };
        if !volume.kept.is_known {
            return;
        }
        let names: Vec<String> = volume.kept.sure.keys().cloned().collect();
        let full = names.len() >= SNAPSHOTS_MAX;
        let pick = |world: &mut Self| {
            let at = world.rng.index(names.len().max(1));
            names.get(at).cloned()
        };
        let what = match choice {
            0..45 if !full => What::Create {
                name: volume.kept.fresh_name(),
            },
            45..75 => match (pick(self), pick(self)) {
                (Some(from), Some(to)) => What::Diff {
                    from,
                    to,
                    told: BTreeMap::new(),
                },
                _ => return,
            },
            75..82 => {
                let Some(snapshot) = pick(self) else { return };
                let keep = self.rng.chance(500) && !full;
                return self.want_rollback(slot, snapshot, keep);
            }
            82..95 if self.plan.clones > 0 => return self.want(slot, Change::Delete),
            _ => match pick(self) {
                Some(name) => What::Delete { name },
                None => return,
            },
        };
        self.ask_about_snapshots(slot, what);
    }

    fn want_rollback(&mut self, slot: usize, snapshot: String, keep: bool) {
        let s = &mut self.slots[slot];
        let Some(volume) = s.volume.as_mut() else {
            return;
        };
        let keep = keep.then(|| volume.kept.fresh_name());
        if s.change.is_none() && s.wanted.is_none() {
            s.wanted = Some(Change::Rollback {
                snapshot,
                keep,
                asked: 0,
            });
        }
    }

    /// A new volume that begins as a snapshot of another one, if there is one and by chance.
    pub(crate) fn clone_of_another(&mut self, name: &str) -> Option<Change> {
        if self.plan.clones == 0 || !self.rng.chance(self.plan.clones) {
            return None;
        }
        if let Some(change) = self.clone_of_the_past(name) {
            return Some(change);
        }
        let volumes = self.slots.iter().filter(|s| s.change.is_none());
        let volumes = volumes.filter_map(|s| s.volume.as_ref());
        let stay = volumes.filter(|v| v.kept.is_known).flat_map(|v| {
            let there = v.kept.sure.iter();
            let there = there.filter(|(name, _)| !v.kept.leaving.contains(*name));
            there.map(|(snapshot, frozen)| (v.name.clone(), snapshot.clone(), frozen))
        });
        let all: Vec<(String, String, &Frozen)> = stay.collect();
        let (volume, snapshot, frozen) = all.get(self.rng.index(all.len().max(1)))?;
        Some(Change::Clone {
            name: name.to_owned(),
            volume: volume.clone(),
            snapshot: snapshot.clone(),
            at_us: None,
            frozen: (*frozen).clone(),
        })
    }

    /// Whether what a clone begins at may be there no more.
    pub(crate) fn may_have_gone(&self, change: &Change) -> bool {
        let Change::Clone {
            volume,
            snapshot,
            at_us,
            ..
        } = change
        else {
            return false;
        };
        let named = |v: &super::catalog::Volume| v.name == *volume;
        let mut slots = self.slots.iter();
        let origin = slots.find(|s| s.volume.as_ref().is_some_and(named));
        // Its end may be on its way.
        let origin = origin.filter(|s| s.change.is_none());
        let origin = origin.and_then(|s| s.volume.as_ref());
        let stays = |v: &super::catalog::Volume| {
            let kept = &v.kept;
            at_us.is_some() || kept.sure.contains_key(snapshot) && !kept.leaving.contains(snapshot)
        };
        !origin.is_some_and(stays)
    }

    fn ask_about_snapshots(&mut self, slot: usize, what: What) {
        let Some(v) = self.slots[slot].volume.as_mut() else {
            return;
        };
        let volume = v.name.clone();
        let request = match &what {
            What::Create { name } => AdminRequest::SnapshotCreate {
                volume,
                name: name.clone(),
                labels: BTreeMap::new(),
            },
            What::Delete { name } => {
                v.kept.leaving.insert(name.clone());
                AdminRequest::SnapshotDelete {
                    volume,
                    name: name.clone(),
                }
            }
            What::Diff { from, to, told } => AdminRequest::SnapshotDiff {
                volume,
                of: None,
                from: from.clone(),
                to: Some(to.clone()),
                offset: told.last_key_value().map_or(0, |(lba, _)| lba + 1) * BLOCK_SIZE_U64,
            },
            What::List => AdminRequest::SnapshotList {
                volume: Some(volume),
                after: None,
            },
        };
        let asked = Asked {
            slot,
            born: v.born,
            step: self.step,
            what,
        };
        self.ask_operator(0, request, Purpose::Snapshot(asked));
    }

    /// The process that was asked is gone, or its store is fenced: whether it was done is unsure.
    pub(crate) fn snapshot_unsure(&mut self, asked: &Asked) {
        let volume = self.slots[asked.slot].volume.as_mut();
        let Some(volume) = volume.filter(|v| v.born == asked.born) else {
            return;
        };
        if let What::Create { name } = &asked.what {
            let frozen = volume.oracle.freeze(asked.step);
            volume.kept.unsure.insert(name.clone(), frozen);
        }
    }

    /// A process has ended: what it was asked is unsure, and what it knew is to be looked at again.
    pub(crate) fn snapshots_interrupted(&mut self) {
        if self.plan.nodes > 1 {
            return;
        }
        let asked: Vec<Asked> = self
            .admin
            .values()
            .filter_map(|(_, purpose)| match purpose {
                Purpose::Snapshot(asked) => Some(asked.clone()),
                _ => None,
            })
            .collect();
        asked.iter().for_each(|asked| self.snapshot_unsure(asked));
        for slot in &mut self.slots {
            let Some(volume) = slot.volume.as_mut() else {
                continue;
            };
            volume.kept.is_known = false;
            if let Some((_, Change::Rollback { keep, asked, .. })) = &slot.change {
                let frozen = volume.oracle.freeze(*asked);
                let keep = keep.iter().map(|keep| (keep.clone(), frozen.clone()));
                volume.kept.unsure.extend(keep);
            }
        }
    }

    /// A restarted store serves: its snapshots are held against what must be there.
    pub(crate) fn list_snapshots(&mut self) {
        for slot in 0..self.slots.len() {
            if self.slots[slot].volume.is_some() {
                self.ask_about_snapshots(slot, What::List);
            }
        }
    }

    pub(crate) fn snapshot_answered(
        &mut self,
        host: usize,
        asked: Asked,
        result: Result<AdminReply, AdminError>,
    ) {
        if self.plan.nodes > 1 {
            return self.three_answered(&asked, result);
        }
        let fenced = self.hosts[host].fenced;
        let resealed = self.plan.encrypted > 0;
        let step = self.step;
        let is_changing = self.slots[asked.slot].change.is_some();
        let volume = self.slots[asked.slot].volume.as_mut();
        let Some(volume) = volume.filter(|v| v.born == asked.born) else {
            return; // it was deleted meanwhile
        };
        match (asked.what.clone(), result) {
            (What::Create { name }, Ok(AdminReply::Snapshot(_))) => {
                let frozen = volume.oracle.freeze(asked.step);
                volume.kept.sure.insert(name, frozen);
                self.stats.did("snapshots taken");
            }
            (What::Delete { name }, Ok(AdminReply::Done)) => {
                volume.kept.leaving.remove(&name);
                if volume.kept.sure.remove(&name).is_none() {
                    return self.violate(format!("snapshot {name} is deleted twice"));
                }
                self.stats.did("snapshots deleted");
            }
            (What::Diff { from, to, mut told }, Ok(AdminReply::Diff(page))) => {
                for extent in &page.extents {
                    let first = extent.offset / BLOCK_SIZE_U64;
                    let blocks = first..first + extent.length / BLOCK_SIZE_U64;
                    told.extend(blocks.map(|lba| (lba, extent.is_data)));
                }
                if page.through_bytes < page.size_bytes {
                    return self.violate("a comparison of a small volume takes pages".into());
                }
                // What is sealed anew under another key counts as changed.
                if let Err(text) = volume.compare(&from, &to, &told, resealed) {
                    let name = volume.name.clone();
                    return self.violate(format!("{from} and {to} of {name}: {text}"));
                }
                self.stats.did("snapshots compared");
            }
            // Fenced while the volume started, it tells what there was before the entries of its log.
            (What::List, Ok(AdminReply::Snapshots(_))) if fenced => {}
            (What::List, Ok(AdminReply::Snapshots(page))) => {
                if let Err(text) = volume.kept.reconcile(&page.snapshots) {
                    let name = volume.name.clone();
                    self.violate(format!("after a restart, {name}: {text} (step {step})"));
                }
            }
            (What::Create { .. }, Err(_)) if fenced => self.snapshot_unsure(&asked),
            (_, Err(_)) if fenced => {}
            // Should the end of its volume be lost in a crash, it may be there all the same.
            (
                What::Create { .. },
                Err(AdminError::Refused(_) | AdminError::NotLeading(_) | AdminError::Unsure(_)),
            ) if is_changing => {
                self.snapshot_unsure(&asked);
            }
            (
                What::Delete { .. },
                Err(AdminError::Refused(_) | AdminError::NotLeading(_) | AdminError::Unsure(_)),
            ) if is_changing => {}
            (What::Delete { name }, Err(error)) => {
                volume.kept.leaving.remove(&name);
                let twice = matches!(error, AdminError::NotFound(_));
                let there = volume.kept.sure.contains_key(&name);
                if !matches!(
                    error,
                    AdminError::Refused(_) | AdminError::NotLeading(_) | AdminError::Unsure(_)
                ) && (there || !twice)
                {
                    self.violate(format!("snapshot {name} is not deleted: {error}"));
                }
            }
            // Its volume stopped serving, is being deleted, or is full.
            (
                _,
                Err(
                    AdminError::Refused(_)
                    | AdminError::NotLeading(_)
                    | AdminError::Unsure(_)
                    | AdminError::NoSpace(_),
                ),
            ) => {}
            (What::Diff { from, to, .. }, Err(AdminError::NotFound(_)))
                if !volume.kept.sure.contains_key(&from)
                    || !volume.kept.sure.contains_key(&to)
                    || volume.kept.leaving.contains(&from)
                    || volume.kept.leaving.contains(&to) => {}
            (_, Err(AdminError::NotFound(_))) if is_changing => {}
            (what, result) => self.violate(format!("{what:?} gave {result:?}")),
        }
    }

    /// At the end the volumes go back to one of their snapshots, so that clients read all of it.
    pub(crate) fn go_back_at_the_end(&mut self) {
        if self.plan.nodes > 1 {
            return self.go_back_to_cuts();
        }
        for slot in 0..self.slots.len() {
            let Some(volume) = &self.slots[slot].volume else {
                continue;
            };
            let names: Vec<String> = volume.kept.sure.keys().cloned().collect();
            if names.is_empty() || self.rng.chance(300) {
                continue;
            }
            let snapshot = names[self.rng.index(names.len())].clone();
            self.want_rollback(slot, snapshot, false);
        }
    }

    /// What was deleted is given back: asks until it is.
    pub(crate) fn settle(&mut self, asked: u32) {
        self.ask_operator(0, AdminRequest::Settle, Purpose::Settle(asked));
    }

    pub(crate) fn settled(&mut self, asked: u32) {
        let Some(node) = self.hosts[0].node.as_ref() else {
            return;
        };
        let engine = node.engine();
        if engine.reclaims() && engine.fenced().is_none() {
            match asked < SETTLES_MAX {
                true => return self.settle(asked + 1),
                false => return self.violate("what was deleted is not given back".into()),
            }
        }
        let held = engine.snapshot_blocks();
        let none = self.slots.iter().filter_map(|s| s.volume.as_ref());
        let none = none.filter(|v| v.kept.sure.is_empty() && v.kept.unsure.is_empty());
        let groups: Vec<_> = none.filter_map(|v| node.group_of(&v.name)).collect();
        // What a rollback left may still be what the head begins at.
        let bad = groups
            .iter()
            .filter(|g| engine.rewind_points(**g).count == 0)
            .find(|g| held.contains_key(g) && engine.snapshot_count(**g) == 0);
        if let Some(group) = bad {
            let held = &held[group];
            let versions = engine.versions_after(*group, 0, 100);
            if versions.len() < 2 {
                let text = format!("{held} blocks are held by no snapshot: {versions:?}");
                return self.violate(text);
            }
        }
        self.stats.did("stores that gave back what was deleted");
        self.begin_stop();
    }
}

impl Kept {
    /// Holds what a restarted store lists against what it must have.
    fn reconcile(&mut self, reports: &[SnapshotReport]) -> Result<(), String> {
        let names: BTreeSet<&str> = reports.iter().map(|r| r.name.as_str()).collect();
        let leaving = std::mem::take(&mut self.leaving);
        for (name, frozen) in std::mem::take(&mut self.unsure) {
            if names.contains(name.as_str()) {
                self.sure.insert(name, frozen);
            }
        }
        let mut gone = Vec::new();
        for name in self.sure.keys().filter(|n| !names.contains(n.as_str())) {
            match leaving.contains(name) {
                true => gone.push(name.clone()),
                false => return Err(format!("snapshot {name} is gone")),
            }
        }
        gone.iter().for_each(|name| _ = self.sure.remove(name));
        if let Some(name) = names.iter().find(|n| !self.sure.contains_key(**n)) {
            return Err(format!("snapshot {name} is back, or was never taken"));
        }
        self.is_known = true;
        Ok(())
    }
}

impl super::catalog::Volume {
    /// Whether a comparison of two snapshots can be right.
    fn compare(
        &self,
        from: &str,
        to: &str,
        told: &BTreeMap<u64, bool>,
        resealed: bool,
    ) -> Result<(), String> {
        let kept = &self.kept.sure;
        let (Some(old), Some(new)) = (kept.get(from), kept.get(to)) else {
            return Ok(()); // deleted meanwhile
        };
        for lba in 0..old.blocks().max(new.blocks()) {
            let told = told.get(&to_u64(lba));
            match old.block_differs(new, lba) {
                Some(true) if told.is_none() => return Err(format!("block {lba} is left out")),
                Some(false) if told.is_some() && !resealed => {
                    return Err(format!("block {lba} is the same"))
                }
                _ => {}
            }
            if told == Some(&false) && new.holds_data(lba) {
                return Err(format!("block {lba} holds data and is told as zeros"));
            }
        }
        let most = to_usize(told.last_key_value().map_or(0, |(lba, _)| lba + 1));
        match most <= old.blocks().max(new.blocks()) {
            true => Ok(()),
            false => Err(format!("{most} blocks are more than there are")),
        }
    }
}
