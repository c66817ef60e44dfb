//! What changed between two versions of a volume: a walk over both maps at once that passes over
//! whatever is the same node in both, so that it takes time by what changed.
//!
//! A question does a bounded amount of work and may be answered in part; whoever asks goes on from
//! there. A snapshot that no checkpoint has merged yet waits for one.

use crate::engine::Engine;
use crate::error::ReadError;
use crate::event::{Diff, DiffRequest, DiffRun, Effect};
use crate::format::node::{ChildPointer, LeafEntry, LeafKind, NodePage, FANOUT};
use crate::format::VAddr;
use crate::group::Group;
use crate::map::cache::NodeCache;
use crate::map::delta::{Delta, Extent};
use crate::map::tree::{child_index, span, Held, Missing};
use crate::map::view::View;
use crate::readpath::NodeWaiter;
use esker_base::num::{to_u64, to_usize};
use esker_base::{BlockRange, Lba};
use std::sync::Arc;

/// Most runs in one answer.
pub const RUNS_MAX: usize = 2048;
/// Most places looked at for one answer.
const STEPS_MAX: usize = 1024;
/// Most map nodes read from the device for one answer.
const NODES_READ_MAX: usize = 256;
/// Leaves of each version looked for ahead.
const AHEAD_LEAVES: usize = 16;

/// A question on its way.
#[derive(Debug)]
pub(crate) struct DiffState {
    request: DiffRequest,
    /// The first block that is not answered.
    next: u64,
    runs: Vec<DiffRun>,
    /// Between two of the runs lies what does not differ.
    has_gap: bool,
    held: Held,
    steps: usize,
    nodes_read: usize,
    nodes_awaited: usize,
}

impl DiffState {
    fn is_done(&self) -> bool {
        self.next >= self.request.range.end()
            || self.runs.len() >= RUNS_MAX
            || self.steps >= STEPS_MAX
            || self.nodes_read >= NODES_READ_MAX
            || (self.request.one && self.has_one())
    }

    /// It is known where the first blocks end that all differ, or all do not.
    fn has_one(&self) -> bool {
        let (Some(first), Some(last)) = (self.runs.first(), self.runs.last()) else {
            return false;
        };
        first.lba > self.request.range.start.0 || last.lba + last.count < self.next || self.has_gap
    }

    fn push(&mut self, lba: u64, is_data: bool) {
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
        let state = DiffState {
            next: request.range.start.0,
            request,
            runs: Vec::new(),
            has_gap: false,
            held: Held::new(),
            steps: 0,
            nodes_read: 0,
            nodes_awaited: 0,
        };
        let refused = match self
            .groups
            .get(&state.request.group)
            .filter(|g| !g.deleting)
        {
            None => Some(ReadError::UnknownGroup),
            Some(g) => {
                let range = state.request.range;
                let past_new = self.out_of_range(g, state.request.to, range);
                let past_old = self.out_of_range(g, Some(state.request.from), range);
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
        let waiting = self.diffs.iter().filter(|(_, s)| s.nodes_awaited == 0);
        for token in waiting.map(|(token, _)| *token).collect::<Vec<_>>() {
            self.diff_go_on(token, effects);
        }
    }

    fn diff_go_on(&mut self, token: u64, effects: &mut Vec<Effect>) {
        let Some(mut state) = self.diffs.remove(&token) else {
            return;
        };
        while !state.is_done() {
            let group = self.groups.get(&state.request.group);
            let Some(group) = group.filter(|g| !g.deleting) else {
                effects.push(state.finish(Some(ReadError::UnknownGroup)));
                return;
            };
            let view = |at| {
                let sabotage = self.config.sabotage;
                View::of(&self.groups, &self.forest, group, at, sabotage)
            };
            let (from, to) = (view(Some(state.request.from)), view(state.request.to));
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
            state.steps += 1;
            let mut walk = Walk {
                group,
                is_head: to.is_head,
                cache: &mut self.cache,
                held: &state.held,
            };
            let end = state.request.range.end();
            match walk.step(from.tree, to.tree, state.next, end) {
                Step::Same(next) => state.next = next,
                Step::Differs(next, changes) => {
                    changes
                        .into_iter()
                        .for_each(|(lba, data)| state.push(lba, data));
                    state.next = next;
                }
                Step::Missing(nodes) => return self.diff_wait(state, nodes, effects),
            }
        }
        effects.push(state.finish(None));
    }

    fn diff_wait(&mut self, mut state: DiffState, nodes: Vec<Missing>, effects: &mut Vec<Effect>) {
        let (token, group) = (state.request.token, state.request.group);
        state.nodes_read += nodes.len();
        // The walk is past the leaves it held. Inner nodes stay, so that eviction cannot starve it.
        state.held.retain(|_, node| node.level() > 0);
        for node in nodes {
            if self.fetch_node(group, node, NodeWaiter::Diff(token), effects) {
                state.nodes_awaited += 1;
            } else {
                let at = Lba(node.first_lba);
                effects.push(state.finish(Some(ReadError::MapDamaged(at))));
                return;
            }
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
            return;
        };
        let Some(page) = page else {
            let at = Lba(state.next);
            if let Some(state) = self.diffs.remove(&token) {
                effects.push(state.finish(Some(ReadError::MapDamaged(at))));
            }
            return;
        };
        state.held.insert(vaddr, page);
        state.nodes_awaited -= 1;
        if state.nodes_awaited == 0 {
            self.diff_go_on(token, effects);
        }
    }
}

enum Step {
    /// Nothing differs up to this block.
    Same(u64),
    /// Looked at up to this block: which blocks differ, and whether they hold data now.
    Differs(u64, Vec<(u64, bool)>),
    /// These nodes are needed first.
    Missing(Vec<Missing>),
}

/// What a map has below some level: a node of its own, or the whole map below levels that it does not
/// have, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Nothing,
    Node(ChildPointer),
    Below(ChildPointer, u8),
}

impl Part {
    fn of(root: ChildPointer, level: u8, top: u8) -> Self {
        if root.vaddr.is_none() {
            Self::Nothing
        } else if level == top {
            Self::Node(root)
        } else {
            Self::Below(root, level)
        }
    }

