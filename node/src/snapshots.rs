//! Snapshots, as operators ask for them: taken, deleted, gone back to, listed.
//!
//! Each change is an entry of the volume's log, with a stamp like a write: what was acknowledged before it was
//! asked for is before it in the log, what is asked for after its answer is behind it.

use crate::admin::{
    one_line, AdminError, AdminReply, RolledBack, SnapshotPage, SnapshotReport, VersionKind,
    VersionReport, SNAPSHOTS_PAGE_MAX,
};
use crate::control::{check_label_set, check_word, Outcome};
use crate::event::{AdminToken, Effect, Transport};
use crate::groups::{leadership_changed, unsure};
use crate::node::Node;
use crate::rewind::NOBODY;
use crate::volume::{Proposal, Volume};
use bytes::Bytes;
use esker_base::num::{to_u32_saturating, to_u64};
use esker_base::{limits, ConnId, GroupId, Place, ReplicaId, Stamp, VolumeId, BLOCK_SIZE_U64};
use esker_engine::event as engine_event;
use esker_engine::format::checkpoint::MemberPlace;
use esker_engine::format::operation::{Operation, RequestId};
use esker_engine::format::versions::{VersionKind as StoredKind, POINT_PREFIX};
use esker_engine::SnapshotView;
use esker_replication::{ProposeError, Role};
use std::collections::BTreeMap;
use std::time::Duration;

/// Changes of snapshots that wait in one volume's queue; further ones are refused.
pub(crate) const ASKS_MAX: usize = 1024;
/// How long whoever leads a volume tries to lead its clone, in ticks: replicas begin it as they apply the entry.
const STANDS_TICKS: u64 = 20;
/// Sessions that a refusal names.
const NAMED_MAX: usize = 3;

/// A change of a volume's snapshots that an operator waits for.
#[derive(Clone, Debug)]
pub(crate) enum SnapshotAsk {
    Create {
        name: String,
        created_us: u64,
        labels: BTreeMap<String, String>,
        /// A part of this cut, and how long changes were held back for it.
        cut: Option<(u128, Duration)>,
    },
    /// A rewind point; its time is that of its proposal.
    Point {
        created_us: u64,
    },
    Delete {
        name: String,
        cut: Stamp,
    },
    Rollback {
        name: String,
        to: Stamp,
        created_us: u64,
        keep: Option<String>,
    },
    /// The new volume's name is taken as long as this is on its way.
    Clone {
        name: String,
        cut: Stamp,
        group: GroupId,
        volume: VolumeId,
        clone: String,
        created_us: u64,
        labels: BTreeMap<String, String>,
    },
}

impl SnapshotAsk {
    /// `members` are those that a clone begins with; none where the volume has one copy.
    fn operation(&self, stamp: Stamp, members: Vec<MemberPlace>) -> Operation {
        match self.clone() {
            Self::Create {
                name,
                created_us,
                labels,
                cut: _,
            } => Operation::Snapshot {
                stamp,
                created_us,
                name,
                labels,
            },
            Self::Point { created_us } => Operation::Snapshot {
                stamp,
                created_us,
                name: format!("{POINT_PREFIX}{}", stamp.0),
                labels: BTreeMap::new(),
            },
            Self::Delete { cut, .. } => Operation::DeleteSnapshot { cut },
            Self::Clone {
                cut,
                group,
                volume,
                clone,
                created_us,
                labels,
                ..
            } => Operation::Clone {
                cut,
                group,
                volume,
                created_us,
                name: clone,
                labels,
                members,
            },
            Self::Rollback {
                to,
                created_us,
                keep,
                ..
            } => Operation::Rollback {
                stamp,
                created_us,
                to,
                keep,
            },
        }
    }

    fn takes_stamp(&self) -> bool {
        matches!(
            self,
            Self::Create { .. } | Self::Point { .. } | Self::Rollback { .. }
        )
    }
}

