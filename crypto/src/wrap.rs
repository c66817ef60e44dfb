//! A DEK under a KEK: wrapping, and the encoding of the result, which docs/format.md draws.
//!
//! What is authenticated beside the DEK: "esker key wrap", version, method, volume, key, length and name
//! of the KEK. So a wrapped key cannot be put to another volume or key, nor named as wrapped by
//! another KEK.

use crate::aead::{Authenticator, Backend, Cipher, AUTH_BYTES, NONCE_BYTES};
use crate::secret::{DataKey, KeyEncryptionKey, KEY_BYTES};
use esker_base::VolumeId;
use std::fmt;
use std::num::NonZeroU32;
use thiserror::Error;

/// Bytes of a nonce for wrapping: random, handed in.
pub const WRAP_NONCE_BYTES: usize = NONCE_BYTES;
/// Longest name of a KEK, in bytes.
pub const KEK_ID_BYTES_MAX: usize = 128;
/// Longest result of a provider that wraps by itself, in bytes.
pub const PROVIDED_BYTES_MAX: usize = 256;
/// Longest encoding of a wrapped key, in bytes.
pub const WRAPPED_BYTES_MAX: usize = HEAD_BYTES + KEK_ID_BYTES_MAX + PROVIDED_BYTES_MAX;

const VERSION: u16 = 1;
const HEAD_BYTES: usize = 28;
const SEALED_BYTES: usize = NONCE_BYTES + KEY_BYTES + AUTH_BYTES;
const AAD_DOMAIN: &[u8] = b"esker key wrap";

/// Number of a DEK within its volume. It is never zero: that means "not encrypted".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(NonZeroU32);

impl KeyId {
    /// The number, unless it is zero.
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }

    /// As logs and maps carry it.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Which DEK: the volume it belongs to, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyName {
    /// The volume.
    pub volume: VolumeId,
    /// The number.
    pub key: KeyId,
}

/// Name of a KEK as its provider knows it: printable ASCII without spaces, at most
/// [`KEK_ID_BYTES_MAX`] bytes. Begins with the provider's kind and a colon.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KekId(String);

impl KekId {
    /// The name, unless it is empty, too long or not printable.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let is_plain = name.bytes().all(|byte| byte.is_ascii_graphic());
        let fits = (1..=KEK_ID_BYTES_MAX).contains(&name.len());
        (is_plain && fits).then(|| Self(name.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KekId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a wrapped key cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WrapFormatError {
    /// Made by a newer version.
    #[error("wrapped key of version {0}; upgrade this node")]
    Version(u16),
    /// Bytes that no version of this software writes.
    #[error("damaged wrapped key: {0}")]
    Damaged(&'static str),
}

/// Why a wrapped key does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UnwrapError {
    /// Another KEK, or the wrapped key was changed.
    #[error(
        "the KEK does not open the wrapped key: it is another one, or the wrapped key was changed"
    )]
    Refused,
    /// Only the provider itself can open it.
    #[error("the key was wrapped by its provider, which alone can open it")]
    ByProvider,
}

/// How a DEK is wrapped.
#[derive(Clone, PartialEq, Eq)]
enum Body {
    Sealed {
        nonce: [u8; NONCE_BYTES],
        dek: [u8; KEY_BYTES],
        auth: Authenticator,
    },
    Provided(Vec<u8>),
}

/// A DEK that only its KEK opens. Nothing in it is secret.
#[derive(Clone, PartialEq, Eq)]
pub struct WrappedKey {
    volume: VolumeId,
    key: KeyId,
    kek: KekId,
    body: Body,
}

impl WrappedKey {
    /// Wraps a DEK under a KEK that is at hand.
    ///
    /// `nonce` is random. One KEK wraps at most 2^32 times, which random nonces of 96 bits bear (NIST
    /// SP 800-38D, 8.3).
    #[must_use]
    pub fn seal(
        kek: &KeyEncryptionKey,
        kek_id: KekId,
        dek: &DataKey,
        volume: VolumeId,
        key: KeyId,
        nonce: [u8; WRAP_NONCE_BYTES],
    ) -> Self {
        let aad = aad(1, volume, key, &kek_id);
        let mut sealed = *dek.expose(); // encrypted in place on the next line
        let auth = Cipher::new(Backend::AwsLc, kek.expose()).seal(&nonce, &aad, &mut sealed);
        let body = Body::Sealed {
            nonce,
            dek: sealed,
            auth,
        };
        Self {
            volume,
            key,
            kek: kek_id,
            body,
        }
    }

