//! Scrub: reads what a version of a volume has of its own, nodes and blocks, from the device, and
//! checks each against what its pointer says. No key is needed: checksums are over what is stored.
//!
//! A question does a bounded amount of work; whoever asks goes on from there, at the pace that suits.
//! What versions share is the eldest's: a pass over all of them reads everything once.

use crate::engine::{Engine, Purpose};
use crate::error::ReadError;
use crate::event::{Damage, Effect, ScrubPart, ScrubRequest, ScrubTarget};
use crate::format::node::{ChildPointer, LeafKind};
use crate::format::operation::{stored_crc, Authenticator};
use crate::format::vaddr::VAddr;
use crate::format::versions::{Version, VersionId, VersionKind};
use crate::format::PAGE;
use crate::map::tree::{child_index, held_node, span, Held, Missing};
use crate::readpath::check_node;
use crate::snapshot::forest::{Floor, Forest};
use bytes::Bytes;
use esker_base::checksum::crc32;
use esker_base::num::{to_u64, to_usize};
use esker_base::{DiskError, DiskOp, GroupId, Stamp};
use std::collections::{BTreeSet, VecDeque};

/// Blocks after which an answer is given (1 MiB); a leaf more at most.
const BLOCKS_MAX: u64 = 256;
/// Most map nodes read for one answer.
const NODES_MAX: u64 = 64;
/// Most places looked at for one answer.
const STEPS_MAX: usize = 4096;
/// Most device reads at a time for one question: others use the device, too.
const READS_MAX: usize = 4;
/// How often something is read that cannot be read or does not match, before it is called damaged.
const ATTEMPTS_MAX: u32 = 3;
/// How often the walk begins anew at one place because what it goes by is gone.
const RESTARTS_MAX: u32 = 3;

/// Something to be read and checked.
#[derive(Clone, Debug)]
struct Item {
    vaddr: VAddr,
    what: What,
    attempts: u32,
}

#[derive(Clone, Debug)]
enum What {
    Node(Missing),
    /// Blocks that lie one behind the other.
    Blocks {
        lba: u64,
        auths: Vec<Authenticator>,
    },
}

/// A question on its way.
#[derive(Debug)]
pub(crate) struct ScrubState {
    request: ScrubRequest,
    /// The first block that is not looked at.
    next: u64,
    part: ScrubPart,
    held: Held,
    steps: usize,
    restarts: u32,
    queue: VecDeque<Item>,
    reading: Vec<Option<Item>>,
}

impl ScrubState {
    fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.reading.iter().all(Option::is_none)
    }

    fn is_tired(&self) -> bool {
        self.part.blocks >= BLOCKS_MAX
            || self.part.nodes >= NODES_MAX
            || self.steps >= STEPS_MAX
            || to_u64(self.part.damaged.len()) >= BLOCKS_MAX
    }

    fn finish(mut self, error: Option<ReadError>, ended: bool) -> Effect {
        self.part.through = self.next;
        self.part.ended = ended;
        self.part.damaged.sort_unstable_by_key(|d| d.lba);
        let part = self.part;
        Effect::ScrubDone {
            token: self.request.token,
            result: error.map_or(Ok(part), Err),
        }
    }
}

/// What is looked at: a tree, and what of it belongs to others.
struct Tree {
    root: ChildPointer,
    level: u8,
    floor: Floor,
}

enum Step {
    /// Nothing of its own up to this block.
    Skip(u64),
    /// This node first.
    Node(Missing),
    /// A leaf, up to this block: what is stored.
    Leaf(u64, Vec<(u64, VAddr, Authenticator)>),
}

impl Engine {
    /// What a scrub has to look at, versions first: of one volume, together with those that it goes
    /// back to; or of all. For tests, since it looks at every version.
    #[must_use]
    pub fn scrub_targets(&self, volume: Option<GroupId>) -> Vec<ScrubTarget> {
        let wanted = |group: GroupId| volume.is_none_or(|v| v == group);
        let of_it = self.forest.iter().filter(|v| wanted(v.group));
        let mut versions = BTreeSet::new();
        for version in of_it {
            let mut at = Some(version);
            // Ancestors of a clone are another volume's.
            while let Some(v) = at.filter(|v| !versions.contains(&v.id)) {
                if v.kind != VersionKind::Head && !v.has_gaps() {
                    versions.insert(v.id);
                }
                at = self.forest.get(v.parent);
            }
        }
        let heads = self.groups.values().filter(|g| !g.deleting);
        let heads = heads.map(|g| g.meta.group).filter(|id| wanted(*id));
        let versions = versions.into_iter().map(ScrubTarget::Version);
        versions.chain(heads.map(ScrubTarget::Head)).collect()
    }

