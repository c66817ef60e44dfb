//! Catch-up by versions: how a replica that its leader's retained log does not reach any more becomes what the
//! others are, at the cost of what has changed.
//!
//! Stamps rise in the order of the log. What is missing in a map that holds everything up to some stamp is
//! therefore what has a higher one in the other map, and whole subtrees without are passed over
//! ([`harvest`]). Versions come in the order of their cuts, each as what it has above the one before.
//!
//! What comes goes into the log of a *feed*: a group of one beside the group that lags. Its entries change that
//! one's map ([`feed`]); they are durable, replayed and collected like any others. The lagging group itself
//! votes and keeps its log meanwhile, since entries in it may count for a majority, but it applies nothing.
//! Once its head is what the leader's was at an index, it is *published* as applied up to there: that, and the
//! end of the feed, are one checkpoint. A crash before leaves the feed, which goes on.

mod feed;
mod harvest;

pub(crate) use harvest::HarvestState;
pub use harvest::{Harvest, HarvestRequest};

use crate::engine::Engine;
use crate::error::{CatalogError, StoreError};
use crate::event::Effect;
use crate::format::checkpoint::{FeedEntry, GroupEntry, GroupMeta, Jump};
use crate::format::manifest::{Manifest, ManifestVersion};
use crate::format::versions::{Version, VersionKind};
use crate::group::{kill, Group};
use crate::snapshot::forest::Forest;
use esker_base::{limits, Epoch, GroupId, RaftIndex, Stamp, Term};
use std::collections::BTreeSet;

/// Rollbacks that a group remembers. A replica that lags behind more of them begins with an empty map.
pub(crate) const JUMPS_MAX: usize = 1024;
/// Set in the id of a feed: it is otherwise that of the group it feeds.
const FEED_BIT: u64 = 1 << 62;

/// The group that feeds another one.
#[must_use]
pub fn feed_of(group: GroupId) -> GroupId {
    GroupId(group.0 | FEED_BIT)
}

/// The group that this one feeds, if it is a feed.
#[must_use]
pub fn feed_target(group: GroupId) -> Option<GroupId> {
    (group.0 & FEED_BIT != 0).then_some(GroupId(group.0 & !FEED_BIT))
}

/// How far a group that lags has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedView {
    /// What the feed's head holds.
    pub at: FeedEntry,
    /// Last entry of the feed's log.
    pub last_index: RaftIndex,
    /// Last one that is in the map.
    pub applied: RaftIndex,
}

impl Group {
    /// The volume was rolled back: whoever was absent must know.
    pub(crate) fn note_jump(&mut self, at: Stamp, to: Stamp) {
        if self.is_single() {
            return;
        }
        if self.jumps.len() >= JUMPS_MAX {
            let oldest = self.jumps.remove(0);
            self.jumps_since = oldest.at;
        }
        self.jumps.push(Jump { at, to });
    }
}

impl Engine {
    /// The next snapshot of a group that is applied gets a manifest, see [`Engine::manifest`].
    pub fn want_manifest(&mut self, group: GroupId) {
        if let Some(group) = self.groups.get_mut(&group) {
            group.wants_manifest = true;
        }
    }

    /// The newest manifest of a group that was asked for.
    #[must_use]
    pub fn manifest(&self, group: GroupId) -> Option<&Manifest> {
        self.groups.get(&group)?.manifest.as_deref()
    }

    /// Nobody needs a group's manifest any more.
    pub fn drop_manifest(&mut self, group: GroupId) {
        if let Some(group) = self.groups.get_mut(&group) {
            (group.manifest, group.wants_manifest) = (None, false);
        }
    }

    /// A snapshot was taken by the entry at an index: the volume is noted as it is now, if somebody wants that.
    pub(crate) fn note_manifest(&mut self, id: GroupId, index: RaftIndex, term: Term) {
        let leaving: BTreeSet<Epoch> = self.leaving(id).collect();
        let Some(group) = self.groups.get_mut(&id).filter(|g| g.wants_manifest) else {
            return;
        };
        group.wants_manifest = false;
        let mut manifest = manifest_of(group, &self.forest, index, term);
        manifest
            .state
            .epochs
            .retain(|e| !leaving.contains(&e.epoch));
        group.manifest = Some(Box::new(manifest));
    }

