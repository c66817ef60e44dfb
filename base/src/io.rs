//! Disk operations as plain data: what the store asks for, and how it can fail.

use bytes::Bytes;
use std::fmt;

/// One operation on a store's device. Offsets and lengths are multiples of 4096, and every buffer
/// starts at an address that is one (see [`crate::AlignedBuf`]).
#[derive(Clone, Debug)]
pub enum DiskOp {
    /// Read `length` bytes at `offset`; completes with exactly that many bytes or an error.
    Read {
        /// Byte offset on the device.
        offset: u64,
        /// Length in bytes.
        length: usize,
    },
    /// Write the concatenation of `bufs` at `offset`. It overlaps no other write on its way: nothing orders them.
    Write {
        /// Byte offset on the device.
        offset: u64,
        /// What to write; not empty.
        bufs: Vec<Bytes>,
    },
    /// Make every write that completed before this was issued durable.
    Sync,
}

/// How a disk operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskErrorKind {
    /// The device reported an error (EIO and the like).
    Io,
    /// The device or its filesystem is full (ENOSPC, EDQUOT).
    NoSpace,
    /// Fewer bytes than asked for: the operation reaches past the end of the device.
    Short,
}

/// A failed disk operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskError {
    /// What kind of failure.
    pub kind: DiskErrorKind,
    /// The operating system's error number, 0 when there is none.
    pub errno: i32,
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            DiskErrorKind::Io => write!(f, "I/O error (errno {})", self.errno),
            DiskErrorKind::NoSpace => write!(f, "no space on the device (errno {})", self.errno),
            DiskErrorKind::Short => write!(f, "transfer reaches past the end of the device"),
        }
    }
}

impl std::error::Error for DiskError {}
