//! All stores of the node as one: volume names are unique across them, a request for a volume finds
//! the store that holds it, and reports are put together.

use crate::store::{RequestError, StoreHandle};
use esker_node::admin::{
    one_line, AdminError, AdminReply, AdminRequest, SpaceReport, StatusReport, Tuning, VolumeReport,
};
use esker_node::meters::StoreSample;
use std::collections::BTreeMap;
use tokio::sync::Mutex;

/// The stores of a node.
pub struct Stores {
    stores: Vec<StoreHandle>,
    /// Held while a name is looked up and then taken, so that two requests cannot take the same one
    /// in two stores.
    naming: Mutex<()>,
}

type Result<T> = std::result::Result<T, RequestError>;

/// What one store says about itself: its report, or why there is none.
pub struct StoreStatus {
    /// The store.
    pub store: StoreHandle,
    /// Its report.
    pub report: std::result::Result<StatusReport, String>,
}

impl Stores {
    /// Over these stores; at least one.
    #[must_use]
    pub fn new(stores: Vec<StoreHandle>) -> Self {
        Self {
            stores,
            naming: Mutex::new(()),
        }
    }

    /// The stores, in order.
    #[must_use]
    pub fn all(&self) -> &[StoreHandle] {
        &self.stores
    }

    /// Creates a volume on the store with the most free space that takes writes.
    ///
    /// # Errors
    /// When the name is taken in any store, or that store refuses.
    pub async fn create(
        &self,
        name: String,
        size_bytes: u64,
        labels: BTreeMap<String, String>,
    ) -> Result<VolumeReport> {
        let _naming = self.naming.lock().await;
        self.require_free(&name).await?;
        let store = self.roomiest().await?;
        let request = AdminRequest::VolumeCreate {
            name,
            size_bytes,
            labels,
        };
        volume_of(store, store.request(request).await?)
    }

