//! The daemon's life: start, say that it is ready, serve, stop.

use crate::admin::{AdminService, AdminSocket};
use crate::admin_tcp::AdminTcp;
use crate::args::Args;
use crate::certificates::Certificates;
use crate::cluster::agreed::{Agreed, Note};
use crate::cluster::config::ClusterConfig;
use crate::cluster::drained::Drained;
use crate::cluster::joining;
use crate::cluster::places::Places;
use crate::cluster::{self, Cluster};
use crate::config::{Config, ListenOn};
use crate::data_dir::DataDir;
use crate::door::Door;
use crate::error::DaemonError;
use crate::handed::Handed;
use crate::identity::{Given, Identity};
use crate::keys::KeyService;
use crate::known::KnownStores;
use crate::logging::Logs;
use crate::loops::{self, StoreSetup, Surroundings};
use crate::metrics;
use crate::opening;
use crate::predecessor::Predecessor;
use crate::reload;
use crate::reseal;
use crate::retention;
use crate::scrub;
use crate::store::{Ended, StoreHandle, StoreStates};
use crate::stores::Stores;
use crate::tls::{TlsKeeper, LOOK_INTERVAL};
use crate::uri::{Endpoints, TcpEndpoint};
use esker_base::{Moment, WallClock};
use esker_keys::Providers;
use esker_node::{Effect, Machine, TlsPolicy};
use esker_runtime::{DirectorySlot, Listener};
use sd_notify::NotifyState;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::signal::unix::{signal, Signal, SignalKind};
use tokio::task::{JoinError, JoinSet};

/// How long stores may take to make everything durable at the end.
const STOP_WAIT_MAX: Duration = Duration::from_secs(30);

/// Runs the daemon with the stores' machines that `make` gives, or checks its settings, as the
/// arguments say.
///
/// # Errors
/// One line that names the thing and the remedy.
pub fn run<M, F>(
    args: &Args,
    config: Config,
    logs: Option<&Logs>,
    make: impl Fn(StoreSetup) -> F,
) -> Result<(), DaemonError>
where
    M: Machine + 'static,
    F: FnOnce(Moment, WallClock, &mut Vec<Effect>) -> M + Send + 'static,
{
    if args.check_config {
        say(&format!("configuration is valid: {config}"));
        return Ok(());
    }
    // One thread is enough: stores have threads of their own, and only administration is here.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| DaemonError::System {
            operation: "start the control thread",
            source,
        })?;
    runtime.block_on(serve(args, config, logs, &make))
}

