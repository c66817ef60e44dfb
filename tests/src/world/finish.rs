//! How a run ends: faults stop, everybody finishes, everything is read, replicas are compared, and
//! the stores are stopped and checked.

use super::client::{Client, Mood, Wish};
use super::host::{Host, State};
use super::wire::Command;
use super::world::{Crash, Ev, Purpose, World};
use esker_engine::Probe;
use esker_node::admin::AdminRequest;
use esker_node::Event;
use std::collections::VecDeque;

/// Error number of a full store.
const ENOSPC: u32 = 28;
/// Virtual time in which each stage must be over.
const STAGE_NS_MAX: u64 = 120_000_000_000;
/// Virtual time in which a healthy node of one copy must have answered.
const ANSWER_NS_MAX: u64 = 60_000_000_000;
/// Virtual time in which a fenced node must have answered: its disk is at most slow for a moment.
const FENCED_ANSWER_NS_MAX: u64 = 1_000_000_000;
/// Virtual time after which a store that was emptied takes writes again: room comes back with the
/// checkpoint that merges the trims, however slow the disk is at it.
const REFILL_NS_MAX: u64 = 60_000_000_000;
/// Writes that are tried before the clock is looked at.
const REFILL_TRIES: usize = 100;
/// A client of a group gives up on an answer and tries another node.
const GROUP_ANSWER_NS_MAX: u64 = 5_000_000_000;

/// Copies move from then on: the first ones are made in peace.
const MOVES_FROM_NS: u64 = 500_000_000;

/// What a run is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Clients and faults.
    Storm,
    /// No more faults and no new requests; nodes come back.
    Calm,
    /// Every volume is read, written and flushed.
    Audit,
    /// A full store is emptied.
    Empty,
    /// And written again.
    Refill,
    /// Replicas reach the same index.
    Converge,
    /// Replicas write checkpoints and are compared.
    Compare,
    /// What was deleted is given back.
    Settle,
    /// Nodes stop.
    Stop,
    /// Over.
    Done,
}

impl World {
    /// Faults and new requests are over.
    pub(crate) fn is_calm(&self) -> bool {
        self.stage > Stage::Storm
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stage >= Stage::Stop
    }

    pub(crate) fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// Ends a run whose store was damaged beyond opening.
    pub(crate) fn give_up(&mut self) {
        self.stage = Stage::Done;
    }

    fn enter(&mut self, stage: Stage) {
        self.log(|| format!("stage {stage:?}"));
        self.trace.text(&format!("{stage:?}"));
        self.stage = stage;
        self.stage_since = self.now;
    }

    /// Looks at what is overdue, and whether a stage is over.
    pub(crate) fn watch(&mut self) {
        self.pursue_changes();
        if self.moves_copies() && self.stage <= Stage::Calm && self.now > MOVES_FROM_NS {
            self.move_copies();
        }
        self.look_for_stuck_requests();
        if self.quiet_damage && self.now >= self.hush_until {
            self.damage_now(super::chaos::DAMAGED_HOST);
        }
        if self.stage > Stage::Storm && self.now > self.stage_since + STAGE_NS_MAX {
            return self.stage_overdue();
        }
        match self.stage {
            Stage::Storm if self.step >= self.plan.options.steps && !self.quiet_damage => {
                self.calm_down();
            }
            Stage::Calm if self.all_serve() && self.attached() == 0 && self.admin.is_empty() => {
                self.begin_audit();
            }
            Stage::Audit if self.scripts_done() => self.audited(),
            Stage::Empty if self.scripts_done() => self.emptied(),
            Stage::Refill if self.scripts_done() => self.refilled(),
            Stage::Converge => self.converge(),
            Stage::Stop if self.hosts.iter().all(|h| h.state == State::Down) => {
                self.enter(Stage::Done);
            }
            _ => {}
        }
    }

