//! From logical blocks to slots: recent writes in interval maps, the rest in a copy-on-write radix
//! tree whose nodes are cached within a fixed budget.

pub mod cache;
pub mod delta;
pub mod footprint;
pub mod interval;
pub mod layer;
pub mod merge;
pub mod older;
pub mod tree;
pub(crate) mod view;
