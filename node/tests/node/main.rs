//! A node, step by step.

#![allow(clippy::unwrap_used)] // a test may end with a panic

mod attachment;
mod encryption;
mod exports;
mod fair;
mod full;
mod harness;
mod rekey;
mod rewind;
mod snapshots;
