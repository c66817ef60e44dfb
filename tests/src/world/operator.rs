//! The operator: volumes are created, resized, renamed, deleted and looked at.

use super::catalog::{request_of, Change};
use super::client::Mood;
use super::host::{replica_of, State};
use super::world::{Purpose, World};
use esker_base::{GroupId, VolumeId};
use esker_node::admin::{AdminError, AdminReply, AdminRequest, ReplicaSpec, VolumeState};
use esker_node::{AdminToken, Event};

/// The group of a volume that spans nodes.
pub(crate) fn group_of(slot: usize) -> GroupId {
    GroupId(1000 + slot as u64)
}

impl World {
    pub(crate) fn ask_operator(&mut self, host: usize, request: AdminRequest, purpose: Purpose) {
        let token = self.next_token;
        self.next_token += 1;
        self.admin.insert(token, (host, purpose));
        self.log(|| format!("operator to node {host}: {request:?}"));
        let token = AdminToken(token);
        self.step_node(host, Event::Admin { token, request });
    }

    /// A request by chance.
    pub(crate) fn operate(&mut self) {
        let host = self.rng.index(self.hosts.len());
        if self.hosts[host].state != State::Serving || self.hosts[host].fenced {
            return;
        }
        let slot = self.rng.index(self.slots.len());
        let name = self.slots[slot].volume.as_ref().map(|v| v.name.clone());
        let single = self.plan.nodes == 1;
        let request = match self.rng.below(10) {
            0 => AdminRequest::VolumeList,
            1 => AdminRequest::Status,
            2 => AdminRequest::Space { volume: None },
            3 => AdminRequest::Space { volume: name },
            4 | 5 => AdminRequest::Checkpoint,
            6 if single => return self.want(slot, Change::Delete),
            7 if single => {
                let name = self.slots[slot].fresh_name(slot);
                return self.want(slot, Change::Rename { name });
            }
            _ => return self.resize(host, slot),
        };
        self.stats.did("looks of the operator");
        self.ask_operator(host, request, Purpose::Info);
    }

    fn want(&mut self, slot: usize, change: Change) {
        let s = &mut self.slots[slot];
        if s.volume.is_some() && s.change.is_none() {
            s.wanted = Some(change);
        }
    }

    fn resize(&mut self, host: usize, slot: usize) {
        let most = self.plan.blocks_max;
        let s = &self.slots[slot];
        let Some(volume) = s.volume.as_ref().filter(|_| s.change.is_none()) else {
            return;
        };
        // Not known after an accepted loss, until an attachment has told it.
        let Some(now) = volume.sizes.last().map(|bytes| bytes / 4096) else {
            return;
        };
        if now >= most || self.plan.nodes > 1 {
            return;
        }
        let size_bytes = self.rng.range(now + 1, most) * 4096;
        self.change(host, slot, Change::Resize { size_bytes });
    }

    /// Changes that wait for clients to leave, and volumes that are not there.
    pub(crate) fn pursue_changes(&mut self) {
        for slot in 0..self.slots.len() {
            if self.hosts[0].state != State::Serving || self.hosts[0].fenced {
                return;
            }
            let s = &self.slots[slot];
            if s.change.is_some() {
                continue;
            }
            if s.volume.is_none() && self.plan.nodes == 1 {
                let name = self.slots[slot].fresh_name(slot);
                let size_bytes = self.rng.range(4, self.plan.blocks_max) * 4096;
                self.change(0, slot, Change::Create { name, size_bytes });
                continue;
            }
            let attached = |c: &super::client::Client| c.slot == slot && c.conn.is_some();
            if s.wanted.is_none() || self.clients.iter().any(attached) {
                continue;
            }
            if let Some(change) = self.slots[slot].wanted.take() {
                self.change(0, slot, change);
            }
        }
    }

    fn change(&mut self, host: usize, slot: usize, change: Change) {
        let s = &mut self.slots[slot];
        let name = s.volume.as_ref().map_or("", |v| v.name.as_str());
        let request = request_of(&change, name);
        let token = self.next_token; // the one that is taken next
        s.change = Some((token, change));
        self.ask_operator(host, request, Purpose::Change(slot));
    }

