//! Key providers: where the keys live that wrap the keys of volumes.
//!
//! | kind | KEKs live in | wrapping is done by |
//! |---|---|---|
//! | `file` ([`file`]) | a keyring file on this node, with or without a passphrase | this node |
//! | `kmip` ([`kmip`]) | a KMIP server; they are fetched when needed and not kept | this node |
//! | `vault` ([`vault`]) | Vault or OpenBao; they never leave it | its Transit engine |
//!
//! [`ca`] makes certificates for those who have no authority of their own.
//!
//! [`Providers`] is what a node has of them by its configuration: one wraps, all that are configured
//! unwrap, so that keys can move from one to another.

pub mod ca;
pub mod config;
pub mod error;
pub mod file;
mod http;
pub mod keyring;
pub mod kmip;
pub mod nodes;
mod private;
pub mod provider;
mod providers;
pub mod random;
pub mod retry;
pub mod rights;
mod server;
mod tls;
pub mod ttlv;
pub mod vault;

pub use config::KeysConfig;
pub use error::{KeyError, KeyErrorKind};
pub use nodes::{node_of, NodeTls};
pub use provider::{KeyName, Pending, Provider};
pub use providers::Providers;
pub use retry::Retry;
pub use rights::{AdminRole, Rights};
pub use server::{ClientFiles, ServerFiles};
