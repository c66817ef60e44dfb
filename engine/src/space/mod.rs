//! Space: segments, which of their slots are live, the tables that say so on the device, and subtrees
//! that are to die.

pub(crate) mod ahead;
mod discard;
pub mod live;
pub mod load;
mod pages;
pub mod piece;
mod room;
pub mod segments;
mod table;
mod write;

pub use pages::{SpaceTables, TableShape};
pub use segments::Segments;

#[cfg(test)]
mod tables_tests;