async fn serve<M, F>(
    args: &Args,
    mut config: Config,
    logs: Option<&Logs>,
    make: &impl Fn(StoreSetup) -> F,
) -> Result<(), DaemonError>
where
    M: Machine + 'static,
    F: FnOnce(Moment, WallClock, &mut Vec<Effect>) -> M + Send + 'static,
{
    let handed = Handed::take()?;
    // Outlives everything below: a successor must not meet what this daemon still removes.
    let _data = DataDir::lock(&config.data)?;
    let mut signals = Signals::new()?;
    let mut hangups = listen(SignalKind::hangup())?;
    let mut known = KnownStores::load(&config.data)?;
    let mut tls = TlsKeeper::load(&config.tls)?;
    let certificates = Certificates::new(tls.ends(), &config.keys);
    if config.cluster.join && !config.data.join("node.toml").exists() {
        let waited = tokio::select! {
            () = signals.next() => return Ok(()),
            waited = wait_to_be_added(&config, &tls) => waited,
        };
        waited?;
    }
    let note = Note::new(&config.data);
    let agreed = note.load()?;
    let settings = cluster_settings(&config, agreed.as_ref())?;
    let given = Given {
        node: config.cluster.node,
        cluster: config.cluster.id,
        certified: tls.certified_node(),
    };
    let identity = Identity::load_or_create(&config.data, &given)?;
    tls.expect_node(identity.node)?;
    let places = Places::load(&config.data)?;
    let drained = Drained::load(&config.data)?;
    let node_tls = cluster::tls(&settings, config.tls.files.as_ref(), tls.nodes().get());
    let started_us = esker_runtime::timer::wall_now().0;
    let directory = cluster::directory(&settings, &identity, node_tls.as_ref(), started_us)?;
    // Addresses before stores: what is busy is found before anything is written.
    let metrics = match (handed.metrics, resolve(&config.metrics, "metrics")?) {
        (Some(listener), _) => Some(listener),
        (None, Some(address)) => Some(bind_metrics(address).await?),
        (None, None) => None,
    };
    let admin_tcp = match resolve(&config.admin, "the admin API")? {
        Some(address) => Some(AdminTcp::bind(address, tls.admin()).await?),
        None => None,
    };
    let predecessor = Predecessor::look(&config);
    let admin_path = config.admin_socket();
    let admin = AdminSocket::bind(&admin_path, &config.admin_socket_while_binding())?;
    let (mut listeners, endpoints) = listen_nbd(&config, predecessor, handed.nbd).await?;
    let on = resolve(&config.cluster.listen, "links between nodes")?;
    listeners.extend(cluster::listen(&config.cluster, directory.as_ref(), on)?);
    let control = match resolve(&config.cluster.control, "members of the cluster")? {
        Some(address) => {
            Some(cluster::listen_control(&config.cluster, address, node_tls.is_none()).await?)
        }
        None => None,
    };
    let surroundings = Surroundings {
        tls: tls.slot(),
        directory: DirectorySlot::default(),
        places: places.all(),
    };
    if let Some(directory) = directory {
        surroundings.directory.set(directory);
    }
    // All files before any loop: a wrong path or a locked store is found before anything runs.
    let files = opening::open_all(&config, predecessor, &mut known).await?;
    let keys = config.key_providers().and_then(Providers::new);
    let keys = keys.map_err(|e| DaemonError::Keys(e.to_string()))?;
    let keys = KeyService::new(keys, Handle::current());
    let loops = loops::start(
        &config,
        &identity,
        files,
        listeners,
        &surroundings,
        Arc::clone(&keys),
        make,
    )?;
    let mut supervisor = Supervisor {
        stores: Arc::new(Stores::new(loops.stores).with_links(surroundings.directory)),
        states: loops.states,
    };
    let mut servers = JoinSet::new();

    let served = tokio::select! {
        () = signals.next() => Ok(()),
        result = async {
            let volumes = supervisor.wait_ready().await?;
            known.mark(&config.stores)?; // before the admin API: a new store has no volume until then
            let admin = admin.publish(&admin_path)?;
            let stores = Arc::clone(&supervisor.stores);
            let cluster = Cluster::new(identity, settings, Arc::clone(&stores), places, Arc::clone(&keys), drained, started_us);
            let cluster = cluster.with_tls(node_tls);
            let cluster = Arc::new(match config.cluster.is_agreed() {
                true => cluster.with_agreement(note, agreed),
                false => cluster,
            });
            let keeper = cluster::keep(Arc::clone(&cluster));
            servers.spawn(async move {
                keeper.await;
                Ok(())
            });
            let service = AdminService::new(stores, identity, endpoints.clone())
                .with_cluster(Arc::clone(&cluster))
                .with_schedule(config.snapshot_schedule.0.clone())
                .with_rewind(config.rewind)
                .server();
            if let Some(listener) = control {
                servers.spawn(cluster::serve(Arc::clone(&cluster), listener, service.clone()));
            }
            let service = Door::from(service).with_cluster(Arc::clone(&cluster));
            let on_tcp = admin_tcp.as_ref().map(AdminTcp::address);
            servers.spawn(admin.serve(service.clone()));
            if let Some(tcp) = admin_tcp {
                servers.spawn(tcp.serve(service));
            }
            if let Some(listener) = metrics {
                let stores = Arc::clone(&supervisor.stores);
                let dropped = logs.map(Logs::dropped);
                let certificates = certificates.clone();
                servers.spawn(metrics::serve(listener, stores, identity, dropped, certificates));
            }
            let automatic = retention::run(Arc::clone(&supervisor.stores));
            servers.spawn(async move {
                automatic.await;
                Ok(())
            });
            let reseal = reseal::run(Arc::clone(&supervisor.stores), config.reseal_rate);
            servers.spawn(async move {
                reseal.await;
                Ok(())
            });
            let stores = Arc::clone(&supervisor.stores);
            let scrub = scrub::run(stores, config.data.clone(), config.scrub_rate);
            servers.spawn(async move {
                scrub.await;
                Ok(())
            });
            let at = served_at(&endpoints, on_tcp);
            say(&ready_line(&identity, config.stores.len(), volumes, &at));
            notify(&[NotifyState::Ready]);
            tokio::select! {
                error = supervisor.watch() => Err(error),
                () = reload_forever(&mut hangups, args, (&mut config, &mut tls, &certificates), logs, &cluster, &keys) => Ok(()),
                broken = servers.join_next() => broken.map_or(Ok(()), server_end),
            }
        } => result,
    };
    tracing::info!("stopping");
    notify(&[NotifyState::Stopping]);
    let stopped = tokio::select! {
        () = signals.next() => {
            eprintln!("eskerd: second signal: ends at once; the next start recovers");
            std::process::exit(1);
        }
        result = supervisor.stop() => result,
    };
    servers.shutdown().await;
    if stopped.is_ok() {
        for thread in loops.threads {
            let _ = thread.join(); // a panic has been reported as the end of its store
        }
        tracing::info!("stopped; everything is durable");
    }
    served.and(stopped)
}

