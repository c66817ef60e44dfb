//! Snapshots of volumes of three copies.

use super::catalog::Change;
use super::client::Client;
use super::oracle::Frozen;
use super::snapshots::{Asked, What, SNAPSHOTS_MAX};
use super::world::{Purpose, World};
use esker_base::num::to_usize;
use esker_base::Stamp;
use esker_engine::format::versions::SnapshotMeta;
use esker_node::admin::{AdminError, AdminReply, AdminRequest};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What is compared of a replica's snapshot.
type Told = (Stamp, Arc<SnapshotMeta>, Option<u64>, u64);

impl World {
    /// The node that serves a volume of three, if an operator can reach it.
    pub(crate) fn leader_of(&self, name: &str) -> Option<usize> {
        let leads = |h: &usize| {
            let node = self.hosts[*h].node.as_ref();
            self.may_be_told(*h) && node.is_some_and(|n| n.serves(name))
        };
        (0..self.hosts.len()).find(leads)
    }

    /// What is said of snapshots of a volume of three is compared at the end, of all replicas; what they
    /// hold is seen by those who read the volume once it has gone back to one.
    pub(crate) fn play_with_three(&mut self, slot: usize, choice: u64) {
        let Some(volume) = &self.slots[slot].volume else {
            return;
        };
        let name = volume.name.clone();
        let Some(host) = self.leader_of(&name) else {
            return;
        };
        let (born, step) = (volume.born, self.step);
        let Some(volume) = self.slots[slot].volume.as_mut() else {
            return;
        };
        let snapshot = volume.kept.sure.keys().next().cloned();
        if (45..60).contains(&choice) && self.plan.three_go_back && snapshot.is_some() {
            let at = to_usize(choice) % volume.kept.sure.len();
            let snapshot = volume.kept.sure.keys().nth(at).cloned().unwrap_or_default();
            let keep = choice.is_multiple_of(2).then(|| volume.kept.fresh_name());
            let back = Change::Rollback {
                snapshot,
                keep,
                asked: 0,
            };
            return self.want(slot, back);
        }
        let (what, request) = match snapshot {
            Some(snapshot) if choice >= 60 || volume.kept.sure.len() >= SNAPSHOTS_MAX => {
                volume.kept.deleted.insert(snapshot.clone());
                let request = AdminRequest::SnapshotDelete {
                    volume: name,
                    name: snapshot.clone(),
                };
                (What::Delete { name: snapshot }, request)
            }
            _ => {
                let snapshot = volume.kept.fresh_name();
                volume.kept.asked.insert(snapshot.clone());
                let request = AdminRequest::SnapshotCreate {
                    volume: name,
                    name: snapshot.clone(),
                    labels: BTreeMap::new(),
                };
                (What::Create { name: snapshot }, request)
            }
        };
        let asked = Asked {
            slot,
            born,
            step,
            what,
        };
        self.ask_operator(host, request, Purpose::Snapshot(asked));
    }

    pub(crate) fn three_answered(&mut self, asked: &Asked, result: Result<AdminReply, AdminError>) {
        let Some(volume) = self.slots[asked.slot].volume.as_mut() else {
            return;
        };
        match (&asked.what, result) {
            (What::Create { name }, Ok(_)) => {
                let frozen = volume.oracle.freeze(asked.step);
                volume.kept.sure.insert(name.clone(), frozen);
                self.stats.did("snapshots of three taken");
            }
            (What::Delete { name }, Ok(_)) => {
                volume.kept.sure.remove(name);
                self.stats.did("snapshots of three deleted");
            }
            // A leader that is none any more; one that an earlier attempt has deleted.
            (
                _,
                Err(
                    AdminError::Refused(_)
                    | AdminError::NotLeading(_)
                    | AdminError::Unsure(_)
                    | AdminError::NotFound(_),
                ),
            ) => {}
            (what, result) => self.violate(format!("{what:?} gave {result:?}")),
        }
    }

