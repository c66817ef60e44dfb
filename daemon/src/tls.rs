//! TLS of the node's own sockets: which certificate, for whom, and new files without a restart.

use crate::certificates::{CertificateEnd, Certificates};
use crate::error::DaemonError;
use crate::guard::now_unix;
use clap::Args;
use esker_base::NodeId;
use esker_keys::ca::first_end;
use esker_keys::{KeyError, KeyErrorKind, NodeTls, Rights, ServerFiles};
use esker_node::{Access, TlsPolicy};
use esker_runtime::{TlsServer, TlsSlot};
use rustls::ServerConfig;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// How often the files are looked at.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// How often certificates that end soon are warned of.
const WARN_INTERVAL: Duration = Duration::from_secs(86_400);

/// What a listener does with TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TlsMode(pub TlsPolicy);

impl FromStr for TlsMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self(TlsPolicy::Off)),
            "allow" => Ok(Self(TlsPolicy::Allow)),
            "require" => Ok(Self(TlsPolicy::Require)),
            _ => Err(format!("`{text}` is not off, allow nor require")),
        }
    }
}

impl fmt::Display for TlsMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            TlsPolicy::Off => "off",
            TlsPolicy::Allow => "allow",
            TlsPolicy::Require => "require",
        })
    }
}

/// A file, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaybeFile(pub Option<PathBuf>);

impl FromStr for MaybeFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("name a file, or `none`".into()),
            "none" => Ok(Self(None)),
            path => Ok(Self(Some(path.into()))),
        }
    }
}

impl MaybeFile {
    /// As seen from this folder.
    pub(crate) fn in_folder(self, folder: &Path) -> Self {
        Self(self.0.map(|path| folder.join(path)))
    }
}

/// The settings of TLS, on the command line and in the file.
#[derive(Args, Clone, Debug, Default)]
pub struct TlsSettings {
    /// Certificate of this node in PEM, with those between it and the authority, or none [default: none]
    #[arg(long = "tls-cert", value_name = "FILE|none")]
    pub cert: Option<MaybeFile>,
    /// The certificate's key in PEM, which nobody else may read
    #[arg(long = "tls-key", value_name = "FILE|none")]
    pub key: Option<MaybeFile>,
    /// Authorities of clients in PEM; without them clients need no certificate [default: none]
    #[arg(long = "tls-ca", value_name = "FILE|none")]
    pub ca: Option<MaybeFile>,
    /// TLS on TCP addresses for NBD that do not say it themselves: off, allow or require [default: require
    /// with --tls-cert, else off]
    #[arg(long, value_name = "MODE")]
    pub nbd_tls: Option<TlsMode>,
    /// TLS on unix sockets for NBD: off, allow or require [default: off]
    #[arg(long, value_name = "MODE")]
    pub nbd_socket_tls: Option<TlsMode>,
}

impl TlsSettings {
    /// These settings over others.
    #[must_use]
    pub fn over(&self, below: Self) -> Self {
        Self {
            cert: self.cert.clone().or(below.cert),
            key: self.key.clone().or(below.key),
            ca: self.ca.clone().or(below.ca),
            nbd_tls: self.nbd_tls.or(below.nbd_tls),
            nbd_socket_tls: self.nbd_socket_tls.or(below.nbd_socket_tls),
        }
    }
}

/// TLS as a node has it, complete and checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// Its files; none without TLS.
    pub files: Option<ServerFiles>,
    /// On TCP addresses for NBD that do not say it themselves.
    pub nbd: TlsPolicy,
    /// On unix sockets for NBD.
    pub nbd_socket: TlsPolicy,
}

impl TlsConfig {
    /// What the settings give. Reads no file.
    ///
    /// # Errors
    /// When they contradict each other.
    pub fn of(settings: TlsSettings) -> Result<Self, String> {
        let file = |setting: Option<MaybeFile>| setting.and_then(|file| file.0);
        let (cert, key) = (file(settings.cert), file(settings.key));
        let ca = file(settings.ca);
        let files = match (cert, key) {
            (Some(cert), Some(key)) => Some(ServerFiles { cert, key, ca }),
            (None, None) if ca.is_none() => None,
            (None, None) => return Err("tls_ca without tls_cert; name both, or neither".into()),
            _ => return Err("tls_cert and tls_key go together: name both, or neither".into()),
        };
        let default = match files {
            Some(_) => TlsPolicy::Require,
            None => TlsPolicy::Off,
        };
        let config = Self {
            files,
            nbd: settings.nbd_tls.map_or(default, |mode| mode.0),
            nbd_socket: settings.nbd_socket_tls.unwrap_or_default().0,
        };
        config.check(config.nbd, "nbd_tls")?;
        config.check(config.nbd_socket, "nbd_socket_tls")?;
        Ok(config)
    }

