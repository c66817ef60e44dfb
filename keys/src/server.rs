//! TLS of a node's own sockets: the certificate it shows, and the authorities whose clients it takes.

use crate::error::KeyError;
use crate::private;
use crate::tls::certificates;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use std::path::PathBuf;
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
    /// Reads them.
    ///
    /// # Errors
    /// When one cannot be read, is not what it should be, or the key is not the certificate's.
    pub fn load(&self) -> Result<Arc<ServerConfig>, KeyError> {
        let wrong = |key: &str, path: &PathBuf, what: &dyn std::fmt::Display| {
            KeyError::config(format!("tls.{key}: {}: {what}", path.display()))
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|e| KeyError::config(format!("TLS: {e}")))?;
        let builder = match &self.ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates("tls.ca", path)? {
                    let added = roots.add(certificate);
                    added.map_err(|e| wrong("ca", path, &e))?;
                }
                let roots = Arc::new(roots);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|e| wrong("ca", path, &e))?)
            }
        };
        let chain = certificates("tls.cert", &self.cert)?;
        let bytes = private::secret("tls.key", &self.key)?;
        let key = PrivateKeyDer::from_pem_slice(&bytes)
            .map_err(|_| wrong("key", &self.key, &"no private key in PEM"))?;
        let config = builder.with_single_cert(chain, key);
        let mut config = config.map_err(|e| wrong("cert", &self.cert, &e))?;
        // Who connects shows its certificate each time, so that a changed authority counts at once.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}