    /// The target behind one, in the order of [`Self::scrub_targets`], without a look at all of them; but
    /// for a clone, at what its origin has above the snapshot it began with.
    #[must_use]
    pub fn scrub_target_after(
        &self,
        volume: Option<GroupId>,
        after: Option<ScrubTarget>,
    ) -> Option<ScrubTarget> {
        let head_after = match after {
            Some(ScrubTarget::Head(group)) => Some(group),
            _ => None,
        };
        if head_after.is_none() {
            let from = match after {
                Some(ScrubTarget::Version(id)) => id,
                _ => VersionId(0),
            };
            if let Some(id) = self.scrub_version_after(volume, from) {
                return Some(ScrubTarget::Version(id));
            }
        }
        let (from, to) = volume.map_or((GroupId(0), GroupId(u64::MAX)), |v| (v, v));
        let heads = self.groups.range(from..=to).map(|(_, g)| g);
        let mut heads = heads.filter(|g| !g.deleting).map(|g| g.meta.group);
        let next = heads.find(|id| head_after.is_none_or(|at| *id > at))?;
        Some(ScrubTarget::Head(next))
    }

    fn scrub_version_after(&self, volume: Option<GroupId>, from: VersionId) -> Option<VersionId> {
        let wanted = |v: &&Version| v.kind != VersionKind::Head && !v.has_gaps();
        let Some(group) = volume else {
            return self.forest.iter_after(from).find(wanted).map(|v| v.id);
        };
        let own = self.forest.of_group_after(group, from).find(wanted);
        // Ancestors of a clone are another volume's.
        let base = self
            .is_clone(group)
            .then(|| self.forest.foreign_base(group));
        let ancestors = std::iter::successors(base.flatten(), |v| self.forest.get(v.parent));
        let foreign = ancestors.filter(|v| v.id > from).filter(wanted);
        own.into_iter().chain(foreign).map(|v| v.id).min()
    }

    /// The volume that a version belongs to, and its name if it is a snapshot.
    #[must_use]
    pub fn scrub_target_name(&self, target: ScrubTarget) -> Option<(GroupId, Option<&str>)> {
        match target {
            ScrubTarget::Head(group) => Some((group, None)),
            ScrubTarget::Version(id) => {
                let version = self.forest.get(id)?;
                Some((version.group, Some(&version.meta.name)))
            }
        }
    }

    /// The volume that a target is of, and the cut of its snapshot; none for what is there now.
    #[must_use]
    pub fn scrub_target_cut(&self, target: ScrubTarget) -> Option<(GroupId, Option<Stamp>)> {
        match target {
            ScrubTarget::Head(group) => Some((group, None)),
            ScrubTarget::Version(id) => self.forest.get(id).map(|v| (v.group, Some(v.cut))),
        }
    }

    /// Begins to answer.
    pub(crate) fn scrub(&mut self, request: ScrubRequest, effects: &mut Vec<Effect>) {
        let token = request.token;
        let state = ScrubState {
            next: request.from,
            request,
            part: ScrubPart::default(),
            held: Held::new(),
            steps: 0,
            restarts: 0,
            queue: VecDeque::new(),
            reading: vec![None; READS_MAX],
        };
        self.scrubs.insert(token, state);
        self.scrub_go_on(token, effects);
    }

    fn scrub_tree(&self, target: ScrubTarget) -> Result<Tree, ReadError> {
        match target {
            ScrubTarget::Version(id) => {
                let version = self.forest.get(id).filter(|v| !v.has_gaps());
                let version = version.ok_or(ReadError::UnknownSnapshot)?;
                let (root, level) = version.root.ok_or(ReadError::NotMerged)?;
                let floor = Forest::floor(self.forest.whole_parent_cut(id), &version.grown);
                Ok(Tree { root, level, floor })
            }
            ScrubTarget::Head(id) => {
                let group = self.groups.get(&id).filter(|g| !g.deleting);
                let group = group.ok_or(ReadError::UnknownGroup)?;
                if group.base.is_some() {
                    return Err(ReadError::NotMerged); // a clone that has no tree of its own yet
                }
                let floor = match self.forest.head(id) {
                    Some(head) => Forest::floor(self.forest.whole_parent_cut(head.id), &head.grown),
                    None => Floor::default(),
                };
                Ok(Tree {
                    root: group.root,
                    level: group.root_level,
                    floor,
                })
            }
        }
    }

