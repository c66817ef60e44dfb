//! Data keys on the nodes that need them. Whoever leads a volume gives its keys to the other nodes that have a copy: a clone's before
//! it begins, and those that a node lacks when it says so. Nobody can ask for keys.

use super::nodes::leads;
use super::{control, draw_volume, no_key, on_node, Cluster, Result};
use crate::store::RequestError;
use esker_base::{NodeId, VolumeId};
use esker_crypto::{DataKey, KeyId, KeyName};
use esker_node::admin::{AdminError, KeyReport, VolumeReport};
use std::collections::BTreeSet;

/// Numbers tried for a new key.
const NUMBERS_TRIED_MAX: usize = 8;

/// A data key, and which one it is.
pub(super) type NamedKey = (KeyName, DataKey);

impl Cluster {
    /// Draws the first key of a clone of a volume with several copies, and places it on their nodes: on a majority of them, this one
    /// included, so that nothing that the clone will acknowledge can be lost with its key. None where the volume has one copy or
    /// is not encrypted, or where another node leads it and this one will refuse.
    ///
    /// # Errors
    /// When too few of the nodes take it.
    pub async fn place_clone_key(&self, origin: &str) -> Result<Option<VolumeId>> {
        let Some((report, _)) = self.replicas(origin).await? else {
            return Ok(None);
        };
        if !report.encrypted || !report.serves {
            return Ok(None);
        }
        let volume = draw_volume()?;
        let key = KeyId::new(1).ok_or_else(|| AdminError::Invalid("no key".into()))?;
        let key = (KeyName { volume, key }, self.keys.draw().map_err(no_key)?);
        self.place_here(&report, std::slice::from_ref(&key), false)
            .await?;
        let voters = report.members.iter().filter(|member| member.is_voter);
        let nodes: BTreeSet<_> = voters.filter_map(|member| member.node).collect();
        let (mut taken, mut refused) = (1, Vec::new());
        for member in nodes.iter().filter_map(|node| self.member(NodeId(*node))) {
            let placed =
                control::place_keys(self, &member, &report, std::slice::from_ref(&key), false)
                    .await;
            match placed.map_err(|error| on_node(member.id, error)) {
                Ok(()) => taken += 1,
                Err(error) => refused.push(error.to_string()),
            }
        }
        match taken * 2 > nodes.len() {
            true => Ok(Some(volume)),
            false => Err(AdminError::Refused(format!(
                "the clone's key is kept by {taken} of {} nodes, which is no majority: {}",
                nodes.len(),
                refused.join("; ")
            ))
            .into()),
        }
    }

    /// Gives a volume with several copies another data key: places it on the nodes of all of them, and has the epoch opened that
    /// writes under it. None where the volume has one copy, or is not encrypted.
    ///
    /// A number belongs to one key for ever: a node that has another one of it refuses (somebody led before and did not come to
    /// the end), and the next number is tried. So a node that is away stops this: what it has is not known.
    ///
    /// # Errors
    /// When this node does not lead the volume, or a node does not take the key; then it stays with the key it has.
    pub async fn rotate_data_key(&self, name: &str) -> Result<Option<Vec<KeyReport>>> {
        let Some((report, replicas)) = self.replicas(name).await? else {
            return Ok(None);
        };
        if !report.encrypted {
            return Ok(None);
        }
        let mut taken = String::new();
        for _ in 0..NUMBERS_TRIED_MAX {
            let key = self.stores.next_key(name.to_owned()).await?;
            let nodes: BTreeSet<NodeId> = replicas.values().map(|place| place.node).collect();
            let others: Vec<_> = nodes.iter().filter_map(|node| self.member(*node)).collect();
            for member in &others {
                // Before a slot is taken anywhere.
                let held = control::list_replicas(self, member, name);
                let held = tokio::time::timeout(control::DESCRIBE_WAIT_MAX, held).await;
                let silent = |_| RequestError::Silent("no answer".into());
                held.map_err(silent)
                    .and_then(|held| held)
                    .map_err(|error| stays(name, member.id, error))?;
            }
            let key = (key, self.keys.draw().map_err(no_key)?);
            let key = std::slice::from_ref(&key);
            self.place_here(&report, key, true).await?;
            match self.place_on(&report, &others, key).await? {
                None => {
                    let key_id = key.iter().map(|(name, _)| name.key.get()).sum();
                    let replicas = replicas.keys().copied().collect();
                    let begun = self.stores.key_in_force(name.to_owned(), key_id, replicas);
                    return begun.await.map(Some);
                }
                Some(why) => taken = why,
            }
        }
        Err(AdminError::Refused(format!("volume {name} keeps its data key: {taken}")).into())
    }

