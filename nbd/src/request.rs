//! Requests as a session hands them out, and the answers it takes.

use bytes::Bytes;
use std::fmt;
use std::sync::Arc;

/// Names a request within its session. Never reused while the session lives, unlike the client's
/// cookie, which may repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A valid request: within the export, permitted, aligned to its minimum block size and not empty
/// (a flush has neither offset nor length). What fails these checks, the session answers itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Comes back with the answer.
    pub id: RequestId,
    /// What to do.
    pub op: Operation,
    /// Byte offset in the export.
    pub offset: u64,
    /// Length in bytes. Only that of `Read` and `Write` is limited below the export's size.
    pub length: u64,
    /// Answer only when the effect is durable. Only ever set for `Write`, `Trim` and `WriteZeroes`.
    pub fua: bool,
}

/// What a request does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read `length` bytes; answered with [`Reply::Data`].
    Read {
        /// The client wants the data in one piece. The session sees to it; the pieces of the reply
        /// may be as many as usual.
        dont_fragment: bool,
    },
    /// Write the payload.
    Write {
        /// `length` bytes. The address of byte 0 is congruent to `offset` modulo 4096, so every
        /// whole 4 KiB block of the request is a page-aligned slice of this buffer.
        payload: Bytes,
    },
    /// Make all writes answered so far durable.
    Flush,
    /// The range is no longer needed.
    Trim,
    /// The range must read as zeros.
    WriteZeroes {
        /// The range must be backed by space: writing to it later may not run out of it.
        no_hole: bool,
        /// Fail with [`RequestError::NotSupported`] rather than be slower than this.
        fast: bool,
    },
    /// The range will be read soon.
    Cache,
    /// What is known of the range; answered with [`Reply::BlockStatus`].
    BlockStatus {
        /// The metadata contexts to answer, by the names of [`crate::Export::contexts`]. At least one,
        /// none twice.
        contexts: Vec<Arc<str>>,
        /// The client wants the first extent only. The session cuts the reply; an owner that knows
        /// this can stop early.
        one: bool,
    },
}

/// A successful answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To everything but reads.
    Done,
    /// To a read: its bytes in order. Anything but exactly the request's length is answered with EIO.
    Data(Vec<ReadPiece>),
    /// To a block status request: for each context, in the order of the request, the extents from the
    /// request's offset on. At least one each, none empty, and together no longer than the request,
    /// or it is answered with EIO. They may end before the request does; of more than
    /// [`crate::STATUS_EXTENTS_MAX`] the rest is dropped. The client asks on.
    BlockStatus(Vec<Vec<Extent>>),
}

/// A run of bytes of which a metadata context says one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes, a multiple of the export's minimum block size.
    pub length: u64,
    /// What the context says; for `base:allocation` see [`crate::wire::allocation`].
    pub flags: u32,
}

/// A part of what was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadPiece {
    /// These bytes; passed through without a copy.
    Data(Bytes),
    /// So many zero bytes.
    Zeros(u64),
}

impl ReadPiece {
    /// Length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        match self {
            Self::Data(bytes) => esker_base::num::to_u64(bytes.len()),
            Self::Zeros(length) => *length,
        }
    }
}

/// How a request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The device failed, or the data is damaged.
    #[error("the storage failed or the data is damaged")]
    Io,
    /// The store is full, or a write reaches past the end.
    #[error("no space left")]
    NoSpace,
    /// The request makes no sense.
    #[error("the request is invalid")]
    Invalid,
    /// The export is read-only.
    #[error("the export is read-only")]
    ReadOnly,
    /// Not supported, or not fast.
    #[error("not supported, or not fast")]
    NotSupported,
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Shutdown,
    /// The request is too long.
    #[error("the request is too long")]
    TooBig,
    /// No memory.
    #[error("the server is out of memory")]
    NoMemory,
}
