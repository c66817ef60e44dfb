//! The keyring file: its bytes, and nothing of files.
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 8 | magic | `ESKERKEY` |
//! | 8 | 4 | version | 1 |
//! | 12 | 4 | crc | CRC-32 of the file with this field zero |
//! | 16 | 4 | protection | 0 none, 1 a passphrase through argon2id |
//! | 20 | 4 | memory | argon2id: KiB |
//! | 24 | 4 | passes | argon2id: rounds |
//! | 28 | 4 | lanes | argon2id: parallelism |
//! | 32 | 16 | salt | argon2id |
//! | 48 | 4 | count | keys, 1 to 1024, oldest first |
//! | 52 | 4 | | zero |
//! | 56 | 80 | keys | of each: id (8), created in µs since the Unix epoch (8), nonce (12), key (32), tag (16), four zero bytes |
//!
//! Little-endian. Under a passphrase a key is sealed with AES-256-GCM; authenticated beside it: "esker
//! keyring", bytes 16 to 48 of the file, the key's id and date. Without one, nonce and tag are zero and
//! the key lies open: the file's permissions are all that protects it.

use crate::error::KeyError;
use crate::random;
use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce, UnboundKey, AES_256_GCM};
use esker_base::checksum::crc32;
use esker_crypto::{KekId, KeyEncryptionKey, KEY_BYTES};
use std::fmt;
use zeroize::Zeroizing;

/// Keys of one keyring: rotations.
pub const KEYS_MAX: usize = 1024;
/// Longest file, in bytes.
pub const BYTES_MAX: usize = HEAD_BYTES + KEYS_MAX * ENTRY_BYTES;
/// What the names of its keys begin with.
pub const KIND: &str = "file";

const MAGIC: &[u8; 8] = b"ESKERKEY";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 56;
const ENTRY_BYTES: usize = 80;
const SALT_BYTES: usize = 16;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
const AAD_DOMAIN: &[u8] = b"esker keyring";
/// Most that a file may ask argon2id for: a forged one must not take the machine.
const MEMORY_KIB_MAX: u32 = 1 << 20;
const PASSES_MAX: u32 = 64;
const LANES_MAX: u32 = 16;

/// How a key is made of a passphrase: argon2id (RFC 9106).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kdf {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    salt: [u8; SALT_BYTES],
}

impl Kdf {
    /// What new keyrings use: 64 MiB, three passes, four lanes (RFC 9106, second recommendation), and a
    /// salt of their own.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn new() -> Result<Self, KeyError> {
        Ok(Self {
            memory_kib: 64 << 10,
            passes: 3,
            lanes: 4,
            salt: random::array()?,
        })
    }

    /// The key that a passphrase gives. Takes the time and memory that the parameters say.
    ///
    /// # Errors
    /// When the parameters are out of bounds.
    pub fn key(&self, passphrase: &[u8]) -> Result<KeyEncryptionKey, KeyError> {
        let wrong = |e| KeyError::damaged(format!("the keyring's argon2id parameters: {e}"));
        let (memory, passes, lanes) = (self.memory_kib, self.passes, self.lanes);
        let params = Params::new(memory, passes, lanes, Some(KEY_BYTES)).map_err(wrong)?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        KeyEncryptionKey::try_filled(|key| {
            let hashed = argon2.hash_password_into(passphrase, &self.salt, key);
            hashed.map_err(wrong)
        })
    }
}

/// A key as the file holds it.
struct Entry {
    id: u64,
    created: u64,
    nonce: [u8; NONCE_BYTES],
    key: Zeroizing<[u8; KEY_BYTES]>,
    tag: [u8; TAG_BYTES],
}

/// A keyring as the file holds it: under its passphrase, when it has one.
pub struct Sealed {
    kdf: Option<Kdf>,
    entries: Vec<Entry>,
}

/// One KEK of a keyring.
pub struct Kek {
    /// Its number: random.
    pub id: u64,
    /// When it was made, in µs since the Unix epoch.
    pub created_us: u64,
    /// The key.
    pub key: KeyEncryptionKey,
}

