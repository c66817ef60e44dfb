//! The bodies of the fuzz targets: each takes any bytes and panics when a rule is broken.
//!
//! `fuzz/` runs them under libFuzzer; `tests/replay.rs` runs them over `fuzz/corpus-seed` with every
//! `cargo test`. [`TARGETS`] names them all.

mod admin;
mod config;
mod formats;
mod keys;
mod nbd_client;
mod nbd_session;
mod peer;
mod peer_link;
pub mod seeds;
mod store;
mod store_image;

/// A body: any bytes in, a panic when a rule is broken.
pub type Body = fn(&[u8]);

/// Every target by the name of its folder in `fuzz/corpus-seed`.
pub const TARGETS: &[(&str, Body)] = &[
    ("nbd_session", nbd_session::run),
    ("superblock", formats::superblock),
    ("record", formats::record),
    ("operation", formats::operation),
    ("node", formats::node),
    ("checkpoint", formats::checkpoint),
    ("manifest", formats::manifest),
    ("store_image", store_image::run),
    ("peer_frame", peer::frame),
    ("peer_messages", peer::messages),
    ("peer_link", peer_link::run),
    ("admin", admin::run),
    ("config", config::run),
    ("wrapped_key", keys::wrapped_key),
    ("key_slots", keys::key_slots),
    ("keyring", keys::keyring),
    ("ttlv", keys::ttlv),
];

/// Runs the body of a target.
///
/// # Panics
/// When a rule is broken, or there is no such target.
pub fn run(target: &str, data: &[u8]) {
    let found = TARGETS.iter().find(|(name, _)| *name == target);
    let (_, body) = found.unwrap_or_else(|| panic!("no fuzz target is named {target}"));
    body(data);
}