    /// A group as it is applied, for a replica that lags where no entry can be committed any more that would note it: nobody
    /// changes it then. It holds as long as [`Engine::is_unchanged`] does.
    #[must_use]
    pub fn head_manifest(&self, id: GroupId) -> Option<Manifest> {
        let group = self.groups.get(&id);
        let group = group.filter(|g| !g.deleting && !g.suspended && !self.is_fed(id))?;
        let term = match group.entry(group.applied) {
            Some(entry) => entry.term,
            None if group.truncated.0 == group.applied => group.truncated.1,
            None => return None,
        };
        let mut manifest = manifest_of(group, &self.forest, group.applied, term);
        let leaving: BTreeSet<Epoch> = self.leaving(id).collect();
        manifest
            .state
            .epochs
            .retain(|e| !leaving.contains(&e.epoch));
        let newest = manifest.versions.last().map(|v| v.cut);
        if newest != Some(group.max_stamp) || manifest.is_rolled_back() {
            // Without any version there is no head in the forest.
            let head = self.forest.head(id);
            let parent = head.map(|head| nearest_snapshot(&self.forest, head));
            manifest.head = Some(parent.unwrap_or_default());
        }
        Some(manifest)
    }

    /// Whether a group has a snapshot, or a rewind point, with this stamp.
    #[must_use]
    pub fn is_cut(&self, id: GroupId, stamp: Stamp) -> bool {
        self.forest.at(id, stamp).is_some()
    }

    /// A group has this stamp as the highest: nothing was applied since that changed a block.
    #[must_use]
    pub fn is_unchanged(&self, id: GroupId, stamp: Stamp) -> bool {
        let group = self.groups.get(&id).filter(|g| !g.deleting);
        group.is_some_and(|g| g.max_stamp == stamp)
    }

    /// The stamps of all snapshots of a group, rewind points included, rising.
    #[must_use]
    pub fn cuts(&self, group: GroupId) -> Vec<Stamp> {
        self.forest.snapshots(group).map(|v| v.cut).collect()
    }

    /// The size that a replica begins with which learns, in bytes: that of the oldest snapshot, or of the head without one.
    ///
    /// Sizes only grow, and a log says where they do. What begins larger than a snapshot was would keep that one with
    /// the size it began with.
    #[must_use]
    pub fn size_to_begin_with(&self, id: GroupId) -> Option<u64> {
        let group = self.groups.get(&id).filter(|g| !g.deleting)?;
        let oldest = self.forest.snapshots(id).next();
        let oldest = oldest.map_or(u64::MAX, |v| v.meta.size_bytes);
        Some(oldest.min(group.meta.size_bytes))
    }

    /// How far a group has come that is fed.
    #[must_use]
    pub fn feed(&self, group: GroupId) -> Option<FeedView> {
        let feed = self.groups.get(&feed_of(group)).filter(|g| !g.deleting)?;
        Some(FeedView {
            at: feed.feed?,
            last_index: feed.last_index(),
            applied: feed.applied,
        })
    }

    /// Most blocks of an entry that this store takes: records lie within a segment.
    #[must_use]
    pub fn ingest_blocks_max(&self) -> u64 {
        u64::from(self.sb.slots() / 2).clamp(1, limits::ENTRY_BLOCKS_MAX)
    }

    /// The meta of a feed for a group.
    #[must_use]
    pub fn feed_meta(&self, group: GroupId) -> Option<GroupMeta> {
        let group = self.groups.get(&group).filter(|g| !g.deleting)?;
        let mut meta = GroupMeta {
            group: feed_of(group.meta.group),
            feeds: group.meta.group,
            labels: Default::default(),
            membership: Default::default(),
            ..group.meta.clone()
        };
        meta.membership.voters = vec![meta.replica];
        Some(meta)
    }

    /// What a feed begins with: the head of the group it feeds as it is applied.
    pub(crate) fn feed_begins(&self, meta: &GroupMeta) -> Option<FeedEntry> {
        let target = self.groups.get(&meta.feeds)?;
        let newest = target.jumps.last();
        // Right after a rollback it is what that went back to.
        let rolled_back = newest.filter(|jump| jump.at == target.max_stamp);
        let at = rolled_back.map_or(target.max_stamp, |jump| jump.to);
        Some(FeedEntry {
            base: at,
            reach: at,
        })
    }