    fn stage_overdue(&mut self) {
        let states: Vec<String> = self
            .hosts
            .iter()
            .map(|h| {
                let volumes = self.slots.iter().enumerate().map(|(s, _)| {
                    let node = h.node.as_ref();
                    node.and_then(|n| n.engine().recovered_group(self.group_of(s)))
                        .map(|g| {
                            let last = g.entries.last().map_or(g.truncated.0, |e| e.1);
                            (g.truncated.0, g.applied, last, g.hard_state)
                        })
                });
                let room = h.node.as_ref().map(|n| n.engine().progress());
                format!(
                    "{:?} fenced {} {:?}, {}",
                    h.state,
                    h.fenced,
                    volumes.collect::<Vec<_>>(),
                    room.unwrap_or_default()
                )
            })
            .collect();
        let moods: Vec<(Mood, usize)> = self
            .clients
            .iter()
            .map(|c| (c.mood, c.asked.len()))
            .collect();
        self.violate(format!(
            "no progress although faults have ended: {:?}, nodes {states:?}, clients {moods:?}",
            self.stage
        ));
    }

    fn look_for_stuck_requests(&mut self) {
        let single = self.plan.nodes == 1;
        for client in 0..self.clients.len() {
            let c = &self.clients[client];
            let Some(oldest) = c.asked.values().map(|a| a.at_ns).min() else {
                continue;
            };
            if single && self.now > oldest + ANSWER_NS_MAX {
                let asked: Vec<Wish> = c.asked.values().map(|a| a.wish).collect();
                let room = self.room_in_words();
                return self.violate(format!("requests without an answer: {room}: {asked:?}"));
            }
            let host = c.conn.and_then(|id| Some(self.conns.get(&id)?.host));
            // Others carry out what a fenced node of three is asked for, once one of them leads.
            let fenced = host.map(|h| &self.hosts[h]).filter(|h| h.fenced && single);
            if let Some(h) = fenced.filter(|_| self.plan.options.extras) {
                let slow = h.slow_disk.0.max(h.stalled_until);
                let since = oldest.max(h.fenced_at).max(slow);
                if self.now > since + FENCED_ANSWER_NS_MAX {
                    let asked: Vec<Wish> = c.asked.values().map(|a| a.wish).collect();
                    return self.violate(format!("a fenced node does not answer {asked:?}"));
                }
            }
            if !single && self.now > oldest + GROUP_ANSWER_NS_MAX {
                self.stats.did("clients that gave up waiting");
                self.client_leaves(client);
            }
        }
    }

    fn calm_down(&mut self) {
        self.enter(Stage::Calm);
        self.cut.clear();
        for host in 0..self.hosts.len() {
            self.hosts[host].disk.faults = crate::sim::DiskFaults::default();
            self.hosts[host].fuse = None;
            self.hosts[host].stalled_until = 0;
            self.hosts[host].slow_disk = (0, 1);
            if self.hosts[host].fenced {
                self.crash(host, Crash::Power);
            }
        }
        for slot in &mut self.slots {
            slot.wanted = None;
        }
        self.go_back_at_the_end();
    }

    fn all_serve(&self) -> bool {
        let up = self
            .hosts
            .iter()
            .all(|h| h.state == State::Serving && !h.fenced);
        let seated = !self.moves_copies() || (0..self.slots.len()).all(|s| self.is_seated(s));
        up && seated
            && (0..self.slots.len()).all(|slot| self.is_free(slot))
            && self.slots.iter().enumerate().all(|(at, s)| {
                let may_lack = self.plan.overfull || self.late.contains_key(&at);
                let goes_back = self.plan.cuts && s.wanted.is_some();
                s.change.is_none() && !goes_back && (s.volume.is_some() || may_lack)
            })
    }

