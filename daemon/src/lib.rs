//! The storage daemon: configuration, the data directory, the admin API, metrics, signals.
//!
//! Everything here runs on one control thread. The data path is elsewhere: each store has a thread
//! of its own (`esker_runtime`) that runs the node's logic (`esker_node`); [`loops`] starts them
//! and carries administrative requests across.

pub mod admin;
pub mod admin_tcp;
pub mod args;
pub mod certificates;
pub mod cluster;
pub mod config;
pub mod cut;
pub mod data_dir;
pub mod dist;
pub mod door;
pub mod error;
pub mod guard;
mod handed;
pub mod identity;
pub mod keys;
pub mod known;
pub mod live;
pub mod logging;
pub mod loops;
pub mod machine;
pub mod metrics;
pub mod opening;
pub mod predecessor;
pub mod reload;
pub mod report;
pub mod reseal;
pub mod retention;
pub mod rewind;
pub mod run;
pub mod sandbox;
pub mod scrub;
pub mod store;
pub mod stores;
pub mod tls;
pub mod uri;
