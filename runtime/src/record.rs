//! A record of everything a loop asked of its disk and exchanged with its clients, in order, for
//! tests that replay power cuts: after any prefix, any subset of the writes that no completed sync
//! covers may be missing or torn.
//!
//! The order is truthful. A completion is recorded before the machine hears of it, so before
//! anything it causes; an operation is recorded when it is taken from the machine's effects, which
//! is after the completions of the same turn, so a sync covers exactly the writes whose completions
//! stand before it. Bytes for a client are recorded when the machine sends them, the earliest
//! moment at which the client may see them.
//!
//! Format, little-endian: the magic `ESKTRACE`, version u32, zero u32, store size u64; then frames
//! {kind u32, length u32, `length` bytes, CRC-32 of all that u32}. A frame that is cut off or
//! damaged ends the trace.

use crate::error::RuntimeError;
use bytes::{Buf, BufMut, Bytes};
use esker_base::checksum::crc32_of;
use esker_base::num::{to_u64, to_usize};
use esker_base::{ConnId, DiskError, DiskErrorKind, DiskOp, IoId};
use esker_node::{Effect, Event};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"ESKTRACE";
const VERSION: u32 = 1;
/// Written bytes after which the file is flushed.
const FLUSH_BYTES: usize = 1 << 20;
/// Longest frame a reader accepts; a longer one is damage.
const FRAME_BYTES_MAX: usize = 1 << 30;

/// One step of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TraceEvent {
    /// A read was submitted.
    Read {
        /// Its id.
        io: IoId,
        /// Byte offset.
        offset: u64,
        /// Length in bytes.
        length: u64,
    },
    /// A write was submitted. From here on, any part of it may be on the device.
    Write {
        /// Its id.
        io: IoId,
        /// Byte offset.
        offset: u64,
        /// All of it.
        data: Bytes,
    },
    /// A sync was submitted: it covers the writes that have completed before.
    Sync {
        /// Its id.
        io: IoId,
    },
    /// An operation ended.
    Completed {
        /// Its id.
        io: IoId,
        /// How.
        result: Result<(), DiskError>,
    },
    /// A client connected, or came from another loop.
    Connected {
        /// Its id.
        conn: ConnId,
    },
    /// Bytes of a client.
    Received {
        /// From which.
        conn: ConnId,
        /// The bytes.
        data: Bytes,
    },
    /// Bytes the machine sent to a client. Whether it got them is not known.
    Sent {
        /// To which.
        conn: ConnId,
        /// The bytes.
        data: Bytes,
    },
    /// A connection ended.
    Disconnected {
        /// Which.
        conn: ConnId,
    },
}

/// Writes a trace, or nothing.
pub(crate) struct Recorder {
    open: Option<Open>,
}

struct Open {
    file: BufWriter<File>,
    path: PathBuf,
    unflushed: usize,
}

impl Recorder {
    /// Records nothing.
    pub(crate) fn off() -> Self {
        Self { open: None }
    }

    /// Records into a new file; an older one is replaced.
    pub(crate) fn create(path: &Path, store_bytes: u64) -> Result<Self, RuntimeError> {
        let failed = |source| RuntimeError::File {
            path: path.to_path_buf(),
            operation: "write the trace to",
            source,
        };
        let mut header = Vec::from(&MAGIC[..]);
        header.put_u32_le(VERSION);
        header.put_u32_le(0);
        header.put_u64_le(store_bytes);
        let mut file = BufWriter::new(File::create(path).map_err(failed)?);
        file.write_all(&header).map_err(failed)?;
        let open = Open {
            file,
            path: path.to_path_buf(),
            unflushed: 0,
        };
        Ok(Self { open: Some(open) })
    }

