//! The members of a cluster as one of them sees them: who answers, how full each is, and since when one is silent.

use super::config::Member;
use super::{control, internal, Cluster, Result};
use crate::report::VERSION;
use crate::store::RequestError;
use esker_api::cluster as v1;
use esker_base::NodeId;
use esker_node::admin::{AdminError, VolumeReport, VolumeState};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::task::JoinSet;

/// Volumes that a member names as lacking keys; others come when these have theirs.
const LACKING_TOLD_MAX: usize = 500;

/// What another member said last.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// When it last answered; when this daemon began, if it has not.
    answered: Instant,
    answered_at: SystemTime,
    /// Its last answer, or why there is none since; neither before it was asked.
    pub(super) told: std::result::Result<v1::DescribeResponse, String>,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            answered: Instant::now(),
            answered_at: SystemTime::now(),
            told: Err(String::new()),
        }
    }
}

/// A member, for whoever asks.
#[derive(Clone, Debug)]
pub struct NodeView {
    /// As the configuration has it.
    pub member: Member,
    /// The one that was asked.
    pub is_here: bool,
    /// What it says, or why it says nothing.
    pub told: std::result::Result<v1::DescribeResponse, String>,
    /// When it last answered.
    pub answered_at: SystemTime,
}

/// Whether this replica leads its volume.
pub(super) fn leads(report: &VolumeReport) -> bool {
    match report.members.is_empty() {
        true => report.state == VolumeState::Ready && !report.removed,
        false => {
            let mut members = report.members.iter();
            members.any(|member| member.leads && member.replica == report.replica)
        }
    }
}

impl Cluster {
    /// What this node says of itself.
    pub(super) async fn describe_here(&self) -> v1::DescribeResponse {
        let agreed = self.agreed();
        let mut told = v1::DescribeResponse {
            node: self.identity.node.0,
            version: VERSION.into(),
            drained: self.drained.is(),
            members_revision: agreed.as_ref().map_or(0, |agreed| agreed.revision),
            members_crc: agreed.map_or(0, |agreed| agreed.crc()),
            ..Default::default()
        };
        for status in self.stores.status().await {
            let is_fenced = status.store.state().fenced.is_some();
            match (&status.report, is_fenced) {
                (Ok(_), false) => told.stores += 1,
                _ => told.stores_failed += 1,
            }
            let Ok(report) = status.report else {
                continue;
            };
            told.sessions += u64::from(report.sessions);
            for volume in &report.volumes {
                told.replicas += u64::from(!volume.removed);
                told.removed += u64::from(volume.removed);
                told.leaders += u64::from(leads(volume));
                let has_room = told.lacks_keys.len() < LACKING_TOLD_MAX;
                if volume.lacks_keys && !volume.removed && has_room {
                    told.lacks_keys.push(volume.uuid.clone());
                }
            }
        }
        for space in self.stores.space().await.unwrap_or_default() {
            told.total_bytes += space.total_bytes;
            told.free_bytes += space.free_bytes;
        }
        told
    }

    /// The replicas of this node: of the volume of a name, or all.
    pub(super) async fn replicas_here(&self, name: &str) -> Result<Vec<v1::HeldReplica>> {
        let volumes = match name {
            "" => self.stores.list().await?,
            name => match self.stores.show(name).await {
                Ok(volume) => vec![volume],
                Err(RequestError::Refused(AdminError::NotFound(_))) => Vec::new(),
                Err(error) => return Err(error),
            },
        };
        let held = |volume: VolumeReport| v1::HeldReplica {
            leads: leads(&volume),
            nodes: volume.members.iter().filter_map(|m| m.node).collect(),
            volume: volume.uuid,
            name: volume.name,
            removed: volume.removed,
            copies: volume.replicas,
            sessions: volume.sessions,
        };
        Ok(volumes.into_iter().map(held).collect())
    }

    /// Asks all other members how they are, at a time.
    pub(super) async fn look(self: &Arc<Self>) {
        let mut asked = JoinSet::new();
        for member in self.config().others(self.identity.node) {
            let (cluster, member) = (Arc::clone(self), member.clone());
            asked.spawn(async move {
                let told = control::describe(&cluster, &member).await;
                (member.id, told.map_err(|error| error.to_string()))
            });
        }
        while let Some(told) = asked.join_next().await {
            let Ok((node, told)) = told else {
                continue;
            };
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let seen = seen.entry(node).or_default();
            if told.is_ok() {
                (seen.answered, seen.answered_at) = (Instant::now(), SystemTime::now());
            }
            match (&seen.told, &told) {
                (Ok(_), Err(why)) => tracing::warn!(node = node.0, "a node does not answer: {why}"),
                (Err(_), Ok(_)) => tracing::info!(node = node.0, "a node answers"),
                _ => {}
            }
            seen.told = told;
        }
    }

