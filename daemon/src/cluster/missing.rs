//! Copies that are not there although their nodes are: of a clone that began while a node was away for longer than the log
//! reaches, or of a node that came back with an empty disk. They are made anew where they should be.

use super::keeper::{is_changing, Stuck, Tried, MOVES_MAX};
use super::nodes::leads;
use super::{control, Cluster, Result};
use esker_base::NodeId;
use esker_node::admin::{MemberReport, VolumeReport};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How long a node says that it has no such copy before another one is made: it may be about to apply the entry that
/// makes it.
const MISSING_TIME: Duration = Duration::from_secs(15);

/// Since when copies are missing, by volume and replica.
pub(super) type Missing = BTreeMap<(String, u64), Instant>;

impl Cluster {
    /// Makes copies anew of volumes that this node leads, where their nodes say that they have none.
    pub(super) async fn renew_missing(
        &self,
        volumes: &[VolumeReport],
        missing: &mut Missing,
        tried: &mut Tried,
        stuck: &mut Stuck,
    ) {
        let led = || volumes.iter().filter(|volume| leads(volume));
        let mut held: BTreeMap<NodeId, Option<BTreeSet<String>>> = BTreeMap::new();
        let mut moves = led().filter(|volume| is_changing(volume)).count();
        let mut seen = BTreeSet::new();
        for volume in led().filter(|volume| !is_changing(volume)) {
            for (member, node) in volume.members.iter().filter_map(|m| self.mute(m)) {
                let key = (volume.uuid.clone(), member.replica);
                let says = match held.entry(node) {
                    Entry::Occupied(told) => told.into_mut(),
                    Entry::Vacant(place) => place.insert(self.held_on(node).await.ok()),
                };
                if says
                    .as_ref()
                    .is_none_or(|uuids| uuids.contains(&volume.uuid))
                {
                    continue;
                }
                let since = *missing.entry(key.clone()).or_insert_with(Instant::now);
                seen.insert(key);
                if since.elapsed() < MISSING_TIME || moves >= MOVES_MAX || tried.is_recent(volume) {
                    continue;
                }
                moves += 1;
                if let Err(error) = self.renew(volume, node).await {
                    let name = &volume.name;
                    let text = format!(
                        "volume {name} lacks its copy on node {node}, which says that it has none, and it is not made anew: {error}"
                    );
                    tracing::warn!("{text}");
                    stuck.insert(volume.uuid.clone(), text);
                    tried.note(volume);
                }
            }
        }
        missing.retain(|key, _| seen.contains(key));
    }

    /// A member that does not answer its leader although its node answers, and that node.
    fn mute<'a>(&self, member: &'a MemberReport) -> Option<(&'a MemberReport, NodeId)> {
        let node = NodeId(member.node?);
        let is_there = self.member(node).is_some() && self.silent_for(node).is_none();
        let is_mute = member.state.is_none() && !self.is_drained(node);
        (is_there && is_mute).then_some((member, node))
    }

    /// The volumes that another node says it has copies of, by UUID.
    async fn held_on(&self, node: NodeId) -> Result<BTreeSet<String>> {
        let Some(member) = self.member(node) else {
            return Ok(BTreeSet::new());
        };
        let held = control::list_replicas(self, &member, "").await?;
        Ok(held.into_iter().map(|replica| replica.volume).collect())
    }

    async fn renew(&self, volume: &VolumeReport, node: NodeId) -> Result<()> {
        let name = &volume.name;
        self.add_replica(name, Some(node), Some(node)).await?;
        tracing::info!(name, node = node.0, "a copy that was missing is made anew");
        Ok(())
    }
}
