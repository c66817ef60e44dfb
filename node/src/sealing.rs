//! Blocks of encrypted volumes on their way: sealed before they are proposed, opened after they are read.
//!
//! A block is sealed under the stamp that its proposal takes. A stamp is taken once: what is proposed again,
//! for whatever reason, takes another one, and is sealed anew.

use crate::node::Node;
use bytes::Bytes;
use esker_base::checksum::crc32;
use esker_base::{AlignedBuf, GroupId, Lba, Stamp, BLOCK_SIZE};
use esker_crypto::{BlockKey, EpochId};
use esker_engine::event::ReadPiece;
use esker_engine::format::operation::{BlockInfo, TAG_BYTES};
use esker_engine::ReadError;

/// The key of an epoch at work.
pub(crate) struct Sealer<'a> {
    pub key: &'a BlockKey,
    pub epoch: EpochId,
    /// Where every use of a stamp is noted, when somebody wants to know.
    pub seals: Option<&'a mut Vec<(EpochId, Stamp)>>,
}

impl Sealer<'_> {
    /// Seals blocks from `first` on, the first one under `stamp` and each further one under the next.
    pub fn seal(&mut self, first: Lba, stamp: Stamp, plain: &[u8]) -> (Vec<BlockInfo>, Bytes) {
        // Copied block by block: what is sealed then, and summed up, is in the cache.
        let mut sealed = AlignedBuf::to_overwrite(plain.len());
        let (mut lba, mut stamp) = (first, stamp);
        let mut blocks = Vec::with_capacity(plain.len() / BLOCK_SIZE);
        for (block, plain) in sealed.chunks_mut(BLOCK_SIZE).zip(plain.chunks(BLOCK_SIZE)) {
            block.copy_from_slice(plain);
            if let Some(seals) = &mut self.seals {
                seals.push((self.epoch, stamp));
            }
            let tag = self.key.seal(lba, stamp, block);
            blocks.push(BlockInfo::sealed(crc32(block), &tag));
            (lba.0, stamp.0) = (lba.0 + 1, stamp.0 + 1);
        }
        (blocks, sealed.freeze())
    }
}

impl Node {
    /// Opens what of a read is sealed.
    pub(crate) fn open_read(
        &mut self,
        group: GroupId,
        pieces: Vec<ReadPiece>,
    ) -> Result<Vec<ReadPiece>, ReadError> {
        let is_plain = self.volumes.get(&group).is_none_or(|v| v.key_id == 0);
        if is_plain && !pieces.iter().any(is_sealed) {
            return Ok(pieces);
        }
        let pieces = pieces.into_iter().map(|piece| match piece {
            ReadPiece::Sealed { lba, data, seals } => {
                let opened = self.open_blocks(group, Lba(lba), &data, &seals);
                opened.map(ReadPiece::Data)
            }
            // Nothing but zeros is in such a volume without a seal: somebody has changed the map.
            ReadPiece::Data(_) => Err(ReadError::Unsealed),
            zeros @ ReadPiece::Zeros(_) => Ok(zeros),
        });
        let opened: Result<Vec<ReadPiece>, ReadError> = pieces.collect();
        // Whether one is missing where it should be, `without_key` tells.
        let is_refused = matches!(&opened, Err(error) if !matches!(error, ReadError::NoKey(_)));
        self.keys.refused += u64::from(is_refused);
        opened
    }

    /// A read ends with an error, and nobody else is asked.
    pub(crate) fn without_key(&mut self, error: &ReadError) {
        self.keys.refused += u64::from(matches!(error, ReadError::NoKey(_)));
    }

    pub(crate) fn open_blocks(
        &mut self,
        group: GroupId,
        first: Lba,
        sealed: &[u8],
        seals: &[(Stamp, [u8; TAG_BYTES])],
    ) -> Result<Bytes, ReadError> {
        let whole = sealed.len() == seals.len() * BLOCK_SIZE;
        assert!(whole, "a seal for each block");
        let mut data = AlignedBuf::to_overwrite(sealed.len());
        let mut lba = first;
        let blocks = data.chunks_mut(BLOCK_SIZE).zip(sealed.chunks(BLOCK_SIZE));
        for ((block, sealed), (stamp, tag)) in blocks.zip(seals) {
            block.copy_from_slice(sealed);
            let epoch = self.engine.epoch(group, stamp.epoch());
            let key = epoch.and_then(|epoch| self.keys.block_key(&epoch));
            let key = key.ok_or(ReadError::NoKey(lba))?;
            key.open(lba, *stamp, tag, block)
                .map_err(|_| ReadError::Refused(lba))?;
            lba.0 += 1;
        }
        Ok(data.freeze())
    }

    /// How many reads met a block that did not open, since the start.
    #[must_use]
    pub fn blocks_refused(&self) -> u64 {
        self.keys.refused
    }

    /// Epochs and stamps that blocks were sealed under since this was last asked, where the configuration
    /// wants them kept: for tests that no pair comes twice.
    pub fn take_seals(&mut self) -> Vec<(EpochId, Stamp)> {
        self.keys
            .seals
            .as_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }
}

fn is_sealed(piece: &ReadPiece) -> bool {
    matches!(piece, ReadPiece::Sealed { .. })
}
