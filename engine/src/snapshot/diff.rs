//! What changed between two versions of a volume: a walk over both maps at once that passes over
//! whatever is the same node in both, so that it takes time by what changed.
//!
//! A question does a bounded amount of work and may be answered in part; whoever asks goes on from
//! there. A snapshot that no checkpoint has merged yet waits for one.

use crate::engine::Engine;
use crate::error::ReadError;
use crate::event::{Diff, DiffRequest, DiffRun, Effect};
use crate::format::node::NodePage;
use crate::format::VAddr;
use crate::group::Group;
use crate::map::tree::{span, Missing};
use crate::map::view::View;
use crate::readpath::NodeWaiter;
use crate::snapshot::compare::{Walk, Walked};
use esker_base::Lba;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Most runs in one answer.
pub const RUNS_MAX: usize = 2048;
/// Most map nodes read from the device for one answer.
const NODES_READ_MAX: usize = 2048;
/// Most map nodes on their way from the device for one question.
const NODES_AHEAD_MAX: usize = 64;
/// The same for a question that ends where what differs ends.
const NODES_AHEAD_ONE_MAX: usize = 8;

/// A question on its way.
#[derive(Debug)]
pub(crate) struct DiffState {
    request: DiffRequest,
    /// The first block that is not answered.
    pub(super) next: u64,
    runs: Vec<DiffRun>,
    /// Between two of the runs lies what does not differ.
    has_gap: bool,
    /// Nodes that were read, each with the block at which the walk has passed it. Of each level no
    /// more than are asked for at a time.
    pub(super) held: BTreeMap<VAddr, (u64, Arc<NodePage>)>,
    /// Nodes on their way from the device.
    pub(super) awaited: BTreeMap<VAddr, u64>,
    /// Nodes that cannot be had. They count only if the walk comes to them.
    pub(super) lost: BTreeSet<VAddr>,
    nodes_read: usize,
}

impl DiffState {
    fn new(request: DiffRequest) -> Self {
        Self {
            next: request.range.start.0,
            request,
            runs: Vec::new(),
            has_gap: false,
            held: BTreeMap::new(),
            awaited: BTreeMap::new(),
            lost: BTreeSet::new(),
            nodes_read: 0,
        }
    }

    /// The end of what is asked about.
    pub(super) fn end(&self) -> u64 {
        self.request.range.end()
    }

    /// As much is known as one answer tells.
    pub(super) fn is_done(&self) -> bool {
        self.next >= self.end()
            || self.runs.len() >= RUNS_MAX
            || (self.nodes_read >= NODES_READ_MAX && self.next > self.request.range.start.0)
            || (self.request.one && self.has_one())
    }

    /// Nodes that may be on their way at a time.
    fn ahead_max(&self) -> usize {
        match self.request.one {
            true => NODES_AHEAD_ONE_MAX,
            false => NODES_AHEAD_MAX,
        }
    }

    /// It is known where the first blocks end that all differ, or all do not.
    fn has_one(&self) -> bool {
        let (Some(first), Some(last)) = (self.runs.first(), self.runs.last()) else {
            return false;
        };
        first.lba > self.request.range.start.0 || last.lba + last.count < self.next || self.has_gap
    }

    /// A block differs.
    pub(super) fn push(&mut self, lba: u64, is_data: bool) {
        let last = self.runs.last();
        self.has_gap |= last.is_some_and(|run| run.lba + run.count < lba);
        match self.runs.last_mut() {
            Some(run) if run.lba + run.count == lba && run.is_data == is_data => run.count += 1,
            _ => self.runs.push(DiffRun {
                lba,
                count: 1,
                is_data,
            }),
        }
    }

    fn finish(self, error: Option<ReadError>) -> Effect {
        let through = self.next.min(self.request.range.end());
        let runs = self.runs;
        Effect::DiffDone {
            token: self.request.token,
            result: match error {
                Some(error) => Err(error),
                None => Ok(Diff { runs, through }),
            },
        }
    }
}

