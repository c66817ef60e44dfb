//! What a replica that lags does next: a pure function of what the volume was, of the snapshots that this
//! replica has, and of how far its head has come.

use esker_base::Stamp;
use esker_engine::format::checkpoint::FeedEntry;
use esker_engine::format::manifest::Manifest;
use std::collections::BTreeSet;

/// Parts of a volume that are known to be at different stamps, at most.
const ZONES_MAX: usize = 64;

/// The next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// These snapshots are not the volume's any more.
    Delete(Vec<Stamp>),
    /// The head goes on from this snapshot; from nothing if zero.
    Branch(Stamp),
    /// What the head lacks of this snapshot is fetched; then the head is kept as it.
    Fill(Stamp),
    /// Everything is there.
    Publish,
}

/// Tells the next step. `has_head`: what a manifest's head has above its snapshots was fetched.
pub(crate) fn next(
    manifest: &Manifest,
    cuts: &BTreeSet<Stamp>,
    at: FeedEntry,
    has_head: bool,
) -> Step {
    let stays = |cut: &&Stamp| manifest.at(**cut).is_none();
    let gone: Vec<Stamp> = cuts.iter().filter(stays).copied().collect();
    if !gone.is_empty() {
        return Step::Delete(gone);
    }
    let missing = manifest.versions.iter().find(|v| !cuts.contains(&v.cut));
    let pin = manifest.pin();
    // Versions come in the order of their cuts, so that what one goes back to is here; and the head comes last.
    let (cut, parent) = match (missing, manifest.head) {
        (Some(version), _) => (version.cut, version.parent),
        (None, Some(parent)) if manifest.is_rolled_back() => {
            return match (at.base, at.reach) == (parent, parent) {
                true => Step::Publish,
                false => Step::Branch(parent),
            };
        }
        (None, Some(_)) if has_head => return Step::Publish,
        (None, Some(parent)) => (pin, parent),
        (None, None) if (at.base, at.reach) == (pin, pin) => return Step::Publish,
        (None, None) => return Step::Branch(pin),
    };
    let is_parent = (at.base, at.reach) == (parent, parent);
    let leads = manifest.leads_to(at.reach, cut) && at.base >= parent;
    match is_parent || leads {
        true => Step::Fill(cut),
        false => Step::Branch(parent),
    }
}

/// Up to which stamp which part of the head is whole: parts by the block before which they end, rising. A
/// snapshot may go while it is fetched; what came of it counts for the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Zones(Vec<(u64, Stamp)>);

impl Zones {
    /// All of it is whole up to a stamp.
    pub fn all(base: Stamp) -> Self {
        Self(vec![(u64::MAX, base)])
    }

    /// The stamp of a block, and the block before which that ends.
    pub fn at(&self, lba: u64) -> (Stamp, u64) {
        let zone = self.0.iter().find(|(until, _)| lba < *until);
        zone.map_or((Stamp(0), u64::MAX), |(until, stamp)| (*stamp, *until))
    }

