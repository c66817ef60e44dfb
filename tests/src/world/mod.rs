//! Whole nodes in a simulated world: disks that fail, a network that loses, clients that come and
//! go, operators, crashes; and oracles that say what must hold through all of it. One seed is one
//! run, event by event. `docs/testing.md` describes it.

mod catalog;
mod chaos;
mod client;
mod clones;
mod content;
mod cuts;
mod finish;
mod holders;
mod host;
pub mod hunt;
mod keys;
mod life;
mod operator;
mod oracle;
mod past;
mod plan;
mod readers;
mod rekeys;
mod scrubs;
mod seats;
mod snapshots;
mod stamps;
mod stats;
mod three;
mod traffic;
mod wire;
mod words;
#[allow(clippy::module_inception)] // the world itself, among its parts
mod world;

pub use plan::{Options, Plan};
pub use stats::{Outcome, Stats};
pub use world::run;
