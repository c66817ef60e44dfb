//! Copies go where they should be: away from nodes that are drained or have been silent for long, one volume at a time.
//!
//! Nobody plans for the cluster. The node that leads a volume moves that volume's copies, by the volume's own log, so
//! an election anywhere changes nothing, and volumes go on while any number of other nodes is away. A node deletes its own
//! copy when the log has said that it is none any more and no client is attached through it.

use super::missing::Missing;
use super::nodes::leads;
use super::{Cluster, Result};
use crate::retention::policy::duration;
use esker_base::NodeId;
use esker_node::admin::{MemberReport, VolumeReport, VolumeState};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Between two looks at the other nodes.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Until a volume whose copy could not be moved is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(20);
/// How long a copy waits for its group to take it in, where nothing is made anew for want of a node.
const UNCLAIMED_TIME_MAX: Duration = Duration::from_secs(30 * 60);
/// Copies that a node's volumes are given at a time.
pub(super) const MOVES_MAX: usize = 1;

/// Why a copy goes.
enum Why {
    Drained,
    Silent(Duration),
}

/// What is remembered between two looks, by the UUIDs of volumes.
#[derive(Default)]
struct Memory {
    tried: Tried,
    /// When a copy that may be none was last asked about in vain.
    kept: BTreeMap<String, Instant>,
    /// Since when a copy of this node's has waited for its group to take it in.
    unclaimed: BTreeMap<String, Instant>,
    /// Copies that their nodes say they have not.
    missing: Missing,
}

/// Why copies are not where they should be, by the UUIDs of volumes.
pub(super) type Stuck = BTreeMap<String, String>;

/// When a copy of a volume was last moved in vain.
#[derive(Default)]
pub(super) struct Tried(BTreeMap<String, Instant>);

impl Tried {
    /// It is too soon to try again.
    pub fn is_recent(&self, volume: &VolumeReport) -> bool {
        let at = self.0.get(&volume.uuid);
        at.is_some_and(|at| at.elapsed() < RETRY_INTERVAL)
    }

    pub fn note(&mut self, volume: &VolumeReport) {
        self.0.insert(volume.uuid.clone(), Instant::now());
    }
}

/// Whether a volume is being given a copy, or about to lose one.
pub(super) fn is_changing(volume: &VolumeReport) -> bool {
    let members = &volume.members;
    let is_replaced = |old: &MemberReport| members.iter().any(|m| m.replaces == old.replica);
    members.iter().any(|m| !m.is_voter || is_replaced(m))
}

/// Looks after the copies of the volumes that this node leads, for ever.
pub async fn keep(cluster: Arc<Cluster>) {
    if !cluster.is_member() && cluster.agreement.is_none() {
        return std::future::pending().await;
    }
    let mut memory = Memory::default();
    loop {
        cluster.look().await;
        // A store that does not answer says so in the status.
        if let Ok(volumes) = cluster.stores.list().await {
            cluster.agree(&volumes).await;
            cluster.clear_away(&volumes, &mut memory).await;
            cluster.give_lacking_keys(&volumes).await;
            cluster.move_copies(&volumes, &mut memory).await;
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = cluster.stirred.notified() => {}
        }
    }
}

/// Whether this copy was made for a group that has not taken it in, as far as it knows.
fn is_unclaimed(volume: &VolumeReport) -> bool {
    let mut members = volume.members.iter();
    let own = members.find(|member| member.replica == volume.replica);
    volume.state == VolumeState::Starting && own.is_some_and(|own| !own.is_voter)
}

impl Cluster {
    /// Why the copy on a node should be elsewhere; none when it should not.
    fn goes(&self, node: NodeId) -> Option<Why> {
        if self.is_drained(node) {
            return Some(Why::Drained);
        }
        let after = self.config().replace_after.0?;
        let silent = self.silent_for(node).filter(|time| *time >= after);
        silent.map(Why::Silent)
    }

    /// Deletes copies of this node's that are none, once nobody is attached through them: their groups have let them go, or
    /// have never taken them in, because whoever made them was cut off before.
    async fn clear_away(&self, volumes: &[VolumeReport], memory: &mut Memory) {
        let waits_max = self.config().replace_after.0.unwrap_or(UNCLAIMED_TIME_MAX);
        let Memory {
            kept, unclaimed, ..
        } = memory;
        let waits = |uuid: &String| volumes.iter().any(|v| v.uuid == *uuid && is_unclaimed(v));
        unclaimed.retain(|uuid, _| waits(uuid));
        kept.retain(|uuid, _| volumes.iter().any(|v| v.uuid == *uuid));
        for volume in volumes {
            let (name, uuid) = (&volume.name, &volume.uuid);
            if is_unclaimed(volume) {
                unclaimed.entry(uuid.clone()).or_insert_with(Instant::now);
            }
            let waited = unclaimed.get(uuid).map(Instant::elapsed);
            let may_go = volume.removed || waited.is_some_and(|time| time >= waits_max);
            let was_tried = kept.get(uuid).map(Instant::elapsed);
            if !may_go || volume.sessions > 0 || was_tried.is_some_and(|time| time < RETRY_INTERVAL)
            {
                continue;
            }
            match self.delete_outsider(volume).await {
                Ok(()) => tracing::info!(name, "a copy that is none was deleted"),
                Err(error) => {
                    tracing::info!(name, "a copy that may be none stays for now: {error}");
                    kept.insert(uuid.clone(), Instant::now());
                }
            }
        }
    }

    /// Begins to move copies of volumes that this node leads. `tried` holds when one was last tried in vain.
    async fn move_copies(&self, volumes: &[VolumeReport], memory: &mut Memory) {
        let Memory { tried, missing, .. } = memory;
        let led: Vec<_> = volumes.iter().filter(|volume| leads(volume)).collect();
        tried
            .0
            .retain(|uuid, _| led.iter().any(|volume| volume.uuid == *uuid));
        let mut moves = led.iter().filter(|volume| is_changing(volume)).count();
        let mut stuck = BTreeMap::new();
        for volume in led {
            let moved = match self.one_to_move(volume) {
                None => Ok(()),
                Some((node, why, is_voter)) => {
                    if tried.is_recent(volume) {
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
                Ok(()) => {}
                Err(text) => {
                    tried.note(volume);
                    tracing::warn!("{text}");
                    stuck.insert(volume.uuid.clone(), text);
                }
            }
        }
        self.renew_missing(volumes, missing, tried, &mut stuck)
            .await;
        if self.drained.is() {
            stuck.extend(volumes.iter().filter_map(|volume| self.unable(volume)));
        }
        *self.stuck.lock().unwrap_or_else(PoisonError::into_inner) = stuck;
    }

    /// Why a volume with one copy does not leave this node; none when it may.
    fn unable(&self, volume: &VolumeReport) -> Option<(String, String)> {
        let is_alone = volume.members.is_empty() && !volume.removed;
        let why = match volume.state {
            VolumeState::Suspended => "it is suspended",
            VolumeState::Fenced => "its store takes no writes",
            VolumeState::Locked => "its key is not to be had",
            VolumeState::Ready | VolumeState::Starting => return None,
        };
        let text = stuck_text(volume, self.identity.node, &Why::Drained, why);
        is_alone.then(|| (volume.uuid.clone(), text))
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
        if is_changing(volume) {
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