    /// Refuses TLS without a certificate.
    ///
    /// # Errors
    /// One line that names what wants it.
    pub fn check(&self, policy: TlsPolicy, who: &str) -> Result<(), String> {
        match policy != TlsPolicy::Off && self.files.is_none() {
            true => Err(format!(
                "{who} = {} needs a certificate: set tls_cert and tls_key (`esker cert` makes them)",
                TlsMode(policy)
            )),
            false => Ok(()),
        }
    }

    /// Refuses administration over TCP without clients' certificates.
    ///
    /// # Errors
    /// One line that names what is missing.
    pub fn check_admin(&self, address: &dyn fmt::Display) -> Result<(), String> {
        let missing = match &self.files {
            Some(files) if files.ca.is_some() => return Ok(()),
            Some(_) => "tls_ca",
            None => "tls_cert, tls_key and tls_ca",
        };
        Err(format!(
            "admin.listen = {address} needs certificates on both sides: set {missing} (`esker cert` makes them); \
             without, administration is on admin.sock alone"
        ))
    }
}

/// What may be exchanged while it is in use: whoever has it goes on with it.
#[derive(Debug)]
pub struct Slot<T>(Arc<RwLock<Option<T>>>);

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self(Arc::new(RwLock::new(None)))
    }
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Clone> Slot<T> {
    /// From now on it is this.
    pub fn set(&self, value: Option<T>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = value;
    }

    /// What it is now; none before the first.
    #[must_use]
    pub fn get(&self) -> Option<T> {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        current.clone()
    }
}

/// Keeps what TLS connections are served with up to date with its files.
pub struct TlsKeeper {
    files: Option<ServerFiles>,
    slot: TlsSlot,
    admin: Slot<Arc<ServerConfig>>,
    nodes: Slot<NodeTls>,
    ends: Slot<Vec<CertificateEnd>>,
    warned: Option<Instant>,
    /// Which node this is, once that is known.
    node: Option<NodeId>,
    seen: Vec<Option<Seen>>,
}

/// By what a changed file is known: device, inode, size, time of change in seconds and nanoseconds.
type Seen = (u64, u64, u64, i64, i64);

impl TlsKeeper {
    /// Reads the files.
    ///
    /// # Errors
    /// When they do not do.
    pub fn load(config: &TlsConfig) -> Result<Self, DaemonError> {
        let mut keeper = Self {
            files: config.files.clone(),
            slot: TlsSlot::default(),
            admin: Slot::default(),
            nodes: Slot::default(),
            ends: Slot::default(),
            warned: None,
            node: None,
            seen: Vec::new(),
        };
        keeper.seen = keeper.look();
        keeper.read().map_err(DaemonError::Tls)?;
        Ok(keeper)
    }

    /// The node that the certificate is for, if it names one.
    #[must_use]
    pub fn certified_node(&self) -> Option<NodeId> {
        self.nodes.get().map(|tls| tls.node())
    }

    /// This is that node, and a certificate for another one does not do, now nor later.
    ///
    /// # Errors
    /// When the certificate is for another one.
    pub fn expect_node(&mut self, node: NodeId) -> Result<(), DaemonError> {
        self.node = Some(node);
        match self.nodes.get() {
            Some(tls) => self.check_node(&tls).map_err(DaemonError::Tls),
            None => Ok(()),
        }
    }

    fn check_node(&self, tls: &NodeTls) -> Result<(), KeyError> {
        let (is, says) = (self.node.unwrap_or(tls.node()), tls.node());
        let Some(files) = self.files.as_ref().filter(|_| is != says) else {
            return Ok(());
        };
        let cert = files.cert.display();
        Err(KeyError::new(
            KeyErrorKind::Config,
            format!(
                "tls_cert: {cert} is for node {says}, and this is node {is}; `esker cert node --id {is}` makes one \
                 for it"
            ),
        ))
    }

    /// Where connections of administrators find it.
    #[must_use]
    pub fn admin(&self) -> Slot<Arc<ServerConfig>> {
        self.admin.clone()
    }

    /// What is needed for connections with other nodes; none while the certificate names no node.
    #[must_use]
    pub fn nodes(&self) -> Slot<NodeTls> {
        self.nodes.clone()
    }

    /// Where connections find it.
    #[must_use]
    pub fn slot(&self) -> TlsSlot {
        self.slot.clone()
    }

    /// When what is in use ends.
    #[must_use]
    pub fn ends(&self) -> Slot<Vec<CertificateEnd>> {
        self.ends.clone()
    }

