//! Composition of engine, replication and NBD sessions into one node. Sans-I/O: no syscalls, no
//! clock, no randomness of its own; see [`event`] for the contract with an interpreter.
//!
//! A [`Node`] is what runs on one store's loop: the engine, a Raft group per volume, and the
//! sessions of the clients attached to those volumes.

pub mod admin;
pub mod attachment;
mod catchup;
mod comparisons;
mod conns;
mod control;
mod door;
pub mod envelope;
mod event;
mod exports;
mod groups;
pub mod hold;
mod io;
mod key_admin;
mod keys;
mod membership;
pub mod meters;
mod node;
mod parking;
mod pieces;
mod rekey;
mod repair;
mod reseal;
pub mod rewind;
mod scrub;
mod sealing;
mod snapshots;
mod stall;
mod status;
mod sums;
mod turns;
mod volume;
mod vouch;

pub use catchup::CatchUps;
pub use esker_nbd::{Access, TlsPolicy};
pub use event::{
    AdminToken, Effect, Event, ExportInfo, FrameKind, KeyAnswer, KeyAsk, PeerFrame, Transport,
};
pub use node::{Node, NodeConfig};

use esker_base::{Moment, WallClock};

/// What recovery found, for the log line and for the metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadyReport {
    /// True when the store was empty and has just been formatted.
    pub formatted: bool,
    /// Volumes in the store.
    pub volumes: usize,
    /// Records replayed after the checkpoint.
    pub records_replayed: u64,
    /// Bytes of log read.
    pub bytes_scanned: u64,
    /// True when the log ended in a torn tail that was cut.
    pub torn_tail: bool,
    /// Blocks found damaged.
    pub damaged_blocks: u64,
    /// Durable log records whose header is damaged.
    pub damaged_records: u64,
    /// Volumes that are suspended because a damaged record may have held entries of theirs.
    pub suspended_volumes: usize,
}

/// A sans-I/O machine: the node, or a part of it under test.
pub trait Machine {
    /// Takes one event in and appends what is to be done to `effects`. What several events lead to
    /// together may be left to [`Machine::settle`].
    fn step(&mut self, now: Moment, wall: WallClock, event: Event, effects: &mut Vec<Effect>);

    /// Does what the events since the last call lead to: the requests of all of them go into one
    /// record, and the replies to a connection into one send. An interpreter calls it after the last
    /// event that is there, and before it waits, with a time that it has read after the last event: leases are judged by it.
    fn settle(&mut self, _now: Moment, _wall: WallClock, _effects: &mut Vec<Effect>) {}

    /// Requests of clients on their way. A hint for how to wait: nothing may depend on it.
    fn requests_in_flight(&self) -> usize {
        0
    }

    /// Requests of clients that have begun, ever. A hint like the one above.
    fn requests_begun(&self) -> u64 {
        0
    }
}
