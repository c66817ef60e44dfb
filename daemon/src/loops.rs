//! The stores' own threads: starts the loop of each store, and connects the loops with the control
//! side and with each other.

use crate::config::Config;
use crate::error::DaemonError;
use crate::identity::{random, Identity};
use crate::keys::KeyService;
use crate::opening::OpenStore;
use crate::store::{Backend, Ended, ReplySender, StoreHandle, StoreState, StoreStates};
use esker_base::{Moment, Place, ReplicaId, WallClock};
use esker_node::admin::{AdminError, AdminRequest};
use esker_node::{AdminToken, Effect, Event, ExportInfo, Machine};
use esker_runtime::{DirectorySlot, Inbound, Listener, LoopConfig, LoopHandle, Outbound, TlsSlot};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use tokio::sync::watch;

/// Administrative requests that may wait for one store; further ones are refused.
const PENDING_REQUESTS_MAX: usize = 1024;

/// What the machine of a store has to know of its surroundings.
#[derive(Clone, Debug)]
pub struct StoreSetup {
    /// Its place among the node's stores.
    pub index: usize,
    /// Size of its device or file, in bytes.
    pub size_bytes: u64,
    /// Memory for its map cache, when it was said.
    pub cache_bytes: Option<u64>,
    /// Whether it is formatted when it is blank. Never when it has been in use.
    pub may_format: bool,
    /// What can be changed later.
    pub tuning: esker_node::admin::Tuning,
    /// It is a block device, not a file.
    pub is_device: bool,
    /// Who leads a volume with several copies answers reads without asking for each.
    pub read_leases: bool,
    /// The node it belongs to.
    pub identity: Identity,
    /// Where replicas live.
    pub places: BTreeMap<ReplicaId, Place>,
    /// Random bits from the operating system, its only source of randomness.
    pub seed: [u8; 32],
}

/// The running loops.
pub struct Loops {
    /// The stores they serve, in order.
    pub stores: Vec<StoreHandle>,
    /// Their states.
    pub states: StoreStates,
    /// Their threads. Each ends right after its store's state says that it has ended.
    pub threads: Vec<JoinHandle<()>>,
}

/// What loops know of whom they speak with.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// What TLS connections of clients are served with.
    pub tls: TlsSlot,
    /// The other nodes.
    pub directory: DirectorySlot,
    /// Where replicas live.
    pub places: BTreeMap<ReplicaId, Place>,
}

/// Starts the loops of the stores, given in the order of the settings, each with the machine that `make` gives. The loop of
/// store 0 accepts the clients.
///
/// # Errors
/// When a loop cannot be started; the loops that run are ended.
pub fn start<M, F>(
    config: &Config,
    identity: &Identity,
    files: Vec<OpenStore>,
    listeners: Vec<Listener>,
    surroundings: &Surroundings,
    keys: Arc<KeyService>,
    make: &impl Fn(StoreSetup) -> F,
) -> Result<Loops, DaemonError>
where
    M: Machine + 'static,
    F: FnOnce(Moment, WallClock, &mut Vec<Effect>) -> M + Send + 'static,
{
    let (states, watched) = watch::channel(vec![StoreState::default(); files.len()]);
    let shared = Arc::new(Shared {
        states,
        stores: Mutex::default(),
        keys,
    });
    let mut loops = Loops {
        stores: Vec::new(),
        states: watched,
        threads: Vec::new(),
    };
    let mut handles = Vec::new();
    let mut listeners = Some(listeners);
    for (index, store) in files.into_iter().enumerate() {
        let (path, size_bytes) = (config.stores[index].clone(), store.file.size_bytes());
        let setup = StoreSetup {
            index,
            size_bytes,
            cache_bytes: config.cache_bytes,
            is_device: store.file.is_device(),
            may_format: store.may_format,
            tuning: config.live.tuning(),
            read_leases: config.cluster.read_leases,
            identity: *identity,
            places: surroundings.places.clone(),
            seed: random()?,
        };
        let told = Arc::clone(&shared);
        let named = path.clone();
        let spawned = esker_runtime::spawn(
            loop_config(index, surroundings),
            store.file,
            listeners.take().unwrap_or_default(),
            make(setup),
            Box::new(move |message| told.take(index, &named, message)),
        );
        let (handle, thread) = match spawned {
            Ok(spawned) => spawned,
            Err(error) => {
                end_all(&handles, loops.threads);
                return Err(error.into());
            }
        };
        let backend = LoopBackend {
            index,
            handle: handle.clone(),
            shared: Arc::clone(&shared),
        };
        loops.stores.push(StoreHandle {
            index,
            path,
            size_bytes,
            backend: Arc::new(backend),
            states: loops.states.clone(),
        });
        loops.threads.push(thread);
        shared.connect(index, handle.clone());
        handles.push(handle);
    }
    esker_runtime::link(&handles);
    Ok(loops)
}

/// The settings of a loop. For tests of power cuts, ESKER_RECORD names a file that gets everything
/// store 0 asks of its disk and its clients; the other stores' have their index appended.
fn loop_config(index: usize, surroundings: &Surroundings) -> LoopConfig {
    let mut config = LoopConfig::new(index);
    config.directory = surroundings.directory.clone();
    config.tls = surroundings.tls.clone();
    config.record = std::env::var_os("ESKER_RECORD").map(|mut path| {
        if index > 0 {
            path.push(format!(".{index}"));
        }
        path.into()
    });
    if let Some(path) = &config.record {
        tracing::warn!(path = %path.display(), "records all disk writes and client bytes; slow");
    }
    config
}