    /// Rollbacks of volumes of three that wait for clients to leave. Nobody attaches until an answer comes.
    pub(crate) fn pursue_rollbacks_of_three(&mut self) {
        for slot in 0..self.slots.len() {
            let s = &self.slots[slot];
            let attached = |c: &Client| c.slot == slot && c.conn.is_some() && c.snapshot.is_none();
            let (Some(volume), Some(Change::Rollback { snapshot, keep, .. })) =
                (&s.volume, &s.wanted)
            else {
                continue;
            };
            let asked =
                |(_, p): &(usize, Purpose)| matches!(p, Purpose::GoBack(of, ..) if *of == slot);
            if self.admin.values().any(asked) || self.clients.iter().any(attached) {
                continue;
            }
            let (name, snapshot, keep) = (volume.name.clone(), snapshot.clone(), keep.clone());
            let Some(frozen) = volume.kept.sure.get(&snapshot).cloned() else {
                self.slots[slot].wanted = None;
                continue;
            };
            let Some(host) = self.leader_of(&name) else {
                continue;
            };
            let step = self.step;
            if let Some(volume) = self.slots[slot].volume.as_mut() {
                // It may be done and never answered.
                volume.oracle.rolled_back(&frozen, false, step);
                volume.kept.asked.extend(keep.clone());
            }
            let request = AdminRequest::SnapshotRollback {
                volume: name,
                name: snapshot.clone(),
                keep: Some(keep),
                force: false,
            };
            self.ask_operator(host, request, Purpose::GoBack(slot, frozen));
            return;
        }
    }

    /// A rollback of a volume of three is answered.
    pub(crate) fn gone_back(
        &mut self,
        slot: usize,
        to: &Frozen,
        result: Result<AdminReply, AdminError>,
    ) {
        self.slots[slot].wanted = None;
        let step = self.step;
        let Some(volume) = self.slots[slot].volume.as_mut() else {
            return;
        };
        match result {
            Ok(_) => {
                volume.oracle.rolled_back(to, true, step);
                self.stats.did("volumes of three rolled back");
            }
            // No leader any more, or deleted meanwhile: done or not.
            Err(
                AdminError::Refused(_)
                | AdminError::NotLeading(_)
                | AdminError::Unsure(_)
                | AdminError::NotFound(_),
            ) => {}
            Err(error) => self.violate(format!("a volume of three is not rolled back: {error}")),
        }
    }

    /// A process ended: rollbacks that it was asked for are done or not, and nobody waits for them.
    pub(crate) fn rollbacks_interrupted(&mut self, host: usize) {
        let asked = self.admin.values().filter(|(at, _)| *at == host);
        let slots: Vec<usize> = asked
            .filter_map(|(_, purpose)| match purpose {
                Purpose::GoBack(slot, ..) => Some(*slot),
                _ => None,
            })
            .collect();
        slots
            .into_iter()
            .for_each(|slot| self.slots[slot].wanted = None);
    }

    /// Replicas that are at one index have the same snapshots, and those that were answered.
    pub(crate) fn compare_snapshots(&mut self, slot: usize, hosts: &[usize]) {
        let all: Vec<Vec<Told>> = hosts
            .iter()
            .filter_map(|h| self.hosts[*h].node.as_ref())
            .map(|node| {
                let views = node.engine().snapshots(self.group_of(slot)).into_iter();
                views
                    .map(|v| (v.cut, v.meta, v.referenced_blocks, v.logical_hash))
                    .collect()
            })
            .collect();
        let Some(first) = all.first() else { return };
        if all.iter().any(|told| told != first) {
            return self.violate(format!("snapshots of volume {slot} differ: {all:?}"));
        }
        let Some(volume) = &self.slots[slot].volume else {
            return;
        };
        // Points are the node's own.
        let named = first.iter().filter(|told| !told.1.is_point());
        let names: BTreeSet<&String> = named.map(|told| &told.1.name).collect();
        let kept = &volume.kept;
        let lost = |name: &&String| !names.contains(name) && !kept.deleted.contains(*name);
        if let Some(name) = kept.sure.keys().find(lost) {
            return self.violate(format!("snapshot {name} of volume {slot} is gone"));
        }
        if let Some(name) = names.iter().find(|name| !kept.asked.contains(**name)) {
            return self.violate(format!("nobody asked for snapshot {name} of volume {slot}"));
        }
        if !names.is_empty() {
            self.stats.did("comparisons of snapshots of three");
        }
    }
}
