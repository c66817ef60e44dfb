//! Replicas that come and go: in worlds of more than three nodes the copies of a volume move about while it is used.
//!
//! The operator here does what a cluster's placement does, and no more: it has a node make a copy, has the leader take that
//! into the group, and takes copies back that are in no group. It repeats what was not answered.

use super::host::{place_of, replica_of};
use super::world::{Purpose, World};
use esker_base::{Place, ReplicaId};
use esker_engine::format::checkpoint::Membership;
use esker_node::admin::{AdminError, AdminReply, AdminRequest, ReplicaSpec};
use esker_node::Event;
use std::collections::{BTreeMap, BTreeSet};

/// Copies of a volume, at most.
const COPIES_MAX: usize = 5;
/// Times that a leader is asked for a new member before that is given up.
const TRIES_MAX: u32 = 200;

/// The copies of a volume, as the operator knows them.
#[derive(Debug, Default)]
pub(crate) struct Seats {
    /// Copies that there may be, by node.
    pub copies: BTreeMap<usize, ReplicaId>,
    /// Those of them that were answered.
    pub sure: BTreeSet<usize>,
    made: u64,
    /// Replicas that are in no group, for good.
    out: BTreeSet<ReplicaId>,
    doing: Doing,
    tries: u32,
    /// A request is on its way.
    waits: Option<u64>,
}

/// What the operator is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Doing {
    #[default]
    Nothing,
    /// A node makes a copy.
    Making(usize, Option<ReplicaId>),
    /// The leader takes it in.
    Adding(usize, Option<ReplicaId>),
    /// The leader lets a member go.
    Removing(ReplicaId),
}

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SeatAsk {
    Make(usize),
    Add,
    Remove(ReplicaId),
    Delete(usize),
}

impl Seats {
    /// The copy of a node is in no group, for good.
    pub fn is_out(&self, host: usize) -> bool {
        self.copies.get(&host).is_some_and(|r| self.out.contains(r))
    }
}

impl World {
    pub(crate) fn moves_copies(&self) -> bool {
        self.plan.nodes > 3
    }

    pub(crate) fn seat_first(&mut self) {
        for slot in 0..self.slots.len() {
            let first = self.plan.first_hosts(slot);
            let copies: BTreeMap<_, _> = first.iter().map(|h| (*h, replica_of(slot, *h))).collect();
            self.seats.push(Seats {
                copies,
                ..Seats::default()
            });
        }
    }

    /// The nodes that have a copy.
    pub(crate) fn seated(&self, slot: usize) -> Vec<usize> {
        match self.moves_copies() {
            true => self.seats[slot].copies.keys().copied().collect(),
            false => (0..self.hosts.len()).collect(),
        }
    }

    /// A node that has restarted lists its volumes.
    pub(crate) fn check_seat(&mut self, host: usize, slot: usize, names: &[&str]) {
        let Some(volume) = &self.slots[slot].volume else {
            return;
        };
        let is_there = names.contains(&volume.name.as_str());
        if !is_there && self.seats[slot].sure.contains(&host) {
            self.violate(format!("node {host} has lost its copy of volume {slot}"));
        }
        if is_there && self.seats[slot].copies.contains_key(&host) {
            self.seats[slot].sure.insert(host);
        }
    }

    /// Who belongs to a volume as its leader knows it, and which node that is.
    pub(crate) fn led(&self, slot: usize) -> Option<(usize, Membership)> {
        let name = &self.slots[slot].volume.as_ref()?.name;
        (0..self.hosts.len()).find_map(|h| {
            let node = self.hosts[h].node.as_ref().filter(|n| n.serves(name))?;
            let is_told = self.may_be_told(h);
            let view = node
                .engine()
                .group(self.group_of(slot))
                .filter(|_| is_told)?;
            Some((h, view.meta.membership))
        })
    }

    /// All copies are members, all members vote, and nothing is under way.
    pub(crate) fn is_seated(&self, slot: usize) -> bool {
        let seats = &self.seats[slot];
        let Some((_, membership)) = self.led(slot) else {
            return false;
        };
        let members: BTreeSet<ReplicaId> = membership.voters.iter().copied().collect();
        let copies: BTreeSet<ReplicaId> = seats.copies.values().copied().collect();
        seats.doing == Doing::Nothing
            && seats.waits.is_none()
            && members == copies
            && membership.learners.is_empty()
            && membership.voters_outgoing.is_empty()
            && membership.places.iter().all(|m| m.replaces.0 == 0)
    }

    /// The volumes whose only voter a node has.
    pub(crate) fn alone_on(&self, host: usize) -> Vec<usize> {
        let node = self.hosts[host]
            .node
            .as_ref()
            .filter(|_| self.moves_copies());
        let alone = |slot: &usize| {
            let view = node.and_then(|n| n.engine().group(self.group_of(*slot)));
            view.is_some_and(|v| v.meta.membership.voters == [v.meta.replica])
        };
        (0..self.slots.len()).filter(alone).collect()
    }

