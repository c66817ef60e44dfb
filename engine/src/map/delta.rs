//! The delta index: applied writes that no checkpoint has merged into the tree yet.

use super::interval::{IntervalMap, Piece};
use crate::format::node::{LeafEntry, LeafKind};
use crate::format::operation::Authenticator;
use crate::format::vaddr::VAddr;
use esker_base::num::to_usize;
use esker_base::{RaftIndex, Stamp};
use std::sync::Arc;

/// Authenticators of the blocks of a run. Most runs are one block, and need no memory beside it.
#[derive(Clone, Debug)]
pub enum Auths {
    /// There are none: discarded or zeroed.
    None,
    /// That of the only block.
    One(Authenticator),
    /// Those of an entry's blocks.
    Many {
        /// All of them.
        all: Arc<[Authenticator]>,
        /// Which belongs to the run's first block.
        from: usize,
    },
}

impl Auths {
    /// Those of an entry's blocks.
    pub fn of(mut blocks: impl ExactSizeIterator<Item = Authenticator>) -> Self {
        match (blocks.len(), blocks.next()) {
            (_, None) => Self::None,
            (1, Some(only)) => Self::One(only),
            (_, Some(first)) => Self::Many {
                all: std::iter::once(first).chain(blocks).collect(),
                from: 0,
            },
        }
    }

    fn at(&self, i: u64) -> Authenticator {
        match self {
            Self::None => Authenticator::default(),
            Self::One(only) => *only,
            Self::Many { all, from } => all[from + to_usize(i)],
        }
    }

    fn skip(&mut self, count: u64) {
        if let Self::Many { from, .. } = self {
            *from += to_usize(count);
        }
    }
}

/// A run of blocks written, discarded or zeroed by one entry.
#[derive(Clone, Debug)]
pub struct Extent {
    /// Blocks.
    pub count: u64,
    /// Data, Discarded or Zero.
    pub kind: LeafKind,
    /// Stamp of the first block; data blocks have consecutive stamps, others share it.
    pub stamp: Stamp,
    /// Slot of the first block; consecutive.
    pub vaddr: VAddr,
    /// Authenticators of its blocks; none unless data.
    pub auths: Auths,
}

impl Piece for Extent {
    fn count(&self) -> u64 {
        self.count
    }
    fn part(&self, from: u64, count: u64) -> Self {
        let mut part = self.clone();
        part.count = count;
        if self.kind == LeafKind::Data {
            part.stamp = Stamp(self.stamp.0 + from);
            part.vaddr = self.vaddr.plus(from);
            part.auths.skip(from);
        }
        part
    }
}

impl Extent {
    /// The leaf entry of the `i`th block.
    pub fn leaf(&self, i: u64) -> LeafEntry {
        if self.kind != LeafKind::Data {
            return LeafEntry {
                kind: self.kind,
                stamp: self.stamp,
                ..LeafEntry::default()
            };
        }
        LeafEntry {
            kind: self.kind,
            vaddr: self.vaddr.plus(i),
            stamp: Stamp(self.stamp.0 + i),
            auth: self.auths.at(i),
        }
    }
}

/// Applied extents.
pub type Delta = IntervalMap<Extent>;

/// A run of blocks of an entry that is appended and not applied.
#[derive(Clone, Debug)]
pub struct PendingExtent {
    /// Blocks.
    pub count: u64,
    /// The entry.
    pub index: RaftIndex,
    /// First block of the run, counted from the entry's first.
    pub from: u64,
}

impl Piece for PendingExtent {
    fn count(&self) -> u64 {
        self.count
    }
    fn part(&self, from: u64, count: u64) -> Self {
        Self {
            count,
            index: self.index,
            from: self.from + from,
        }
    }
}

/// Extents appended and not applied: what the next read of the newest data has to look at first.
pub type Overlay = IntervalMap<PendingExtent>;