/// A keyring that is open. The newest key is the last.
pub struct Keyring {
    kdf: Option<Kdf>,
    keys: Vec<Kek>,
}

/// Why a keyring does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotOpened {
    /// No key opens: the passphrase is another one.
    WrongPassphrase,
    /// Some open and some do not.
    Damaged,
    /// It has a passphrase, and none was given.
    NeedsPassphrase,
}

impl Sealed {
    /// Reads a file.
    ///
    /// # Errors
    /// What is wrong with it, without its name.
    pub fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let head = bytes.get(..HEAD_BYTES).ok_or("it is too short")?;
        let number = |at: usize| {
            let mut number = [0; 4];
            number.copy_from_slice(&head[at..at + 4]);
            u32::from_le_bytes(number)
        };
        if head[..8] != *MAGIC {
            return Err("it is not a keyring");
        }
        if number(8) != VERSION {
            return Err("it was written by a newer version of Esker");
        }
        let mut sealed = Zeroizing::new(bytes.to_vec());
        sealed[12..16].fill(0);
        if crc32(&sealed) != number(12) {
            return Err("its checksum does not match");
        }
        let mut salt = [0; SALT_BYTES];
        salt.copy_from_slice(&head[32..48]);
        let kdf = Kdf {
            memory_kib: number(20),
            passes: number(24),
            lanes: number(28),
            salt,
        };
        let is_bounded = (8..=MEMORY_KIB_MAX).contains(&kdf.memory_kib)
            && (1..=PASSES_MAX).contains(&kdf.passes)
            && (1..=LANES_MAX).contains(&kdf.lanes)
            && kdf.memory_kib >= 8 * kdf.lanes;
        let kdf = match number(16) {
            0 if head[20..48].iter().all(|byte| *byte == 0) => None,
            1 if is_bounded => Some(kdf),
            _ => return Err("its argon2id parameters are out of bounds"),
        };
        let count = esker_base::num::to_usize(number(48).into());
        let entries = &bytes[HEAD_BYTES..];
        if !(1..=KEYS_MAX).contains(&count) || entries.len() != count * ENTRY_BYTES {
            return Err("its length does not match its number of keys");
        }
        let entries: Vec<Entry> = entries.chunks(ENTRY_BYTES).map(Entry::decode).collect();
        let is_clean = number(52) == 0
            && bytes[HEAD_BYTES..]
                .chunks(ENTRY_BYTES)
                .all(|e| e[76..] == [0; 4])
            && (kdf.is_some() || entries.iter().all(Entry::is_open));
        match is_clean {
            true => Ok(Self { kdf, entries }),
            false => Err("its reserved bytes are not zero"),
        }
    }

    /// Its bytes again.
    #[must_use]
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let length = HEAD_BYTES + self.entries.len() * ENTRY_BYTES;
        // All of it at once: growing would leave copies of keys in freed memory.
        let mut bytes = Zeroizing::new(Vec::with_capacity(length));
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&protection(self.kdf.as_ref()));
        let count = esker_base::num::to_u32_saturating(self.entries.len());
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        for entry in &self.entries {
            bytes.extend_from_slice(&entry.id.to_le_bytes());
            bytes.extend_from_slice(&entry.created.to_le_bytes());
            bytes.extend_from_slice(&entry.nonce);
            bytes.extend_from_slice(&entry.key[..]);
            bytes.extend_from_slice(&entry.tag);
            bytes.extend_from_slice(&[0; 4]);
        }
        let crc = crc32(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// How its passphrase becomes a key; none when it has no passphrase.
    #[must_use]
    pub fn kdf(&self) -> Option<&Kdf> {
        self.kdf.as_ref()
    }

    /// Opens it, with the key its [`Kdf`] gave if it has a passphrase.
    ///
    /// # Errors
    /// When the passphrase is missing or wrong, or the keys are damaged.
    pub fn open(&self, passphrase: Option<&KeyEncryptionKey>) -> Result<Keyring, NotOpened> {
        let protection = protection(self.kdf.as_ref());
        let cipher = match (&self.kdf, passphrase) {
            (Some(_), Some(key)) => Some(cipher(key)),
            (Some(_), None) => return Err(NotOpened::NeedsPassphrase),
            (None, _) => None,
        };
        let keys = self.entries.iter().map(|entry| {
            let key = KeyEncryptionKey::try_filled(|key| {
                key.copy_from_slice(&entry.key[..]);
                let Some(cipher) = &cipher else { return Ok(()) };
                let nonce = Nonce::assume_unique_for_key(entry.nonce);
                let aad = Aad::from(aad(&protection, entry.id, entry.created));
                let opened = cipher.open_in_place_separate_tag(nonce, aad, &entry.tag, key);
                opened.map(|_| ()).map_err(|_| ())
            });
            key.map(|key| Kek {
                id: entry.id,
                created_us: entry.created,
                key,
            })
        });
        let opened: Vec<_> = keys.collect();
        if opened.iter().all(Result::is_err) {
            return Err(NotOpened::WrongPassphrase);
        }
        let keys: Result<Vec<Kek>, ()> = opened.into_iter().collect();
        Ok(Keyring {
            kdf: self.kdf,
            keys: keys.map_err(|()| NotOpened::Damaged)?,
        })
    }
}

