//! All stores of the node as one: volume names are unique across them, a request for a volume finds
//! the store that holds it, and reports are put together.

use crate::retention::Counters;
use crate::store::{RequestError, StoreHandle};
use esker_base::{Place, ReplicaId, VolumeId};
use esker_crypto::{KeyName, WrappedKey};
use esker_node::admin::{
    one_line, AdminError, AdminReply, AdminRequest, DiffPage, KeyReport, RolledBack, ScrubPage,
    ScrubPlace, SnapshotPage, SnapshotReport, SpaceReport, StatusReport, Tuning, VersionReport,
    VolumeReport,
};
use esker_node::hold::HoldStep;
use esker_node::meters::StoreSample;
use esker_runtime::DirectorySlot;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::{Mutex, Notify};

/// How long a question waits for exact sums. A store under full load is not exact for long anyway.
const SETTLE_WAIT_MAX: Duration = Duration::from_secs(5);

/// The stores of a node.
pub struct Stores {
    stores: Vec<StoreHandle>,
    /// Held while a name is looked up and then taken, so that two requests cannot take the same one
    /// in two stores.
    naming: Mutex<()>,
    /// What is counted about other nodes.
    pub links: DirectorySlot,
    /// A volume is new, or its labels are: schedules are looked at again.
    pub changed: Notify,
    /// What schedules have done.
    pub automatic: Counters,
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
            links: DirectorySlot::default(),
            changed: Notify::new(),
            automatic: Counters::default(),
        }
    }

    /// With these links to other nodes.
    #[must_use]
    pub fn with_links(mut self, links: DirectorySlot) -> Self {
        self.links = links;
        self
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
        encrypted: bool,
    ) -> Result<VolumeReport> {
        let _naming = self.naming.lock().await;
        self.require_free(&name).await?;
        let store = self.roomiest().await?;
        let request = AdminRequest::VolumeCreate {
            name,
            size_bytes,
            labels,
            encrypted,
        };
        let created = volume_of(store, store.request(request).await?);
        self.changed.notify_one();
        created
    }

    /// The store that a new volume of this name would go to, and its free space in bytes.
    ///
    /// # Errors
    /// When the name is taken in any store, or none takes a volume.
    pub async fn offer(&self, name: &str) -> Result<(usize, u64)> {
        let _naming = self.naming.lock().await;
        self.require_free(name).await?;
        let store = self.roomiest().await?;
        Ok((store.index, space_of(store, None).await?.free_bytes))
    }

    /// Has a store create a replica of a volume.
    ///
    /// # Errors
    /// When the name is taken in any store, there is no such store, or it refuses.
    pub async fn create_replica(
        &self,
        name: &str,
        store: u16,
        request: AdminRequest,
    ) -> Result<()> {
        let _naming = self.naming.lock().await;
        self.require_free(name).await?;
        let found = self.stores.get(usize::from(store));
        let none = || AdminError::Invalid(format!("there is no store {store}"));
        let found = found.ok_or_else(none)?;
        let created = volume_of(found, found.request(request).await?).map(drop);
        self.changed.notify_one();
        created
    }

    /// Takes a replica into a volume's group that this node leads.
    ///
    /// # Errors
    /// When this node does not lead it, or refuses.
    pub async fn replica_add(
        &self,
        volume: String,
        replica: ReplicaId,
        replaces: Option<ReplicaId>,
        places: BTreeMap<ReplicaId, Place>,
    ) -> Result<()> {
        let name = volume.clone();
        let request = AdminRequest::ReplicaAdd {
            volume,
            replica,
            replaces,
            places,
        };
        self.ask(&name, request).await.map(drop)
    }

    /// Takes one out of it.
    ///
    /// # Errors
    /// As [`Self::replica_add`].
    pub async fn replica_remove(
        &self,
        volume: String,
        replica: ReplicaId,
        only_outsider: bool,
    ) -> Result<()> {
        let name = volume.clone();
        let request = AdminRequest::ReplicaRemove {
            volume,
            replica,
            only_outsider,
        };
        self.ask(&name, request).await.map(drop)
    }

    /// Tells the stores where replicas live.
    pub fn tell_places(&self, places: &BTreeMap<ReplicaId, Place>) {
        for store in &self.stores {
            store.backend.tell_places(places.clone());
        }
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
        let store = self.find(name).await?;
        let request = AdminRequest::VolumeShow { name: name.into() };
        volume_of(store, store.request(request).await?)
    }

    /// Has the stores make their sums exact, for a bounded time: a store that is too slow for it, or does
    /// not answer, tells what it knows.
    pub async fn settle(&self) {
        let mut waits = tokio::task::JoinSet::new();
        for store in &self.stores {
            let store = store.clone();
            waits.spawn(async move { _ = store.request(AdminRequest::Settle).await });
        }
        let all = async { while waits.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(SETTLE_WAIT_MAX, all).await;
    }

    /// Asks the store that holds a volume.
    async fn ask(&self, volume: &str, request: AdminRequest) -> Result<(&StoreHandle, AdminReply)> {
        let store = match self.stores.as_slice() {
            // It says itself when it has no such volume: one way there and back is spared.
            [only] => only,
            _ => self.find(volume).await?,
        };
        Ok((store, store.request(request).await?))
    }

    /// Takes a snapshot.
    ///
    /// # Errors
    /// When no store has the volume, or its store refuses.
    pub async fn snapshot_create(
        &self,
        volume: String,
        name: String,
        labels: BTreeMap<String, String>,
    ) -> Result<SnapshotReport> {
        let of = volume.clone();
        let request = AdminRequest::SnapshotCreate {
            volume,
            name,
            labels,
        };
        match self.ask(&of, request).await? {
            (store, AdminReply::Snapshot(report)) => Ok(snapshot_at(store, report)),
            (store, other) => Err(mismatch(store, &other)),
        }
    }

    /// Something of a cut through several volumes, before its snapshots are taken.
    ///
    /// # Errors
    /// When no store has the volume, or its store refuses.
    pub async fn hold(
        &self,
        volume: String,
        name: String,
        cut: u128,
        step: HoldStep,
    ) -> Result<()> {
        let of = volume.clone();
        let request = AdminRequest::VolumeHold {
            volume,
            name,
            cut,
            step,
        };
        match self.ask(&of, request).await? {
            (_, AdminReply::Done) => Ok(()),
            (store, other) => Err(mismatch(store, &other)),
        }
    }

    /// Takes a volume's snapshot of a cut; tells how long its changes waited.
    ///
    /// # Errors
    /// When no store has the volume, its changes do not wait for this cut, or its store refuses.
    pub async fn snapshot_cut(
        &self,
        volume: String,
        name: String,
        cut: u128,
        created_us: u64,
        labels: BTreeMap<String, String>,
    ) -> Result<(SnapshotReport, Duration)> {
        let of = volume.clone();
        let request = AdminRequest::SnapshotCut {
            volume,
            name,
            cut,
            created_us,
            labels,
        };
        match self.ask(&of, request).await? {
            (store, AdminReply::Cut(report, held)) => Ok((snapshot_at(store, *report), held)),
            (store, other) => Err(mismatch(store, &other)),
        }
    }

    /// A page of snapshots: of one volume, or of all, store by store.
    ///
    /// # Errors
    /// When no store has the volume, or a store does not answer.
    pub async fn snapshots(
        &self,
        volume: Option<String>,
        after: Option<(String, u64)>,
    ) -> Result<SnapshotPage> {
        if let Some(name) = &volume {
            let store = self.find(name).await?;
            return snapshots_of(store, volume, after).await;
        }
        // Pages of one store are in the order of volumes; those of several are put together so.
        let mut all = SnapshotPage::default();
        let mut ends: Vec<(String, u64)> = Vec::new();
        for store in &self.stores {
            let page = snapshots_of(store, None, after.clone()).await?;
            all.snapshots.extend(page.snapshots);
            ends.extend(page.next);
        }
        let place = |s: &SnapshotReport| (s.volume.clone(), s.stamp);
        all.snapshots.sort_by_key(place);
        // Behind the end of a page that is not the last, other stores have told too much.
        all.next = ends.into_iter().min();
        if let Some(end) = &all.next {
            all.snapshots.retain(|s| place(s) <= *end);
        }
        Ok(all)
    }

    /// A page of the versions of a volume.
    ///
    /// # Errors
    /// When no store has the volume.
    pub async fn versions(&self, volume: String, after: u64) -> Result<Vec<VersionReport>> {
        let of = volume.clone();
        let request = AdminRequest::VersionList { volume, after };
        match self.ask(&of, request).await? {
            (store, AdminReply::Versions(mut versions)) => {
                for version in &mut versions {
                    version.snapshot.store = store.index;
                }
                Ok(versions)
            }
            (store, other) => Err(mismatch(store, &other)),
        }
    }

    /// Makes a volume that begins as a snapshot is, in the same store.
    ///
    /// # Errors
    /// When no store has the snapshot, the name is taken in any store, or the store refuses.
    pub async fn clone_volume(
        &self,
        volume: String,
        snapshot: String,
        name: String,
        labels: BTreeMap<String, String>,
        born: Option<VolumeId>,
    ) -> Result<VolumeReport> {
        let _naming = self.naming.lock().await;
        self.require_free(&name).await?;
        let of = volume.clone();
        let request = AdminRequest::VolumeClone {
            volume,
            snapshot,
            name,
            labels,
            born,
        };
        let (store, reply) = self.ask(&of, request).await?;
        volume_of(store, reply)
    }

    /// Makes a volume that begins as another one was at a moment, in the same store.
    ///
    /// # Errors
    /// As [`Self::clone_volume`], or when the moment is not in the volume's rewind window.
    pub async fn clone_at(
        &self,
        volume: String,
        at_us: u64,
        name: String,
        labels: BTreeMap<String, String>,
        born: Option<VolumeId>,
    ) -> Result<VolumeReport> {
        let _naming = self.naming.lock().await;
        self.require_free(&name).await?;
        let of = volume.clone();
        let request = AdminRequest::VolumeCloneAt {
            volume,
            at_us,
            name,
            labels,
            born,
        };
        let (store, reply) = self.ask(&of, request).await?;
        volume_of(store, reply)
    }

    /// Deletes a snapshot.
    ///
    /// # Errors
    /// When no store has it, or its store refuses.
    pub async fn snapshot_delete(&self, volume: String, name: String) -> Result<()> {
        let of = volume.clone();
        let request = AdminRequest::SnapshotDelete { volume, name };
        let (store, reply) = self.ask(&of, request).await?;
        done(store, reply)
    }

    /// Lets a volume go on from a snapshot. `keep`: see [`AdminRequest::SnapshotRollback`].
    ///
    /// # Errors
    /// When no store has it, or its store refuses.
    pub async fn rollback(
        &self,
        volume: String,
        name: String,
        keep: Option<Option<String>>,
        force: bool,
    ) -> Result<RolledBack> {
        // The name that is chosen for what is left is taken in the same store.
        let of = volume.clone();
        let request = AdminRequest::SnapshotRollback {
            volume,
            name,
            keep,
            force,
        };
        match self.ask(&of, request).await? {
            (store, AdminReply::RolledBack(done)) => Ok(RolledBack {
                volume: at(store, done.volume),
                kept: done.kept.map(|kept| snapshot_at(store, kept)),
            }),
            (store, other) => Err(mismatch(store, &other)),
        }
    }

    /// A page of what differs between a version of a volume and a snapshot, of that volume or another one.
    ///
    /// # Errors
    /// When no store has one of them, or its store refuses.
    pub async fn diff(
        &self,
        volume: String,
        (of, from): (Option<String>, String),
        to: Option<String>,
        offset: u64,
    ) -> Result<DiffPage> {
        let name = volume.clone();
        let request = AdminRequest::SnapshotDiff {
            volume,
            of,
            from,
            to,
            offset,
        };
        match self.ask(&name, request).await? {
            (_, AdminReply::Diff(page)) => Ok(page),
            (store, other) => Err(mismatch(store, &other)),
        }
    }

    /// A part of a scrub of a volume.
    ///
    /// # Errors
    /// When no store has it, or its store refuses.
    pub async fn scrub(&self, volume: String, place: Option<ScrubPlace>) -> Result<ScrubPage> {
        let of = volume.clone();
        let volume = Some(volume);
        match self.ask(&of, AdminRequest::Scrub { volume, place }).await? {
            (_, AdminReply::Scrub(page)) => Ok(page),
            (store, other) => Err(mismatch(store, &other)),
        }
    }

    /// Grows a volume.
    ///
    /// # Errors
    /// When no store has it, or its store refuses.
    pub async fn resize(&self, name: String, size_bytes: u64) -> Result<VolumeReport> {
        let store = self.find(&name).await?;
        let request = AdminRequest::VolumeResize { name, size_bytes };
        volume_of(store, store.request(request).await?)
    }

    /// Changes labels of a volume; none takes one away.
    ///
    /// # Errors
    /// When no store has it, or its store refuses.
    pub async fn relabel(
        &self,
        name: String,
        labels: BTreeMap<String, Option<String>>,
    ) -> Result<VolumeReport> {
        self.relabel_where(name, labels, None).await
    }

    /// The same, if a label still has the value that it was seen with.
    ///
    /// # Errors
    /// As [`Self::relabel`]; [`AdminError::NotLeading`] when it has not.
    pub async fn relabel_where(
        &self,
        name: String,
        labels: BTreeMap<String, Option<String>>,
        expects: Option<(String, String)>,
    ) -> Result<VolumeReport> {
        let store = self.find(&name).await?;
        let request = AdminRequest::VolumeRelabel {
            name,
            labels,
            expects,
        };
        let changed = volume_of(store, store.request(request).await?);
        self.changed.notify_one();
        changed
    }

    /// Gives a volume to one holder, or, with none, takes it back, if `only` is in force where that is said.
    ///
    /// # Errors
    /// When no store has it, another holder has it and `fence` is not given, or its store refuses.
    pub async fn attach(
        &self,
        name: String,
        holder: Option<String>,
        only: Option<u64>,
        fence: bool,
    ) -> Result<VolumeReport> {
        let store = self.find(&name).await?;
        let request = AdminRequest::VolumeAttach {
            name,
            holder,
            only,
            fence,
        };
        volume_of(store, store.request(request).await?)
    }

    /// Renames a volume.
    ///
    /// # Errors
    /// When no store has it, the new name is taken in any store, or its store refuses.
    pub async fn rename(&self, name: String, new_name: String) -> Result<VolumeReport> {
        let _naming = self.naming.lock().await;
        let store = self.find(&name).await?;
        self.require_free(&new_name).await?;
        let request = AdminRequest::VolumeRename { name, new_name };
        volume_of(store, store.request(request).await?)
    }

    /// Deletes a volume.
    ///
    /// # Errors
    /// When no store has it, or its store refuses.
    pub async fn delete(&self, name: String, with_snapshots: bool) -> Result<()> {
        let store = self.find(&name).await?;
        let request = AdminRequest::VolumeDelete {
            name,
            with_snapshots,
        };
        done(store, store.request(request).await?)
    }

    /// Accepts the loss of a log record of a suspended volume.
    ///
    /// # Errors
    /// When no store has it, or its store refuses.
    pub async fn accept_loss(&self, name: String) -> Result<VolumeReport> {
        let store = self.find(&name).await?;
        let request = AdminRequest::VolumeAcceptLoss { name };
        volume_of(store, store.request(request).await?)
    }

    /// The keys of an encrypted volume.
    ///
    /// # Errors
    /// When no store has it, or it is not encrypted.
    pub async fn keys(&self, volume: String) -> Result<Vec<KeyReport>> {
        let store = self.find(&volume).await?;
        let reply = store.request(AdminRequest::KeyShow { volume }).await?;
        keys_of(store, reply)
    }

    /// The data keys of an encrypted volume, wrapped as its store keeps them.
    ///
    /// # Errors
    /// When no store has it, it is not encrypted, or one of its keys is in no slot.
    pub async fn wrapped_keys(&self, volume: String) -> Result<Vec<WrappedKey>> {
        let store = self.find(&volume).await?;
        match store.request(AdminRequest::KeysWrapped { volume }).await? {
            AdminReply::Wrapped(wrapped) => Ok(wrapped),
            other => Err(mismatch(store, &other)),
        }
    }

    /// Has a store keep data keys.
    ///
    /// # Errors
    /// When there is no such store, or it refuses.
    pub async fn place_keys(&self, store: usize, keys: Vec<WrappedKey>, fresh: bool) -> Result<()> {
        let found = self.stores.get(store);
        let none = || AdminError::Invalid(format!("there is no store {store}"));
        let found = found.ok_or_else(none)?;
        let request = AdminRequest::KeysPlace { keys, fresh };
        done(found, found.request(request).await?)
    }

    /// The key that a volume with several copies gets next.
    ///
    /// # Errors
    /// When no store has it, it is not led here, or not encrypted.
    pub async fn next_key(&self, volume: String) -> Result<KeyName> {
        let store = self.find(&volume).await?;
        match store.request(AdminRequest::KeyNext { volume }).await? {
            AdminReply::NextKey(name) => Ok(name),
            other => Err(mismatch(store, &other)),
        }
    }

    /// Has a volume with several copies write under a key that the nodes of these replicas have.
    ///
    /// # Errors
    /// When no store has it, it is not led here, or it has changed since the key was placed.
    pub async fn key_in_force(
        &self,
        volume: String,
        key_id: u32,
        replicas: BTreeSet<ReplicaId>,
    ) -> Result<Vec<KeyReport>> {
        let store = self.find(&volume).await?;
        let request = AdminRequest::KeyInForce {
            volume,
            key_id,
            replicas,
        };
        keys_of(store, store.request(request).await?)
    }

    /// Wraps the keys of an encrypted volume anew.
    ///
    /// # Errors
    /// When no store has it, it is not encrypted, or a provider refuses.
    pub async fn rotate_keys(&self, volume: String, data_key: bool) -> Result<Vec<KeyReport>> {
        let store = self.find(&volume).await?;
        let request = AdminRequest::KeyRotate { volume, data_key };
        keys_of(store, store.request(request).await?)
    }

    /// The part of its store's space that a volume holds.
    ///
    /// # Errors
    /// When no store has it.
    pub async fn volume_space(&self, name: String) -> Result<SpaceReport> {
        let store = self.find(&name).await?;
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
    pub(crate) async fn find(&self, name: &str) -> Result<&StoreHandle> {
        let mut refusal = None;
        for store in &self.stores {
            match store
                .request(AdminRequest::VolumeFind { name: name.into() })
                .await
            {
                Ok(reply) => return done(store, reply).map(|()| store),
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
            Ok(store) => {
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

fn snapshot_at(store: &StoreHandle, mut report: SnapshotReport) -> SnapshotReport {
    report.store = store.index;
    report
}

async fn snapshots_of(
    store: &StoreHandle,
    volume: Option<String>,
    after: Option<(String, u64)>,
) -> Result<SnapshotPage> {
    let request = AdminRequest::SnapshotList { volume, after };
    match store.request(request).await? {
        AdminReply::Snapshots(mut page) => {
            for snapshot in &mut page.snapshots {
                snapshot.store = store.index;
            }
            Ok(page)
        }
        other => Err(mismatch(store, &other)),
    }
}

fn volume_of(store: &StoreHandle, reply: AdminReply) -> Result<VolumeReport> {
    match reply {
        AdminReply::Volume(report) => Ok(at(store, report)),
        other => Err(mismatch(store, &other)),
    }
}

fn keys_of(store: &StoreHandle, reply: AdminReply) -> Result<Vec<KeyReport>> {
    match reply {
        AdminReply::Keys(keys) => Ok(keys),
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
