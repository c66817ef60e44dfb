//! The superblock: who the store is, and where its newest checkpoint lies.

use super::codec::{FormatError, Reader, Writer};
use super::{PAGE, PAGE_U64, SEGMENTS_MIN, SEGMENTS_OFFSET};
use esker_base::checksum::crc32;
use esker_base::{ClusterId, NodeId, Seq, StoreId, WallClock};

/// First eight bytes of every copy.
pub const MAGIC: [u8; 8] = *b"ESKERSTO";
/// Version of the structure.
pub const VERSION: u32 = 8;
/// The oldest version that is read; opening the store writes the current one.
pub const OLDEST: u32 = 4;
/// Number of copies; two that agree are a quorum.
pub const COPIES: usize = 4;
/// Distance between copies, in bytes.
pub const COPY_STRIDE: u64 = 256 << 10;
/// Bytes before the chunk table.
pub const FIXED_BYTES: usize = 256;
/// Bytes of one chunk.
pub const CHUNK_BYTES: usize = 16;
/// Copies of the checkpoint that are written: without it every volume is lost.
pub const CHECKPOINT_COPIES: usize = 2;
/// Most chunks that the checkpoint's copies may consist of.
pub const CHUNKS_MAX: usize = 192;

/// Incompatible feature: the checkpoint has sorted runs of map entries over the trees. The bit is kept
/// for that; no version writes it yet, and this one refuses it.
pub const INCOMPAT_RUNS: u64 = 1;
/// Incompatible features this version understands. An unknown bit refuses the store.
pub const INCOMPAT_KNOWN: u64 = 0;
/// Features a reader may ignore when it does not write.
pub const READ_ONLY_COMPAT_KNOWN: u64 = 0;

/// Where recovery starts to read the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStart {
    /// Physical segment.
    pub segment: u32,
    /// Slot of the first record that the checkpoint does not contain.
    pub slot: u32,
    /// Generation of that segment.
    pub generation: u64,
    /// Segment that follows once this one is full.
    pub next_segment: u32,
    /// Generation it will have.
    pub next_generation: u64,
    /// Seq of the first record.
    pub seq: Seq,
    /// Hash of the record before it.
    pub prev_hash: u64,
}

/// A run of pages that holds a part of the checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// Physical segment.
    pub segment: u32,
    /// First slot.
    pub slot: u32,
    /// Number of pages.
    pub pages: u32,
    /// CRC of those pages.
    pub crc: u32,
}

/// One superblock, without the number of the copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Superblock {
    /// Features any reader or writer may ignore.
    pub compat: u64,
    /// Features a reader may ignore.
    pub read_only_compat: u64,
    /// Features nobody may ignore.
    pub incompat: u64,
    /// The cluster the store belongs to.
    pub cluster: ClusterId,
    /// The node it was created on.
    pub node: NodeId,
    /// The store.
    pub store: StoreId,
    /// Bytes per segment.
    pub segment_bytes: u64,
    /// Number of segments.
    pub segment_count: u64,
    /// When the store was created.
    pub created: WallClock,
    /// Rises with every update of the superblock; the highest with a quorum counts.
    pub sequence: u64,
    /// Generations below this one may have been used when the superblock was written. Before the
    /// next update at most one further per segment is.
    pub next_generation: u64,
    /// Where the log goes on.
    pub log: LogStart,
    /// Length of the checkpoint in bytes; zero before the first.
    pub checkpoint_bytes: u64,
    /// The parts of the checkpoint's copies: first all of one, then all of the next.
    pub chunks: Vec<Chunk>,
}

impl Superblock {
    /// Byte offset of copy `copy` on the device.
    #[must_use]
    pub const fn copy_offset(copy: usize) -> u64 {
        copy as u64 * COPY_STRIDE
    }

    /// The chunks of each copy of the checkpoint.
    #[must_use]
    pub fn checkpoint_copies(&self) -> Vec<&[Chunk]> {
        let pages = self.checkpoint_bytes.div_ceil(PAGE_U64);
        let (mut copies, mut from, mut sum) = (Vec::new(), 0, 0);
        for (at, chunk) in self.chunks.iter().enumerate() {
            sum += u64::from(chunk.pages);
            if sum >= pages {
                copies.push(&self.chunks[from..=at]);
                (from, sum) = (at + 1, 0);
            }
        }
        copies
    }

    /// Slots in a segment.
    #[must_use]
    pub fn slots(&self) -> u32 {
        u32::try_from(self.segment_bytes / PAGE_U64).unwrap_or(0)
    }

    /// Byte offset of a slot on the device.
    #[must_use]
    pub fn offset_of(&self, segment: u32, slot: u32) -> u64 {
        SEGMENTS_OFFSET + u64::from(segment) * self.segment_bytes + u64::from(slot) * PAGE_U64
    }

    /// The page for copy `copy`.
    ///
    /// # Panics
    /// When there are more than [`CHUNKS_MAX`] chunks; the writer of checkpoints bounds them.
    #[must_use]
    pub fn encode(&self, copy: u32) -> Vec<u8> {
        assert!(
            self.chunks.len() <= CHUNKS_MAX,
            "checkpoint in too many chunks"
        );
        let mut w = Writer::new();
        w.raw(&MAGIC);
        w.u32(VERSION);
        w.u32(0); // crc, patched below
        w.u32(copy);
        w.u32(u32::try_from(self.chunks.len()).unwrap_or(u32::MAX));
        w.u64(self.compat);
        w.u64(self.read_only_compat);
        w.u64(self.incompat);
        w.u128(self.cluster.0);
        w.u64(self.node.0);
        w.u128(self.store.0);
        w.u64(self.segment_bytes);
        w.u64(self.segment_count);
        w.u64(self.created.0);
        w.u64(self.sequence);
        w.u64(self.next_generation);
        w.u32(self.log.segment);
        w.u32(self.log.slot);
        w.u64(self.log.generation);
        w.u32(self.log.next_segment);
        w.u32(0);
        w.u64(self.log.next_generation);
        w.u64(self.log.seq.0);
        w.u64(self.log.prev_hash);
        w.u64(self.checkpoint_bytes);
        w.zeros(FIXED_BYTES - w.bytes.len());
        for chunk in &self.chunks {
            w.u32(chunk.segment);
            w.u32(chunk.slot);
            w.u32(chunk.pages);
            w.u32(chunk.crc);
        }
        w.zeros(PAGE - w.bytes.len());
        let crc = crc32(&w.bytes);
        w.patch_u32(12, crc);
        w.bytes
    }