    /// Records what the machine is about to hear.
    pub(crate) fn event(&mut self, event: &Event) {
        if self.open.is_none() {
            return;
        }
        match event {
            Event::Disk { io, result } => {
                let (code, errno) = match result {
                    Ok(_) => (0, 0),
                    Err(error) => (code_of(error.kind), error.errno),
                };
                let mut head = Vec::new();
                head.put_u64_le(io.0);
                head.put_u32_le(code);
                head.put_i32_le(errno);
                self.frame(4, &head, &[]);
            }
            Event::Connected { conn, .. } | Event::Adopted { conn, .. } => {
                self.frame(5, &conn.0.to_le_bytes(), &[]);
            }
            Event::Received { conn, data } => {
                self.frame(6, &conn.0.to_le_bytes(), std::slice::from_ref(data));
            }
            Event::Disconnected { conn, .. } => self.frame(8, &conn.0.to_le_bytes(), &[]),
            _ => {}
        }
    }

    /// Records what the machine asked for.
    pub(crate) fn effect(&mut self, effect: &Effect) {
        if self.open.is_none() {
            return;
        }
        match effect {
            Effect::Disk {
                io,
                op: DiskOp::Read { offset, length },
            } => {
                let mut head = Vec::new();
                head.put_u64_le(io.0);
                head.put_u64_le(*offset);
                head.put_u64_le(to_u64(*length));
                self.frame(1, &head, &[]);
            }
            Effect::Disk {
                io,
                op: DiskOp::Write { offset, bufs },
            } => {
                let mut head = Vec::new();
                head.put_u64_le(io.0);
                head.put_u64_le(*offset);
                self.frame(2, &head, bufs);
            }
            Effect::Disk {
                io,
                op: DiskOp::Sync,
            } => self.frame(3, &io.0.to_le_bytes(), &[]),
            Effect::Send { conn, bufs } => self.frame(7, &conn.0.to_le_bytes(), bufs),
            _ => {}
        }
    }

    /// Hands everything to the kernel.
    pub(crate) fn flush(&mut self) {
        let result = match &mut self.open {
            Some(open) => open.file.flush(),
            None => Ok(()),
        };
        self.check(result);
    }

    fn frame(&mut self, kind: u32, head: &[u8], bufs: &[Bytes]) {
        let result = match &mut self.open {
            Some(open) => open.frame(kind, head, bufs),
            None => Ok(()),
        };
        self.check(result);
    }

    /// A trace that cannot be written ends; the store goes on.
    fn check(&mut self, result: io::Result<()>) {
        if let (Err(error), Some(open)) = (result, &self.open) {
            tracing::error!("{}: the trace ends here: {error}", open.path.display());
            self.open = None;
        }
    }
}

impl Open {
    fn frame(&mut self, kind: u32, head: &[u8], bufs: &[Bytes]) -> io::Result<()> {
        let length = head.len() + bufs.iter().map(Bytes::len).sum::<usize>();
        let length_field = u32::try_from(length).map_err(io::Error::other)?;
        let mut start = Vec::with_capacity(8 + head.len());
        start.put_u32_le(kind);
        start.put_u32_le(length_field);
        start.put_slice(head);
        let mut pieces = vec![start.as_slice()];
        pieces.extend(bufs.iter().map(|b| &b[..]));
        for piece in &pieces {
            self.file.write_all(piece)?;
        }
        self.file.write_all(&crc32_of(&pieces).to_le_bytes())?;
        self.unflushed += length;
        if self.unflushed >= FLUSH_BYTES {
            self.unflushed = 0;
            self.file.flush()?;
        }
        Ok(())
    }
}

/// Reads a trace, step by step, up to its end or its first damaged frame.
#[derive(Debug)]
pub struct TraceReader<R> {
    source: R,
    store_bytes: u64,
    is_cut_off: bool,
}

impl TraceReader<BufReader<File>> {
    /// Opens a trace file.
    ///
    /// # Errors
    /// When it cannot be read or is not a trace of this version.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::new(BufReader::new(File::open(path)?))
    }
}