impl Engine {
    /// Begins to answer.
    pub(crate) fn diff(&mut self, request: DiffRequest, effects: &mut Vec<Effect>) {
        let state = DiffState::new(request);
        let there = |id| self.groups.get(id).filter(|g: &&Group| !g.deleting);
        let groups = there(&state.request.group).zip(there(&state.request.old));
        let refused = match groups {
            None => Some(ReadError::UnknownGroup),
            Some((new, old)) => {
                let range = state.request.range;
                let past_new = self.out_of_range(new, state.request.to, range);
                let past_old = self.out_of_range(old, Some(state.request.from), range);
                match (past_new, past_old) {
                    // It may be longer than one of them.
                    (Some(ReadError::OutOfRange), None) | (None, Some(ReadError::OutOfRange)) => {
                        None
                    }
                    (new, old) => new.or(old),
                }
            }
        };
        if refused.is_some() {
            effects.push(state.finish(refused));
            return;
        }
        let token = state.request.token;
        self.diffs.insert(token, state);
        self.diff_go_on(token, effects);
    }

    /// A checkpoint has merged what some questions waited for.
    pub(crate) fn diffs_go_on(&mut self, effects: &mut Vec<Effect>) {
        let waiting = self.diffs.iter().filter(|(_, s)| s.awaited.is_empty());
        for token in waiting.map(|(token, _)| *token).collect::<Vec<_>>() {
            self.diff_go_on(token, effects);
        }
    }

    fn diff_go_on(&mut self, token: u64, effects: &mut Vec<Effect>) {
        let Some(mut state) = self.diffs.remove(&token) else {
            return;
        };
        let there = |id| self.groups.get(id).filter(|g: &&Group| !g.deleting);
        let groups = there(&state.request.group).zip(there(&state.request.old));
        let Some((group, old)) = groups else {
            effects.push(state.finish(Some(ReadError::UnknownGroup)));
            return;
        };
        let view = |of, at| {
            let sabotage = self.config.sabotage;
            View::of(&self.groups, &self.forest, of, at, sabotage)
        };
        let from = view(old, Some(state.request.from));
        let to = view(group, state.request.to);
        let (Some(from), Some(to)) = (from, to) else {
            effects.push(state.finish(Some(ReadError::UnknownSnapshot)));
            return;
        };
        if from.waits_for_merge() || to.waits_for_merge() {
            if self.fenced.is_some() {
                effects.push(state.finish(Some(ReadError::NotMerged)));
                return;
            }
            self.checkpoint_wanted |= self.checkpoint.is_none();
            self.diffs.insert(token, state);
            return;
        }
        let maps = (from.tree, to.tree);
        let free = state.ahead_max().saturating_sub(state.awaited.len());
        let mut walk = Walk::new(group, to.is_head, &mut self.cache, &mut state);
        match walk.run(maps.0, maps.1) {
            Walked::Enough => effects.push(state.finish(None)),
            Walked::Lost => {
                let at = Lba(state.next);
                effects.push(state.finish(Some(ReadError::MapDamaged(at))));
            }
            Walked::Waits => {
                let nodes = walk.ahead(maps.0, maps.1, free);
                self.diff_wait(state, nodes, effects);
            }
        }
    }

    fn diff_wait(&mut self, mut state: DiffState, nodes: Vec<Missing>, effects: &mut Vec<Effect>) {
        let (token, group) = (state.request.token, state.request.group);
        state.nodes_read += nodes.len();
        let next = state.next;
        state.held.retain(|_, (end, _)| *end > next);
        for node in nodes {
            let vaddr = node.pointer.vaddr;
            if self.fetch_node(group, node, NodeWaiter::Diff(token), effects) {
                state
                    .awaited
                    .insert(vaddr, node.first_lba + span(node.level));
            } else {
                state.lost.insert(vaddr);
            }
        }
        if state.awaited.is_empty() {
            // The addresses of all of them are in no segment.
            let at = Lba(state.next);
            effects.push(state.finish(Some(ReadError::MapDamaged(at))));
            return;
        }
        self.diffs.insert(token, state);
    }

    /// A node came for a question, or cannot be had.
    pub(crate) fn node_for_diff(
        &mut self,
        token: u64,
        vaddr: VAddr,
        page: Option<Arc<NodePage>>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(state) = self.diffs.get_mut(&token) else {
            return; // answered meanwhile, with less
        };
        let end = state.awaited.remove(&vaddr).unwrap_or(u64::MAX);
        match page {
            Some(page) => drop(state.held.insert(vaddr, (end, page))),
            None => drop(state.lost.insert(vaddr)),
        }
        // In lots: the walk begins at the root each time.
        if state.awaited.len() <= state.ahead_max() / 2 {
            self.diff_go_on(token, effects);
        }
    }
}
