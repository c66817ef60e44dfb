//! Administrative requests.

use crate::admin::{
    one_line, AdminError, AdminReply, AdminRequest, ReplicaSpec, SpaceReport, StatusReport,
    VolumeReport, VolumeState,
};
use crate::event::{AdminToken, Effect};
use crate::groups::unsure;
use crate::node::{Node, Phase};
use crate::volume::{Op, Proposal, Volume};
use bytes::Bytes;
use esker_base::num::{to_u32_saturating, to_u64};
use esker_base::{limits, GroupId, ReplicaId, VolumeId, BLOCK_SIZE_U64};
use esker_engine::event as engine_event;
use esker_engine::format::checkpoint::{GroupMeta, Membership};
use esker_engine::format::operation::{Operation, RequestId};
use esker_engine::CatalogError;
use esker_replication::ProposeError;
use std::collections::BTreeMap;

/// An operator's request that waits for the store.
#[derive(Clone, Debug)]
pub(crate) enum AdminPending {
    Create(AdminToken, GroupId),
    Delete(AdminToken, GroupId),
    Rename(AdminToken, GroupId),
    AcceptLoss(AdminToken, GroupId),
    Checkpoint(AdminToken),
    /// Exact sums are asked for; checkpoints that it may still take.
    Settle(AdminToken, u8),
    /// The feed of a replica that lags begins; no operator waits.
    Feed(GroupId),
    /// It has caught up; no operator waits.
    Publish(GroupId),
    /// It needs no feed any more; no operator waits.
    FeedEnds(GroupId),
    /// Checkpoints are to sign for maps; no operator waits.
    Sign,
}

impl AdminPending {
    fn token(&self) -> AdminToken {
        match self {
            Self::Create(token, _)
            | Self::Delete(token, _)
            | Self::Rename(token, _)
            | Self::AcceptLoss(token, _)
            | Self::Checkpoint(token)
            | Self::Settle(token, _) => *token,
            Self::Feed(_) | Self::Publish(_) | Self::FeedEnds(_) | Self::Sign => {
                crate::rewind::NOBODY
            }
        }
    }
}

pub(crate) type Outcome = Result<Option<AdminReply>, AdminError>;

impl Node {
    /// Takes an operator's request.
    pub(crate) fn admin_request(
        &mut self,
        token: AdminToken,
        request: AdminRequest,
        effects: &mut Vec<Effect>,
    ) {
        let outcome = if self.phase == Phase::Serving {
            match self.defer(token, request) {
                Some(request) => self.admin_now(token, request, effects),
                None => Ok(None),
            }
        } else {
            Err(AdminError::Refused(
                "the store is starting or stopping; try again".into(),
            ))
        };
        match outcome {
            Ok(None) => {} // answered when the store has done it
            Ok(Some(reply)) => Self::answer(token, Ok(reply), effects),
            Err(error) => Self::answer(token, Err(error), effects),
        }
    }

