//! HKDF with SHA-256 (RFC 5869), for the keys that are derived from others.

use crate::secret::KEY_BYTES;
use aws_lc_rs::hkdf::{KeyType, Salt, HKDF_SHA256};
use zeroize::Zeroizing;

/// The length of what is derived.
struct Bytes(usize);

impl KeyType for Bytes {
    fn len(&self) -> usize {
        self.0
    }
}

/// Extracts with `salt` and expands with the pieces of `info` into `out`.
///
/// # Panics
/// When `out` is longer than 255 × 32 bytes, which nothing here asks for.
fn hkdf(salt: &[u8], secret: &[u8], info: &[&[u8]], out: &mut [u8]) {
    let extracted = Salt::new(HKDF_SHA256, salt).extract(secret);
    let expanded = extracted.expand(info, Bytes(out.len()));
    if expanded.and_then(|okm| okm.fill(out)).is_err() {
        unreachable!("{} bytes are within what HKDF gives", out.len());
    }
}

/// A key derived from another.
pub(crate) fn key(
    salt: &[u8],
    secret: &[u8; KEY_BYTES],
    info: &[&[u8]],
) -> Zeroizing<[u8; KEY_BYTES]> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    hkdf(salt, secret, info, &mut key[..]);
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aead::tests::vectors;

    #[test]
    fn meets_the_vectors_of_rfc_5869() {
        let all = vectors(include_str!("../tests/data/rfc5869_sha256.txt"));
        assert_eq!(all.len(), 3);
        for vector in all {
            let mut out = vec![0; vector["OKM"].len()];
            hkdf(
                &vector["salt"],
                &vector["IKM"],
                &[&vector["info"]],
                &mut out,
            );
            assert_eq!(out, vector["OKM"]);
            let (first, second) = vector["info"].split_at(vector["info"].len() / 2);
            hkdf(&vector["salt"], &vector["IKM"], &[first, second], &mut out);
            assert_eq!(out, vector["OKM"], "pieces count as one");
        }
    }
}