impl Node {
    pub(crate) fn snapshot_create(
        &mut self,
        token: AdminToken,
        volume: &str,
        name: String,
        labels: BTreeMap<String, String>,
    ) -> Outcome {
        let id = self.find(volume)?;
        check_word("snapshot", &name, limits::SNAPSHOT_NAME_BYTES_MAX)?;
        check_label_set("snapshot", &labels)?;
        self.require_serving(id)?;
        self.require_room(id)?;
        if self.engine.snapshot_named(id, &name).is_some() {
            return Err(name_taken(volume, &name));
        }
        let created_us = self.wall.0;
        let ask = SnapshotAsk::Create {
            name,
            created_us,
            labels,
            cut: None,
        };
        self.ask(token, id, ask)
    }

    pub(crate) fn volume_clone(
        &mut self,
        token: AdminToken,
        (volume, snapshot): (&str, &str),
        clone: String,
        labels: BTreeMap<String, String>,
        born: Option<VolumeId>,
    ) -> Outcome {
        let id = self.find(volume)?;
        self.require_serving(id)?;
        let from = self.find_snapshot(id, snapshot)?;
        self.begin_clone(token, (id, &from), clone, labels, born)
    }

    /// Makes a volume that begins as this snapshot or rewind point of another one is.
    pub(crate) fn begin_clone(
        &mut self,
        token: AdminToken,
        (id, from): (GroupId, &SnapshotView),
        clone: String,
        labels: BTreeMap<String, String>,
        born: Option<VolumeId>,
    ) -> Outcome {
        self.check_new(&clone, from.meta.size_bytes)?;
        check_label_set("volume", &labels)?;
        let origin = self.volumes.get(&id);
        let (is_encrypted, spans) = origin.map_or((false, false), |v| (v.key_id != 0, v.spans));
        if is_encrypted && !spans {
            self.require_keys()?;
        }
        let placed = born.filter(|volume| is_encrypted && spans && self.has_first_key(*volume));
        if is_encrypted && spans && placed.is_none() {
            return Err(AdminError::Refused(format!(
                "the clone of volume {} has no key here yet; try again",
                self.name_of(id)
            )));
        }
        let (high, low) = (self.random(), self.random());
        let group = GroupId(self.random() >> 2 | 1);
        let drawn = VolumeId::from_random(u128::from(high) << 64 | u128::from(low));
        let volume = placed.unwrap_or(drawn);
        let ask = SnapshotAsk::Clone {
            name: from.meta.name.clone(),
            cut: from.cut,
            group,
            volume,
            clone: clone.clone(),
            created_us: self.wall.0,
            labels,
        };
        self.by_name.insert(clone, group);
        if is_encrypted && placed.is_none() {
            self.make_clone_key(token, id, volume, ask);
            return Ok(None);
        }
        let outcome = self.ask(token, id, ask.clone());
        if outcome.is_err() {
            self.free_name(&ask);
        }
        outcome
    }

    /// The name that a clone was to have is free again, unless it has begun.
    pub(crate) fn free_name(&mut self, ask: &SnapshotAsk) {
        if let SnapshotAsk::Clone { group, volume, .. } = ask {
            if !self.volumes.contains_key(group) {
                self.by_name.retain(|_, of| of != group);
                self.unreserve_key(*volume);
            }
        }
    }

    /// As [`Self::free_name`], for all clones that a volume has in its log and will not apply.
    pub(crate) fn free_names(&mut self, id: GroupId) {
        let proposals = self.volumes.get(&id).map(|v| &v.proposals);
        let asks = proposals.into_iter().flat_map(|all| all.values());
        let asks = asks.filter_map(|(_, proposal)| match proposal {
            Proposal::Snapshot(_, ask) => Some(ask.clone()),
            _ => None,
        });
        let asks: Vec<SnapshotAsk> = asks.collect();
        asks.iter().for_each(|ask| self.free_name(ask));
    }

    /// Refuses operators whose change of snapshots is not in the log and will not be.
    pub(crate) fn refuse_asks(&mut self, id: GroupId, why: &AdminError) {
        let asks = self.volumes.get_mut(&id).map(Volume::take_asks);
        for (token, ask) in asks.unwrap_or_default() {
            self.free_name(&ask);
            self.refused.push((token, why.clone()));
        }
    }