    /// The same in both maps: one node is never two things.
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Nothing, Self::Nothing) => true,
            (Self::Node(a), Self::Node(b)) => a.vaddr == b.vaddr,
            (Self::Below(a, _), Self::Below(b, _)) => a.vaddr == b.vaddr,
            _ => false,
        }
    }
}

struct Walk<'a> {
    group: &'a Group,
    /// The newer version is the head: its deltas count.
    is_head: bool,
    cache: &'a mut NodeCache,
    held: &'a Held,
}

impl Walk<'_> {
    fn deltas(&self) -> impl Iterator<Item = &Delta> {
        let frozen = self.group.frozen.as_deref().map(|layer| &layer.index);
        let newest = [frozen, Some(&self.group.active.index)];
        newest.into_iter().flatten().filter(|_| self.is_head)
    }

    /// The first extent of the deltas in a range.
    fn first_change(&self, lba: u64, end: u64) -> Option<(u64, Extent)> {
        let range = BlockRange::new(lba, end.saturating_sub(lba));
        let firsts = self.deltas().filter_map(|d| d.overlapping(range).next());
        firsts.min_by_key(|(at, _)| *at)
    }

    fn node(&mut self, pointer: &ChildPointer) -> Option<Arc<NodePage>> {
        let held = self.held.get(&pointer.vaddr).cloned();
        held.or_else(|| self.cache.get(pointer.vaddr))
    }

    /// Child `i` of a part at `level`; its node if that is missing.
    fn child(&mut self, part: &Part, level: u8, i: usize) -> Result<Part, ChildPointer> {
        Ok(match part {
            Part::Nothing => Part::Nothing,
            Part::Below(root, own) if i == 0 => Part::of(*root, *own, level - 1),
            Part::Below(..) => Part::Nothing,
            Part::Node(pointer) => {
                let node = self.node(pointer).ok_or(*pointer)?;
                Part::of(node.child(i), level - 1, level - 1)
            }
        })
    }

    /// Looks at the first place that may differ from `lba` on.
    fn step(&mut self, a: (ChildPointer, u8), b: (ChildPointer, u8), lba: u64, end: u64) -> Step {
        let top = a.1.max(b.1);
        if lba >= span(top) {
            // Past both maps only deltas can have anything.
            return match self.first_change(lba, end) {
                Some((at, _)) => {
                    self.leaf(&Part::Nothing, &Part::Nothing, at / 128 * 128, lba, end)
                }
                None => Step::Same(end),
            };
        }
        let (mut old, mut new) = (Part::of(a.0, a.1, top), Part::of(b.0, b.1, top));
        let (mut level, mut first) = (top, 0);
        let mut above = None;
        loop {
            let until = first + span(level);
            let change = self.first_change(lba, until.min(end));
            let same = old.is(&new);
            match &change {
                None if same => return Step::Same(until),
                Some((at, _)) if same && at / to_u64(FANOUT) > lba / to_u64(FANOUT) => {
                    return Step::Same(at / to_u64(FANOUT) * to_u64(FANOUT));
                }
                Some((at, extent)) => {
                    let covers = *at <= lba && at + extent.count >= until.min(end);
                    let hollow = extent.kind != LeafKind::Data;
                    if old == Part::Nothing && new == Part::Nothing && covers && hollow {
                        return Step::Same(until);
                    }
                }
                None => {}
            }
            if level == 0 {
                let step = self.leaf(&old, &new, first, lba, end);
                return match (step, above) {
                    (Step::Missing(nodes), Some((old, new, i))) => {
                        Step::Missing(self.ahead(nodes, &old, &new, first, i))
                    }
                    (step, _) => step,
                };
            }
            let i = child_index(level, lba);
            let children = (self.child(&old, level, i), self.child(&new, level, i));
            let (Ok(a), Ok(b)) = children else {
                let pointers = [children.0.err(), children.1.err()];
                let missing = pointers.into_iter().flatten().map(|pointer| Missing {
                    pointer,
                    level,
                    first_lba: first,
                });
                return Step::Missing(dedup(missing.collect()));
            };
            above = Some((old, new, i));
            level -= 1;
            first += to_u64(i) * span(level);
            (old, new) = (a, b);
        }
    }

    /// Leaves that differ behind the ones that are missing, as far as their parents tell.
    fn ahead(
        &mut self,
        mut nodes: Vec<Missing>,
        old: &Part,
        new: &Part,
        first: u64,
        from: usize,
    ) -> Vec<Missing> {
        for i in (from + 1..FANOUT).take(AHEAD_LEAVES) {
            let (Ok(a), Ok(b)) = (self.child(old, 1, i), self.child(new, 1, i)) else {
                break;
            };
            if a.is(&b) {
                continue;
            }
            for part in [a, b] {
                if let Part::Node(pointer) = part {
                    if self.node(&pointer).is_none() {
                        let first_lba = first + to_u64(i - from) * span(0);
                        nodes.push(Missing {
                            pointer,
                            level: 0,
                            first_lba,
                        });
                    }
                }
            }
        }
        dedup(nodes)
    }

    /// Compares the blocks of one leaf from `lba` on.
    fn leaf(&mut self, old: &Part, new: &Part, first: u64, lba: u64, end: u64) -> Step {
        let mut pages = [None, None];
        let mut missing = Vec::new();
        for (page, part) in pages.iter_mut().zip([old, new]) {
            if let Part::Node(pointer) = part {
                *page = self.node(pointer);
                if page.is_none() {
                    missing.push(Missing {
                        pointer: *pointer,
                        level: 0,
                        first_lba: first,
                    });
                }
            }
        }
        if !missing.is_empty() {
            return Step::Missing(dedup(missing));
        }
        let until = (first + span(0)).min(end);
        let lba = lba.max(first);
        let entry = |page: &Option<Arc<NodePage>>, lba: u64| {
            let node = page.as_ref();
            node.map_or(LeafEntry::default(), |node| {
                node.leaf(to_usize(lba - first))
            })
        };
        let mut newer: Vec<LeafEntry> = (lba..until).map(|at| entry(&pages[1], at)).collect();
        for delta in self.deltas() {
            for (at, extent) in delta.overlapping(BlockRange::new(lba, until - lba)) {
                for i in 0..extent.count {
                    newer[to_usize(at + i - lba)] = extent.leaf(i);
                }
            }
        }
        let mut changes = Vec::new();
        for (at, new) in (lba..).zip(newer) {
            let old = entry(&pages[0], at);
            let differs = match (old.kind == LeafKind::Data, new.kind == LeafKind::Data) {
                (true, true) => old.vaddr != new.vaddr,
                (was, is) => was != is,
            };
            if differs {
                changes.push((at, new.kind == LeafKind::Data));
            }
        }
        Step::Differs(until, changes)
    }
}

fn dedup(mut nodes: Vec<Missing>) -> Vec<Missing> {
    nodes.sort_by_key(|n| n.pointer.vaddr);
    nodes.dedup_by_key(|n| n.pointer.vaddr);
    nodes
}
