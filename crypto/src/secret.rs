//! Keys in memory. Their bytes lie on pages of their own ([`crate::locked`]), so that moving a key leaves no copy
//! behind; they are wiped when it is dropped, never printed, and compared in constant time.

use crate::locked::KeyBytes;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use std::convert::Infallible;
use std::fmt;

/// Bytes of every key here: 256 bits.
pub const KEY_BYTES: usize = 32;

macro_rules! secret {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        pub struct $name(KeyBytes);

        impl $name {
            /// The key whose bytes `fill` writes in place. They are zero before.
            #[must_use]
            pub fn filled(fill: impl FnOnce(&mut [u8; KEY_BYTES])) -> Self {
                let filled = Self::try_filled(|bytes| {
                    fill(bytes);
                    Ok::<(), Infallible>(())
                });
                match filled {
                    Ok(key) => key,
                    Err(never) => match never {},
                }
            }

            /// As [`Self::filled`], when filling can fail.
            ///
            /// # Errors
            /// What `fill` returns; the bytes are wiped.
            pub fn try_filled<E>(
                fill: impl FnOnce(&mut [u8; KEY_BYTES]) -> Result<(), E>,
            ) -> Result<Self, E> {
                let mut bytes = KeyBytes::zeroed();
                fill(&mut bytes)?;
                Ok(Self(bytes))
            }

            /// The bytes themselves. Whoever copies them wipes the copy.
            #[must_use]
            pub fn expose(&self) -> &[u8; KEY_BYTES] {
                &self.0
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                verify_slices_are_equal(&self.0[..], &other.0[..]).is_ok()
            }
        }

        impl Eq for $name {}

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(secret)"))
            }
        }
    };
}

secret!(
    /// Data-encryption key (DEK): the blocks of a volume are sealed under keys derived from it.
    DataKey
);
secret!(
    /// Key-encryption key (KEK): what a key provider keeps, and what DEKs are wrapped under.
    KeyEncryptionKey
);

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Writes `first`, and each further byte one more.
    pub(crate) fn count_from(first: u8) -> impl FnOnce(&mut [u8; KEY_BYTES]) {
        move |bytes| {
            for (byte, add) in bytes.iter_mut().zip(0..) {
                *byte = first.wrapping_add(add);
            }
        }
    }

    #[test]
    fn a_key_is_never_printed() {
        let key = DataKey::filled(|bytes| bytes.fill(0xa5));
        let shown = format!("{key:?} {key:#?} {:?}", Some(&key));
        assert!(shown.contains("DataKey(secret)"));
        assert!(!shown.to_lowercase().contains("a5") && !shown.contains("165"));
    }

    #[test]
    fn keys_are_equal_by_their_bytes() {
        let key = |byte| KeyEncryptionKey::filled(|bytes| bytes[31] = byte);
        assert_eq!(key(3), key(3));
        assert_ne!(key(3), key(2));
    }

    #[test]
    fn a_failure_to_fill_is_handed_on() {
        let failed = DataKey::try_filled(|bytes| {
            bytes.fill(1);
            Err("no randomness")
        });
        assert_eq!(failed.err(), Some("no randomness"));
    }
}