    /// What a provider made that wraps by itself; it was given [`provided_aad`] to authenticate. None
    /// when it is empty or longer than [`PROVIDED_BYTES_MAX`].
    #[must_use]
    pub fn provided(kek: KekId, volume: VolumeId, key: KeyId, bytes: Vec<u8>) -> Option<Self> {
        let fits = (1..=PROVIDED_BYTES_MAX).contains(&bytes.len());
        fits.then_some(Self {
            volume,
            key,
            kek,
            body: Body::Provided(bytes),
        })
    }

    /// Opens it with a KEK that is at hand.
    ///
    /// # Errors
    /// When it is not the KEK, the wrapped key was changed, or only the provider can open it.
    pub fn open(&self, kek: &KeyEncryptionKey) -> Result<DataKey, UnwrapError> {
        let Body::Sealed { nonce, dek, auth } = &self.body else {
            return Err(UnwrapError::ByProvider);
        };
        let aad = aad(1, self.volume, self.key, &self.kek);
        let cipher = Cipher::new(Backend::AwsLc, kek.expose());
        DataKey::try_filled(|bytes| {
            bytes.copy_from_slice(dek);
            match cipher.open(nonce, &aad, auth, bytes) {
                true => Ok(()),
                false => Err(UnwrapError::Refused),
            }
        })
    }

    /// Which DEK it is.
    #[must_use]
    pub fn name(&self) -> KeyName {
        let (volume, key) = (self.volume, self.key);
        KeyName { volume, key }
    }

    /// The volume the DEK belongs to.
    #[must_use]
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// Its number there.
    #[must_use]
    pub fn key(&self) -> KeyId {
        self.key
    }

    /// The KEK that opens it.
    #[must_use]
    pub fn kek(&self) -> &KekId {
        &self.kek
    }

    /// What the provider made, when it wraps by itself.
    #[must_use]
    pub fn provided_bytes(&self) -> Option<&[u8]> {
        match &self.body {
            Body::Provided(bytes) => Some(bytes),
            Body::Sealed { .. } => None,
        }
    }

    /// Its bytes, at most [`WRAPPED_BYTES_MAX`].
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (method, body) = match &self.body {
            Body::Sealed { nonce, dek, auth } => (1, [&nonce[..], dek, auth].concat()),
            Body::Provided(bytes) => (2, bytes.clone()),
        };
        let kek = self.kek.as_str().as_bytes();
        let mut bytes = Vec::with_capacity(HEAD_BYTES + kek.len() + body.len());
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend([method, 0]);
        bytes.extend(self.key.get().to_le_bytes());
        bytes.extend(self.volume.0.to_le_bytes());
        bytes.extend(length(kek.len()).to_le_bytes());
        bytes.extend(length(body.len()).to_le_bytes());
        bytes.extend(kek);
        bytes.extend(body);
        bytes
    }

    /// Reads what [`WrappedKey::encode`] gave. All of `bytes` must belong to it.
    ///
    /// # Errors
    /// When it is of another version or damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, WrapFormatError> {
        let damaged = WrapFormatError::Damaged;
        let (head, rest) = bytes
            .split_first_chunk::<HEAD_BYTES>()
            .ok_or(damaged("shorter than its head"))?;
        let [v0, v1, method, zero, k0, k1, k2, k3, ..] = *head;
        let version = u16::from_le_bytes([v0, v1]);
        if version != VERSION {
            return Err(WrapFormatError::Version(version));
        }
        let mut volume = [0; 16];
        volume.copy_from_slice(&head[8..24]);
        let kek_length = usize::from(u16::from_le_bytes([head[24], head[25]]));
        let body_length = usize::from(u16::from_le_bytes([head[26], head[27]]));
        if zero != 0 {
            return Err(damaged("a reserved byte is not zero"));
        }
        if rest.len() != kek_length + body_length {
            return Err(damaged("its lengths do not add up"));
        }
        let (kek, body) = rest.split_at(kek_length);
        let kek = std::str::from_utf8(kek).ok().and_then(KekId::new);
        Ok(Self {
            volume: VolumeId(u128::from_le_bytes(volume)),
            key: KeyId::new(u32::from_le_bytes([k0, k1, k2, k3])).ok_or(damaged("key number 0"))?,
            kek: kek.ok_or(damaged("the name of its KEK is not one"))?,
            body: Body::decode(method, body)?,
        })
    }
}

