//! What a snapshot has above a stamp: a walk over its map that passes over every subtree without.
//!
//! An answer tells where blocks are and what proves them; whoever asks reads them by an ordinary read of the
//! snapshot. A question does a bounded amount of work, and whoever asks goes on from there.

use crate::engine::Engine;
use crate::error::ReadError;
use crate::event::Effect;
use crate::format::ingest::{Run, RunContent, RUNS_MAX};
use crate::format::node::{ChildPointer, LeafKind, NodePage, FANOUT};
use crate::format::vaddr::VAddr;
use crate::group::Group;
use crate::map::tree::{child_index, held_node, span, Held, Missing};
use crate::map::view::View;
use crate::readpath::NodeWaiter;
use esker_base::num::{to_u64, to_usize};
use esker_base::{limits, GroupId, Lba, Stamp};
use std::sync::Arc;

/// Most map nodes read for one answer.
const NODES_READ_MAX: usize = 256;
/// Most map nodes on their way at a time.
const NODES_AHEAD_MAX: usize = 32;
/// Most places looked at for one answer.
const STEPS_MAX: usize = 16_384;

/// Asks what a snapshot has above a stamp.
#[derive(Clone, Copy, Debug)]
pub struct HarvestRequest {
    /// Comes back in [`Effect::HarvestDone`].
    pub token: u64,
    /// The group.
    pub group: GroupId,
    /// Stamp of the snapshot, or the highest one of the head.
    pub cut: Stamp,
    /// What is not above this is left out.
    pub floor: Stamp,
    /// First block.
    pub from: u64,
    /// The block before which it ends.
    pub until: u64,
    /// Most blocks of data in the answer: between one and [`limits::ENTRY_BLOCKS_MAX`].
    pub blocks_max: u64,
}

/// A part of what a snapshot has above a stamp.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Harvest {
    /// By block; as much as one entry can hold at most.
    pub runs: Vec<Run>,
    /// All blocks before this one are told about.
    pub through: u64,
}

/// A question on its way.
#[derive(Debug)]
pub(crate) struct HarvestState {
    request: HarvestRequest,
    next: u64,
    runs: Vec<Run>,
    stored: u64,
    held: Held,
    awaited: usize,
    nodes_read: usize,
    steps: usize,
    is_lost: bool,
}

enum Step {
    /// Nothing above the stamp up to this block.
    Skip(u64),
    /// Zeros up to this block, with this stamp.
    Empty(u64, Stamp),
    /// These nodes first.
    Nodes(Vec<Missing>),
    /// A leaf, up to this block.
    Leaf(u64, u64, Arc<NodePage>),
}

impl HarvestState {
    fn is_done(&self) -> bool {
        self.next >= self.request.until
            || self.runs.len() >= RUNS_MAX
            || self.stored >= self.blocks_max()
            || self.steps >= STEPS_MAX
            || self.nodes_read >= NODES_READ_MAX
    }

    fn finish(self, error: Option<ReadError>) -> Effect {
        let through = self.next.min(self.request.until);
        let runs = self.runs;
        Effect::HarvestDone {
            token: self.request.token,
            result: match error {
                Some(error) => Err(error),
                None => Ok(Harvest { runs, through }),
            },
        }
    }

    fn hollow(&mut self, lba: u64, count: u64, kind: LeafKind, stamp: Stamp) {
        if let Some(Run {
            lba: first,
            content:
                RunContent::Hollow {
                    count: have,
                    kind: k,
                    stamp: s,
                },
        }) = self.runs.last_mut()
        {
            if *first + *have == lba && (*k, *s) == (kind, stamp) {
                *have += count;
                return;
            }
        }
        let content = RunContent::Hollow { count, kind, stamp };
        self.runs.push(Run { lba, content });
    }

    /// Takes what a leaf has, as far as there is room. It ends at `until`.
    fn leaf(&mut self, first: u64, until: u64, node: &NodePage) {
        while self.next < until && !self.is_full() {
            let lba = self.next;
            let leaf = node.leaf(to_usize(lba - first));
            self.next += 1;
            if leaf.stamp <= self.request.floor {
                continue;
            }
            match leaf.kind {
                LeafKind::Data | LeafKind::Compressed | LeafKind::Damaged => {
                    let block = (leaf.stamp, leaf.auth);
                    self.stored += 1;
                    match self.runs.last_mut() {
                        Some(Run {
                            lba: from,
                            content: RunContent::Data(blocks),
                        }) if *from + to_u64(blocks.len()) == lba => blocks.push(block),
                        _ => self.runs.push(Run {
                            lba,
                            content: RunContent::Data(vec![block]),
                        }),
                    }
                }
                LeafKind::Discarded | LeafKind::Zero => {
                    self.hollow(lba, 1, leaf.kind, leaf.stamp);
                }
                LeafKind::Absent => {}
            }
        }
    }

    fn is_full(&self) -> bool {
        self.runs.len() >= RUNS_MAX || self.stored >= self.blocks_max()
    }

    fn blocks_max(&self) -> u64 {
        self.request.blocks_max.clamp(1, limits::ENTRY_BLOCKS_MAX)
    }
}

impl Engine {
    /// Begins to answer.
    pub(crate) fn harvest(&mut self, request: HarvestRequest, effects: &mut Vec<Effect>) {
        let token = request.token;
        let state = HarvestState {
            next: request.from,
            request,
            runs: Vec::new(),
            stored: 0,
            held: Held::new(),
            awaited: 0,
            nodes_read: 0,
            steps: 0,
            is_lost: false,
        };
        self.harvests.insert(token, state);
        self.harvest_go_on(token, effects);
    }

