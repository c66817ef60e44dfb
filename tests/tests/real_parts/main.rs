//! The daemon as it is built, with the programs people use with it: libnbd's tools, qemu-io, fio,
//! a file system in the kernel; and with clients that lie, power that fails, and stores that are
//! damaged.
//!
//! The programs under test are `target/release/eskerd` and `esker` (or those in ESKER_BIN_DIR);
//! they are built when they are not there. A test that lacks a program or a right says so on stderr
//! and in the file ESKER_SKIP_LOG names, and passes.

// Helpers of tests may panic, like tests; sizes here are small and known.
#![allow(clippy::unwrap_used)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap
)]

mod activation;
mod admin_tcp;
mod agreed;
mod attachment;
mod bad_input;
mod benches;
mod born;
mod client;
mod clones;
mod cluster;
mod damaged;
mod demo;
mod disk;
mod doors;
mod encryption;
mod examples;
mod exports;
mod failover;
mod filesystem;
mod full;
mod harness;
mod kernel;
mod key_servers;
mod kill;
mod liars;
mod metrics;
mod moments;
mod networks;
mod nodes;
mod operating;
mod pattern;
mod postgres;
mod power_cut;
mod readme;
mod renames;
mod renewals;
mod repairs;
mod rewind;
mod sandbox;
mod schedules;
mod scrub;
#[path = "../../../keys/tests/support/mod.rs"]
mod servers;
mod snapshots;
mod sparse;
mod stop;
mod stores;
mod stress;
mod tampering;
mod tampering_maps;
mod tls;
mod tools;