    /// A fed group is what its leader was at an index: from there on it follows the log again. Its feed ends.
    pub(crate) fn publish(
        &mut self,
        token: u64,
        id: GroupId,
        state: &GroupEntry,
        whole: FeedEntry,
        effects: &mut Vec<Effect>,
    ) {
        let feed_id = feed_of(id);
        let waiting = self.log.pending.iter().any(|p| p.item.group == feed_id);
        let feed = self.groups.get(&feed_id).filter(|g| !g.deleting);
        let ready = feed.is_some_and(|feed| {
            let at = feed.feed.unwrap_or_default();
            feed.applied == feed.last_index() && at == whole && at.reach <= state.max_stamp
        });
        let target = self.groups.get(&id).filter(|g| !g.deleting);
        let higher = target.is_some_and(|g| g.applied < state.applied);
        if self.fenced.is_some() || !ready || waiting || !higher {
            let result = Err(match &self.fenced {
                Some(fenced) => CatalogError::Fenced(fenced.to_string()),
                None => CatalogError::UnknownGroup,
            });
            effects.push(Effect::CatalogDone { token, result });
            return;
        }
        let result = self.publish_now(id, state);
        if self.check(result, effects).is_none() {
            return;
        }
        if let Some(feed) = self.groups.get_mut(&feed_id) {
            feed.deleting = true; // gone when the checkpoint begins that holds all of this
        }
        self.catalog_durable.push(token);
        self.checkpoint_wanted = true;
    }

    fn publish_now(&mut self, id: GroupId, state: &GroupEntry) -> Result<(), StoreError> {
        let Some(group) = self.groups.get_mut(&id) else {
            return Ok(());
        };
        let before = group.load();
        let point = (state.truncated_index, state.truncated_term);
        // What follows a matching entry may have been acknowledged and stays; anything else was never
        // committed, or is part of what came.
        let matches = group.entry(point.0).is_some_and(|e| e.term == point.1);
        let applied = group.applied;
        let (kept, gone): (Vec<_>, Vec<_>) = group
            .log
            .drain(..)
            .partition(|e| matches && e.index > point.0);
        group.log.extend(kept);
        for entry in gone {
            if entry.live && entry.index > applied && !entry.vaddr.is_none() {
                let pages = u64::from(entry.payload_pages);
                kill(&mut self.segs, entry.vaddr, pages)?;
            }
        }
        group.truncated = point;
        group.applied = state.applied;
        group.hard_state.commit = group.hard_state.commit.max(state.applied);
        group.hard_state.term = group.hard_state.term.max(point.1);
        let meta = &state.meta;
        group.meta.name.clone_from(&meta.name);
        group.meta.labels.clone_from(&meta.labels);
        group.meta.membership.clone_from(&meta.membership);
        group.meta.size_bytes = group.meta.size_bytes.max(meta.size_bytes);
        group.meta.key_id = meta.key_id;
        group.epoch = state.epoch;
        group.resealed = state.resealed;
        group.max_stamp = state.max_stamp;
        group.requests = crate::requests::Requests::from_entries(state.requests.clone());
        group.jumps.clone_from(&state.jumps);
        group.jumps_since = state.jumps_since;
        group.rebuild_overlay();
        self.load.replace(before, group.load());
        self.exchange_epochs(id, &state.epochs);
        Ok(())
    }

    /// After a replay: what of a feed's log was lost comes again, and what lies behind the gap with it.
    pub(crate) fn mend_feeds(&mut self) -> Result<(), StoreError> {
        for group in self.groups.values_mut() {
            if group.feed.is_none() || !group.suspended {
                continue;
            }
            let mut next = group.truncated.0;
            let whole = group.log.iter().take_while(|e| {
                next = RaftIndex(next.0 + 1);
                e.index == next
            });
            let whole = whole.count();
            for entry in group.log.drain(whole..) {
                if entry.live && entry.index > group.applied && !entry.vaddr.is_none() {
                    let pages = u64::from(entry.payload_pages);
                    kill(&mut self.segs, entry.vaddr, pages)?;
                }
            }
            group.suspended = false;
        }
        Ok(())
    }
}

/// A group as it is applied at an index.
fn manifest_of(group: &Group, forest: &Forest, index: RaftIndex, term: Term) -> Manifest {
    let mut state = group.to_entry();
    state.log.clear();
    state.hard_state = crate::format::record::HardState::default();
    (state.truncated_index, state.truncated_term, state.applied) = (index, term, index);
    (state.root, state.root_level) = Default::default();
    (state.last_seq, state.suspended, state.ended) = Default::default();
    let versions = forest.snapshots(group.meta.group);
    let versions = versions.map(|v| ManifestVersion {
        cut: v.cut,
        parent: nearest_snapshot(forest, v),
        meta: v.meta.clone(),
    });
    Manifest {
        state,
        versions: versions.collect(),
        head: None,
    }
}

/// The cut of the nearest snapshot of its volume that a version goes back to; zero for none.
fn nearest_snapshot(forest: &Forest, version: &Version) -> Stamp {
    let mut at = forest.get(version.parent);
    while let Some(v) = at.filter(|v| v.group == version.group) {
        if v.kind == VersionKind::Snapshot {
            return v.cut;
        }
        at = forest.get(v.parent);
    }
    Stamp(0)
}
