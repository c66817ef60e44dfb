//! The named maxima. Every queue, buffer and cache is bounded by one of these or by configuration.

/// Largest payload of one NBD request, in bytes (32 MiB, what NBD clients may assume).
pub const REQUEST_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Requests in flight per session; past it the session is no longer read from.
pub const SESSION_REQUESTS_MAX: usize = 256;
/// Payload bytes in flight per session; past it the session is no longer read from. At least one
/// request is always admitted.
pub const SESSION_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Requests in flight per node (all its sessions); past it no session is read from.
pub const NODE_REQUESTS_MAX: usize = 16 * 1024;
/// Payload bytes in flight per node; past it no session is read from.
pub const NODE_BYTES_MAX: usize = 96 * 1024 * 1024;
/// The last part of [`NODE_BYTES_MAX`], kept for clients that have little on their way, so that those
/// who announce much and send nothing, or ask for much and take nothing, do not stop everybody.
pub const NODE_BYTES_RESERVED: usize = 32 * 1024 * 1024;
/// What "little" is: bytes of one session on their way.
pub const SESSION_MODEST_BYTES_MAX: usize = 256 * 1024;
/// How long a reply or the payload of a write may take to get through while memory is short; then the
/// session is ended, so that others get what it holds.
pub const STALL_TIME_MAX: std::time::Duration = std::time::Duration::from_secs(60);
/// How long a client may take from its connection to its attachment; then the session is ended.
pub const HANDSHAKE_TIME_MAX: std::time::Duration = std::time::Duration::from_secs(30);
/// Connections per node; further ones are closed at once, with a line in the log.
pub const NODE_CONNECTIONS_MAX: usize = 4096;
/// Longest volume name, in bytes.
pub const VOLUME_NAME_BYTES_MAX: usize = 128;
/// Largest volume, in bytes (64 TiB: five levels of map nodes).
pub const VOLUME_BYTES_MAX: u64 = 64 << 40;
/// Volumes per store.
pub const STORE_VOLUMES_MAX: usize = 65_536;
/// Longest name of a snapshot, in bytes.
pub const SNAPSHOT_NAME_BYTES_MAX: usize = 128;
/// Snapshots per volume.
pub const VOLUME_SNAPSHOTS_MAX: usize = 65_536;
/// Labels that operators can give a volume or a snapshot.
pub const VOLUME_LABELS_MAX: usize = 32;
/// The volume whose labels say which nodes a cluster has. It is no export, and operators do not change it.
pub const METADATA_VOLUME: &str = ".cluster";
/// Labels of that volume: one for each node and a few more. No volume has more of them.
pub const METADATA_LABELS_MAX: usize = 96;
/// Longest label key or value, in bytes.
pub const LABEL_BYTES_MAX: usize = 256;
/// Blocks in one log entry; a larger request is split into several entries (1 MiB of payload).
pub const ENTRY_BLOCKS_MAX: u64 = 256;
