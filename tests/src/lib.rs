//! The simulator, its oracles, and tests against the real daemon.
//!
//! Everything here is deterministic: one seed gives one run, whatever the machine.

pub mod check;
pub mod sim;
pub mod world;