    /// A checkpoint has merged what some questions waited for.
    pub(crate) fn harvests_go_on(&mut self, effects: &mut Vec<Effect>) {
        let waiting = self.harvests.iter().filter(|(_, s)| s.awaited == 0);
        for token in waiting.map(|(token, _)| *token).collect::<Vec<_>>() {
            self.harvest_go_on(token, effects);
        }
    }

    fn harvest_go_on(&mut self, token: u64, effects: &mut Vec<Effect>) {
        let Some(mut state) = self.harvests.remove(&token) else {
            return;
        };
        let group = self.groups.get(&state.request.group);
        let Some(group) = group.filter(|g| !g.deleting) else {
            return effects.push(state.finish(Some(ReadError::UnknownGroup)));
        };
        let Some(view) = self.harvested(group, state.request.cut) else {
            return effects.push(state.finish(Some(ReadError::UnknownSnapshot)));
        };
        if view.waits_for_merge() || (view.is_head && group.has_deltas()) {
            if self.fenced.is_some() {
                return effects.push(state.finish(Some(ReadError::NotMerged)));
            }
            self.checkpoint_wanted |= self.checkpoint.is_none();
            self.harvests.insert(token, state);
            return;
        }
        let (root, level) = view.tree;
        loop {
            if state.is_lost {
                let at = Lba(state.next);
                return effects.push(state.finish(Some(ReadError::MapDamaged(at))));
            }
            if state.next >= span(level) {
                state.next = state.request.until;
            }
            if state.is_done() {
                return effects.push(state.finish(None));
            }
            state.steps += 1;
            let end = state.request.until;
            match self.harvest_step(root, level, &state) {
                Step::Skip(until) => state.next = until.min(end),
                Step::Empty(until, stamp) => {
                    let (lba, until) = (state.next, until.min(end));
                    state.hollow(lba, until - lba, LeafKind::Discarded, stamp);
                    state.next = until;
                }
                Step::Leaf(first, until, node) => state.leaf(first, until.min(end), &node),
                Step::Nodes(nodes) => {
                    // The walk comes to nodes in order: what lies behind it is needed no more.
                    let next = state.next;
                    state
                        .held
                        .retain(|_, n| n.first_lba() + span(n.level()) > next);
                    state.nodes_read += nodes.len();
                    for node in nodes {
                        let group = state.request.group;
                        let waiter = NodeWaiter::Harvest(token);
                        match self.fetch_node(group, node, waiter, effects) {
                            true => state.awaited += 1,
                            false => state.is_lost = state.awaited == 0,
                        }
                    }
                    if state.awaited > 0 {
                        self.harvests.insert(token, state);
                        return;
                    }
                }
            }
        }
    }

    /// The snapshot that is asked about, or the head while that is as new as was asked.
    fn harvested<'a>(&'a self, group: &'a Group, cut: Stamp) -> Option<View<'a>> {
        let is_head = !self.is_cut(group.meta.group, cut) && group.max_stamp == cut;
        let at = (!is_head).then_some(cut);
        let sabotage = self.config.sabotage;
        View::of(&self.groups, &self.forest, group, at, sabotage)
    }

    /// Looks at the first place from `next` on.
    fn harvest_step(&mut self, root: ChildPointer, top: u8, state: &HarvestState) -> Step {
        let (next, floor) = (state.next, state.request.floor);
        let (mut pointer, mut level, mut first) = (root, top, 0);
        let mut parent: Option<Arc<NodePage>> = None;
        loop {
            let until = first + span(level);
            if pointer.max_stamp <= floor {
                return Step::Skip(until);
            }
            if pointer.vaddr.is_none() {
                return Step::Empty(until, pointer.max_stamp);
            }
            let held = held_node(&state.held, &pointer);
            let Some(node) = held.or_else(|| self.cache.get(&pointer)) else {
                return Step::Nodes(self.nodes_ahead(parent.as_deref(), level, first, state));
            };
            if level == 0 {
                return Step::Leaf(first, until, node);
            }
            let i = child_index(level, next);
            level -= 1;
            first += to_u64(i) * span(level);
            pointer = node.child(i);
            parent = Some(node);
        }
    }

    /// The node that is missing, and those beside it that will be.
    fn nodes_ahead(
        &mut self,
        parent: Option<&NodePage>,
        level: u8,
        first: u64,
        state: &HarvestState,
    ) -> Vec<Missing> {
        let missing = |pointer, first_lba| Missing {
            pointer,
            level,
            first_lba,
        };
        let Some(parent) = parent else {
            let group = self.groups.get(&state.request.group);
            let view = group.and_then(|group| self.harvested(group, state.request.cut));
            return view.map(|v| missing(v.tree.0, 0)).into_iter().collect();
        };
        let from = child_index(level + 1, first);
        let mut nodes = Vec::new();
        for i in from..FANOUT {
            let at = parent.first_lba() + to_u64(i) * span(level);
            if nodes.len() >= NODES_AHEAD_MAX || at >= state.request.until {
                break;
            }
            let pointer = parent.child(i);
            let wanted = !pointer.vaddr.is_none() && pointer.max_stamp > state.request.floor;
            let known = |vaddr: &VAddr| state.held.contains_key(vaddr);
            if wanted && !known(&pointer.vaddr) && self.cache.get(&pointer).is_none() {
                nodes.push(missing(pointer, at));
            }
        }
        nodes
    }

    /// A node came for a question, or cannot be had.
    pub(crate) fn node_for_harvest(
        &mut self,
        token: u64,
        vaddr: VAddr,
        page: Option<Arc<NodePage>>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(state) = self.harvests.get_mut(&token) else {
            return;
        };
        state.awaited -= 1;
        match page {
            Some(page) => _ = state.held.insert(vaddr, page),
            None => state.is_lost = true,
        }
        if state.awaited == 0 {
            self.harvest_go_on(token, effects);
        }
    }
}
