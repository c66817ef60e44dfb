//! The named maxima of a session, and what happens at each.

use esker_base::limits;

/// Longest string of the protocol, in bytes: names, descriptions, messages. Longer texts of ours are
/// cut; longer ones of a client are refused.
pub const STRING_BYTES_MAX: usize = 4096;
/// Longest export name a client may send, in bytes. A longer one gets `NBD_REP_ERR_INVALID`, or ends
/// the session when it comes with `NBD_OPT_EXPORT_NAME`, which has no error reply.
pub const EXPORT_NAME_BYTES_MAX: usize = STRING_BYTES_MAX;
/// Longest option payload that is kept, in bytes. A longer one is dropped as it arrives and the
/// option gets `NBD_REP_ERR_TOO_BIG`.
pub const OPTION_BYTES_MAX: usize = 64 * 1024;
/// Longest option payload that is read at all, in bytes; a longer one ends the session.
pub const OPTION_DISCARD_BYTES_MAX: usize = 1024 * 1024;
/// Options in one handshake (`qemu-nbd --list` sends a few for every export); one more ends the
/// session.
pub const HANDSHAKE_OPTIONS_MAX: usize = 4096;
/// Longest write payload that is read at all, kept or dropped, in bytes; a longer one ends the
/// session. [`SessionLimits::request_bytes_max`] is cut to it.
pub const PAYLOAD_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Payload that is never taken for an attack, in bytes (2^25): with extended headers a payload beyond
/// both this and the maximum that the client was told ends the session.
pub const PAYLOAD_TOLERATED_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Queries in one `NBD_OPT_LIST_META_CONTEXT` or `NBD_OPT_SET_META_CONTEXT`; more get
/// `NBD_REP_ERR_TOO_BIG`.
pub const META_QUERIES_MAX: usize = 1024;
/// Metadata contexts selected at a time; more get `NBD_REP_ERR_TOO_BIG`.
pub const CONTEXTS_SELECTED_MAX: usize = 16;
/// Extents in a reply to `NBD_CMD_BLOCK_STATUS`, per context; the reply is cut there, and the client
/// asks on.
pub const STATUS_EXTENTS_MAX: usize = 2048;
/// Received bytes that may wait unparsed before [`crate::Session::wants_input`] becomes false.
pub const INPUT_QUEUED_BYTES_MAX: usize = 256 * 1024;

/// What one session may hold at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    /// Longest read or write, in bytes; longer ones are refused. At most [`PAYLOAD_BYTES_MAX`].
    pub request_bytes_max: usize,
    /// Requests in flight; past it the session is slowed.
    pub requests_in_flight_max: usize,
    /// Bytes of writes and reads in flight; past it the session is slowed. One request is always
    /// admitted.
    pub bytes_in_flight_max: usize,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            request_bytes_max: limits::REQUEST_BYTES_MAX,
            requests_in_flight_max: limits::SESSION_REQUESTS_MAX,
            bytes_in_flight_max: limits::SESSION_BYTES_MAX,
        }
    }
}
