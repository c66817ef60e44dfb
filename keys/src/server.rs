//! TLS of a node's own sockets: the certificate it shows, and the authorities whose clients it takes; and
//! that of clients of its admin API.

use crate::error::KeyError;
use crate::private;
use crate::rights::Rights;
use crate::tls::certificates;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The files of a node's TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFiles {
    /// Its certificate, and those between it and the authority, in PEM.
    pub cert: PathBuf,
    /// The certificate's key in PEM, which nobody else may read.
    pub key: PathBuf,
    /// The authorities of clients, in PEM. Without them clients show no certificate.
    pub ca: Option<PathBuf>,
}

impl ServerFiles {
    /// Whether the certificate names a node of a cluster.
    ///
    /// # Errors
    /// When it cannot be read, or names rights that there are not.
    pub fn names_node(&self) -> Result<bool, KeyError> {
        let chain = certificates("tls.cert", &self.cert)?;
        let own = chain
            .first()
            .map_or(Ok(None), |own| Rights::of(own).map(|rights| rights.node));
        Ok(own
            .map_err(|e| wrong("tls.cert", &self.cert, &e))?
            .is_some())
    }

    /// Reads them.
    ///
    /// # Errors
    /// When one cannot be read, is not what it should be, or the key is not the certificate's.
    pub fn load(&self) -> Result<Arc<ServerConfig>, KeyError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|e| KeyError::config(format!("TLS: {e}")))?;
        let builder = match &self.ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let roots = Arc::new(roots("tls.ca", path)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
                let verifier = verifier.map_err(|e| wrong("tls.ca", path, &e))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let own = Identity::read("tls.cert", &self.cert, "tls.key", &self.key)?;
        let config = builder.with_single_cert(own.chain, own.key);
        let mut config = config.map_err(|e| wrong("tls.cert", &self.cert, &e))?;
        // Who connects shows its certificate each time, so that a changed authority counts at once.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

/// The files of somebody who connects to a node's admin API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFiles {
    /// Its certificate, and those between it and the authority, in PEM.
    pub cert: PathBuf,
    /// The certificate's key in PEM, which nobody else may read.
    pub key: PathBuf,
    /// The authorities that may vouch for the node, in PEM.
    pub ca: PathBuf,
}

impl ClientFiles {
    /// Reads them.
    ///
    /// # Errors
    /// When one cannot be read, is not what it should be, or the key is not the certificate's.
    pub fn load(&self) -> Result<Arc<ClientConfig>, KeyError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let own = Identity::read("--cert", &self.cert, "--key", &self.key)?;
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| KeyError::config(format!("TLS: {e}")))?
            .with_root_certificates(roots("--ca", &self.ca)?)
            .with_client_auth_cert(own.chain, own.key);
        let mut config = config.map_err(|e| wrong("--cert", &self.cert, &e))?;
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

/// A certificate, those between it and the authority, and its key.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Reads it; the names are those of the settings, for errors.
    pub(crate) fn read(
        cert_name: &str,
        cert: &Path,
        key_name: &str,
        key: &Path,
    ) -> Result<Self, KeyError> {
        let chain = certificates(cert_name, cert)?;
        let bytes = private::secret(key_name, key)?;
        let der = PrivateKeyDer::from_pem_slice(&bytes)
            .map_err(|_| wrong(key_name, key, &"no private key in PEM"))?;
        Ok(Self { chain, key: der })
    }
}

/// The authorities in a file.
pub(crate) fn roots(name: &str, path: &Path) -> Result<RootCertStore, KeyError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(name, path)? {
        let added = roots.add(certificate);
        added.map_err(|e| wrong(name, path, &e))?;
    }
    Ok(roots)
}

fn wrong(name: &str, path: &Path, what: &dyn Display) -> KeyError {
    KeyError::config(format!("{name}: {}: {what}", path.display()))
}
