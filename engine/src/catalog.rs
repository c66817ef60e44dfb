//! Groups begin, end and are renamed: operations of the store itself, in its log.

use crate::catchup::feed_of;
use crate::engine::Engine;
use crate::error::{CatalogError, StoreError};
use crate::event::Effect;
use crate::format::checkpoint::{DiscardEntry, GroupMeta};
use crate::format::operation::Operation;
use crate::format::record::ItemBody;
use crate::group::{kill, Group, Load, LogEntry};
use crate::log::writer::Notify;
use bytes::Bytes;
use esker_base::{GroupId, RaftIndex};

impl Engine {
    fn catalog_refused(&self, token: u64, error: CatalogError, effects: &mut Vec<Effect>) {
        let error = match &self.fenced {
            Some(fenced) => CatalogError::Fenced(fenced.to_string()),
            None => error,
        };
        effects.push(Effect::CatalogDone {
            token,
            result: Err(error),
        });
    }

    /// Begins a group.
    pub(crate) fn create(&mut self, token: u64, meta: GroupMeta, effects: &mut Vec<Effect>) {
        if self.fenced.is_some() || self.groups.contains_key(&meta.group) {
            return self.catalog_refused(token, CatalogError::Exists, effects);
        }
        let id = meta.group;
        let body = ItemBody::GroupCreate(Bytes::from(meta.encode()));
        let feed = self.feed_begins(&meta);
        if meta.feeds.0 != 0 && feed.is_none() {
            return self.catalog_refused(token, CatalogError::UnknownGroup, effects);
        }
        let mut group = Group::new(meta);
        group.feed = feed;
        self.groups.insert(id, group);
        self.enqueue(id, body, Some(Notify::Catalog { token }));
    }

    /// Ends a group. It disappears at once; what it held dies when no checkpoint works on it.
    pub(crate) fn delete(&mut self, token: u64, id: GroupId, effects: &mut Vec<Effect>) {
        let fenced = self.fenced.is_some();
        match self.groups.get_mut(&id) {
            Some(group) if !group.deleting && !fenced => {
                group.deleting = true;
                self.enqueue(id, ItemBody::GroupDelete, Some(Notify::Catalog { token }));
                let feed = feed_of(id);
                if let Some(group) = self.groups.get_mut(&feed).filter(|g| !g.deleting) {
                    group.deleting = true;
                    self.enqueue(feed, ItemBody::GroupDelete, None);
                }
            }
            _ => self.catalog_refused(token, CatalogError::UnknownGroup, effects),
        }
    }

    /// Renames a group's volume.
    pub(crate) fn rename(
        &mut self,
        token: u64,
        id: GroupId,
        name: String,
        effects: &mut Vec<Effect>,
    ) {
        let fenced = self.fenced.is_some();
        match self.groups.get_mut(&id) {
            Some(group) if !group.deleting && !fenced => {
                let body = ItemBody::Rename(Bytes::copy_from_slice(name.as_bytes()));
                group.meta.name = name;
                self.enqueue(id, body, Some(Notify::Catalog { token }));
            }
            _ => self.catalog_refused(token, CatalogError::UnknownGroup, effects),
        }
    }

    /// A suspended group of one goes on from what is there: entries on both sides of the gap are
    /// applied, and its Raft log continues after the last of them.
    pub(crate) fn accept_loss(&mut self, token: u64, id: GroupId, effects: &mut Vec<Effect>) {
        let suspended = self
            .groups
            .get(&id)
            .is_some_and(|g| g.suspended && !g.deleting);
        if self.fenced.is_some() || !suspended {
            return self.catalog_refused(token, CatalogError::NotSuspended, effects);
        }
        let rolls_back =
            |e: &LogEntry| matches!(e.operation.as_deref(), Some(Operation::Rollback { .. }));
        let group = self.groups.get(&id);
        if group.is_some_and(|g| g.log.iter().any(|e| e.index > g.applied && rolls_back(e))) {
            return self.catalog_refused(token, CatalogError::RollbackWaits, effects);
        }
        // Before the items of clones that begin thereby.
        let notify = Notify::AcceptedLoss { token };
        self.enqueue(id, ItemBody::AcceptLoss, Some(notify));
        let result = self.accept_loss_now(id);
        self.check(result, effects);
    }

