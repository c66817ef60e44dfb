//! Sealing and opening one block.
//!
//! - **Key**: HKDF-SHA256(DEK; salt of the epoch; "esker block key 1", volume, epoch). An epoch's
//!   128-bit salt is random and lies in the log entry that opens the epoch. An epoch that is opened
//!   again from an older image of a store gets another salt, so another key.
//! - **Nonce**, 96 bits: four zero bytes, then the block's stamp, big-endian. A stamp's counter is
//!   never resumed within an epoch, so a nonce is never used twice with a key. At most 2^32 blocks
//!   are sealed under one key.
//! - **AAD**, 28 bytes, little-endian: format (4), the volume that wrote the block (16), its LBA (8).
//!
//! The stored bytes are as many as the block's; the tag, of 96 bits, is kept elsewhere, with the pointer
//! to them.

use crate::aead::{Backend, BlockTag, Cipher, NONCE_BYTES, TAG_BYTES};
use crate::derive;
use crate::secret::DataKey;
use esker_base::{Epoch, Lba, Stamp, VolumeId, BLOCK_SIZE};
use std::fmt;
use thiserror::Error;

const KEY_INFO: &[u8] = b"esker block key 1";
const AAD_BYTES: usize = 28;

/// What a block's sealed bytes are, so that one kind never passes for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum BlockFormat {
    /// The block as the client wrote it: 4096 bytes.
    Whole = 1,
}

/// A block that is not what was sealed at this place, under this stamp, with this key: changed,
/// moved, replaced, or of another key. Which of them cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the block is not what was written there: changed, moved, replaced, or sealed under another key")]
pub struct Refused;

/// The key of one epoch of one volume, ready to use.
pub struct BlockKey {
    volume: VolumeId,
    epoch: Epoch,
    cipher: Cipher,
}

impl BlockKey {
    /// The block key of an epoch: `dek` is the DEK of `volume` that the epoch was opened under, `salt`
    /// the one its entry carries.
    #[must_use]
    pub fn derive(
        backend: Backend,
        dek: &DataKey,
        volume: VolumeId,
        epoch: Epoch,
        salt: u128,
    ) -> Self {
        let info: [&[u8]; 3] = [KEY_INFO, &volume.0.to_le_bytes(), &epoch.0.to_le_bytes()];
        let key = derive::key(&salt.to_le_bytes(), dek.expose(), &info);
        Self {
            volume,
            epoch,
            cipher: Cipher::new(backend, &key),
        }
    }

    /// The epoch whose blocks this key seals.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Encrypts a block in place and returns its tag. A stamp is used once: a block that has
    /// to be sealed again, whatever its content, takes a new one.
    ///
    /// # Panics
    /// When `block` is not a whole block, or the stamp is not one of this key's epoch: both would be
    /// defects of the caller, and the second could spend a nonce twice.
    #[must_use]
    pub fn seal(&self, lba: Lba, stamp: Stamp, block: &mut [u8]) -> BlockTag {
        assert_eq!(block.len(), BLOCK_SIZE, "a block is sealed whole");
        assert!(
            stamp.epoch() == self.epoch && self.epoch != Epoch(0),
            "stamp {stamp} is not of epoch {}",
            self.epoch.0
        );
        let aad = self.aad(BlockFormat::Whole, lba);
        let auth = self.cipher.seal(&nonce(stamp), &aad, block);
        let mut tag = [0; TAG_BYTES];
        tag.copy_from_slice(&auth[..TAG_BYTES]);
        tag
    }

    /// Decrypts a block in place.
    ///
    /// # Errors
    /// When it is not what was sealed; `block` is zeros then.
    pub fn open(
        &self,
        lba: Lba,
        stamp: Stamp,
        tag: &BlockTag,
        block: &mut [u8],
    ) -> Result<(), Refused> {
        let aad = self.aad(BlockFormat::Whole, lba);
        let whole = <&mut [u8; BLOCK_SIZE]>::try_from(&mut *block).ok();
        let Some(whole) = whole.filter(|_| stamp.epoch() == self.epoch) else {
            block.fill(0);
            return Err(Refused);
        };
        match self.cipher.open_short(&nonce(stamp), &aad, tag, whole) {
            true => Ok(()),
            false => Err(Refused),
        }
    }

    fn aad(&self, format: BlockFormat, lba: Lba) -> [u8; AAD_BYTES] {
        let mut aad = [0; AAD_BYTES];
        aad[..4].copy_from_slice(&(format as u32).to_le_bytes());
        aad[4..20].copy_from_slice(&self.volume.0.to_le_bytes());
        aad[20..].copy_from_slice(&lba.0.to_le_bytes());
        aad
    }
}

impl fmt::Debug for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (volume, epoch) = (self.volume, self.epoch.0);
        write!(f, "BlockKey(volume {volume}, epoch {epoch}, secret)")
    }
}

