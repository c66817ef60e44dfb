//! The bytes on the device. Structs without behaviour, explicit widths, little-endian; reserved
//! bytes are zero and checked; no tag has a meaning when it is zero. `docs/format.md` draws each
//! of them and a test holds the drawing against these constants.

pub mod checkpoint;
pub mod codec;
pub mod dead;
pub mod group;
pub mod ingest;
pub mod manifest;
pub mod node;
pub mod operation;
pub mod record;
pub mod space;
pub mod superblock;
pub mod survivors;
pub mod table;
pub mod vaddr;
pub mod version_records;
pub mod versions;

pub use codec::FormatError;
pub use vaddr::VAddr;

use esker_base::BLOCK_SIZE_U64;

/// Size of a page: of header pages, map nodes and slots. Equal to the block size today, and a
/// constant of its own because a volume's block size may one day differ.
pub const PAGE: usize = 4096;
/// [`PAGE`] as `u64`.
pub const PAGE_U64: u64 = BLOCK_SIZE_U64;
/// Default size of a segment, in bytes.
pub const SEGMENT_BYTES: u64 = 64 << 20;
/// Bytes in front of the first segment: four superblock copies 256 KiB apart, then 1 MiB for the
/// key slots that encryption will overwrite in place.
pub const SEGMENTS_OFFSET: u64 = 2 << 20;
/// Fewest segments a store can work with: the log's open one and its successor, the map's, and a
/// reserve to collect into.
pub const SEGMENTS_MIN: u64 = 12;
