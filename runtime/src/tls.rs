//! TLS of client connections: records in and out of a [`rustls::ServerConnection`], between the ring
//! and the machine. Connections without TLS never come here.

use bytes::Bytes;
use esker_nbd::Access;
use rustls::pki_types::CertificateDer;
use rustls::{ServerConfig, ServerConnection};
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

/// The TLS of one connection. rustls bounds what it holds: one record in the making, and messages of a
/// handshake up to 64 KiB.
pub struct Tls {
    inner: ServerConnection,
    access: fn(&CertificateDer<'_>) -> Result<Access, String>,
    is_secured: bool,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tls {{ is_secured: {} }}", self.is_secured)
    }
}

/// What came of bytes that were received.
#[derive(Default)]
pub(crate) struct Opened {
    /// The handshake was over with these bytes.
    pub(crate) secured: Option<Access>,
    /// What the client said.
    pub(crate) plaintext: Vec<u8>,
    /// To be sent, before anything else.
    pub(crate) answer: Bytes,
    /// How it ends.
    pub(crate) end: Option<End>,
}

/// The end of a TLS connection.
pub(crate) enum End {
    /// The client has said that it sends nothing more.
    Closed,
    /// The client broke the protocol, or has no certificate that does.
    Failed(String),
}

impl Tls {
    /// For a client that begins its handshake now.
    pub(crate) fn new(slot: &TlsSlot) -> Result<Self, String> {
        let server = slot.get().ok_or("no certificate is configured")?;
        let inner = ServerConnection::new(server.config).map_err(|e| e.to_string())?;
        Ok(Self {
            inner,
            access: server.access,
            is_secured: false,
        })
    }

    /// Takes what the client sent.
    pub(crate) fn open(&mut self, mut data: &[u8]) -> Opened {
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
                match self.access() {
                    Ok(access) => opened.secured = Some(access),
                    Err(why) => opened.end = Some(End::Failed(format!("TLS: {why}"))),
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

    /// Seals what the machine sends.
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

    fn access(&self) -> Result<Access, String> {
        match self.inner.peer_certificates().and_then(<[_]>::first) {
            Some(certificate) => (self.access)(certificate),
            None => Ok(Access::all()),
        }
    }

    fn written(&mut self) -> Bytes {
        let mut out = Vec::new();
        while self.inner.wants_write() {
            if self.inner.write_tls(&mut out).is_err() {
                break; // a vector takes everything
            }
        }
        out.into()
    }
}
