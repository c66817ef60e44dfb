//! The admin API: gRPC on the node's unix socket, and on TCP ([`crate::admin_tcp`]). Protocol:
//! `api/proto/esker/admin/v1/admin.proto`.

use crate::cluster::Cluster;
use crate::door::Door;
use crate::error::DaemonError;
use crate::identity::Identity;
use crate::report;
use crate::retention;
use crate::retention::policy::{Policy, Schedule};
use crate::rewind::{self, Window};
use crate::store::RequestError;
use crate::stores::Stores;
use crate::uri::Endpoints;
use esker_api::v1::admin_server::{Admin, AdminServer};
use esker_api::{v1, MESSAGE_BYTES_MAX};
use esker_base::limits::METADATA_VOLUME;
use esker_base::num::{to_u32_saturating, to_usize};
use esker_node::admin::{AdminError, VolumeReport};
use esker_node::hold::HoldStep;
use esker_node::rewind::REWIND_LABEL;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Code, Request, Response, Status};

/// Requests in progress per connection; further ones wait.
pub(crate) const CONNECTION_REQUESTS_MAX: usize = 32;
/// Longest request in bytes.
const REQUEST_BYTES_MAX: usize = 1024 * 1024;

/// The admin socket: bound under another name, so that it never exists with wider rights than its
/// owner's, and there for clients once it is published.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    file: SocketFile,
}

/// The socket's file under its present name; removed at the end, whatever the end is.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0); // one that stays is replaced at the next start
    }
}

impl AdminSocket {
    /// Binds at `temporary`, for the owner only, to be published as `path`. The caller holds the
    /// lock of their folder, so a socket that is there is a dead daemon's.
    ///
    /// # Errors
    /// When something that is no socket is in the way, or it cannot be bound.
    pub fn bind(path: &Path, temporary: &Path) -> Result<Self, DaemonError> {
        for place in [path, temporary] {
            match std::fs::symlink_metadata(place) {
                Ok(found) if !found.file_type().is_socket() => {
                    return Err(listen_error(path, io::ErrorKind::AlreadyExists.into()));
                }
                Ok(_) => std::fs::remove_file(place).map_err(|e| listen_error(path, e))?,
                Err(_) => {}
            }
        }
        let listener = UnixListener::bind(temporary).map_err(|e| listen_error(path, e))?;
        let file = SocketFile(temporary.to_path_buf());
        std::fs::set_permissions(temporary, std::fs::Permissions::from_mode(0o600))
            .map_err(|e| listen_error(path, e))?;
        Ok(Self { listener, file })
    }

    /// Gives the socket the name under which clients look for it.
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub fn publish(mut self, path: &Path) -> Result<Self, DaemonError> {
        std::fs::rename(&self.file.0, path).map_err(|e| listen_error(path, e))?;
        self.file.0 = path.to_path_buf();
        Ok(self)
    }

    /// Serves until it is dropped, which removes the socket.
    ///
    /// # Errors
    /// When the listener breaks.
    pub async fn serve(self, service: impl Into<Door>) -> Result<(), DaemonError> {
        tonic::transport::Server::builder()
            .concurrency_limit_per_connection(CONNECTION_REQUESTS_MAX)
            .add_service(service.into())
            .serve_with_incoming(UnixListenerStream::new(self.listener))
            .await
            .map_err(|e| listen_error(&self.file.0, io::Error::other(e)))
    }
}

fn listen_error(path: &Path, source: io::Error) -> DaemonError {
    DaemonError::Listen {
        address: path.display().to_string(),
        purpose: "the admin API",
        source,
        remedy: "look at what is there, and remove it if nothing needs it",
    }
}

/// Answers administrative requests.
#[derive(Clone)]
pub struct AdminService {
    stores: Arc<Stores>,
    identity: Identity,
    endpoints: Endpoints,
    schedule: Option<Policy>,
    rewind: Window,
    cluster: Option<Arc<Cluster>>,
}

type Answer<T> = Result<Response<T>, Status>;

impl AdminService {
    /// For these stores of this node.
    #[must_use]
    pub fn new(stores: Arc<Stores>, identity: Identity, endpoints: Endpoints) -> Self {
        Self {
            stores,
            identity,
            endpoints,
            schedule: None,
            rewind: Window::default(),
            cluster: None,
        }
    }