    fn admin_now(
        &mut self,
        token: AdminToken,
        request: AdminRequest,
        effects: &mut Vec<Effect>,
    ) -> Outcome {
        match request {
            AdminRequest::VolumeCreate {
                name,
                size_bytes,
                labels,
                encrypted,
            } => self.volume_create(token, name, size_bytes, labels, encrypted),
            AdminRequest::ReplicaCreate(spec) => self.replica_create(token, spec),
            AdminRequest::ReplicaAdd {
                volume,
                replica,
                replaces,
                places,
            } => self.replica_add(token, &volume, (replica, replaces), &places),
            AdminRequest::ReplicaRemove {
                volume,
                replica,
                only_outsider,
            } => self.replica_remove(token, &volume, replica, only_outsider),
            AdminRequest::VolumeList => Ok(Some(AdminReply::Volumes(self.reports()))),
            AdminRequest::VolumeShow { name } => {
                let id = self.find(&name)?;
                let report = self.report_of(id, &self.engine.snapshot_blocks());
                Ok(report.map(AdminReply::Volume))
            }
            AdminRequest::VolumeResize { name, size_bytes } => {
                self.volume_resize(token, &name, size_bytes)
            }
            AdminRequest::VolumeRelabel {
                name,
                labels,
                expects,
            } => self.volume_relabel(token, &name, labels, expects.as_ref()),
            AdminRequest::VolumeAttach {
                name,
                holder,
                only,
                fence,
            } => self.volume_attach(token, &name, holder, only, fence),
            AdminRequest::VolumeRename { name, new_name } => {
                self.volume_rename(token, &name, new_name, effects)
            }
            AdminRequest::VolumeFind { name } => self.find(&name).map(|_| Some(AdminReply::Done)),
            AdminRequest::VolumeDelete {
                name,
                with_snapshots,
            } => self.volume_delete(token, &name, with_snapshots, effects),
            AdminRequest::SnapshotCreate {
                volume,
                name,
                labels,
            } => self.snapshot_create(token, &volume, name, labels),
            AdminRequest::VolumeHold {
                volume,
                name,
                cut,
                step,
            } => self.volume_hold(&volume, &name, cut, step),
            AdminRequest::SnapshotCut {
                volume,
                name,
                cut,
                created_us,
                labels,
            } => self.snapshot_cut(token, (&volume, cut), name, created_us, labels),
            AdminRequest::VolumeClone {
                volume,
                snapshot,
                name,
                labels,
                born,
            } => self.volume_clone(token, (&volume, &snapshot), name, labels, born),
            AdminRequest::VolumeCloneAt {
                volume,
                at_us,
                name,
                labels,
                born,
            } => self.volume_clone_at(token, (&volume, at_us), name, labels, born),
            AdminRequest::SnapshotDelete { volume, name } => {
                self.snapshot_delete(token, &volume, name)
            }
            AdminRequest::SnapshotRollback {
                volume,
                name,
                keep,
                force,
            } => self.snapshot_rollback(token, &volume, name, keep, force, effects),
            AdminRequest::SnapshotList { volume, after } => {
                let page = self.snapshot_list(volume.as_deref(), after)?;
                Ok(Some(AdminReply::Snapshots(page)))
            }
            AdminRequest::VersionList { volume, after } => {
                let versions = self.version_list(&volume, after)?;
                Ok(Some(AdminReply::Versions(versions)))
            }
            AdminRequest::SnapshotDiff {
                volume,
                of,
                from,
                to,
                offset,
            } => {
                let old = (of.as_deref().unwrap_or(&volume), from.as_str());
                self.snapshot_diff(token, &volume, old, to.as_deref(), offset)
            }
            AdminRequest::Settle => self.settle_sums(token),
            AdminRequest::Scrub { volume, place } => self.scrub(token, volume.as_deref(), place),
            AdminRequest::VolumeAcceptLoss { name } => self.volume_accept_loss(token, &name),
            AdminRequest::Space { volume } => self.space(volume).map(Some),
            AdminRequest::Metrics => Ok(Some(AdminReply::Metrics(Box::new(self.sample())))),
            AdminRequest::Tune(tuning) => Ok(Some(self.tune(tuning))),
            AdminRequest::KeyShow { volume } => self.key_show(&volume),
            AdminRequest::KeysWrapped { volume } => self.keys_wrapped(&volume),
            AdminRequest::KeysPlace { keys, fresh } => self.keys_place(token, keys, fresh),
            AdminRequest::KeyNext { volume } => self.key_next(&volume),
            AdminRequest::KeyInForce {
                volume,
                key_id,
                replicas,
            } => self.key_in_force(token, &volume, key_id, &replicas),
            AdminRequest::KeyRotate { volume, data_key } => {
                self.key_rotate(token, &volume, data_key)
            }
            AdminRequest::Reseal => self.reseal(token),
            AdminRequest::Status => Ok(Some(AdminReply::Status(self.status()))),
            AdminRequest::Checkpoint => {
                self.writable()?;
                let pending = self.admin_token(AdminPending::Checkpoint(token));
                self.tell_engine(engine_event::Event::Checkpoint { token: pending });
                Ok(None)
            }
        }
    }

    fn volume_accept_loss(&mut self, token: AdminToken, name: &str) -> Outcome {
        let id = self.find(name)?;
        self.writable()?;
        if self.volumes.get(&id).is_some_and(|v| v.map_refused) {
            return self.accept_map(token, id);
        }
        // Entries behind the gap may be in no other replica's log: applying them would make this
        // one differ from the others for good.
        let alone = self.engine.group(id).is_none_or(|view| {
            let m = view.meta.membership;
            m.voters == [view.meta.replica] && m.voters_outgoing.is_empty() && m.learners.is_empty()
        });
        if !alone {
            return Err(AdminError::Refused(format!(
                "volume {name} has other replicas: this one takes from them what it has lost"
            )));
        }
        let pending = self.admin_token(AdminPending::AcceptLoss(token, id));
        self.tell_engine(engine_event::Event::AcceptLoss {
            token: pending,
            group: id,
        });
        Ok(None)
    }

