//! What the map knows of a range of blocks: which hold data, which were written as zeros, and of
//! which nothing is stored. No data is read. The layers are those of a read: what is appended and
//! not applied, the delta, the delta that a checkpoint is merging, the tree. Subtrees that hold
//! nothing or nothing but data are answered from the pointer to them.
//!
//! A query does a bounded amount of work and may answer less than it was asked; whoever asks goes on
//! from there. Each run is as the map has it at some moment between the question and the answer.

use crate::engine::Engine;
use crate::error::ReadError;
use crate::event::{Effect, ExtentKind, ExtentRun, ExtentsRequest};
use crate::format::node::{ChildPointer, LeafKind, NodePage, FANOUT};
use crate::format::operation::Operation;
use crate::format::vaddr::VAddr;
use crate::map::cache::NodeCache;
use crate::map::interval::{IntervalMap, Piece};
use crate::map::tree::{child_index, held_node, span, Held, Missing};
use crate::map::view::View;
use crate::readpath::NodeWaiter;
use esker_base::num::{to_u64, to_usize};
use esker_base::{BlockRange, Lba, RaftIndex, Stamp};
use std::sync::Arc;

/// Most runs in one answer.
pub const RUNS_MAX: usize = 2048;
/// Most lookups in the map for one answer. Each goes down the tree once at most, and stays within one
/// node of the lowest level that it needs.
const LOOKUPS_MAX: usize = 4096;
/// Most map nodes read from the device for one answer, but for those on the way to its first run.
const NODES_READ_MAX: usize = 256;
/// Most map nodes read at a time.
const NODES_AT_A_TIME_MAX: usize = 32;
/// Blocks looked at together in a snapshot that no checkpoint has merged.
const CUT_WINDOW_BLOCKS: u64 = 256;

/// A query on its way.
#[derive(Debug)]
pub(crate) struct ExtentsState {
    request: ExtentsRequest,
    /// The first block that is not answered.
    next: u64,
    runs: Vec<ExtentRun>,
    held: Held,
    lookups: usize,
    nodes_read: usize,
    nodes_awaited: usize,
}

/// What a lookup found out about the blocks from one on.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Run(ExtentKind, u64),
    /// These nodes are needed first; the first of them is indispensable.
    Missing(Vec<Missing>),
}

impl ExtentsState {
    fn is_done(&self) -> bool {
        let range = self.request.range;
        let runs_max = if self.request.one { 1 } else { RUNS_MAX };
        let tired = self.lookups >= LOOKUPS_MAX || self.nodes_read >= NODES_READ_MAX;
        // The run after the last one shows that the last one is complete.
        self.next >= range.end() || self.runs.len() > runs_max || (tired && !self.runs.is_empty())
    }

    fn push(&mut self, kind: ExtentKind, count: u64) {
        self.next += count;
        match self.runs.last_mut() {
            Some(last) if last.kind == kind => last.count += count,
            _ => self.runs.push(ExtentRun { kind, count }),
        }
    }

    /// The answer. Of nodes that cannot be read, what was found before them is told.
    fn finish(mut self, error: Option<ReadError>) -> Effect {
        let runs_max = if self.request.one { 1 } else { RUNS_MAX };
        self.runs.truncate(runs_max);
        let result = match error {
            Some(error) if self.runs.is_empty() => Err(error),
            _ => Ok(self.runs),
        };
        let token = self.request.token;
        Effect::ExtentsDone { token, result }
    }
}

impl Engine {
    /// Begins a query.
    pub(crate) fn extents(&mut self, request: ExtentsRequest, effects: &mut Vec<Effect>) {
        let (token, range) = (request.token, request.range);
        let refused = match self.groups.get(&request.group).filter(|g| !g.deleting) {
            None => Some(ReadError::UnknownGroup),
            Some(_) if range.is_empty() => Some(ReadError::OutOfRange),
            Some(g) => self.out_of_range(g, request.at, range),
        };
        let state = ExtentsState {
            next: range.start.0,
            request,
            runs: Vec::new(),
            held: Held::new(),
            lookups: 0,
            nodes_read: 0,
            nodes_awaited: 0,
        };
        if refused.is_some() {
            effects.push(state.finish(refused));
            return;
        }
        self.extents.insert(token, state);
        self.extents_go_on(token, effects);
    }

