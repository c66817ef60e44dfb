//! A node among others: who they are, volumes with copies on several of them, and what they ask of each other.
//!
//! The members are those of the configuration, the same on all of them, or those that they agree on ([`agreed`]). Whoever is asked for a volume with several
//! copies places them and has each member make its own ([`Cluster::create`]); the data path needs nobody after that.

pub mod agreed;
pub mod config;
mod control;
pub mod drained;
pub mod joining;
mod keeper;
mod key_places;
mod membership;
mod missing;
pub mod nodes;
mod passing;
mod placement;
pub mod places;
mod replicas;
mod stream;

use crate::error::DaemonError;
use crate::identity::{random, Identity};
use crate::keys::KeyService;
use crate::store::RequestError;
use crate::stores::Stores;
use agreed::{Agreed, Note};
use config::{ClusterConfig, Member};
pub use control::{listen as listen_control, serve};
use drained::Drained;
use esker_base::{GroupId, NodeId, Place, ReplicaId, VolumeId};
use esker_crypto::{DataKey, KeyId, KeyName};
use esker_keys::{KeyError, NodeTls, ServerFiles};
use esker_node::admin::{AdminError, AdminRequest, MemberReport, ReplicaSpec, VolumeReport};
use esker_runtime::peers::{Neighbour, PeerTls};
use esker_runtime::{Directory, Listener};
pub use keeper::keep;
use membership::Agreement;
use nodes::Seen;
use placement::{Candidate, Labels};
use places::{Places, Replicas};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex as SyncMutex, PoisonError, RwLock};
use tokio::sync::{Mutex, Notify};

/// Copies of a volume.
pub const REPLICAS_MAX: usize = 7;

/// This node as a member.
pub struct Cluster {
    identity: Identity,
    /// As it is now: a reload changes it.
    config: RwLock<Arc<ClusterConfig>>,
    stores: Arc<Stores>,
    places: Mutex<Places>,
    tls: Option<NodeTls>,
    keys: Arc<KeyService>,
    /// This node takes no new copies, and those it has go elsewhere.
    drained: Drained,
    /// When this daemon began, as links tell it.
    started_us: u64,
    /// What the other members said last.
    seen: SyncMutex<BTreeMap<NodeId, Seen>>,
    /// Copies that should be elsewhere, by their volumes, and why they are not.
    stuck: SyncMutex<BTreeMap<String, String>>,
    /// Something has changed that may make copies go elsewhere.
    stirred: Notify,
    /// The members as they are agreed on; none where the configuration names them.
    agreement: Option<Agreement>,
    /// Other settings or members are taken up one after the other.
    taking: Mutex<()>,
}

type Result<T> = std::result::Result<T, RequestError>;

/// A new volume with several copies.
struct NewVolume {
    name: String,
    size_bytes: u64,
    labels: BTreeMap<String, String>,
    volume: VolumeId,
    group: GroupId,
    replicas: Replicas,
    /// Its data key, when it is encrypted.
    key: Option<DataKey>,
    /// Its number; 0 is the first.
    key_id: u32,
    /// The replica that is created begins without a vote, in a group that exists.
    learns: bool,
}

impl Cluster {
    /// Of this configuration.
    #[must_use]
    pub fn new(
        identity: Identity,
        config: ClusterConfig,
        stores: Arc<Stores>,
        places: Places,
        keys: Arc<KeyService>,
        drained: Drained,
        started_us: u64,
    ) -> Self {
        let others = config.others(identity.node);
        let seen = others.map(|member| (member.id, Seen::default())).collect();
        Self {
            drained,
            started_us,
            seen: SyncMutex::new(seen),
            stuck: SyncMutex::default(),
            stirred: Notify::new(),
            identity,
            config: RwLock::new(Arc::new(config)),
            stores,
            places: Mutex::new(places),
            tls: None,
            keys,
            agreement: None,
            taking: Mutex::new(()),
        }
    }

    /// With members that are agreed on, as this node noted them last.
    #[must_use]
    pub fn with_agreement(mut self, note: Note, noted: Option<Agreed>) -> Self {
        self.agreement = Some(Agreement::new(note, noted.unwrap_or_default()));
        self
    }

