//! What encryption needs to know of the store: which keys its groups read and write with. The keys
//! themselves never come here; blocks are sealed and opened outside.

use crate::engine::Engine;
use crate::error::StoreError;
use crate::format::checkpoint::EpochEntry;
use crate::format::superblock::{COPIES, COPY_STRIDE};
use crate::format::SEGMENTS_OFFSET;
use crate::group::Group;
use crate::snapshot::forest::Forest;
use esker_base::{Epoch, GroupId, StoreId, VolumeId};
use std::collections::BTreeSet;

/// Where the key slots lie on the device, in bytes.
pub const KEY_SLOTS_OFFSET: u64 = COPIES as u64 * COPY_STRIDE;
/// How many bytes they have.
pub const KEY_SLOTS_BYTES: u64 = SEGMENTS_OFFSET - KEY_SLOTS_OFFSET;

/// A key by volume and number.
pub type KeyRef = (VolumeId, u32);

/// What still needs the keys that a group wrote with before its newest one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OlderKeys {
    /// The volume itself holds blocks under them, or may.
    pub head: bool,
    /// Snapshots that may hold some; rewind points are not counted.
    pub snapshots: usize,
    /// Rewind points that may.
    pub points: usize,
}

/// Epochs that a checkpoint leaves out.
#[derive(Debug)]
pub(crate) struct Leaving {
    pub spent: Vec<(GroupId, Vec<Epoch>)>,
    /// The number of that checkpoint. Until it is durable, an end of the process goes back behind it.
    number: u64,
    /// Reads that may bring blocks of these epochs.
    reads: Vec<u64>,
}

/// Epochs of a group that nothing needs any more: its head is under its newest key, and so is every snapshot
/// of it.
pub(crate) fn spent_epochs(group: &Group, forest: &Forest) -> Vec<Epoch> {
    let id = group.meta.group;
    let is_clean = |cut: esker_base::Stamp| group.is_resealed(cut.epoch());
    let oldest = forest.snapshots(id).next();
    let clean = group.resealed != Epoch(0) && oldest.is_none_or(|v| is_clean(v.cut));
    let older = group.epochs.iter().filter(|_| clean && !group.ended);
    let older = older.filter(|e| group.is_under_older_key(e));
    older.map(|e| e.epoch).collect()
}

impl Engine {
    /// What needs the older keys of a group; nothing where it has none.
    #[must_use]
    pub fn older_keys(&self, group: GroupId) -> OlderKeys {
        let Some(group) = self.groups.get(&group) else {
            return OlderKeys::default();
        };
        if group.meta.key_id == 0 || !group.epochs.iter().any(|e| group.is_under_older_key(e)) {
            return OlderKeys::default();
        }
        let id = group.meta.group;
        let may = |cut: esker_base::Stamp| !group.is_resealed(cut.epoch());
        let all = self.forest.snapshots(id).filter(|v| may(v.cut)).count();
        let points = self.forest.points(id);
        let points = points.filter(|(cut, _)| may(*cut)).count();
        OlderKeys {
            head: group.resealed == Epoch(0),
            snapshots: all - points,
            points,
        }
    }

    /// Whether a group has another key than its first, and its head may hold blocks under older ones.
    #[must_use]
    pub fn is_to_be_resealed(&self, group: GroupId) -> bool {
        let group = self.groups.get(&group).filter(|g| g.meta.key_id > 1);
        group.is_some_and(|g| {
            g.resealed == Epoch(0) && g.epochs.iter().any(|e| g.is_under_older_key(e))
        })
    }

    /// How often a checkpoint has let go of epochs, and with them of keys, since the start.
    #[must_use]
    pub fn epochs_spent(&self) -> u64 {
        self.epochs_spent
    }

    /// A checkpoint that does not have these epochs is durable: nothing goes back behind it. Reads that are under
    /// way may still bring blocks of theirs, which somebody wants to open.
    pub(crate) fn epochs_left_out(&mut self, spent: Vec<(GroupId, Vec<Epoch>)>) {
        self.epochs_leave(spent, self.checkpoints_done);
    }

    fn epochs_leave(&mut self, spent: Vec<(GroupId, Vec<Epoch>)>, number: u64) {
        if !spent.is_empty() {
            let reads = self.reads.keys().copied().collect();
            self.epochs_leaving.push(Leaving {
                spent,
                number,
                reads,
            });
        }
    }

    /// A group's epochs are others from now on: it has caught up. Those that it had stay until the next checkpoint is
    /// durable and the reads that are under way have ended.
    pub(crate) fn exchange_epochs(&mut self, id: GroupId, epochs: &[EpochEntry]) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        let is_new = |e: &EpochEntry| epochs.iter().any(|new| new.epoch == e.epoch);
        group.epochs.retain(|e| !is_new(e));
        let gone: Vec<Epoch> = group.epochs.iter().map(|e| e.epoch).collect();
        group.epochs.extend_from_slice(epochs);
        group.epochs.sort_by_key(|e| e.epoch);
        if !gone.is_empty() {
            self.epochs_leave(vec![(id, gone)], self.counters.checkpoints + 1);
        }
    }

    /// Epochs of a group that are here for those who may still want them, and are none of its own any more.
    pub(crate) fn leaving(&self, id: GroupId) -> impl Iterator<Item = Epoch> + '_ {
        let all = self.epochs_leaving.iter().flat_map(|l| &l.spent);
        let own = all.filter(move |(of, _)| *of == id);
        own.flat_map(|(_, epochs)| epochs.iter().copied())
    }

    /// Forgets epochs that nobody waits for.
    pub(crate) fn forget_epochs(&mut self) {
        for mut leaving in std::mem::take(&mut self.epochs_leaving) {
            let reads = &mut leaving.reads;
            reads.retain(|token| self.reads.contains_key(token));
            if !reads.is_empty() || leaving.number > self.checkpoints_done {
                self.epochs_leaving.push(leaving);
                continue;
            }
            for (id, spent) in leaving.spent {
                if let Some(group) = self.groups.get_mut(&id) {
                    let before = group.epochs.len();
                    group.epochs.retain(|e| !spent.contains(&e.epoch));
                    self.epochs_spent += u64::from(group.epochs.len() < before);
                }
            }
        }
    }

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
            let next = Self::key_waited_for(group);
            keys.extend(next.map(|key_id| (group.meta.volume, key_id)));
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