    /// The voters of a volume that spans nodes, and where they are; none where it has one copy.
    fn voters_of(&self, volume: &Volume) -> Vec<MemberPlace> {
        let group = volume.group.as_ref().filter(|_| volume.spans);
        let voters = group.map_or(Vec::new(), |group| group.membership().voters);
        let own = group.map(|group| group.config().replica);
        let here = Place {
            node: self.config.node,
            store: u16::try_from(self.config.store_index).unwrap_or(u16::MAX),
        };
        let member = |replica: ReplicaId| {
            let here = (Some(replica) == own).then_some(here);
            // A replica that has never spoken to this one has nothing of the origin either.
            let place = self.place_of(replica).or(here)?;
            Some(MemberPlace {
                replica,
                place,
                replaces: ReplicaId(0),
            })
        };
        voters.into_iter().filter_map(member).collect()
    }

    /// A clone has begun, asked for here or by another leader, or found in the log.
    pub(crate) fn clone_begun(&mut self, origin: GroupId, id: GroupId, effects: &mut Vec<Effect>) {
        let Some(mut group) = self.engine.recovered_group(id) else {
            return; // it has ended already
        };
        if self.volumes.contains_key(&id) {
            return;
        }
        let name = &group.meta.name;
        if self.by_name.get(name).is_some_and(|of| *of != id) {
            // A volume took the name while the clone's entry was not in force.
            let name = format!("{}-{}", one_line(name), id.0);
            group.meta.name.clone_from(&name);
            tracing::warn!(name, "a clone's name is taken");
            let token = u64::MAX; // nobody waits for it
            let group = id;
            self.tell_engine(engine_event::Event::Rename { token, group, name });
        }
        self.add_volume(group);
        if let Some(group) = self.volumes.get_mut(&id).and_then(|v| v.group.as_mut()) {
            group.end_grace();
        }
        let leads = |v: &Volume| v.group.as_ref().is_some_and(|g| g.role() == Role::Leader);
        let leads = self.volumes.get(&origin).is_some_and(leads);
        if let Some(clone) = self.volumes.get_mut(&id).filter(|v| v.spans && leads) {
            // Whoever leads the origin leads the clone, without waiting for an election that somebody else begins.
            clone.stands_ticks_left = STANDS_TICKS;
        }
        self.exports_changed(effects);
    }

    pub(crate) fn snapshot_delete(
        &mut self,
        token: AdminToken,
        volume: &str,
        name: String,
    ) -> Outcome {
        let id = self.find(volume)?;
        self.require_serving(id)?;
        let cut = self.find_snapshot(id, &name)?.cut;
        let v = self.volumes.get(&id);
        let readers = v.and_then(|v| v.readers.get(&cut));
        if let Some(readers) = readers {
            return Err(AdminError::Refused(format!(
                "snapshot {volume}@{name} is attached by {}: detach before you delete it",
                self.sessions_text(readers.iter().copied())
            )));
        }
        self.ask(token, id, SnapshotAsk::Delete { name, cut })
    }

