//! The settings of a node: the command line over a TOML file over the defaults.
//!
//! ```toml
//! data = "/var/lib/esker"            # --data
//! stores = ["/dev/nvme0n1"]          # --store; default: one file, DIR/store-0.esker
//! store_size = "16GiB"               # --store-size, of store files that have to be created
//! cache_size = "64MiB"               # --cache-size, memory per store for its map cache
//! reseal_rate = "64MiB"              # bytes of each store sealed a second under a new data key, or "none"
//! scrub_rate = "16MiB"               # --scrub-rate, bytes of each store read and checked a second, or "none"
//! snapshot_schedule = "none"         # --snapshot-schedule, of volumes created without one
//! rewind = "none"                    # --rewind, of volumes created without one
//! nbd = "127.0.0.1:10809"            # --nbd, several as ["…", "…"], or "none"
//! metrics = "127.0.0.1:9809"         # --metrics, or "none"
//! admin = { listen = "none" }        # --admin, admin API over TCP for those with certificates
//! tls_cert = "none"                  # --tls-cert, certificate of this node in PEM, or "none"
//! tls_key = "none"                   # --tls-key, its key
//! tls_ca = "none"                    # --tls-ca, authorities of clients
//! nbd_tls = "off"                    # --nbd-tls, with a certificate by default "require"
//! nbd_socket_tls = "off"             # --nbd-socket-tls
//! log = "info"                       # as RUST_LOG, which goes before it
//! log_format = "text"                # --log-format, or "json"
//! slow_request = "1s"                # --slow-request, or "none"
//! metrics_volumes_max = 100          # volumes of each store with metrics of their own
//! [keys]                             # see `esker_keys::config`
//! provider = "file"
//! [cluster]                          # and [node]: see `crate::cluster::config`
//! insecure = false
//! ```
//!
//! Relative paths in the file are relative to the folder it lies in.

use crate::args::Args;
use crate::cluster::config::{self as cluster, ClusterConfig};
use crate::live::{Live, LogFormat, SlowRequest};
use crate::reseal::ResealRate;
use crate::retention::policy::Schedule;
use crate::rewind::Window;
use crate::scrub::ScrubRate;
use crate::tls::{MaybeFile, TlsConfig, TlsMode, TlsSettings};
use esker_api::size;
use esker_base::BLOCK_SIZE_U64;
use esker_keys::{KeyError, KeysConfig, Provider};
use esker_node::admin::one_line;
use serde::Deserialize;
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use toml::Spanned;

/// Size of a store file when nothing else is said.
pub const STORE_SIZE_DEFAULT_BYTES: u64 = 16 << 30;
/// Stores per node: each has a thread of its own.
pub const STORES_MAX: usize = 64;
/// Longest path of a unix socket in bytes (`sun_path` is 108 with its closing zero).
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// TCP addresses for NBD.
const NBD_ADDRESSES_MAX: usize = 16;

/// Why settings are not acceptable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// A line of the file is wrong.
    #[error("{}:{line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What is wrong; it names the key.
        reason: String,
    },
    /// There is no data directory.
    #[error("no data directory: pass --data DIR, or set `data` in {}", .0.display())]
    NoData(PathBuf),
    /// A value from anywhere does not do.
    #[error("{0}")]
    Value(String),
}

/// Where to listen, or nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenOn {
    /// Not at all.
    None,
    /// A host name or address, and a port; port 0 lets the system choose.
    Address {
        /// Without the brackets of an IPv6 address.
        host: String,
        /// The port.
        port: u16,
    },
}

impl ListenOn {
    /// The first address of the host; none when not to listen.
    ///
    /// # Errors
    /// When the host name cannot be resolved.
    pub fn resolve(&self) -> io::Result<Option<SocketAddr>> {
        let Self::Address { host, port } = self else {
            return Ok(None);
        };
        let mut addresses = (host.as_str(), *port).to_socket_addrs()?;
        addresses
            .next()
            .map(Some)
            .ok_or_else(|| io::Error::other("the name has no address"))
    }

    fn local(port: u16) -> Self {
        Self::Address {
            host: "127.0.0.1".into(),
            port,
        }
    }
}

