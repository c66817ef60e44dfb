//! The versions of all volumes of a store: trees whose leaves are heads.

use crate::format::checkpoint::DiscardEntry;
use crate::format::node::ChildPointer;
use crate::format::table::Key;
use crate::format::version_records::{encode_version, version_key, PART_BITS};
use crate::format::versions::{DeadlistId, SnapshotMeta, Version, VersionId, VersionKind, LEVELS};
use esker_base::{GroupId, Stamp};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The stamp of a head: above all others.
pub const HEAD_CUT: Stamp = Stamp(u64::MAX);

/// What a version's parent uses of its map: everything not younger than the parent's cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Floor {
    /// The parent's cut; zero without one.
    pub cut: Stamp,
    /// Nodes of this level and above are the version's own, whatever their stamps say: the map was
    /// lower at the cut.
    pub sure: u8,
}

impl Floor {
    /// Whether a node is the version's own.
    pub fn owns(&self, level: u8, max_stamp: Stamp) -> bool {
        max_stamp > self.cut || level >= self.sure
    }

    /// The discard of what a version whose parent has this cut owns of a subtree.
    pub fn discard(&self, node: ChildPointer, level: u8) -> DiscardEntry {
        DiscardEntry {
            node,
            level,
            floor: self.cut,
            sure: self.sure,
        }
    }
}

/// The parts of a head that later operations change, as a checkpoint that began before them has them.
#[derive(Clone, Copy, Debug)]
struct FrozenHead {
    parent: VersionId,
    deadlist: DeadlistId,
    grown: [Stamp; LEVELS],
}

/// What a checkpoint says of versions, where it differs from what they are now.
#[derive(Clone, Debug, Default)]
pub struct FrozenForest {
    next_version: u64,
    next_deadlist: u64,
    heads: BTreeMap<VersionId, FrozenHead>,
    /// Snapshots that were deleted since.
    hidden_since: BTreeSet<VersionId>,
}

/// All versions of a store. Volumes without snapshots have none.
#[derive(Debug)]
pub struct Forest {
    versions: BTreeMap<VersionId, Version>,
    heads: BTreeMap<GroupId, VersionId>,
    names: BTreeMap<(GroupId, String), VersionId>,
    cuts: BTreeMap<(GroupId, Stamp), VersionId>,
    /// Those of them that are rewind points, and when they were taken.
    points: BTreeMap<(GroupId, Stamp), u64>,
    children: BTreeSet<(VersionId, VersionId)>,
    members: BTreeSet<(GroupId, VersionId)>,
    hidden: BTreeSet<VersionId>,
    owners: BTreeMap<DeadlistId, VersionId>,
    counts: BTreeMap<GroupId, usize>,
    next_version: u64,
    next_deadlist: u64,
    frozen: Option<FrozenForest>,
    /// Versions whose records the next checkpoint writes.
    changed: BTreeSet<VersionId>,
    /// Those that the checkpoint on its way writes because of what it did.
    changed_in_checkpoint: BTreeSet<VersionId>,
    /// Those whose sums are to be taken anew.
    stale: BTreeSet<VersionId>,
    /// Versions taken apart since the store was opened.
    removed: u64,
}

impl Default for Forest {
    fn default() -> Self {
        Self {
            versions: BTreeMap::new(),
            heads: BTreeMap::new(),
            names: BTreeMap::new(),
            cuts: BTreeMap::new(),
            points: BTreeMap::new(),
            children: BTreeSet::new(),
            members: BTreeSet::new(),
            hidden: BTreeSet::new(),
            owners: BTreeMap::new(),
            counts: BTreeMap::new(),
            next_version: 1,
            next_deadlist: 1,
            frozen: None,
            changed: BTreeSet::new(),
            changed_in_checkpoint: BTreeSet::new(),
            stale: BTreeSet::new(),
            removed: 0,
        }
    }
}

impl Forest {
    /// The forest of a checkpoint; none when it contradicts itself.
    pub fn from_table(
        versions: Vec<Version>,
        next_version: u64,
        next_deadlist: u64,
    ) -> Option<Self> {
        let mut forest = Self {
            next_version: next_version.max(1),
            next_deadlist: next_deadlist.max(1),
            ..Self::default()
        };
        let mut deadlists = BTreeSet::new();
        for version in versions {
            let fits = version.id.0 < forest.next_version
                && version.deadlist.0 < forest.next_deadlist
                && deadlists.insert(version.deadlist)
                && !forest.versions.contains_key(&version.id);
            if !fits {
                return None;
            }
            forest.index(&version);
            forest.stale.insert(version.id);
            forest.versions.insert(version.id, version);
        }
        let whole = forest.versions.values().all(|v| {
            let parent = forest.versions.get(&v.parent);
            v.parent.0 == 0 || parent.is_some_and(|p| p.cut < v.cut && p.kind != VersionKind::Head)
        });
        whole.then_some(forest)
    }

