//! The log: batches become records, records are written in order, one sync serves all of them.

pub mod reader;
pub(crate) mod windows;
pub mod writer;
