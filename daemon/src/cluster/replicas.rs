//! Copies of a volume that come and go while it is used: who is asked for what, and in which order.
//!
//! A new copy is made first, then its group takes it in; one that goes is taken out of its group first, and deleted when
//! that is certain. So at no moment does a group count on a copy that is not there. Whoever leads the volume decides, and may be
//! any of its nodes: all are asked until one does, or time is up.

use super::{
    control, draw_id, on_node, placement, places_of, Cluster, NewVolume, Result, REPLICAS_MAX,
};
use crate::store::RequestError;
use esker_base::{GroupId, NodeId, Place, ReplicaId, VolumeId};
use esker_node::admin::{AdminError, MemberReport, VolumeReport};
use std::time::{Duration, Instant};

use super::places::Replicas;

/// How long the leader is looked for, and asked again while it is busy.
const LEADER_WAIT_MAX: Duration = Duration::from_secs(15);
/// Between two rounds.
const ROUND_WAIT: Duration = Duration::from_millis(200);

/// A replica that its group is to take in, or to let go.
pub(super) struct Change {
    pub name: String,
    pub uuid: String,
    pub replica: ReplicaId,
    pub replaces: Option<ReplicaId>,
    /// Where all replicas live; none when it goes.
    pub places: Replicas,
    /// When it goes: only if it is no member any more.
    pub only_outsider: bool,
}

fn refuse<T>(why: String) -> Result<T> {
    Err(AdminError::Refused(why).into())
}

impl Cluster {
    /// Gives a volume another copy; tells on which node. Returns when its group has it, as a learner.
    ///
    /// # Errors
    /// When there is no node for it, one refuses, or no leader takes it in; what was made is taken away again then.
    pub async fn add_replica(
        &self,
        name: &str,
        node: Option<NodeId>,
        replaces: Option<NodeId>,
    ) -> Result<NodeId> {
        let (report, mut places) = self.copies(name).await?;
        let mut keys = match report.encrypted {
            true => self.data_keys(name).await?,
            false => Vec::new(),
        };
        if let Some(learner) = report.members.iter().find(|member| !member.is_voter) {
            let node = learner.node.unwrap_or_default();
            return refuse(format!(
                "volume {name} is being given a copy on node {node}: wait until that one votes (`esker replica list {name}`), \
                 or remove it"
            ));
        }
        let goes = |m: &&MemberReport| report.members.iter().any(|new| new.replaces == m.replica);
        if let Some(old) = report.members.iter().find(goes) {
            let node = old.node.unwrap_or_default();
            return refuse(format!(
                "volume {name} is about to lose its copy on node {node}; wait until it has (`esker replica list {name}`)"
            ));
        }
        let replaced = match replaces {
            None => None,
            Some(node) => Some(replica_on(&places, node).ok_or_else(|| no_copy(name, node))?),
        };
        let leaves = usize::from(replaced.is_some());
        if places.len() - leaves >= REPLICAS_MAX {
            return refuse(format!(
                "volume {name} has {} copies, the most",
                places.len()
            ));
        }
        let place = self.room_for(&report, &places, node, replaces).await?;
        let replica = ReplicaId(draw_id()?);
        places.insert(replica, place);
        let volume = NewVolume {
            name: report.name.clone(),
            size_bytes: report.first_bytes,
            labels: report.labels.clone(),
            volume: uuid_of(&report)?,
            group: GroupId(report.group),
            replicas: places.clone(),
            key_id: keys.first().map_or(0, |(name, _)| name.key.get()),
            key: (!keys.is_empty()).then(|| keys.remove(0).1),
            learns: true,
        };
        self.know(&report.uuid, &places).await?;
        let made = match self.member(place.node) {
            None => self.create_here(&volume, replica).await,
            Some(member) => control::create(self, &member, &volume, replica).await,
        };
        made.map_err(|error| on_node(place.node, error))?;
        let placed = match self.member(place.node) {
            _ if keys.is_empty() => Ok(()),
            None => {
                self.place_for(&report.name, &report.uuid, &keys, false)
                    .await
            }
            Some(member) => control::place_keys(self, &member, &report, &keys, false).await,
        };
        let change = Change {
            name: report.name.clone(),
            uuid: report.uuid.clone(),
            replica,
            replaces: replaced,
            places,
            only_outsider: false,
        };
        let placed = placed.map_err(|error| on_node(place.node, error));
        let taken_in = match placed {
            Ok(()) => self.ask_leader(&change).await,
            Err(error) => Err(error),
        };
        if let Err(error) = taken_in {
            self.undo(&change, place.node).await;
            return Err(error);
        }
        Ok(place.node)
    }