    pub(crate) fn find(&self, name: &str) -> Result<GroupId, AdminError> {
        let id = self.by_name.get(name).copied();
        id.filter(|id| self.volumes.get(id).is_some_and(|v| !v.deleting))
            .ok_or_else(|| AdminError::NotFound(format!("no volume is named {}", one_line(name))))
    }

    pub(crate) fn writable(&self) -> Result<(), AdminError> {
        match &self.fenced {
            Some(why) => Err(AdminError::Refused(format!(
                "the store takes no more writes ({why}); check the device, then restart eskerd"
            ))),
            None => Ok(()),
        }
    }

    pub(crate) fn check_new(&self, name: &str, size_bytes: u64) -> Result<(), AdminError> {
        self.writable()?;
        if name != limits::METADATA_VOLUME {
            check_word("volume", name, limits::VOLUME_NAME_BYTES_MAX)?;
        }
        check_size(size_bytes)?;
        if self.by_name.contains_key(name) {
            return Err(AdminError::Exists(format!("a volume named {name} exists")));
        }
        // Those that are being created have a name and nothing else.
        if self.by_name.len() >= limits::STORE_VOLUMES_MAX {
            let most = limits::STORE_VOLUMES_MAX;
            return Err(AdminError::Refused(format!(
                "the store has {most} volumes, the most"
            )));
        }
        if !self.engine.has_room_for_metadata() {
            return Err(AdminError::NoSpace(
                "the store is full: delete or trim a volume".into(),
            ));
        }
        Ok(())
    }

    fn volume_create(
        &mut self,
        token: AdminToken,
        name: String,
        size_bytes: u64,
        labels: BTreeMap<String, String>,
        encrypted: bool,
    ) -> Outcome {
        self.check_new(&name, size_bytes)?;
        if encrypted {
            self.require_keys()?;
        }
        check_volume_labels(&name, &labels)?;
        let high = u128::from(self.random());
        let volume = VolumeId::from_random(high << 64 | u128::from(self.random()));
        // Ids have 62 bits, so that they never meet a sentinel or a sign.
        let replica = ReplicaId(self.random() >> 2 | 1);
        let group = GroupId(self.random() >> 2 | 1);
        let spec = ReplicaSpec {
            name,
            size_bytes,
            labels,
            volume,
            group,
            replica,
            voters: vec![replica],
            learns: false,
            key: None,
        };
        match encrypted {
            true => self.make_volume_key(token, spec),
            false => self.create(token, spec, 0),
        }
        Ok(None)
    }

    fn replica_create(&mut self, token: AdminToken, spec: ReplicaSpec) -> Outcome {
        self.check_new(&spec.name, spec.size_bytes)?;
        check_volume_labels(&spec.name, &spec.labels)?;
        let odd = spec.voters.contains(&spec.replica) == spec.learns
            || spec.voters.is_empty()
            || spec.replica.0 == 0
            || self.volumes.contains_key(&spec.group);
        if odd {
            return Err(AdminError::Invalid(
                "the replica's ids contradict each other".into(),
            ));
        }
        match spec.key.clone() {
            Some(wrapped) => self.take_replica_key(token, spec, wrapped)?,
            None => self.create(token, spec, 0),
        }
        Ok(None)
    }

    /// Begins a volume, encrypted when it has a key.
    pub(crate) fn create(&mut self, token: AdminToken, spec: ReplicaSpec, key_id: u32) {
        let (id, volume) = (spec.group, spec.volume);
        let meta = GroupMeta {
            group: id,
            volume: spec.volume,
            replica: spec.replica,
            name: spec.name.clone(),
            size_bytes: spec.size_bytes,
            block_bytes: 4096,
            created_us: self.wall.0,
            labels: spec.labels,
            membership: Membership {
                voters: spec.voters,
                learners: Vec::from_iter(spec.learns.then_some(spec.replica)),
                ..Membership::default()
            },
            key_id,
            feeds: GroupId(0),
        };
        self.by_name.insert(spec.name, id); // taken from now on
        let pending = self.admin_token(AdminPending::Create(token, id));
        let meta = Box::new(meta);
        self.tell_engine(engine_event::Event::Create {
            token: pending,
            meta,
        });
        if key_id != 0 {
            _ = self.vouch(id, volume); // nothing is there that could be wrong
        }
    }