    /// The node's stores.
    #[must_use]
    pub fn stores(&self) -> &Stores {
        &self.stores
    }

    /// With TLS between members.
    #[must_use]
    pub fn with_tls(mut self, tls: Option<NodeTls>) -> Self {
        self.tls = tls;
        self
    }

    /// Creates a volume with this many copies: one here, the others where there is most room. Of an encrypted one each
    /// member wraps the data key for itself.
    ///
    /// # Errors
    /// When there are not enough members, the name is taken on one of them, one does not answer, or one refuses; then
    /// the copies that were made are taken away again.
    pub async fn create(
        &self,
        name: String,
        size_bytes: u64,
        labels: BTreeMap<String, String>,
        copies: usize,
        encrypted: bool,
    ) -> Result<VolumeReport> {
        let refuse = |why: String| Err(RequestError::Refused(AdminError::Refused(why)));
        let members = self.config().members.len();
        if copies > REPLICAS_MAX {
            return refuse(format!("{copies} copies; at most {REPLICAS_MAX}"));
        }
        if copies > members {
            return refuse(match members {
                0 => format!("{copies} copies need as many nodes, and this one is alone: see [cluster] of its configuration"),
                _ => format!("{copies} copies need as many nodes; this cluster has {members}"),
            });
        }
        let chosen = self.chosen(&name, size_bytes, copies).await?;
        let mut replicas = Replicas::new();
        for place in chosen {
            replicas.insert(ReplicaId(draw_id()?), place);
        }
        let volume = NewVolume {
            name,
            size_bytes,
            labels,
            volume: draw_volume()?,
            group: GroupId(draw_id()?),
            replicas,
            key_id: 0,
            key: match encrypted {
                true => Some(self.keys.draw().map_err(no_key)?),
                false => None,
            },
            learns: false,
        };
        self.create_on_all(&volume).await?;
        self.stores.show(&volume.name).await
    }

    async fn create_on_all(&self, volume: &NewVolume) -> Result<()> {
        let mut made = Vec::new();
        for (replica, place) in &volume.replicas {
            let created = match self.member(place.node) {
                None => self.create_here(volume, *replica).await,
                Some(member) => control::create(self, &member, volume, *replica).await,
            };
            if let Err(error) = created {
                for node in made {
                    self.take_back(node, volume).await;
                }
                return Err(on_node(place.node, error));
            }
            made.push(place.node);
        }
        Ok(())
    }

    async fn take_back(&self, node: NodeId, volume: &NewVolume) {
        let uuid = volume.volume.to_string();
        let gone = match self.member(node) {
            None => self.remove_here(&volume.name, &uuid, true, false).await,
            Some(member) => {
                control::remove(self, &member, &volume.name, (&uuid, true, false)).await
            }
        };
        if let Err(error) = gone {
            let name = &volume.name;
            tracing::error!(%node, name, "a copy of a volume that was not created stays: {error}");
        }
    }

    /// Deletes a volume with several copies, on all its nodes; this one last, so that it can be asked again.
    /// False when it is not such a volume.
    ///
    /// # Errors
    /// When a node refuses or does not answer; those before it have deleted their copies.
    pub async fn delete(&self, name: &str, with_snapshots: bool) -> Result<bool> {
        let Some((report, replicas)) = self.replicas(name).await? else {
            return Ok(false);
        };
        let uuid = report.uuid;
        if report.removed {
            // The volume lives on elsewhere.
            return self
                .remove_here(name, &uuid, with_snapshots, true)
                .await
                .map(|()| true);
        }
        if let Some(why) = report.attachment.keeps(name) {
            return Err(AdminError::Refused(why).into());
        }
        for place in replicas.values() {
            if let Some(member) = self.member(place.node) {
                let how = (uuid.as_str(), with_snapshots, false);
                let gone = control::remove(self, &member, name, how).await;
                gone.map_err(|error| on_node(place.node, error))?;
            }
        }
        self.remove_here(name, &uuid, with_snapshots, false).await?;
        Ok(true)
    }

