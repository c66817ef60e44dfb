//! Versions of volumes: snapshots are kept, heads go on, and what nobody needs any more dies.

pub mod deadlist;
pub mod forest;
pub(crate) mod operations;
mod reclaim;
mod view;

pub(crate) use reclaim::{Reclaim, DEAD_PAGE};
pub use view::{DeltaSize, SnapshotView};