    fn volume_resize(&mut self, token: AdminToken, name: &str, size_bytes: u64) -> Outcome {
        let id = self.find(name)?;
        self.writable()?;
        check_size(size_bytes)?;
        let Some(volume) = self.volumes.get(&id) else {
            return Ok(None);
        };
        if size_bytes < volume.size_bytes {
            return Err(AdminError::Invalid(format!(
                "volume {name} has {} bytes and shrinking it would drop data; create a smaller \
                 volume and copy",
                volume.size_bytes
            )));
        }
        self.propose_change(
            id,
            &Operation::Resize { size_bytes },
            Proposal::Resize(token),
        )
    }

    fn volume_relabel(
        &mut self,
        token: AdminToken,
        name: &str,
        labels: BTreeMap<String, Option<String>>,
        expects: Option<&(String, String)>,
    ) -> Outcome {
        let id = self.find(name)?;
        self.writable()?;
        if let (Some((key, value)), Some(volume)) = (expects, self.volumes.get(&id)) {
            let is_so = volume.labels.get(key) == Some(value);
            if !volume.is_serving() || volume.is_relabelled() || !is_so {
                return Err(AdminError::NotLeading(format!(
                    "the labels of volume {name} have changed since they were looked at, or its leader has"
                )));
            }
        }
        let mut changed = self.volumes.get(&id).map(|v| v.labels.clone());
        let after = changed.get_or_insert_default();
        for (key, value) in &labels {
            after.remove(key);
            after.extend(value.clone().map(|value| (key.clone(), value)));
        }
        check_volume_labels(name, after)?;
        // One at a time, so that the log never holds one that is refused for its number of labels: a copy that is made
        // later begins with what the labels are then, and would take it.
        let volume = self.volumes.get(&id).filter(|v| v.spans);
        if volume.is_some_and(Volume::is_relabelled) {
            return Err(AdminError::NotLeading(format!(
                "the labels of volume {name} are being changed; try again"
            )));
        }
        let operation = Operation::Relabel { labels };
        self.propose_change(id, &operation, Proposal::Relabel(token))
    }

    /// Puts a change of a volume into its log, for an operator who waits.
    pub(crate) fn propose_change(
        &mut self,
        id: GroupId,
        operation: &Operation,
        proposal: Proposal,
    ) -> Outcome {
        let Some(volume) = self.volumes.get_mut(&id) else {
            return Ok(None);
        };
        let serving = volume.is_serving();
        let Some(group) = volume.group.as_mut().filter(|_| serving) else {
            return Err(volume.not_serving());
        };
        let data = operation.encode(RequestId::default());
        match group.propose(Bytes::from(data), Vec::new()) {
            Ok(placed) => {
                volume
                    .proposals
                    .insert(placed.index, (placed.term, proposal));
                volume.urgent = true;
                self.dirty.insert(id);
                Ok(None)
            }
            Err(error) => {
                let text = format!("volume {}: {error}", volume.name);
                Err(match error {
                    ProposeError::NotLeader { .. } | ProposeError::Busy => {
                        AdminError::NotLeading(text)
                    }
                    _ => AdminError::Refused(text),
                })
            }
        }
    }

    /// A new size is in force, or a new name, or labels, or was lost with a leadership.
    pub(crate) fn resize_done(
        &mut self,
        id: GroupId,
        token: AdminToken,
        committed: bool,
        effects: &mut Vec<Effect>,
    ) {
        let sums = self.engine.snapshot_blocks();
        let result = match self.report_of(id, &sums).filter(|_| committed) {
            Some(report) => Ok(AdminReply::Volume(report)),
            None => Err(unsure()),
        };
        Self::answer(token, result, effects);
    }

    /// A volume goes by this name from now on, unless another one of this store does.
    pub(crate) fn take_name(&mut self, id: GroupId, name: &str) {
        let (free, was_taken) = self.free_name_for(id, name);
        if was_taken {
            let (token, name) = (u64::MAX, free.clone()); // nobody waits for it
            let group = id;
            self.tell_engine(engine_event::Event::Rename { token, group, name });
        }
        self.by_name.retain(|_, of| *of != id);
        self.by_name.insert(free.clone(), id);
        if let Some(volume) = self.volumes.get_mut(&id) {
            volume.name = free;
        }
    }