    /// Refuses a name for what begins on several nodes at once, from a volume of theirs: it has to be free on each node
    /// that answers, and a majority has to answer.
    ///
    /// # Errors
    /// When it is taken, or too few nodes answer; nothing is asked of a volume with one copy.
    pub async fn require_free(&self, origin: &str, name: &str) -> Result<()> {
        if self.replicas(origin).await?.is_none() {
            return Ok(());
        }
        let config = self.config();
        let mut silent = Vec::new();
        for member in config.others(self.identity.node) {
            let listed = control::list_replicas(self, member, name);
            match tokio::time::timeout(control::DESCRIBE_WAIT_MAX, listed).await {
                Ok(Ok(held)) if held.is_empty() => {}
                Ok(Ok(_)) => {
                    let text = format!("node {} has a volume named {name} already", member.id);
                    return Err(AdminError::Exists(text).into());
                }
                Ok(Err(_)) | Err(_) => silent.push(member.id.to_string()),
            }
        }
        match silent.len() * 2 >= config.members.len() {
            false => Ok(()),
            true => Err(AdminError::Refused(format!(
                "nodes {} do not answer, and one of them may have a volume {name}",
                silent.join(", ")
            ))
            .into()),
        }
    }

    /// This node's copy of a volume. What it is called here may be older than what whoever asks calls it, or newer.
    async fn copy_of(&self, uuid: &str) -> Result<Option<VolumeReport>> {
        let volumes = self.stores.list().await?;
        Ok(volumes.into_iter().find(|volume| volume.uuid == uuid))
    }

    /// A volume with several copies, and where they are.
    async fn replicas(&self, name: &str) -> Result<Option<(VolumeReport, Replicas)>> {
        if !self.config().is_member() {
            return Ok(None);
        }
        let report = self.stores.show(name).await?;
        match report.members.is_empty() && !report.removed {
            true => Ok(None),
            false => {
                let replicas = places_of(&report)?;
                Ok(Some((report, replicas)))
            }
        }
    }

    /// Where the copies of a new volume go. Asks all members: the name has to be free on each one that answers, and a
    /// majority has to answer.
    async fn chosen(&self, name: &str, size_bytes: u64, copies: usize) -> Result<Vec<Place>> {
        let mut candidates = Vec::new();
        let mut others = Vec::new();
        let mut silent = 0;
        for member in &self.config().members {
            match self.offer_of(member, name, size_bytes).await {
                Ok(candidate) => candidates.push(candidate),
                Err(error @ RequestError::Refused(AdminError::Exists(_))) => return Err(error),
                Err(error) => {
                    silent += usize::from(matches!(error, RequestError::Silent(_)));
                    others.push(error.to_string());
                }
            }
        }
        let members = self.config().members.len();
        let (others, able) = (others.join("; "), candidates.len());
        let refuse = |why: String| Err(AdminError::Refused(why).into());
        if silent * 2 >= members {
            return refuse(format!(
                "{silent} of {members} nodes do not answer, and one of them may have a volume {name}: {others}"
            ));
        }
        let places = placement::choose(candidates, &[], &self.config().spread, copies);
        match places.len() == copies {
            true => Ok(places),
            false => refuse(format!(
                "{copies} copies need as many nodes that can take one; {able} can: {others}"
            )),
        }
    }

    /// What a member could take of a volume, under its name.
    async fn offer_of(&self, member: &Member, name: &str, size_bytes: u64) -> Result<Candidate> {
        let offer = match self.member(member.id) {
            None => self.offer_here(name).await,
            Some(member) => control::offer(self, &member, name, size_bytes).await,
        };
        let (store, free_bytes) = offer.map_err(|error| on_node(member.id, error))?;
        let store = u16::try_from(store).unwrap_or(u16::MAX);
        let node = member.id;
        Ok(Candidate {
            place: Place { node, store },
            free_bytes,
            labels: member.labels.clone(),
            is_here: node == self.identity.node,
        })
    }