impl<R: Read> TraceReader<R> {
    /// Reads a trace from its start.
    ///
    /// # Errors
    /// When the source is not a trace of this version.
    pub fn new(mut source: R) -> io::Result<Self> {
        let mut header = [0; 24];
        source.read_exact(&mut header)?;
        let mut rest = &header[8..];
        let (version, _reserved, store_bytes) =
            (rest.get_u32_le(), rest.get_u32_le(), rest.get_u64_le());
        if &header[..8] != MAGIC || version != VERSION {
            let message = "not a trace of version 1";
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(Self {
            source,
            store_bytes,
            is_cut_off: false,
        })
    }

    /// Size of the store the trace was recorded on, in bytes.
    #[must_use]
    pub fn store_bytes(&self) -> u64 {
        self.store_bytes
    }

    /// True when the trace ended within a frame or at a damaged one.
    #[must_use]
    pub fn is_cut_off(&self) -> bool {
        self.is_cut_off
    }

    /// The next whole frame; none at the end or at damage.
    fn frame(&mut self) -> Option<(u32, Bytes)> {
        let mut head = [0; 8];
        let mut got = 0;
        while got < head.len() {
            match self.source.read(&mut head[got..]) {
                Ok(0) if got == 0 => return None,
                Ok(0) => break,
                Ok(count) => got += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.is_cut_off = true;
        let mut fields = &head[..];
        let (kind, length) = (
            fields.get_u32_le(),
            to_usize(u64::from(fields.get_u32_le())),
        );
        if got < head.len() || length > FRAME_BYTES_MAX {
            return None;
        }
        // Grows as bytes arrive: a damaged length costs no memory.
        let mut body = Vec::new();
        let wanted = to_u64(length + 4);
        (&mut self.source)
            .take(wanted)
            .read_to_end(&mut body)
            .ok()?;
        if to_u64(body.len()) < wanted {
            return None;
        }
        let mut stored = &body[length..];
        let stored = stored.get_u32_le();
        body.truncate(length);
        if stored != crc32_of(&[&head, &body]) {
            return None;
        }
        self.is_cut_off = false;
        Some((kind, Bytes::from(body)))
    }
}

impl<R: Read> Iterator for TraceReader<R> {
    type Item = TraceEvent;

    fn next(&mut self) -> Option<TraceEvent> {
        if self.is_cut_off {
            return None;
        }
        let (kind, body) = self.frame()?;
        let event = decode(kind, body);
        self.is_cut_off = event.is_none();
        event
    }
}

fn decode(kind: u32, mut body: Bytes) -> Option<TraceEvent> {
    let id = body.try_get_u64_le().ok()?;
    let (io, conn) = (IoId(id), ConnId(id));
    Some(match kind {
        1 => {
            let offset = body.try_get_u64_le().ok()?;
            TraceEvent::Read {
                io,
                offset,
                length: body.try_get_u64_le().ok()?,
            }
        }
        2 => {
            let offset = body.try_get_u64_le().ok()?;
            TraceEvent::Write {
                io,
                offset,
                data: body,
            }
        }
        3 => TraceEvent::Sync { io },
        4 => {
            let code = body.try_get_u32_le().ok()?;
            let errno = body.try_get_i32_le().ok()?;
            let result = match code {
                0 => Ok(()),
                code => Err(DiskError {
                    kind: kind_of(code)?,
                    errno,
                }),
            };
            TraceEvent::Completed { io, result }
        }
        5 => TraceEvent::Connected { conn },
        6 => TraceEvent::Received { conn, data: body },
        7 => TraceEvent::Sent { conn, data: body },
        8 => TraceEvent::Disconnected { conn },
        _ => return None,
    })
}

fn code_of(kind: DiskErrorKind) -> u32 {
    match kind {
        DiskErrorKind::Io => 1,
        DiskErrorKind::NoSpace => 2,
        DiskErrorKind::Short => 3,
    }
}

fn kind_of(code: u32) -> Option<DiskErrorKind> {
    match code {
        1 => Some(DiskErrorKind::Io),
        2 => Some(DiskErrorKind::NoSpace),
        3 => Some(DiskErrorKind::Short),
        _ => None,
    }
}
