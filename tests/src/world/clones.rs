//! Clones of volumes of three: they begin on all three nodes at one entry of their origin's log, and a node that was past
//! it without applying it gets a copy like any other.
//!
//! The operator here does what a cluster does: where a member of a clone is missing for long on a node that answers, it has
//! that node make another copy, and has the clone's leader take it in the missing one's place.

use super::catalog::Volume;
use super::host::{index_of, place_of, Host};
use super::operator::Growth;
use super::oracle::Frozen;
use super::world::{Purpose, World};
use esker_base::{GroupId, Place, ReplicaId, VolumeId};
use esker_crypto::{KeyId, KeyName, WrappedKey};
use esker_engine::format::checkpoint::Membership;
use esker_node::admin::{AdminError, AdminReply, AdminRequest, ReplicaSpec, VolumeReport};
use esker_node::Event;
use std::collections::{BTreeMap, BTreeSet};

/// Virtual time for which a copy is missing before it is made anew.
const MISSING_NS: u64 = 1_500_000_000;

/// A clone, or a place for one.
#[derive(Debug, Default)]
pub(crate) struct Late {
    /// Its group, once it has begun.
    pub group: Option<GroupId>,
    /// A request that makes it is on its way.
    asked: bool,
    /// Its key is being placed.
    placing: Option<Placing>,
    /// Since when nodes lack their copies.
    missing: BTreeMap<usize, u64>,
    /// The node that gets another one, the copy's id, and in whose place.
    mends: Option<(usize, ReplicaId, ReplicaId)>,
    made: u64,
    /// A request about that is on its way.
    waits: Option<u64>,
}

/// The key of a clone that is about to begin.
#[derive(Debug)]
struct Placing {
    key: WrappedKey,
    /// Nodes that were asked to keep it, and those that do.
    asked: BTreeSet<usize>,
    kept: BTreeSet<usize>,
    request: AdminRequest,
    ask: CloneAsk,
    origin: String,
}

/// A clone that was asked for.
#[derive(Clone, Debug)]
pub(crate) struct CloneAsk {
    slot: usize,
    name: String,
    /// What the snapshot may hold.
    frozen: Frozen,
}

impl World {
    /// Makes clones, and sees to it that each has three copies.
    pub(crate) fn pursue_clones_of_three(&mut self) {
        let slots: Vec<usize> = self.late.keys().copied().collect();
        if self.plan.encrypted > 0 && !slots.is_empty() && self.rng.chance(100) {
            self.give_lacking_keys();
        }
        for slot in slots {
            match self.slots[slot].volume.is_some() {
                true => self.mend_clone(slot),
                false => self.begin_clone(slot),
            }
        }
    }

    fn begin_clone(&mut self, slot: usize) {
        let late = self.late.get(&slot);
        if late.is_some_and(|late| late.placing.is_some()) {
            return self.place_key(slot);
        }
        let is_asked = late.is_some_and(|late| late.asked);
        if self.is_calm() || is_asked || !self.rng.chance(400) {
            return;
        }
        let volumes = self.slots.iter();
        let volumes = volumes.filter_map(|s| Some((s.volume.as_ref()?, s.key.is_some())));
        let snapshots = volumes.flat_map(|(v, sealed)| {
            let all = v.kept.sure.iter();
            all.map(move |(snapshot, frozen)| (v, snapshot.clone(), frozen.clone(), sealed))
        });
        let snapshots: Vec<_> = snapshots
            .map(|(v, snapshot, frozen, sealed)| (v.name.clone(), snapshot, frozen, sealed))
            .collect();
        if snapshots.is_empty() {
            return;
        }
        let at = self.rng.index(snapshots.len());
        let (volume, snapshot, frozen, is_sealed) = snapshots[at].clone();
        let Some(leader) = self.leader_of(&volume) else {
            return;
        };
        let name = self.slots[slot].fresh_name(slot);
        let born = is_sealed.then(|| VolumeId(u128::from(self.rng.next()) << 8 | slot as u128));
        let request = AdminRequest::VolumeClone {
            volume: volume.clone(),
            snapshot,
            name: name.clone(),
            labels: BTreeMap::new(),
            born,
        };
        let ask = CloneAsk { slot, name, frozen };
        let Some(late) = self.late.get_mut(&slot) else {
            return;
        };
        if let (Some(volume_id), Some(key)) = (born, KeyId::new(1)) {
            let (_, key) = self.provider.make(KeyName {
                volume: volume_id,
                key,
            });
            self.clone_keys.push(key.clone());
            late.placing = Some(Placing {
                key,
                asked: BTreeSet::new(),
                kept: BTreeSet::new(),
                request,
                ask,
                origin: volume,
            });
            return;
        }
        late.asked = true;
        self.ask_operator(leader, request, Purpose::CloneOfThree(ask));
    }

