//! What a schedule asks for now. No clock, no store: the moment and the list of snapshots come in, names come out.

use super::policy::{Keeper, Policy};
use std::collections::BTreeSet;
use time::OffsetDateTime;

/// What the names of automatic snapshots begin with.
pub const NAME_PREFIX: &str = "auto-";

/// A snapshot of the volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub name: String,
    /// Its stamp: snapshots were taken in this order, whatever the clock said.
    pub stamp: u64,
    /// When it was taken, in seconds since the Unix epoch.
    pub created_unix: u64,
    /// A schedule took it. Others are never deleted, nor do they count.
    pub is_automatic: bool,
    /// Sessions that read it.
    pub sessions: u32,
}

/// A snapshot to take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// Its name.
    pub name: String,
    /// The periods that have none.
    pub periods: String,
}

/// A snapshot that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its name.
    pub name: String,
    /// The rules that need it.
    pub rules: String,
}

/// What is to become of the automatic snapshots of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Kept, newest first.
    pub keep: Vec<Kept>,
    /// No rule needs them, newest first.
    pub delete: Vec<String>,
    /// No rule needs them, and sessions read them: deleted once those have gone.
    pub postpone: Vec<String>,
}

/// The snapshot to take now, if one is due: a period of the schedule has none. However many periods went by
/// without, it is one.
#[must_use]
pub fn due(policy: &Policy, now_unix: u64, snapshots: &[Known]) -> Option<Due> {
    let has_one = |period: super::policy::Period| {
        let mut automatic = snapshots.iter().filter(|s| s.is_automatic);
        automatic.any(|s| period.of(s.created_unix) == period.of(now_unix))
    };
    let without = policy.periods().filter(|period| !has_one(*period));
    let periods: Vec<String> = without.map(|period| period.to_string()).collect();
    if periods.is_empty() {
        return None;
    }
    let base = name(now_unix);
    let is_free = |name: &String| snapshots.iter().all(|s| s.name != *name);
    // Ends: there are fewer snapshots than numbers.
    let numbered = (2..).map(|n: u64| format!("{base}-{n}"));
    let name = std::iter::once(base.clone())
        .chain(numbered)
        .find(is_free)?;
    Some(Due {
        name,
        periods: periods.join(", "),
    })
}

/// Which automatic snapshots the schedule keeps: every rule the newest of each of its periods, and one that any
/// rule keeps stays. Newest is what was taken last, whatever the clock said.
#[must_use]
pub fn plan(policy: &Policy, snapshots: &[Known]) -> Plan {
    let mut automatic: Vec<&Known> = snapshots.iter().filter(|s| s.is_automatic).collect();
    automatic.sort_by_key(|s| std::cmp::Reverse(s.stamp));
    let mut seen: Vec<BTreeSet<u64>> = vec![BTreeSet::new(); policy.rules().len()];
    let mut plan = Plan::default();
    for snapshot in automatic {
        let mut rules = Vec::new();
        for (rule, seen) in policy.rules().iter().zip(&mut seen) {
            let place = match rule.keeper {
                Keeper::NewestOf(period) => period.of(snapshot.created_unix),
                Keeper::Last => snapshot.stamp,
            };
            let most = usize::try_from(rule.keep).unwrap_or(usize::MAX);
            if seen.len() < most && seen.insert(place) {
                rules.push(rule.keeper.to_string());
            }
        }
        let name = snapshot.name.clone();
        match (rules.is_empty(), snapshot.sessions) {
            (false, _) => plan.keep.push(Kept {
                name,
                rules: rules.join(", "),
            }),
            (true, 0) => plan.delete.push(name),
            (true, _) => plan.postpone.push(name),
        }
    }
    plan
}

