//! How the members of a cluster change where they are agreed on ([`super::agreed`]): a first node, others that are added, nodes
//! that go; and how everybody learns.

use super::agreed::{place, Agreed, Change, Note};
use super::config::Member;
use super::keeper::is_changing;
use super::nodes::leads;
use super::placement::Labels;
use super::{control, internal, on_node, Cluster, Result};
use crate::config::ListenOn;
use crate::store::RequestError;
use esker_api::cluster::HeldReplica;
use esker_base::limits::METADATA_VOLUME;
use esker_base::NodeId;
use esker_node::admin::{AdminError, VolumeReport};
use std::sync::{Mutex as SyncMutex, PoisonError};
use std::time::{Duration, Instant};

/// Size of the metadata volume, in bytes: nothing is written to it but its labels.
const METADATA_BYTES: u64 = 4096;
/// How long a leader of the metadata volume is looked for.
const LEADER_WAIT_MAX: Duration = Duration::from_secs(15);
/// Between two rounds.
const ROUND_WAIT: Duration = Duration::from_millis(200);
/// Until the copies of the metadata volume are looked at again when one could not be changed.
const RETRY_INTERVAL: Duration = Duration::from_secs(20);

/// What a node whose configuration names no members keeps of them.
pub(super) struct Agreement {
    pub note: Note,
    /// What it goes by; none before there is a cluster.
    pub now: SyncMutex<Agreed>,
    /// Why this node does not go by the newest list.
    trouble: SyncMutex<Option<String>>,
    /// Changes one after the other.
    changing: tokio::sync::Mutex<()>,
    /// When the copies of the metadata volume could last not be changed.
    tried: SyncMutex<Option<Instant>>,
}

impl Agreement {
    pub fn new(note: Note, now: Agreed) -> Self {
        Self {
            note,
            now: SyncMutex::new(now),
            trouble: SyncMutex::new(None),
            changing: tokio::sync::Mutex::new(()),
            tried: SyncMutex::new(None),
        }
    }
}

fn refuse<T>(why: impl Into<String>) -> Result<T> {
    Err(AdminError::Refused(why.into()).into())
}

/// Copies of the metadata volume in a cluster of so many nodes that take copies.
const fn metadata_copies(nodes: usize) -> usize {
    match nodes {
        // With two, either one's absence would end all changes.
        0..=2 => 1,
        3 | 4 => 3,
        _ => 5,
    }
}

/// Where others reach what a setting says, or what an operator says instead.
fn reached(key: &str, said: &str, set: &ListenOn) -> Result<ListenOn> {
    let text = match said {
        "" => set.to_string(),
        said => said.to_owned(),
    };
    place(&text).map_err(|why| AdminError::Invalid(format!("{key}: {why}")).into())
}

impl Cluster {
    /// The members as they are agreed on; none where the configuration names them or there is no cluster yet.
    pub(super) fn agreed(&self) -> Option<Agreed> {
        let agreement = self.agreement.as_ref()?;
        let now = agreement.now.lock().unwrap_or_else(PoisonError::into_inner);
        Some(now.clone()).filter(|agreed| agreed.revision > 0)
    }

    /// The last change of the members; 0 where configurations name them.
    #[must_use]
    pub fn members_revision(&self) -> u64 {
        self.agreed().map_or(0, |agreed| agreed.revision)
    }

    fn require_agreement(&self) -> Result<&Agreement> {
        let Some(agreement) = &self.agreement else {
            return refuse(match self.config().is_member() {
                true => "the configuration of each node names the members ([[cluster.node]]): change it there, on all of \
                         them, and reload",
                false => "this node does not listen for others: set cluster.listen and cluster.control in its configuration, and \
                          restart it",
            });
        };
        Ok(agreement)
    }