    /// What a volume is called: by this name, or another one when that is taken, as it may be where a replica was away
    /// when its volume was renamed. True when it is.
    pub(crate) fn free_name_for(&self, id: GroupId, name: &str) -> (String, bool) {
        let is_taken = |name: &str| self.by_name.get(name).is_some_and(|of| *of != id);
        if !is_taken(name) {
            return (name.to_owned(), false);
        }
        let suffix = format!("-{}", id.0);
        let mut length = name.len().min(limits::VOLUME_NAME_BYTES_MAX - suffix.len());
        while !name.is_char_boundary(length) {
            length -= 1;
        }
        let free = format!("{}{suffix}", one_line(&name[..length]));
        tracing::warn!(name, free, "a volume's name is another one's on this node: it goes by a longer one; rename one of them");
        (free, true)
    }

    fn unattached(&self, id: GroupId, verb: &str) -> Result<(), AdminError> {
        let Some(volume) = self.volumes.get(&id) else {
            return Ok(());
        };
        match volume.attached().len() {
            0 => Ok(()),
            n => Err(AdminError::Refused(format!(
                "volume {} has {n} session{} attached: detach before you {verb} it",
                volume.name,
                if n == 1 { "" } else { "s" }
            ))),
        }
    }

    fn volume_rename(
        &mut self,
        token: AdminToken,
        name: &str,
        new_name: String,
        effects: &mut Vec<Effect>,
    ) -> Outcome {
        let id = self.find(name)?;
        self.writable()?;
        check_word("volume", &new_name, limits::VOLUME_NAME_BYTES_MAX)?;
        if self.by_name.contains_key(&new_name) {
            return Err(AdminError::Exists(format!(
                "a volume named {new_name} exists"
            )));
        }
        let volume = self.volumes.get(&id);
        if volume.is_some_and(|v| v.spans) {
            // All replicas have it at the same index.
            let operation = Operation::Rename { name: new_name };
            return self.propose_change(id, &operation, Proposal::Rename(token));
        }
        if volume.is_some_and(|v| v.growth.is_some()) {
            // The new one has been told the old name.
            return Err(AdminError::Refused(format!(
                "volume {name} is being given another replica; wait until that one votes"
            )));
        }
        self.unattached(id, "rename")?;
        self.by_name.remove(name);
        self.by_name.insert(new_name.clone(), id);
        if let Some(volume) = self.volumes.get_mut(&id) {
            volume.name.clone_from(&new_name);
        }
        let pending = self.admin_token(AdminPending::Rename(token, id));
        let event = engine_event::Event::Rename {
            token: pending,
            group: id,
            name: new_name,
        };
        self.tell_engine(event);
        self.exports_changed(effects);
        Ok(None)
    }

    fn volume_delete(
        &mut self,
        token: AdminToken,
        name: &str,
        with_snapshots: bool,
        effects: &mut Vec<Effect>,
    ) -> Outcome {
        let id = self.find(name)?;
        self.writable()?;
        self.unattached(id, "delete")?;
        // A copy of one that spans nodes may go whoever holds the volume.
        let held = self.volumes.get(&id).filter(|v| !v.spans);
        if let Some(why) = held.and_then(|v| v.attachment.keeps(name)) {
            return Err(AdminError::Refused(why));
        }
        // A session that takes its leave still has its answers to come.
        let waits = |op: &Op| op.group == id && self.conns.contains_key(&op.conn);
        if self.ops.values().any(waits) {
            return Err(AdminError::Refused(format!(
                "a session of volume {name} is just ending: try again"
            )));
        }
        let snapshots = self.engine.snapshot_count(id);
        if snapshots > 0 && !with_snapshots {
            let s = if snapshots == 1 { "" } else { "s" };
            return Err(AdminError::Refused(format!(
                "volume {name} has {snapshots} snapshot{s}: delete them first, or all at once with \
                 --with-snapshots"
            )));
        }
        if let Some(volume) = self.volumes.get_mut(&id) {
            volume.deleting = true;
            volume.group = None;
        }
        // Requests of clients that have gone may still be on their way.
        self.fail_volume(id);
        self.note_ticking(id);
        let pending = self.admin_token(AdminPending::Delete(token, id));
        self.tell_engine(engine_event::Event::Delete {
            token: pending,
            group: id,
        });
        self.exports_changed(effects);
        Ok(None)
    }