    /// Places a new key on these nodes; tells who has another one of its number.
    async fn place_on(
        &self,
        report: &VolumeReport,
        others: &[super::config::Member],
        key: &[NamedKey],
    ) -> Result<Option<String>> {
        for member in others {
            match control::place_keys(self, member, report, key, true).await {
                Ok(()) => {}
                Err(RequestError::Refused(AdminError::Exists(why))) => {
                    return Ok(Some(format!("node {}: {why}", member.id)));
                }
                Err(error) => return Err(stays(&report.name, member.id, error)),
            }
        }
        Ok(None)
    }

    /// Keeps keys for a volume of this node's, or what is about to begin beside it, wrapped by this node's own provider.
    pub(super) async fn place_here(
        &self,
        beside: &VolumeReport,
        keys: &[NamedKey],
        fresh: bool,
    ) -> Result<()> {
        let mut wrapped = Vec::new();
        for (name, dek) in keys {
            wrapped.push(self.keys.wrap(*name, dek).await.map_err(no_key)?);
        }
        self.stores.place_keys(beside.store, wrapped, fresh).await
    }

    /// As [`Self::place_here`], for another member, which may know the volume by another name.
    pub(super) async fn place_for(
        &self,
        name: &str,
        uuid: &str,
        keys: &[NamedKey],
        fresh: bool,
    ) -> Result<()> {
        match self.copy_of(uuid).await?.filter(|copy| copy.encrypted) {
            Some(copy) => self.place_here(&copy, keys, fresh).await,
            None => Err(AdminError::NotFound(format!(
                "there is no copy of an encrypted volume {name} here"
            ))
            .into()),
        }
    }

    /// The keys of an encrypted volume, the one that a new copy begins with first.
    pub(super) async fn data_keys(&self, name: &str) -> Result<Vec<NamedKey>> {
        let mut keys = Vec::new();
        for wrapped in self.stores.wrapped_keys(name.to_owned()).await? {
            let opened = self.keys.unwrap(&wrapped).await;
            let opened = opened.map_err(|error| {
                AdminError::Refused(format!(
                    "volume {name} is encrypted, and its key cannot be given to another node: {error}"
                ))
            })?;
            keys.push((wrapped.name(), opened));
        }
        Ok(keys)
    }

    /// Gives the keys of volumes that this node leads to members that say that they lack some.
    pub(super) async fn give_lacking_keys(&self, volumes: &[VolumeReport]) {
        let led = volumes.iter().filter(|v| v.encrypted && leads(v));
        for volume in led.filter(|v| !v.members.is_empty()) {
            let nodes = volume.members.iter().filter_map(|member| member.node);
            let lacks = |node: &NodeId| self.says_it_lacks(*node, &volume.uuid);
            for node in nodes.map(NodeId).filter(lacks).collect::<BTreeSet<_>>() {
                let name = &volume.name;
                match self.give_keys(volume, node).await {
                    Ok(()) => tracing::info!(name, %node, "a node got the keys that it lacked"),
                    Err(error) => {
                        tracing::warn!(name, %node, "a node lacks keys, and they are not given to it: {error}");
                    }
                }
            }
        }
    }

    /// Gives all keys of a volume to another node that has a copy.
    pub(super) async fn give_keys(&self, volume: &VolumeReport, node: NodeId) -> Result<()> {
        let keys = self.data_keys(&volume.name).await?;
        match self.member(node) {
            None => self.place_here(volume, &keys, false).await,
            Some(member) => control::place_keys(self, &member, volume, &keys, false).await,
        }
    }
}

/// Why a volume stays with the data key that it has.
fn stays(name: &str, node: NodeId, error: RequestError) -> RequestError {
    let why = on_node(node, error);
    let text = format!(
        "volume {name} keeps its data key, since each node with a copy is to have the new one first, and one has it not: {why}. \
         Ask again when that node answers, or replace its copy before (`esker replica add --replace`)"
    );
    AdminError::Refused(text).into()
}

/// The keys that a member gives.
pub(super) fn named_keys(
    told: &[esker_api::cluster::PlacedKey],
) -> std::result::Result<Vec<NamedKey>, String> {
    let named = |key: &esker_api::cluster::PlacedKey| {
        let volume = super::volume_id(&key.volume)?;
        let id = KeyId::new(key.key_id).ok_or("a key without a number")?;
        if key.data_key.len() != esker_crypto::KEY_BYTES {
            return Err(format!("a data key of {} bytes", key.data_key.len()));
        }
        let dek = DataKey::filled(|bytes| bytes.copy_from_slice(&key.data_key));
        Ok((KeyName { volume, key: id }, dek))
    };
    told.iter().map(named).collect()
}