    /// All volumes, by name.
    ///
    /// # Errors
    /// When a store does not answer: a list that misses volumes would mislead.
    pub async fn list(&self) -> Result<Vec<VolumeReport>> {
        let mut volumes = Vec::new();
        for store in &self.stores {
            match store.request(AdminRequest::VolumeList).await? {
                AdminReply::Volumes(reports) => {
                    volumes.extend(reports.into_iter().map(|r| at(store, r)));
                }
                other => return Err(mismatch(store, &other)),
            }
        }
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    /// One volume.
    ///
    /// # Errors
    /// When no store has it.
    pub async fn show(&self, name: &str) -> Result<VolumeReport> {
        Ok(self.find(name).await?.1)
    }

    /// Grows a volume.
    ///
    /// # Errors
    /// When no store has it, or its store refuses.
    pub async fn resize(&self, name: String, size_bytes: u64) -> Result<VolumeReport> {
        let (store, _) = self.find(&name).await?;
        let request = AdminRequest::VolumeResize { name, size_bytes };
        volume_of(store, store.request(request).await?)
    }

    /// Renames a volume.
    ///
    /// # Errors
    /// When no store has it, the new name is taken in any store, or its store refuses.
    pub async fn rename(&self, name: String, new_name: String) -> Result<VolumeReport> {
        let _naming = self.naming.lock().await;
        let (store, _) = self.find(&name).await?;
        self.require_free(&new_name).await?;
        let request = AdminRequest::VolumeRename { name, new_name };
        volume_of(store, store.request(request).await?)
    }

    /// Deletes a volume.
    ///
    /// # Errors
    /// When no store has it, or its store refuses.
    pub async fn delete(&self, name: String) -> Result<()> {
        let (store, _) = self.find(&name).await?;
        done(
            store,
            store.request(AdminRequest::VolumeDelete { name }).await?,
        )
    }

    /// Accepts the loss of a log record of a suspended volume.
    ///
    /// # Errors
    /// When no store has it, or its store refuses.
    pub async fn accept_loss(&self, name: String) -> Result<VolumeReport> {
        let (store, _) = self.find(&name).await?;
        let request = AdminRequest::VolumeAcceptLoss { name };
        volume_of(store, store.request(request).await?)
    }

    /// The part of its store's space that a volume holds.
    ///
    /// # Errors
    /// When no store has it.
    pub async fn volume_space(&self, name: String) -> Result<SpaceReport> {
        let (store, _) = self.find(&name).await?;
        space_of(store, Some(name)).await
    }

    /// The space of each store.
    ///
    /// # Errors
    /// When a store does not answer.
    pub async fn space(&self) -> Result<Vec<SpaceReport>> {
        let mut reports = Vec::with_capacity(self.stores.len());
        for store in &self.stores {
            reports.push(space_of(store, None).await?);
        }
        Ok(reports)
    }

    /// A copy of the counters of each store that answers.
    pub async fn metrics(&self) -> Vec<Option<StoreSample>> {
        let mut samples = Vec::with_capacity(self.stores.len());
        for store in &self.stores {
            let reply = store.request(AdminRequest::Metrics).await;
            samples.push(match reply {
                Ok(AdminReply::Metrics(sample)) => Some(*sample),
                _ => None,
            });
        }
        samples
    }

    /// Changes what can be changed while the stores are in use.
    ///
    /// # Errors
    /// When a store does not take it; the ones before it have.
    pub async fn tune(&self, tuning: Tuning) -> Result<()> {
        for store in &self.stores {
            done(store, store.request(AdminRequest::Tune(tuning)).await?)?;
        }
        Ok(())
    }

    /// What each store says about its health. Never fails: a store that does not answer is itself
    /// part of the answer.
    pub async fn status(&self) -> Vec<StoreStatus> {
        let mut statuses = Vec::with_capacity(self.stores.len());
        for store in &self.stores {
            let report = match store.request(AdminRequest::Status).await {
                Ok(AdminReply::Status(mut report)) => {
                    for volume in &mut report.volumes {
                        volume.store = store.index;
                    }
                    Ok(report)
                }
                Ok(other) => Err(mismatch(store, &other).to_string()),
                Err(error) => Err(error.to_string()),
            };
            statuses.push(StoreStatus {
                store: store.clone(),
                report,
            });
        }
        statuses
    }

    /// Has every store write a checkpoint.
    ///
    /// # Errors
    /// When a store refuses; the ones before it have written theirs.
    pub async fn checkpoint(&self) -> Result<()> {
        for store in &self.stores {
            done(store, store.request(AdminRequest::Checkpoint).await?)?;
        }
        Ok(())
    }

    /// The store that holds a volume. A store that does not answer matters only when no other has
    /// the volume.
    async fn find(&self, name: &str) -> Result<(&StoreHandle, VolumeReport)> {
        let mut refusal = None;
        for store in &self.stores {
            match store
                .request(AdminRequest::VolumeShow { name: name.into() })
                .await
            {
                Ok(reply) => return Ok((store, volume_of(store, reply)?)),
                Err(error) => {
                    let is_absent =
                        matches!(&error, RequestError::Refused(AdminError::NotFound(_)));
                    if refusal.is_none() || !is_absent {
                        refusal = Some(error);
                    }
                }
            }
        }
        Err(refusal.unwrap_or_else(|| {
            AdminError::NotFound(format!("no volume {}", one_line(name))).into()
        }))
    }

    /// That no store has a volume of this name, nor may have one.
    async fn require_free(&self, name: &str) -> Result<()> {
        match self.find(name).await {
            Ok((store, _)) => {
                let text = format!("volume {name} exists already, on store {}", store.index);
                Err(AdminError::Exists(text).into())
            }
            // A name that cannot be looked up cannot be taken; the request itself says why not.
            Err(RequestError::Refused(AdminError::NotFound(_) | AdminError::Invalid(_))) => Ok(()),
            Err(other) => Err(other),
        }
    }

    async fn roomiest(&self) -> Result<&StoreHandle> {
        if let [only] = self.stores.as_slice() {
            return Ok(only); // it says itself why it does not take a volume
        }
        let mut best: Option<(u64, &StoreHandle)> = None;
        for store in self.stores.iter().filter(|s| s.state().fenced.is_none()) {
            let free_bytes = space_of(store, None).await?.free_bytes;
            if best.is_none_or(|(most, _)| free_bytes > most) {
                best = Some((free_bytes, store));
            }
        }
        let none = || AdminError::Refused("every store is fenced; see `esker status --why`".into());
        Ok(best.ok_or_else(none)?.1)
    }
}

async fn space_of(store: &StoreHandle, volume: Option<String>) -> Result<SpaceReport> {
    match store.request(AdminRequest::Space { volume }).await? {
        AdminReply::Space(report) => Ok(report),
        other => Err(mismatch(store, &other)),
    }
}

/// A report, with the store's place in this node: a store does not have to know its own.
fn at(store: &StoreHandle, mut report: VolumeReport) -> VolumeReport {
    report.store = store.index;
    report
}

fn volume_of(store: &StoreHandle, reply: AdminReply) -> Result<VolumeReport> {
    match reply {
        AdminReply::Volume(report) => Ok(at(store, report)),
        other => Err(mismatch(store, &other)),
    }
}

fn done(store: &StoreHandle, reply: AdminReply) -> Result<()> {
    match reply {
        AdminReply::Done => Ok(()),
        other => Err(mismatch(store, &other)),
    }
}

fn mismatch(store: &StoreHandle, reply: &AdminReply) -> RequestError {
    tracing::error!(?reply, "{store} gave an answer to another kind of request");
    RequestError::Silent(format!(
        "{store} gave an answer to another kind of request; a defect"
    ))
}
