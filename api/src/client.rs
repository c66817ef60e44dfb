//! Connecting to a node's admin API: to its unix socket, or over TCP with certificates on both sides.

use crate::v1::admin_client::AdminClient;
use crate::MESSAGE_BYTES_MAX;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig};
use std::error::Error as _;
use std::fmt;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::AsyncBufReadExt;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::TlsConnector;
use tonic::codegen::{http::Uri, Service};
use tonic::transport::{Channel, Endpoint};

/// How long a daemon may take to accept a connection.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a request may take; longer than the daemon itself waits for a store.
const REQUEST_WAIT_MAX: Duration = Duration::from_secs(90);

/// Why no daemon could be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens there.
    #[error("no daemon answers on {}; start one with `eskerd --data DIR`, or name its folder with --data", .0.display())]
    NobodyThere(PathBuf),
    /// The socket belongs to somebody else.
    #[error("not allowed to connect to {}; run as the user that runs eskerd", .0.display())]
    NotAllowed(PathBuf),
    /// The path cannot be a socket's.
    #[error("{} cannot be the path of a socket: {reason}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },
    /// Anything else.
    #[error("cannot connect to {}: {reason}", path.display())]
    Other {
        /// The path.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Nobody can be reached over TCP.
    #[error("no daemon answers on {address}: {reason}; `admin.listen` of its configuration says where it does")]
    Unreachable {
        /// Where.
        address: TcpAddress,
        /// What the system said.
        reason: String,
    },
    /// There is somebody, and TLS with it does not come about.
    #[error("{address}: {reason}")]
    Tls {
        /// Where.
        address: TcpAddress,
        /// One line, with the remedy.
        reason: String,
    },
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpAddress {
    /// Name or address, without the brackets of an IPv6 address.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl FromStr for TcpAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not HOST:PORT");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host = bracketed.unwrap_or(host);
        let port = port.parse().map_err(|_| wrong())?;
        let is_odd = |c: char| c == '/' || c == '[' || c.is_whitespace();
        match host.is_empty()
            || host.contains(is_odd)
            || (bracketed.is_none() && host.contains(':'))
        {
            true => Err(wrong()),
            false => Ok(Self {
                host: host.into(),
                port,
            }),
        }
    }
}

