//! Appending entries to a group's log, and applying committed ones to its map.

use crate::config::Sabotage;
use crate::engine::Engine;
use crate::error::StoreError;
use crate::event::{Append, Effect, Outcome};
use crate::format::checkpoint::{EpochEntry, Membership};
use crate::format::node::LeafKind;
use crate::format::operation::Operation;
use crate::format::record::{EntryKind, ItemBody};
use crate::format::vaddr::VAddr;
use crate::format::versions::SnapshotMeta;
use crate::format::PAGE_U64;
use crate::group::{kill, liveness, Group, LogEntry};
use crate::log::writer::{Notify, PendingItem};
use crate::map::delta::{Auths, Extent};
use crate::map::interval::Piece;
use crate::snapshot::forest::Forest;
use crate::snapshot::operations;
use crate::space::Segments;
use esker_base::{limits, BlockRange, Epoch, GroupId, RaftIndex, Seq, Stamp};
use std::collections::BTreeMap;

/// Applied entries at which the log of a group of one is cut.
const APPLIED_KEPT_MAX: u64 = 256;

impl Engine {
    /// Puts entries and hard state of a group into the log.
    pub(crate) fn append(&mut self, append: Append, effects: &mut Vec<Effect>) {
        if self.fenced.is_some() {
            return;
        }
        let id = append.group;
        if self.groups.get(&id).is_none_or(|g| g.deleting) {
            return; // the group is gone; nobody waits for it
        }
        let mut items = Vec::with_capacity(append.entries.len() + 1);
        if let Some(hs) = append.hard_state {
            if let Some(group) = self.groups.get_mut(&id) {
                group.hard_state = hs;
            }
            items.push((ItemBody::HardState(hs), Vec::new(), (0, 0)));
        }
        // Entries that wait for a record and are overwritten are never written: a record that
        // begins behind what is cut would leave a gap, if a checkpoint came between.
        let mut orphans = match append.entries.first() {
            Some(first) => self.log.take_back(id, first.index),
            None => Vec::new(),
        };
        for entry in append.entries {
            let payload = entry.payload.clone();
            let appended = Group::prepare(entry).and_then(|e| self.append_entry(id, e));
            let Some((body, pages)) = self.check(appended, effects) else {
                return;
            };
            items.push((body, payload, pages));
        }
        let last = items.len();
        for (n, (body, payload, (payload_pages, nodes))) in items.into_iter().enumerate() {
            let mut notify = std::mem::take(&mut orphans);
            if n + 1 == last {
                notify.push(Notify::Append {
                    group: id,
                    ticket: append.ticket,
                });
            }
            self.log.pending.push_back(PendingItem {
                item: crate::format::record::Item {
                    group: id,
                    group_prev_seq: Seq(0),
                    body,
                },
                payload,
                payload_pages,
                nodes,
                notify,
                urgent: append.urgent,
            });
        }
        if last == 0 {
            effects.push(Effect::Durable {
                group: id,
                ticket: append.ticket,
            });
        }
    }

    fn append_entry(
        &mut self,
        id: GroupId,
        entry: LogEntry,
    ) -> Result<(ItemBody, (u32, u64)), StoreError> {
        let Some(group) = self.groups.get_mut(&id) else {
            return Err(StoreError::Invariant(format!("group {id} does not exist")));
        };
        group.cut_from(entry.index, &mut self.segs)?;
        if entry.index.0 != group.last_index().0 + 1 {
            return Err(StoreError::Invariant(format!(
                "group {id}: entry {} does not continue the log at {}",
                entry.index,
                group.last_index()
            )));
        }
        // What the node itself writes (under another key) no client has asked for.
        if entry.request.session.0 != 0 {
            self.counters.client_bytes_written += u64::from(entry.payload_pages) * PAGE_U64;
        }
        let body = ItemBody::Entry {
            term: entry.term,
            index: entry.index,
            kind: entry.kind,
            payload_page: 0,
            payload_pages: entry.payload_pages,
            data: entry.data.clone(),
        };
        let pages = entry.payload_pages;
        let operation = entry.operation.clone();
        group.push(entry);
        let subject = self.groups.get(&self.subject_of(id));
        let nodes = subject.map_or(0, |g| g.footprint_most(operation.as_deref()));
        Ok((body, (pages, nodes)))
    }