    pub(crate) fn snapshot_rollback(
        &mut self,
        token: AdminToken,
        volume: &str,
        name: String,
        keep: Option<Option<String>>,
        force: bool,
        effects: &mut Vec<Effect>,
    ) -> Outcome {
        let id = self.find(volume)?;
        self.require_serving(id)?;
        let to = self.find_snapshot(id, &name)?.cut;
        let keep = match keep {
            None => Some(self.name_of_what_is_left(id)),
            Some(None) => None,
            Some(Some(keep)) => {
                check_word("snapshot", &keep, limits::SNAPSHOT_NAME_BYTES_MAX)?;
                if self.engine.snapshot_named(id, &keep).is_some() {
                    return Err(name_taken(volume, &keep));
                }
                Some(keep)
            }
        };
        self.require_room(id)?;
        let Some(v) = self.volumes.get(&id) else {
            return Ok(None);
        };
        if v.leaving.contains(&to) {
            return Err(AdminError::Refused(format!(
                "snapshot {volume}@{name} is being deleted; go back to another one"
            )));
        }
        if v.is_rolling_back {
            return Err(AdminError::Refused(format!(
                "volume {volume} is being rolled back already; wait for that to end"
            )));
        }
        if v.held(self.now).is_some() {
            return Err(AdminError::Refused(format!(
                "a group snapshot of volume {volume} is being taken; try again"
            )));
        }
        let open = |conn: &ConnId| self.conns.get(conn).is_some_and(|c| !c.closing);
        let sessions: Vec<ConnId> = v.sessions.iter().copied().filter(open).collect();
        if !sessions.is_empty() && !force {
            return Err(AdminError::Refused(format!(
                "volume {volume} is attached by {}: detach before you roll it back, or use --force \
                 to end sessions",
                self.sessions_text(sessions.into_iter())
            )));
        }
        let created_us = self.wall.0;
        let ask = SnapshotAsk::Rollback {
            name,
            to,
            created_us,
            keep,
        };
        let outcome = self.ask(token, id, ask)?;
        for conn in sessions {
            self.close(conn, format!("volume {volume} is rolled back"), effects);
        }
        self.end_writes(id);
        Ok(outcome)
    }

    /// Ends requests that change a volume and are not in its log: nobody waits for them any more. What
    /// they have read of its blocks would be wrong after a rollback.
    fn end_writes(&mut self, id: GroupId) {
        self.reseal_stop(id);
        if let Some(volume) = self.volumes.get_mut(&id) {
            volume.waiting.clear();
            volume.locked.clear();
        }
        let ops = self.ops.iter().filter(|(_, op)| op.group == id);
        let ops: Vec<_> = ops
            .filter(|(_, op)| op.mutates())
            .map(|(id, _)| *id)
            .collect();
        for op in ops {
            self.fail_op(op, esker_nbd::RequestError::Shutdown);
        }
    }

    /// A name for the state that a rollback leaves, which no snapshot of the volume has.
    fn name_of_what_is_left(&self, id: GroupId) -> String {
        let base = format!("before-rollback-{}", self.wall.0 / 1_000_000);
        let mut name = base.clone();
        // Ends: a volume has so many snapshots at most.
        for n in 2..=limits::VOLUME_SNAPSHOTS_MAX + 2 {
            if self.engine.snapshot_named(id, &name).is_none() {
                break;
            }
            name = format!("{base}-{n}");
        }
        name
    }

    /// What a volume's log holds is in force only where it serves.
    pub(crate) fn require_serving(&self, id: GroupId) -> Result<(), AdminError> {
        match self.volumes.get(&id) {
            Some(v) if !v.is_serving() => Err(v.not_serving()),
            _ => Ok(()),
        }
    }

    pub(crate) fn require_room(&self, id: GroupId) -> Result<(), AdminError> {
        if self.engine.snapshot_count(id) >= to_u64(limits::VOLUME_SNAPSHOTS_MAX) {
            return Err(too_many(self.name_of(id)));
        }
        if !self.engine.has_room_for_metadata() {
            return Err(AdminError::NoSpace(
                "the store is full: delete a snapshot or a volume, or trim one".into(),
            ));
        }
        Ok(())
    }

    pub(crate) fn find_snapshot(
        &self,
        id: GroupId,
        name: &str,
    ) -> Result<SnapshotView, AdminError> {
        let found = self.engine.snapshot_named(id, name);
        found.ok_or_else(|| unknown(self.name_of(id), name))
    }

    fn name_of(&self, id: GroupId) -> &str {
        self.volumes.get(&id).map_or("", |v| v.name.as_str())
    }

    /// Sessions, as a refusal names them.
    fn sessions_text(&self, conns: impl Iterator<Item = ConnId>) -> String {
        let conns: Vec<ConnId> = conns.collect();
        let name = |conn: &ConnId| match self.conns.get(conn).map(|c| &c.transport) {
            Some(Transport::Tcp(address)) => format!("session {} (from {address})", conn.0),
            _ => format!("session {} (on the unix socket)", conn.0),
        };
        let mut text: Vec<String> = conns.iter().take(NAMED_MAX).map(name).collect();
        if conns.len() > NAMED_MAX {
            text.push(format!("{} more", conns.len() - NAMED_MAX));
        }
        text.join(", ")
    }