    /// An operation changed what the next checkpoint says of a version.
    fn mark(&mut self, id: VersionId) {
        self.changed.insert(id);
        self.stale.insert(id);
    }

    /// The checkpoint on its way changed a version, as it has it itself. What is younger or not the
    /// same in it changes for the next one as well.
    fn mark_in_checkpoint(&mut self, id: VersionId) {
        self.changed_in_checkpoint.insert(id);
        self.stale.insert(id);
        let frozen = self.frozen.as_ref();
        if frozen.is_none_or(|f| id.0 >= f.next_version || f.heads.contains_key(&id)) {
            self.changed.insert(id);
        }
    }

    /// Every version is written by the next checkpoint.
    pub fn mark_all(&mut self) {
        self.changed.extend(self.versions.keys());
    }

    /// What begins at a version changes with it.
    fn stale_below(&mut self, id: VersionId) {
        let below = (id, VersionId(0))..=(id, VersionId(u64::MAX));
        let below = self.children.range(below).map(|(_, child)| *child);
        self.stale.extend(below);
    }

    /// Versions that changed since this was asked last, or what they begin at has.
    pub fn take_stale(&mut self) -> BTreeSet<VersionId> {
        std::mem::take(&mut self.stale)
    }

    /// Versions that operations have changed since this was asked last.
    pub fn take_changed(&mut self) -> BTreeSet<VersionId> {
        std::mem::take(&mut self.changed)
    }

    /// Versions that the checkpoint on its way has changed.
    pub fn take_changed_in_checkpoint(&mut self) -> BTreeSet<VersionId> {
        std::mem::take(&mut self.changed_in_checkpoint)
    }

    fn index(&mut self, v: &Version) {
        if v.parent.0 != 0 {
            self.children.insert((v.parent, v.id));
        }
        self.owners.insert(v.deadlist, v.id);
        self.members.insert((v.group, v.id));
        match v.kind {
            VersionKind::Head => _ = self.heads.insert(v.group, v.id),
            VersionKind::Hidden => _ = self.hidden.insert(v.id),
            VersionKind::Snapshot => {
                self.names.insert((v.group, v.meta.name.clone()), v.id);
                self.cuts.insert((v.group, v.cut), v.id);
                if v.meta.is_point() {
                    self.points.insert((v.group, v.cut), v.meta.created_us);
                }
                *self.counts.entry(v.group).or_default() += 1;
            }
        }
    }

    /// Versions taken apart since the store was opened.
    pub fn removed(&self) -> u64 {
        self.removed
    }

    /// No version at all.
    pub fn is_empty(&self) -> bool {
        self.versions.is_empty()
    }

    /// Number of snapshots of a group.
    pub fn count(&self, group: GroupId) -> usize {
        self.counts.get(&group).copied().unwrap_or(0)
    }

    /// The version a deadlist belongs to.
    pub fn owner(&self, deadlist: DeadlistId) -> Option<&Version> {
        self.versions.get(self.owners.get(&deadlist)?)
    }

    /// All versions.
    pub fn iter(&self) -> impl Iterator<Item = &Version> {
        self.versions.values()
    }

    /// A version.
    pub fn get(&self, id: VersionId) -> Option<&Version> {
        self.versions.get(&id)
    }

    /// A group's head, if it ever had a snapshot.
    pub fn head(&self, group: GroupId) -> Option<&Version> {
        self.versions.get(self.heads.get(&group)?)
    }

    /// A snapshot by its cut.
    pub fn at(&self, group: GroupId, cut: Stamp) -> Option<&Version> {
        self.versions.get(self.cuts.get(&(group, cut))?)
    }

    /// Snapshots of a group, by cut.
    pub fn snapshots(&self, group: GroupId) -> impl Iterator<Item = &Version> {
        let range = (group, Stamp(0))..=(group, HEAD_CUT);
        let ids = self.cuts.range(range).map(|(_, id)| id);
        ids.filter_map(|id| self.versions.get(id))
    }