    /// The store has done what was asked, durably, or refused.
    pub(crate) fn catalog_done(
        &mut self,
        token: u64,
        result: Result<(), CatalogError>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(pending) = self.admin.remove(&token) else {
            return;
        };
        match pending {
            AdminPending::Feed(id) => return self.feed_created(id, result.is_ok()),
            AdminPending::Publish(id) => {
                return self.feed_published(id, result.map_err(|error| error.to_string()));
            }
            AdminPending::FeedEnds(id) => return self.feed_given_up(id, result.is_ok()),
            _ => {}
        }
        let answer = pending.token();
        if let Err(error) = result {
            if let AdminPending::Create(_, id) = pending {
                self.by_name.retain(|_, group| *group != id);
                self.forget_reserved();
            }
            Self::answer(answer, Err(AdminError::Refused(error.to_string())), effects);
            return;
        }
        let id = match pending {
            AdminPending::Create(_, id) | AdminPending::AcceptLoss(_, id) => {
                self.remove_volume(id);
                if let Some(group) = self.engine.recovered_group(id) {
                    self.add_volume(group);
                }
                self.exports_changed(effects);
                // A volume with one copy answers when it serves, so that a script can attach at
                // once; one whose group spans nodes cannot wait for the others.
                if self.volumes.get(&id).is_some_and(Volume::is_single) {
                    self.starting.insert(id, answer);
                    return;
                }
                id
            }
            AdminPending::Rename(_, id) => id,
            AdminPending::Delete(_, id) => {
                self.by_name.retain(|_, group| *group != id);
                let is_encrypted = self.volumes.get(&id).is_some_and(|v| v.key_id != 0);
                self.remove_volume(id);
                if is_encrypted && self.sweep_keys_now(Some(answer)) {
                    return; // answered when its key is destroyed
                }
                Self::answer(answer, Ok(AdminReply::Done), effects);
                return;
            }
            AdminPending::Checkpoint(_)
            | AdminPending::Settle(..)
            | AdminPending::Feed(_)
            | AdminPending::Publish(_)
            | AdminPending::FeedEnds(_)
            | AdminPending::Sign => return,
        };
        self.exports_changed(effects);
        let report = self
            .report_of(id, &self.engine.snapshot_blocks())
            .map(AdminReply::Volume)
            .unwrap_or(AdminReply::Done);
        Self::answer(answer, Ok(report), effects);
    }

    /// A volume that an operator waits for serves, or shows that it will not.
    pub(crate) fn started(&mut self, id: GroupId, effects: &mut Vec<Effect>) {
        self.note_state(id);
        self.first_point(id);
        let settled = |v: &Volume| v.is_serving() || v.trouble.is_some();
        if !self.starting.contains_key(&id) || !self.volumes.get(&id).is_some_and(settled) {
            return;
        }
        if let Some(token) = self.starting.remove(&id) {
            let report = self
                .report_of(id, &self.engine.snapshot_blocks())
                .map_or(AdminReply::Done, AdminReply::Volume);
            Self::answer(token, Ok(report), effects);
        }
    }

    /// A checkpoint is durable.
    pub(crate) fn checkpoint_done(&mut self, token: u64, effects: &mut Vec<Effect>) {
        match self.admin.remove(&token) {
            // What was deleted or discarded is taken apart in parts, one for each checkpoint.
            Some(AdminPending::Settle(token, rounds)) if rounds > 1 && self.engine.reclaims() => {
                self.settle_round(token, rounds - 1);
            }
            Some(AdminPending::Sign) => self.signed(),
            Some(AdminPending::AcceptLoss(token, id)) => {
                self.keys_changed();
                let report = self.report_of(id, &self.engine.snapshot_blocks());
                let reply = report.map_or(AdminReply::Done, AdminReply::Volume);
                Self::answer(token, Ok(reply), effects);
            }
            Some(pending) => Self::answer(pending.token(), Ok(AdminReply::Done), effects),
            None => {}
        }
    }

    /// The store is fenced: nothing that waits for it will be done.
    pub(crate) fn fail_admin(&mut self, why: &str, effects: &mut Vec<Effect>) {
        let refused = || {
            AdminError::Refused(format!(
                "the store stopped taking writes while this was on its way ({why}); whether it was \
                 done shows after eskerd is restarted"
            ))
        };
        for (_, pending) in std::mem::take(&mut self.admin) {
            Self::answer(pending.token(), Err(refused()), effects);
        }
        for (_, token) in std::mem::take(&mut self.starting) {
            Self::answer(token, Err(refused()), effects);
        }
        let volumes = self.volumes.values_mut();
        let operators: Vec<AdminToken> = volumes.flat_map(Volume::take_operators).collect();
        for token in operators {
            Self::answer(token, Err(refused()), effects);
        }
        self.fail_rest(effects);
    }