    /// Has the nodes keep the key of a clone, and makes the clone when two do and one of them leads its origin.
    fn place_key(&mut self, slot: usize) {
        let Some(Placing { origin, .. }) = self.late.get(&slot).and_then(|l| l.placing.as_ref())
        else {
            return;
        };
        let leader = self.leader_of(&origin.clone());
        let told: Vec<usize> = (0..self.hosts.len())
            .filter(|h| self.may_be_told(*h))
            .collect();
        let is_calm = self.is_calm();
        let Some(late) = self.late.get_mut(&slot) else {
            return;
        };
        let Some(placing) = late.placing.as_mut().filter(|_| !is_calm) else {
            late.placing = None;
            return;
        };
        if let Some(leader) = leader.filter(|h| placing.kept.len() > 1 && placing.kept.contains(h))
        {
            let placing = late.placing.take();
            late.asked = true;
            if let Some(Placing { request, ask, .. }) = placing {
                self.ask_operator(leader, request, Purpose::CloneOfThree(ask));
            }
            return;
        }
        let key = placing.key.clone();
        let next = told.into_iter().find(|h| placing.asked.insert(*h));
        if let Some(host) = next {
            let request = AdminRequest::KeysPlace {
                keys: vec![key],
                fresh: false,
            };
            self.ask_operator(host, request, Purpose::KeyOfClone(slot, host));
        } else if self.rng.chance(100) {
            // A node did not, or has ended since.
            if let Some(placing) = self.late.get_mut(&slot).and_then(|l| l.placing.as_mut()) {
                placing.asked = placing.kept.clone();
            }
        }
    }

    pub(crate) fn key_placed(&mut self, slot: usize, host: usize, is_kept: bool) {
        let placing = self.late.get_mut(&slot).and_then(|l| l.placing.as_mut());
        if let Some(placing) = placing.filter(|_| is_kept) {
            placing.kept.insert(host);
        }
    }

    /// Nodes that lack keys of volumes that they have get them.
    pub(crate) fn give_lacking_keys(&mut self) {
        for host in 0..self.hosts.len() {
            let node = self.hosts[host].node.as_ref();
            let volumes = self.slots.iter().filter_map(|s| s.volume.as_ref());
            let mut lacking = volumes.filter(|v| node.is_some_and(|n| n.lacks_keys_of(&v.name)));
            if lacking.next().is_none() || !self.may_be_told(host) {
                continue;
            }
            self.stats.did("keys given to nodes that lacked them");
            let first = self.slots.iter().filter_map(|s| s.key.clone());
            let keys = first.chain(self.clone_keys.iter().cloned()).collect();
            self.ask_operator(
                host,
                AdminRequest::KeysPlace { keys, fresh: false },
                Purpose::Info,
            );
        }
    }

    pub(crate) fn clone_answered(&mut self, ask: CloneAsk, result: Result<AdminReply, AdminError>) {
        let (slot, step) = (ask.slot, self.step);
        let mut oracle = self.new_oracle();
        let Some(late) = self.late.get_mut(&slot) else {
            return;
        };
        late.asked = false;
        match result {
            Ok(AdminReply::Volume(report)) => {
                late.group = Some(GroupId(report.group));
                oracle.rolled_back(&ask.frozen, true, step);
                self.slots[slot].volume = Some(born(ask.name, &report, oracle));
                self.growth[slot] = Growth::new(report.size_bytes);
                let uuid = report.uuid.clone();
                let own = |key: &&WrappedKey| key.name().volume.to_string() == uuid;
                self.slots[slot].key = self.clone_keys.iter().find(own).cloned();
                self.stats.did(match report.encrypted {
                    true => "encrypted volumes of three cloned",
                    false => "volumes of three cloned",
                });
            }
            // It may begin all the same, and then nobody uses it.
            Err(
                AdminError::Refused(_)
                | AdminError::NotLeading(_)
                | AdminError::Unsure(_)
                | AdminError::NotFound(_),
            ) => self.stats.did("clones of three not made, or nobody knows"),
            result => self.violate(format!("a volume of three is not cloned: {result:?}")),
        }
    }

    /// A process ended: clones that it was asked for are made or not.
    pub(crate) fn clones_interrupted(&mut self, host: usize) {
        let asked = self.admin.values().filter(|(at, _)| *at == host);
        let slots = asked.filter_map(|(_, purpose)| match purpose {
            Purpose::CloneOfThree(ask) => Some(ask.slot),
            _ => None,
        });
        for slot in slots.collect::<Vec<_>>() {
            if let Some(late) = self.late.get_mut(&slot) {
                late.asked = false;
            }
        }
    }