    /// Rewind points of a group, by cut, with the time at which they were taken, in microseconds since the Unix
    /// epoch.
    pub fn points(&self, group: GroupId) -> impl DoubleEndedIterator<Item = (Stamp, u64)> + '_ {
        let range = (group, Stamp(0))..=(group, HEAD_CUT);
        let points = self.points.range(range);
        points.map(|((_, cut), created_us)| (*cut, *created_us))
    }

    /// Number of rewind points of a group.
    pub fn points_count(&self, group: GroupId) -> usize {
        // A volume without any is the common case, and asked about often.
        self.points(group).count()
    }

    /// Snapshots of a group that are younger than a stamp, by cut.
    pub fn snapshots_after(&self, group: GroupId, after: Stamp) -> impl Iterator<Item = &Version> {
        let from = (group, Stamp(after.0.saturating_add(1)));
        let ids = self.cuts.range(from..=(group, HEAD_CUT));
        ids.filter_map(|(_, id)| self.versions.get(id))
    }

    /// Versions with a number above one, by number.
    pub fn iter_after(&self, after: VersionId) -> impl Iterator<Item = &Version> {
        let from = VersionId(after.0.saturating_add(1));
        self.versions.range(from..).map(|(_, v)| v)
    }

    /// Versions of a group with a number above one, by number.
    pub fn of_group_after(
        &self,
        group: GroupId,
        after: VersionId,
    ) -> impl Iterator<Item = &Version> {
        let from = (group, VersionId(after.0.saturating_add(1)));
        let ids = self.members.range(from..=(group, VersionId(u64::MAX)));
        ids.filter_map(|(_, id)| self.versions.get(id))
    }

    /// The version of another group at which a group begins.
    pub fn foreign_base(&self, group: GroupId) -> Option<&Version> {
        let parents = self.of_group(group).map(|v| v.parent);
        let mut parents = parents.filter_map(|id| self.get(id));
        parents.find(|parent| parent.group != group)
    }

    /// A snapshot by its name.
    pub fn named(&self, group: GroupId, name: &str) -> Option<&Version> {
        self.versions
            .get(self.names.get(&(group, name.to_owned()))?)
    }

    /// Snapshots of a group that are older than a stamp, newest first.
    pub fn snapshots_before(
        &self,
        group: GroupId,
        before: Stamp,
    ) -> impl Iterator<Item = &Version> {
        let ids = self.cuts.range((group, Stamp(0))..(group, before)).rev();
        ids.filter_map(|(_, id)| self.versions.get(id))
    }

    /// Whether a snapshot has this name.
    pub fn has_name(&self, group: GroupId, name: &str) -> bool {
        self.names.contains_key(&(group, name.to_owned()))
    }

    /// All versions of a group, deleted ones included.
    pub fn of_group(&self, group: GroupId) -> impl Iterator<Item = &Version> {
        let range = (group, VersionId(0))..=(group, VersionId(u64::MAX));
        let ids = self.members.range(range).map(|(_, id)| id);
        ids.filter_map(|id| self.versions.get(id))
    }

    /// The versions that begin at one.
    pub fn children(&self, id: VersionId) -> impl Iterator<Item = VersionId> + '_ {
        let range = (id, VersionId(0))..=(id, VersionId(u64::MAX));
        self.children.range(range).map(|(_, child)| *child)
    }

    /// The cut of a version's parent.
    pub fn parent_cut(&self, id: VersionId) -> Stamp {
        let parent = self.get(id).and_then(|v| self.get(v.parent));
        parent.map_or(Stamp(0), |p| p.cut)
    }

    /// The cut of the nearest version above one whose map can be walked as a whole.
    pub fn whole_parent_cut(&self, id: VersionId) -> Stamp {
        let mut at = self.get(id).and_then(|v| self.get(v.parent));
        while let Some(v) = at.filter(|v| v.has_gaps()) {
            at = self.get(v.parent);
        }
        at.map_or(Stamp(0), |v| v.cut)
    }

    /// The newest cut under a group's head.
    pub fn newest_cut(&self, group: GroupId) -> Stamp {
        self.head(group)
            .map_or(Stamp(0), |head| self.parent_cut(head.id))
    }

    /// What the parent of a version with this history of levels uses.
    pub fn floor(cut: Stamp, grown: &[Stamp; LEVELS]) -> Floor {
        let sure = (0u8..).zip(grown).find(|(_, stamp)| **stamp > cut);
        let levels = u8::try_from(LEVELS).unwrap_or(u8::MAX);
        Floor {
            cut,
            sure: sure.map_or(levels, |(level, _)| level),
        }
    }

    /// Deleted versions that are not gone yet, newest first. Those that the checkpoint on its way has
    /// as snapshots are left out: what it says must be whole.
    pub fn hidden(&self) -> impl Iterator<Item = VersionId> + '_ {
        let since = |id: &VersionId| {
            let frozen = self.frozen.as_ref();
            frozen.is_some_and(|f| f.hidden_since.contains(id))
        };
        self.hidden
            .iter()
            .rev()
            .copied()
            .filter(move |id| !since(id))
    }

    /// Whether a version is one of those.
    pub fn is_hidden(&self, id: VersionId) -> bool {
        let since = self
            .frozen
            .as_ref()
            .is_some_and(|f| f.hidden_since.contains(&id));
        self.hidden.contains(&id) && !since
    }

    /// Something that was born with a deleted version was given back while others begin at it.
    pub fn released(&mut self, id: VersionId, is_data: bool) {
        self.mark_in_checkpoint(id);
        if let Some(v) = self.versions.get_mut(&id) {
            let count = if is_data {
                &mut v.released
            } else {
                &mut v.released_nodes
            };
            *count += 1;
        }
    }

    /// An entry of something that was given back is dropped. False when there can be none.
    pub fn drop_released(&mut self, id: VersionId, is_data: bool) -> bool {
        self.mark_in_checkpoint(id);
        let Some(v) = self.versions.get_mut(&id) else {
            return false;
        };
        let count = if is_data {
            &mut v.released
        } else {
            &mut v.released_nodes
        };
        let known = *count > 0;
        *count = count.saturating_sub(1);
        known
    }

    /// What is left of the count when a version goes: entries of it are further down. False when the
    /// heir is none that can have them.
    pub fn inherit_released(&mut self, id: VersionId, heir: VersionId) -> bool {
        let left = self
            .get(id)
            .map_or((0, 0), |v| (v.released, v.released_nodes));
        if left == (0, 0) {
            return true;
        }
        self.mark_in_checkpoint(heir);
        let heir = self.versions.get_mut(&heir);
        let Some(heir) = heir.filter(|v| v.kind == VersionKind::Hidden) else {
            return false;
        };
        heir.released += left.0;
        heir.released_nodes += left.1;
        true
    }

    /// A rewind point, or a deleted version, that is gone without a trace when the points go.
    pub fn only_leads_on(&self, v: &Version) -> bool {
        let goes = match v.kind {
            VersionKind::Head => false,
            VersionKind::Snapshot => v.meta.is_point(),
            VersionKind::Hidden => true,
        };
        let mut children = self.children(v.id);
        let same = |id| self.get(id).is_some_and(|child| child.group == v.group);
        goes && children.next().is_none_or(same) && children.next().is_none()
    }

    /// The cut of the nearest version from one on towards the root that stays when rewind points go; at most `most`
    /// are passed over.
    pub fn stays_below(&self, id: VersionId, most: usize) -> Stamp {
        let mut at = self.get(id);
        for _ in 0..most {
            match at.filter(|v| self.only_leads_on(v)) {
                Some(v) => at = self.get(v.parent),
                None => break,
            }
        }
        at.map_or(Stamp(0), |v| v.cut)
    }

    fn new_version(&mut self) -> (VersionId, DeadlistId) {
        let ids = (VersionId(self.next_version), DeadlistId(self.next_deadlist));
        self.next_version += 1;
        self.next_deadlist += 1;
        ids
    }

    /// The head of a group is kept as a snapshot, and goes on from it.
    pub fn cut(&mut self, group: GroupId, stamp: Stamp, meta: SnapshotMeta) -> VersionId {
        let head_id = match self.heads.get(&group) {
            Some(id) => *id,
            None => {
                let (id, deadlist) = self.new_version();
                let head = Version {
                    id,
                    group,
                    kind: VersionKind::Head,
                    parent: VersionId(0),
                    cut: HEAD_CUT,
                    deadlist,
                    grown: [Stamp(0); LEVELS],
                    root: None,
                    meta: Arc::default(),
                    released: 0,
                    released_nodes: 0,
                };
                self.index(&head);
                self.versions.insert(id, head);
                id
            }
        };
        let (id, fresh) = self.new_version();
        let Some(head) = self.versions.get_mut(&head_id) else {
            return id;
        };
        let snapshot = Version {
            id,
            group,
            kind: VersionKind::Snapshot,
            parent: head.parent,
            cut: stamp,
            deadlist: head.deadlist,
            grown: head.grown,
            root: None,
            meta: Arc::new(meta),
            released: 0,
            released_nodes: 0,
        };
        self.children.remove(&(head.parent, head_id));
        (head.parent, head.deadlist) = (id, fresh);
        self.children.insert((id, head_id));
        self.owners.insert(fresh, head_id);
        self.index(&snapshot);
        self.versions.insert(id, snapshot);
        self.mark(head_id);
        self.mark(id);
        id
    }

    /// The head of a new group begins at a version.
    pub fn begin_clone(&mut self, group: GroupId, base: VersionId) {
        let grown = self.get(base).map_or([Stamp(0); LEVELS], |v| v.grown);
        let (id, deadlist) = self.new_version();
        let head = Version {
            id,
            group,
            kind: VersionKind::Head,
            parent: base,
            cut: HEAD_CUT,
            deadlist,
            grown,
            root: None,
            meta: Arc::default(),
            released: 0,
            released_nodes: 0,
        };
        self.index(&head);
        self.versions.insert(id, head);
        self.mark(id);
    }

    /// Whether clones of a group's snapshots wait for a checkpoint to merge those.
    pub fn has_clones_waiting(&self, group: GroupId) -> bool {
        let merged = |v: &&Version| v.kind == VersionKind::Head || v.root.is_some();
        let mut pending = self.of_group(group).filter(|v| !merged(v));
        let foreign = |id: VersionId| self.get(id).is_some_and(|v| v.group != group);
        pending.any(|v| self.children(v.id).any(foreign))
    }

    /// A clone is gone before it had a map of its own.
    pub fn drop_head(&mut self, group: GroupId) {
        if let Some(id) = self.heads.remove(&group) {
            self.remove(id);
            self.mark(id);
        }
    }

    /// A version whose map is the one the head had.
    pub fn settle(&mut self, id: VersionId, root: (ChildPointer, u8)) {
        self.mark(id);
        self.stale_below(id);
        if let Some(v) = self.versions.get_mut(&id) {
            v.root = Some(root);
        }
    }

    /// The head of a group begins at a snapshot of it.
    pub fn go_on_from(&mut self, group: GroupId, target: &Version) {
        let Some(id) = self.heads.get(&group).copied() else {
            return;
        };
        self.reparent(id, target.id);
        self.mark(id);
        if let Some(head) = self.versions.get_mut(&id) {
            head.grown = target.grown;
        }
    }

    /// The head of a group begins with an empty map.
    pub fn go_on_from_nothing(&mut self, group: GroupId) {
        let Some(id) = self.heads.get(&group).copied() else {
            return;
        };
        self.reparent(id, VersionId(0));
        self.mark(id);
        if let Some(head) = self.versions.get_mut(&id) {
            head.grown = [Stamp(0); LEVELS];
        }
    }

    /// A snapshot is deleted: it disappears for its users, and is gone when nothing begins at it.
    pub fn hide(&mut self, id: VersionId) {
        let Some(v) = self.versions.get_mut(&id) else {
            return;
        };
        if v.kind == VersionKind::Snapshot {
            self.names.remove(&(v.group, v.meta.name.clone()));
            self.cuts.remove(&(v.group, v.cut));
            self.points.remove(&(v.group, v.cut));
            if let Some(count) = self.counts.get_mut(&v.group) {
                *count -= 1;
            }
            if let Some(frozen) = &mut self.frozen {
                frozen.hidden_since.insert(id);
            }
        }
        v.kind = VersionKind::Hidden;
        self.hidden.insert(id);
        self.mark(id);
    }

    /// A group is gone: what its head is now is a version that nobody uses, and so are its snapshots.
    /// No checkpoint may be on its way. What others began from stays, as no group's: its id may come back.
    pub fn retire(&mut self, group: GroupId, root: (ChildPointer, u8), max_stamp: Stamp) {
        let snapshots: Vec<VersionId> = self.snapshots(group).map(|v| v.id).collect();
        snapshots.into_iter().for_each(|id| self.hide(id));
        let Some(id) = self.heads.remove(&group) else {
            return;
        };
        if let Some(head) = self.versions.get_mut(&id) {
            head.root = Some(root);
            head.cut = Stamp(max_stamp.0 + 1); // above its parent's, whatever was written since
        }
        self.hide(id);
        let left: Vec<VersionId> = self.of_group(group).map(|v| v.id).collect();
        for id in left {
            self.members.remove(&(group, id));
            self.members.insert((GroupId(0), id));
            if let Some(v) = self.versions.get_mut(&id) {
                v.group = GroupId(0);
            }
            self.mark(id);
            self.stale_below(id);
        }
    }

    /// A version that no checkpoint has merged is gone with its group.
    pub fn forget_pending(&mut self, group: GroupId) {
        let merged = |v: &&Version| v.kind == VersionKind::Head || v.root.is_some();
        let pending = self.of_group(group).filter(|v| !merged(v));
        let pending: Vec<VersionId> = pending.map(|v| v.id).collect();
        // Newest first: each hands its deadlist back to what goes on from it.
        for id in pending.into_iter().rev() {
            let Some(v) = self.versions.get(&id).cloned() else {
                continue;
            };
            let children: Vec<VersionId> = self.children(id).collect();
            for child in children {
                self.reparent(child, v.parent);
                self.mark(child);
                if let Some(child) = self.versions.get_mut(&child) {
                    self.owners.remove(&child.deadlist);
                    child.deadlist = v.deadlist;
                }
            }
            let heir = self.heads.get(&group).copied();
            self.hide(id);
            self.remove(id);
            if let Some(heir) = heir {
                self.owners.insert(v.deadlist, heir);
            }
        }
    }

    fn reparent(&mut self, id: VersionId, parent: VersionId) {
        let Some(v) = self.versions.get_mut(&id) else {
            return;
        };
        self.children.remove(&(v.parent, id));
        v.parent = parent;
        if parent.0 != 0 {
            self.children.insert((parent, id));
        }
    }

    /// A hidden version is gone.
    fn remove(&mut self, id: VersionId) {
        let Some(v) = self.versions.remove(&id) else {
            return;
        };
        self.children.remove(&(v.parent, id));
        self.members.remove(&(v.group, id));
        self.hidden.remove(&id);
        self.owners.remove(&v.deadlist);
        if let Some(frozen) = &mut self.frozen {
            frozen.hidden_since.remove(&id);
        }
    }

    /// A version is gone, in the checkpoint on its way as well; what began at it begins at its parent.
    pub fn remove_in_checkpoint(&mut self, id: VersionId) {
        let Some(parent) = self.get(id).map(|v| v.parent) else {
            return;
        };
        let children: Vec<VersionId> = self.children(id).collect();
        for child in children {
            self.reparent(child, parent);
            self.mark_in_checkpoint(child);
        }
        for (head_id, head) in self.frozen.iter_mut().flat_map(|f| &mut f.heads) {
            if head.parent == id {
                head.parent = parent;
                self.changed_in_checkpoint.insert(*head_id);
            }
        }
        self.mark_in_checkpoint(id);
        self.remove(id);
        self.removed += 1;
    }

    /// A checkpoint has merged a version.
    pub fn merged(&mut self, id: VersionId, root: ChildPointer, level: u8, grown: [Stamp; LEVELS]) {
        self.mark_in_checkpoint(id);
        self.stale_below(id);
        if let Some(v) = self.versions.get_mut(&id) {
            v.root = Some((root, level));
            v.grown = grown;
        }
    }

    /// The map of a group's head has these levels now; so have snapshots taken since, until they are
    /// merged themselves.
    pub fn grown(&mut self, group: GroupId, grown: [Stamp; LEVELS]) {
        let head = self.heads.get(&group).copied();
        let frozen = self.frozen.as_mut();
        let frozen = frozen.and_then(|f| f.heads.get_mut(&head?));
        if let Some((id, frozen)) = head.zip(frozen.filter(|f| f.grown != grown)) {
            frozen.grown = grown;
            self.changed_in_checkpoint.insert(id);
        }
        let mut at = head;
        while let Some(v) = at.and_then(|id| self.versions.get_mut(&id)) {
            if v.kind != VersionKind::Head && v.root.is_some() {
                return;
            }
            let (id, same) = (v.id, v.grown == grown);
            v.grown = grown;
            at = Some(v.parent);
            if !same {
                self.mark_in_checkpoint(id);
            }
        }
    }

    /// A checkpoint begins.
    pub fn freeze(&mut self) {
        let heads = self.heads.values().filter_map(|id| self.versions.get(id));
        let frozen = |v: &Version| FrozenHead {
            parent: v.parent,
            deadlist: v.deadlist,
            grown: v.grown,
        };
        self.frozen = Some(FrozenForest {
            next_version: self.next_version,
            next_deadlist: self.next_deadlist,
            heads: heads.map(|v| (v.id, frozen(v))).collect(),
            hidden_since: BTreeSet::new(),
        });
    }

    /// The checkpoint is written or given up.
    pub fn thaw(&mut self) {
        self.frozen = None;
    }

    /// A group's head as the checkpoint on its way has it: its parent's cut, and its deadlist.
    pub fn frozen_head(&self, group: GroupId) -> Option<(Stamp, DeadlistId)> {
        let head = self.heads.get(&group)?;
        let frozen = self.frozen.as_ref()?.heads.get(head)?;
        let parent = self.get(frozen.parent);
        Some((parent.map_or(Stamp(0), |p| p.cut), frozen.deadlist))
    }

    /// The parent of a group's head as the checkpoint on its way has it.
    pub fn frozen_parent(&self, group: GroupId) -> Option<VersionId> {
        let head = self.heads.get(&group)?;
        Some(self.frozen.as_ref()?.heads.get(head)?.parent)
    }

    /// Numbers that the checkpoint on its way says come next: of versions, and of deadlists.
    pub fn frozen_numbers(&self) -> (u64, u64) {
        let now = (self.next_version, self.next_deadlist);
        let frozen = self.frozen.as_ref();
        frozen.map_or(now, |f| (f.next_version, f.next_deadlist))
    }

    /// The records of versions with keys from one on to before another, as the checkpoint on its way
    /// has them.
    pub fn frozen_records(&self, from: Key, to: Option<Key>, each: &mut dyn FnMut(Key, &[u8])) {
        let (next_version, _) = self.frozen_numbers();
        let first = u64::try_from(from >> PART_BITS).unwrap_or(u64::MAX);
        let first = VersionId(first.min(next_version));
        let inside = |key: Key| key >= from && to.is_none_or(|to| key < to);
        let before_end = |id: VersionId| to.is_none_or(|to| version_key(id) < to);
        let versions = self.versions.range(first..VersionId(next_version));
        for (_, v) in versions.take_while(|(id, _)| before_end(**id)) {
            let mut each_inside = |key: Key, bytes: &[u8]| {
                if inside(key) {
                    each(key, bytes);
                }
            };
            match self.frozen_version(v) {
                Some(v) => encode_version(&v, &mut each_inside),
                None => encode_version(v, &mut each_inside),
            }
        }
    }

    /// Snapshots of a group as the checkpoint on its way has them, or as they are without one; by number.
    pub fn frozen_snapshots(&self, group: GroupId, mut each: impl FnMut(&Version)) {
        let (next_version, _) = self.frozen_numbers();
        let range = (group, VersionId(0))..(group, VersionId(next_version));
        for id in self.members.range(range).map(|(_, id)| id) {
            let was_there = |v: &&Version| self.is_frozen_snapshot(v);
            if let Some(version) = self.versions.get(id).filter(was_there) {
                each(version);
            }
        }
    }

    /// Whether a version is a snapshot as the checkpoint on its way has it, or as it is without one.
    pub fn is_frozen_snapshot(&self, version: &Version) -> bool {
        let frozen = self.frozen.as_ref();
        version.kind == VersionKind::Snapshot
            || frozen.is_some_and(|f| f.hidden_since.contains(&version.id))
    }

    /// A version as the checkpoint on its way has it, if that is not what it is now.
    fn frozen_version(&self, v: &Version) -> Option<Version> {
        let frozen = self.frozen.as_ref()?;
        let (head, hidden) = (frozen.heads.get(&v.id), frozen.hidden_since.contains(&v.id));
        if head.is_none() && !hidden {
            return None;
        }
        let mut v = v.clone();
        if let Some(head) = head {
            (v.parent, v.deadlist, v.grown) = (head.parent, head.deadlist, head.grown);
        }
        if hidden {
            v.kind = VersionKind::Snapshot;
        }
        Some(v)
    }
}