impl Entry {
    /// From its 80 bytes.
    fn decode(bytes: &[u8]) -> Self {
        let number = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(number)
        };
        let (mut nonce, mut tag) = ([0; NONCE_BYTES], [0; TAG_BYTES]);
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        nonce.copy_from_slice(&bytes[16..28]);
        key.copy_from_slice(&bytes[28..60]);
        tag.copy_from_slice(&bytes[60..76]);
        Self {
            id: number(0),
            created: number(8),
            nonce,
            key,
            tag,
        }
    }

    fn is_open(&self) -> bool {
        self.nonce == [0; NONCE_BYTES] && self.tag == [0; TAG_BYTES]
    }
}

impl Keyring {
    /// A keyring without keys, under a passphrase if `kdf` is given.
    #[must_use]
    pub fn new(kdf: Option<Kdf>) -> Self {
        Self {
            kdf,
            keys: Vec::new(),
        }
    }

    /// Adds a new key, which is the newest then.
    ///
    /// # Errors
    /// When the system gives no randomness, or there are [`KEYS_MAX`] keys.
    pub fn add(&mut self, created_us: u64) -> Result<(), KeyError> {
        if self.keys.len() >= KEYS_MAX {
            return Err(KeyError::config(format!(
                "the keyring has {KEYS_MAX} keys, as many as it takes; move to another keyring"
            )));
        }
        let id = u64::from_le_bytes(random::array()?);
        let key = random::key_encryption_key()?;
        self.keys.push(Kek {
            id,
            created_us,
            key,
        });
        Ok(())
    }

    /// The newest key.
    #[must_use]
    pub fn newest(&self) -> Option<&Kek> {
        self.keys.last()
    }

    /// The key with this name.
    #[must_use]
    pub fn find(&self, name: &KekId) -> Option<&Kek> {
        let mut keys = self.keys.iter();
        keys.find(|kek| kek.name().as_ref() == Some(name))
    }

    /// How its passphrase becomes a key; none when it has no passphrase.
    #[must_use]
    pub fn kdf(&self) -> Option<&Kdf> {
        self.kdf.as_ref()
    }

    /// All of them, oldest first.
    #[must_use]
    pub fn keys(&self) -> &[Kek] {
        &self.keys
    }

