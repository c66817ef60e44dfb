//! Versions of volumes: snapshots are kept, heads go on, and what nobody needs any more dies.

mod clone;
mod compare;
pub mod deadlist;
mod diff;
pub mod forest;
pub(crate) mod operations;
mod orphans;
mod reclaim;
mod rewind;
mod sums;
mod totals;
mod view;

pub(crate) use clone::Base;
pub(crate) use diff::DiffState;
pub use diff::RUNS_MAX as DIFF_RUNS_MAX;
pub(crate) use orphans::Orphans;
pub(crate) use reclaim::{Reclaim, DEAD_PAGE};
pub use rewind::RewindPoints;
pub use sums::VersionView;
pub(crate) use totals::Totals;
pub use view::{DeltaSize, SnapshotView, VolumeSpace};
