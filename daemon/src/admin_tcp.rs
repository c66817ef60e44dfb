//! The admin API over TCP: only with TLS, only for clients with a certificate of the authority, and for each
//! only what its role allows ([`crate::guard`]).

use crate::admin::CONNECTION_REQUESTS_MAX;
use crate::door::Door;
use crate::error::DaemonError;
use crate::guard::{Caller, Guarded};
use crate::tls::Slot;
use rustls::ServerConfig;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, OwnedSemaphorePermit, Semaphore};
use tokio_rustls::server::TlsStream;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// Connections at a time, those in their handshake included; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 64;
/// How long a handshake may take.
const HANDSHAKE_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a client that was refused may take to read why.
const LINGER_MAX: Duration = Duration::from_secs(1);
/// What it may send meanwhile, in bytes.
const LINGER_BYTES_MAX: u64 = 64 << 10;
/// A connection is ended after this time, so that its client shows its certificate anew.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(600);
/// A client that says nothing is asked this often whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// How long nothing is accepted after the system has refused to.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The listener, before anybody is served.
#[derive(Debug)]
pub struct AdminTcp {
    listener: TcpListener,
    address: SocketAddr,
    tls: Slot<Arc<ServerConfig>>,
}

impl AdminTcp {
    /// Binds. Each connection takes the certificates that are in use when it begins.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn bind(
        address: SocketAddr,
        tls: Slot<Arc<ServerConfig>>,
    ) -> Result<Self, DaemonError> {
        let failed = |source| DaemonError::Listen {
            address: address.to_string(),
            purpose: "the admin API",
            source,
            remedy: "give another address with --admin, or none",
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self {
            listener,
            address,
            tls,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until it is dropped.
    ///
    /// # Errors
    /// When the listener breaks.
    pub async fn serve(self, service: Door) -> Result<(), DaemonError> {
        let address = self.address;
        let (sender, incoming) = mpsc::channel(1);
        let served = tonic::transport::Server::builder()
            .concurrency_limit_per_connection(CONNECTION_REQUESTS_MAX)
            .max_connection_age(CONNECTION_AGE_MAX)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .add_service(Guarded(service))
            .serve_with_incoming(ReceiverStream::new(incoming));
        let result = tokio::select! {
            result = served => result,
            () = self.accept(sender) => Ok(()),
        };
        result.map_err(|e| DaemonError::Listen {
            address: address.to_string(),
            purpose: "the admin API",
            source: io::Error::other(e),
            remedy: "restart eskerd",
        })
    }

    async fn accept(self, sender: mpsc::Sender<io::Result<Connection>>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let place = Arc::clone(&places).acquire_owned().await;
            let Ok(place) = place else {
                return; // nobody closes it
            };
            let (stream, address) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!("admin: no connection can be accepted: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(config) = self.tls.get() else {
                continue; // the configuration has been checked: there is one
            };
            let sender = sender.clone();
            tokio::spawn(async move {
                match handshake(stream, address, config, place).await {
                    // When nobody takes it, the daemon is stopping.
                    Ok(connection) => drop(sender.send(Ok(connection)).await),
                    Err(why) => tracing::info!(%address, "admin: a connection is refused: {why}"),
                }
            });
        }
    }
}

async fn handshake(
    stream: TcpStream,
    address: SocketAddr,
    config: Arc<ServerConfig>,
    place: OwnedSemaphorePermit,
) -> Result<Connection, String> {
    let late = |_| format!("no handshake within {} s", HANDSHAKE_WAIT_MAX.as_secs());
    let accepting = TlsAcceptor::from(config).accept(stream).into_fallible();
    let accepted = tokio::time::timeout(HANDSHAKE_WAIT_MAX, accepting).await;
    match accepted.map_err(late)? {
        Ok(stream) => {
            let caller = Caller::of(stream.get_ref().1.peer_certificates(), address);
            let caller = Arc::new(caller.map_err(|e| format!("TLS: {e}"))?);
            Ok(Connection {
                stream,
                caller,
                _place: place,
            })
        }
        Err((error, stream)) => {
            linger(stream).await;
            Err(format!("TLS: {error}"))
        }
    }
}

/// Ends a connection such that what was said last arrives: what is closed while something of the client is
/// unread is reset, and takes the reason with it.
async fn linger(mut stream: TcpStream) {
    let ending = async {
        stream.shutdown().await?;
        let mut rest = stream.take(LINGER_BYTES_MAX);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    let _ = tokio::time::timeout(LINGER_MAX, ending).await; // it is lost either way
}

/// A connection whose client is known.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    caller: Arc<Caller>,
    _place: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = Arc<Caller>;

    fn connect_info(&self) -> Arc<Caller> {
        Arc::clone(&self.caller)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