    pub(crate) fn ask(&mut self, token: AdminToken, id: GroupId, ask: SnapshotAsk) -> Outcome {
        self.writable()?;
        // It may have gone while a key for its clone was being made.
        let volume = self.volumes.get_mut(&id).filter(|v| !v.deleting);
        let Some(volume) = volume else {
            return Err(AdminError::NotFound(
                "the volume was deleted meanwhile".into(),
            ));
        };
        if volume.asks.len() >= ASKS_MAX {
            return Err(AdminError::Refused(format!(
                "volume {} has {ASKS_MAX} changes of snapshots waiting; try again",
                volume.name
            )));
        }
        match &ask {
            SnapshotAsk::Create { .. } | SnapshotAsk::Clone { .. } => {}
            SnapshotAsk::Point { .. } => volume.rewind.asked = true,
            SnapshotAsk::Delete { cut, .. } => _ = volume.leaving.insert(*cut),
            SnapshotAsk::Rollback { .. } => volume.is_rolling_back = true,
        }
        volume.asks.push_back((token, ask));
        self.dirty.insert(id);
        self.propose_asks(id);
        Ok(None)
    }

    /// Puts changes of snapshots into the log, in the order in which they were asked for.
    pub(crate) fn propose_asks(&mut self, id: GroupId) {
        let Some(volume) = self.volumes.get(&id).filter(|v| !v.asks.is_empty()) else {
            return;
        };
        let point_us = self.point_time_us(id, volume);
        let members = self.voters_of(volume);
        while let Some(volume) = self.volumes.get_mut(&id) {
            let serves = volume.is_serving();
            let ask = serves.then(|| volume.asks.pop_front()).flatten();
            let Some((token, mut ask)) = ask else { return };
            if let SnapshotAsk::Point { created_us } = &mut ask {
                *created_us = point_us;
            }
            if let SnapshotAsk::Create {
                cut: Some((cut, _)),
                ..
            } = &ask
            {
                if let Err(why) = self.held_for(id, *cut) {
                    self.refused.push((token, why));
                    continue;
                }
            }
            let Some(volume) = self.volumes.get_mut(&id) else {
                return;
            };
            let mut stamp = Stamp(0);
            if ask.takes_stamp() {
                match volume.take_stamps(1) {
                    Some(first) => stamp = first,
                    None => {
                        volume.asks.push_front((token, ask));
                        return self.open_epoch(id);
                    }
                }
            }
            let data = ask.operation(stamp, members.clone());
            let data = data.encode(RequestId::default());
            let Some(group) = volume.group.as_mut() else {
                return;
            };
            match group.propose(Bytes::from(data), Vec::new()) {
                Ok(placed) => {
                    if matches!(ask, SnapshotAsk::Point { .. }) {
                        volume.rewind.taken = Some(volume.stamps_taken);
                    }
                    volume.urgent = true;
                    self.dirty.insert(id);
                    if let SnapshotAsk::Create {
                        cut: Some((cut, held)),
                        ..
                    } = &mut ask
                    {
                        *held = self.end_hold(id, *cut);
                    }
                    let entry = (placed.term, Proposal::Snapshot(token, ask));
                    if let Some(volume) = self.volumes.get_mut(&id) {
                        volume.proposals.insert(placed.index, entry);
                    }
                }
                Err(ProposeError::Busy) => {
                    volume.asks.push_front((token, ask));
                    return self.tell_engine(engine_event::Event::SyncSoon);
                }
                Err(_) => {
                    volume.forget_ask(&ask);
                    self.free_name(&ask);
                    self.refused.push((token, leadership_changed()));
                }
            }
        }
    }