    /// With this snapshot schedule for volumes that are created without one.
    #[must_use]
    pub fn with_schedule(mut self, schedule: Option<Policy>) -> Self {
        self.schedule = schedule;
        self
    }

    /// With this rewind window for volumes that are created without one.
    #[must_use]
    pub fn with_rewind(mut self, window: Window) -> Self {
        self.rewind = window;
        self
    }

    /// With the other members of its cluster.
    #[must_use]
    pub fn with_cluster(mut self, cluster: Arc<Cluster>) -> Self {
        self.cluster = Some(cluster);
        self
    }

    /// Creates a volume with several copies.
    async fn create_replicated(
        &self,
        request: v1::CreateVolumeRequest,
        labels: BTreeMap<String, String>,
    ) -> Result<VolumeReport, Status> {
        let Some(cluster) = &self.cluster else {
            return Err(Status::failed_precondition(format!(
                "{} copies: that needs a cluster",
                request.replicas
            )));
        };
        let copies = to_usize(u64::from(request.replicas));
        let (name, size_bytes) = (request.name, request.size_bytes);
        let created = cluster.create(name, size_bytes, labels, copies, request.encrypted);
        created.await.map_err(refusal)
    }

    fn require_cluster(&self) -> Result<&Cluster, Status> {
        self.require_shared_cluster().map(AsRef::as_ref)
    }

    /// What makes this node a member, whether it is one or not.
    fn any_cluster(&self) -> Result<&Arc<Cluster>, Status> {
        let cluster = self.cluster.as_ref();
        cluster.ok_or_else(|| Status::failed_precondition("this node takes part in no cluster"))
    }

    fn require_shared_cluster(&self) -> Result<&Arc<Cluster>, Status> {
        let cluster = self.cluster.as_ref().filter(|cluster| cluster.is_member());
        cluster.ok_or_else(|| {
            Status::failed_precondition(
                "this node is alone: `esker cluster init` makes it the first of a cluster, if [cluster] of its configuration says where it \
                 listens",
            )
        })
    }

    /// Refuses what makes a new volume here while this node is drained.
    fn require_undrained(&self) -> Result<(), Status> {
        match &self.cluster {
            None => Ok(()),
            Some(cluster) => cluster.require_undrained().map_err(refusal),
        }
    }

    /// As it is served.
    #[must_use]
    pub fn server(self) -> AdminServer<Self> {
        AdminServer::new(self)
            .max_decoding_message_size(REQUEST_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The label of a volume that is created: of the schedule that was asked for, or of the default.
    fn schedule_label(&self, asked: Option<String>) -> Result<Option<String>, Status> {
        let schedule = match asked {
            Some(text) => schedule(&text)?,
            None => self.schedule.clone(),
        };
        Ok(schedule.map(|policy| policy.to_string()))
    }

    fn volume(&self, report: VolumeReport) -> Option<v1::Volume> {
        Some(report::volume(report, &self.endpoints))
    }
}

/// The status of a refusal; its message is one line.
/// A node's id; none when it is empty.
fn node_id(text: &str) -> Result<Option<esker_base::NodeId>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    let id = text.parse().ok().filter(|id| *id > 0);
    let id = id.ok_or_else(|| Status::invalid_argument(format!("`{text}` is not a node's id")))?;
    Ok(Some(esker_base::NodeId(id)))
}

pub(crate) fn refusal(error: RequestError) -> Status {
    let code = match &error {
        RequestError::Refused(AdminError::NotFound(_)) => Code::NotFound,
        RequestError::Refused(AdminError::Exists(_)) => Code::AlreadyExists,
        RequestError::Refused(AdminError::Invalid(_)) => Code::InvalidArgument,
        RequestError::Refused(AdminError::Refused(_)) => Code::FailedPrecondition,
        RequestError::Refused(AdminError::NoSpace(_)) => Code::ResourceExhausted,
        RequestError::Refused(AdminError::NotLeading(_)) => Code::Aborted,
        RequestError::Refused(AdminError::Unsure(_)) | RequestError::Silent(_) => Code::Unavailable,
    };
    Status::new(code, error.to_string())
}

/// A schedule that a request names; none for `none`.
fn schedule(text: &str) -> Result<Option<Policy>, Status> {
    let parsed: Result<Schedule, String> = text.parse();
    parsed
        .map(|schedule| schedule.0)
        .map_err(Status::invalid_argument)
}

pub(crate) fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| {
        u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
    })
}