    fn scrub_go_on(&mut self, token: u64, effects: &mut Vec<Effect>) {
        let Some(mut state) = self.scrubs.remove(&token) else {
            return;
        };
        while state.is_idle() {
            let tree = match self.scrub_tree(state.request.target) {
                Ok(tree) => tree,
                Err(error) => return effects.push(state.finish(Some(error), false)),
            };
            let ended = state.next >= span(tree.level);
            if ended || state.is_tired() {
                return effects.push(state.finish(None, ended));
            }
            state.steps += 1;
            match self.scrub_step(&tree, &state) {
                Step::Skip(until) => state.next = until,
                Step::Node(node) => state.queue.push_back(Item {
                    vaddr: node.pointer.vaddr,
                    what: What::Node(node),
                    attempts: 0,
                }),
                Step::Leaf(until, blocks) => {
                    state.part.blocks += to_u64(blocks.len());
                    state.queue = self.scrub_items(&mut state, blocks);
                    state.next = until;
                    state.restarts = 0;
                    state.held.retain(|_, node| node.level() > 0);
                }
            }
            self.scrub_read(&mut state, effects);
        }
        self.scrubs.insert(token, state);
    }

    /// Looks at the first place from `next` on.
    fn scrub_step(&mut self, tree: &Tree, state: &ScrubState) -> Step {
        let next = state.next;
        let (mut pointer, mut level, mut first) = (tree.root, tree.level, 0);
        loop {
            if pointer.vaddr.is_none() || !tree.floor.owns(level, pointer.max_stamp) {
                return Step::Skip(first + span(level));
            }
            let held = held_node(&state.held, &pointer);
            // What the walk comes to for the first time is read from the device, but for what is not
            // there yet.
            let known = match next > first {
                true => held.or_else(|| self.cache.get(&pointer)),
                false => held.or_else(|| self.cache.unwritten(pointer.vaddr)),
            };
            let Some(node) = known else {
                return Step::Node(Missing {
                    pointer,
                    level,
                    first_lba: first,
                });
            };
            if level == 0 {
                let until = first + span(0);
                let stored = (next.max(first)..until).filter_map(|lba| {
                    let leaf = node.leaf(to_usize(lba - first));
                    let is_stored = matches!(leaf.kind, LeafKind::Data | LeafKind::Compressed);
                    let own = leaf.stamp > tree.floor.cut;
                    (is_stored && own).then_some((lba, leaf.vaddr, leaf.auth))
                });
                return Step::Leaf(until, stored.collect());
            }
            let i = child_index(level, next);
            level -= 1;
            first += to_u64(i) * span(level);
            pointer = node.child(i);
        }
    }

    /// Blocks that lie one behind the other are read together.
    fn scrub_items(
        &mut self,
        state: &mut ScrubState,
        blocks: Vec<(u64, VAddr, Authenticator)>,
    ) -> VecDeque<Item> {
        // What a deleted version alone has dies while it is taken apart.
        let is_going = match state.request.target {
            ScrubTarget::Head(_) => false,
            ScrubTarget::Version(id) => {
                let version = self.forest.get(id);
                version.is_some_and(|v| v.kind == VersionKind::Hidden)
            }
        };
        let mut items: VecDeque<Item> = VecDeque::new();
        let mut end = None;
        for (lba, vaddr, auth) in blocks {
            let Some(place) = self.segs.locate(vaddr) else {
                if is_going {
                    continue; // it died with the version
                }
                // The leaf is of the newest tree, so this is not a block that died.
                let damage = Damage {
                    lba,
                    count: 1,
                    in_map: false,
                };
                self.scrub_damaged(state, damage);
                continue;
            };
            let follows = end == Some((lba, place.0, place.1, vaddr));
            match items.back_mut().filter(|_| follows) {
                Some(Item {
                    what: What::Blocks { auths, .. },
                    ..
                }) => auths.push(auth),
                _ => items.push_back(Item {
                    vaddr,
                    what: What::Blocks {
                        lba,
                        auths: vec![auth],
                    },
                    attempts: 0,
                }),
            }
            end = Some((lba + 1, place.0, place.1 + 1, vaddr.plus(1)));
        }
        items
    }

