//! A store in memory that answers administrative requests as a real one would. Also used by the
//! tests of the command line.

#![allow(dead_code)] // each test uses a part of it
#![allow(clippy::unwrap_used)] // helpers of tests may panic, like tests

use esker_base::{ClusterId, NodeId};
use esker_daemon::admin::{AdminService, AdminSocket};
use esker_daemon::identity::Identity;
use esker_daemon::store::{Backend, Ended, ReplySender, StoreHandle, StoreState};
use esker_daemon::stores::Stores;
use esker_daemon::uri::{Endpoints, TcpEndpoint};
use esker_engine::meters::EngineSample;
use esker_node::admin::{
    AdminError, AdminReply, AdminRequest, ScrubPage, SnapshotPage, SpaceReport, StatusReport,
    VolumeReport, VolumeState,
};
use esker_node::meters::StoreSample;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

/// What the fake identity of a test node is.
pub const IDENTITY: Identity = Identity {
    node: NodeId(7),
    cluster: ClusterId(9),
};

/// A store in memory.
pub struct FakeStore {
    pub index: usize,
    pub volumes: Mutex<BTreeMap<String, VolumeReport>>,
    pub space: SpaceReport,
    pub problems: Vec<String>,
    /// Takes requests and drops them unanswered, like a store that has ended.
    pub is_dead: bool,
    pub states: Arc<watch::Sender<Vec<StoreState>>>,
}

impl FakeStore {
    pub fn answer(&self, request: AdminRequest) -> Result<AdminReply, AdminError> {
        let mut volumes = self.volumes.lock().unwrap();
        let not_found = |name: &str| AdminError::NotFound(format!("no volume {name}"));
        match request {
            AdminRequest::VolumeCreate {
                name,
                size_bytes,
                labels,
                encrypted,
            } => {
                if volumes.contains_key(&name) {
                    return Err(AdminError::Exists(format!("volume {name} exists already")));
                }
                if size_bytes == 0 || size_bytes % 4096 != 0 {
                    let text = format!("size {size_bytes} is not a positive multiple of 4096");
                    return Err(AdminError::Invalid(text));
                }
                if size_bytes > self.space.total_bytes {
                    return Err(AdminError::NoSpace(format!(
                        "store {} is too small",
                        self.index
                    )));
                }
                let uuid = format!("00000000-0000-4000-8000-{:012}", volumes.len() + 1);
                let report = VolumeReport {
                    name: name.clone(),
                    uuid,
                    size_bytes,
                    labels,
                    encrypted,
                    replicas: 1,
                    serves: true,
                    ..VolumeReport::default()
                };
                volumes.insert(name, report.clone());
                Ok(AdminReply::Volume(report))
            }
            AdminRequest::ReplicaAdd { volume, .. }
            | AdminRequest::ReplicaRemove { volume, .. } => Err(AdminError::Refused(format!(
                "volume {volume} is not led by this node"
            ))),
            AdminRequest::ReplicaCreate(spec) => Err(AdminError::Refused(format!(
                "no replica of {} here",
                spec.name
            ))),
            AdminRequest::VolumeList => {
                Ok(AdminReply::Volumes(volumes.values().cloned().collect()))
            }
            AdminRequest::VolumeShow { name } => volumes
                .get(&name)
                .cloned()
                .map(AdminReply::Volume)
                .ok_or_else(|| not_found(&name)),
            AdminRequest::VolumeFind { name } => match volumes.contains_key(&name) {
                true => Ok(AdminReply::Done),
                false => Err(not_found(&name)),
            },
            AdminRequest::SnapshotCreate { .. }
            | AdminRequest::SnapshotCut { .. }
            | AdminRequest::VolumeHold { .. }
            | AdminRequest::VolumeClone { .. }
            | AdminRequest::VolumeCloneAt { .. }
            | AdminRequest::SnapshotDelete { .. }
            | AdminRequest::SnapshotRollback { .. }
            | AdminRequest::SnapshotDiff { .. }
            | AdminRequest::VersionList { .. } => {
                Err(AdminError::Refused("there are no snapshots here".into()))
            }
            AdminRequest::Scrub { .. } => Ok(AdminReply::Scrub(ScrubPage::default())),
            AdminRequest::SnapshotList { .. } => Ok(AdminReply::Snapshots(SnapshotPage::default())),
            AdminRequest::VolumeResize { name, size_bytes } => {
                let volume = volumes.get_mut(&name).ok_or_else(|| not_found(&name))?;
                if size_bytes < volume.size_bytes {
                    return Err(AdminError::Invalid(format!(
                        "{name} would shrink and lose data"
                    )));
                }
                volume.size_bytes = size_bytes;
                Ok(AdminReply::Volume(volume.clone()))
            }
            AdminRequest::VolumeRelabel { name, labels, .. } => {
                let volume = volumes.get_mut(&name).ok_or_else(|| not_found(&name))?;
                for (key, value) in labels {
                    volume.labels.remove(&key);
                    volume.labels.extend(value.map(|value| (key, value)));
                }
                Ok(AdminReply::Volume(volume.clone()))
            }
            AdminRequest::VolumeAttach { name, holder, .. } => {
                let volume = volumes.get_mut(&name).ok_or_else(|| not_found(&name))?;
                volume.attachment.number += 1;
                volume.attachment.holder = holder;
                Ok(AdminReply::Volume(volume.clone()))
            }
            AdminRequest::VolumeRename { name, new_name } => {
                let mut volume = volumes.remove(&name).ok_or_else(|| not_found(&name))?;
                volume.name.clone_from(&new_name);
                volumes.insert(new_name, volume.clone());
                Ok(AdminReply::Volume(volume))
            }
            AdminRequest::VolumeDelete { name, .. } => {
                let sessions = volumes.get(&name).ok_or_else(|| not_found(&name))?.sessions;
                if sessions > 0 {
                    let text = format!("volume {name} has {sessions} sessions; detach them first");
                    return Err(AdminError::Refused(text));
                }
                volumes.remove(&name);
                Ok(AdminReply::Done)
            }
            AdminRequest::KeyShow { volume }
            | AdminRequest::KeysWrapped { volume }
            | AdminRequest::KeyNext { volume }
            | AdminRequest::KeyInForce { volume, .. }
            | AdminRequest::KeyRotate { volume, .. } => Err(AdminError::Refused(format!(
                "volume {volume} is not encrypted and has no keys"
            ))),
            AdminRequest::KeysPlace { .. } => Ok(AdminReply::Done),
            AdminRequest::VolumeAcceptLoss { name } => {
                let volume = volumes.get_mut(&name).ok_or_else(|| not_found(&name))?;
                volume.state = VolumeState::Ready;
                Ok(AdminReply::Volume(volume.clone()))
            }
            AdminRequest::Space { volume: None } => Ok(AdminReply::Space(self.space)),
            AdminRequest::Space { volume: Some(name) } => {
                let volume = volumes.get(&name).ok_or_else(|| not_found(&name))?;
                let live_bytes = volume.used_bytes;
                Ok(AdminReply::Space(SpaceReport {
                    live_bytes,
                    ..SpaceReport::default()
                }))
            }
            AdminRequest::Reseal => Ok(AdminReply::Resealed(None)),
            AdminRequest::Status => Ok(AdminReply::Status(StatusReport {
                healthy: self.problems.is_empty(),
                problems: self.problems.clone(),
                volumes: volumes.values().cloned().collect(),
                damaged_blocks: 3,
                recovered_records: 4,
                sessions: volumes.values().map(|v| v.sessions).sum(),
            })),
            AdminRequest::Checkpoint | AdminRequest::Settle | AdminRequest::Tune(_) => {
                Ok(AdminReply::Done)
            }
            AdminRequest::Metrics => Ok(AdminReply::Metrics(Box::new(StoreSample {
                engine: EngineSample {
                    damaged_blocks: 3,
                    ..EngineSample::default()
                },
                space: self.space,
                problems: self.problems.len() as u64,
                sessions_now: volumes.values().map(|v| u64::from(v.sessions)).sum(),
                volume_states: [volumes.len() as u64, 0, 0, 0, 0],
                ..StoreSample::default()
            }))),
        }
    }
}

