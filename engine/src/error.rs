//! Errors: a small stable kind with context. Errno appears only at the NBD border.

use crate::format::FormatError;
use esker_base::{DiskError, GroupId, Lba};
use thiserror::Error;

/// Why a store cannot be opened. Nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OpenError {
    /// The device holds something that is not a store.
    #[error(
        "not an Esker store: it holds other data. Nothing was changed. Name another file or \
         device, or clear all of it if nothing on it is needed"
    )]
    Foreign,
    /// The device is blank and formatting was not allowed.
    #[error("the device is blank: no store was ever created on it")]
    Blank,
    /// Written by a newer version.
    #[error("the store was written by a newer version of Esker ({0}); upgrade this node")]
    Newer(FormatError),
    /// Written by an older version whose format is not read any more.
    #[error("the store cannot be opened by this version of Esker: its {0}")]
    Older(FormatError),
    /// What was asked for is not there.
    #[error("{0}")]
    Nothing(String),
    /// Fewer than two superblock copies agree.
    #[error(
        "the store's superblock is damaged: {valid} of 4 copies are valid and no two agree ({first}). \
         Restore the device from a copy"
    )]
    NoQuorum {
        /// Copies that decode.
        valid: usize,
        /// The first problem met.
        first: FormatError,
    },
    /// The device is smaller than the store.
    #[error(
        "the store needs {needed} bytes and the device has {actual}: it was truncated. Restore the \
         device from a copy, or bring back its full size"
    )]
    Truncated {
        /// What the superblock says.
        needed: u64,
        /// What is there.
        actual: u64,
    },
    /// The device is too small for a new store.
    #[error(
        "a store needs at least {needed} bytes and the device has {actual}; name a larger one, or \
         give --store-size"
    )]
    TooSmall {
        /// Least size.
        needed: u64,
        /// What is there.
        actual: u64,
    },
    /// The newest checkpoint does not decode.
    #[error("the store's checkpoint is damaged ({0}). Restore the device from a copy")]
    Checkpoint(FormatError),
    /// A read failed.
    #[error(
        "reading the store at offset {offset} failed: {error}. Try again; if it stays so, copy the \
         device with a tool that skips bad sectors, and open the copy"
    )]
    Read {
        /// Byte offset.
        offset: u64,
        /// What the device said.
        error: DiskError,
    },
    /// No room even to open.
    #[error(
        "the store has no free segment to open with; move it to a larger device, or restore it from \
         a copy"
    )]
    Full,
    /// A write or sync failed while opening.
    #[error("{0}")]
    Fenced(String),
}

/// Why a read failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReadError {
    /// No such group.
    #[error("unknown volume")]
    UnknownGroup,
    /// The volume has no such snapshot.
    #[error("unknown snapshot")]
    UnknownSnapshot,
    /// The snapshot is not in the map yet, and cannot get there.
    #[error("the store takes no more writes, and the snapshot is not in its map yet")]
    NotMerged,
    /// Past the end of the volume.
    #[error("past the end of the volume")]
    OutOfRange,
    /// The stored bytes are not the ones that were written.
    #[error("block {0} is damaged on the device")]
    Damaged(Lba),
    /// A sealed block does not open with its key: it is not what was written there.
    #[error("block {0} does not open: it was changed, moved, or replaced by an older one")]
    Refused(Lba),
    /// The key of a sealed block is not here.
    #[error("the key of block {0} is not here")]
    NoKey(Lba),
    /// An encrypted volume has blocks that are not sealed.
    #[error("blocks of an encrypted volume are not sealed: the map was changed")]
    Unsealed,
    /// A map node is damaged.
    #[error("the map over block {0} is damaged on the device")]
    MapDamaged(Lba),
    /// The device reported an error.
    #[error("reading block {lba} failed: {error}")]
    Disk {
        /// First block of the failed read.
        lba: Lba,
        /// What the device said.
        error: DiskError,
    },
}

/// Why the store takes no more writes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StoreError {
    /// A write failed.
    #[error("writing at offset {offset} failed: {error}")]
    Write {
        /// Byte offset.
        offset: u64,
        /// What the device said.
        error: DiskError,
    },
    /// A sync failed: what was written before it may be lost, and is not retried.
    #[error("sync failed: {0}")]
    Sync(DiskError),
    /// A map node needed for a checkpoint cannot be read.
    #[error("a map node of group {group} at {vaddr} cannot be read")]
    Map {
        /// Group.
        group: GroupId,
        /// Address.
        vaddr: crate::format::VAddr,
    },
    /// No segment is free where one must be.
    #[error("no free segment for the map: the reserve is used up")]
    NoSegment,
    /// An invariant does not hold; going on could lose data.
    #[error("invariant violated: {0}")]
    Invariant(String),
}

/// Why a catalog operation was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CatalogError {
    /// No such group.
    #[error("unknown volume")]
    UnknownGroup,
    /// The group exists.
    #[error("the volume exists")]
    Exists,
    /// The store takes no more writes.
    #[error("the store takes no more writes: {0}")]
    Fenced(String),
    /// The store was fenced while the operation was on its way.
    #[error(
        "the store stopped taking writes while this was on its way ({0}); whether it was done shows \
         after eskerd is restarted"
    )]
    Interrupted(String),
    /// A rollback is among what would be applied.
    #[error(
        "the volume's log holds a rollback that was not applied before the loss; restore the volume from \
         a copy"
    )]
    RollbackWaits,
    /// The group is not suspended.
    #[error("the volume is not suspended")]
    NotSuspended,
}
