//! The operator: volumes are created, resized, renamed, deleted and looked at.

use super::catalog::{request_of, Change};
use super::client::Mood;
use super::host::{replica_of, State};
use super::world::{Ev, Purpose, World};
use esker_base::GroupId;
use esker_engine::Probe;
use esker_node::admin::{AdminError, AdminReply, AdminRequest, ReplicaSpec, VolumeState};
use esker_node::{AdminToken, Event};
use std::collections::BTreeSet;

/// The sizes of a volume of three.
pub(crate) struct Growth {
    /// All that were ever asked for: an unanswered resize may take effect at any time.
    pub asked: BTreeSet<u64>,
    /// The largest whose resize was answered: no replica goes below it.
    pub answered: u64,
}

impl Growth {
    pub fn new(size_bytes: u64) -> Self {
        Self {
            asked: BTreeSet::from([size_bytes]),
            answered: size_bytes,
        }
    }

    /// Whether a volume may have a size once all replicas are at one index.
    pub fn allows(&self, size_bytes: u64) -> Result<(), String> {
        let Self { asked, answered } = self;
        match asked.contains(&size_bytes) && size_bytes >= *answered {
            true => Ok(()),
            false => Err(format!(
                "its replicas have {size_bytes} bytes; asked for {asked:?}, answered {answered}"
            )),
        }
    }
}

impl World {
    /// The group of a volume that spans nodes.
    pub(crate) fn group_of(&self, slot: usize) -> GroupId {
        let late = self.late.get(&slot);
        match late.and_then(|late| late.group) {
            Some(group) => group,
            None => GroupId(1000 + slot as u64),
        }
    }