    /// Makes this node the first of a cluster; tells its id and the cluster's.
    ///
    /// # Errors
    /// When it is a member already, its configuration names members, or it listens for none.
    pub async fn init(&self, address: &str, control: &str, labels: Labels) -> Result<()> {
        let agreement = self.require_agreement()?;
        let _one = agreement.changing.lock().await;
        let config = self.config();
        if config.is_member() {
            let cluster = self.identity.cluster;
            return refuse(format!(
                "this node is a member of cluster {cluster} already"
            ));
        }
        let first = Agreed::first(Member {
            id: self.identity.node,
            address: reached("cluster.listen", address, &config.listen)?,
            control: reached("cluster.control", control, &config.control)?,
            labels,
        });
        let first = first.map_err(AdminError::Invalid)?;
        let size = METADATA_BYTES;
        let created = self
            .stores
            .create(METADATA_VOLUME.into(), size, first.labels(), false);
        match created.await {
            Ok(_) | Err(RequestError::Refused(AdminError::Exists(_))) => {}
            Err(error) => return Err(error),
        }
        self.adopt(&first).await
    }

    /// Adds a node that waits for a cluster.
    ///
    /// # Errors
    /// When it does not answer, is a node already, or the members cannot be changed.
    pub async fn add_node(
        &self,
        control: &str,
        id: Option<NodeId>,
        address: &str,
        labels: Labels,
    ) -> Result<NodeId> {
        self.require_agreement()?;
        if !self.config().is_member() {
            return refuse(
                "there is no cluster yet: `esker cluster init` makes this node the first of one",
            );
        }
        let control = place(control).map_err(AdminError::Invalid)?;
        let told = control::introduce(self, &control).await?;
        let is_ours = told.cluster == self.identity.cluster.to_string();
        if !told.waits && !is_ours {
            return refuse(format!(
                "{control} is node {} of another cluster ({}); only one that has never served can be added: give it an empty \
                 data directory and set cluster.join",
                told.node, told.cluster
            ));
        }
        if told.waits && !told.cluster.is_empty() && !is_ours {
            return refuse(format!(
                "the configuration of {control} says that it is of cluster {}",
                told.cluster
            ));
        }
        let certified = Some(NodeId(told.node)).filter(|node| node.0 != 0);
        let id = match (id, certified) {
            (Some(id), Some(certified)) if id != certified => {
                return refuse(format!("{control} is node {certified} and not node {id}"));
            }
            (id, certified) => id.or(certified).unwrap_or(NodeId(0)),
        };
        let listens: ListenOn = told.address.parse().unwrap_or(ListenOn::None);
        let address = match (address, place(&told.address)) {
            ("", Err(_)) => beside(&control, &listens)?,
            (said, _) => reached("its cluster.listen", said, &listens)?,
        };
        let wanted = Member {
            id,
            address,
            control: control.clone(),
            labels,
        };
        let agreed = self.change_members(&Change::Add(wanted)).await?;
        let member = agreed.members.iter().find(|m| m.control == control);
        let Some(member) = member.cloned() else {
            return refuse(format!("{control} was added and removed again by somebody"));
        };
        if told.waits {
            let joined = control::join(self, &member, &agreed).await;
            joined.map_err(|error| {
                let text = format!(
                    "node {} is a member now and has not heard of it: {error}; ask again",
                    member.id
                );
                RequestError::Refused(AdminError::Refused(text))
            })?;
        }
        self.stirred.notify_one();
        Ok(member.id)
    }