/// Four zero bytes and the stamp.
fn nonce(stamp: Stamp) -> [u8; NONCE_BYTES] {
    let mut nonce = [0; NONCE_BYTES];
    nonce[4..].copy_from_slice(&stamp.0.to_be_bytes());
    nonce
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aead::tests::BOTH;
    use crate::secret::tests::count_from;
    use aws_lc_rs::digest::{digest, SHA256};
    use proptest::prelude::*;

    const VOLUME: VolumeId = VolumeId(0x0011_2233_4455_4677_8899_aabb_ccdd_eeff);
    const SALT: u128 = 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100;

    fn dek(first: u8) -> DataKey {
        DataKey::filled(count_from(first))
    }

    fn key(backend: Backend) -> BlockKey {
        BlockKey::derive(backend, &dek(0), VOLUME, Epoch(7), SALT)
    }

    fn content() -> Vec<u8> {
        (0..BLOCK_SIZE)
            .map(|i| (i * 7 + (i >> 8)).to_le_bytes()[0])
            .collect()
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The construction as it is written down, computed apart with Python's `cryptography` and `hmac`:
    /// what is on disks must stay readable.
    #[test]
    fn a_block_is_sealed_as_the_format_says() {
        for backend in BOTH {
            let mut block = content();
            let auth = key(backend).seal(Lba(0x1_2345_6789), Stamp::new(Epoch(7), 42), &mut block);
            assert_eq!(hex(&auth), "164a35cfbe8f76340bcf9111");
            assert_eq!(
                hex(digest(&SHA256, &block).as_ref()),
                "3c00d8192dee81eec8ce3efa01d7036e71e57e1dfe316f993d6539eb19335842"
            );
        }
    }

    #[test]
    fn a_block_opens_where_it_was_written_and_nowhere_else() {
        let (lba, stamp) = (Lba(10), Stamp::new(Epoch(7), 1));
        for (backend, other) in [(BOTH[0], BOTH[1]), (BOTH[1], BOTH[0])] {
            let mut sealed = content();
            let auth = key(backend).seal(lba, stamp, &mut sealed);
            let open = |key: &BlockKey, lba, stamp, auth: &BlockTag| {
                let mut block = sealed.clone();
                let opened = key.open(lba, stamp, auth, &mut block);
                let expected = if opened.is_ok() {
                    content()
                } else {
                    vec![0; BLOCK_SIZE]
                };
                assert!(block == expected);
                opened
            };
            let own = key(other);
            assert_eq!(open(&own, lba, stamp, &auth), Ok(()));
            assert_eq!(open(&own, Lba(11), stamp, &auth), Err(Refused));
            let later = Stamp::new(Epoch(7), 2);
            assert_eq!(open(&own, lba, later, &auth), Err(Refused));
            let elsewhere = Stamp::new(Epoch(8), 1);
            assert_eq!(open(&own, lba, elsewhere, &auth), Err(Refused));
            assert_eq!(open(&own, lba, stamp, &[0; TAG_BYTES]), Err(Refused));
            let derive = |first, volume, epoch, salt| {
                BlockKey::derive(other, &dek(first), volume, Epoch(epoch), salt)
            };
            for key in [
                derive(1, VOLUME, 7, SALT),
                derive(0, VolumeId(VOLUME.0 + 1), 7, SALT),
                derive(0, VOLUME, 7, SALT + 1),
            ] {
                assert_eq!(open(&key, lba, stamp, &auth), Err(Refused));
            }
            // The same stamp under the key of another epoch number.
            let mut block = sealed.clone();
            let mut key = derive(0, VOLUME, 8, SALT);
            key.epoch = Epoch(7);
            assert_eq!(key.open(lba, stamp, &auth, &mut block), Err(Refused));
        }
    }

    #[test]
    fn a_short_block_is_refused() {
        let mut block = vec![9; BLOCK_SIZE - 1];
        let stamp = Stamp::new(Epoch(7), 1);
        let opened = key(Backend::AwsLc).open(Lba(0), stamp, &[0; TAG_BYTES], &mut block);
        assert_eq!(opened, Err(Refused));
        assert!(block.iter().all(|b| *b == 0));
    }

    #[test]
    #[should_panic(expected = "is not of epoch 7")]
    fn a_stamp_of_another_epoch_is_never_sealed() {
        _ = key(Backend::AwsLc).seal(Lba(0), Stamp::new(Epoch(6), 1), &mut content());
    }

    /// Zeros under neighbouring stamps and at neighbouring places have nothing in common.
    #[test]
    fn equal_blocks_do_not_look_equal() {
        let key = key(Backend::AwsLc);
        let mut seen = std::collections::HashSet::new();
        for n in 0..64u32 {
            let mut block = vec![0; BLOCK_SIZE];
            let stamp = Stamp::new(Epoch(7), n);
            _ = key.seal(Lba(u64::from(n) % 2), stamp, &mut block);
            for cell in block.chunks(16) {
                assert!(seen.insert(cell.to_vec()), "16 bytes come twice");
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens(
            content in proptest::collection::vec(any::<u8>(), BLOCK_SIZE),
            lba: u64,
            counter: u32,
            salt: u128,
            first in any::<u8>(),
        ) {
            let stamp = Stamp::new(Epoch(9), counter);
            let [one, other] = BOTH.map(|b| BlockKey::derive(b, &dek(first), VOLUME, Epoch(9), salt));
            let mut block = content.clone();
            let auth = one.seal(Lba(lba), stamp, &mut block);
            prop_assert!(block != content);
            prop_assert_eq!(other.open(Lba(lba), stamp, &auth, &mut block), Ok(()));
            prop_assert!(block == content);
        }
    }
}
