//! Raft groups over raft-rs, sans-I/O: no clock, no threads, no randomness of its own.
//!
//! The client's data travels *beside* the Raft entry. The entry holds a small descriptor
//! ([`LogEntry::data`], opaque here) and the length of the payload; the payload itself is a list
//! of [`bytes::Bytes`] that goes from the client to the store's log and to the peers without being
//! copied. [`Group`] documents the contract with its caller as a numbered list.

mod codec;
mod config;
mod error;
mod group;
mod lease;
mod logger;
mod membership;
mod output;
mod payload;
mod peer;
mod raft_log;
mod ready;
mod receive;
mod recovery;
mod timeout;
mod types;

pub use codec::{
    decode_frame_header, Frame, PayloadRef, FRAME_FIXED_BYTES, FRAME_HEADER_BYTES_MAX,
    FRAME_PAYLOADS_MAX, FRAME_VERSION,
};
pub use config::GroupConfig;
pub use error::{GroupError, ProposeError};
pub use group::{Group, READS_PENDING_MAX};
pub use membership::{Membership, PeerChange};
pub use output::{Output, Proposed, Role, Ticket};
pub use payload::{ENTRY_DATA_BYTES_MAX, ENTRY_PAYLOAD_BYTES_MAX};
pub use peer::PEER_HELD_MESSAGES_MAX;
pub use recovery::{RecoveredGroup, SUSPENSION_TERM_JUMP};
pub use types::{EntryKind, HardState, LogEntry};