    fn mend_clone(&mut self, slot: usize) {
        let (Some((leader, membership)), Some(late)) = (self.led(slot), self.late.get(&slot))
        else {
            return;
        };
        if late
            .waits
            .is_some_and(|token| self.admin.contains_key(&token))
        {
            return;
        }
        let Some(group) = late.group else { return };
        match late.mends {
            Some(_) if !self.rng.chance(100) => {}
            Some((host, new, old)) => {
                self.go_on_mending(slot, (host, new, old), leader, &membership)
            }
            None => self.look_for_missing(slot, group, &membership),
        }
    }

    /// Begins to mend a clone one of whose members has not been where it should be for long.
    fn look_for_missing(&mut self, slot: usize, group: GroupId, membership: &Membership) {
        let now = self.now;
        let mut begins = None;
        for member in &membership.places {
            let host = index_of(member.place);
            let node = self.hosts[host].node.as_ref();
            let lacks = node.is_some_and(|n| n.engine().group(group).is_none());
            let is_told = self.may_be_told(host);
            let Some(late) = self.late.get_mut(&slot) else {
                return;
            };
            if !lacks || !membership.voters.contains(&member.replica) {
                late.missing.remove(&host);
                continue;
            }
            let since = *late.missing.entry(host).or_insert(now);
            if is_told && now > since + MISSING_NS && membership.learners.is_empty() {
                begins = Some((host, member.replica));
            }
        }
        let Some(late) = self.late.get_mut(&slot) else {
            return;
        };
        if let Some((host, old)) = begins {
            late.made += 1;
            let new = ReplicaId(20_000 + slot as u64 * 1000 + late.made);
            late.mends = Some((host, new, old));
            self.stats.did("copies of clones made anew");
        }
    }

    fn go_on_mending(
        &mut self,
        slot: usize,
        (host, new, old): (usize, ReplicaId, ReplicaId),
        leader: usize,
        membership: &Membership,
    ) {
        let (Some(volume), Some(late)) = (&self.slots[slot].volume, self.late.get_mut(&slot))
        else {
            return;
        };
        let name = volume.name.clone();
        if membership.voters.contains(&new) {
            (late.mends, late.missing) = (None, BTreeMap::new());
            return;
        }
        let Some(group) = late.group.filter(|_| self.may_be_told(host)) else {
            return;
        };
        let mut places: BTreeMap<ReplicaId, Place> = membership
            .places
            .iter()
            .map(|m| (m.replica, m.place))
            .collect();
        places.insert(new, place_of(host));
        let node = self.hosts[host].node.as_ref();
        let here = node.and_then(|n| n.engine().group(group));
        let request = match here.map(|view| view.meta.replica) {
            Some(replica) if replica == new => AdminRequest::ReplicaAdd {
                volume: name,
                replica: new,
                replaces: Some(old).filter(|r| membership.voters.contains(r)),
                places,
            },
            // The entry that makes it has been applied meanwhile.
            Some(_) => {
                if let Some(late) = self.late.get_mut(&slot) {
                    late.mends = None;
                }
                return;
            }
            None => {
                self.hosts[host].told.extend(places);
                let mut all = Host::places(&self.plan);
                all.extend(self.hosts[host].told.clone());
                self.step_node(host, Event::Places(all));
                let led = self.hosts[leader].node.as_ref().map(|n| n.engine());
                let view = led.and_then(|engine| engine.group(group));
                let first = led.and_then(|engine| engine.size_to_begin_with(group));
                let (Some(view), Some(size_bytes)) = (view, first) else {
                    return;
                };
                AdminRequest::ReplicaCreate(ReplicaSpec {
                    name,
                    size_bytes,
                    labels: Default::default(),
                    volume: view.meta.volume,
                    group,
                    replica: new,
                    voters: membership.voters.clone(),
                    learns: true,
                    key: self.newest_key(slot),
                })
            }
        };
        let to = match &request {
            AdminRequest::ReplicaAdd { .. } => leader,
            _ => host,
        };
        if self.may_be_told(to) {
            if let Some(late) = self.late.get_mut(&slot) {
                late.waits = Some(self.next_token);
            }
            self.ask_operator(to, request, Purpose::MendClone);
        }
    }

    /// A part of a clone's mending is answered: whatever that is, it is looked at again.
    pub(crate) fn mend_answered(&mut self, result: &Result<AdminReply, AdminError>) {
        match result {
            Ok(_)
            | Err(
                AdminError::Refused(_)
                | AdminError::NotLeading(_)
                | AdminError::Unsure(_)
                | AdminError::Invalid(_)
                | AdminError::Exists(_)
                | AdminError::NotFound(_),
            ) => {}
            Err(error) => self.violate(format!("a copy of a clone is not made: {error}")),
        }
    }
}

fn born(name: String, report: &VolumeReport, oracle: super::oracle::Oracle) -> Volume {
    Volume {
        name,
        sizes: BTreeSet::from([report.size_bytes]),
        oracle,
        loss_asked: false,
        born: report.group,
        kept: super::snapshots::Kept::default(),
    }
}