impl fmt::Display for TcpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// Connects to the admin API on the unix socket at `path`.
///
/// # Errors
/// One line that names the socket and what to do.
pub async fn connect(path: &Path) -> Result<AdminClient<Channel>, ConnectError> {
    let bad_path = |reason| ConnectError::Path {
        path: path.to_path_buf(),
        reason,
    };
    let text = path.to_str().ok_or_else(|| bad_path("it is not UTF-8"))?;
    let endpoint = Endpoint::from_shared(format!("unix://{text}"))
        .map_err(|_| bad_path("it is not UTF-8"))?
        .connect_timeout(CONNECT_WAIT_MAX)
        .timeout(REQUEST_WAIT_MAX);
    let channel = endpoint
        .connect()
        .await
        .map_err(|error| explain(path, &error))?;
    Ok(AdminClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
}

/// Connects to the admin API at a TCP address. `tls` has the certificate that is shown, and the authorities that
/// may vouch for the node.
///
/// # Errors
/// One line that names the address and what to do.
pub async fn connect_tcp(
    address: TcpAddress,
    tls: Arc<ClientConfig>,
) -> Result<AdminClient<Channel>, ConnectError> {
    // The first connection is made here, where its errors can be told apart; the channel makes further ones.
    let mut tls = ClientConfig::clone(&tls);
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let mut dialer = Dialer {
        address: address.clone(),
        tls: Arc::new(tls),
        first: None,
    };
    dialer.first = Some(TokioIo::new(dial(&address, Arc::clone(&dialer.tls)).await?));
    let endpoint = Endpoint::from_static("https://node")
        .connect_timeout(CONNECT_WAIT_MAX)
        .timeout(REQUEST_WAIT_MAX);
    let connected = endpoint.connect_with_connector(dialer).await;
    let channel = connected.map_err(|error| ConnectError::Tls {
        address,
        reason: format!("it does not speak the admin API: {error}"),
    })?;
    Ok(AdminClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
}

/// Makes connections for a channel.
#[derive(Debug)]
struct Dialer {
    address: TcpAddress,
    tls: Arc<ClientConfig>,
    first: Option<Stream>,
}

type Stream = TokioIo<TlsStream<TcpStream>>;

impl Service<Uri> for Dialer {
    type Response = Stream;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        let (first, address, tls) = (
            self.first.take(),
            self.address.clone(),
            Arc::clone(&self.tls),
        );
        Box::pin(async move {
            match first {
                Some(stream) => Ok(stream),
                None => dial(&address, tls).await.map(TokioIo::new),
            }
        })
    }
}

/// Connects, and waits until the node has spoken: with TLS 1.3 it is only then that it has accepted this side's
/// certificate.
async fn dial(
    address: &TcpAddress,
    tls: Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, ConnectError> {
    let dialing = async {
        let unreachable = |e: io::Error| ConnectError::Unreachable {
            address: address.clone(),
            reason: e.to_string(),
        };
        let stream = TcpStream::connect((address.host.as_str(), address.port)).await;
        let stream = stream.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        let refused = |reason: String| ConnectError::Tls {
            address: address.clone(),
            reason,
        };
        let name = ServerName::try_from(address.host.clone());
        let name = name.map_err(|_| refused("no name for a certificate".into()))?;
        let connected = TlsConnector::from(tls).connect(name, stream).await;
        let mut stream = connected.map_err(|e| refused(explain_tls(&e)))?;
        match stream.fill_buf().await {
            Ok([]) => Err(refused(
                "it ends the connection without a word; its log says why".into(),
            )),
            Ok(_) => Ok(stream),
            Err(e) => Err(refused(explain_tls(&e))),
        }
    };
    let dialed = tokio::time::timeout(CONNECT_WAIT_MAX, dialing).await;
    dialed.unwrap_or_else(|_| {
        Err(ConnectError::Unreachable {
            address: address.clone(),
            reason: format!("silence for {} s", CONNECT_WAIT_MAX.as_secs()),
        })
    })
}

/// What is wrong, and on which side.
fn explain_tls(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|e| e.downcast_ref());
    match inner {
        Some(rustls::Error::InvalidCertificate(why)) => match why {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "the node's certificate is of another authority than those in --ca".into()
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the node's certificate has ended; renew it there".into()
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("the node's certificate is for other names: {why}; use one of them, or issue another")
            }
            _ => format!("the node's certificate is not accepted: {why}"),
        },
        Some(rustls::Error::AlertReceived(alert)) => match alert {
            AlertDescription::CertificateExpired => {
                "the node says that the certificate in --cert has ended; renew it".into()
            }
            AlertDescription::UnknownCA | AlertDescription::DecryptError => {
                "the node takes no certificates of the authority that issued --cert; `tls_ca` of its configuration \
                 says whose it takes"
                    .into()
            }
            AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure => {
                "the node wants a certificate: give --cert and --key".into()
            }
            _ => format!("the node refuses this TLS ({alert:?}); its log says why"),
        },
        Some(rustls::Error::InvalidMessage(_)) => {
            "what answers there does not speak TLS: is this the address of the admin API?".into()
        }
        _ => format!("the connection broke: {error}"),
    }
}

/// Finds the operating system's error under the layers of the transport.
fn explain(path: &Path, error: &tonic::transport::Error) -> ConnectError {
    let mut reason = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        reason = inner.to_string();
        match inner.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return ConnectError::NobodyThere(path.to_path_buf());
            }
            Some(io::ErrorKind::PermissionDenied) => {
                return ConnectError::NotAllowed(path.to_path_buf());
            }
            Some(io::ErrorKind::InvalidInput) => {
                let reason = "it is longer than 107 bytes";
                return ConnectError::Path {
                    path: path.to_path_buf(),
                    reason,
                };
            }
            _ => cause = inner.source(),
        }
    }
    ConnectError::Other {
        path: path.to_path_buf(),
        reason,
    }
}
