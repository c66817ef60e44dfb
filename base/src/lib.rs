//! Vocabulary shared by every part of Esker: addresses, ids, stamps, aligned buffers, checksums,
//! limits. Nothing here does I/O, reads a clock or draws randomness.

pub mod buf;
pub mod checksum;
pub mod histogram;
pub mod id;
pub mod io;
pub mod lba;
pub mod limits;
pub mod num;
pub mod stamp;
pub mod time;

pub use buf::AlignedBuf;
pub use histogram::Histogram;
pub use id::{
    ClusterId, ConnId, GroupId, IoId, NodeId, Place, RaftIndex, ReplicaId, Seq, SessionId, StoreId,
    Term, VolumeId,
};
pub use io::{DiskError, DiskErrorKind, DiskOp};
pub use lba::{BlockRange, Lba, BLOCK_SIZE, BLOCK_SIZE_U64};
pub use stamp::{Epoch, Stamp};
pub use time::{Moment, WallClock};