    /// Applies entries through an index, and what follows from a membership change among them. What
    /// cannot be applied yet waits.
    pub(crate) fn apply(
        &mut self,
        id: GroupId,
        through: RaftIndex,
        membership: Option<Membership>,
        effects: &mut Vec<Effect>,
    ) {
        if self.is_fed(id) {
            return; // what it is to become is on its way already
        }
        let Some(group) = self.groups.get_mut(&id).filter(|g| !g.deleting) else {
            return;
        };
        if group.parked.is_empty() && self.apply_through(id, through, effects) {
            self.join(id, membership);
        } else if let Some(group) = self.groups.get_mut(&id) {
            group.parked.push_back((through, membership));
            self.parked.insert(id);
        }
    }

    fn join(&mut self, id: GroupId, membership: Option<Membership>) {
        if let Some((group, membership)) = self.groups.get_mut(&id).zip(membership) {
            let was_single = group.is_single();
            group.meta.membership = membership;
            if was_single && !group.is_single() {
                // Of rollbacks so far nobody kept count: who lacks anything from before begins with an empty map.
                group.jumps.clear();
                group.jumps_since = group.max_stamp;
            }
        }
    }

    /// Goes on with what waits, where it can.
    pub(crate) fn apply_parked(&mut self, effects: &mut Vec<Effect>) {
        for id in self.parked.clone() {
            while let Some(group) = self.groups.get_mut(&id) {
                let Some((through, membership)) = group.parked.pop_front() else {
                    break;
                };
                if !self.apply_through(id, through, effects) {
                    if let Some(group) = self.groups.get_mut(&id) {
                        group.parked.push_front((through, membership));
                    }
                    break;
                }
                self.join(id, membership);
            }
            if self.groups.get(&id).is_none_or(|g| g.parked.is_empty()) {
                self.parked.remove(&id);
            }
        }
    }

    /// Applies entries through an index. False when one of them has to wait for a checkpoint.
    fn apply_through(
        &mut self,
        id: GroupId,
        through: RaftIndex,
        effects: &mut Vec<Effect>,
    ) -> bool {
        if self.fenced.is_some() {
            return true;
        }
        let late = self.config.sabotage == Sabotage::LiveBitLate;
        let Some(group) = self.groups.get(&id).filter(|g| !g.deleting) else {
            return true;
        };
        let mut waits = false;
        let mut result = Ok(());
        let before = group.load();
        while let Some(group) = self.groups.get(&id) {
            if group.applied >= through || result.is_err() {
                break;
            }
            let index = RaftIndex(group.applied.0 + 1);
            let Some(entry) = group.entry(index) else {
                result = Err(StoreError::Invariant(format!(
                    "group {id}: entry {index} is to be applied and not in the log"
                )));
                break;
            };
            let operation = entry.operation.clone();
            if Self::waits_for_keys(group, operation.as_deref()) {
                waits = true;
                break;
            }
            let subject = self.groups.get(&self.subject_of(id)).unwrap_or(group);
            if operations::waits_for_checkpoint(subject, &self.forest, operation.as_deref())
                || self.clone_waits(id, operation.as_deref())
            {
                self.checkpoint_wanted |= self.checkpoint.is_none();
                waits = true;
                break;
            }
            let Some(group) = self.groups.get_mut(&id) else {
                break;
            };
            let Some(entry) = group.entry_mut(index) else {
                break;
            };
            if late && !entry.vaddr.is_none() {
                entry.live = true;
                result = self
                    .segs
                    .set_live(entry.vaddr, u64::from(entry.payload_pages))
                    .map_err(liveness);
            }
            let entry = entry.clone();
            group.applied = index;
            match self.apply_one(id, &entry) {
                Ok(outcome) => {
                    // What it held is given back by a checkpoint, and that of many by one.
                    self.deleted |= matches!(outcome, Outcome::SnapshotDeleted(_));
                    self.checkpoint_wanted |=
                        matches!(outcome, Outcome::RolledBack(_)) || says_resealed(&entry);
                    effects.push(Effect::Applied {
                        group: id,
                        index,
                        term: entry.term,
                        request: entry.request,
                        outcome,
                    });
                }
                Err(error) => result = Err(error),
            }
        }
        let after = self.groups.get(&id).map_or(before, Group::load);
        self.load.replace(before, after);
        self.drop_applied(id, effects);
        self.check(result, effects);
        !waits
    }