/// Ends the loops that run when one could not be started.
fn end_all(handles: &[LoopHandle], threads: Vec<JoinHandle<()>>) {
    for handle in handles {
        handle.send(Inbound::Stop);
    }
    for thread in threads {
        let _ = thread.join(); // the failure that led here is the one to tell
    }
}

/// What the loops' threads and the control side share.
struct Shared {
    states: watch::Sender<Vec<StoreState>>,
    stores: Mutex<Vec<SharedStore>>,
    keys: Arc<KeyService>,
}

#[derive(Default)]
struct SharedStore {
    handle: Option<LoopHandle>,
    exports: Option<Vec<ExportInfo>>,
    pending: HashMap<AdminToken, ReplySender>,
    next_token: u64,
}

impl Shared {
    /// The stores. Never held over anything that blocks: loops come here.
    fn lock(&self) -> MutexGuard<'_, Vec<SharedStore>> {
        self.stores.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, index: usize, change: impl FnOnce(&mut SharedStore) -> T) -> T {
        let mut stores = self.lock();
        if stores.len() <= index {
            stores.resize_with(index + 1, SharedStore::default);
        }
        change(&mut stores[index])
    }

    /// Makes a loop known, and tells it the exports the others have had until now. Under the lock,
    /// so that no change of theirs can fall between.
    fn connect(&self, index: usize, handle: LoopHandle) {
        self.with(index, |_| ()); // its place
        let mut stores = self.lock();
        for (store, other) in stores
            .iter()
            .enumerate()
            .filter(|(store, _)| *store != index)
        {
            if let Some(exports) = other.exports.clone() {
                handle.send(Inbound::Event(Event::Exports { store, exports }));
            }
        }
        stores[index].handle = Some(handle);
    }

    /// Takes a message of a loop, on its thread.
    fn take(&self, index: usize, path: &Path, message: Outbound) {
        match message {
            Outbound::AdminReply { token, result } => {
                let waiting = self.with(index, |store| store.pending.remove(&token));
                if let Some(reply) = waiting {
                    let _ = reply.send(result); // who asked may have gone
                }
            }
            Outbound::ExportsChanged { store, exports } => self.tell_exports(store, exports),
            Outbound::Ready(report) => self.change(index, |state| state.ready = Some(report)),
            Outbound::Fenced { message } => {
                self.change(index, |state| state.fenced = Some(message));
            }
            Outbound::Keys(ask) => {
                let Some(handle) = self.with(index, |store| store.handle.clone()) else {
                    return; // it is being started, and asks nothing before it is connected
                };
                self.keys.ask(ask, move |answer| {
                    // A store that has ended needs no key.
                    _ = handle.send(Inbound::Event(Event::Keys(answer)));
                });
            }
            Outbound::Stopped => self.end(index, Ended::Stopped),
            Outbound::OpenFailed { message } => {
                self.end(index, Ended::Failed(named(path, message)));
            }
            Outbound::LoopFailed { message } => {
                self.end(index, Ended::Failed(named(path, message)));
            }
        }
    }

    fn change(&self, index: usize, change: impl FnOnce(&mut StoreState)) {
        self.states.send_modify(|states| {
            if let Some(state) = states.get_mut(index) {
                change(state);
            }
        });
    }

    fn end(&self, index: usize, ended: Ended) {
        let waiting = self.with(index, |store| std::mem::take(&mut store.pending));
        drop(waiting); // who waits is told that the store has stopped
        self.change(index, |state| state.ended = Some(ended));
    }

    /// Tells the other loops, under the lock, so that a later list cannot overtake an earlier one.
    fn tell_exports(&self, store: usize, exports: Vec<ExportInfo>) {
        self.with(store, |own| own.exports = Some(exports.clone()));
        for (_, other) in self
            .lock()
            .iter()
            .enumerate()
            .filter(|(index, _)| *index != store)
        {
            if let Some(handle) = &other.handle {
                let exports = exports.clone();
                handle.send(Inbound::Event(Event::Exports { store, exports }));
            }
        }
    }
}

/// A message that names the store, whether it did so itself or not.
fn named(path: &Path, message: String) -> String {
    let path = path.display().to_string();
    if message.contains(&path) {
        message
    } else {
        format!("{path}: {message}")
    }
}

/// Carries administrative requests to a loop.
struct LoopBackend {
    index: usize,
    handle: LoopHandle,
    shared: Arc<Shared>,
}

impl Backend for LoopBackend {
    fn submit(&self, request: AdminRequest, reply: ReplySender) {
        let admitted = self.shared.with(self.index, |store| {
            if store.pending.len() >= PENDING_REQUESTS_MAX {
                return Err(reply);
            }
            let token = AdminToken(store.next_token);
            store.next_token += 1;
            store.pending.insert(token, reply);
            Ok(token)
        });
        match admitted {
            Ok(token) => {
                if !self
                    .handle
                    .send(Inbound::Event(Event::Admin { token, request }))
                {
                    // Dropping the sender tells who waits.
                    self.shared
                        .with(self.index, |store| store.pending.remove(&token));
                }
            }
            Err(reply) => {
                let refusal = format!(
                    "{PENDING_REQUESTS_MAX} requests wait for store {} already; try again later",
                    self.index
                );
                let _ = reply.send(Err(AdminError::Refused(refusal))); // who asked may have gone
            }
        }
    }

    fn tell_places(&self, places: BTreeMap<ReplicaId, Place>) {
        self.handle.send(Inbound::Event(Event::Places(places)));
    }

    fn stop(&self) {
        self.handle.send(Inbound::Stop);
    }
}