/// The settings of the cluster, with the members that are agreed on.
fn cluster_settings(
    config: &Config,
    agreed: Option<&Agreed>,
) -> Result<ClusterConfig, DaemonError> {
    let mut settings = config.cluster.clone();
    let Some(agreed) = agreed else {
        return Ok(settings);
    };
    if !settings.is_agreed() {
        let path = config.data.join("members.json");
        let text = format!(
            "{} says that the members are agreed on: set cluster.listen and cluster.control, and name no [[cluster.node]]",
            path.display()
        );
        return Err(DaemonError::Cluster(text));
    }
    settings.members.clone_from(&agreed.members);
    Ok(settings)
}

/// A node without an id waits until a cluster gives it one.
async fn wait_to_be_added(config: &Config, tls: &TlsKeeper) -> Result<(), DaemonError> {
    let nodes = tls.nodes().get();
    let node_tls = cluster::tls(&config.cluster, config.tls.files.as_ref(), nodes);
    let on = resolve(&config.cluster.control, "members of the cluster")?;
    let on =
        on.ok_or_else(|| DaemonError::Cluster("cluster.join without cluster.control".into()))?;
    notify(&[NotifyState::Ready]);
    let ends = (node_tls, tls.certified_node());
    joining::wait_to_be_added(&config.cluster, &config.data, on, ends).await
}

/// Watches the stores through the daemon's life.
struct Supervisor {
    stores: Arc<Stores>,
    states: StoreStates,
}

impl Supervisor {
    /// Waits until every store has recovered; gives the number of volumes.
    async fn wait_ready(&mut self) -> Result<usize, DaemonError> {
        loop {
            let states = self.states.borrow_and_update().clone();
            if let Some(error) = self.first_end() {
                return Err(error);
            }
            let ready: Option<Vec<_>> = states.iter().map(|s| s.ready.as_ref()).collect();
            if let Some(reports) = ready {
                for (store, report) in self.stores.all().iter().zip(&reports) {
                    tracing::info!(?report, "{store} is ready");
                }
                return Ok(reports.iter().map(|report| report.volumes).sum());
            }
            self.changed().await?;
        }
    }

    /// Logs what befalls the stores, until one of them ends, which none should.
    async fn watch(&mut self) -> DaemonError {
        let mut fenced = vec![false; self.stores.all().len()];
        loop {
            let states = self.states.borrow_and_update().clone();
            if let Some(error) = self.first_end() {
                return error;
            }
            for ((store, state), is_known) in self.stores.all().iter().zip(&states).zip(&mut fenced)
            {
                if let Some(message) = state.fenced.as_ref().filter(|_| !*is_known) {
                    *is_known = true;
                    tracing::error!(
                        "{store} takes no more writes: {message}; reads go on. Check the device, \
                         then restart eskerd"
                    );
                }
            }
            if let Err(error) = self.changed().await {
                return error;
            }
        }
    }

    /// Ends the stores and waits for them.
    async fn stop(&mut self) -> Result<(), DaemonError> {
        for store in self.stores.all() {
            store.backend.stop();
        }
        let all_ended = self
            .states
            .wait_for(|states| states.iter().all(|s| s.ended.is_some()));
        let Ok(result) = tokio::time::timeout(STOP_WAIT_MAX, all_ended).await else {
            return Err(DaemonError::StopTimeout {
                stores: self.names_of(|store| store.state().ended.is_none()),
                seconds: STOP_WAIT_MAX.as_secs(),
            });
        };
        drop(result); // an error means that all threads are gone: they have ended too
        self.first_failure().map_or(Ok(()), Err)
    }

    async fn changed(&mut self) -> Result<(), DaemonError> {
        let gone = || DaemonError::Store {
            message: "all stores have ended without a word".into(),
        };
        self.states.changed().await.map_err(|_| gone())
    }

    /// The error of the first store that has ended, when none should have.
    fn first_end(&self) -> Option<DaemonError> {
        let failure = self.first_failure();
        failure.or_else(|| {
            let ended = self
                .stores
                .all()
                .iter()
                .find(|s| s.state().ended.is_some())?;
            Some(DaemonError::Store {
                message: format!("{ended} has stopped by itself"),
            })
        })
    }

    fn first_failure(&self) -> Option<DaemonError> {
        self.states
            .borrow()
            .iter()
            .find_map(|state| match &state.ended {
                Some(Ended::Failed(message)) => Some(DaemonError::Store {
                    message: message.clone(),
                }),
                Some(Ended::Stopped) | None => None,
            })
    }