    /// As a file holds it; `passphrase` is the key that its [`Kdf`] gave, if it has one.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn seal(&self, passphrase: Option<&KeyEncryptionKey>) -> Result<Sealed, KeyError> {
        let protection = protection(self.kdf.as_ref());
        let cipher = match (&self.kdf, passphrase) {
            (Some(_), Some(key)) => Some(cipher(key)),
            (Some(_), None) => return Err(KeyError::config("the keyring needs its passphrase")),
            (None, _) => None,
        };
        let mut entries = Vec::with_capacity(self.keys.len());
        for kek in &self.keys {
            let mut key = Zeroizing::new(*kek.key.expose());
            let (mut nonce, mut tag) = ([0; NONCE_BYTES], [0; TAG_BYTES]);
            if let Some(cipher) = &cipher {
                nonce = random::array()?;
                let aad = Aad::from(aad(&protection, kek.id, kek.created_us));
                let unique = Nonce::assume_unique_for_key(nonce);
                match cipher.seal_in_place_separate_tag(unique, aad, &mut key[..]) {
                    Ok(made) => tag.copy_from_slice(made.as_ref()),
                    Err(_) => unreachable!("a key is not too long to be sealed"),
                }
            }
            entries.push(Entry {
                id: kek.id,
                created: kek.created_us,
                nonce,
                key,
                tag,
            });
        }
        Ok(Sealed {
            kdf: self.kdf,
            entries,
        })
    }
}

impl Kek {
    /// Its name: `file:` and its number.
    #[must_use]
    pub fn name(&self) -> Option<KekId> {
        KekId::new(&format!("{KIND}:{:016x}", self.id))
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({} keys)", self.keys.len())
    }
}

fn cipher(key: &KeyEncryptionKey) -> LessSafeKey {
    match UnboundKey::new(&AES_256_GCM, key.expose()) {
        Ok(key) => LessSafeKey::new(key),
        Err(_) => unreachable!("the key has {KEY_BYTES} bytes"),
    }
}

/// Bytes 16 to 48 of a file.
fn protection(kdf: Option<&Kdf>) -> [u8; 32] {
    let mut bytes = [0; 32];
    if let Some(kdf) = kdf {
        let numbers = [1, kdf.memory_kib, kdf.passes, kdf.lanes];
        for (at, number) in bytes.chunks_mut(4).zip(numbers) {
            at.copy_from_slice(&number.to_le_bytes());
        }
        bytes[16..].copy_from_slice(&kdf.salt);
    }
    bytes
}

