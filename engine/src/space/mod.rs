//! Space: segments, which of their slots are live, and subtrees that are to die.

mod discard;
pub mod piece;
mod room;
pub mod segments;

pub use segments::Segments;