    /// Warns of what ends soon, once a day.
    pub fn warn(&mut self, certificates: &Certificates) {
        let since = self.warned.map_or(WARN_INTERVAL, |at| at.elapsed());
        if since < WARN_INTERVAL {
            return;
        }
        self.warned = Some(Instant::now());
        let ends = certificates.ends();
        for warning in ends.iter().filter_map(|end| end.warning(now_unix())) {
            tracing::warn!("{warning}");
        }
    }

    /// Reads the files again if they have changed, or in any case. Files that do not do change nothing,
    /// and are not tried again until they change.
    pub fn refresh(&mut self, in_any_case: bool) {
        let now = self.look();
        if self.files.is_none() || (now == self.seen && !in_any_case) {
            return;
        }
        let has_changed = now != self.seen;
        self.seen = now;
        match self.read() {
            Ok(()) if has_changed => tracing::info!("TLS: new certificates are in use"),
            Ok(()) => {}
            Err(error) => tracing::error!("TLS: the old certificates stay in use: {error}"),
        }
    }

    fn read(&self) -> Result<(), KeyError> {
        let Some(files) = &self.files else {
            return Ok(());
        };
        let config = files.load()?;
        // What is refused changes nothing: first all that can be.
        let nodes = match files.names_node()? && files.ca.is_some() {
            true => Some(NodeTls::load(files)?),
            false => None,
        };
        nodes.as_ref().map_or(Ok(()), |tls| self.check_node(tls))?;
        let named = [
            ("tls_cert", Some(&files.cert)),
            ("tls_ca", files.ca.as_ref()),
        ];
        let mut ends = Vec::new();
        for (setting, path) in named {
            let Some(path) = path else { continue };
            let until_unix = first_end(path)?;
            ends.push(CertificateEnd {
                setting,
                until_unix,
            });
        }
        let mut admin = ServerConfig::clone(&config);
        admin.alpn_protocols = vec![b"h2".to_vec()]; // clients of other makes insist on it
        self.slot.set(TlsServer { config, access });
        self.admin.set(Some(Arc::new(admin)));
        // Links and configurations that came of the one before go on with what is new.
        match (self.nodes.get(), nodes) {
            (Some(before), Some(newer)) => before.take_over(&newer),
            (Some(before), None) => tracing::error!(
                node = before.node().0,
                "tls_cert names no node any more: links between nodes keep the old certificate"
            ),
            (None, nodes) => self.nodes.set(nodes),
        }
        self.ends.set(Some(ends));
        Ok(())
    }

    fn look(&self) -> Vec<Option<Seen>> {
        let files = self.files.iter();
        let paths = files.flat_map(|f| [Some(&f.cert), Some(&f.key), f.ca.as_ref()]);
        let seen = paths.flatten().map(|path| {
            let meta = std::fs::metadata(path).ok()?;
            let changed = (meta.ctime(), meta.ctime_nsec());
            Some((meta.dev(), meta.ino(), meta.len(), changed.0, changed.1))
        });
        seen.collect()
    }
}

/// What the owner of a certificate may see and open.
fn access(certificate: &rustls::pki_types::CertificateDer<'_>) -> Result<Access, String> {
    let rights = Rights::of(certificate).map_err(|e| e.to_string())?;
    Ok(Access::only(rights.volumes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(cert: bool, key: bool, nbd: Option<TlsPolicy>) -> TlsSettings {
        let file = |there: bool| there.then(|| MaybeFile(Some("f".into())));
        TlsSettings {
            cert: file(cert),
            key: file(key),
            nbd_tls: nbd.map(TlsMode),
            ..TlsSettings::default()
        }
    }

    #[test]
    fn a_certificate_turns_tls_on_and_tls_needs_one() {
        let policy = |cert, nbd| TlsConfig::of(settings(cert, cert, nbd)).map(|c| c.nbd);
        assert_eq!(policy(false, None), Ok(TlsPolicy::Off));
        assert_eq!(policy(true, None), Ok(TlsPolicy::Require));
        assert_eq!(policy(true, Some(TlsPolicy::Allow)), Ok(TlsPolicy::Allow));
        assert_eq!(policy(true, Some(TlsPolicy::Off)), Ok(TlsPolicy::Off));
        let refused = policy(false, Some(TlsPolicy::Allow)).unwrap_err();
        assert!(refused.contains("tls_cert"), "{refused}");
        assert!(TlsConfig::of(settings(true, false, None)).is_err());
        let only_ca = TlsSettings {
            ca: Some(MaybeFile(Some("f".into()))),
            ..TlsSettings::default()
        };
        assert!(TlsConfig::of(only_ca).is_err());
        let socket = TlsSettings {
            nbd_socket_tls: Some(TlsMode(TlsPolicy::Require)),
            ..TlsSettings::default()
        };
        assert!(TlsConfig::of(socket).is_err());
    }
}
