//! AES-256-GCM, in place, with the tag apart: one function pair over two implementations.

use crate::secret::KEY_BYTES;
use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::Aes256Gcm;
use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce, UnboundKey, AES_256_GCM};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use esker_base::BLOCK_SIZE;

/// Bytes of a tag.
pub const AUTH_BYTES: usize = 16;
/// An AES-GCM tag of full length.
pub type Authenticator = [u8; AUTH_BYTES];
/// Bytes of a block's tag: 96 bits, the length after 128 that NIST SP 800-38D (5.2.1.2) has for general use.
pub const TAG_BYTES: usize = 12;
/// What proves a sealed block: the first bytes of an AES-GCM tag. The four bytes beside it in a map entry
/// are a CRC that needs no key.
pub type BlockTag = [u8; TAG_BYTES];
/// Bytes of a nonce.
pub(crate) const NONCE_BYTES: usize = 12;

/// Which implementation of AES-GCM works. Both give the same bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// AWS-LC: assembler, several times as fast (docs/performance.md).
    #[default]
    AwsLc,
    /// RustCrypto's `aes-gcm`, in Rust alone: the reference that the other one is held against.
    RustCrypto,
}

/// A key of AES-256-GCM with what an implementation prepares from it. Wiped on drop by both.
pub(crate) enum Cipher {
    AwsLc(Box<LessSafeKey>),
    RustCrypto(Box<Aes256Gcm>),
}

impl Cipher {
    pub(crate) fn new(backend: Backend, key: &[u8; KEY_BYTES]) -> Self {
        match backend {
            Backend::AwsLc => match UnboundKey::new(&AES_256_GCM, key) {
                Ok(key) => Self::AwsLc(Box::new(LessSafeKey::new(key))),
                Err(_) => unreachable!("the key has {KEY_BYTES} bytes"),
            },
            Backend::RustCrypto => Self::RustCrypto(Box::new(Aes256Gcm::new(key.into()))),
        }
    }

    /// Encrypts `data` in place and returns its tag. The caller never uses a nonce twice.
    ///
    /// # Panics
    /// When `data` is longer than AES-GCM takes (64 GiB).
    pub(crate) fn seal(
        &self,
        nonce: &[u8; NONCE_BYTES],
        aad: &[u8],
        data: &mut [u8],
    ) -> Authenticator {
        let mut auth = [0; AUTH_BYTES];
        match self {
            Self::AwsLc(key) => {
                let nonce = Nonce::assume_unique_for_key(*nonce);
                match key.seal_in_place_separate_tag(nonce, Aad::from(aad), data) {
                    Ok(tag) => auth.copy_from_slice(tag.as_ref()),
                    Err(_) => unreachable!("{} bytes are not too many", data.len()),
                }
            }
            Self::RustCrypto(key) => {
                match key.encrypt_inout_detached(nonce.into(), aad, data.into()) {
                    Ok(tag) => auth.copy_from_slice(&tag),
                    Err(_) => unreachable!("the data is not too long"),
                }
            }
        }
        auth
    }

    /// Decrypts `data` in place; false, and zeros in `data`, when the tag does not match.
    #[must_use]
    pub(crate) fn open(
        &self,
        nonce: &[u8; NONCE_BYTES],
        aad: &[u8],
        auth: &Authenticator,
        data: &mut [u8],
    ) -> bool {
        let opened = match self {
            Self::AwsLc(key) => {
                let nonce = Nonce::assume_unique_for_key(*nonce);
                let opened = key.open_in_place_separate_tag(nonce, Aad::from(aad), auth, data);
                opened.is_ok()
            }
            Self::RustCrypto(key) => key
                .decrypt_inout_detached(nonce.into(), aad, data.into(), auth.into())
                .is_ok(),
        };
        if !opened {
            // An implementation may leave plaintext that nothing vouches for.
            data.fill(0);
        }
        opened
    }