    pub(crate) fn move_copies(&mut self) {
        if self.plan.encrypted > 0 && self.rng.chance(100) {
            self.give_lacking_keys();
        }
        for slot in 0..self.seats.len() {
            if let Some(token) = self.seats[slot].waits {
                if self.admin.contains_key(&token) {
                    continue;
                }
                self.seats[slot].waits = None; // it will not be answered
            }
            if self.rng.chance(300) {
                self.move_copy(slot);
            }
        }
    }

    fn move_copy(&mut self, slot: usize) {
        let Some(volume) = &self.slots[slot].volume else {
            return;
        };
        let name = volume.name.clone();
        let led = self.led(slot);
        match self.seats[slot].doing {
            Doing::Nothing => {
                if !self.tidy(slot, &name, led.as_ref()) && !self.is_calm() {
                    self.begin_move(slot, led.as_ref());
                }
            }
            Doing::Making(host, replaces) => self.make_copy(slot, host, replaces, led),
            Doing::Adding(host, replaces) => {
                self.seats[slot].tries += 1;
                if self.seats[slot].tries > TRIES_MAX {
                    self.seats[slot].doing = Doing::Nothing;
                    return;
                }
                let Some((leader, membership)) = led else {
                    return;
                };
                let Some(replica) = self.seats[slot].copies.get(&host).copied() else {
                    return;
                };
                let Some(places) = self.places(slot, &membership) else {
                    return;
                };
                let replaces = replaces.filter(|r| membership.voters.contains(r));
                let request = AdminRequest::ReplicaAdd {
                    volume: name,
                    replica,
                    replaces,
                    places,
                };
                self.ask_seat(slot, leader, request, SeatAsk::Add);
            }
            Doing::Removing(replica) => {
                let Some((leader, _)) = led else {
                    return;
                };
                let request = AdminRequest::ReplicaRemove {
                    volume: name,
                    replica,
                    only_outsider: false,
                };
                self.ask_seat(slot, leader, request, SeatAsk::Remove(replica));
            }
        }
    }

    fn begin_move(&mut self, slot: usize, led: Option<&(usize, Membership)>) {
        let Some((_, membership)) = led else {
            return;
        };
        if !membership.learners.is_empty() || !self.rng.chance(100) {
            return;
        }
        let voters = membership.voters.clone();
        let seats = &self.seats[slot];
        let free: Vec<usize> = (0..self.hosts.len())
            .filter(|h| !seats.copies.contains_key(h))
            .collect();
        let victim = voters[self.rng.index(voters.len())];
        let least = if self.plan.keeps_power() { 1 } else { 2 };
        let removes = voters.len() > least && self.rng.chance(300);
        if removes || free.is_empty() || seats.copies.len() >= COPIES_MAX {
            if voters.len() > least {
                self.seats[slot].doing = Doing::Removing(victim);
            }
            return;
        }
        let host = free[self.rng.index(free.len())];
        let replaces = self.rng.chance(500).then_some(victim);
        let seats = &mut self.seats[slot];
        seats.made += 1;
        let replica = ReplicaId(10_000 + slot as u64 * 1000 + seats.made);
        seats.copies.insert(host, replica);
        seats.doing = Doing::Making(host, replaces);
        seats.tries = 0;
    }

    /// Takes copies back that belong to no group, and members out that have no copy. True when there is one.
    fn tidy(&mut self, slot: usize, name: &str, led: Option<&(usize, Membership)>) -> bool {
        let Some((leader, membership)) = led else {
            return true; // nobody knows
        };
        let is_member = |r: &ReplicaId| {
            membership.voters.contains(r)
                || membership.learners.contains(r)
                || membership.voters_outgoing.contains(r)
        };
        let copies = &self.seats[slot].copies;
        let stray = copies.iter().find(|(_, r)| !is_member(r));
        let members = membership.voters.iter().chain(&membership.learners);
        let lacking = members
            .copied()
            .find(|r| copies.values().all(|copy| copy != r));
        let stray = stray.map(|(h, r)| (*h, *r));
        if let Some((host, _)) = stray.filter(|(_, r)| self.seats[slot].out.contains(r)) {
            self.delete_copy(slot, host);
            return true;
        }
        if let Some((_, replica)) = stray {
            // Only what is committed says that it is none.
            let request = AdminRequest::ReplicaRemove {
                volume: name.to_owned(),
                replica,
                only_outsider: false,
            };
            self.ask_seat(slot, *leader, request, SeatAsk::Remove(replica));
            return true;
        }
        if let Some(replica) = lacking {
            let request = AdminRequest::ReplicaRemove {
                volume: name.to_owned(),
                replica,
                only_outsider: false,
            };
            self.ask_seat(slot, *leader, request, SeatAsk::Remove(replica));
        }
        lacking.is_some()
    }