    /// A change is in force, was refused by the volume's log, or was lost with a leadership.
    pub(crate) fn snapshot_done(
        &mut self,
        id: GroupId,
        token: AdminToken,
        ask: &SnapshotAsk,
        outcome: Option<&engine_event::Outcome>,
        effects: &mut Vec<Effect>,
    ) {
        use engine_event::{Outcome as Done, SnapshotRefusal as Refusal};
        if let Some(volume) = self.volumes.get_mut(&id) {
            volume.forget_ask(ask);
        }
        let volume = self.name_of(id).to_owned();
        if let SnapshotAsk::Clone { group, .. } = ask {
            // A volume with one copy answers when it serves, so that a script can attach at once.
            if self.volumes.get(group).is_some_and(Volume::is_single) {
                self.starting.insert(*group, token);
                return self.started(*group, effects);
            }
            self.free_name(ask);
        }
        if token == NOBODY {
            if !matches!(outcome, Some(Done::SnapshotTaken(_))) {
                self.manifest_failed(id);
            }
            return;
        }
        let (SnapshotAsk::Create { name, .. }
        | SnapshotAsk::Clone { name, .. }
        | SnapshotAsk::Delete { name, .. }
        | SnapshotAsk::Rollback { name, .. }) = ask
        else {
            return;
        };
        let result = match outcome {
            Some(Done::SnapshotTaken(_)) => self.find_snapshot(id, name).map(|view| {
                let report = self.snapshot_report(id, view);
                match ask {
                    SnapshotAsk::Create {
                        cut: Some((_, held)),
                        ..
                    } => AdminReply::Cut(Box::new(report), *held),
                    _ => AdminReply::Snapshot(report),
                }
            }),
            Some(Done::SnapshotDeleted(_)) => Ok(AdminReply::Done),
            Some(Done::Cloned(group)) => self
                .report_of(*group, &self.engine.snapshot_blocks())
                .map(AdminReply::Volume)
                .ok_or_else(unsure),
            Some(Done::RolledBack(left)) => self.rolled_back(id, *left),
            Some(Done::SnapshotRefused(Refusal::NameTaken)) => match ask {
                SnapshotAsk::Rollback { keep: Some(k), .. } => Err(name_taken(&volume, k)),
                _ => Err(name_taken(&volume, name)),
            },
            Some(Done::SnapshotRefused(Refusal::Unknown)) => Err(unknown(&volume, name)),
            Some(Done::SnapshotRefused(Refusal::TooMany)) => Err(too_many(&volume)),
            // Another entry took its place, or this replica went past it without looking: it may be in force.
            _ => Err(unsure()),
        };
        Self::answer(token, result, effects);
    }

    fn rolled_back(&self, id: GroupId, left: Stamp) -> Result<AdminReply, AdminError> {
        let below = Stamp(left.0.saturating_sub(1));
        let kept = self.engine.snapshots_after(id, below, 1).pop();
        let kept = kept.filter(|view| view.cut == left);
        let volume = self
            .report_of(id, &self.engine.snapshot_blocks())
            .ok_or_else(unsure)?;
        let kept = kept.map(|view| self.snapshot_report(id, view));
        let done = RolledBack { volume, kept };
        Ok(AdminReply::RolledBack(Box::new(done)))
    }

    fn snapshot_report(&self, id: GroupId, view: SnapshotView) -> SnapshotReport {
        let bytes = |blocks: u64| blocks * BLOCK_SIZE_U64;
        let volume = self.volumes.get(&id);
        let readers = volume.and_then(|v| v.readers.get(&view.cut));
        SnapshotReport {
            volume: self.name_of(id).to_owned(),
            name: view.meta.name.clone(),
            stamp: view.cut.0,
            created_unix: view.meta.created_us / 1_000_000,
            size_bytes: view.meta.size_bytes,
            unique_bytes: view.unique_blocks.map(bytes),
            referenced_bytes: view.referenced_blocks.map(bytes),
            labels: view.meta.labels.clone(),
            sessions: to_u32_saturating(readers.map_or(0, |conns| conns.len())),
            store: self.config.store_index,
        }
    }