    /// Takes a node out of the cluster that holds no copies.
    ///
    /// # Errors
    /// When it holds some, another node does not answer (it may know of some), or the members cannot be changed.
    pub async fn remove_node(&self, node: NodeId) -> Result<()> {
        self.require_agreement()?;
        if node == self.identity.node {
            return refuse("a node does not remove itself: ask another one");
        }
        // Whoever was added a moment ago is asked, too: a change to what this node is already brings the newest list.
        let own = self.agreed();
        let own = own.as_ref().and_then(|a| a.member(self.identity.node));
        if let Some(own) = own {
            self.change_members(&Change::Add(own.clone())).await?;
        }
        let config = self.config();
        let Some(member) = self.member(node) else {
            return Err(AdminError::NotFound(format!(
                "there is no node {node} in this cluster; `esker node list` shows all"
            ))
            .into());
        };
        // Its copy of the list goes with it.
        let is_volume = |copy: &&HeldReplica| copy.name != METADATA_VOLUME;
        let remedy = match control::list_replicas(self, &member, "").await {
            Ok(held) => {
                let remedy = format!("`esker node drain {node}` first");
                if let Some(copy) = held.iter().find(is_volume) {
                    let name = &copy.name;
                    return refuse(format!(
                        "node {node} holds a copy of volume {name}: {remedy}"
                    ));
                }
                remedy
            }
            Err(_) => format!(
                "it does not answer, and its copies are made anew elsewhere when it has been silent for long \
                 (cluster.replace_after), where there is a node for them; or take each away: `esker replica remove VOLUME --node {node}`"
            ),
        };
        for other in config.members.iter().filter(|other| other.id != node) {
            let held = match self.member(other.id) {
                None => self.replicas_here("").await,
                Some(other) => control::list_replicas(self, &other, "").await,
            };
            let held = held.map_err(|error| {
                let why = on_node(other.id, error);
                AdminError::Refused(format!(
                    "{why}; without its answer it is not known whether volumes count on node {node}"
                ))
            })?;
            let mut counting = held.iter().filter(is_volume);
            let counts_on = counting.find(|copy| !copy.removed && copy.nodes.contains(&node.0));
            if let Some(copy) = counts_on {
                let name = &copy.name;
                return refuse(format!("volume {name} has a copy on node {node}: {remedy}"));
            }
        }
        self.change_members(&Change::Remove(node)).await?;
        Ok(())
    }

    /// Has the members changed by whoever leads the metadata volume.
    async fn change_members(&self, change: &Change) -> Result<Agreed> {
        let end = Instant::now() + LEADER_WAIT_MAX;
        loop {
            let mut told = None;
            let config = self.config();
            let mut nodes: Vec<_> = config.members.iter().collect();
            nodes.sort_by_key(|member| member.id != self.identity.node);
            for member in nodes {
                let changed = match self.member(member.id) {
                    None => self.change_members_here(change).await,
                    Some(member) => control::change_members(self, &member, change).await,
                };
                match changed {
                    Ok(agreed) => {
                        self.adopt(&agreed).await?;
                        return Ok(agreed);
                    }
                    Err(RequestError::Refused(AdminError::NotFound(_))) => {}
                    // What was done and whose answer was lost is not done twice.
                    Err(
                        error @ (RequestError::Silent(_)
                        | RequestError::Refused(
                            AdminError::NotLeading(_) | AdminError::Unsure(_),
                        )),
                    ) => {
                        told = told.or_else(|| Some(on_node(member.id, error).to_string()));
                    }
                    Err(error) => return Err(on_node(member.id, error)),
                }
            }
            if Instant::now() >= end {
                let why = told.unwrap_or_else(|| "no node that answers has it".into());
                return refuse(format!(
                    "the members cannot be changed while nobody leads what they are kept in ({why}); volumes go on. Start \
                     the nodes that are down (`esker node list`), then ask again; docs/peers.md tells what to do when they are lost"
                ));
            }
            tokio::time::sleep(ROUND_WAIT).await;
        }
    }

    /// Changes the members, if this node leads the metadata volume.
    ///
    /// # Errors
    /// [`AdminError::NotLeading`] and [`AdminError::NotFound`] when it does not; or the change cannot be.
    pub(super) async fn change_members_here(&self, change: &Change) -> Result<Agreed> {
        let agreement = self.require_agreement()?;
        let _one = agreement.changing.lock().await;
        let volume = self.stores.show(METADATA_VOLUME).await?;
        if !volume.serves {
            let text = "this node does not lead what the members are kept in".to_string();
            return Err(AdminError::NotLeading(text).into());
        }
        let now = Agreed::of_labels(&volume.labels).map_err(RequestError::Silent)?;
        let changed = now.change(change).map_err(AdminError::Refused)?;
        let Some((_, labels)) = changed else {
            return Ok(now);
        };
        if let Change::Remove(node) = change {
            if *node == self.identity.node && volume.members.len() <= 1 {
                return refuse(format!(
                    "node {node} has the only copy of the list of members: `esker node drain {node}` first"
                ));
            }
            self.take_list_from(&volume, *node).await?;
        }
        let name = METADATA_VOLUME.into();
        let after = self
            .stores
            .relabel_where(name, labels, Some(now.mark()))
            .await?;
        let after = Agreed::of_labels(&after.labels).map_err(RequestError::Silent)?;
        self.adopt(&after).await?;
        Ok(after)
    }