fn aad(protection: &[u8; 32], id: u64, created: u64) -> Vec<u8> {
    let (id, created) = (id.to_le_bytes(), created.to_le_bytes());
    [AAD_DOMAIN, protection, &id, &created].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Parameters that cost nothing.
    fn cheap() -> Kdf {
        Kdf {
            memory_kib: 8,
            passes: 1,
            lanes: 1,
            salt: [5; SALT_BYTES],
        }
    }

    fn ring(kdf: Option<Kdf>, keys: u64) -> Keyring {
        let mut ring = Keyring::new(kdf);
        for n in 0..keys {
            ring.add(n).unwrap();
        }
        ring
    }

    fn same(a: &Keyring, b: &Keyring) -> bool {
        let parts = |ring: &Keyring| -> Vec<_> {
            let keys = ring.keys.iter();
            keys.map(|k| (k.id, k.created_us, *k.key.expose()))
                .collect()
        };
        parts(a) == parts(b)
    }

    /// RFC 9106, 5.3, is with a secret and data that nothing here uses; this one was computed apart, with
    /// argon2-cffi 25.1 over the reference implementation in C.
    #[test]
    fn a_passphrase_becomes_the_key_that_argon2id_gives() {
        let kdf = Kdf {
            memory_kib: 256,
            passes: 2,
            lanes: 2,
            salt: *b"0123456789abcdef",
        };
        let key = kdf.key(b"correct horse").unwrap();
        let hex: String = key.expose().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "f86386289bc8a13125f754c2804d3202b984a30f34ada2e4c4e5cf71e35847d1"
        );
    }

    #[test]
    fn a_keyring_comes_back_with_and_without_a_passphrase() {
        for kdf in [None, Some(cheap())] {
            let key = kdf.map(|kdf| kdf.key(b"secret").unwrap());
            let ring = ring(kdf, 3);
            let bytes = ring.seal(key.as_ref()).unwrap().encode();
            let again = Sealed::decode(&bytes).unwrap();
            assert_eq!(again.kdf(), kdf.as_ref());
            let again = again.open(key.as_ref()).unwrap();
            assert!(same(&ring, &again));
            let newest = ring.newest().and_then(Kek::name).unwrap();
            assert_eq!(again.find(&newest).unwrap().created_us, 2);
        }
    }

    #[test]
    fn under_a_passphrase_no_key_lies_open() {
        let key = cheap().key(b"secret").unwrap();
        let ring = ring(Some(cheap()), 2);
        let bytes = ring.seal(Some(&key)).unwrap().encode();
        for kek in ring.keys() {
            let plain = kek.key.expose();
            assert!(!bytes.windows(8).any(|w| plain.windows(8).any(|p| p == w)));
        }
    }

    #[test]
    fn a_wrong_passphrase_is_told_from_damage() {
        let (right, wrong) = (
            cheap().key(b"secret").unwrap(),
            cheap().key(b"Secret").unwrap(),
        );
        let ring = ring(Some(cheap()), 2);
        let mut sealed = ring.seal(Some(&right)).unwrap();
        assert_eq!(
            sealed.open(Some(&wrong)).err(),
            Some(NotOpened::WrongPassphrase)
        );
        assert_eq!(sealed.open(None).err(), Some(NotOpened::NeedsPassphrase));
        sealed.entries[1].key[0] ^= 1;
        assert_eq!(sealed.open(Some(&right)).err(), Some(NotOpened::Damaged));
        sealed.entries[1].key[0] ^= 1;
        sealed.entries[1].created += 1;
        assert_eq!(sealed.open(Some(&right)).err(), Some(NotOpened::Damaged));
    }

    #[test]
    fn any_changed_bit_is_noticed() {
        let bytes = ring(None, 1).seal(None).unwrap().encode();
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(Sealed::decode(&changed).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn parameters_that_would_take_the_machine_are_refused() {
        let greedy = [
            Kdf {
                memory_kib: MEMORY_KIB_MAX + 1,
                ..cheap()
            },
            Kdf {
                passes: PASSES_MAX + 1,
                ..cheap()
            },
            Kdf {
                lanes: LANES_MAX + 1,
                memory_kib: 4096,
                ..cheap()
            },
            Kdf {
                lanes: 2,
                ..cheap()
            },
        ];
        let key = cheap().key(b"secret").unwrap();
        for kdf in greedy {
            let bytes = ring(Some(kdf), 1).seal(Some(&key)).unwrap().encode();
            assert!(Sealed::decode(&bytes).is_err(), "{kdf:?}");
        }
    }

    #[test]
    fn a_full_keyring_says_so() {
        let mut full = ring(None, 1024);
        assert!(full.add(0).is_err());
        let bytes = full.seal(None).unwrap().encode();
        assert_eq!(bytes.len(), BYTES_MAX);
        assert!(Sealed::decode(&bytes).is_ok());
    }

    proptest! {
        #[test]
        fn no_bytes_make_decoding_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
            kind in 0u32..3,
            count in 0u32..4,
        ) {
            if bytes.len() >= HEAD_BYTES {
                bytes[..8].copy_from_slice(MAGIC);
                bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
                bytes[12..16].fill(0);
                bytes[16..20].copy_from_slice(&kind.to_le_bytes());
                bytes[48..52].copy_from_slice(&count.to_le_bytes());
                let crc = crc32(&bytes);
                bytes[12..16].copy_from_slice(&crc.to_le_bytes());
            }
            if let Ok(sealed) = Sealed::decode(&bytes) {
                prop_assert_eq!(&sealed.encode()[..], &bytes[..]);
            }
        }
    }
}