    /// Snapshots of one volume or of all, by volume and age, behind a place.
    pub(crate) fn snapshot_list(
        &self,
        volume: Option<&str>,
        after: Option<(String, u64)>,
    ) -> Result<SnapshotPage, AdminError> {
        let mut page = SnapshotPage::default();
        let only = volume.map(|name| self.find(name)).transpose()?;
        let (from, mut stamp) = after.unwrap_or_default();
        for (name, id) in self.by_name.range(from.clone()..) {
            if *name != from {
                stamp = 0;
            }
            let shown = self.volumes.get(id).is_some_and(|v| !v.deleting);
            if only.is_some_and(|only| only != *id) || !shown {
                continue;
            }
            let room = SNAPSHOTS_PAGE_MAX - page.snapshots.len();
            let views = self.engine.snapshots_after(*id, Stamp(stamp), room);
            let reports = views
                .into_iter()
                .map(|view| self.snapshot_report(*id, view));
            page.snapshots.extend(reports);
            if page.snapshots.len() >= SNAPSHOTS_PAGE_MAX {
                let last = page.snapshots.last();
                page.next = last.map(|last| (last.volume.clone(), last.stamp));
                break;
            }
        }
        Ok(page)
    }

    /// Versions of one volume with a number above `after`.
    pub(crate) fn version_list(
        &self,
        volume: &str,
        after: u64,
    ) -> Result<Vec<VersionReport>, AdminError> {
        let id = self.find(volume)?;
        let versions = self.engine.versions_after(id, after, SNAPSHOTS_PAGE_MAX);
        let reports = versions.into_iter().map(|version| VersionReport {
            id: version.id,
            parent: version.parent,
            kind: match version.kind {
                StoredKind::Head => VersionKind::Head,
                StoredKind::Snapshot => VersionKind::Snapshot,
                StoredKind::Hidden => VersionKind::Deleted,
            },
            snapshot: self.snapshot_report(id, version.snapshot),
        });
        Ok(reports.collect())
    }
}

impl Volume {
    /// Nobody waits for a change any more.
    pub(crate) fn forget_ask(&mut self, ask: &SnapshotAsk) {
        match ask {
            SnapshotAsk::Create { .. } | SnapshotAsk::Clone { .. } => {}
            SnapshotAsk::Point { .. } => self.rewind.asked = false,
            SnapshotAsk::Delete { cut, .. } => _ = self.leaving.remove(cut),
            SnapshotAsk::Rollback { .. } => self.is_rolling_back = false,
        }
    }

    /// Why nothing is changed here: another replica may lead, whatever is wrong with this one.
    pub(crate) fn not_serving(&self) -> AdminError {
        let text = self.trouble.clone();
        let text = text
            .unwrap_or_else(|| format!("volume {} does not serve here now; try again", self.name));
        match self.spans || self.trouble.is_none() {
            true => AdminError::NotLeading(text),
            false => AdminError::Refused(text),
        }
    }

    /// Takes out every operator who waits for a change that is not in the log.
    pub(crate) fn take_asks(&mut self) -> Vec<(AdminToken, SnapshotAsk)> {
        let asks: Vec<_> = std::mem::take(&mut self.asks).into();
        asks.iter().for_each(|(_, ask)| self.forget_ask(ask));
        asks
    }

    /// Takes out every operator who waits for this volume.
    pub(crate) fn take_operators(&mut self) -> Vec<AdminToken> {
        let asks = self.take_asks();
        let mut tokens: Vec<_> = asks.into_iter().map(|(token, _)| token).collect();
        for (_, proposal) in std::mem::take(&mut self.proposals).into_values() {
            if let Proposal::Snapshot(_, ask) = &proposal {
                self.forget_ask(ask);
            }
            tokens.extend(proposal.operator());
        }
        tokens
    }
}

pub(crate) fn name_taken(volume: &str, name: &str) -> AdminError {
    AdminError::Exists(format!("volume {volume} has a snapshot named {name}"))
}

fn unknown(volume: &str, name: &str) -> AdminError {
    let name = one_line(name);
    AdminError::NotFound(format!("volume {volume} has no snapshot named {name}"))
}

fn too_many(volume: &str) -> AdminError {
    AdminError::Refused(format!(
        "volume {volume} has {} snapshots, the most; delete some",
        limits::VOLUME_SNAPSHOTS_MAX
    ))
}
