//! TLS of client connections and of links between nodes: records in and out of rustls, between the ring and
//! the machine. Connections without TLS never come here.

use bytes::Bytes;
use esker_nbd::Access;
use rustls::pki_types::CertificateDer;
use rustls::{Connection, ServerConfig, ServerConnection};
use std::io::{Read, Write};
use std::sync::{Arc, PoisonError, RwLock};

/// Plaintext that is sealed at a time, in bytes; what it becomes is queued as one piece.
const SEALED_BYTES_MAX: usize = 64 << 10;

/// What a server needs for TLS.
#[derive(Clone)]
pub struct TlsServer {
    /// Its certificate, and whose clients it takes.
    pub config: Arc<ServerConfig>,
    /// What the client with this certificate may see and open. Not asked of clients without one: the
    /// configuration decides whether there can be any, and they have access to all.
    pub access: fn(&CertificateDer<'_>) -> Result<Access, String>,
}

/// Where loops look for what TLS needs. Whoever is connected goes on with what there was.
#[derive(Clone, Default)]
pub struct TlsSlot(Arc<RwLock<Option<TlsServer>>>);

impl TlsSlot {
    /// From now on new TLS connections are served like this.
    pub fn set(&self, server: TlsServer) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(server);
    }

    fn get(&self) -> Option<TlsServer> {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        current.clone()
    }
}

impl std::fmt::Debug for TlsSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsSlot")
    }
}

/// The TLS of one connection of a client.
pub struct Tls {
    channel: Channel,
    access: fn(&CertificateDer<'_>) -> Result<Access, String>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tls {{ is_secured: {} }}", self.channel.is_secured)
    }
}

/// What came of bytes that were received.
#[derive(Default)]
pub(crate) struct Opened {
    /// What the other side said.
    pub(crate) plaintext: Vec<u8>,
    /// To be sent, before anything else.
    pub(crate) answer: Bytes,
    /// How it ends.
    pub(crate) end: Option<End>,
}

/// The end of a TLS connection.
pub(crate) enum End {
    /// The other side has said that it sends nothing more.
    Closed,
    /// It broke the protocol, or has no certificate that does.
    Failed(String),
}

impl Tls {
    /// For a client that begins its handshake now.
    pub(crate) fn new(slot: &TlsSlot) -> Result<Self, String> {
        let server = slot.get().ok_or("no certificate is configured")?;
        let inner = ServerConnection::new(server.config).map_err(|e| e.to_string())?;
        Ok(Self {
            channel: Channel::new(inner.into()),
            access: server.access,
        })
    }

    /// Takes what the client sent. With the bytes that end the handshake it says what the client may see.
    pub(crate) fn open(&mut self, data: &[u8]) -> (Opened, Option<Access>) {
        let (access, mut secured) = (self.access, None);
        let opened = self.channel.open(data, |certificates| {
            let certificate = certificates.and_then(<[_]>::first);
            secured = Some(certificate.map_or(Ok(Access::all()), access)?);
            Ok(())
        });
        (opened, secured)
    }

    /// Seals what the machine sends.
    pub(crate) fn seal(&mut self, bufs: &[Bytes]) -> Vec<Bytes> {
        self.channel.seal(bufs)
    }

    /// The last words.
    pub(crate) fn close(&mut self) -> Bytes {
        self.channel.close()
    }
}

/// Either side of a TLS connection. rustls bounds what it holds: one record in the making, and messages of a
/// handshake up to 64 KiB.
pub(crate) struct Channel {
    inner: Connection,
    is_secured: bool,
}

impl Channel {
    pub(crate) fn new(inner: Connection) -> Self {
        Self {
            inner,
            is_secured: false,
        }
    }

    /// The handshake is over.
    pub(crate) fn is_secured(&self) -> bool {
        self.is_secured
    }

    /// Takes what the other side sent. When its handshake is over, `admit` looks at its certificates.
    pub(crate) fn open(
        &mut self,
        mut data: &[u8],
        mut admit: impl FnMut(Option<&[CertificateDer<'_>]>) -> Result<(), String>,
    ) -> Opened {
        let mut opened = Opened::default();
        while !data.is_empty() && opened.end.is_none() {
            match self.inner.read_tls(&mut data) {
                Ok(0) => break, // it has ended already
                Ok(_) => {}
                Err(error) => {
                    opened.end = Some(End::Failed(format!("TLS: {error}")));
                    break;
                }
            }
            match self.inner.process_new_packets() {
                Ok(state) => {
                    if state.peer_has_closed() {
                        opened.end = Some(End::Closed);
                    }
                }
                Err(error) => opened.end = Some(End::Failed(format!("TLS: {error}"))),
            }
            if !self.is_secured && !self.inner.is_handshaking() && opened.end.is_none() {
                self.is_secured = true;
                if let Err(why) = admit(self.inner.peer_certificates()) {
                    opened.end = Some(End::Failed(format!("TLS: {why}")));
                }
            }
            // Until it is emptied, rustls takes no more; at the end it says `WouldBlock`.
            if !matches!(opened.end, Some(End::Failed(_))) {
                let _ = self.inner.reader().read_to_end(&mut opened.plaintext);
            }
        }
        opened.answer = self.written();
        opened
    }

    /// Seals what is to be sent.
    pub(crate) fn seal(&mut self, bufs: &[Bytes]) -> Vec<Bytes> {
        let mut sealed = vec![self.written()];
        for buf in bufs {
            for part in buf.chunks(SEALED_BYTES_MAX) {
                let mut rest = part;
                while !rest.is_empty() {
                    match self.inner.writer().write(rest) {
                        Ok(taken) if taken > 0 => rest = &rest[taken..],
                        _ => break, // not before it is written out
                    }
                    sealed.push(self.written());
                }
            }
        }
        sealed
    }

    /// The last words.
    pub(crate) fn close(&mut self) -> Bytes {
        self.inner.send_close_notify();
        self.written()
    }

    /// What waits to be sent: of a client before anything else, its first words.
    pub(crate) fn written(&mut self) -> Bytes {
        let mut out = Vec::new();
        while self.inner.wants_write() {
            if self.inner.write_tls(&mut out).is_err() {
                break; // a vector takes everything
            }
        }
        out.into()
    }
}