    /// All volumes, by name.
    fn reports(&self) -> Vec<VolumeReport> {
        let sums = self.engine.snapshot_blocks();
        let volumes = self.by_name.values();
        volumes
            .filter_map(|id| self.report_of(*id, &sums))
            .collect()
    }

    /// A volume; `sums` are what snapshots hold, by group.
    pub(crate) fn report_of(
        &self,
        id: GroupId,
        sums: &BTreeMap<GroupId, u64>,
    ) -> Option<VolumeReport> {
        let volume = self.volumes.get(&id).filter(|v| !v.deleting)?;
        let view = self.engine.group(id)?;
        let used_bytes = view.used_blocks * BLOCK_SIZE_U64;
        let snapshot_bytes = sums.get(&id).map_or(0, |blocks| blocks * BLOCK_SIZE_U64);
        let unique_bytes = if self.engine.is_clone(id) {
            let space = self.engine.volume_space(id).unwrap_or_default();
            space.own_blocks * BLOCK_SIZE_U64
        } else {
            used_bytes + snapshot_bytes
        };
        let points = self.engine.rewind_points(id);
        Some(VolumeReport {
            name: volume.name.clone(),
            uuid: volume.id.to_string(),
            size_bytes: volume.size_bytes,
            first_bytes: self
                .engine
                .size_to_begin_with(id)
                .unwrap_or(volume.size_bytes),
            used_bytes,
            unique_bytes,
            snapshot_bytes,
            replicas: to_u32_saturating(view.meta.membership.voters.len()),
            encrypted: volume.key_id != 0,
            snapshots: self.engine.snapshot_count(id),
            labels: volume.labels.clone(),
            rewind_seconds: volume.rewind.window.unwrap_or(0),
            rewind_from_unix: (points.count > 0).then_some(points.oldest_us.div_ceil(1_000_000)),
            rewind_bytes: self
                .engine
                .rewind_blocks(id)
                .map(|blocks| blocks * BLOCK_SIZE_U64),
            state: volume.state(self.fenced.is_some()),
            sessions: to_u32_saturating(volume.attached().len()),
            store: self.config.store_index,
            group: id.0,
            replica: self.engine.group(id).map_or(0, |view| view.meta.replica.0),
            removed: volume.removed,
            serves: volume.is_serving(),
            members: self.members_of(id, volume),
            reseal: self.reseal_report(id),
            lacks_keys: self.lacks_keys(id),
            attachment: volume.attachment.clone(),
        })
    }

    /// Space of the whole store, but for what rewind points hold, which takes longer.
    pub(crate) fn store_space(&self) -> SpaceReport {
        let all = self.engine.space();
        let sums = self.engine.snapshot_blocks();
        let ours = sums.iter().filter(|(id, _)| self.volumes.contains_key(id));
        let blocks: u64 = ours.map(|(_, blocks)| blocks).sum();
        // What the sums have, which are of the last checkpoint, may have died since.
        let snapshot_bytes = (blocks * BLOCK_SIZE_U64).min(all.live_bytes);
        SpaceReport {
            live_bytes: all.live_bytes - snapshot_bytes,
            snapshot_bytes,
            rewind_bytes: None,
            garbage_bytes: all.garbage_bytes,
            free_bytes: all.free_bytes,
            total_bytes: all.total_bytes,
            reserve_bytes: all.reserve_bytes,
            device_bytes_written: all.device_bytes_written,
            client_bytes_written: all.client_bytes_written,
        }
    }

    fn space(&self, volume: Option<String>) -> Result<AdminReply, AdminError> {
        let mut report = self.store_space();
        let rewinds = self.volumes.keys().map(|id| self.engine.rewind_blocks(*id));
        let blocks: Option<u64> = rewinds.sum();
        report.rewind_bytes = blocks.map(|blocks| blocks * BLOCK_SIZE_U64);
        if let Some(name) = volume {
            let id = self.find(&name)?;
            let of = self.report_of(id, &self.engine.snapshot_blocks());
            let of = of.unwrap_or_default();
            (report.live_bytes, report.snapshot_bytes) = (of.used_bytes, of.snapshot_bytes);
            report.rewind_bytes = of.rewind_bytes;
        }
        Ok(AdminReply::Space(report))
    }