    /// What this node could take: a store and its free space in bytes.
    async fn offer_here(&self, name: &str) -> Result<(usize, u64)> {
        let offer = self.stores.offer(name).await?;
        self.require_undrained()?;
        Ok(offer)
    }

    /// Refuses new volumes on a node that is drained.
    ///
    /// # Errors
    /// When it is.
    pub fn require_undrained(&self) -> Result<()> {
        let node = self.identity.node;
        match self.drained.is() {
            false => Ok(()),
            true => Err(AdminError::Refused(format!(
                "node {node} is drained and takes nothing new; `esker node drain {node} --cancel` takes it back"
            ))
            .into()),
        }
    }

    /// Where a node stands.
    fn labels_of(&self, node: NodeId) -> Option<Labels> {
        let config = self.config();
        let member = config.members.iter().find(|m| m.id == node);
        member.map(|member| member.labels.clone())
    }

    /// Another member; none for this node.
    fn member(&self, node: NodeId) -> Option<Member> {
        let config = self.config();
        let mut others = config.others(self.identity.node);
        others.find(|member| member.id == node).cloned()
    }

    /// Its settings, as they are now.
    fn config(&self) -> Arc<ClusterConfig> {
        let config = self.config.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&config)
    }

    /// Takes up other members, and other settings for their copies.
    ///
    /// # Errors
    /// One line: when what this node itself is called or where it listens is to change, it joins a cluster or leaves it, or
    /// a node is to go that has a copy of a volume of this one's. Nothing has changed then.
    pub async fn reload(&self, wanted: &ClusterConfig) -> std::result::Result<(), String> {
        let _one = self.taking.lock().await;
        let old = self.config();
        let mut wanted = wanted.clone();
        if self.agreement.is_some() && !wanted.is_member() {
            wanted.members.clone_from(&old.members);
        }
        if wanted == *old || old.needs_restart(&wanted) {
            return Ok(());
        }
        self.take_up(&wanted).await
    }

    /// Goes by these settings and members from now on.
    async fn take_up(&self, wanted: &ClusterConfig) -> std::result::Result<(), String> {
        let old = self.config();
        wanted.check_member(self.identity.node)?;
        let is_named = |config: &ClusterConfig, node: NodeId| {
            let mut members = config.members.iter();
            members.any(|member| member.id == node)
        };
        let goes = |node: &NodeId| is_named(&old, *node) && !is_named(wanted, *node);
        let volumes = self.stores.list().await.map_err(|e| e.to_string())?;
        for volume in volumes.iter().filter(|volume| !volume.removed) {
            let nodes = volume.members.iter().filter_map(|member| member.node);
            if let Some(node) = nodes.map(NodeId).find(goes) {
                return Err(format!(
                    "node {node} is no member any more and has a copy of volume {}: `esker node drain {node}` first",
                    volume.name
                ));
            }
        }
        let directory = directory(wanted, &self.identity, self.tls.as_ref(), self.started_us);
        let directory = directory.map_err(|error| error.to_string())?;
        if let Some(directory) = directory {
            self.stores.links.set(directory);
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|node, _| wanted.members.iter().any(|member| member.id == *node));
        for member in wanted.others(self.identity.node) {
            seen.entry(member.id).or_default();
        }
        drop(seen);
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(wanted.clone());
        self.stirred.notify_one();
        Ok(())
    }

    async fn create_here(&self, volume: &NewVolume, replica: ReplicaId) -> Result<()> {
        let uuid = volume.volume.to_string();
        let own = volume.replicas.get(&replica);
        let own = own.filter(|place| place.node == self.identity.node);
        let own = own.ok_or_else(|| {
            AdminError::Invalid(format!(
                "replica {replica} is not for node {}",
                self.identity.node
            ))
        })?;
        let key = match &volume.key {
            Some(dek) => {
                let key = KeyId::new(volume.key_id.max(1));
                let key = key.ok_or_else(|| AdminError::Invalid("no key".into()))?;
                let name = KeyName {
                    volume: volume.volume,
                    key,
                };
                Some(self.keys.wrap(name, dek).await.map_err(no_key)?)
            }
            None => None,
        };
        let mut places = self.places.lock().await;
        // A copy that is made anew finds what was noted of the one before it.
        if places.of(&uuid).is_some() && !volume.learns {
            return Err(AdminError::Exists(format!("volume {uuid} exists already")).into());
        }
        // First: a replica that is there finds the others.
        places
            .add(uuid.clone(), volume.replicas.clone())
            .map_err(internal)?;
        self.stores.tell_places(&places.all());
        let voters = volume.replicas.keys();
        let voters = voters.filter(|r| !volume.learns || **r != replica);
        let spec = ReplicaSpec {
            name: volume.name.clone(),
            size_bytes: volume.size_bytes,
            labels: volume.labels.clone(),
            volume: volume.volume,
            group: volume.group,
            replica,
            voters: voters.copied().collect(),
            learns: volume.learns,
            key,
        };
        let request = AdminRequest::ReplicaCreate(spec);
        let created = self
            .stores
            .create_replica(&volume.name, own.store, request)
            .await;
        // A store that did not answer may have it yet.
        if let Err(RequestError::Refused(_)) = created {
            if let Err(error) = places.remove(&uuid) {
                tracing::warn!("{error}");
            }
        }
        created
    }

    /// Deletes this node's copy; nothing happens when it is not there. With `only_outsider` one that is still a member of
    /// its group, as far as it knows, stays.
    async fn remove_here(
        &self,
        name: &str,
        uuid: &str,
        with_snapshots: bool,
        only_outsider: bool,
    ) -> Result<()> {
        let mut places = self.places.lock().await;
        let copy = self.copy_of(uuid).await?;
        if only_outsider && copy.as_ref().is_some_and(|report| !report.removed) {
            let text = format!("the copy of volume {name} on this node is one of its replicas");
            return Err(AdminError::Refused(text).into());
        }
        let found = copy.filter(|r| places.of(uuid).is_some() || !r.members.is_empty());
        if only_outsider && found.is_none() {
            let text = format!("there is no copy of volume {name}");
            return Err(AdminError::NotFound(text).into());
        }
        if let Some(copy) = found {
            self.stores.delete(copy.name, with_snapshots).await?;
        }
        places.remove(uuid).map_err(internal)?;
        self.stores.tell_places(&places.all());
        Ok(())
    }
}