    /// The in-memory half of [`Engine::accept_loss`], also done when the log is replayed.
    pub(crate) fn accept_loss_now(&mut self, id: GroupId) -> Result<(), StoreError> {
        let Some(group) = self.groups.get(&id) else {
            return Ok(());
        };
        let before = group.load();
        while let Some(entry) = self.groups.get_mut(&id).and_then(|g| g.log.pop_front()) {
            let Some(group) = self.groups.get_mut(&id) else {
                break;
            };
            group.truncated = (entry.index, entry.term);
            if entry.index <= group.applied {
                continue;
            }
            group.applied = entry.index;
            if group.proof.is_open() {
                self.probes.insert(crate::recovery::Probe::ClaimPassed);
            }
            self.apply_one(id, &entry)?;
        }
        let Some(group) = self.groups.get_mut(&id) else {
            return Ok(());
        };
        group.applied = RaftIndex(group.applied.0.max(group.truncated.0 .0));
        group.hard_state.term = group.hard_state.term.max(group.truncated.1);
        group.hard_state.commit = group.truncated.0;
        group.overlay.clear();
        group.suspended = false;
        self.load.replace(before, group.load());
        Ok(())
    }

    /// A suspended replica has caught up with a leader elected without it.
    pub(crate) fn resume(&mut self, id: GroupId) {
        if let Some(group) = self.groups.get_mut(&id).filter(|g| g.suspended) {
            group.suspended = false;
            self.enqueue(id, ItemBody::Resume, None);
        }
    }

    /// Removes groups that were deleted, once no checkpoint works on them.
    pub(crate) fn finish_deletes(&mut self) -> Result<(), StoreError> {
        let gone: Vec<GroupId> = self
            .groups
            .values()
            .filter(|g| g.deleting)
            .map(|g| g.meta.group)
            .collect();
        for id in gone {
            // Its items must be in records first, or replay would meet entries of no group.
            if self.log.pending.iter().any(|p| p.item.group == id) {
                continue;
            }
            self.end_group(id)?;
        }
        Ok(())
    }

    /// The group goes away: now, or after the next checkpoint if clones began with something that only
    /// its deltas have.
    pub(crate) fn end_group(&mut self, id: GroupId) -> Result<(), StoreError> {
        if self.forest.has_clones_waiting(id) {
            if let Some(group) = self.groups.get_mut(&id) {
                (group.deleting, group.ended) = (true, true);
            }
            return Ok(());
        }
        self.remove_group(id)
    }

    /// Everything a group holds dies.
    pub(crate) fn remove_group(&mut self, id: GroupId) -> Result<(), StoreError> {
        if self.forest.has_clones_waiting(id) {
            let text = format!("group {id} is to go, and clones have nothing but its deltas");
            return Err(StoreError::Invariant(text));
        }
        let Some(group) = self.groups.remove(&id) else {
            return Ok(());
        };
        self.load.replace(group.load(), Load::default());
        for entry in group
            .log
            .iter()
            .filter(|e| e.live && e.index > group.applied)
        {
            if !entry.vaddr.is_none() {
                kill(&mut self.segs, entry.vaddr, u64::from(entry.payload_pages))?;
            }
        }
        for extent in group.active.data() {
            kill(&mut self.segs, extent.vaddr, extent.count)?;
        }
        self.based.remove(&id);
        if group.base.is_some() {
            // It has no map: nothing of it is in a checkpoint.
            self.forest.forget_pending(id);
            self.forest.drop_head(id);
        } else if self.forest.head(id).is_some() {
            // Checkpoints take the versions apart, from the last one to the first.
            self.forest.forget_pending(id);
            let root = (group.root, group.root_level);
            self.forest.retire(id, root, group.max_stamp);
        } else if !group.root.vaddr.is_none() {
            let whole = DiscardEntry::whole(group.root, group.root_level);
            self.discards.push(whole);
        }
        Ok(())
    }
}
