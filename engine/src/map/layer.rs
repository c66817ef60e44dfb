//! A layer of the delta index: the newest extent of each block, what of older ones cuts still see,
//! and those cuts. The head looks at the first alone.

use super::delta::{Delta, Extent};
use super::interval::Piece;
use super::older::{Older, OlderKey};
use crate::format::node::LeafKind;
use crate::format::vaddr::VAddr;
use crate::format::versions::VersionId;
use esker_base::{BlockRange, Stamp};
use std::collections::{BTreeMap, BTreeSet};

/// A snapshot that no checkpoint has merged yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Its stamp.
    pub stamp: Stamp,
    /// The version.
    pub version: VersionId,
    /// The volume's size then, in bytes.
    pub size_bytes: u64,
}

/// A block whose entry in the map is to name its page by another address, by block. Nothing is written, and
/// reads find the page under both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rehomed {
    /// The block.
    pub lba: u64,
    /// The address that the map has, if the block was not overwritten meanwhile.
    pub old: VAddr,
    /// The one it is to have.
    pub new: VAddr,
}

/// Applied extents with the cuts among them.
#[derive(Debug, Default)]
pub struct Layer {
    /// The newest extent of each block.
    pub index: Delta,
    /// What those replaced and cuts still see.
    pub older: Older,
    /// Cuts, by stamp.
    pub cuts: Vec<Cut>,
    /// What the first version merged gets new addresses for, unless its parent uses it.
    pub rehomed: BTreeSet<Rehomed>,
}

impl Layer {
    /// Nothing is to be merged.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty() && self.cuts.is_empty() && self.rehomed.is_empty()
    }

    /// What it takes of memory, in extents.
    pub fn len(&self) -> usize {
        self.index.len() + self.older.len() + self.cuts.len()
    }

    /// Puts an extent in. Tells what it replaces, and whether that dies: what the newest cut sees is
    /// kept.
    pub fn insert(
        &mut self,
        start: u64,
        extent: Extent,
        newest_cut: Stamp,
        mut replaced: impl FnMut(&Extent, bool),
    ) {
        let (death, older) = (extent.stamp, &mut self.older);
        self.index.insert(start, extent, |lba, old| {
            let dies = old.stamp > newest_cut;
            replaced(&old, dies);
            if !dies {
                older.keep(lba, old, death);
            }
        });
    }

    /// What a cut sees of a range, by first block.
    pub fn at(&self, range: BlockRange, cut: Stamp) -> Vec<(u64, Extent)> {
        let newest = self.index.overlapping(range);
        let mut found: Vec<(u64, Extent)> = newest.filter(|(_, e)| e.stamp <= cut).collect();
        if !self.older.is_empty() {
            found.extend(self.older.at(range, cut, &mut 0));
            found.sort_by_key(|(lba, _)| *lba);
        }
        found
    }

    /// Extents of data in it, those that only cuts see included.
    pub fn data(&self) -> impl Iterator<Item = &Extent> {
        let newest = self.index.iter().map(|(_, extent)| extent);
        let all = newest.chain(self.older.iter().map(|(_, extent)| extent));
        all.filter(|extent| extent.kind == LeafKind::Data)
    }

    /// Which version brings an extent with this stamp into its map: a number among the cuts, or the
    /// number of cuts for the head.
    fn version_of(&self, stamp: Stamp) -> usize {
        self.cuts.partition_point(|cut| cut.stamp < stamp)
    }
}

/// Takes a layer apart into what each version merges, a few extents at a time.
#[derive(Debug, Default)]
pub struct Split {
    next_lba: u64,
    after: Option<OlderKey>,
    /// What each version brings, by its number among the cuts; those that bring nothing are missing.
    pub parts: BTreeMap<usize, Delta>,
    /// Gives everything to the version before its own, on purpose.
    sabotaged: bool,
}

impl Split {
    /// Takes nothing apart yet.
    pub fn new(sabotaged: bool) -> Self {
        Self {
            sabotaged,
            ..Self::default()
        }
    }

    /// Goes on with up to `extents_max` extents. True when all are done.
    pub fn run(&mut self, layer: &Layer, extents_max: usize) -> bool {
        for _ in 0..extents_max {
            let (lba, extent) = if let Some((lba, extent)) = layer.index.next_from(self.next_lba) {
                self.next_lba = lba + extent.count();
                (lba, extent)
            } else if let Some((key, extent)) = layer.older.from(self.after).next() {
                self.after = Some(key);
                (key.lba(), extent.clone())
            } else {
                return true;
            };
            let mut version = layer.version_of(extent.stamp);
            if self.sabotaged && version > 0 {
                version -= 1;
            }
            let part = self.parts.entry(version);
            part.or_default().insert(lba, extent, |_, _| {});
        }
        false
    }
}
