//! What a session is told about an export.

use crate::headers::Headers;
use crate::wire::{option_reply, transmission_flag as flag};
use std::sync::Arc;

/// An export, as its session presents it to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Canonical name; at most 4096 bytes.
    pub name: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Refuses everything that changes it.
    pub read_only: bool,
    /// A flush on one connection covers what other connections were answered before.
    pub multi_conn: bool,
    /// Smallest unit of offsets and lengths, a power of two; requests that are no multiple of it get
    /// EINVAL. 1 serves any client.
    pub block_size_min: u32,
    /// Unit of efficient requests, a power of two; 4096.
    pub block_size_preferred: u32,
    /// Longest read or write in bytes. The session's own limit applies as well, and the smaller of
    /// both is what the client is told; 0 leaves it at that limit.
    pub block_size_max: u32,
    /// For people; may be empty.
    pub description: String,
    /// Names of the metadata contexts it offers, `namespace:leaf`, each at most 4096 bytes: at least
    /// those of [`ContextsAsked::names`] that it has, and with [`ContextsAsked::list`] as many of all
    /// as are to be shown. Those that the client selects come back in
    /// [`crate::Operation::BlockStatus`].
    pub contexts: Vec<Arc<str>>,
}

/// What the answer to a question for an export must know of metadata contexts: an export may offer more of
/// them than anybody wants to see in one list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContextsAsked {
    /// Names that the client is after: those it lists or selects now, or has selected before. At most
    /// [`crate::META_QUERIES_MAX`].
    pub names: Vec<Arc<str>>,
    /// For those selected before: the canonical name of the export that they were selected of. They
    /// mean nothing for another one.
    pub of: Option<Arc<str>>,
    /// The client wants to see what there is.
    pub list: bool,
}

impl Export {
    /// The transmission flags that a client of this export is told. `contexts`: it has selected
    /// metadata contexts of this export.
    pub(crate) fn transmission_flags(&self, headers: Headers, contexts: bool) -> u16 {
        let mut flags = flag::HAS_FLAGS
            | flag::SEND_FLUSH
            | flag::SEND_FUA
            | flag::SEND_TRIM
            | flag::SEND_WRITE_ZEROES
            | flag::SEND_FAST_ZERO
            | flag::SEND_CACHE;
        for (condition, bit) in [
            (self.read_only, flag::READ_ONLY),
            (self.multi_conn, flag::CAN_MULTI_CONN),
            (headers.chunks(), flag::SEND_DF),
            (headers.extended() && contexts, flag::BLOCK_STATUS_PAYLOAD),
        ] {
            if condition {
                flags |= bit;
            }
        }
        flags
    }

    /// Longest read or write in bytes, given the session's limit.
    pub(crate) fn payload_bytes_max(&self, session_limit: u32) -> u32 {
        match self.block_size_max {
            0 => session_limit,
            own => own.min(session_limit),
        }
    }
}

/// Why an export cannot be had. Each carries one line for the client's user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// There is none of that name.
    #[error("{0}")]
    Unknown(String),
    /// It exists but cannot serve now, for instance because it is suspended.
    #[error("{0}")]
    Unavailable(String),
    /// It is not for this client.
    #[error("{0}")]
    Policy(String),
    /// The server is shutting down.
    #[error("{0}")]
    Shutdown(String),
}

impl ExportError {
    /// The option reply and the text that say so.
    pub(crate) fn reply(&self) -> (u32, &str) {
        match self {
            // The protocol has one reply for "does not exist" and "is not available".
            Self::Unknown(text) | Self::Unavailable(text) => (option_reply::ERR_UNKNOWN, text),
            Self::Policy(text) => (option_reply::ERR_POLICY, text),
            Self::Shutdown(text) => (option_reply::ERR_SHUTDOWN, text),
        }
    }
}