    /// Reads what waits, a few at a time.
    fn scrub_read(&mut self, state: &mut ScrubState, effects: &mut Vec<Effect>) {
        while let Some(free) = state.reading.iter().position(Option::is_none) {
            let Some(item) = state.queue.pop_front() else {
                return;
            };
            let count = match &item.what {
                What::Node(_) => 1,
                What::Blocks { auths, .. } => auths.len(),
            };
            let runs = self.segs.locate_run(item.vaddr, to_u64(count));
            let first = runs.and_then(|r| r.first().copied());
            // A segment that is free may be written anew while it is read.
            let first = first.filter(|(segment, ..)| !self.segs.is_free(*segment));
            let Some((segment, slot, in_a_row)) = first else {
                self.scrub_lost(state, &item);
                continue;
            };
            // Garbage collection may have moved a part of it since.
            let count = count.min(in_a_row as usize);
            let item = match item.what {
                What::Blocks { lba, mut auths } if auths.len() > count => {
                    let rest = auths.split_off(count);
                    state.queue.push_front(Item {
                        vaddr: item.vaddr.plus(to_u64(count)),
                        what: What::Blocks {
                            lba: lba + to_u64(count),
                            auths: rest,
                        },
                        attempts: item.attempts,
                    });
                    Item {
                        what: What::Blocks { lba, auths },
                        ..item
                    }
                }
                what => Item { what, ..item },
            };
            state.reading[free] = Some(item);
            self.segs.reader_begins(segment);
            let op = DiskOp::Read {
                offset: self.sb.offset_of(segment, slot),
                length: count * PAGE,
            };
            let purpose = Purpose::Scrub {
                scrub: state.request.token,
                item: free,
                segment,
            };
            self.disk(op, purpose, effects);
        }
    }

    /// What was to be read is in no segment any more.
    fn scrub_lost(&mut self, state: &mut ScrubState, item: &Item) {
        let What::Node(node) = &item.what else {
            return; // it died since
        };
        // The walk goes by nodes that died since; from the root on it finds the ones of now.
        state.held.clear();
        state.restarts += 1;
        if state.restarts > RESTARTS_MAX {
            self.scrub_damaged(state, Damage::of_map(node.first_lba, span(node.level)));
        }
    }

    fn scrub_damaged(&mut self, state: &mut ScrubState, damage: Damage) {
        match self.scrub_target_cut(state.request.target) {
            Some((group, _)) if !damage.in_map => self.damages.found(group, damage.lba),
            _ => self.damages.unplaced += 1,
        }
        if damage.in_map {
            state.next = state.next.max(damage.lba + damage.count);
            state.restarts = 0;
        }
        state.part.damaged.push(damage);
    }

    /// Something came from the device.
    pub(crate) fn scrub_came(
        &mut self,
        token: u64,
        item: usize,
        result: Result<Bytes, DiskError>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(mut state) = self.scrubs.remove(&token) else {
            return;
        };
        if let Some(item) = state.reading.get_mut(item).and_then(Option::take) {
            match result {
                Ok(bytes) => self.scrub_check(&mut state, item, &bytes),
                Err(_) => self.scrub_again(&mut state, item),
            }
        }
        self.scrub_read(&mut state, effects);
        self.scrubs.insert(token, state);
        self.scrub_go_on(token, effects);
    }

    fn scrub_check(&mut self, state: &mut ScrubState, item: Item, bytes: &Bytes) {
        match &item.what {
            What::Node(node) => {
                let Some(page) = check_node(bytes, node) else {
                    return self.scrub_again(state, item);
                };
                state.part.nodes += 1;
                if node.level > 0 {
                    // The next questions go by it; leaves would only push out others.
                    self.cache.insert(item.vaddr, page.clone(), false);
                }
                state.held.insert(item.vaddr, page);
            }
            What::Blocks { lba, auths } => {
                let page = |i: usize| bytes.get(i * PAGE..(i + 1) * PAGE);
                let good = |i: usize| page(i).is_some_and(|b| crc32(b) == stored_crc(&auths[i]));
                for i in (0..auths.len()).filter(|i| !good(*i)) {
                    let what = What::Blocks {
                        lba: lba + to_u64(i),
                        auths: vec![auths[i]],
                    };
                    let vaddr = item.vaddr.plus(to_u64(i));
                    let attempts = item.attempts;
                    self.scrub_again(
                        state,
                        Item {
                            vaddr,
                            what,
                            attempts,
                        },
                    );
                }
            }
        }
    }

    /// Reads something once more; or it is damaged.
    fn scrub_again(&mut self, state: &mut ScrubState, item: Item) {
        let attempts = item.attempts + 1;
        if attempts < ATTEMPTS_MAX {
            return state.queue.push_back(Item { attempts, ..item });
        }
        let damage = match &item.what {
            What::Node(node) => Damage::of_map(node.first_lba, span(node.level)),
            // Of many that cannot be read together each is tried by itself.
            What::Blocks { lba, auths } if auths.len() > 1 => {
                for (i, auth) in (0..).zip(auths) {
                    state.queue.push_back(Item {
                        vaddr: item.vaddr.plus(i),
                        what: What::Blocks {
                            lba: lba + i,
                            auths: vec![*auth],
                        },
                        attempts: ATTEMPTS_MAX - 1,
                    });
                }
                return;
            }
            What::Blocks { lba, .. } => Damage {
                lba: *lba,
                count: 1,
                in_map: false,
            },
        };
        self.scrub_damaged(state, damage);
    }
}