    fn names_of(&self, filter: impl Fn(&StoreHandle) -> bool) -> String {
        let names: Vec<_> = self
            .stores
            .all()
            .iter()
            .filter(|s| filter(s))
            .map(ToString::to_string)
            .collect();
        names.join(", ")
    }
}

fn listen(kind: SignalKind) -> Result<Signal, DaemonError> {
    signal(kind).map_err(|source| DaemonError::System {
        operation: "listen for signals",
        source,
    })
}

/// Reads the configuration and the certificates anew at each SIGHUP, and the certificates also when they
/// have changed; does not end.
async fn reload_forever(
    hangups: &mut Signal,
    args: &Args,
    (config, tls, certificates): (&mut Config, &mut TlsKeeper, &Certificates),
    logs: Option<&Logs>,
    cluster: &Cluster,
    keys: &KeyService,
) {
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    loop {
        tokio::select! {
            hangup = hangups.recv() => if hangup.is_none() {
                break;
            },
            _ = look.tick() => {
                tls.refresh(false);
                tls.warn(certificates);
                continue;
            }
        }
        let mut states = vec![NotifyState::Reloading];
        states.extend(NotifyState::monotonic_usec_now());
        notify(&states);
        reload::reload(args, config, logs, cluster).await;
        tls.refresh(true);
        keys.ask_again();
        notify(&[NotifyState::Ready]);
    }
    std::future::pending().await
}

/// The signals that end the daemon.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, DaemonError> {
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// How a server ended, which none should while the daemon lives.
fn server_end(joined: Result<Result<(), DaemonError>, JoinError>) -> Result<(), DaemonError> {
    joined.unwrap_or_else(|panic| {
        let source = std::io::Error::other(panic);
        Err(DaemonError::System {
            operation: "go on serving the admin API and metrics",
            source,
        })
    })
}

fn resolve(on: &ListenOn, purpose: &'static str) -> Result<Option<SocketAddr>, DaemonError> {
    on.resolve().map_err(|e| DaemonError::Resolve {
        address: on.to_string(),
        purpose,
        reason: e.to_string(),
    })
}

async fn bind_metrics(address: SocketAddr) -> Result<TcpListener, DaemonError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| DaemonError::Listen {
            address: address.to_string(),
            purpose: "metrics",
            source,
            remedy: "give another address with --metrics, or none",
        })
}

async fn listen_nbd(
    config: &Config,
    predecessor: Predecessor,
    handed: Vec<Listener>,
) -> Result<(Vec<Listener>, Endpoints), DaemonError> {
    let mut listeners = vec![predecessor
        .outlast(|| Listener::unix(config.nbd_socket()))
        .await?
        .with_tls(config.tls.nbd_socket)];
    // Whoever hands sockets over decides on the addresses.
    let mut own = Vec::new();
    for nbd in config.nbd.iter().filter(|_| handed.is_empty()) {
        let policy = nbd.tls.map_or(config.tls.nbd, |mode| mode.0);
        own.extend(resolve(&nbd.on, "NBD")?.map(|address| (address, policy)));
    }
    listeners.extend(handed.into_iter().map(|listener| {
        let is_tcp = listener.port().is_some();
        listener.with_tls(if is_tcp {
            config.tls.nbd
        } else {
            config.tls.nbd_socket
        })
    }));
    for (address, policy) in own {
        if !address.ip().is_loopback() && policy != TlsPolicy::Require {
            tracing::warn!(%address, "NBD without TLS: whoever reaches this address has the volumes");
        }
        let listener = predecessor.outlast(|| Listener::tcp(address)).await?;
        listeners.push(listener.with_tls(policy));
    }
    let on_tcp = listeners
        .iter()
        .filter(|listener| listener.port().is_some());
    let endpoint = |listener: &Listener| TcpEndpoint {
        address: listener.local_addr().to_string(),
        needs_tls: listener.tls() == TlsPolicy::Require,
    };
    let tcp = on_tcp.map(endpoint).collect();
    Ok((
        listeners,
        Endpoints {
            socket: config.nbd_socket(),
            tcp,
        },
    ))
}

/// Where the node can be reached from outside its folder.
fn served_at(nbd: &Endpoints, admin: Option<SocketAddr>) -> Vec<String> {
    let mut all = nbd.all();
    all.extend(admin.map(|address| format!("admin {address}")));
    all
}

fn ready_line(identity: &Identity, stores: usize, volumes: usize, at: &[String]) -> String {
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    format!(
        "eskerd ready: node {}, {}, {}, {}",
        identity.node,
        count(stores, "store"),
        count(volumes, "volume"),
        at.join(", ")
    )
}

/// One line on stdout. Nobody reading it is no reason to fail.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Tells systemd; without it, nothing happens.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::warn!("cannot notify systemd: {error}");
    }
}
