//! NBD sessions: handshake, transmission, replies. Sans-I/O: bytes and answers go in, actions and
//! bytes come out; no syscalls, no clock, no randomness.
//!
//! What is supported of the protocol, and what is not, is listed in `docs/protocol.md`. The protocol
//! itself is described by the NBD project (`doc/proto.md` of NetworkBlockDevice/nbd).
//!
//! The contract of the caller of a [`Session`]:
//! 1. Bytes from the client go to [`Session::receive`] in order, in any split, and only while
//!    [`Session::wants_input`] is true (ask again after every call below).
//! 2. After every `receive`, answer or completion, [`Session::poll`] is called until it returns
//!    `None`; then [`Session::take_output`] is called and what it gives is sent in order.
//! 3. [`Action::ListExports`] is answered by one [`Session::list_exports`], [`Action::Export`] by one
//!    [`Session::export`], and each [`Action::Request`] by one [`Session::complete`] or
//!    [`Session::fail_at`], in any order.
//! 4. A session bounds what it holds itself: its input, its requests and their payload. What was
//!    taken from `take_output` and not yet sent is the caller's to bound: it calls neither `receive`
//!    nor `poll` while too much of it is waiting.
//! 5. [`Action::Close`] comes once and last. The output that remains is sent, then the connection is
//!    closed. Requests still unanswered need no completion then; one that comes is ignored.
//! 6. [`Action::StartTls`] comes only after [`Session::offer_tls`]. The output so far is sent as it is;
//!    from then on bytes go through TLS both ways. Whatever arrived and was not given to `receive` yet
//!    belongs to TLS. Once its handshake is done, [`Session::secured`] follows. When it fails, the
//!    connection is closed.
//! 7. A session may be dropped at any time, and moved to another thread at any time.

mod access;
mod errno;
mod export;
mod filter;
mod handshake;
mod headers;
mod input;
mod limits;
mod option;
mod output;
mod payload;
mod reply;
mod request;
mod session;
mod transmission;
mod validate;
pub mod wire;

pub use access::{Access, TlsPolicy};
pub use export::{ContextsAsked, Export, ExportError};
pub use limits::{
    SessionLimits, CONTEXTS_SELECTED_MAX, EXPORT_NAME_BYTES_MAX, HANDSHAKE_OPTIONS_MAX,
    INPUT_QUEUED_BYTES_MAX, META_QUERIES_MAX, OPTION_BYTES_MAX, OPTION_DISCARD_BYTES_MAX,
    PAYLOAD_BYTES_MAX, PAYLOAD_TOLERATED_BYTES_MAX, STATUS_EXTENTS_MAX, STRING_BYTES_MAX,
};
pub use request::{Extent, Operation, ReadPiece, Reply, Request, RequestError, RequestId};
pub use session::{Action, Session};