    /// Decodes one copy; returns the superblock and the number of the copy.
    ///
    /// # Errors
    /// When the page is no superblock, is damaged, or has a version or a feature that is not known.
    pub fn decode(page: &[u8]) -> Result<(Self, u32), FormatError> {
        let mut r = Reader::new("superblock", page);
        if page.len() != PAGE {
            return Err(r.error("is not one page"));
        }
        if r.raw(8)? != MAGIC {
            return Err(r.error("has no magic: not an Esker store"));
        }
        let version = r.u32()?;
        let crc = r.u32()?;
        let mut blank = page.to_vec();
        blank[12..16].fill(0);
        if crc32(&blank) != crc {
            return Err(r.error("checksum does not match"));
        }
        r.version_since(OLDEST, VERSION, version)?;
        let copy = r.u32()?;
        let chunk_count = r.u32()? as usize;
        let mut sb = Self {
            compat: r.u64()?,
            read_only_compat: r.u64()?,
            incompat: r.u64()?,
            cluster: ClusterId(r.u128()?),
            node: NodeId(r.u64()?),
            store: StoreId(r.u128()?),
            segment_bytes: r.u64()?,
            segment_count: r.u64()?,
            created: WallClock(r.u64()?),
            sequence: r.u64()?,
            next_generation: r.u64()?,
            ..Self::default()
        };
        sb.log.segment = r.u32()?;
        sb.log.slot = r.u32()?;
        sb.log.generation = r.u64()?;
        sb.log.next_segment = r.u32()?;
        r.zeros(4)?;
        sb.log.next_generation = r.u64()?;
        sb.log.seq = Seq(r.u64()?);
        sb.log.prev_hash = r.u64()?;
        sb.checkpoint_bytes = r.u64()?;
        r.zeros(FIXED_BYTES - (PAGE - r.remaining()))?;
        if chunk_count > CHUNKS_MAX {
            return Err(r.error("has too many checkpoint chunks"));
        }
        for _ in 0..chunk_count {
            sb.chunks.push(Chunk {
                segment: r.u32()?,
                slot: r.u32()?,
                pages: r.u32()?,
                crc: r.u32()?,
            });
        }
        r.zeros(r.remaining())?;
        sb.check(&r)?;
        Ok((sb, copy))
    }

    fn check(&self, r: &Reader<'_>) -> Result<(), FormatError> {
        if self.incompat & !INCOMPAT_KNOWN != 0
            || self.read_only_compat & !READ_ONLY_COMPAT_KNOWN != 0
        {
            return Err(r.error("uses a feature of a newer version of Esker"));
        }
        let slots = self.segment_bytes / PAGE_U64;
        if !self.segment_bytes.is_multiple_of(PAGE_U64)
            || !(16..=1 << super::vaddr::SLOT_BITS).contains(&slots)
            || self.segment_count < SEGMENTS_MIN
            || self.segment_count > u64::from(u32::MAX)
        {
            return Err(r.error("geometry is out of range"));
        }
        let inside = |segment: u32, slot: u32, pages: u32| {
            u64::from(segment) < self.segment_count && u64::from(slot) + u64::from(pages) <= slots
        };
        if !inside(self.log.segment, self.log.slot, 0)
            || !inside(self.log.next_segment, 0, 0)
            || self
                .chunks
                .iter()
                .any(|c| c.pages == 0 || !inside(c.segment, c.slot, c.pages))
        {
            return Err(r.error("points outside the store"));
        }
        let pages: u64 = self.chunks.iter().map(|c| u64::from(c.pages)).sum();
        if self.checkpoint_bytes > pages * PAGE_U64 {
            return Err(r.error("checkpoint is longer than its chunks"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Superblock {
        Superblock {
            cluster: ClusterId(3),
            node: NodeId(4),
            store: StoreId(5),
            segment_bytes: 64 << 20,
            segment_count: 256,
            created: WallClock(6),
            sequence: 7,
            next_generation: 8,
            log: LogStart {
                segment: 1,
                slot: 2,
                generation: 3,
                next_segment: 4,
                next_generation: 5,
                seq: Seq(6),
                prev_hash: 7,
            },
            checkpoint_bytes: 5000,
            chunks: vec![Chunk {
                segment: 9,
                slot: 10,
                pages: 2,
                crc: 11,
            }],
            ..Superblock::default()
        }
    }

    #[test]
    fn comes_back_and_every_flipped_bit_is_refused() {
        let page = sample().encode(2);
        assert_eq!(Superblock::decode(&page), Ok((sample(), 2)));
        for bit in 0..PAGE * 8 {
            let mut bad = page.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Superblock::decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_newer_version_or_feature_is_named_as_such() {
        let newer = Superblock {
            incompat: 1 << 40,
            ..sample()
        }
        .encode(0);
        let error = Superblock::decode(&newer).expect_err("unknown feature");
        assert!(error.problem.contains("newer version"));
    }
}