    /// Takes a copy of a volume away.
    ///
    /// # Errors
    /// When the node has none, it is the last one, too few others would be left, no leader answers, or the node does
    /// not delete what it holds: then the volume goes on without, and it can be asked again.
    pub async fn remove_replica(&self, name: &str, node: NodeId) -> Result<()> {
        let (report, places) = self.copies(name).await?;
        let how = (report.uuid.as_str(), true, true);
        let Some(replica) = replica_on(&places, node) else {
            // A copy that was taken out of its group before, and whose node was away then.
            let gone = match self.member(node) {
                None if node != self.identity.node => return Err(no_copy(name, node).into()),
                None => self.remove_here(name, how.0, how.1, how.2).await,
                Some(member) => control::remove(self, &member, name, how).await,
            };
            return gone.map_err(|error| on_node(node, error));
        };
        let change = Change {
            name: name.to_owned(),
            uuid: report.uuid.clone(),
            replica,
            replaces: None,
            places: Replicas::new(),
            only_outsider: false,
        };
        self.ask_leader(&change).await?;
        let how = (report.uuid.as_str(), true, false);
        let gone = match self.member(node) {
            None => self.remove_here(name, how.0, how.1, how.2).await,
            Some(member) => control::remove(self, &member, name, how).await,
        };
        gone.map_err(|error| {
            let why = on_node(node, error).to_string();
            let text = format!(
                "volume {name} goes on without its copy on node {node}, which is not deleted: {why}; ask again when that is mended"
            );
            AdminError::Refused(text).into()
        })
    }

    /// Takes a replica into a group that this node leads, or out of it.
    pub(super) async fn change_here(&self, change: &Change) -> Result<()> {
        // Only where a volume spans nodes do all that take part learn another name of it.
        let same = |r: &VolumeReport| r.name == change.name || !r.members.is_empty();
        let Some(report) = self.copy_of(&change.uuid).await?.filter(same) else {
            let name = &change.name;
            return Err(
                AdminError::NotFound(format!("no such volume is named {name} here")).into(),
            );
        };
        let (name, replica) = (report.name, change.replica);
        match change.places.is_empty() {
            true => {
                let only_outsider = change.only_outsider;
                self.stores
                    .replica_remove(name, replica, only_outsider)
                    .await
            }
            false => {
                let places = change.places.clone();
                self.know(&change.uuid, &places).await?;
                let added = self
                    .stores
                    .replica_add(name, replica, change.replaces, places);
                added.await
            }
        }
    }

    /// Asks the nodes that have a copy, one after the other, until the one that leads has done it.
    async fn ask_leader(&self, change: &Change) -> Result<()> {
        self.ask_leader_until(change, Instant::now() + LEADER_WAIT_MAX)
            .await
    }

    async fn ask_leader_until(&self, change: &Change, end: Instant) -> Result<()> {
        loop {
            let copy = self.copy_of(&change.uuid).await?;
            let name = copy.map_or_else(|| change.name.clone(), |report| report.name);
            let places = self.copies(&name).await?.1;
            let others = places.values().map(|place| place.node);
            let mut nodes: Vec<NodeId> = others.filter(|n| *n != self.identity.node).collect();
            nodes.insert(0, self.identity.node);
            let mut told = None;
            for node in nodes {
                let asked = match self.member(node) {
                    None => self.change_here(change).await,
                    Some(member) => control::change(self, &member, change).await,
                };
                match asked.map_err(|error| on_node(node, error)) {
                    Ok(()) => return Ok(()),
                    Err(RequestError::Refused(AdminError::Refused(text))) => {
                        // Of several refusals the leader's says why.
                        if told.is_none() || !text.contains("not led by") {
                            told = Some(text);
                        }
                    }
                    Err(RequestError::Refused(error @ AdminError::Invalid(_))) => {
                        return Err(error.into());
                    }
                    Err(error) => told = told.or_else(|| Some(error.to_string())),
                }
            }
            if Instant::now() >= end {
                return refuse(told.unwrap_or_else(|| "no node answered".into()));
            }
            tokio::time::sleep(ROUND_WAIT).await;
        }
    }

    /// Deletes this node's copy of a volume that is none any more, or was never taken in. Whoever leads the volume says so, by an
    /// entry of the log: a copy that was opened as it was some entries ago may not know yet that it was taken in.
    ///
    /// # Errors
    /// When it is one of the volume's copies ([`AdminError::Invalid`]), nobody leads, or it cannot be deleted.
    pub(super) async fn delete_outsider(&self, volume: &VolumeReport) -> Result<()> {
        let change = Change {
            name: volume.name.clone(),
            uuid: volume.uuid.clone(),
            replica: ReplicaId(volume.replica),
            replaces: None,
            places: Replicas::new(),
            only_outsider: true,
        };
        self.ask_leader_until(&change, Instant::now()).await?;
        self.remove_here(&volume.name, &volume.uuid, true, false)
            .await
    }