    /// One client per volume reads all of it, writes, flushes, and reads what it wrote.
    fn begin_audit(&mut self) {
        self.enter(Stage::Audit);
        for client in &mut self.clients {
            client.mood = Mood::Gone;
        }
        for slot in 0..self.slots.len() {
            let Some(volume) = &self.slots[slot].volume else {
                continue;
            };
            // Of a volume that was grown it is only sure that it has its first size.
            let blocks = volume.sizes.first().copied().unwrap_or(0) / 4096;
            let step = self.plan.request_blocks_max.max(8);
            let mut script: VecDeque<Wish> = (0..blocks)
                .step_by(usize::try_from(step).unwrap_or(1))
                .map(|at| wish(Command::Read, at, step.min(blocks - at)))
                .collect();
            script.push_back(wish(Command::Write, 0, 1));
            script.push_back(wish(Command::Flush, 0, 0));
            script.push_back(wish(Command::Read, 0, 1));
            self.follow(slot, script);
        }
    }

    fn follow(&mut self, slot: usize, script: VecDeque<Wish>) {
        let mut client = Client::new(slot, &self.plan, &mut self.rng);
        client.depth = 1;
        client.script = Some(script);
        self.clients.push(client);
        self.think_soon(self.clients.len() - 1);
    }

    fn scripts_done(&self) -> bool {
        self.clients.iter().all(|c| c.mood == Mood::Gone)
    }

    fn audited(&mut self) {
        let refused = self
            .clients
            .iter()
            .flat_map(|c| &c.results)
            .any(|(w, e)| *e == ENOSPC && w.command == Command::Write);
        if refused && self.plan.overfull {
            self.stats.did("full stores emptied");
            self.enter(Stage::Empty);
            for slot in 0..self.slots.len() {
                let Some(volume) = &self.slots[slot].volume else {
                    continue;
                };
                let blocks = volume.sizes.first().copied().unwrap_or(0) / 4096;
                let script = VecDeque::from([
                    wish(Command::Trim, 0, blocks),
                    wish(Command::Flush, 0, 0),
                    wish(Command::Read, 0, blocks.min(16)),
                ]);
                self.follow(slot, script);
            }
            return;
        }
        if self.plan.nodes > 1 {
            self.enter(Stage::Converge);
        } else if self.plan.weights.snapshots > 0 {
            self.enter(Stage::Settle);
            self.settle(0);
        } else {
            self.begin_stop();
        }
    }

    fn emptied(&mut self) {
        let volumes = self.slots.iter().filter(|s| s.volume.is_some()).count();
        let clients = self.clients.iter().rev().take(volumes);
        if clients
            .flat_map(|c| &c.results)
            .any(|r| r.0.command == Command::Trim && r.1 == ENOSPC)
        {
            return self.violate(format!(
                "a full store refuses trims: {}",
                self.room_in_words()
            ));
        }
        self.enter(Stage::Refill);
        for slot in 0..self.slots.len() {
            if self.slots[slot].volume.is_some() {
                self.refill(slot);
            }
        }
    }

    fn refill(&mut self, slot: usize) {
        let once = [wish(Command::Write, 0, 1), wish(Command::Flush, 0, 0)];
        let script = once.into_iter().cycle().take(2 * REFILL_TRIES).collect();
        self.follow(slot, script);
    }

    fn room_in_words(&self) -> String {
        let node = self.hosts[0].node.as_ref();
        node.map_or(String::new(), |n| n.engine().progress())
    }

    fn refilled(&mut self) {
        let over = self.now > self.stage_since + REFILL_NS_MAX;
        let mut refused = false;
        for slot in 0..self.slots.len() {
            let mut clients = self.clients.iter().rev();
            let Some(client) = clients.find(|c| c.slot == slot && c.script.is_some()) else {
                continue;
            };
            let mut results = client.results.iter().rev();
            let last = results.find(|r| r.0.command == Command::Write);
            if self.slots[slot].volume.is_none() || last.is_none_or(|r| r.1 != ENOSPC) {
                continue;
            }
            if over {
                let progress = self.room_in_words();
                return self.violate(format!("a store that was emptied stays full: {progress}"));
            }
            refused = true;
            self.refill(slot);
        }
        if !refused {
            self.begin_stop();
        }
    }