    /// Takes a node's copy of the metadata volume away.
    async fn take_list_from(&self, volume: &VolumeReport, node: NodeId) -> Result<()> {
        let holds = |volume: &VolumeReport| volume.members.iter().any(|m| m.node == Some(node.0));
        if !holds(volume) {
            return Ok(());
        }
        match self.remove_replica(METADATA_VOLUME, node).await {
            // One that is silent keeps what it has, and counts no more.
            Err(error) if holds(&self.stores.show(METADATA_VOLUME).await?) => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Goes by these members from now on, through restarts too, if they are newer.
    ///
    /// # Errors
    /// When they cannot be kept, or a volume of this node's counts on a node that is not among them.
    pub(super) async fn adopt(&self, agreed: &Agreed) -> Result<()> {
        let agreement = self.require_agreement()?;
        let _one = self.taking.lock().await;
        if agreed.revision <= self.members_revision() {
            return Ok(());
        }
        if agreed.member(self.identity.node).is_none() {
            return refuse(format!(
                "node {} was removed from the cluster: stop it; its data directory is not needed any more, and as a new node it \
                 needs an empty one",
                self.identity.node
            ));
        }
        let mut wanted = (*self.config()).clone();
        wanted.members.clone_from(&agreed.members);
        self.take_up(&wanted).await.map_err(AdminError::Refused)?;
        agreement.note.save(agreed).map_err(internal)?;
        let nodes: Vec<_> = agreed.members.iter().map(|m| m.id.to_string()).collect();
        let (revision, nodes) = (agreed.revision, nodes.join(", "));
        tracing::info!(revision, nodes, "the members of the cluster");
        *agreement.now.lock().unwrap_or_else(PoisonError::into_inner) = agreed.clone();
        Ok(())
    }

    /// Learns of changes from this node's copy of the metadata volume and from others, and looks after that volume where it
    /// is led.
    pub(super) async fn agree(&self, volumes: &[VolumeReport]) {
        if self.agreement.is_none() {
            return;
        }
        let copy = volumes
            .iter()
            .find(|v| v.name == METADATA_VOLUME && !v.removed);
        let of_copy = copy.map(|copy| Agreed::of_labels(&copy.labels));
        let learned = match &of_copy {
            Some(Ok(agreed)) => self.adopt(agreed).await,
            Some(Err(why)) => Err(RequestError::Silent(why.clone())),
            None => Ok(()),
        };
        let learned = match learned {
            Ok(()) => self.ask_others().await,
            failed => failed,
        };
        self.note_trouble(learned.err().map(|error| error.to_string()));
        if let (Some(copy), Some(Ok(agreed))) = (copy.filter(|copy| leads(copy)), of_copy) {
            if let Err(error) = self.raise(&agreed).await {
                tracing::warn!("the members of the cluster are not told anew: {error}");
            }
            self.tend_metadata(copy).await;
        }
    }

    /// Takes the newest list that another node says it has.
    async fn ask_others(&self) -> Result<()> {
        let own = self.members_revision();
        let others = self.others();
        let newest = others.iter().filter_map(|node| {
            let told = node.told.as_ref().ok()?;
            Some((told.members_revision, &node.member))
        });
        let newest = newest.max_by_key(|(revision, _)| *revision);
        let Some((_, member)) = newest.filter(|(revision, _)| *revision > own) else {
            return Ok(());
        };
        let told = control::list_members(self, member).await;
        self.adopt(&told.map_err(|error| on_node(member.id, error))?)
            .await
    }

    /// Says once why this node does not go by the newest list, and keeps it for whoever asks.
    fn note_trouble(&self, why: Option<String>) {
        let Some(agreement) = &self.agreement else {
            return;
        };
        let mut trouble = agreement
            .trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = why.as_ref().filter(|why| Some(*why) != trouble.as_ref()) {
            tracing::warn!("the newest list of members is not taken up: {why}");
        }
        *trouble = why;
    }

    /// Where somebody goes by another list of the same revision, or by a later one: two leaders have made a change each, from the
    /// same list, and what is agreed on holds both. It is told anew under a revision that everybody takes.
    async fn raise(&self, agreed: &Agreed) -> Result<()> {
        let (revision, crc) = (agreed.revision, agreed.crc());
        let differs = |other: u64, sum: u32| other > revision || (other == revision && sum != crc);
        let mut most = 0;
        if let Some(own) = self.agreed().filter(|own| differs(own.revision, own.crc())) {
            most = own.revision;
        }
        for node in self.others() {
            let told = node.told.iter();
            let told = told.filter(|told| differs(told.members_revision, told.members_crc));
            most = told.map(|told| told.members_revision).fold(most, u64::max);
        }
        if most == 0 {
            return Ok(());
        }
        let _one = self.require_agreement()?.changing.lock().await;
        let (_, labels) = agreed.above(most);
        let name = METADATA_VOLUME.into();
        let after = self
            .stores
            .relabel_where(name, labels, Some(agreed.mark()))
            .await?;
        let after = Agreed::of_labels(&after.labels).map_err(RequestError::Silent)?;
        self.adopt(&after).await
    }

    /// Gives the metadata volume as many copies as fit the number of nodes.
    async fn tend_metadata(&self, volume: &VolumeReport) {
        let Some(agreement) = &self.agreement else {
            return;
        };
        let tried = *agreement
            .tried
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if is_changing(volume) || tried.is_some_and(|at| at.elapsed() < RETRY_INTERVAL) {
            return;
        }
        let config = self.config();
        let takes = |member: &&Member| !self.is_drained(member.id);
        let wanted = metadata_copies(config.members.iter().filter(takes).count());
        let copies = volume.members.len().max(1);
        let holds = |node: NodeId| volume.members.iter().any(|m| m.node == Some(node.0));
        let others = self.others();
        let mut free = others
            .iter()
            .filter(|node| node.told.is_ok() && !holds(node.member.id));
        let changed = if copies < wanted && free.next().is_some() {
            let added = self.add_replica(METADATA_VOLUME, None, None).await;
            added.map(|node| {
                tracing::info!(
                    node = node.0,
                    "another copy of what the members are kept in"
                )
            })
        } else if copies > wanted {
            let held = volume.members.iter().filter_map(|m| m.node).map(NodeId);
            let goes = held.max_by_key(|n| (self.is_drained(*n), *n != self.identity.node, *n));
            match goes {
                Some(node) => self.remove_replica(METADATA_VOLUME, node).await,
                None => Ok(()),
            }
        } else {
            Ok(())
        };
        let failed = changed.map_err(|error| {
            tracing::warn!("copies of what the members are kept in: {error}");
            Instant::now()
        });
        *agreement
            .tried
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = failed.err();
    }

    /// Why this node does not go by the newest list of members.
    pub(super) fn outside(&self) -> Option<String> {
        let agreement = self.agreement.as_ref()?;
        let trouble = agreement.trouble.lock();
        trouble.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The address of links of a node that listens for them on all of its addresses: where its `control` is reached.
fn beside(control: &ListenOn, listens: &ListenOn) -> Result<ListenOn> {
    match (control, listens) {
        (ListenOn::Address { host, .. }, ListenOn::Address { port, .. }) if *port != 0 => {
            Ok(ListenOn::Address {
                host: host.clone(),
                port: *port,
            })
        }
        _ => refuse("where its links are reached is not known: say it with --address"),
    }
}