/// Where the replicas of a volume live.
fn places_of(report: &VolumeReport) -> Result<Replicas> {
    let place = |member: &MemberReport| {
        let node = member.node.map(NodeId).ok_or_else(|| {
            let (replica, name) = (member.replica, &report.name);
            AdminError::Refused(format!(
                "this node does not know where replica {replica} of volume {name} lives; ask another node"
            ))
        })?;
        let store = member.store;
        Ok((ReplicaId(member.replica), Place { node, store }))
    };
    report.members.iter().map(place).collect()
}

fn no_key(error: KeyError) -> RequestError {
    AdminError::Refused(format!("no key can be made: {error}")).into()
}

fn draw_id() -> Result<u64> {
    // Of 62 bits and not 0, as a store draws them itself.
    Ok(u64::from_le_bytes(random().map_err(internal)?) >> 2 | 1)
}

fn draw_volume() -> Result<VolumeId> {
    let bytes = random().map_err(internal)?;
    Ok(VolumeId::from_random(u128::from_le_bytes(bytes)))
}

/// A volume by its UUID.
fn volume_id(uuid: &str) -> std::result::Result<VolumeId, String> {
    let parsed = u128::from_str_radix(&uuid.replace('-', ""), 16).map(VolumeId);
    let volume = parsed.ok().filter(|volume| volume.to_string() == uuid);
    volume.ok_or_else(|| format!("`{uuid}` is not a UUID"))
}

fn internal(error: DaemonError) -> RequestError {
    RequestError::Silent(error.to_string())
}