impl Body {
    fn decode(method: u8, bytes: &[u8]) -> Result<Self, WrapFormatError> {
        match method {
            1 => {
                let bytes = <&[u8; SEALED_BYTES]>::try_from(bytes)
                    .map_err(|_| WrapFormatError::Damaged("a sealed DEK has 60 bytes"))?;
                let (mut nonce, mut dek) = ([0; NONCE_BYTES], [0; KEY_BYTES]);
                let mut auth = [0; AUTH_BYTES];
                nonce.copy_from_slice(&bytes[..NONCE_BYTES]);
                dek.copy_from_slice(&bytes[NONCE_BYTES..NONCE_BYTES + KEY_BYTES]);
                auth.copy_from_slice(&bytes[NONCE_BYTES + KEY_BYTES..]);
                Ok(Self::Sealed { nonce, dek, auth })
            }
            2 if (1..=PROVIDED_BYTES_MAX).contains(&bytes.len()) => {
                Ok(Self::Provided(bytes.to_vec()))
            }
            2 => Err(WrapFormatError::Damaged("a provider's bytes are 1 to 256")),
            _ => Err(WrapFormatError::Damaged("no such method")),
        }
    }
}

impl fmt::Debug for WrappedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (volume, key, kek) = (self.volume, self.key, &self.kek);
        write!(f, "WrappedKey(volume {volume}, key {key}, by {kek})")
    }
}

/// What a provider that wraps by itself is to authenticate beside the DEK.
#[must_use]
pub fn provided_aad(volume: VolumeId, key: KeyId, kek: &KekId) -> Vec<u8> {
    aad(2, volume, key, kek)
}

fn aad(method: u8, volume: VolumeId, key: KeyId, kek: &KekId) -> Vec<u8> {
    let kek = kek.as_str().as_bytes();
    let mut aad = AAD_DOMAIN.to_vec();
    aad.extend(VERSION.to_le_bytes());
    aad.push(method);
    aad.extend(volume.0.to_le_bytes());
    aad.extend(key.get().to_le_bytes());
    aad.extend(length(kek.len()).to_le_bytes());
    aad.extend(kek);
    aad
}