impl FromStr for ListenOn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::None);
        }
        let wrong = || format!("`{text}` is not HOST:PORT (like 127.0.0.1:10809) nor `none`");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host = match bracketed {
            Some(inner) => inner,
            None if host.contains(':') => {
                return Err(format!(
                    "`{text}`: write an IPv6 address in brackets, like [::1]:10809"
                ))
            }
            None => host,
        };
        let port = port.parse().map_err(|_| wrong())?;
        if host.is_empty() || host.contains(char::is_whitespace) {
            return Err(wrong());
        }
        Ok(Self::Address {
            host: host.into(),
            port,
        })
    }
}

impl fmt::Display for ListenOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Address { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Address { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// Where to serve NBD over TCP, and with what TLS if not as all do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdOn {
    /// Where.
    pub on: ListenOn,
    /// TLS there, when it says it itself.
    pub tls: Option<TlsMode>,
}

impl FromStr for NbdOn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((address, option)) = text.split_once(',') else {
            let on = text.parse()?;
            return Ok(Self { on, tls: None });
        };
        let on: ListenOn = address.parse()?;
        let mode = option.strip_prefix("tls=");
        let mode = mode.filter(|_| on != ListenOn::None);
        let mode = mode.ok_or_else(|| format!("`{text}` is not HOST:PORT,tls=MODE"))?;
        let tls = Some(mode.parse()?);
        Ok(Self { on, tls })
    }
}

impl fmt::Display for NbdOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tls {
            None => self.on.fmt(f),
            Some(mode) => write!(f, "{},tls={mode}", self.on),
        }
    }
}

/// The settings of a node, complete and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Its folder; absolute.
    pub data: PathBuf,
    /// Its stores, in order.
    pub stores: Vec<PathBuf>,
    /// Whether somebody has named them; otherwise it is the one default file.
    pub stores_are_named: bool,
    /// Size of store files that have to be created, when it was said.
    pub store_size_bytes: Option<u64>,
    /// Memory per store for its map cache, when it was said.
    pub cache_bytes: Option<u64>,
    /// How fast volumes are sealed anew that were given another data key.
    pub reseal_rate: ResealRate,
    /// How fast stores are scrubbed in the background.
    pub scrub_rate: ScrubRate,
    /// The snapshot schedule of volumes that are created without one.
    pub snapshot_schedule: Schedule,
    /// The rewind window of volumes that are created without one.
    pub rewind: Window,
    /// TCP addresses for NBD; none when not to listen.
    pub nbd: Vec<NbdOn>,
    /// Address for metrics.
    pub metrics: ListenOn,
    /// TCP address for the admin API.
    pub admin: ListenOn,
    /// TLS of its sockets.
    pub tls: TlsConfig,
    /// Where the keys of encrypted volumes come from.
    pub keys: KeysConfig,
    /// The cluster it is a member of.
    pub cluster: ClusterConfig,
    /// What SIGHUP changes.
    pub live: Live,
}

impl Config {
    /// Reads the file the command line names, lays the command line over it, and checks the result.
    /// Touches nothing.
    ///
    /// # Errors
    /// When the file or a value is not acceptable.
    pub fn load(args: &Args) -> Result<Self, ConfigError> {
        let file = match &args.config {
            Some(path) => FileSettings::read(path)?,
            None => FileSettings::default(),
        };
        Self::of_parts(args, file)
    }

    /// What a file at `path` with this text gives by itself. Touches nothing.
    ///
    /// # Errors
    /// When the text or a value is not acceptable.
    pub fn of_text(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let args = Args {
            config: Some(path.to_path_buf()),
            ..Args::default()
        };
        Self::of_parts(&args, FileSettings::of_text(path, text)?)
    }