/// The cut that a request is a part of.
fn cut_of(text: &str) -> Result<u128, Status> {
    u128::from_str_radix(&text.replace('-', ""), 16).map_err(|_| {
        let text = esker_node::admin::one_line(text);
        Status::invalid_argument(format!("a cut is a UUID, not `{text}`"))
    })
}

/// A rewind window that a request names, as the label of the volume that holds it.
fn window_label(text: &str) -> Result<Option<String>, Status> {
    let window: Result<Window, String> = text.parse();
    let window = window.map_err(Status::invalid_argument)?;
    Ok(window.0.map(|seconds| seconds.to_string()))
}

/// Refuses what would change the volume that the cluster keeps its members in.
fn require_ordinary(name: &str) -> Result<(), Status> {
    match name == METADATA_VOLUME {
        false => Ok(()),
        true => Err(Status::invalid_argument(format!(
            "{METADATA_VOLUME} is the volume that a cluster keeps its members in; `esker node` changes them"
        ))),
    }
}

/// Labels that somebody asks for.
fn labels_of(labels: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Status> {
    retention::check_keys(labels.keys()).map_err(|error| refusal(error.into()))?;
    Ok(labels)
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn create_volume(
        &self,
        request: Request<v1::CreateVolumeRequest>,
    ) -> Answer<v1::CreateVolumeResponse> {
        let request = request.into_inner();
        require_ordinary(&request.name)?;
        tracing::info!(
            name = request.name,
            size_bytes = request.size_bytes,
            "create volume"
        );
        if request.replicas <= 1 {
            self.require_undrained()?;
        }
        let mut labels = labels_of(request.labels.clone())?;
        let schedule = self.schedule_label(request.snapshot_schedule.clone())?;
        labels.extend(schedule.map(|text| (retention::SCHEDULE_LABEL.into(), text)));
        let window = match &request.rewind {
            Some(text) => window_label(text)?,
            None => self.rewind.0.map(|seconds| seconds.to_string()),
        };
        labels.extend(window.map(|text| (REWIND_LABEL.into(), text)));
        if request.replicas > 1 {
            let created = self.create_replicated(request, labels).await?;
            let volume = self.volume(created);
            return Ok(Response::new(v1::CreateVolumeResponse { volume }));
        }
        let created = self
            .stores
            .create(request.name, request.size_bytes, labels, request.encrypted)
            .await;
        let volume = self.volume(created.map_err(refusal)?);
        Ok(Response::new(v1::CreateVolumeResponse { volume }))
    }

    async fn list_volumes(
        &self,
        _request: Request<v1::ListVolumesRequest>,
    ) -> Answer<v1::ListVolumesResponse> {
        self.stores.settle().await;
        let reports = self.stores.list().await.map_err(refusal)?;
        let volumes = reports
            .into_iter()
            .filter(|r| r.name != METADATA_VOLUME)
            .map(|r| report::volume(r, &self.endpoints))
            .collect();
        Ok(Response::new(v1::ListVolumesResponse { volumes }))
    }

    async fn show_volume(
        &self,
        request: Request<v1::ShowVolumeRequest>,
    ) -> Answer<v1::ShowVolumeResponse> {
        self.stores.settle().await;
        let shown = self.stores.show(&request.into_inner().name).await;
        let volume = self.volume(shown.map_err(refusal)?);
        Ok(Response::new(v1::ShowVolumeResponse { volume }))
    }

    async fn resize_volume(
        &self,
        request: Request<v1::ResizeVolumeRequest>,
    ) -> Answer<v1::ResizeVolumeResponse> {
        let request = request.into_inner();
        require_ordinary(&request.name)?;
        tracing::info!(
            name = request.name,
            size_bytes = request.size_bytes,
            "resize volume"
        );
        let resized = self.stores.resize(request.name, request.size_bytes).await;
        let volume = self.volume(resized.map_err(refusal)?);
        Ok(Response::new(v1::ResizeVolumeResponse { volume }))
    }

    async fn set_volume(
        &self,
        request: Request<v1::SetVolumeRequest>,
    ) -> Answer<v1::SetVolumeResponse> {
        let v1::SetVolumeRequest {
            name,
            snapshot_schedule,
            labels,
            unlabel,
            rewind,
        } = request.into_inner();
        require_ordinary(&name)?;
        tracing::info!(name, snapshot_schedule, rewind, "set volume");
        retention::check_keys(unlabel.iter()).map_err(|error| refusal(error.into()))?;
        let labels = labels_of(labels)?;
        let mut changes: BTreeMap<String, Option<String>> = BTreeMap::new();
        changes.extend(unlabel.into_iter().map(|key| (key, None)));
        changes.extend(labels.into_iter().map(|(key, value)| (key, Some(value))));
        if let Some(text) = snapshot_schedule {
            let schedule = schedule(&text)?.map(|policy| policy.to_string());
            changes.insert(retention::SCHEDULE_LABEL.into(), schedule);
        }
        if let Some(text) = rewind {
            changes.insert(REWIND_LABEL.into(), window_label(&text)?);
        }
        let set = self.stores.relabel(name, changes).await;
        let volume = self.volume(set.map_err(refusal)?);
        Ok(Response::new(v1::SetVolumeResponse { volume }))
    }

    async fn attach_volume(
        &self,
        request: Request<v1::AttachVolumeRequest>,
    ) -> Answer<v1::AttachVolumeResponse> {
        let v1::AttachVolumeRequest {
            name,
            holder,
            fence,
        } = request.into_inner();
        require_ordinary(&name)?;
        tracing::info!(name, holder, fence, "attach volume");
        let attached = self.stores.attach(name, Some(holder), None, fence).await;
        let volume = self.volume(attached.map_err(refusal)?);
        Ok(Response::new(v1::AttachVolumeResponse { volume }))
    }

    async fn detach_volume(
        &self,
        request: Request<v1::DetachVolumeRequest>,
    ) -> Answer<v1::DetachVolumeResponse> {
        let v1::DetachVolumeRequest { name, attachment } = request.into_inner();
        require_ordinary(&name)?;
        tracing::info!(name, attachment, "detach volume");
        let detached = self.stores.attach(name, None, attachment, false).await;
        let volume = self.volume(detached.map_err(refusal)?);
        Ok(Response::new(v1::DetachVolumeResponse { volume }))
    }

    async fn prune_snapshots(
        &self,
        request: Request<v1::PruneSnapshotsRequest>,
    ) -> Answer<v1::PruneSnapshotsResponse> {
        let v1::PruneSnapshotsRequest {
            volume,
            dry_run,
            snapshot_schedule,
        } = request.into_inner();
        require_ordinary(&volume)?;
        tracing::info!(volume, dry_run, "prune snapshots");
        if snapshot_schedule.is_some() && !dry_run {
            return Err(Status::invalid_argument(
                "another schedule than the volume's is only for a dry run; set it first",
            ));
        }
        let asked = snapshot_schedule.map(|text| schedule(&text)).transpose()?;
        let plan = retention::prune_volume(&self.stores, &volume, dry_run, asked.flatten()).await;
        Ok(Response::new(report::pruned(plan.map_err(refusal)?)))
    }

    async fn rename_volume(
        &self,
        request: Request<v1::RenameVolumeRequest>,
    ) -> Answer<v1::RenameVolumeResponse> {
        let request = request.into_inner();
        require_ordinary(&request.name)?;
        require_ordinary(&request.new_name)?;
        tracing::info!(
            name = request.name,
            new_name = request.new_name,
            "rename volume"
        );
        if let Some(cluster) = &self.cluster {
            let free = cluster.require_free(&request.name, &request.new_name).await;
            free.map_err(refusal)?;
        }
        let renamed = self.stores.rename(request.name, request.new_name).await;
        let volume = self.volume(renamed.map_err(refusal)?);
        Ok(Response::new(v1::RenameVolumeResponse { volume }))
    }

    async fn delete_volume(
        &self,
        request: Request<v1::DeleteVolumeRequest>,
    ) -> Answer<v1::DeleteVolumeResponse> {
        let v1::DeleteVolumeRequest {
            name,
            with_snapshots,
        } = request.into_inner();
        require_ordinary(&name)?;
        tracing::info!(name, with_snapshots, "delete volume");
        let is_replicated = match &self.cluster {
            None => false,
            Some(cluster) => {
                let deleted = cluster.delete(&name, with_snapshots).await;
                deleted.map_err(refusal)?
            }
        };
        if !is_replicated {
            let deleted = self.stores.delete(name, with_snapshots).await;
            deleted.map_err(refusal)?;
        }
        Ok(Response::new(v1::DeleteVolumeResponse {}))
    }

    async fn create_snapshot(
        &self,
        request: Request<v1::CreateSnapshotRequest>,
    ) -> Answer<v1::CreateSnapshotResponse> {
        let v1::CreateSnapshotRequest {
            volume,
            name,
            labels,
        } = request.into_inner();
        require_ordinary(&volume)?;
        tracing::info!(volume, name, "create snapshot");
        let labels = labels_of(labels)?;
        let created = self.stores.snapshot_create(volume, name, labels).await;
        let snapshot = Some(report::snapshot(created.map_err(refusal)?));
        Ok(Response::new(v1::CreateSnapshotResponse { snapshot }))
    }

    async fn create_snapshots(
        &self,
        request: Request<v1::CreateSnapshotsRequest>,
    ) -> Answer<v1::CreateSnapshotsResponse> {
        let v1::CreateSnapshotsRequest { snapshots, labels } = request.into_inner();
        for wanted in &snapshots {
            require_ordinary(&wanted.volume)?;
            tracing::info!(
                volume = wanted.volume,
                name = wanted.name,
                "create snapshot at one moment"
            );
        }
        let labels = labels_of(labels)?;
        let cluster = self.cluster.clone().filter(|cluster| cluster.is_member());
        let here = AdminServer::new(self.clone());
        let way = crate::cut::Way { here, cluster };
        let taken = crate::cut::take(&way, snapshots, labels).await?;
        Ok(Response::new(taken))
    }

    async fn hold_volume(
        &self,
        request: Request<v1::HoldVolumeRequest>,
    ) -> Answer<v1::HoldVolumeResponse> {
        let request = request.into_inner();
        require_ordinary(&request.volume)?;
        let step = match request.step() {
            v1::HoldStep::Unspecified => {
                return Err(Status::invalid_argument(
                    "it is not said what is to be done",
                ));
            }
            v1::HoldStep::Check => HoldStep::Check,
            v1::HoldStep::Begin => HoldStep::Begin,
            v1::HoldStep::End => HoldStep::End,
        };
        let cut = cut_of(&request.cut)?;
        let held = self.stores.hold(request.volume, request.name, cut, step);
        held.await.map_err(refusal)?;
        Ok(Response::new(v1::HoldVolumeResponse {}))
    }

    async fn cut_volume(
        &self,
        request: Request<v1::CutVolumeRequest>,
    ) -> Answer<v1::CutVolumeResponse> {
        let mut request = request.into_inner();
        require_ordinary(&request.volume)?;
        let cut = cut_of(&request.cut)?;
        let label = request.labels.remove_entry(crate::cut::CUT_LABEL);
        let mut labels = labels_of(request.labels)?;
        labels.extend(label);
        tracing::info!(
            volume = request.volume,
            name = request.name,
            cut = request.cut,
            "cut volume"
        );
        let taken = self.stores.snapshot_cut(
            request.volume,
            request.name,
            cut,
            request.created_us,
            labels,
        );
        let (report, held) = taken.await.map_err(refusal)?;
        Ok(Response::new(v1::CutVolumeResponse {
            snapshot: Some(report::snapshot(report)),
            held_microseconds: u64::try_from(held.as_micros()).unwrap_or(u64::MAX),
        }))
    }

    async fn list_snapshots(
        &self,
        request: Request<v1::ListSnapshotsRequest>,
    ) -> Answer<v1::ListSnapshotsResponse> {
        let v1::ListSnapshotsRequest { volume, after } = request.into_inner();
        let after = after.map(|place| (place.volume, place.stamp));
        if after.is_none() {
            self.stores.settle().await;
        }
        let page = self.stores.snapshots(volume, after).await;
        let page = page.map_err(refusal)?;
        let next = page.next;
        Ok(Response::new(v1::ListSnapshotsResponse {
            snapshots: page.snapshots.into_iter().map(report::snapshot).collect(),
            next: next.map(|(volume, stamp)| v1::SnapshotPlace { volume, stamp }),
        }))
    }

    async fn list_versions(
        &self,
        request: Request<v1::ListVersionsRequest>,
    ) -> Answer<v1::ListVersionsResponse> {
        let v1::ListVersionsRequest { volume, after } = request.into_inner();
        if after == 0 {
            self.stores.settle().await;
        }
        let versions = self.stores.versions(volume, after).await;
        let versions = versions.map_err(refusal)?.into_iter().map(report::version);
        let versions = versions.collect();
        Ok(Response::new(v1::ListVersionsResponse { versions }))
    }

    async fn clone_volume(
        &self,
        request: Request<v1::CloneVolumeRequest>,
    ) -> Answer<v1::CloneVolumeResponse> {
        let v1::CloneVolumeRequest {
            volume,
            snapshot,
            name,
            labels,
        } = request.into_inner();
        require_ordinary(&volume)?;
        require_ordinary(&name)?;
        tracing::info!(volume, snapshot, name, "clone volume");
        let labels = labels_of(labels)?;
        let at = rewind::moment(&snapshot, now_us()).map_err(Status::invalid_argument)?;
        let born = match &self.cluster {
            None => None,
            Some(cluster) => {
                let free = cluster.require_free(&volume, &name).await;
                free.map_err(refusal)?;
                let placed = cluster.place_clone_key(&volume).await;
                placed.map_err(refusal)?
            }
        };
        let made = match at {
            Some(at_us) => {
                let made = self.stores.clone_at(volume, at_us, name, labels, born);
                made.await
            }
            None => {
                let made = self
                    .stores
                    .clone_volume(volume, snapshot, name, labels, born);
                made.await
            }
        };
        let volume = self.volume(made.map_err(refusal)?);
        Ok(Response::new(v1::CloneVolumeResponse { volume }))
    }

    async fn delete_snapshot(
        &self,
        request: Request<v1::DeleteSnapshotRequest>,
    ) -> Answer<v1::DeleteSnapshotResponse> {
        let v1::DeleteSnapshotRequest { volume, name } = request.into_inner();
        require_ordinary(&volume)?;
        tracing::info!(volume, name, "delete snapshot");
        let deleted = self.stores.snapshot_delete(volume, name).await;
        deleted.map_err(refusal)?;
        Ok(Response::new(v1::DeleteSnapshotResponse {}))
    }

    async fn rollback_snapshot(
        &self,
        request: Request<v1::RollbackSnapshotRequest>,
    ) -> Answer<v1::RollbackSnapshotResponse> {
        let v1::RollbackSnapshotRequest {
            volume,
            name,
            keep,
            discard,
            force,
        } = request.into_inner();
        require_ordinary(&volume)?;
        tracing::warn!(volume, name, keep, discard, force, "roll volume back");
        let keep = match (discard, keep.as_str()) {
            (true, "") => Some(None),
            (true, _) => {
                return Err(Status::invalid_argument(
                    "the state that is left can be kept or discarded, not both",
                ))
            }
            (false, "") => None,
            (false, _) => Some(Some(keep)),
        };
        let done = self.stores.rollback(volume, name, keep, force).await;
        let done = done.map_err(refusal)?;
        Ok(Response::new(v1::RollbackSnapshotResponse {
            volume: self.volume(done.volume),
            kept: done.kept.map(report::snapshot),
        }))
    }

    async fn diff_snapshots(
        &self,
        request: Request<v1::DiffSnapshotsRequest>,
    ) -> Answer<v1::DiffSnapshotsResponse> {
        let v1::DiffSnapshotsRequest {
            volume,
            from,
            to,
            offset,
            from_volume,
        } = request.into_inner();
        let from = (from_volume, from);
        let page = self.stores.diff(volume, from, to, offset).await;
        Ok(Response::new(report::diff(page.map_err(refusal)?)))
    }

    async fn scrub_volume(
        &self,
        request: Request<v1::ScrubVolumeRequest>,
    ) -> Answer<v1::ScrubVolumeResponse> {
        let v1::ScrubVolumeRequest { name, place } = request.into_inner();
        if place.is_none() {
            tracing::info!(name, "scrub volume");
            // What was written until now is to be checked, too.
            self.stores.settle().await;
        }
        let place = place.as_ref().map(report::scrub_place);
        let page = self.stores.scrub(name.clone(), place).await;
        let page = page.map_err(refusal)?;
        crate::scrub::tell_damage(&page);
        Ok(Response::new(report::scrub(page)))
    }

    async fn accept_loss(
        &self,
        request: Request<v1::AcceptLossRequest>,
    ) -> Answer<v1::AcceptLossResponse> {
        let name = request.into_inner().name;
        tracing::warn!(name, "accept the loss of a record of this volume's log");
        let volume = self.volume(self.stores.accept_loss(name).await.map_err(refusal)?);
        Ok(Response::new(v1::AcceptLossResponse { volume }))
    }

    async fn show_keys(
        &self,
        request: Request<v1::ShowKeysRequest>,
    ) -> Answer<v1::ShowKeysResponse> {
        let keys = self.stores.keys(request.into_inner().volume).await;
        let keys = keys.map_err(refusal)?.into_iter().map(report::key);
        let keys = keys.collect();
        Ok(Response::new(v1::ShowKeysResponse { keys }))
    }

    async fn rotate_keys(
        &self,
        request: Request<v1::RotateKeysRequest>,
    ) -> Answer<v1::RotateKeysResponse> {
        let v1::RotateKeysRequest { volume, data_key } = request.into_inner();
        require_ordinary(&volume)?;
        tracing::info!(volume, data_key, "rotate keys");
        let rotated = match &self.cluster {
            Some(cluster) if data_key => {
                let rotated = cluster.rotate_data_key(&volume).await;
                rotated.map_err(refusal)?
            }
            _ => None,
        };
        let keys = match rotated {
            Some(keys) => Ok(keys),
            None => self.stores.rotate_keys(volume, data_key).await,
        };
        let keys = keys.map_err(refusal)?.into_iter().map(report::key);
        let keys = keys.collect();
        Ok(Response::new(v1::RotateKeysResponse { keys }))
    }

    async fn add_replica(
        &self,
        request: Request<v1::AddReplicaRequest>,
    ) -> Answer<v1::AddReplicaResponse> {
        let v1::AddReplicaRequest {
            volume,
            node,
            replaces,
        } = request.into_inner();
        tracing::info!(volume, node, replaces, "add replica");
        let cluster = self.require_cluster()?;
        let (node, replaces) = (node_id(&node)?, node_id(&replaces)?);
        let added = cluster.add_replica(&volume, node, replaces).await;
        let node = added.map_err(refusal)?.to_string();
        Ok(Response::new(v1::AddReplicaResponse { node }))
    }

    async fn remove_replica(
        &self,
        request: Request<v1::RemoveReplicaRequest>,
    ) -> Answer<v1::RemoveReplicaResponse> {
        let v1::RemoveReplicaRequest { volume, node } = request.into_inner();
        tracing::info!(volume, node, "remove replica");
        let cluster = self.require_cluster()?;
        let node = node_id(&node)?.ok_or_else(|| Status::invalid_argument("no node"))?;
        let removed = cluster.remove_replica(&volume, node).await;
        removed.map_err(refusal)?;
        Ok(Response::new(v1::RemoveReplicaResponse {}))
    }

    async fn show_cluster(
        &self,
        _request: Request<v1::ShowClusterRequest>,
    ) -> Answer<v1::ShowClusterResponse> {
        let cluster = self.require_shared_cluster()?;
        let nodes = cluster.nodes().await.into_iter();
        Ok(Response::new(v1::ShowClusterResponse {
            id: cluster.id(),
            members_revision: cluster.members_revision(),
            nodes: nodes.map(report::cluster_node).collect(),
            problems: cluster.problems(),
        }))
    }

    async fn init_cluster(
        &self,
        request: Request<v1::InitClusterRequest>,
    ) -> Answer<v1::InitClusterResponse> {
        let v1::InitClusterRequest {
            address,
            control,
            labels,
        } = request.into_inner();
        tracing::info!("init cluster");
        let cluster = self.any_cluster()?;
        let begun = cluster.init(&address, &control, labels).await;
        begun.map_err(refusal)?;
        Ok(Response::new(v1::InitClusterResponse {
            id: cluster.id(),
            node: self.identity.node.to_string(),
        }))
    }

    async fn add_node(&self, request: Request<v1::AddNodeRequest>) -> Answer<v1::AddNodeResponse> {
        let v1::AddNodeRequest {
            control,
            node,
            address,
            labels,
        } = request.into_inner();
        tracing::info!(control, node, "add node");
        let node = node_id(&node)?;
        let added = self
            .any_cluster()?
            .add_node(&control, node, &address, labels);
        let node = added.await.map_err(refusal)?.to_string();
        Ok(Response::new(v1::AddNodeResponse { node }))
    }

    async fn remove_node(
        &self,
        request: Request<v1::RemoveNodeRequest>,
    ) -> Answer<v1::RemoveNodeResponse> {
        let node = node_id(&request.into_inner().node)?;
        let node = node.ok_or_else(|| Status::invalid_argument("no node"))?;
        tracing::info!(node = node.0, "remove node");
        let cluster = self.require_shared_cluster()?;
        cluster.remove_node(node).await.map_err(refusal)?;
        Ok(Response::new(v1::RemoveNodeResponse {}))
    }

    async fn drain_node(
        &self,
        request: Request<v1::DrainNodeRequest>,
    ) -> Answer<v1::DrainNodeResponse> {
        let v1::DrainNodeRequest { node, cancel } = request.into_inner();
        let cluster = self.require_shared_cluster()?;
        let node = node_id(&node)?.ok_or_else(|| Status::invalid_argument("no node"))?;
        cluster.drain(node, !cancel).await.map_err(refusal)?;
        Ok(Response::new(v1::DrainNodeResponse {}))
    }

    async fn show_node(
        &self,
        request: Request<v1::ShowNodeRequest>,
    ) -> Answer<v1::ShowNodeResponse> {
        let cluster = self.require_shared_cluster()?;
        let node = node_id(&request.into_inner().node)?;
        let node = node.ok_or_else(|| Status::invalid_argument("no node"))?;
        let held = cluster.held_by(node).await.map_err(refusal)?.into_iter();
        let copy = |held: esker_api::cluster::HeldReplica| v1::HeldCopy {
            volume: held.name,
            uuid: held.volume,
            removed: held.removed,
            copies: held.copies,
            leads: held.leads,
            sessions: held.sessions,
        };
        let copies = held.map(copy).collect();
        Ok(Response::new(v1::ShowNodeResponse { copies }))
    }

    async fn space(&self, request: Request<v1::SpaceRequest>) -> Answer<v1::SpaceResponse> {
        self.stores.settle().await;
        if let Some(name) = request.into_inner().volume {
            let part = self.stores.volume_space(name).await.map_err(refusal)?;
            let space = Some(report::space(part));
            return Ok(Response::new(v1::SpaceResponse {
                space,
                stores: Vec::new(),
            }));
        }
        let reports = self.stores.space().await.map_err(refusal)?;
        let space = Some(report::space(report::space_sum(&reports)));
        let stores = self.stores.all().iter().zip(reports);
        let stores = stores.map(|(store, part)| v1::StoreSpace {
            store: to_u32_saturating(store.index),
            path: store.path.display().to_string(),
            space: Some(report::space(part)),
        });
        Ok(Response::new(v1::SpaceResponse {
            space,
            stores: stores.collect(),
        }))
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        let mut status = report::status(&self.stores.status().await, &self.identity);
        if !request.into_inner().all {
            status.volumes.retain(|v| v.name != METADATA_VOLUME);
        }
        if let Some(cluster) = &self.cluster {
            let problems = cluster.problems();
            status.healthy &= problems.is_empty();
            status.problems.extend(problems);
            status
                .nodes
                .extend(cluster.others().into_iter().map(report::other_node));
        }
        Ok(Response::new(status))
    }

    async fn checkpoint(
        &self,
        _request: Request<v1::CheckpointRequest>,
    ) -> Answer<v1::CheckpointResponse> {
        self.stores.checkpoint().await.map_err(refusal)?;
        Ok(Response::new(v1::CheckpointResponse {}))
    }
}
