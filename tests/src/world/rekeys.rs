//! Other data keys for volumes of three. The operator here does what a cluster does: has whoever leads name the next key, has all
//! nodes with a copy keep it, and then has the leader open the epoch that writes under it. A crash may come at any point of that, and
//! another leader in between.

use super::host::index_of;
use super::world::{Purpose, World};
use esker_base::ReplicaId;
use esker_crypto::{KeyName, WrappedKey};
use esker_node::admin::{AdminError, AdminReply, AdminRequest};
use std::collections::{BTreeMap, BTreeSet};

/// Virtual time after which a node that does not take a key ends the attempt.
const PATIENCE_NS: u64 = 2_000_000_000;

/// A data key that a volume of three is to get.
#[derive(Debug)]
pub(crate) struct Renewal {
    slot: usize,
    begun: u64,
    key: Option<WrappedKey>,
    /// The members' replicas, and their nodes.
    members: BTreeMap<ReplicaId, usize>,
    kept: BTreeSet<usize>,
    /// A request about it that is on its way.
    waits: u64,
}

/// What a request of a renewal is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RenewalAsk {
    Next,
    Place(usize),
    Force,
}

impl World {
    /// Gives volumes of three other data keys, and has what is under older ones sealed anew.
    pub(crate) fn pursue_keys_of_three(&mut self) {
        if !self.plan.keys_of_three {
            return;
        }
        if self.rng.chance(100) {
            self.give_lacking_keys();
        }
        if !self.is_calm() && self.rng.chance(150) {
            let host = self.rng.index(self.hosts.len());
            if self.may_be_told(host) {
                self.ask_operator(host, AdminRequest::Reseal, Purpose::Reseal);
            }
        }
        match self.renewal.take() {
            Some(renewal) => self.renew_on(renewal),
            None if !self.is_calm() && self.rng.chance(60) => self.renew(),
            None => {}
        }
    }

    fn renew(&mut self) {
        let slot = self.rng.index(self.slots.len());
        let Some(volume) = self.slots[slot].volume.as_ref() else {
            return;
        };
        let name = volume.name.clone();
        let Some((leader, membership)) = self.led(slot).filter(|_| self.slots[slot].key.is_some())
        else {
            return;
        };
        let members = membership.places.iter();
        let mut members: BTreeMap<ReplicaId, usize> = members
            .map(|member| (member.replica, index_of(member.place)))
            .collect();
        if members.is_empty() {
            let first = self.plan.first_hosts(slot).into_iter();
            let first = first.map(|host| (super::host::replica_of(slot, host), host));
            members.extend(first);
        }
        self.renewal = Some(Renewal {
            slot,
            begun: self.now,
            key: None,
            members,
            kept: BTreeSet::new(),
            waits: self.next_token,
        });
        let request = AdminRequest::KeyNext { volume: name };
        self.ask_operator(leader, request, Purpose::Renewal(RenewalAsk::Next));
    }

    fn renew_on(&mut self, mut renewal: Renewal) {
        if self.admin.contains_key(&renewal.waits) {
            self.renewal = Some(renewal);
            return;
        }
        let is_late = self.now > renewal.begun + PATIENCE_NS;
        let volume = self.slots[renewal.slot].volume.as_ref();
        let (Some(key), Some(volume), false) = (renewal.key.clone(), volume, is_late) else {
            return self.stats.did("data keys of three given up");
        };
        let name = volume.name.clone();
        let mut left = renewal
            .members
            .values()
            .filter(|h| !renewal.kept.contains(h));
        let (host, request, ask) = match left.next().copied() {
            Some(host) if self.may_be_told(host) => {
                let (keys, fresh) = (vec![key], true);
                let request = AdminRequest::KeysPlace { keys, fresh };
                (host, request, RenewalAsk::Place(host))
            }
            Some(_) => {
                self.renewal = Some(renewal);
                return;
            }
            None => {
                let Some(leader) = self.leader_of(&name) else {
                    self.renewal = Some(renewal);
                    return;
                };
                let key_id = key.name().key.get();
                // From now on it may be in the log, and no other key has its number.
                self.clone_keys.push(key);
                let request = AdminRequest::KeyInForce {
                    volume: name,
                    key_id,
                    replicas: renewal.members.keys().copied().collect(),
                };
                (leader, request, RenewalAsk::Force)
            }
        };
        renewal.waits = self.next_token;
        if let RenewalAsk::Force = ask {
            renewal.key = None;
        }
        self.renewal = Some(renewal);
        self.ask_operator(host, request, Purpose::Renewal(ask));
    }

    /// A request of a renewal is answered.
    pub(crate) fn renewal_answered(
        &mut self,
        ask: RenewalAsk,
        result: Result<AdminReply, AdminError>,
    ) {
        let Some(mut renewal) = self.renewal.take() else {
            return;
        };
        match (ask, result) {
            (RenewalAsk::Next, Ok(AdminReply::NextKey(name))) => {
                renewal.key = Some(self.provider.make(name).1);
                self.renewal = Some(renewal);
            }
            (RenewalAsk::Place(host), Ok(_)) => {
                renewal.kept.insert(host);
                self.renewal = Some(renewal);
            }
            (RenewalAsk::Force, Ok(_)) => self.stats.did("data keys of three exchanged"),
            (RenewalAsk::Place(_), Err(AdminError::Exists(_))) => {
                self.stats.did("numbers of data keys that were taken");
            }
            (_, Err(error @ (AdminError::Invalid(_) | AdminError::Exists(_)))) => {
                self.violate(format!("a data key of three is not exchanged: {error}"));
            }
            (_, Ok(reply)) => self.violate(format!("an odd answer to a renewal: {reply:?}")),
            (_, Err(_)) => self.stats.did("data keys of three given up"),
        }
    }

    /// The newest key of a volume of three that may be in force, as whoever gets a copy begins with.
    pub(crate) fn newest_key(&self, slot: usize) -> Option<WrappedKey> {
        let first = self.slots[slot].key.clone()?;
        let volume = first.name().volume;
        let of = |name: KeyName| (name.volume == volume).then_some(name.key);
        let all = self.clone_keys.iter().chain([&first]);
        let own = all.filter(|key| of(key.name()).is_some());
        own.max_by_key(|key| of(key.name())).cloned()
    }
}