    fn of_parts(args: &Args, file: FileSettings) -> Result<Self, ConfigError> {
        let data = args.data.clone().or(file.data);
        let data =
            data.ok_or_else(|| ConfigError::NoData(args.config.clone().unwrap_or_default()))?;
        let data = std::path::absolute(&data).map_err(|e| {
            ConfigError::Value(format!("--data {}: not a path: {e}", data.display()))
        })?;
        let mut stores = if args.stores.is_empty() {
            file.stores
        } else {
            args.stores.clone()
        };
        let stores_are_named = !stores.is_empty();
        if !stores_are_named {
            stores.push(data.join("store-0.esker"));
        }
        let live = Live::default();
        let config = Self {
            data,
            stores,
            stores_are_named,
            store_size_bytes: args.store_size.or(file.store_size_bytes),
            cache_bytes: args.cache_size.or(file.cache_bytes),
            reseal_rate: file.reseal_rate.unwrap_or_default(),
            scrub_rate: args.scrub_rate.or(file.scrub_rate).unwrap_or_default(),
            rewind: args.rewind.or(file.rewind).unwrap_or_default(),
            snapshot_schedule: args
                .snapshot_schedule
                .clone()
                .or(file.snapshot_schedule)
                .unwrap_or_default(),
            nbd: addresses(match args.nbd.is_empty() {
                true => file.nbd.unwrap_or_else(|| {
                    let on = ListenOn::local(10809);
                    vec![NbdOn { on, tls: None }]
                }),
                false => args.nbd.clone(),
            })?,
            metrics: args
                .metrics
                .clone()
                .or(file.metrics)
                .unwrap_or_else(|| ListenOn::local(9809)),
            admin: args.admin.clone().or(file.admin).unwrap_or(ListenOn::None),
            tls: TlsConfig::of(args.tls.over(file.tls)).map_err(ConfigError::Value)?,
            keys: file.keys,
            cluster: file.cluster,
            live: Live {
                log: file.log.unwrap_or(live.log),
                log_format: args
                    .log_format
                    .or(file.log_format)
                    .unwrap_or(live.log_format),
                slow_request: args
                    .slow_request
                    .or(file.slow_request)
                    .unwrap_or(live.slow_request),
                metrics_volumes_max: file.metrics_volumes_max.unwrap_or(live.metrics_volumes_max),
            },
        };
        config.check()?;
        Ok(config)
    }

    /// Keys of settings that differ and cannot be changed while the daemon runs.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        let keys = [
            ("data", self.data != other.data),
            ("stores", self.stores != other.stores),
            (
                "store_size",
                self.store_size_bytes != other.store_size_bytes,
            ),
            ("cache_size", self.cache_bytes != other.cache_bytes),
            ("reseal_rate", self.reseal_rate != other.reseal_rate),
            ("scrub_rate", self.scrub_rate != other.scrub_rate),
            ("rewind", self.rewind != other.rewind),
            (
                "snapshot_schedule",
                self.snapshot_schedule != other.snapshot_schedule,
            ),
            ("keys", self.keys != other.keys),
            ("node, cluster", self.cluster.needs_restart(&other.cluster)),
            ("nbd", self.nbd != other.nbd),
            ("metrics", self.metrics != other.metrics),
            ("admin", self.admin != other.admin),
            (
                "tls_cert, tls_key, tls_ca",
                self.tls.files != other.tls.files,
            ),
            ("nbd_tls", self.tls.nbd != other.tls.nbd),
            (
                "nbd_socket_tls",
                self.tls.nbd_socket != other.tls.nbd_socket,
            ),
        ];
        let different = keys.into_iter().filter(|(_, differs)| *differs);
        different.map(|(key, _)| key).collect()
    }

    /// The providers of keys; the first one wraps new ones. Touches nothing.
    ///
    /// # Errors
    /// When what is said of them cannot work.
    pub fn key_providers(&self) -> Result<Vec<Box<dyn Provider>>, KeyError> {
        self.keys.providers(&self.data, Path::new(""))
    }

    /// The admin socket.
    #[must_use]
    pub fn admin_socket(&self) -> PathBuf {
        self.data.join("admin.sock")
    }

    /// The NBD socket.
    #[must_use]
    pub fn nbd_socket(&self) -> PathBuf {
        self.data.join("nbd.sock")
    }

    fn check(&self) -> Result<(), ConfigError> {
        let refuse = |reason: String| Err(ConfigError::Value(one_line(&reason)));
        if let Some(bytes) = self.store_size_bytes {
            if bytes == 0 || bytes % BLOCK_SIZE_U64 != 0 {
                return refuse(format!(
                    "store size {bytes}: not a positive multiple of 4096 bytes"
                ));
            }
        }
        if self.stores.len() > STORES_MAX {
            return refuse(format!(
                "{} stores; at most {STORES_MAX}",
                self.stores.len()
            ));
        }
        for (index, path) in self.stores.iter().enumerate() {
            if self.stores[..index].contains(path) {
                return refuse(format!("store {} is named twice", path.display()));
            }
        }
        for nbd in &self.nbd {
            let policy = nbd.tls.unwrap_or_default().0;
            self.tls
                .check(policy, &format!("nbd {}: tls", nbd.on))
                .map_err(ConfigError::Value)?;
        }
        self.cluster.check().map_err(ConfigError::Value)?;
        if self.admin != ListenOn::None {
            let checked = self.tls.check_admin(&self.admin);
            checked.map_err(ConfigError::Value)?;
        }
        if let Err(error) = self.key_providers() {
            return refuse(error.to_string());
        }
        let socket = self.admin_socket_while_binding();
        let length = socket.as_os_str().len();
        if length > SOCKET_PATH_BYTES_MAX {
            return refuse(format!(
                "{}: a unix socket's path is at most {SOCKET_PATH_BYTES_MAX} bytes and this has \
                 {length}; use a shorter --data",
                socket.display()
            ));
        }
        Ok(())
    }

    /// The name the admin socket has until it is ready; the longest of the node's sockets.
    #[must_use]
    pub(crate) fn admin_socket_while_binding(&self) -> PathBuf {
        self.data.join("admin.sock.new")
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stores: Vec<_> = self
            .stores
            .iter()
            .map(|p| p.display().to_string())
            .collect();
        write!(
            f,
            "data {}, stores {}, nbd {}, metrics {}, admin {}",
            self.data.display(),
            stores.join(" "),
            listed(&self.nbd),
            self.metrics,
            self.admin
        )
    }
}