    /// A copy that no group took in goes again.
    async fn undo(&self, change: &Change, node: NodeId) {
        let out = Change {
            name: change.name.clone(),
            uuid: change.uuid.clone(),
            replica: change.replica,
            replaces: None,
            places: Replicas::new(),
            only_outsider: false,
        };
        let mut undone = self.ask_leader(&out).await;
        if undone.is_ok() {
            let how = (out.uuid.as_str(), true, false);
            undone = match self.member(node) {
                None => self.remove_here(&out.name, how.0, how.1, how.2).await,
                Some(member) => control::remove(self, &member, &out.name, how).await,
            };
        }
        if let Err(error) = undone {
            let name = &out.name;
            tracing::error!(%node, name, "a copy that was not added may stay there: {error}");
        }
    }

    /// A volume, and where its copies are, also when it has one.
    async fn copies(&self, name: &str) -> Result<(VolumeReport, Replicas)> {
        if !self.config().is_member() {
            return refuse("this node is alone: see [cluster] of its configuration".into());
        }
        let report = self.stores.show(name).await?;
        let mut places = places_of(&report)?;
        if places.is_empty() {
            let store = u16::try_from(report.store).unwrap_or(u16::MAX);
            let node = self.identity.node;
            places.insert(ReplicaId(report.replica), Place { node, store });
        }
        Ok((report, places))
    }

    /// Where a new copy goes: to that node, or where it is best once another one has gone.
    async fn room_for(
        &self,
        report: &VolumeReport,
        places: &Replicas,
        node: Option<NodeId>,
        leaving: Option<NodeId>,
    ) -> Result<Place> {
        let name = &report.name;
        let has_one = |id: NodeId| places.values().any(|place| place.node == id);
        if let Some(id) = node {
            // One that lost what it had gets it again.
            if has_one(id) && leaving != Some(id) {
                return refuse(format!("node {id} has a copy of volume {name} already"));
            }
            if self.config().members.iter().all(|member| member.id != id) {
                return refuse(format!(
                    "there is no node {id} in this cluster; `esker node list` shows all"
                ));
            }
        }
        let mut candidates = Vec::new();
        let mut refused = Vec::new();
        for member in &self.config().members {
            let stays_away = has_one(member.id) && !(node == leaving && node == Some(member.id));
            if stays_away || node.is_some_and(|id| id != member.id) {
                continue;
            }
            match self.offer_of(member, name, report.size_bytes).await {
                Ok(candidate) => candidates.push(candidate),
                Err(error) => refused.push(error.to_string()),
            }
        }
        let stays = |place: &&Place| leaving.is_none_or(|id| id != place.node);
        let others = places.values().filter(stays);
        let others: Vec<_> = others.filter_map(|p| self.labels_of(p.node)).collect();
        let others: Vec<_> = others.iter().collect();
        let best = placement::choose(candidates, &others, &self.config().spread, 1);
        match best.first() {
            Some(place) => Ok(*place),
            None if refused.is_empty() => refuse(format!(
                "each of the {} nodes of this cluster has a copy of volume {name} already",
                self.config().members.len()
            )),
            None => refuse(format!("no node can take a copy: {}", refused.join("; "))),
        }
    }

    /// Keeps where the replicas of a volume live, for this node.
    async fn know(&self, uuid: &str, replicas: &Replicas) -> Result<()> {
        let mut places = self.places.lock().await;
        if places.of(uuid) != Some(replicas) {
            let added = places.add(uuid.to_owned(), replicas.clone());
            added.map_err(super::internal)?;
            self.stores.tell_places(&places.all());
        }
        Ok(())
    }
}

fn replica_on(places: &Replicas, node: NodeId) -> Option<ReplicaId> {
    let found = places.iter().find(|(_, place)| place.node == node);
    found.map(|(replica, _)| *replica)
}

fn no_copy(name: &str, node: NodeId) -> AdminError {
    AdminError::NotFound(format!(
        "node {node} has no copy of volume {name}; `esker replica list {name}` tells which have"
    ))
}

fn uuid_of(report: &VolumeReport) -> Result<VolumeId> {
    let parsed = u128::from_str_radix(&report.uuid.replace('-', ""), 16).map(VolumeId);
    parsed.map_err(|_| RequestError::Silent(format!("`{}` is not a UUID", report.uuid)))
}