    /// Everything before a block is whole up to a stamp.
    pub fn passed(&mut self, until: u64, stamp: Stamp) {
        self.0.retain(|(end, _)| *end > until);
        if until > 0 {
            self.0.insert(0, (until, stamp));
        }
        while self.0.len() > ZONES_MAX {
            let (_, low) = self.0.remove(1);
            if let Some(next) = self.0.get_mut(1) {
                next.1 = next.1.min(low);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use esker_engine::format::checkpoint::{GroupEntry, Jump};
    use esker_engine::format::manifest::ManifestVersion;
    use std::sync::Arc;

    fn manifest(versions: &[(u64, u64)], jumps: &[(u64, u64)]) -> Manifest {
        let version = |(cut, parent): &(u64, u64)| ManifestVersion {
            cut: Stamp(*cut),
            parent: Stamp(*parent),
            meta: Arc::default(),
        };
        let jump = |(at, to): &(u64, u64)| Jump {
            at: Stamp(*at),
            to: Stamp(*to),
        };
        Manifest {
            state: GroupEntry {
                max_stamp: Stamp(versions.last().map_or(0, |(cut, _)| *cut)),
                jumps: jumps.iter().map(jump).collect(),
                ..GroupEntry::default()
            },
            versions: versions.iter().map(version).collect(),
            head: None,
        }
    }

    /// Carries the steps out; tells which there were.
    fn run(manifest: &Manifest, cuts: &[u64], base: u64, reach: u64) -> Vec<Step> {
        let mut cuts: BTreeSet<Stamp> = cuts.iter().map(|cut| Stamp(*cut)).collect();
        let (base, reach) = (Stamp(base), Stamp(reach));
        let mut at = FeedEntry { base, reach };
        let mut has_head = false;
        let mut steps = Vec::new();
        while steps.last() != Some(&Step::Publish) {
            assert!(steps.len() < 50, "{steps:?}");
            let step = next(manifest, &cuts, at, has_head);
            match &step {
                Step::Delete(gone) => cuts.retain(|cut| !gone.contains(cut)),
                Step::Branch(to) => {
                    assert!(to.0 == 0 || cuts.contains(to), "{steps:?}");
                    at = FeedEntry {
                        base: *to,
                        reach: *to,
                    };
                }
                Step::Fill(cut) if manifest.at(*cut).is_none() => {
                    (at.reach, has_head) = (at.reach.max(*cut), true);
                }
                Step::Fill(cut) => {
                    cuts.insert(*cut);
                    at = FeedEntry {
                        base: *cut,
                        reach: *cut,
                    };
                }
                Step::Publish => {}
            }
            steps.push(step);
        }
        steps
    }

    use Step::{Branch, Delete, Fill, Publish};

    #[test]
    fn a_head_that_leads_on_is_filled_and_nothing_else() {
        let m = manifest(&[(10, 0), (40, 10)], &[]);
        assert_eq!(run(&m, &[10], 25, 25), [Fill(Stamp(40)), Publish]);
        assert_eq!(run(&m, &[10], 10, 33), [Fill(Stamp(40)), Publish]);
        assert_eq!(run(&m, &[10, 40], 40, 40), [Publish]);
    }

    #[test]
    fn an_empty_replica_gets_every_version_in_order() {
        let m = manifest(&[(10, 0), (20, 10), (40, 10)], &[(30, 10)]);
        let all = [
            Fill(Stamp(10)),
            Fill(Stamp(20)),
            Branch(Stamp(10)),
            Fill(Stamp(40)),
            Publish,
        ];
        assert_eq!(run(&m, &[], 0, 0), all);
    }

    #[test]
    fn a_head_that_a_rollback_left_behind_branches_off() {
        let m = manifest(&[(10, 0), (40, 10)], &[(30, 10)]);
        let steps = [Branch(Stamp(10)), Fill(Stamp(40)), Publish];
        assert_eq!(run(&m, &[10], 25, 25), steps);
        // What came of a version that is gone reaches past it.
        assert_eq!(run(&m, &[10], 10, 25), steps);
        // This one was there when it happened, and has seen something since.
        assert_eq!(run(&m, &[10], 31, 31), [Fill(Stamp(40)), Publish]);
        // And this one nothing: it is what it went back to.
        assert_eq!(run(&m, &[10], 10, 10), [Fill(Stamp(40)), Publish]);
    }

    #[test]
    fn what_a_rollback_left_and_kept_does_not_lead_on() {
        let m = manifest(&[(10, 0), (30, 10), (40, 10)], &[(30, 10)]);
        let steps = [Fill(Stamp(30)), Branch(Stamp(10)), Fill(Stamp(40)), Publish];
        assert_eq!(run(&m, &[10], 25, 25), steps);
        assert_eq!(run(&m, &[10, 30], 30, 30), steps[1..]);
    }

    #[test]
    fn what_is_not_there_any_more_goes_first() {
        let m = manifest(&[(10, 0), (40, 10)], &[]);
        let steps = [Delete(vec![Stamp(15)]), Fill(Stamp(40)), Publish];
        assert_eq!(run(&m, &[10, 15], 25, 25), steps);
    }

    #[test]
    fn who_lags_behind_all_that_is_remembered_begins_anew() {
        let mut m = manifest(&[(40, 0)], &[]);
        m.state.jumps_since = Stamp(35);
        let steps = [Branch(Stamp(0)), Fill(Stamp(40)), Publish];
        assert_eq!(run(&m, &[], 25, 25), steps);
    }

    #[test]
    fn a_head_that_no_snapshot_is_comes_last_and_is_kept_as_none() {
        let of_head = |versions, jumps, max_stamp, parent| Manifest {
            head: Some(Stamp(parent)),
            state: GroupEntry {
                max_stamp: Stamp(max_stamp),
                ..manifest(versions, jumps).state
            },
            ..manifest(versions, jumps)
        };
        let m = of_head(&[(10, 0), (40, 10)], &[], 55, 40);
        assert_eq!(
            run(&m, &[10], 25, 25),
            [Fill(Stamp(40)), Fill(Stamp(55)), Publish]
        );
        assert_eq!(run(&m, &[10, 40], 50, 50), [Fill(Stamp(55)), Publish]);
        assert_eq!(
            run(&m, &[10, 40], 40, 48),
            [Fill(Stamp(55)), Publish],
            "goes on after a crash"
        );
        let m = of_head(&[], &[], 55, 0);
        assert_eq!(run(&m, &[], 0, 0), [Fill(Stamp(55)), Publish]);
        // The rollback is the last thing that happened.
        let m = of_head(&[(10, 0), (40, 10)], &[(55, 10)], 55, 10);
        let steps = [Branch(Stamp(10)), Publish];
        assert_eq!(run(&m, &[10, 40], 50, 50), steps);
        assert_eq!(run(&m, &[10, 40], 10, 10), steps[1..]);
        // What that left was kept.
        let m = of_head(&[(10, 0), (55, 10)], &[(55, 10)], 55, 10);
        let steps = [Fill(Stamp(55)), Branch(Stamp(10)), Publish];
        assert_eq!(run(&m, &[10], 50, 50), steps);
        assert_eq!(run(&m, &[10, 55], 10, 10), steps[2..]);
        // And something was written since.
        let m = of_head(&[(10, 0), (40, 10)], &[(55, 10)], 60, 10);
        let steps = [Branch(Stamp(10)), Fill(Stamp(60)), Publish];
        assert_eq!(run(&m, &[10, 40], 50, 50), steps);
        assert_eq!(run(&m, &[10, 40], 57, 57), steps[1..]);
    }

    #[test]
    fn what_came_of_a_snapshot_that_went_counts_for_the_next() {
        let mut zones = Zones::all(Stamp(5));
        assert_eq!(zones.at(7), (Stamp(5), u64::MAX));
        zones.passed(100, Stamp(20));
        assert_eq!(zones.at(99), (Stamp(20), 100));
        assert_eq!(zones.at(100), (Stamp(5), u64::MAX));
        zones.passed(50, Stamp(30));
        assert_eq!(zones.at(0), (Stamp(30), 50));
        assert_eq!(zones.at(50), (Stamp(20), 100));
        zones.passed(150, Stamp(40));
        assert_eq!(zones.at(149), (Stamp(40), 150));
        assert_eq!(zones.at(150), (Stamp(5), u64::MAX));
        for n in 0..200 {
            zones.passed(1000 - n, Stamp(50 + n));
        }
        assert!(zones.0.len() <= ZONES_MAX);
        assert_eq!(zones.at(u64::MAX - 1).0, Stamp(5));
        assert_eq!(zones.at(0).0, Stamp(249));
    }
}