/// The name of an automatic snapshot: as text, names are in the order of time. It has no colons, which the names
/// of exports cannot have.
fn name(unix: u64) -> String {
    let time = i64::try_from(unix).ok();
    match time.map(OffsetDateTime::from_unix_timestamp) {
        Some(Ok(t)) => format!(
            "{NAME_PREFIX}{:04}-{:02}-{:02}T{:02}.{:02}.{:02}Z",
            t.year(),
            u8::from(t.month()),
            t.day(),
            t.hour(),
            t.minute(),
            t.second()
        ),
        _ => format!("{NAME_PREFIX}{unix}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// 2026-11-21 10:05:07.
    const NOW: u64 = 1_795_255_507;
    const HOUR: u64 = 3600;
    const DAY: u64 = 24 * HOUR;

    fn policy(text: &str) -> Policy {
        text.parse().unwrap()
    }

    fn automatic(stamp: u64, created_unix: u64) -> Known {
        Known {
            name: format!("{}-{stamp}", name(created_unix)),
            stamp,
            created_unix,
            is_automatic: true,
            sessions: 0,
        }
    }

    /// Lives by a schedule from one moment on; gives the snapshots that are there at each of these moments.
    fn live(policy: &Policy, moments: &[u64]) -> Vec<Vec<Known>> {
        let mut all: Vec<Known> = Vec::new();
        let mut history = Vec::new();
        for (stamp, now) in (1..).zip(moments) {
            if let Some(due) = due(policy, *now, &all) {
                assert!(all.iter().all(|s| s.name != due.name), "{due:?}");
                let known = automatic(stamp, *now);
                all.push(Known {
                    name: due.name,
                    ..known
                });
            }
            let plan = plan(policy, &all);
            all.retain(|s| !plan.delete.contains(&s.name));
            history.push(all.clone());
        }
        history
    }

    #[test]
    fn names_tell_the_time_and_are_taken_once() {
        let policy = policy("hourly keep 2");
        let first = due(&policy, NOW, &[]).unwrap();
        assert_eq!(first.name, "auto-2026-11-21T10.05.07Z");
        assert_eq!(first.periods, "hourly");
        // Somebody's own snapshot has the name, and is no automatic one.
        let own = Known {
            name: first.name.clone(),
            created_unix: NOW,
            ..Known::default()
        };
        let second = due(&policy, NOW, &[own]).unwrap();
        assert_eq!(second.name, "auto-2026-11-21T10.05.07Z-2");
    }

    #[test]
    fn one_is_due_in_each_period_and_only_one_after_a_pause() {
        let policy = policy("every 15m keep 100, daily keep 7");
        let begin = NOW - NOW % DAY;
        let minutes: Vec<u64> = (0..120).map(|m| begin + m * 60).collect();
        assert_eq!(live(&policy, &minutes).last().unwrap().len(), 8);
        // Two hours away: one snapshot, not eight.
        let late = begin + 4 * HOUR;
        let pause: Vec<u64> = minutes.iter().copied().chain([late, late + 1]).collect();
        let all = live(&policy, &pause).pop().unwrap();
        assert_eq!(all.len(), 9);
        assert_eq!(all.last().unwrap().created_unix, late);
    }

    #[test]
    fn rules_keep_together_what_each_needs() {
        let policy = policy("hourly keep 3, daily keep 2, last keep 1");
        let hours: Vec<u64> = (0..72).map(|h| NOW - NOW % DAY + h * HOUR).collect();
        let all = live(&policy, &hours).pop().unwrap();
        let ages: Vec<u64> = all
            .iter()
            .map(|s| (hours[71] - s.created_unix) / HOUR)
            .collect();
        assert_eq!(ages, [24, 2, 1, 0], "the end of yesterday and three hours");
        let kept = plan(&policy, &all).keep;
        assert_eq!(kept[0].rules, "hourly, daily, last");
        assert_eq!(kept[3].rules, "daily");
    }

    #[test]
    fn others_are_left_alone_and_attached_ones_wait() {
        let policy = policy("hourly keep 1");
        let mut all: Vec<Known> = (0..4).map(|n| automatic(n, NOW + n * HOUR)).collect();
        all[0].is_automatic = false;
        all[1].sessions = 2;
        let plan = plan(&policy, &all);
        assert_eq!(plan.keep.len(), 1);
        assert_eq!(plan.keep[0].name, all[3].name);
        assert_eq!(plan.delete, [all[2].name.clone()]);
        assert_eq!(plan.postpone, [all[1].name.clone()]);
    }

    /// A clock that ran years ahead and was put right: what was taken meanwhile does not crowd out what comes.
    #[test]
    fn a_clock_that_was_ahead_does_no_lasting_harm() {
        let policy = policy("hourly keep 3");
        let ahead = NOW + 3650 * DAY;
        let moments: Vec<u64> = (0..5)
            .map(|h| ahead + h * HOUR)
            .chain((0..5).map(|h| NOW + h * HOUR))
            .collect();
        let history = live(&policy, &moments);
        for (now, all) in moments.iter().zip(&history).skip(5) {
            assert!(
                all.iter().any(|s| s.created_unix == *now),
                "taken and kept at {now}"
            );
        }
        assert!(
            history[9].iter().all(|s| s.created_unix < ahead),
            "{:?}",
            history[9]
        );
    }

    /// A clock that is put back an hour: nothing is taken twice, and nothing deleted for it.
    #[test]
    fn a_clock_that_goes_back_takes_none_twice() {
        let policy = policy("hourly keep 10");
        let moments = [NOW, NOW + HOUR, NOW + 10, NOW + HOUR + 1, NOW + 2 * HOUR];
        let history = live(&policy, &moments);
        let counts: Vec<usize> = history.iter().map(Vec::len).collect();
        assert_eq!(counts, [1, 2, 2, 2, 3]);
    }

    fn any_policy() -> impl Strategy<Value = Policy> {
        let rule = prop_oneof![
            (1u64..100_000, 1u32..6).prop_map(|(s, n)| format!("every {s}s keep {n}")),
            (1u32..6).prop_map(|n| format!("hourly keep {n}")),
            (1u32..6).prop_map(|n| format!("daily keep {n}")),
            (1u32..6).prop_map(|n| format!("weekly keep {n}")),
            (1u32..6).prop_map(|n| format!("monthly keep {n}")),
            (1u32..6).prop_map(|n| format!("yearly keep {n}")),
            (1u32..6).prop_map(|n| format!("last keep {n}")),
        ];
        prop::collection::vec(rule, 1..6).prop_filter_map("no period, or one twice", |rules| {
            rules.join(", ").parse().ok()
        })
    }

    fn any_snapshots() -> impl Strategy<Value = Vec<Known>> {
        let one = (0u64..3 * 365 * DAY, any::<bool>(), 0u32..4);
        prop::collection::vec(one, 0..60).prop_map(|all| {
            let known = (1..)
                .zip(all)
                .map(|(stamp, (back, is_automatic, sessions))| Known {
                    is_automatic,
                    sessions: sessions.saturating_sub(2),
                    ..automatic(stamp, NOW - back)
                });
            known.collect()
        })
    }

    proptest! {
        /// Against the definition, rule by rule: what a rule needs is kept, at most as many as it says, nothing
        /// else is, and nobody's own snapshot is touched.
        #[test]
        fn every_rule_has_what_it_needs_and_no_more(
            policy in any_policy(),
            snapshots in any_snapshots(),
        ) {
            let plan = plan(&policy, &snapshots);
            let mut needed: BTreeSet<&str> = BTreeSet::new();
            for rule in policy.rules() {
                // The newest of each period, by period.
                let mut newest: BTreeMap<u64, &Known> = BTreeMap::new();
                for s in snapshots.iter().filter(|s| s.is_automatic) {
                    let place = match rule.keeper {
                        Keeper::NewestOf(period) => period.of(s.created_unix),
                        Keeper::Last => s.stamp,
                    };
                    let at = newest.entry(place).or_insert(s);
                    if at.stamp < s.stamp {
                        *at = s;
                    }
                }
                let mut newest: Vec<&Known> = newest.into_values().collect();
                newest.sort_by_key(|s| s.stamp);
                let most = usize::try_from(rule.keep).unwrap();
                needed.extend(newest.iter().rev().take(most).map(|s| s.name.as_str()));
            }
            let kept: BTreeSet<&str> = plan.keep.iter().map(|k| k.name.as_str()).collect();
            prop_assert_eq!(&kept, &needed);
            let most: u32 = policy.rules().iter().map(|r| r.keep).sum();
            prop_assert!(kept.len() <= usize::try_from(most).unwrap());
            let known = |name: &String| snapshots.iter().find(|s| s.name == *name).unwrap();
            for name in &plan.delete {
                prop_assert!(known(name).is_automatic && known(name).sessions == 0);
            }
            prop_assert!(plan.postpone.iter().all(|name| known(name).sessions > 0));
            let automatic = snapshots.iter().filter(|s| s.is_automatic).count();
            prop_assert_eq!(kept.len() + plan.delete.len() + plan.postpone.len(), automatic);
        }

        /// Whatever the clock does: at most one is taken at a time, what was just taken is kept, and a second look
        /// at the same moment does nothing.
        #[test]
        fn a_schedule_settles_at_once(
            policy in any_policy(),
            steps in prop::collection::vec(-50_000i64..200_000, 1..80),
        ) {
            let mut now = NOW;
            let moments: Vec<u64> = steps
                .iter()
                .map(|step| {
                    now = now.saturating_add_signed(*step);
                    now
                })
                .collect();
            let history = live(&policy, &moments);
            for (now, all) in moments.iter().zip(&history) {
                prop_assert_eq!(due(&policy, *now, all), None);
                prop_assert!(plan(&policy, all).delete.is_empty());
            }
        }
    }
}
