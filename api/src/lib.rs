//! The admin API of a node: the protocol (`proto/esker/admin/v1/admin.proto`), a client of it over
//! the unix socket, and the one way in which people write and read sizes.

pub mod client;
pub mod size;

/// The generated messages, client and server of `esker.admin.v1`.
pub mod v1 {
    #![allow(missing_docs)] // generated: the fields are documented in the .proto
    #![allow(clippy::all)] // generated
    tonic::include_proto!("esker.admin.v1");
}

/// The same of `esker.cluster.v1`: what nodes of a cluster ask of each other.
pub mod cluster {
    #![allow(missing_docs)] // generated: the fields are documented in the .proto
    #![allow(clippy::all)] // generated
    tonic::include_proto!("esker.cluster.v1");
}

/// Encoded messages of both, as they are passed on without being understood.
pub mod raw;

/// Longest answer in bytes that either side sends or takes: the list of all volumes of a full node.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