    /// Whether all replicas have applied the same, and everything they have.
    fn has_converged(&self) -> bool {
        let there = (0..self.slots.len()).filter(|slot| self.slots[*slot].volume.is_some());
        let mut there = there;
        there.all(|slot| {
            let view = |host: &Host| {
                let node = host.node.as_ref();
                let view = node.and_then(|n| n.engine().group(self.group_of(slot)));
                view.map(|v| (v.applied, v.last_index))
            };
            let seated = self.seated(slot).into_iter();
            let at: Vec<_> = seated.map(|h| view(&self.hosts[h])).collect();
            at.iter()
                .all(|v| v.is_some_and(|(a, l)| a == l && *v == at[0]))
        })
    }

    /// Waits until all replicas have applied the same.
    fn converge(&mut self) {
        if !self.has_converged() {
            return;
        }
        self.enter(Stage::Compare);
        for host in 0..self.hosts.len() {
            self.ask_operator(host, AdminRequest::Checkpoint, Purpose::Compare);
        }
    }

    /// A replica's checkpoint is written; with the last one they are compared.
    pub(crate) fn compared(&mut self, host: usize, done: bool) {
        if !done {
            return self.violate(format!("node {host} writes no checkpoint"));
        }
        if self
            .admin
            .values()
            .any(|(_, p)| matches!(p, Purpose::Compare))
        {
            return;
        }
        if !self.has_converged() {
            // A point that a replica needed to catch up has gone since.
            return self.enter(Stage::Converge);
        }
        for slot in 0..self.slots.len() {
            let of = self.seated(slot);
            let views: Vec<_> = of
                .iter()
                .filter_map(|h| {
                    self.hosts[*h]
                        .node
                        .as_ref()?
                        .engine()
                        .group(self.group_of(slot))
                })
                .map(|v| {
                    (
                        v.applied,
                        v.root.logical_hash,
                        v.used_blocks,
                        v.max_stamp,
                        v.epoch,
                        v.meta.size_bytes,
                    )
                })
                .collect();
            self.compare_snapshots(slot, &of);
            if views.iter().any(|v| *v != views[0]) {
                self.violate(format!("replicas of volume {slot} differ: {views:?}"));
            }
            if let (Some(view), Some(growth)) = (views.first(), self.growth.get(slot)) {
                if let Err(text) = growth.allows(view.5) {
                    self.violate(format!("volume {slot}: {text}"));
                }
            }
            if views.len() > 1 {
                self.stats.did("comparisons of replicas");
            }
        }
        self.look_for_bare_maps();
        self.begin_stop();
    }

    /// Nobody changed a store, so no map is refused; but for those of which it is known how that comes about.
    fn look_for_bare_maps(&mut self) {
        for host in 0..self.hosts.len() {
            self.hosts[host].note_probes_now();
            let passed = self.hosts[host].probes.contains(&Probe::ClaimPassed);
            let node = self.hosts[host].node.as_ref().filter(|_| !passed);
            let bare = node.and_then(|n| n.engine().without_mac().next());
            if let Some(name) = bare.map(String::from) {
                self.violate(format!(
                    "node {host}: nothing vouches for the map of {name}"
                ));
            }
        }
    }

    pub(crate) fn begin_stop(&mut self) {
        self.enter(Stage::Stop);
        // Not now: this may be the answer of a node whose other effects are still to come.
        self.at(0, Ev::StopAll);
    }

    /// Every node is asked to stop.
    pub(crate) fn stop_all(&mut self) {
        for host in 0..self.hosts.len() {
            self.hosts[host].state = State::Stopping;
            self.step_node(host, Event::Stop);
        }
    }
}

fn wish(command: Command, block: u64, count: u64) -> Wish {
    Wish {
        command,
        flags: 0,
        offset: block * 4096,
        length: count * 4096,
    }
}