impl Backend for FakeStore {
    fn submit(&self, request: AdminRequest, reply: ReplySender) {
        if !self.is_dead {
            let _ = reply.send(self.answer(request));
        }
    }

    fn stop(&self) {
        self.states
            .send_modify(|states| states[self.index].ended = Some(Ended::Stopped));
    }
}

/// A node's stores, all fake.
pub struct FakeNode {
    pub states: Arc<watch::Sender<Vec<StoreState>>>,
    pub stores: Vec<Arc<FakeStore>>,
}

impl FakeNode {
    /// With one store per amount of free bytes.
    pub fn new(free_bytes: &[u64]) -> Self {
        let states = Arc::new(watch::Sender::new(vec![
            StoreState::default();
            free_bytes.len()
        ]));
        let stores = free_bytes.iter().enumerate().map(|(index, &free_bytes)| {
            Arc::new(FakeStore {
                index,
                volumes: Mutex::default(),
                space: SpaceReport {
                    rewind_bytes: None,
                    live_bytes: 1 << 20,
                    garbage_bytes: 1 << 10,
                    free_bytes,
                    total_bytes: 1 << 40,
                    reserve_bytes: 1 << 30,
                    device_bytes_written: 5 << 20,
                    client_bytes_written: 4 << 20,
                    snapshot_bytes: 0,
                },
                problems: Vec::new(),
                is_dead: false,
                states: Arc::clone(&states),
            })
        });
        Self {
            stores: stores.collect(),
            states,
        }
    }

    /// The same, with a change to one of its stores.
    pub fn with(mut self, index: usize, change: impl FnOnce(&mut FakeStore)) -> Self {
        change(Arc::get_mut(&mut self.stores[index]).unwrap());
        self
    }

    /// As the daemon holds them.
    pub fn stores(&self) -> Arc<Stores> {
        let handles = self.stores.iter().map(|store| StoreHandle {
            index: store.index,
            path: format!("/stores/{}", store.index).into(),
            size_bytes: store.space.total_bytes,
            backend: Arc::clone(store) as Arc<dyn Backend>,
            states: self.states.subscribe(),
        });
        Arc::new(Stores::new(handles.collect()))
    }

    /// Serves the admin API on `data/admin.sock` for as long as the future runs.
    pub async fn serve_admin(&self, data: &Path) {
        let path = data.join("admin.sock");
        let socket = AdminSocket::bind(&path, &data.join("admin.sock.new")).unwrap();
        let endpoints = Endpoints {
            socket: "/data/nbd.sock".into(),
            tcp: vec![TcpEndpoint {
                address: "127.0.0.1:10809".into(),
                needs_tls: false,
            }],
        };
        let service = AdminService::new(self.stores(), IDENTITY, endpoints);
        let socket = socket.publish(&path).unwrap();
        socket.serve(service.server()).await.unwrap();
    }
}