/// Addresses to listen on, as they were named.
fn addresses(named: Vec<NbdOn>) -> Result<Vec<NbdOn>, ConfigError> {
    let refuse = |reason: String| Err(ConfigError::Value(one_line(&reason)));
    if matches!(&named[..], [only] if only.on == ListenOn::None) {
        return Ok(Vec::new());
    }
    if named.len() > NBD_ADDRESSES_MAX {
        let count = named.len();
        return refuse(format!(
            "{count} addresses for NBD; at most {NBD_ADDRESSES_MAX}"
        ));
    }
    for (index, address) in named.iter().enumerate() {
        if address.on == ListenOn::None {
            return refuse("NBD: `none` stands alone".into());
        }
        if named[..index].iter().any(|other| other.on == address.on) {
            let address = &address.on;
            return refuse(format!("NBD address {address} is named twice"));
        }
    }
    Ok(named)
}

/// Addresses in one line; `none` when there is none.
fn listed(addresses: &[NbdOn]) -> String {
    let all: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    match all.is_empty() {
        true => ListenOn::None.to_string(),
        false => all.join(" "),
    }
}

/// The file as it is written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSettings {
    data: Option<PathBuf>,
    stores: Option<Vec<PathBuf>>,
    store_size: Option<Spanned<String>>,
    cache_size: Option<Spanned<String>>,
    reseal_rate: Option<Spanned<String>>,
    scrub_rate: Option<Spanned<String>>,
    snapshot_schedule: Option<Spanned<String>>,
    rewind: Option<Spanned<String>>,
    nbd: Option<Spanned<toml::Value>>,
    metrics: Option<Spanned<String>>,
    admin: Option<RawAdmin>,
    tls_cert: Option<Spanned<String>>,
    tls_key: Option<Spanned<String>>,
    tls_ca: Option<Spanned<String>>,
    nbd_tls: Option<Spanned<String>>,
    nbd_socket_tls: Option<Spanned<String>>,
    log: Option<Spanned<String>>,
    log_format: Option<Spanned<String>>,
    slow_request: Option<Spanned<String>>,
    metrics_volumes_max: Option<usize>,
    keys: Option<KeysConfig>,
    node: Option<cluster::RawNode>,
    cluster: Option<cluster::RawCluster>,
}

/// Its table for the admin API.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAdmin {
    listen: Option<Spanned<String>>,
}

/// The file with its values understood.
#[derive(Default)]
struct FileSettings {
    data: Option<PathBuf>,
    stores: Vec<PathBuf>,
    store_size_bytes: Option<u64>,
    cache_bytes: Option<u64>,
    reseal_rate: Option<ResealRate>,
    scrub_rate: Option<ScrubRate>,
    snapshot_schedule: Option<Schedule>,
    rewind: Option<Window>,
    nbd: Option<Vec<NbdOn>>,
    metrics: Option<ListenOn>,
    admin: Option<ListenOn>,
    tls: TlsSettings,
    log: Option<String>,
    log_format: Option<LogFormat>,
    slow_request: Option<SlowRequest>,
    metrics_volumes_max: Option<usize>,
    keys: KeysConfig,
    cluster: ClusterConfig,
}

