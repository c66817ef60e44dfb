//! TLS connections to key servers: rustls, with the certificate authorities that the configuration names
//! and no others.

use crate::error::KeyError;
use crate::private;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A connection, with TLS or without.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// What a connection needs; read anew for each, so that a renewed certificate counts at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// What the keys of the configuration begin with.
    pub(crate) prefix: &'static str,
    /// The authorities that may vouch for the server.
    pub(crate) ca_file: PathBuf,
    /// The certificate this node shows, and its key.
    pub(crate) client: Option<(PathBuf, PathBuf)>,
}

impl TlsFiles {
    fn config(&self) -> Result<ClientConfig, KeyError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.named("ca_file"), &self.ca_file)? {
            let added = roots.add(certificate);
            added.map_err(|e| self.wrong("ca_file", &self.ca_file, &e.to_string()))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| KeyError::config(format!("TLS: {e}")))?
            .with_root_certificates(roots);
        let Some((cert_file, key_file)) = &self.client else {
            return Ok(builder.with_no_client_auth());
        };
        let chain = certificates(&self.named("cert_file"), cert_file)?;
        let bytes = private::secret(&format!("{}.key_file", self.prefix), key_file)?;
        let key = PrivateKeyDer::from_pem_slice(&bytes)
            .map_err(|_| self.wrong("key_file", key_file, "no private key in PEM"))?;
        let config = builder.with_client_auth_cert(chain, key);
        config.map_err(|e| self.wrong("cert_file", cert_file, &e.to_string()))
    }

    fn named(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    fn wrong(&self, key: &str, path: &Path, what: &str) -> KeyError {
        wrong(&self.named(key), path, what)
    }
}

/// The certificates of a PEM file, at least one; `key` is that of the configuration.
pub(crate) fn certificates(
    key: &str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, KeyError> {
    let all = CertificateDer::pem_file_iter(path);
    let all = all.and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let all = all.map_err(|e| wrong(key, path, &e.to_string()))?;
    match all.is_empty() {
        true => Err(wrong(key, path, "no certificate in PEM")),
        false => Ok(all),
    }
}

fn wrong(key: &str, path: &Path, what: &str) -> KeyError {
    KeyError::config(format!("{key}: {}: {what}", path.display()))
}

/// Connects to `host` and `port`, with TLS if `tls` is given. `server` is how errors call it.
pub(crate) async fn connect(
    server: &str,
    host: &str,
    port: u16,
    tls: Option<&TlsFiles>,
) -> Result<Box<dyn Stream>, KeyError> {
    let config = tls.map(TlsFiles::config).transpose()?;
    let stream = TcpStream::connect((host, port)).await;
    let stream = stream.map_err(|e| io_error(server, &e))?;
    let Some(config) = config else {
        return Ok(Box::new(stream));
    };
    let name = ServerName::try_from(host.to_owned());
    let name =
        name.map_err(|_| KeyError::config(format!("{server}: no name for a certificate")))?;
    let connector = TlsConnector::from(Arc::new(config));
    match connector.connect(name, stream).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(e) => Err(io_error(server, &e)),
    }
}

/// An error of a connection: refused certificates are told from servers that are not there.
pub(crate) fn io_error(server: &str, error: &io::Error) -> KeyError {
    let inner = error.get_ref();
    match inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(why)) => KeyError::denied(format!(
            "{server}: its certificate is not accepted: {why}; renew it, or name its authority as \
             ca_file"
        )),
        Some(rustls::Error::AlertReceived(alert)) => KeyError::denied(format!(
            "{server} refuses this node's TLS ({alert:?}); check cert_file and key_file and \
             their dates"
        )),
        _ => KeyError::unreachable(format!("{server} cannot be reached: {error}")),
    }
}