    /// Nobody asks a group of one for what it has applied. Dropped as it comes: the entries of a long log
    /// at once would hold everybody up.
    fn drop_applied(&mut self, id: GroupId, effects: &mut Vec<Effect>) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        let much = group.applied.0 >= group.truncated.0 .0 + APPLIED_KEPT_MAX;
        if !much || group.suspended || !group.is_single() {
            return;
        }
        if let Some((index, term)) = group.truncate(group.applied) {
            effects.push(Effect::LogTruncated {
                group: id,
                index,
                term,
            });
        }
    }

    /// Applies one entry, which counts as applied already.
    pub(crate) fn apply_one(
        &mut self,
        id: GroupId,
        entry: &LogEntry,
    ) -> Result<Outcome, StoreError> {
        let operation = entry.operation.as_deref();
        if self.groups.get(&id).is_some_and(|g| g.meta.feeds.0 != 0) {
            return self.apply_fed(id, entry);
        }
        if let Some(operation @ Operation::Clone { .. }) = operation {
            return Ok(self.begin_clone(id, entry.index, operation));
        }
        let next = self.counters.checkpoints + 1;
        let Some(group) = self.groups.get_mut(&id) else {
            return Err(StoreError::Invariant(format!("group {id} does not exist")));
        };
        let outcome = apply_entry(group, entry, &mut self.segs, &mut self.forest)?;
        if let (Outcome::RolledBack(at), Some(Operation::Rollback { to, .. })) =
            (&outcome, operation)
        {
            group.rolled_back_in = next;
            group.note_jump(*at, *to);
        }
        if matches!(outcome, Outcome::SnapshotTaken(_)) {
            self.note_manifest(id, entry.index, entry.term);
        }
        Ok(outcome)
    }
}

/// Whether older keys may be spent from this entry on, as far as a checkpoint says so.
fn says_resealed(entry: &LogEntry) -> bool {
    let operation = entry.operation.as_deref();
    matches!(operation, Some(Operation::OpenEpoch { resealed: true, .. }))
}

/// Applies one entry: the map points at what the entry brought.
fn apply_entry(
    group: &mut Group,
    entry: &LogEntry,
    segs: &mut Segments,
    forest: &mut Forest,
) -> Result<Outcome, StoreError> {
    if entry.kind != EntryKind::Normal {
        return Ok(Outcome::Membership);
    }
    group.requests.note(entry.request, entry.index);
    let Some(operation) = entry.operation.as_deref() else {
        return Ok(Outcome::Done);
    };
    match operation {
        Operation::Write {
            lba, stamp, blocks, ..
        } => {
            let extent = Extent {
                count: blocks.len() as u64,
                kind: LeafKind::Data,
                stamp: *stamp,
                vaddr: entry.vaddr,
                auths: Auths::of(blocks.iter().map(|b| b.auth)),
            };
            insert(group, entry.index, *lba, extent, segs)?;
        }
        Operation::Discard { range, stamp } => {
            let extent = hollow(*range, *stamp, LeafKind::Discarded);
            insert(group, entry.index, range.start.0, extent, segs)?;
        }
        Operation::Zero { range, stamp } => {
            let extent = hollow(*range, *stamp, LeafKind::Zero);
            insert(group, entry.index, range.start.0, extent, segs)?;
        }
        Operation::OpenEpoch {
            nonce,
            key_id,
            salt,
            resealed,
        } => {
            // After an accepted loss the lost entries may have opened epochs that stamps know of.
            let highest = group.epoch.max(group.max_stamp.epoch());
            let Some(number) = highest.0.checked_add(1) else {
                return Err(StoreError::Invariant(format!(
                    "group {}: all epochs are used",
                    group.meta.group
                )));
            };
            group.epoch = Epoch(number);
            if *key_id != 0 {
                group.epochs.push(EpochEntry {
                    epoch: group.epoch,
                    key_id: *key_id,
                    salt: *salt,
                    volume: group.meta.volume,
                });
                group.write_under(*key_id, *resealed);
            }
            return Ok(Outcome::EpochOpened {
                epoch: group.epoch,
                nonce: *nonce,
            });
        }
        Operation::Resize { size_bytes } => {
            group.meta.size_bytes = group.meta.size_bytes.max(*size_bytes);
            return Ok(Outcome::Resized(group.meta.size_bytes));
        }
        Operation::Rename { name } => {
            group.meta.name.clone_from(name);
            return Ok(Outcome::Renamed);
        }
        Operation::Relabel { labels } => {
            return Ok(Outcome::Relabelled(relabel(&mut group.meta.labels, labels)));
        }
        Operation::Snapshot {
            stamp,
            created_us,
            name,
            labels,
        } => {
            let meta = SnapshotMeta {
                name: name.clone(),
                created_us: *created_us,
                labels: labels.clone(),
                size_bytes: 0,
            };
            return operations::take(group, forest, *stamp, meta);
        }
        Operation::DeleteSnapshot { cut } => {
            return Ok(operations::delete(group, forest, *cut));
        }
        Operation::Rollback {
            stamp,
            created_us,
            to,
            keep,
        } => {
            let meta = SnapshotMeta {
                name: keep.clone().unwrap_or_default(),
                created_us: *created_us,
                ..SnapshotMeta::default()
            };
            return operations::roll_back(group, forest, *stamp, *to, keep.is_some(), meta);
        }
        // A group of its own: [`Engine::begin_clone`]; and what only feeds have.
        Operation::Clone { .. } | Operation::Ingest { .. } | Operation::Branch { .. } => {}
    }
    Ok(Outcome::Done)
}