    fn extents_go_on(&mut self, token: u64, effects: &mut Vec<Effect>) {
        let Some(mut state) = self.extents.remove(&token) else {
            return;
        };
        while !state.is_done() {
            let group = self.groups.get(&state.request.group);
            let Some(group) = group.filter(|g| !g.deleting) else {
                effects.push(state.finish(Some(ReadError::UnknownGroup)));
                return;
            };
            let (at, sabotage) = (state.request.at, self.config.sabotage);
            let Some(view) = View::of(&self.groups, &self.forest, group, at, sabotage) else {
                effects.push(state.finish(Some(ReadError::UnknownSnapshot)));
                return;
            };
            state.lookups += 1;
            let ahead = match state.request.one {
                true => 1,
                false => NODES_AT_A_TIME_MAX.min(NODES_READ_MAX.saturating_sub(state.nodes_read)),
            };
            let mut lookup = Lookup {
                view: &view,
                cache: &mut self.cache,
                held: &state.held,
                latest: state.request.latest && !state.request.old_keys,
                old_keys: state.request.old_keys,
                ahead: ahead.max(1),
            };
            match lookup.at(state.next, state.request.range.end()) {
                Found::Run(kind, count) => state.push(kind, count),
                Found::Missing(nodes) => return self.extents_wait(state, nodes, effects),
            }
        }
        effects.push(state.finish(None));
    }

    /// Reads map nodes that a query needs.
    fn extents_wait(
        &mut self,
        mut state: ExtentsState,
        nodes: Vec<Missing>,
        effects: &mut Vec<Effect>,
    ) {
        let (token, group) = (state.request.token, state.request.group);
        state.nodes_read += nodes.len();
        // The walk is past the leaves it held. Inner nodes stay, so that eviction cannot starve it.
        state.held.retain(|_, node| node.level() > 0);
        for node in nodes {
            let at = Lba(node.first_lba);
            if self.fetch_node(group, node, NodeWaiter::Extents(token), effects) {
                state.nodes_awaited += 1;
            } else {
                effects.push(state.finish(Some(ReadError::MapDamaged(at))));
                return;
            }
        }
        self.extents.insert(token, state);
    }

    /// A node came for a query, or cannot be had.
    pub(crate) fn node_for_extents(
        &mut self,
        token: u64,
        vaddr: VAddr,
        page: Option<Arc<NodePage>>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(state) = self.extents.get_mut(&token) else {
            return;
        };
        let Some(page) = page else {
            let at = Lba(state.next);
            if let Some(state) = self.extents.remove(&token) {
                effects.push(state.finish(Some(ReadError::MapDamaged(at))));
            }
            return;
        };
        state.held.insert(vaddr, page);
        state.nodes_awaited -= 1;
        if state.nodes_awaited == 0 {
            self.extents_go_on(token, effects);
        }
    }
}

/// Looks one run up.
struct Lookup<'a> {
    view: &'a View<'a>,
    cache: &'a mut NodeCache,
    held: &'a Held,
    latest: bool,
    /// Only blocks under older keys are data, all else is holes.
    old_keys: bool,
    /// Nodes to name when one is missing: the one and those that will be missing next.
    ahead: usize,
}