impl FileSettings {
    fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_path_buf(),
            source,
        })?;
        Self::of_text(path, &text)
    }

    fn of_text(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let source = Source { path, text };
        let raw: RawSettings = toml::from_str(text).map_err(|e| source.toml_error(&e))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Ok(Self {
            data: raw.data.map(|data| folder.join(data)),
            stores: raw
                .stores
                .unwrap_or_default()
                .iter()
                .map(|s| folder.join(s))
                .collect(),
            store_size_bytes: source.value("store_size", raw.store_size, size::parse)?,
            cache_bytes: source.value("cache_size", raw.cache_size, size::parse)?,
            reseal_rate: source.value("reseal_rate", raw.reseal_rate, ResealRate::from_str)?,
            scrub_rate: source.value("scrub_rate", raw.scrub_rate, ScrubRate::from_str)?,
            rewind: source.value("rewind", raw.rewind, Window::from_str)?,
            snapshot_schedule: source.value(
                "snapshot_schedule",
                raw.snapshot_schedule,
                Schedule::from_str,
            )?,
            nbd: source.addresses("nbd", raw.nbd)?,
            metrics: source.value("metrics", raw.metrics, ListenOn::from_str)?,
            admin: source.value(
                "admin.listen",
                raw.admin.unwrap_or_default().listen,
                ListenOn::from_str,
            )?,
            tls: TlsSettings {
                cert: source.file("tls_cert", raw.tls_cert, folder)?,
                key: source.file("tls_key", raw.tls_key, folder)?,
                ca: source.file("tls_ca", raw.tls_ca, folder)?,
                nbd_tls: source.value("nbd_tls", raw.nbd_tls, TlsMode::from_str)?,
                nbd_socket_tls: source.value(
                    "nbd_socket_tls",
                    raw.nbd_socket_tls,
                    TlsMode::from_str,
                )?,
            },
            log: source.value("log", raw.log, log_filter)?,
            log_format: source.value("log_format", raw.log_format, LogFormat::from_str)?,
            slow_request: source.value("slow_request", raw.slow_request, SlowRequest::from_str)?,
            metrics_volumes_max: raw.metrics_volumes_max,
            keys: raw.keys.unwrap_or_default().rebased(folder),
            cluster: cluster::of_raw(&source, raw.node, raw.cluster)?,
        })
    }
}

/// A filter of the log that can be understood, as it was written.
fn log_filter(text: &str) -> Result<String, tracing_subscriber::filter::ParseError> {
    tracing_subscriber::EnvFilter::try_new(text).map(|_| text.to_string())
}