/// False when there would be too many.
fn relabel(
    labels: &mut BTreeMap<String, String>,
    changes: &BTreeMap<String, Option<String>>,
) -> bool {
    let mut changed = labels.clone();
    for (key, value) in changes {
        match value {
            Some(value) => _ = changed.insert(key.clone(), value.clone()),
            None => _ = changed.remove(key),
        }
    }
    let fits = changed.len() <= limits::METADATA_LABELS_MAX;
    if fits {
        *labels = changed;
    }
    fits
}

fn hollow(range: BlockRange, stamp: Stamp, kind: LeafKind) -> Extent {
    Extent {
        count: range.count,
        kind,
        stamp,
        vaddr: VAddr::NONE,
        auths: Auths::None,
    }
}

fn insert(
    group: &mut Group,
    index: RaftIndex,
    start: u64,
    extent: Extent,
    segs: &mut Segments,
) -> Result<(), StoreError> {
    let first = extent.stamp;
    if first <= group.max_stamp {
        return Err(StoreError::Invariant(format!(
            "group {}: stamp {first} is not above {}",
            group.meta.group, group.max_stamp
        )));
    }
    let blocks = if extent.kind == LeafKind::Data {
        extent.count()
    } else {
        1
    };
    group.max_stamp = Stamp(first.0 + (blocks - 1));
    uncover(group, index, start, &extent);
    insert_extent(group, start, extent, segs)
}

/// What of an entry is still newest leaves the overlay; what later entries cover stays theirs.
fn uncover(group: &mut Group, index: RaftIndex, start: u64, extent: &Extent) {
    let range = BlockRange::new(start, extent.count());
    let mut others = Vec::new();
    group.overlay.remove(range, |at, piece| {
        if piece.index != index {
            others.push((at, piece));
        }
    });
    for (at, piece) in others {
        group.overlay.insert(at, piece, |_, _| {});
    }
}

/// Puts an extent into the newest layer; what it replaces there and nobody else sees dies.
pub(crate) fn insert_extent(
    group: &mut Group,
    start: u64,
    extent: Extent,
    segs: &mut Segments,
) -> Result<(), StoreError> {
    let mut result = Ok(());
    if extent.kind == LeafKind::Data {
        group.active_blocks += extent.count();
    }
    let (blocks, newest_cut) = (&mut group.active_blocks, group.newest_cut);
    let mut replaced = 0;
    let sees = |old: &Extent| {
        if old.kind == LeafKind::Data {
            old.count
        } else {
            0
        }
    };
    group.active.insert(start, extent, newest_cut, |old, dies| {
        replaced += sees(old);
        if dies && old.kind == LeafKind::Data && result.is_ok() {
            result = kill(segs, old.vaddr, old.count);
        }
    });
    *blocks -= replaced;
    result
}