impl Lookup<'_> {
    /// The run from `lba` on, no longer than to `end`. Its neighbour may be of the same kind.
    fn at(&mut self, lba: u64, mut end: u64) -> Found {
        if self.latest && self.view.is_head {
            match first(&self.view.group.overlay, lba, end) {
                Some((at, pending)) if at == lba => {
                    return Found::Run(self.kind_of(pending.index), pending.count);
                }
                Some((at, _)) => end = at,
                None => {}
            }
        }
        // A snapshot that no checkpoint has merged is looked at a window at a time.
        if self.view.has_cuts() {
            end = end.min(lba + CUT_WINDOW_BLOCKS);
        }
        let mut next = 0;
        while let Some((n, delta, cut)) = self.view.layer(next) {
            next = n + 1;
            let range = BlockRange::new(lba, end - lba);
            let found = match cut {
                None => first(&delta.index, lba, end),
                Some(cut) => delta.at(range, cut).into_iter().next(),
            };
            match found {
                Some((at, extent)) if at == lba => {
                    let kind = self.kind_under(extent.kind, extent.stamp);
                    return Found::Run(kind, extent.count);
                }
                Some((at, _)) => end = at,
                None => {}
            }
        }
        self.tree(lba, end)
    }

    /// What a block of this kind and stamp counts as.
    fn kind_under(&self, kind: LeafKind, stamp: Stamp) -> ExtentKind {
        let group = self.view.group;
        let is_older = |epoch| {
            let entry = group.epoch_entry(epoch);
            entry.is_some_and(|e| group.is_under_older_key(e))
        };
        match kind_of(kind) {
            ExtentKind::Data if !self.old_keys || is_older(stamp.epoch()) => ExtentKind::Data,
            _ if self.old_keys => ExtentKind::Hole,
            kind => kind,
        }
    }

    /// What a pointer alone tells of everything below it. Highest stamps do not tell that nothing below is
    /// under an older key.
    fn uniform(&self, pointer: &ChildPointer, level: u8) -> Option<ExtentKind> {
        uniform(pointer, level).filter(|kind| !self.old_keys || *kind == ExtentKind::Hole)
    }

    /// What an entry that is not applied does to its blocks.
    fn kind_of(&self, index: RaftIndex) -> ExtentKind {
        let entry = self.view.group.entry(index);
        match entry.and_then(|entry| entry.operation.as_deref()) {
            Some(Operation::Write { .. }) => ExtentKind::Data,
            Some(Operation::Zero { .. }) => ExtentKind::Zero,
            _ => ExtentKind::Hole,
        }
    }

    fn tree(&mut self, lba: u64, end: u64) -> Found {
        let (mut pointer, mut level) = self.view.tree;
        let mut first = 0;
        let mut above: Option<(Arc<NodePage>, usize)> = None;
        if lba >= span(level) {
            return Found::Run(ExtentKind::Hole, end - lba);
        }
        loop {
            if let Some(kind) = self.uniform(&pointer, level) {
                let count = self.uniform_run(above.as_ref(), level, kind);
                let to = first + count * span(level);
                return Found::Run(kind, to.min(end) - lba);
            }
            let held = held_node(self.held, &pointer);
            let Some(node) = held.or_else(|| self.cache.get(&pointer)) else {
                let needed = Missing {
                    pointer,
                    level,
                    first_lba: first,
                };
                return Found::Missing(self.missing(needed, above.as_ref(), end));
            };
            if level == 0 {
                return self.leaf_run(&node, to_usize(lba - first), end - first);
            }
            let i = child_index(level, lba);
            level -= 1;
            first += to_u64(i) * span(level);
            pointer = node.child(i);
            above = Some((node, i));
        }
    }

    /// How many children from this one on are of one kind, within their parent.
    fn uniform_run(
        &self,
        above: Option<&(Arc<NodePage>, usize)>,
        level: u8,
        kind: ExtentKind,
    ) -> u64 {
        let Some((parent, from)) = above else {
            return 1; // the root
        };
        let same = |i: &usize| self.uniform(&parent.child(*i), level) == Some(kind);
        to_u64((*from..FANOUT).take_while(same).count())
    }

    /// The run in a leaf from its `from`th block on, no longer than to its `end`th.
    fn leaf_run(&self, leaf: &NodePage, from: usize, end: u64) -> Found {
        let end = FANOUT.min(to_usize(end));
        let kind_at = |i: usize| {
            let entry = leaf.leaf(i);
            self.kind_under(entry.kind, entry.stamp)
        };
        let kind = kind_at(from);
        let same = |i: &usize| kind_at(*i) == kind;
        Found::Run(kind, to_u64((from..end).take_while(same).count()))
    }

    /// The node that is missing, and its next siblings that will be missing too.
    fn missing(
        &mut self,
        needed: Missing,
        above: Option<&(Arc<NodePage>, usize)>,
        end: u64,
    ) -> Vec<Missing> {
        let mut nodes = vec![needed];
        let Some((parent, from)) = above.filter(|_| needed.level == 0) else {
            return nodes;
        };
        for i in from + 1..FANOUT {
            let first_lba = needed.first_lba + to_u64(i - from) * span(0);
            if nodes.len() >= self.ahead || first_lba >= end {
                break;
            }
            let pointer = parent.child(i);
            let known = self.held.contains_key(&pointer.vaddr);
            if self.uniform(&pointer, 0).is_none() && !known && self.cache.get(&pointer).is_none() {
                nodes.push(Missing {
                    pointer,
                    level: 0,
                    first_lba,
                });
            }
        }
        nodes
    }
}

/// The first piece in `[lba, end)`.
fn first<P: Piece>(map: &IntervalMap<P>, lba: u64, end: u64) -> Option<(u64, P)> {
    if map.is_empty() {
        return None;
    }
    map.overlapping(BlockRange::new(lba, end - lba)).next()
}

/// What a pointer alone tells of everything below it.
fn uniform(pointer: &ChildPointer, level: u8) -> Option<ExtentKind> {
    if pointer.vaddr.is_none() {
        Some(ExtentKind::Hole)
    } else if pointer.live == span(level) {
        Some(ExtentKind::Data)
    } else {
        None
    }
}

fn kind_of(kind: LeafKind) -> ExtentKind {
    match kind {
        LeafKind::Absent | LeafKind::Discarded => ExtentKind::Hole,
        LeafKind::Zero => ExtentKind::Zero,
        // A damaged block does not read as zeros, whatever else is known of it.
        LeafKind::Data | LeafKind::Damaged | LeafKind::Compressed => ExtentKind::Data,
    }
}
