//! The store of Esker: an append-only log of records on one device, a copy-on-write map from
//! logical blocks to slots, exact liveness of every slot, and recovery that tells a torn tail from
//! corruption. Sans-I/O: [`Engine::step`] takes one event in and gives effects out; see
//! [`event`] for the contract.
//!
//! The format on the device is drawn in `docs/format.md` and lives in [`format`]; nothing else
//! knows a byte position.

mod apply;
mod catalog;
mod catchup;
mod checkpoint;
mod config;
mod engine;
mod error;
pub mod event;
mod extents;
pub mod format;
mod gc;
mod group;
pub mod inspect;
pub mod keys;
mod log;
mod map;
mod merging;
pub mod meters;
mod readpath;
mod recovery;
mod recovery_tables;
mod repair;
mod replay;
pub mod requests;
mod scrub;
mod snapshot;
mod space;
mod superblock_io;
pub mod table;
pub mod verify;
pub mod vouch;

pub use catchup::{feed_of, feed_target, FeedView};
pub use config::{EngineConfig, Sabotage};
pub use engine::{Engine, SpaceUse};
pub use error::{CatalogError, OpenError, ReadError, StoreError};
pub use event::{Effect, Event};
pub use extents::RUNS_MAX as EXTENT_RUNS_MAX;
pub use group::GroupView;
pub use recovery::Probe;
pub use requests::{Known, REQUEST_WINDOW};
pub use snapshot::{
    DeltaSize, RewindPoints, SnapshotView, VersionView, VolumeSpace, DIFF_RUNS_MAX,
};