    fn make_copy(
        &mut self,
        slot: usize,
        host: usize,
        replaces: Option<ReplicaId>,
        led: Option<(usize, Membership)>,
    ) {
        let Some((leader, membership)) = led else {
            return;
        };
        let (Some(replica), true) = (
            self.seats[slot].copies.get(&host).copied(),
            self.may_be_told(host),
        ) else {
            return;
        };
        let node = self.hosts[host].node.as_ref();
        let here = node.and_then(|n| n.engine().group(self.group_of(slot)));
        let here = here.map(|view| view.meta.replica);
        if here == Some(replica) {
            self.seats[slot].doing = Doing::Adding(host, replaces);
            return;
        }
        if let Some(old) = here {
            // It was asked for at the beginning, and came to be after it was found that there is none.
            self.seats[slot].copies.insert(host, old);
            self.seats[slot].doing = Doing::Nothing;
            return;
        }
        let (Some(places), Some(volume)) =
            (self.places(slot, &membership), &self.slots[slot].volume)
        else {
            return;
        };
        let name = volume.name.clone();
        let led = self.hosts[leader].node.as_ref();
        let size = led.and_then(|n| n.engine().size_to_begin_with(self.group_of(slot)));
        let Some(size_bytes) = size else {
            return;
        };
        self.hosts[host].told.extend(places.clone());
        let mut all = super::host::Host::places(&self.plan);
        all.extend(self.hosts[host].told.clone());
        self.step_node(host, Event::Places(all));
        let spec = ReplicaSpec {
            name,
            size_bytes,
            labels: BTreeMap::new(),
            volume: super::keys::volume_of(slot),
            group: self.group_of(slot),
            replica,
            voters: membership.voters,
            learns: true,
            key: self.newest_key(slot),
        };
        self.ask_seat(
            slot,
            host,
            AdminRequest::ReplicaCreate(spec),
            SeatAsk::Make(host),
        );
    }

    /// Where the members and copies live; none while one of the members has no copy that is known.
    fn places(&self, slot: usize, membership: &Membership) -> Option<BTreeMap<ReplicaId, Place>> {
        let copies = self.seats[slot].copies.iter();
        let places: BTreeMap<_, _> = copies.map(|(h, r)| (*r, place_of(*h))).collect();
        let mut members = membership.voters.iter().chain(&membership.learners);
        members.all(|r| places.contains_key(r)).then_some(places)
    }

    fn ask_seat(&mut self, slot: usize, host: usize, request: AdminRequest, ask: SeatAsk) {
        if self.may_be_told(host) {
            self.seats[slot].waits = Some(self.next_token);
            self.ask_operator(host, request, Purpose::Seat(slot, ask));
        }
    }

    fn delete_copy(&mut self, slot: usize, host: usize) {
        let Some(volume) = &self.slots[slot].volume else {
            return;
        };
        let request = AdminRequest::VolumeDelete {
            name: volume.name.clone(),
            with_snapshots: true,
        };
        self.seats[slot].sure.remove(&host);
        self.ask_seat(slot, host, request, SeatAsk::Delete(host));
    }

    pub(crate) fn seat_answered(
        &mut self,
        slot: usize,
        ask: SeatAsk,
        result: &Result<AdminReply, AdminError>,
    ) {
        let is_calm = self.is_calm();
        let seats = &mut self.seats[slot];
        seats.waits = None;
        match (ask, result) {
            (SeatAsk::Make(host), Ok(_)) => {
                seats.sure.insert(host);
                if let Doing::Making(_, replaces) = seats.doing {
                    seats.doing = Doing::Adding(host, replaces);
                }
                self.stats.did("copies made");
            }
            // The store is full or not ready; it is taken back where it is there all the same.
            (SeatAsk::Make(_), Err(AdminError::Exists(_))) => {}
            (SeatAsk::Make(_), Err(_)) => {
                seats.tries += 1;
                if is_calm && seats.tries > 3 {
                    seats.doing = Doing::Nothing;
                }
            }
            (SeatAsk::Add, Ok(_)) => {
                seats.doing = Doing::Nothing;
                self.stats.did("members added");
            }
            (SeatAsk::Remove(replica), Ok(_)) => {
                if seats.doing == Doing::Removing(replica) {
                    seats.doing = Doing::Nothing;
                }
                let host = seats.copies.iter().find(|(_, r)| **r == replica);
                let host = host.map(|(h, _)| *h);
                seats.out.insert(replica);
                self.stats.did("members removed");
                if let Some(host) = host {
                    self.delete_copy(slot, host);
                }
            }
            (SeatAsk::Delete(host), Ok(_) | Err(AdminError::NotFound(_))) => {
                seats.copies.remove(&host);
                self.stats.did("copies deleted");
            }
            // It would leave no majority, or the leader is another one; it has sessions; it has gone.
            (
                SeatAsk::Remove(_),
                Err(AdminError::Refused(_) | AdminError::NotLeading(_) | AdminError::Unsure(_)),
            ) => {
                if !is_calm && self.rng.chance(200) {
                    self.seats[slot].doing = Doing::Nothing;
                }
            }
            (
                _,
                Err(
                    AdminError::Refused(_)
                    | AdminError::NotLeading(_)
                    | AdminError::Unsure(_)
                    | AdminError::NotFound(_)
                    | AdminError::Invalid(_),
                ),
            ) => {
                seats.tries += 1;
            }
            (ask, result) => self.violate(format!("{ask:?} gave {result:?}")),
        }
    }
}