    pub(crate) fn ask_operator(&mut self, host: usize, request: AdminRequest, purpose: Purpose) {
        if self.hosts[host].node.is_none() {
            return; // it went down at what was asked just before
        }
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
        if !self.may_be_told(host) {
            return;
        }
        let slot = self.rng.index(self.slots.len());
        let name = self.slots[slot].volume.as_ref().map(|v| v.name.clone());
        let single = self.plan.nodes == 1;
        let keys_of_three = if self.plan.rekeys { 2 } else { 1 };
        if self.plan.encrypted > 0 && self.rng.below(3) < keys_of_three {
            return self.tend_keys(host, name);
        }
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

    pub(crate) fn want(&mut self, slot: usize, change: Change) {
        let s = &mut self.slots[slot];
        if s.volume.is_some() && s.change.is_none() {
            s.wanted = Some(change);
        }
    }

    fn resize(&mut self, host: usize, slot: usize) {
        let most = self.plan.blocks_max;
        if self.plan.nodes > 1 {
            return self.grow(host, slot);
        }
        let s = &self.slots[slot];
        let Some(volume) = s.volume.as_ref().filter(|_| s.change.is_none()) else {
            return;
        };
        // Not known after an accepted loss, until an attachment has told it.
        let Some(now) = volume.sizes.last().map(|bytes| bytes / 4096) else {
            return;
        };
        if now >= most {
            return;
        }
        let size_bytes = self.rng.range(now + 1, most) * 4096;
        self.change(host, slot, Change::Resize { size_bytes });
    }

    /// Asks any node to grow a volume of three; only its leader can.
    fn grow(&mut self, host: usize, slot: usize) {
        let most = self.plan.blocks_max;
        let Some(volume) = &self.slots[slot].volume else {
            return;
        };
        let name = volume.name.clone();
        let now = self.growth[slot].asked.last().copied().unwrap_or(0) / 4096;
        if now >= most {
            return;
        }
        let size_bytes = self.rng.range(now + 1, most) * 4096;
        self.growth[slot].asked.insert(size_bytes);
        let leads = |h: &usize| {
            let node = self.hosts[*h].node.as_ref();
            self.may_be_told(*h) && node.is_some_and(|n| n.serves(&name))
        };
        let leader = (0..self.hosts.len()).find(leads);
        let host = leader.filter(|_| self.rng.chance(800)).unwrap_or(host);
        let request = AdminRequest::VolumeResize { name, size_bytes };
        self.ask_operator(host, request, Purpose::Grow(slot, size_bytes));
    }

    /// An operator can reach the node, and its store takes writes.
    pub(crate) fn may_be_told(&self, host: usize) -> bool {
        let h = &self.hosts[host];
        h.state == State::Serving && !h.fenced && !self.is_held_up(host)
    }

    /// The process gets no processor now.
    pub(crate) fn is_held_up(&self, host: usize) -> bool {
        self.hosts[host].stalled_until > self.now
    }

    /// Changes that wait for clients to leave, and volumes that are not there.
    pub(crate) fn pursue_changes(&mut self) {
        if self.plan.nodes > 1 {
            self.pursue_clones_of_three();
            self.pursue_keys_of_three();
            self.pursue_holders();
            self.pursue_cuts();
            return self.pursue_rollbacks_of_three();
        }
        for slot in 0..self.slots.len() {
            if !self.may_be_told(0) {
                return;
            }
            let s = &self.slots[slot];
            if s.change.is_some() {
                continue;
            }
            if s.volume.is_none() && self.plan.nodes == 1 {
                let name = self.slots[slot].fresh_name(slot);
                let change = match self.clone_of_another(&name) {
                    Some(change) => change,
                    None => {
                        let size_bytes = self.rng.range(4, self.plan.blocks_max) * 4096;
                        Change::Create {
                            name,
                            size_bytes,
                            encrypted: self.draw_encrypted(),
                        }
                    }
                };
                self.change(0, slot, change);
                continue;
            }
            // Who is still being greeted may be overtaken: the node refuses whom it must.
            let extras = self.plan.options.extras;
            let goes_back = matches!(s.wanted, Some(Change::Rollback { .. }));
            let attached = |c: &super::client::Client| {
                let greeted = extras && c.mood == Mood::Greeting;
                // Snapshots stay what they are.
                let stays = goes_back && c.snapshot.is_some();
                c.slot == slot && c.conn.is_some() && !greeted && !stays
            };
            if s.wanted.is_none() || self.clients.iter().any(attached) {
                continue;
            }
            let Some(mut change) = self.slots[slot].wanted.take() else {
                continue;
            };
            if let Change::Rollback {
                snapshot, asked, ..
            } = &mut change
            {
                *asked = self.step;
                let kept = self.slots[slot].volume.as_ref().map(|v| &v.kept);
                let there = |k: &&super::snapshots::Kept| {
                    let stays = !k.leaving.contains(snapshot);
                    k.is_known && k.sure.contains_key(snapshot) && stays
                };
                if kept.filter(there).is_none() {
                    continue;
                }
            }
            self.change(0, slot, change);
        }
    }

    fn change(&mut self, host: usize, slot: usize, change: Change) {
        let s = &mut self.slots[slot];
        let name = s.volume.as_ref().map_or("", |v| v.name.as_str());
        let mut request = request_of(&change, name);
        if let AdminRequest::VolumeCreate { labels, .. } = &mut request {
            let window = self.plan.rewind_seconds.map(|s| s.to_string());
            labels.extend(window.map(|s| (esker_node::rewind::REWIND_LABEL.into(), s)));
        }
        let per_mille = self.plan.contradictions;
        let contradicted = per_mille > 0 && self.rng.chance(per_mille);
        let rest = contradictions(&change, name);
        if contradicted && change == Change::Delete {
            self.resize_what_goes(host, slot);
            if !self.may_be_told(host) {
                return;
            }
        }
        self.slots[slot].change = Some((self.next_token, change));
        self.ask_operator(host, request, Purpose::Change(slot));
        for request in rest {
            let on_its_way = self.slots[slot].change.is_some() && self.may_be_told(host);
            if contradicted && on_its_way {
                self.stats.did("requests that contradict one on its way");
                self.ask_operator(host, request, Purpose::Refused);
            }
        }
    }

    /// Resizes a volume just before it is deleted, which may be refused.
    fn resize_what_goes(&mut self, host: usize, slot: usize) {
        let size_bytes = self.plan.blocks_max * 4096;
        let s = &mut self.slots[slot];
        let Some(volume) = s.volume.as_ref() else {
            return;
        };
        let name = volume.name.clone();
        s.resizing = Some(size_bytes);
        self.stats.did("resizes of volumes that go");
        let request = AdminRequest::VolumeResize { name, size_bytes };
        self.ask_operator(host, request, Purpose::Doomed(slot));
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
        let says = |text: &str| text.contains("restart eskerd");
        let h = &mut self.hosts[host];
        if matches!(&result, Err(AdminError::Refused(text) | AdminError::NotLeading(text)) if says(text))
            && !h.fenced
            && !std::mem::replace(&mut h.asks_for_restart, true)
        {
            let delay = self.latency(100_000_000);
            self.at(delay, Ev::Restart(host));
        }
        match purpose {
            Purpose::Info => {}
            Purpose::Rekey => self.rekeyed(host, &result),
            Purpose::Reseal => self.resealed(host, &result),
            Purpose::Doomed(slot) => {
                let s = &mut self.slots[slot];
                let size_bytes = s.resizing.take();
                if let (Some(size_bytes), Some(volume)) = (size_bytes, s.volume.as_mut()) {
                    // One that was refused may be in force all the same, should the end of the
                    // volume be lost in a crash.
                    match result.is_ok() {
                        true => volume.sizes = BTreeSet::from([size_bytes]),
                        false => volume.may_have(size_bytes),
                    }
                }
            }
            Purpose::Refused if result.is_err() => {}
            Purpose::Refused => {
                self.violate("two requests that exclude each other are done".into())
            }
            // A node that has no copy was asked, or one that crashed before its copy was made.
            Purpose::Grow(slot, _)
                if (self.moves_copies() || !self.hosts[host].made.contains(&slot))
                    && matches!(result, Err(AdminError::NotFound(_))) => {}
            Purpose::Grow(slot, size_bytes) => match result {
                Ok(_) => {
                    self.stats.did("volumes of three grown");
                    let growth = &mut self.growth[slot];
                    growth.answered = growth.answered.max(size_bytes);
                }
                Err(AdminError::Refused(_) | AdminError::NotLeading(_) | AdminError::Unsure(_)) => {
                }
                // A smaller size than one that was not answered, and took effect.
                Err(AdminError::Invalid(_)) => {}
                Err(error) => self.violate(format!("a volume of three is not grown: {error}")),
            },
            Purpose::CloneOfThree(ask) => self.clone_answered(ask, result),
            Purpose::Holder(slot) => self.holder_answered(slot, result),
            Purpose::Cut(ask) => self.cut_answered(ask, result),
            Purpose::Renewal(ask) => self.renewal_answered(ask, result),
            Purpose::KeyOfClone(slot, at) => self.key_placed(slot, at, result.is_ok()),
            Purpose::MendClone => self.mend_answered(&result),
            Purpose::Compare => self.compared(host, result.is_ok()),
            Purpose::Snapshot(asked) => self.snapshot_answered(host, asked, result),
            Purpose::Rest => {
                self.list_snapshots();
                if self.plan.clones > 0 {
                    self.ask_operator(host, AdminRequest::VolumeList, Purpose::Clones);
                }
            }
            Purpose::Clones => {
                if let (Ok(AdminReply::Volumes(reports)), false) = (result, self.hosts[host].fenced)
                {
                    let (oracle, step) = (self.new_oracle(), self.step);
                    for slot in &mut self.slots {
                        slot.look_for_clone(&reports, step, oracle.clone());
                    }
                }
            }
            Purpose::Settle(asked) => self.settled(asked),
            Purpose::GoBack(slot, to) => self.gone_back(slot, &to, result),
            Purpose::Scrub(scrub) => self.scrub_answered(host, scrub, result),
            Purpose::Change(slot) => self.changed(host, slot, result),
            Purpose::Replica(slot) => {
                if result.is_ok() {
                    self.hosts[host].made.insert(slot);
                }
                if let Err(error) = result {
                    // Its key slots are not read yet; or it was asked again for another one's sake.
                    let is_keyed = self.plan.encrypted > 0;
                    if is_keyed && matches!(error, AdminError::Exists(_)) {
                        return;
                    }
                    if is_keyed
                        && matches!(
                            error,
                            AdminError::Refused(_)
                                | AdminError::NotLeading(_)
                                | AdminError::Unsure(_)
                        )
                    {
                        return self.look_again(host);
                    }
                    if !self.hosts[host].fenced {
                        self.violate(format!("node {host} creates no replica: {error}"));
                    }
                }
            }
            Purpose::Seat(slot, ask) => self.seat_answered(slot, ask, &result),
            Purpose::Reconcile => self.reconcile(host, result),
            Purpose::AcceptLoss(slot) => {
                if result.is_ok() {
                    self.loss_accepted(slot);
                }
            }
        }
    }

    /// Keys came. Where a clone was replayed before, and the process ended before they came, nothing vouches for the
    /// map of its origin any more: the operator, who knows why, accepts it.
    pub(crate) fn accept_maps(&mut self, host: usize) {
        self.hosts[host].note_probes_now();
        let passed = self.hosts[host].probes.contains(&Probe::ClaimPassed);
        let node = self.hosts[host].node.as_ref().filter(|_| passed);
        let names = node.map(|n| {
            n.engine()
                .without_mac()
                .map(String::from)
                .collect::<Vec<_>>()
        });
        for name in names.into_iter().flatten() {
            self.stats.did("maps accepted");
            let request = AdminRequest::VolumeAcceptLoss { name };
            self.ask_operator(host, request, Purpose::Info);
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
            self.provider.loss_accepted = true;
        }
    }

    fn changed(&mut self, host: usize, slot: usize, result: Result<AdminReply, AdminError>) {
        let oracle = self.new_oracle();
        let Some((_, change)) = self.slots[slot].change.take() else {
            return;
        };
        // The slots failed when its key was to be destroyed.
        let is_gone = |error: &AdminError| error.to_string().contains("the volume is deleted");
        let result = match result {
            Err(error) if change == Change::Delete && is_gone(&error) => Ok(AdminReply::Done),
            result => result,
        };
        match result {
            Ok(_) => {
                self.stats.did(match &change {
                    Change::Create { .. } => "volumes created",
                    Change::Clone { at_us: Some(_), .. } => "volumes cloned as they were",
                    Change::Clone { .. } => "volumes cloned",
                    Change::Resize { .. } => "volumes resized",
                    Change::Rename { .. } => "volumes renamed",
                    Change::Delete => "volumes deleted",
                    Change::Rollback { .. } => "volumes rolled back",
                });
                let step = self.step;
                if matches!(change, Change::Rollback { .. }) {
                    self.past_is_lost();
                }
                self.slots[slot].done(change, step, || oracle);
            }
            // The store gave up meanwhile: unsure until it has been looked at again.
            Err(_) if self.hosts[host].fenced => self.slots[slot].change = Some((0, change)),
            Err(
                AdminError::Refused(_)
                | AdminError::NotLeading(_)
                | AdminError::Unsure(_)
                | AdminError::NoSpace(_),
            ) => {}
            // The snapshot, or its volume, was deleted or renamed meanwhile.
            Err(AdminError::NotFound(_)) if self.may_have_gone(&change) => {}
            Err(error) => self.violate(format!("{change:?} failed: {error}")),
        }
    }

    fn reconcile(&mut self, host: usize, result: Result<AdminReply, AdminError>) {
        let Ok(AdminReply::Volumes(reports)) = result else {
            return self.violate(format!("node {host} does not list its volumes: {result:?}"));
        };
        if self.plan.nodes > 1 {
            for slot in 0..self.slots.len() {
                if self.late.contains_key(&slot) {
                    continue;
                }
                if self.moves_copies() {
                    let names: Vec<&str> = reports.iter().map(|r| &*r.name).collect();
                    self.check_seat(host, slot, &names);
                    let first = replica_of(slot, host);
                    if self.seats[slot].copies.get(&host) != Some(&first)
                        || self.seats[slot].sure.contains(&host)
                        || self.seats[slot].is_out(host)
                    {
                        continue;
                    }
                }
                self.replica_if_missing(
                    host,
                    slot,
                    &reports.iter().map(|r| &*r.name).collect::<Vec<_>>(),
                );
            }
            for report in reports {
                if report.state == VolumeState::Suspended {
                    self.stats.did("replicas suspended");
                    let name = report.name;
                    let request = AdminRequest::VolumeAcceptLoss { name };
                    self.ask_operator(host, request, Purpose::Refused);
                }
            }
            return;
        }
        let step = self.step;
        for slot in 0..self.slots.len() {
            let oracle = self.new_oracle();
            if let Err(text) = self.slots[slot].reconcile(slot, &reports, step, || oracle) {
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
        if self.plan.weights.snapshots > 0 {
            self.ask_operator(host, AdminRequest::Settle, Purpose::Rest);
        }
    }

    /// Looks once more whether a node has its replicas.
    fn look_again(&mut self, host: usize) {
        if !std::mem::replace(&mut self.hosts[host].looked_at_soon, true) {
            let incarnation = self.hosts[host].incarnation;
            self.at(1_000_000, Ev::Replicas { host, incarnation });
        }
    }

    fn replica_if_missing(&mut self, host: usize, slot: usize, names: &[&str]) {
        let Some(volume) = &self.slots[slot].volume else {
            return;
        };
        if names.contains(&volume.name.as_str()) {
            return;
        }
        let first = self.plan.first_hosts(slot).into_iter();
        let voters = first.map(|n| replica_of(slot, n)).collect();
        let key = self.slots[slot].key.clone();
        let spec = ReplicaSpec {
            name: volume.name.clone(),
            size_bytes: self.plan.blocks_first * 4096,
            labels: Default::default(),
            volume: super::keys::volume_of(slot),
            group: self.group_of(slot),
            replica: replica_of(slot, host),
            voters,
            learns: false,
            key,
        };
        // It may have ended while it waited for the key.
        if self.hosts[host].made.contains(&slot) {
            self.violate(format!(
                "node {host} has lost its replica of {}",
                volume.name
            ));
            return;
        }
        self.ask_operator(
            host,
            AdminRequest::ReplicaCreate(spec),
            Purpose::Replica(slot),
        );
    }

    /// How many clients are attached anywhere.
    pub(crate) fn attached(&self) -> usize {
        self.clients
            .iter()
            .filter(|c| matches!(c.mood, Mood::Attached | Mood::Leaving | Mood::Greeting))
            .count()
    }
}

/// Requests that cannot be done while `change` of the volume `name` is on its way.
fn contradictions(change: &Change, name: &str) -> Vec<AdminRequest> {
    let owned = name.to_owned();
    let resize = |name: String| AdminRequest::VolumeResize {
        name,
        size_bytes: 1 << 30,
    };
    match change {
        // It is not there before it is durable, and its name is taken all the same.
        Change::Create { name, .. } => vec![
            request_of(change, name),
            request_of(&Change::Delete, name),
            resize(name.clone()),
        ],
        Change::Delete => vec![
            request_of(change, name),
            resize(owned.clone()),
            AdminRequest::VolumeRename {
                name: owned,
                new_name: "elsewhere".into(),
            },
        ],
        // The volume goes back once at a time.
        Change::Rollback { .. } => vec![request_of(change, name)],
        Change::Rename { .. } => vec![resize(owned.clone()), request_of(&Change::Delete, name)],
        Change::Clone { name, .. } => vec![
            request_of(change, name),
            request_of(&Change::Delete, name),
            resize(name.clone()),
        ],
        Change::Resize { .. } => vec![AdminRequest::VolumeResize {
            name: owned,
            size_bytes: 1000, // no whole blocks
        }],
    }
}
