//! Randomness of the system's generator, for keys, salts and nonces.

use crate::error::KeyError;
use aws_lc_rs::rand;
use esker_crypto::{DataKey, KeyEncryptionKey};

/// Fills `bytes` with randomness that keys may be made of.
///
/// # Errors
/// When the system gives none.
pub fn fill(bytes: &mut [u8]) -> Result<(), KeyError> {
    let none = |_| KeyError::unreachable("the system gives no randomness (getrandom failed)");
    rand::fill(bytes).map_err(none)
}

/// Random bytes, as many as the array has.
///
/// # Errors
/// As [`fill`].
pub fn array<const N: usize>() -> Result<[u8; N], KeyError> {
    let mut bytes = [0; N];
    fill(&mut bytes)?;
    Ok(bytes)
}

/// A new DEK.
///
/// # Errors
/// As [`fill`].
pub fn data_key() -> Result<DataKey, KeyError> {
    DataKey::try_filled(|bytes| fill(bytes))
}

/// A new KEK.
///
/// # Errors
/// As [`fill`].
pub fn key_encryption_key() -> Result<KeyEncryptionKey, KeyError> {
    KeyEncryptionKey::try_filled(|bytes| fill(bytes))
}