    fn seen(&self, node: NodeId) -> Option<Seen> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(&node).cloned()
    }

    /// How long another member has been silent; none when it answered the last time.
    pub(super) fn silent_for(&self, node: NodeId) -> Option<Duration> {
        let seen = self.seen(node).filter(|seen| seen.told.is_err())?;
        Some(seen.answered.elapsed())
    }

    /// Whether a member is drained, as it said last.
    pub(super) fn is_drained(&self, node: NodeId) -> bool {
        match node == self.identity.node {
            true => self.drained.is(),
            false => self.seen(node).is_some_and(|seen| {
                let told = seen.told.as_ref();
                told.is_ok_and(|told| told.drained)
            }),
        }
    }

    /// Whether a member said the last time that it lacks keys of this volume.
    pub(super) fn says_it_lacks(&self, node: NodeId, uuid: &str) -> bool {
        self.seen(node).is_some_and(|seen| {
            let told = seen.told.as_ref();
            told.is_ok_and(|told| told.lacks_keys.iter().any(|lacking| lacking == uuid))
        })
    }

    /// The other members that have been asked, as they were the last time.
    #[must_use]
    pub fn others(&self) -> Vec<NodeView> {
        let config = self.config();
        let others = config.others(self.identity.node);
        let view = |member: &Member| {
            let seen = self.seen(member.id)?;
            Some(NodeView {
                member: member.clone(),
                is_here: false,
                told: seen.told,
                answered_at: seen.answered_at,
            })
        };
        let was_asked =
            |view: &NodeView| view.told.as_ref().err().is_none_or(|why| !why.is_empty());
        others.filter_map(view).filter(was_asked).collect()
    }

    /// All members, asked now.
    pub async fn nodes(self: &Arc<Self>) -> Vec<NodeView> {
        self.look().await;
        let mut nodes = Vec::new();
        for member in &self.config().members {
            let is_here = member.id == self.identity.node;
            let seen = match is_here {
                true => Seen {
                    told: Ok(self.describe_here().await),
                    ..Seen::default()
                },
                false => self.seen(member.id).unwrap_or_default(),
            };
            nodes.push(NodeView {
                member: member.clone(),
                is_here,
                told: seen.told,
                answered_at: seen.answered_at,
            });
        }
        nodes
    }

    /// Whether there are other nodes.
    #[must_use]
    pub fn is_member(&self) -> bool {
        self.config().is_member()
    }

    /// The cluster's id.
    #[must_use]
    pub fn id(&self) -> String {
        self.identity.cluster.to_string()
    }

    /// What is wrong between nodes, since when, and the next safe step: the silence of others, and copies that should be
    /// elsewhere.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for member in self.config().others(self.identity.node) {
            let Some(Seen {
                answered_at,
                told: Err(why),
                ..
            }) = self.seen(member.id)
            else {
                continue;
            };
            if why.is_empty() {
                continue; // not asked yet
            }
            let seconds = answered_at.elapsed().unwrap_or_default().as_secs();
            let after = self.config().replace_after;
            let next = match after.0 {
                Some(_) => format!("after {after} its copies are made anew on other nodes"),
                None => "its copies are not made anew elsewhere (cluster.replace_after)".into(),
            };
            let (node, since) = (member.id, crate::retention::policy::duration(seconds));
            problems.push(format!(
                "node {node} has not answered for {since}: {why}. Start it again, or mend the network; {next}"
            ));
        }
        let stuck = self.stuck.lock().unwrap_or_else(PoisonError::into_inner);
        problems.extend(stuck.values().cloned());
        problems.extend(self.outside());
        problems
    }

    /// Drains a node, or takes it back.
    ///
    /// # Errors
    /// When it is no member, does not answer, or cannot keep that.
    pub async fn drain(self: &Arc<Self>, node: NodeId, drained: bool) -> Result<()> {
        if !self.is_member() {
            return Err(AdminError::Refused(
                "this node is alone: see [cluster] of its configuration".into(),
            )
            .into());
        }
        match self.member(node) {
            Some(member) => control::set_drained(self, &member, drained)
                .await
                .map_err(|error| super::on_node(node, error))?,
            None if node == self.identity.node => self.drained.set(drained).map_err(internal)?,
            None => {
                return Err(AdminError::NotFound(format!(
                    "there is no node {node} in this cluster; `esker node list` shows all"
                ))
                .into())
            }
        }
        tracing::info!(node = node.0, drained, "drain");
        self.stirred.notify_one();
        Ok(())
    }

    /// The volumes that a node holds a copy of, as it says.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn held_by(&self, node: NodeId) -> Result<Vec<v1::HeldReplica>> {
        match self.member(node) {
            Some(member) => control::list_replicas(self, &member, "").await,
            None => self.replicas_here("").await,
        }
    }
}
