//! Connections between members for what they ask of each other: with TLS when the nodes have certificates, else plain.

use esker_base::NodeId;
use esker_keys::NodeTls;
use hyper_util::rt::TokioIo;
use std::future::{ready, Ready};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, OwnedSemaphorePermit, Semaphore};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::codegen::http::Uri;
use tonic::codegen::Service;
use tonic::transport::server::Connected;

/// Connections that are served at a time; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 64;
/// How long a handshake may take.
const HANDSHAKE_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long nothing is accepted after the system has refused to.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

trait Both: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Both for T {}

/// A connection of either kind.
pub(super) struct Stream {
    inner: Box<dyn Both>,
    /// Its place among those that are served.
    _place: Option<OwnedSemaphorePermit>,
}

impl Stream {
    fn new(inner: impl Both + 'static, place: Option<OwnedSemaphorePermit>) -> Self {
        let inner = Box::new(inner);
        Self {
            inner,
            _place: place,
        }
    }
}

impl Connected for Stream {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Accepts members until nobody takes their connections any more.
pub(super) async fn accept(
    listener: TcpListener,
    tls: Option<NodeTls>,
    sender: mpsc::Sender<io::Result<Stream>>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("no member can be accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (tls, sender) = (tls.as_ref().map(NodeTls::server), sender.clone());
        tokio::spawn(async move {
            let stream = match tls {
                None => Ok(Stream::new(stream, Some(place))),
                Some(tls) => {
                    let accepting = TlsAcceptor::from(tls).accept(stream);
                    let accepted = tokio::time::timeout(HANDSHAKE_WAIT_MAX, accepting).await;
                    let accepted = accepted.unwrap_or_else(|late| Err(late.into()));
                    accepted.map(|stream| Stream::new(stream, Some(place)))
                }
            };
            match stream {
                // When nobody takes it, the daemon is stopping.
                Ok(stream) => drop(sender.send(Ok(stream)).await),
                Err(why) => tracing::info!(%address, "a member is refused: TLS: {why}"),
            }
        });
    }
}

/// Connects to a member at this address; to that node, if one is expected.
pub(super) async fn dial(
    address: SocketAddr,
    expected: Option<NodeId>,
    tls: Option<&NodeTls>,
) -> Result<Stream, String> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|e| e.to_string())?;
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    let Some(tls) = tls else {
        return Ok(Stream::new(stream, None));
    };
    let config = tls.client(expected).map_err(|e| e.to_string())?;
    let connecting = TlsConnector::from(config).connect(NodeTls::server_name(), stream);
    let connected = connecting.await.map_err(|e| format!("TLS: {e}"))?;
    Ok(Stream::new(connected, None))
}

/// Gives one connection to a channel, which makes no other.
pub(super) struct Once(pub(super) Option<Stream>);

impl Service<Uri> for Once {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Ready<io::Result<TokioIo<Stream>>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        let gone = || io::Error::from(io::ErrorKind::ConnectionAborted);
        ready(self.0.take().map(TokioIo::new).ok_or_else(gone))
    }
}