    fn status(&self) -> StatusReport {
        let volumes = self.reports();
        let problems = self.problems();
        let sessions: usize = self
            .volumes
            .values()
            .map(|v: &Volume| v.attached().len())
            .sum();
        StatusReport {
            healthy: problems.is_empty()
                && volumes.iter().all(|v| v.state != VolumeState::Suspended),
            problems,
            volumes,
            damaged_blocks: self.engine.damaged_blocks(),
            recovered_records: self.report.records_replayed,
            sessions: to_u32_saturating(sessions),
        }
    }

    /// What needs an operator, in words.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems: Vec<String> = self
            .volumes
            .values()
            .filter_map(|v| v.trouble.clone())
            .collect();
        if let Some(why) = &self.fenced {
            problems.push(format!(
                "the store takes no more writes ({why}); reads go on. Check the device, then \
                 restart eskerd"
            ));
        }
        let space = self.engine.space();
        if !self.engine.has_room_for(BLOCK_SIZE_U64) && self.fenced.is_none() {
            problems.push(format!(
                "the store is full: {} of {} bytes are live; trim or delete volumes",
                space.live_bytes, space.total_bytes
            ));
        }
        problems.extend(self.rewind_problems());
        problems.extend(self.lock_problems());
        problems.extend(self.reseal_problems());
        let lost = self.report.damaged_records;
        if lost > 0 {
            problems.push(format!(
                "{lost} records of the store's log were found damaged at the start; suspended \
                 volumes may have lost writes in them"
            ));
        }
        let damaged_blocks = self.engine.damaged_blocks();
        if damaged_blocks > 0 {
            problems.push(format!(
                "{damaged_blocks} damaged blocks were met since the start; `esker volume scrub` names them, and \
                 repairs those of which another copy is whole"
            ));
        }
        problems
    }
}

/// Refuses what is no name of a `noun`.
pub(crate) fn check_word(noun: &str, name: &str, most: usize) -> Result<(), AdminError> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty()
        || name.len() > most
        || !name.chars().all(good)
        || name.starts_with(['-', '.'])
    {
        return Err(AdminError::Invalid(format!(
            "`{}` is no {noun} name: 1 to {most} of A-Z a-z 0-9 . _ -, not starting with - or .",
            one_line(name)
        )));
    }
    Ok(())
}

fn check_size(size_bytes: u64) -> Result<(), AdminError> {
    if size_bytes == 0
        || !size_bytes.is_multiple_of(BLOCK_SIZE_U64)
        || size_bytes > limits::VOLUME_BYTES_MAX
    {
        return Err(AdminError::Invalid(format!(
            "a volume of {size_bytes} bytes cannot be: sizes are multiples of 4096, from 4096 to \
             64 TiB"
        )));
    }
    Ok(())
}

/// Refuses labels that a `noun` cannot have.
pub(crate) fn check_label_set(
    noun: &str,
    labels: &BTreeMap<String, String>,
) -> Result<(), AdminError> {
    check_labels(noun, labels, limits::VOLUME_LABELS_MAX)
}

/// Refuses labels that the volume of this name cannot have.
pub(crate) fn check_volume_labels(
    name: &str,
    labels: &BTreeMap<String, String>,
) -> Result<(), AdminError> {
    let most = match name == limits::METADATA_VOLUME {
        true => limits::METADATA_LABELS_MAX,
        false => limits::VOLUME_LABELS_MAX,
    };
    check_labels("volume", labels, most)
}

fn check_labels(
    noun: &str,
    labels: &BTreeMap<String, String>,
    count_max: usize,
) -> Result<(), AdminError> {
    let most = to_u64(limits::LABEL_BYTES_MAX);
    let long = |text: &str| to_u64(text.len()) > most;
    if labels.len() > count_max
        || labels
            .iter()
            .any(|(k, v)| k.is_empty() || long(k) || long(v))
    {
        return Err(too_many_labels(noun));
    }
    Ok(())
}

pub(crate) fn too_many_labels(noun: &str) -> AdminError {
    AdminError::Invalid(format!(
        "a {noun} has at most {} labels of at most {} bytes",
        limits::VOLUME_LABELS_MAX,
        limits::LABEL_BYTES_MAX
    ))
}