    pub(crate) fn admin_reply(
        &mut self,
        host: usize,
        token: AdminToken,
        result: Result<AdminReply, AdminError>,
    ) {
        self.log(|| format!("node {host} to operator: {result:?}"));
        let Some((_, purpose)) = self.admin.remove(&token.0) else {
            return self.violate(format!("an answer to {token:?}, which nobody asked"));
        };
        self.trace.note(&[token.0, u64::from(result.is_ok())]);
        match purpose {
            Purpose::Info => {}
            Purpose::Compare => self.compared(host, result.is_ok()),
            Purpose::Change(slot) => self.changed(host, slot, result),
            Purpose::Replica => {
                if let Err(error) = result {
                    if !self.hosts[host].fenced {
                        self.violate(format!("node {host} creates no replica: {error}"));
                    }
                }
            }
            Purpose::Reconcile => self.reconcile(host, result),
            Purpose::AcceptLoss(slot) => {
                if result.is_ok() {
                    self.loss_accepted(slot);
                }
            }
        }
    }

    /// What a damaged record held is given up.
    fn loss_accepted(&mut self, slot: usize) {
        let step = self.step;
        if let Some(volume) = self.slots[slot].volume.as_mut() {
            volume.oracle.loss_accepted(step);
            volume.sizes.clear(); // a resize may be among what is lost
            volume.loss_asked = false;
            self.stats.did("losses accepted");
        }
    }

    fn changed(&mut self, host: usize, slot: usize, result: Result<AdminReply, AdminError>) {
        let oracle = self.new_oracle();
        let Some((_, change)) = self.slots[slot].change.take() else {
            return;
        };
        match result {
            Ok(_) => {
                self.stats.did(match &change {
                    Change::Create { .. } => "volumes created",
                    Change::Resize { .. } => "volumes resized",
                    Change::Rename { .. } => "volumes renamed",
                    Change::Delete => "volumes deleted",
                });
                self.slots[slot].done(change, || oracle);
            }
            // The store gave up meanwhile: unsure until it has been looked at again.
            Err(_) if self.hosts[host].fenced => self.slots[slot].change = Some((0, change)),
            Err(AdminError::Refused(_) | AdminError::NoSpace(_)) => {}
            Err(error) => self.violate(format!("{change:?} failed: {error}")),
        }
    }

    fn reconcile(&mut self, host: usize, result: Result<AdminReply, AdminError>) {
        let Ok(AdminReply::Volumes(reports)) = result else {
            return self.violate(format!("node {host} does not list its volumes: {result:?}"));
        };
        if self.plan.nodes > 1 {
            for slot in 0..self.slots.len() {
                self.replica_if_missing(
                    host,
                    slot,
                    &reports.iter().map(|r| &*r.name).collect::<Vec<_>>(),
                );
            }
            return;
        }
        for slot in 0..self.slots.len() {
            let oracle = self.new_oracle();
            if let Err(text) = self.slots[slot].reconcile(slot, &reports, || oracle) {
                self.violate(format!("after a restart: {text}"));
            }
            let Some(volume) = &mut self.slots[slot].volume else {
                continue;
            };
            let name = volume.name.clone();
            let report = reports.iter().find(|r| r.name == name);
            if report.is_some_and(|r| r.state == VolumeState::Suspended) {
                volume.loss_asked = true;
                self.stats.did("volumes suspended");
                let request = AdminRequest::VolumeAcceptLoss { name };
                self.ask_operator(host, request, Purpose::AcceptLoss(slot));
            } else if volume.loss_asked {
                // The process that was asked to accept it has ended without an answer.
                self.loss_accepted(slot);
            }
        }
    }

    fn replica_if_missing(&mut self, host: usize, slot: usize, names: &[&str]) {
        let Some(volume) = &self.slots[slot].volume else {
            return;
        };
        if names.contains(&volume.name.as_str()) {
            return;
        }
        let voters = (0..self.plan.nodes).map(|n| replica_of(slot, n)).collect();
        let spec = ReplicaSpec {
            name: volume.name.clone(),
            size_bytes: self.plan.blocks_max * 4096,
            volume: VolumeId(77 + slot as u128),
            group: group_of(slot),
            replica: replica_of(slot, host),
            voters,
        };
        if self.hosts[host].incarnation > 1 {
            self.violate(format!(
                "node {host} has lost its replica of {}",
                volume.name
            ));
            return;
        }
        self.ask_operator(host, AdminRequest::ReplicaCreate(spec), Purpose::Replica);
    }

    /// How many clients are attached anywhere.
    pub(crate) fn attached(&self) -> usize {
        self.clients
            .iter()
            .filter(|c| matches!(c.mood, Mood::Attached | Mood::Leaving | Mood::Greeting))
            .count()
    }
}