/// The same error, with the node that it comes from.
fn on_node(node: NodeId, error: RequestError) -> RequestError {
    let named = |text: String| format!("node {node}: {text}");
    match error {
        RequestError::Silent(text) => RequestError::Silent(named(text)),
        RequestError::Refused(refusal) => RequestError::Refused(match refusal {
            AdminError::NotFound(text) => AdminError::NotFound(named(text)),
            AdminError::Exists(text) => AdminError::Exists(named(text)),
            AdminError::Invalid(text) => AdminError::Invalid(named(text)),
            AdminError::Refused(text) => AdminError::Refused(named(text)),
            AdminError::NoSpace(text) => AdminError::NoSpace(named(text)),
            AdminError::NotLeading(text) => AdminError::NotLeading(named(text)),
            AdminError::Unsure(text) => AdminError::Unsure(named(text)),
        }),
    }
}

/// What the stores' loops have to know of the other members; none outside a cluster. Without TLS links stay on this machine,
/// unless the configuration is `insecure`. `started_us` is when this daemon began, the same for all its life.
///
/// # Errors
/// When the settings do not fit this node.
pub fn directory(
    config: &ClusterConfig,
    identity: &Identity,
    tls: Option<&NodeTls>,
    started_us: u64,
) -> std::result::Result<Option<Directory>, DaemonError> {
    if !config.is_member() && !config.is_agreed() {
        return Ok(None);
    }
    config
        .check_member(identity.node)
        .map_err(DaemonError::Cluster)?;
    let neighbour = |member: &Member| {
        let client = tls.map(|tls| tls.client(Some(member.id)));
        let client = client.transpose().map_err(DaemonError::Tls)?;
        let address = member.address.to_string();
        Ok((member.id, Neighbour { address, client }))
    };
    let neighbours = config.others(identity.node).map(neighbour);
    let neighbours = neighbours.collect::<std::result::Result<_, DaemonError>>()?;
    Ok(Some(Directory {
        node: identity.node,
        cluster: identity.cluster,
        started_us,
        neighbours,
        tls: tls.map(|tls| PeerTls {
            server: tls.server(),
            server_name: NodeTls::server_name(),
            node_of: |shown| esker_keys::node_of(shown).map_err(|e| e.to_string()),
        }),
        allows_plain: config.insecure,
    }))
}

/// TLS between members, when this one's certificate is for that: as it is kept up to date with its files.
#[must_use]
pub fn tls(
    config: &ClusterConfig,
    files: Option<&ServerFiles>,
    nodes: Option<NodeTls>,
) -> Option<NodeTls> {
    let is_one = config.is_member() || config.is_agreed();
    let nodes = nodes.filter(|_| is_one);
    if nodes.is_none() && is_one && files.is_some_and(|files| files.ca.is_some()) {
        tracing::warn!(
            "members of the cluster are spoken to without TLS: tls_cert names no node; `esker cert node` makes one that does"
        );
    }
    nodes
}

/// Listens for the links of other members.
///
/// # Errors
/// When that cannot be, or would be plain and open to other machines.
pub fn listen(
    config: &ClusterConfig,
    directory: Option<&Directory>,
    address: Option<SocketAddr>,
) -> std::result::Result<Option<Listener>, DaemonError> {
    let (Some(directory), Some(address)) = (directory, address) else {
        return Ok(None);
    };
    let is_plain = directory.tls.is_none();
    require_safe(config, is_plain, address, "cluster.listen")?;
    Ok(Some(Listener::tcp(address)?.for_peers()))
}

/// That whoever reaches a plain address is on this machine, unless the configuration says that it need not be.
fn require_safe(
    config: &ClusterConfig,
    is_plain: bool,
    address: SocketAddr,
    key: &str,
) -> std::result::Result<(), DaemonError> {
    if !is_plain || address.ip().is_loopback() {
        return Ok(());
    }
    if config.insecure {
        tracing::warn!("{key} = {address} without TLS: whoever reaches it is taken for a member");
        return Ok(());
    }
    Err(DaemonError::Cluster(format!(
        "{key} = {address} would be open to other machines without TLS; give this node a certificate (`esker cert node`), \
         use an address of this machine alone, or set cluster.insecure for a trial"
    )))
}
