//! What encryption needs to know of the store: which keys its groups read and write with. The keys
//! themselves never come here; blocks are sealed and opened outside.

use crate::engine::Engine;
use crate::error::StoreError;
use crate::format::checkpoint::EpochEntry;
use crate::format::superblock::{COPIES, COPY_STRIDE};
use crate::format::SEGMENTS_OFFSET;
use esker_base::{Epoch, GroupId, StoreId, VolumeId};
use std::collections::BTreeSet;

/// Where the key slots lie on the device, in bytes.
pub const KEY_SLOTS_OFFSET: u64 = COPIES as u64 * COPY_STRIDE;
/// How many bytes they have.
pub const KEY_SLOTS_BYTES: u64 = SEGMENTS_OFFSET - KEY_SLOTS_OFFSET;

/// A key by volume and number.
pub type KeyRef = (VolumeId, u32);

impl Engine {
    /// What the keys of a group's blocks of an epoch are derived from; none when they are not sealed.
    #[must_use]
    pub fn epoch(&self, group: GroupId, epoch: Epoch) -> Option<EpochEntry> {
        self.groups.get(&group)?.epoch_entry(epoch).copied()
    }

    /// All of them, oldest first.
    #[must_use]
    pub fn epochs(&self, group: GroupId) -> Vec<EpochEntry> {
        let group = self.groups.get(&group);
        group.map(|g| g.epochs.clone()).unwrap_or_default()
    }

    /// The keys that a group writes and reads with: its own, and those of what it began from.
    #[must_use]
    pub fn keys_of(&self, group: GroupId) -> BTreeSet<KeyRef> {
        let mut keys = BTreeSet::new();
        if let Some(group) = self.groups.get(&group) {
            keys.extend(group.epochs.iter().map(|e| (e.volume, e.key_id)));
            if group.meta.key_id != 0 {
                keys.insert((group.meta.volume, group.meta.key_id));
            }
        }
        keys
    }

    /// The keys that any group needs.
    #[must_use]
    pub fn keys_in_use(&self) -> BTreeSet<KeyRef> {
        let groups = self.groups.values().filter(|g| !g.deleting);
        groups.flat_map(|g| self.keys_of(g.meta.group)).collect()
    }

    /// A write or a sync of the key slots failed. It is the same device: what was written to the log and
    /// not synced may be lost with it, and a later sync would not tell.
    pub fn device_failed(&mut self, error: StoreError) {
        self.fence_pending.get_or_insert(error);
    }

    /// The store, whose name key slots carry.
    #[must_use]
    pub fn store_id(&self) -> StoreId {
        self.superblock().store
    }
}