    /// As [`Self::open`], by the first bytes of the tag. Implementations take whole tags only, so the tag
    /// is computed anew: GCM adds a key stream, so sealing what is sealed gives what it was made of, and
    /// sealing that once more gives its tag. Neither result leaves this function but the opened block.
    #[must_use]
    pub(crate) fn open_short(
        &self,
        nonce: &[u8; NONCE_BYTES],
        aad: &[u8],
        tag: &BlockTag,
        data: &mut [u8; BLOCK_SIZE],
    ) -> bool {
        _ = self.seal(nonce, &[], data);
        let mut again = *data;
        let auth = self.seal(nonce, aad, &mut again);
        let opened = verify_slices_are_equal(&auth[..TAG_BYTES], tag).is_ok();
        if !opened {
            data.fill(0);
        }
        opened
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    pub(crate) const BOTH: [Backend; 2] = [Backend::AwsLc, Backend::RustCrypto];

    fn hex(text: &str) -> Vec<u8> {
        let digits = text.as_bytes().chunks(2);
        let byte = |pair: &[u8]| {
            u8::from_str_radix(std::str::from_utf8(pair).expect("text"), 16).expect("hex digits")
        };
        digits.map(byte).collect()
    }

    /// The vectors of a file: the fields of each by name. An empty line stands between them.
    pub(crate) fn vectors(text: &str) -> Vec<BTreeMap<&str, Vec<u8>>> {
        let fields = |part| {
            let lines = str::lines(part).filter(|line| !line.starts_with('#'));
            let field = |line| {
                let (name, value) = str::split_once(line, " =").expect("NAME = VALUE");
                (name, hex(value.trim()))
            };
            lines.map(field).collect::<BTreeMap<_, _>>()
        };
        let all = text.split("\n\n").map(fields);
        all.filter(|vector| !vector.is_empty()).collect()
    }

    #[test]
    fn both_backends_meet_the_published_vectors() {
        let all = vectors(include_str!("../tests/data/nist_gcm_256.txt"));
        assert!(all.len() >= 60, "{} vectors", all.len());
        assert!(all
            .iter()
            .any(|v| v["PT"].len() > 16 && !v["AAD"].is_empty()));
        for (number, vector) in all.iter().enumerate() {
            let key: [u8; KEY_BYTES] = vector["Key"][..].try_into().expect("256 bits");
            let nonce: [u8; NONCE_BYTES] = vector["IV"][..].try_into().expect("96 bits");
            let tag: Authenticator = vector["Tag"][..].try_into().expect("128 bits");
            for backend in BOTH {
                let cipher = Cipher::new(backend, &key);
                let mut data = vector["PT"].clone();
                let sealed = cipher.seal(&nonce, &vector["AAD"], &mut data);
                assert_eq!(data, vector["CT"], "vector {number}, {backend:?}");
                assert_eq!(sealed, tag, "vector {number}, {backend:?}");
                assert!(cipher.open(&nonce, &vector["AAD"], &tag, &mut data));
                assert_eq!(data, vector["PT"], "vector {number}, {backend:?}");
            }
        }
    }

    proptest! {
        /// Whatever one seals, the other seals to the same bytes and opens.
        #[test]
        fn the_backends_agree(
            key: [u8; KEY_BYTES],
            nonce: [u8; NONCE_BYTES],
            aad in proptest::collection::vec(any::<u8>(), 0..64),
            data in proptest::collection::vec(any::<u8>(), 0..5000),
        ) {
            let (fast, reference) = (Cipher::new(BOTH[0], &key), Cipher::new(BOTH[1], &key));
            let (mut one, mut other) = (data.clone(), data.clone());
            let auth = fast.seal(&nonce, &aad, &mut one);
            prop_assert_eq!(auth, reference.seal(&nonce, &aad, &mut other));
            prop_assert_eq!(&one, &other);
            prop_assert!(fast.open(&nonce, &aad, &auth, &mut other));
            prop_assert!(reference.open(&nonce, &aad, &auth, &mut one));
            prop_assert_eq!(&one, &data);
            prop_assert_eq!(&other, &data);
        }

        /// Any bit of anything: both refuse, and leave zeros.
        #[test]
        fn one_changed_bit_is_refused_by_both(
            key: [u8; KEY_BYTES],
            data in proptest::collection::vec(any::<u8>(), 1..300),
            bit in 0usize..10_000,
        ) {
            let (mut nonce, mut aad) = ([7; NONCE_BYTES], [9; 28]);
            for backend in BOTH {
                let cipher = Cipher::new(backend, &key);
                let mut sealed = data.clone();
                let mut auth = cipher.seal(&nonce, &aad, &mut sealed);
                let bits = 8 * (sealed.len() + AUTH_BYTES + NONCE_BYTES + aad.len());
                let (byte, mask) = (bit % bits / 8, 1u8 << (bit % 8));
                let parts: [&mut [u8]; 4] = [&mut sealed, &mut auth, &mut nonce, &mut aad];
                let place = parts.into_iter().flatten().nth(byte).expect("within them");
                *place ^= mask;
                prop_assert!(!cipher.open(&nonce, &aad, &auth, &mut sealed));
                prop_assert!(sealed.iter().all(|b| *b == 0));
                (nonce, aad) = ([7; NONCE_BYTES], [9; 28]);
            }
        }
    }
}
