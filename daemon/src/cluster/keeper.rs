//! Copies go where they should be: away from nodes that are drained or have been silent for long, one volume at a time.
//!
//! Nobody plans for the cluster. The node that leads a volume moves that volume's copies, by the volume's own log, so
//! an election anywhere changes nothing, and volumes go on while any number of other nodes is away. A node deletes its own
//! copy when the log has said that it is none any more and no client is attached through it.

use super::nodes::leads;
use super::{Cluster, Result};
use crate::retention::policy::duration;
use esker_base::NodeId;
use esker_node::admin::{MemberReport, VolumeReport};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Between two looks at the other nodes.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Until a volume whose copy could not be moved is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(20);
/// Copies that a node's volumes are given at a time.
const MOVES_MAX: usize = 1;

/// Why a copy goes.
enum Why {
    Drained,
    Silent(Duration),
}

/// Looks after the copies of the volumes that this node leads, for ever.
pub async fn keep(cluster: Arc<Cluster>) {
    if !cluster.is_member() {
        return std::future::pending().await;
    }
    let mut tried = BTreeMap::new();
    let mut kept = BTreeMap::new();
    loop {
        cluster.look().await;
        // A store that does not answer says so in the status.
        let volumes = cluster.stores.list().await;
        cluster
            .clear_away(volumes.as_deref().unwrap_or_default(), &mut kept)
            .await;
        if let Ok(volumes) = volumes {
            cluster.move_copies(&volumes, &mut tried).await;
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = cluster.stirred.notified() => {}
        }
    }
}

impl Cluster {
    /// Why the copy on a node should be elsewhere; none when it should not.
    fn goes(&self, node: NodeId) -> Option<Why> {
        if self.is_drained(node) {
            return Some(Why::Drained);
        }
        let after = self.config.replace_after.0?;
        let silent = self.silent_for(node).filter(|time| *time >= after);
        silent.map(Why::Silent)
    }

    /// Deletes copies of this node's that their groups have let go, once nobody is attached through them. `kept` holds when
    /// one was last tried in vain.
    async fn clear_away(&self, volumes: &[VolumeReport], kept: &mut BTreeMap<String, Instant>) {
        let gone = |volume: &&VolumeReport| volume.removed && volume.sessions == 0;
        kept.retain(|uuid, _| volumes.iter().any(|v| v.removed && v.uuid == *uuid));
        for volume in volumes.iter().filter(gone) {
            let name = &volume.name;
            let was_tried = kept.get(&volume.uuid);
            if was_tried.is_some_and(|at| at.elapsed() < RETRY_INTERVAL) {
                continue;
            }
            match self.delete_outsider(volume).await {
                Ok(()) => tracing::info!(name, "a copy that is none any more was deleted"),
                Err(error) => {
                    tracing::info!(name, "a copy that is none any more stays for now: {error}");
                    kept.insert(volume.uuid.clone(), Instant::now());
                }
            }
        }
    }

    /// Begins to move copies of volumes that this node leads. `tried` holds when one was last tried in vain.
    async fn move_copies(&self, volumes: &[VolumeReport], tried: &mut BTreeMap<String, Instant>) {
        let led: Vec<_> = volumes.iter().filter(|volume| leads(volume)).collect();
        tried.retain(|uuid, _| led.iter().any(|volume| volume.uuid == *uuid));
        let is_moving = |volume: &&&VolumeReport| {
            let members = &volume.members;
            let is_replaced =
                |old: &MemberReport| members.iter().any(|m| m.replaces == old.replica);
            members.iter().any(|m| !m.is_voter || is_replaced(m))
        };
        let mut moves = led.iter().filter(is_moving).count();
        let mut stuck = BTreeMap::new();
        for volume in led {
            let moved = match self.one_to_move(volume) {
                None => Ok(()),
                Some((node, why, is_voter)) => {
                    let was_tried = tried.get(&volume.uuid);
                    if was_tried.is_some_and(|at| at.elapsed() < RETRY_INTERVAL) {
                        self.still_stuck(volume, &mut stuck);
                        continue;
                    }
                    if is_voter && moves >= MOVES_MAX {
                        continue;
                    }
                    moves += usize::from(is_voter);
                    let moved = self.move_one(volume, node, is_voter).await;
                    moved.map_err(|error| stuck_text(volume, node, &why, &error.to_string()))
                }
            };
            match moved {
                Ok(()) => drop(tried.remove(&volume.uuid)),
                Err(text) => {
                    tried.insert(volume.uuid.clone(), Instant::now());
                    tracing::warn!("{text}");
                    stuck.insert(volume.uuid.clone(), text);
                }
            }
        }
        *self.stuck.lock().unwrap_or_else(PoisonError::into_inner) = stuck;
    }

    fn still_stuck(&self, volume: &VolumeReport, stuck: &mut BTreeMap<String, String>) {
        let before = self.stuck.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(text) = before.get(&volume.uuid) {
            stuck.insert(volume.uuid.clone(), text.clone());
        }
    }

    /// The copy of a volume that goes next, and whether it votes: one that is being made where it should not be, or, if none
    /// is being made, one that should be elsewhere.
    fn one_to_move(&self, volume: &VolumeReport) -> Option<(NodeId, Why, bool)> {
        if volume.members.is_empty() {
            let node = self.identity.node;
            return self.goes(node).map(|why| (node, why, true));
        }
        let goes = |member: &MemberReport| {
            let node = NodeId(member.node?);
            self.goes(node).map(|why| (node, why, member.is_voter))
        };
        let mut learners = volume.members.iter().filter(|m| !m.is_voter);
        if let Some(learner) = learners.next() {
            return goes(learner);
        }
        let replaced =
            |old: &MemberReport| volume.members.iter().any(|m| m.replaces == old.replica);
        if volume.members.iter().any(replaced) {
            return None;
        }
        volume.members.iter().find_map(goes)
    }

    async fn move_one(&self, volume: &VolumeReport, node: NodeId, is_voter: bool) -> Result<()> {
        let name = &volume.name;
        if !is_voter {
            tracing::info!(
                name,
                node = node.0,
                "a copy that is being made there is given up"
            );
            return self.remove_replica(name, node).await;
        }
        let to = self.add_replica(name, None, Some(node)).await?;
        tracing::info!(name, from = node.0, to = to.0, "a copy is made anew");
        Ok(())
    }
}

fn stuck_text(volume: &VolumeReport, node: NodeId, why: &Why, error: &str) -> String {
    let name = &volume.name;
    match why {
        Why::Drained => {
            format!("volume {name} keeps its copy on node {node}, which is drained: {error}")
        }
        Why::Silent(time) => format!(
            "volume {name} lacks its copy on node {node}, silent for {}: {error}",
            duration(time.as_secs())
        ),
    }
}
