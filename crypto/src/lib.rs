//! Encryption of blocks and of the keys for it: everything that needs no I/O, no clock and no
//! randomness of its own. Salts, nonces and keys are handed in.
//!
//! ```text
//! KEK (of a key provider) ── wraps ──▶ DEK (one per volume, more after rotations)
//!                                       │ HKDF-SHA256, salt and number of an epoch
//!                                       ├──▶ block key of that epoch ── seals ──▶ blocks
//!                                       └──▶ root key of the volume ── vouches for ──▶ roots
//! ```
//!
//! | module | is |
//! |---|---|
//! | [`secret`] | keys in memory: locked there, wiped on drop, never printed, compared in constant time |
//! | [`block`] | sealing and opening one block, behind one pair of functions with two backends |
//! | [`epochs`] | the block keys in use, a bounded number of them |
//! | [`wrap`] | a DEK under a KEK, and its encoding |
//! | [`slots`] | where wrapped keys lie on a device: small slots, two copies each, written in place |
//! | [`root`] | a keyed MAC over what a checkpoint says of a volume |
//!
//! What each promises, and against whom, is in docs/security.md; why it is made like this, in
//! docs/adr.

mod aead;
pub mod block;
mod derive;
pub mod epochs;
mod locked;
pub mod root;
pub mod secret;
pub mod slots;
pub mod wrap;

pub use aead::{Authenticator, Backend, BlockTag, AUTH_BYTES, TAG_BYTES};
pub use block::{BlockFormat, BlockKey, Refused};
pub use epochs::{EpochId, EpochKeys};
pub use locked::is_swappable;
pub use root::{RootKey, RootMac};
pub use secret::{DataKey, KeyEncryptionKey, KEY_BYTES};
pub use wrap::{KekId, KeyId, KeyName, UnwrapError, WrappedKey};