/// A length that is known to be small.
fn length(value: usize) -> u16 {
    match u16::try_from(value) {
        Ok(value) => value,
        Err(_) => unreachable!("{value} is at most {WRAPPED_BYTES_MAX}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::tests::count_from;
    use proptest::prelude::*;

    const VOLUME: VolumeId = VolumeId(0x0011_2233_4455_4677_8899_aabb_ccdd_eeff);

    fn kek(first: u8) -> KeyEncryptionKey {
        KeyEncryptionKey::filled(count_from(first))
    }

    fn dek() -> DataKey {
        DataKey::filled(count_from(0))
    }

    fn wrapped() -> WrappedKey {
        let id = KekId::new("file:0123456789abcdef").unwrap();
        let nonce = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
        WrappedKey::seal(&kek(100), id, &dek(), VOLUME, KeyId::new(3).unwrap(), nonce)
    }

    /// Computed apart with Python's `cryptography`.
    #[test]
    fn a_key_is_wrapped_as_the_format_says() {
        let bytes = wrapped().encode();
        let hex: String = bytes[28 + 21 + 12..]
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(
            hex,
            "9faa3a4fb948c7ee951a94c39a9786bdf9062f833916c632df0bf3104ff15ffff\
             69b3fc764ab655de0c6f4ae42f1f994"
        );
        assert_eq!(bytes[..8], [1, 0, 1, 0, 3, 0, 0, 0]);
        assert_eq!(bytes[8..24], VOLUME.0.to_le_bytes());
        assert_eq!(bytes[24..28], [21, 0, 60, 0]);
    }

    #[test]
    fn the_kek_opens_it_and_no_other() {
        let wrapped = wrapped();
        assert_eq!(wrapped.open(&kek(100)), Ok(dek()));
        assert_eq!(wrapped.open(&kek(101)), Err(UnwrapError::Refused));
        let shown = format!("{wrapped:?}");
        assert!(shown.contains("file:0123456789abcdef") && !shown.contains("170"));
    }

    #[test]
    fn it_cannot_be_moved_to_another_volume_key_or_kek() {
        let other = KekId::new("file:0123456789abcdee").unwrap();
        for change in [
            |w: &mut WrappedKey, _: &KekId| w.volume = VolumeId(1),
            |w: &mut WrappedKey, _: &KekId| w.key = KeyId::new(4).unwrap(),
            |w: &mut WrappedKey, other: &KekId| w.kek = other.clone(),
        ] {
            let mut moved = wrapped();
            change(&mut moved, &other);
            assert_eq!(moved.open(&kek(100)), Err(UnwrapError::Refused));
        }
    }

    #[test]
    fn any_changed_bit_is_refused_or_told() {
        let bytes = wrapped().encode();
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            if let Ok(decoded) = WrappedKey::decode(&changed) {
                assert_eq!(
                    decoded.open(&kek(100)).err(),
                    Some(UnwrapError::Refused),
                    "bit {bit}"
                );
            }
        }
    }

    #[test]
    fn every_shorter_or_longer_encoding_is_refused() {
        let mut bytes = wrapped().encode();
        for length in 0..bytes.len() {
            assert!(WrappedKey::decode(&bytes[..length]).is_err());
        }
        bytes.push(0);
        assert!(WrappedKey::decode(&bytes).is_err());
    }

    #[test]
    fn what_a_provider_wrapped_only_it_opens() {
        let id = KekId::new("vault:transit/esker:v3").unwrap();
        let key = KeyId::new(1).unwrap();
        let text = b"vault:v3:abcd".to_vec();
        let wrapped = WrappedKey::provided(id.clone(), VOLUME, key, text.clone()).unwrap();
        let again = WrappedKey::decode(&wrapped.encode()).unwrap();
        assert_eq!(again, wrapped);
        assert_eq!(again.provided_bytes(), Some(&text[..]));
        assert_eq!(again.open(&kek(100)), Err(UnwrapError::ByProvider));
        assert_ne!(
            provided_aad(VOLUME, key, &id),
            aad(1, VOLUME, key, &id),
            "one method cannot pass for the other"
        );
        for length in [0, PROVIDED_BYTES_MAX + 1] {
            assert!(WrappedKey::provided(id.clone(), VOLUME, key, vec![1; length]).is_none());
        }
        let longest = KekId::new(&"k".repeat(KEK_ID_BYTES_MAX)).unwrap();
        let most = vec![1; PROVIDED_BYTES_MAX];
        let longest = WrappedKey::provided(longest, VOLUME, key, most).unwrap();
        assert_eq!(longest.encode().len(), WRAPPED_BYTES_MAX);
    }

    #[test]
    fn names_of_keks_are_plain() {
        for name in ["", "a b", "a\n", "ä", &"k".repeat(KEK_ID_BYTES_MAX + 1)] {
            assert_eq!(KekId::new(name), None, "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn a_wrapped_key_comes_back_from_its_encoding(
            first: u8,
            nonce: [u8; WRAP_NONCE_BYTES],
            volume: u128,
            number in 1u32..,
            name in "[!-~]{1,128}",
            provided in proptest::option::of(proptest::collection::vec(any::<u8>(), 1..256)),
        ) {
            let (id, key) = (KekId::new(&name).unwrap(), KeyId::new(number).unwrap());
            let volume = VolumeId(volume);
            let wrapped = match provided {
                Some(bytes) => WrappedKey::provided(id, volume, key, bytes).unwrap(),
                None => WrappedKey::seal(&kek(first), id, &dek(), volume, key, nonce),
            };
            let again = WrappedKey::decode(&wrapped.encode());
            prop_assert_eq!(again.as_ref(), Ok(&wrapped));
            if wrapped.provided_bytes().is_none() {
                prop_assert_eq!(wrapped.open(&kek(first)), Ok(dek()));
            }
        }

        #[test]
        fn no_bytes_make_decoding_panic(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
            if let Ok(decoded) = WrappedKey::decode(&bytes) {
                prop_assert_eq!(decoded.encode(), bytes);
            }
        }
    }
}