/// A configuration file, for errors that name the line and the key.
pub(crate) struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    pub(crate) fn value<T, E: fmt::Display>(
        &self,
        key: &str,
        value: Option<Spanned<String>>,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = value else { return Ok(None) };
        let reason = |e: E| self.line_error(&value.span(), format!("{key}: {e}"));
        parse(value.get_ref()).map(Some).map_err(reason)
    }

    /// A file, or none.
    fn file(
        &self,
        key: &str,
        value: Option<Spanned<String>>,
        folder: &Path,
    ) -> Result<Option<MaybeFile>, ConfigError> {
        let file = self.value(key, value, MaybeFile::from_str)?;
        Ok(file.map(|file| file.in_folder(folder)))
    }

    /// One address, or a list of them.
    fn addresses(
        &self,
        key: &str,
        value: Option<Spanned<toml::Value>>,
    ) -> Result<Option<Vec<NbdOn>>, ConfigError> {
        let Some(value) = value else { return Ok(None) };
        let wrong = |reason: String| self.line_error(&value.span(), format!("{key}: {reason}"));
        let one = |value: &toml::Value| {
            let text = value.as_str();
            let text =
                text.ok_or_else(|| wrong("expected a string or a list of strings".into()))?;
            NbdOn::from_str(text).map_err(wrong)
        };
        let all = match value.get_ref() {
            toml::Value::Array(list) if list.is_empty() => {
                return Err(wrong("an empty list".into()))
            }
            toml::Value::Array(list) => list.iter().map(one).collect::<Result<_, _>>()?,
            single => vec![one(single)?],
        };
        Ok(Some(all))
    }

    fn toml_error(&self, error: &toml::de::Error) -> ConfigError {
        let span = error.span().unwrap_or(0..0);
        let mut reason = error.message().replace('\n', " ");
        // A type error does not name its key, but its line starts with it.
        let start = self.text[..span.start]
            .rfind('\n')
            .map_or(0, |newline| newline + 1);
        let line = self.text[start..].lines().next().unwrap_or_default();
        if let Some((key, _)) = line.split_once('=') {
            if !reason.contains(key.trim()) {
                reason = format!("{}: {reason}", key.trim());
            }
        }
        self.line_error(&span, reason)
    }

    pub(crate) fn line_error(&self, span: &Range<usize>, reason: String) -> ConfigError {
        let line = self.text[..span.start].matches('\n').count() + 1;
        ConfigError::Line {
            path: self.path.to_path_buf(),
            line,
            reason: one_line(&reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::fs;

    fn load(words: &[&str]) -> Result<Config, ConfigError> {
        let words = std::iter::once("eskerd").chain(words.iter().copied());
        Config::load(&Args::try_parse_from(words).unwrap())
    }

    /// Loads a configuration file with this text.
    fn load_text(text: &str) -> (tempfile::TempDir, Result<Config, ConfigError>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("esker.toml");
        fs::write(&path, text).unwrap();
        let loaded = load(&["--config", path.to_str().unwrap()]);
        (folder, loaded)
    }

    #[test]
    fn only_data_gives_the_defaults() {
        let config = load(&["--data", "/d"]).unwrap();
        assert_eq!(config.stores, [PathBuf::from("/d/store-0.esker")]);
        assert_eq!(listed(&config.nbd), "127.0.0.1:10809");
        assert_eq!(config.metrics.to_string(), "127.0.0.1:9809");
        assert_eq!(config.store_size_bytes, None);
    }

    #[test]
    fn a_file_says_it_all_and_the_command_line_wins() {
        let text = "data = 'd'\nstores = ['/dev/a', 'b']\nstore_size = '1GiB'\n\
                    cache_size = '32MiB'\nnbd = '[::1]:7'\nmetrics = 'none'\n";
        let (folder, config) = load_text(text);
        let config = config.unwrap();
        assert_eq!(config.data, folder.path().join("d"));
        assert_eq!(
            config.stores,
            [PathBuf::from("/dev/a"), folder.path().join("b")]
        );
        assert_eq!(config.store_size_bytes, Some(1 << 30));
        assert_eq!(config.cache_bytes, Some(32 << 20));
        assert_eq!(listed(&config.nbd), "[::1]:7");
        assert_eq!(config.metrics, ListenOn::None);

        let path = folder.path().join("esker.toml");
        let path = path.to_str().unwrap();
        let config = load(&["--config", path, "--nbd", "none", "--store", "c"]).unwrap();
        assert_eq!(config.nbd, []);
        assert_eq!(config.stores, [PathBuf::from("c")]);
    }

    #[test]
    fn nbd_is_served_at_several_addresses() {
        let text = "data = '/d'\nnbd = ['127.0.0.1:7', '[::1]:7']\n";
        let (folder, config) = load_text(text);
        assert_eq!(listed(&config.unwrap().nbd), "127.0.0.1:7 [::1]:7");
        let path = folder.path().join("esker.toml");
        let words = [
            "--config",
            path.to_str().unwrap(),
            "--nbd",
            "a:1",
            "--nbd",
            "b:2",
        ];
        assert_eq!(listed(&load(&words).unwrap().nbd), "a:1 b:2");
        for (list, part) in [
            ("[]", "empty"),
            ("['a:1', 7]", "list of strings"),
            ("['a:1', 'a:1']", "twice"),
            ("['a:1', 'none']", "alone"),
        ] {
            let error = load_text(&format!("data = '/d'\nnbd = {list}\n"))
                .1
                .unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    /// A value with a line break in it made an error of two lines.
    #[test]
    fn an_error_is_one_line_whatever_the_value_is() {
        for text in [
            "data = \"/d\"\nstore_size = \"1\\n2\"\n",
            "data = \"/d\"\nnbd = \"a\\nb\"\n",
            "data = \"/d\"\nstores = [\"a\\nb\", \"a\\nb\"]\n",
        ] {
            let error = Config::of_text(Path::new("/e.toml"), text).unwrap_err();
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }

    /// dist/eskerd.toml names every key, and shows the defaults as they are.
    #[test]
    fn the_example_shows_every_key_and_its_default() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dist/eskerd.toml");
        let shown = fs::read_to_string(&path).unwrap();
        let all: Vec<&str> = shown
            .lines()
            .map(|line| line.strip_prefix('#').unwrap_or(line))
            .filter(|line| line.contains(" = ") && !line.starts_with(' '))
            .collect();
        let mut named: Vec<&str> = all
            .iter()
            .map(|line| line.split(' ').next().unwrap())
            .collect();
        let unknown = toml::from_str::<RawSettings>("unknown_key = 1")
            .err()
            .unwrap();
        let (_, known) = unknown.message().split_once("expected one of ").unwrap();
        let mut known: Vec<&str> = known.split(", ").map(|key| key.trim_matches('`')).collect();
        named.sort_unstable();
        known.sort_unstable();
        assert_eq!(named, known);

        let said = load_text(&all.join("\n")).1.unwrap();
        let silent = load(&["--config", path.to_str().unwrap()]).unwrap();
        assert_eq!(silent, load(&["--data", "/var/lib/esker"]).unwrap());
        let engine = esker_engine::EngineConfig::default();
        let with_defaults = Config {
            stores_are_named: true,
            store_size_bytes: Some(STORE_SIZE_DEFAULT_BYTES),
            cache_bytes: Some(esker_base::num::to_u64(engine.cache_bytes)),
            ..silent
        };
        assert_eq!(said, with_defaults);
    }

    #[test]
    fn errors_in_the_file_name_line_key_and_what_is_allowed() {
        for (text, line, parts) in [
            (
                "data = 'd'\nport = 1\n",
                2,
                &["port", "expected one of", "store_size"][..],
            ),
            (
                "data = 'd'\n\nstore_size = '1GB'\n",
                3,
                &["store_size", "unknown unit", "GiB"],
            ),
            (
                "data = 'd'\nnbd = 'here'\n",
                2,
                &["nbd", "HOST:PORT", "none"],
            ),
            ("nbd = 10809\n", 1, &["nbd", "expected a string"]),
            (
                "data = 'd'\nstores = '/dev/a'\n",
                2,
                &["stores", "expected a sequence"],
            ),
            ("data = 'd'\ndata = 'e'\n", 2, &["data", "duplicate"]),
            ("data = \n", 1, &["data"]),
            ("log_format = 'xml'\n", 1, &["log_format", "text", "json"]),
            ("log = 'esker=loud'\n", 1, &["log: "]),
            ("metrics_volumes_max = -1\n", 1, &["metrics_volumes_max"]),
        ] {
            let message = load_text(text).1.unwrap_err().to_string();
            assert!(
                message.contains(&format!("esker.toml:{line}: ")),
                "{message}"
            );
            for part in parts {
                assert!(message.contains(part), "{part} in: {message}");
            }
            assert!(!message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn what_cannot_work_is_refused() {
        assert!(load_text("nbd = 'none'")
            .1
            .unwrap_err()
            .to_string()
            .contains("--data DIR"));
        let missing = load(&["--config", "/nowhere/x.toml"])
            .unwrap_err()
            .to_string();
        assert!(missing.contains("/nowhere/x.toml"), "{missing}");
        let twice = load(&["--data", "/d", "--store", "a", "--store", "a"]).unwrap_err();
        assert!(twice.to_string().contains("twice"));
        let odd = load(&["--data", "/d", "--store-size", "4097"]).unwrap_err();
        assert!(odd.to_string().contains("4096"));
        let long = format!("/{}", "d".repeat(100));
        assert!(load(&["--data", &long])
            .unwrap_err()
            .to_string()
            .contains("shorter --data"));
    }

    #[test]
    fn addresses() {
        for text in [
            "none",
            "127.0.0.1:0",
            "localhost:10809",
            "[::1]:10809",
            "0.0.0.0:1",
        ] {
            assert_eq!(text.parse::<ListenOn>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "10809",
            "host",
            "host:",
            ":1",
            "host:99999",
            "::1:1",
            "a b:1",
        ] {
            assert!(text.parse::<ListenOn>().is_err(), "{text}");
        }
    }
}
