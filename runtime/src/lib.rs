//! The only syscalls: io_uring, sockets, timers.
//!
//! Each store has one thread with one ring ([`spawn`]). The thread runs a sans-I/O machine: it
//! tells it what happened as events, and interprets the effects it answers with. The contract
//! between the two is in `esker_node::event`.

mod accept;
mod connection;
mod disk;
mod driver;
mod error;
mod handle;
mod inherited;
mod listener;
mod net;
mod pace;
pub mod peers;
pub mod record;
pub mod replay;
mod ring;
mod store_file;
mod sync_way;
pub mod timer;
mod tls;

pub use disk::DiskCounts;
pub use driver::{spawn, LoopConfig, OutboundFn, RECEIVE_BUFFER_BYTES, RING_ENTRIES};
pub use error::RuntimeError;
pub use handle::{
    link, ConnectionStatus, Inbound, LoopHandle, LoopStatus, Outbound, INBOX_EVENTS_MAX,
};
pub use inherited::{inherited_sockets, Inherited, INHERITED_MAX};
pub use listener::Listener;
pub use net::{CLOSE_DRAIN_TIME_MAX, LINGER_TIME_MAX, SEND_QUEUE_BYTES_MAX};
pub use peers::{Directory, DirectorySlot};
pub use record::{TraceEvent, TraceReader};
pub use store_file::StoreFile;
pub use tls::{Tls, TlsServer, TlsSlot};
