//! What must hold when nothing is going on: after an opening, and after everything is applied.

use super::group::GroupModel;
use super::ops::append_entry;
use super::world::World;
use super::Violation;
use crate::sim::{DiskFaults, Image, SimRng};
use esker_base::{BlockRange, GroupId, RaftIndex, BLOCK_SIZE_U64};
use esker_engine::event::Append;
use esker_engine::{EngineConfig, Event, OpenError, Probe, Sabotage};
use std::collections::BTreeSet;
use std::time::Duration;

/// How a run is to be.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What is broken in the engine.
    pub sabotage: Sabotage,
    /// Lives of the engine: crashes or stops plus one.
    pub lives: u64,
    /// Steps per life, at most.
    pub steps_max: u64,
    /// Whether disks fail besides losing power.
    pub faults: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            sabotage: Sabotage::None,
            lives: 5,
            steps_max: 500,
            faults: true,
        }
    }
}

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Hash of everything that happened.
    pub trace: u64,
    /// Branches taken.
    pub probes: BTreeSet<Probe>,
    /// Faults that happened.
    pub faults: crate::sim::FaultCounts,
    /// Openings.
    pub openings: u64,
    /// Clones that began.
    pub clones: u64,
    /// Lives that ended with the store full or nearly so.
    pub full: u64,
}

/// Runs a seed.
///
/// # Errors
/// When a rule is broken.
pub fn run_seed(seed: u64, options: Options) -> Result<Report, Violation> {
    let mut rng = SimRng::new(seed, 2);
    let config = World::config(&mut rng, options.sabotage);
    let mut world = World::new(seed, config);
    let mut report = Report::default();
    for life in 0..options.lives {
        world.open(&mut rng, options.faults)?;
        report.openings += 1;
        world.check_opened()?;
        if rng.chance(300) {
            world.verify(&world.disk.visible().clone())?;
        }
        if life > 0 && rng.chance(300) {
            world.settle()?;
        }
        world.disk.faults = match rng.below(10) {
            0 if options.faults => DiskFaults {
                write_error: 3,
                no_space: 3,
                ..DiskFaults::default()
            },
            1 if options.faults => DiskFaults {
                sync_error: 20,
                ..DiskFaults::default()
            },
            2 | 3 if options.faults => DiskFaults {
                read_error: 30,
                ..DiskFaults::default()
            },
            _ => DiskFaults::default(),
        };
        world.live(&mut rng, options.steps_max)?;
        report.full += u64::from(!world.engine.has_room_for(1 << 16));
        world.end_life(&mut rng)?;
    }
    world.open(&mut rng, false)?;
    world.check_opened()?;
    world.settle()?;
    if rng.chance(400) {
        world.compare_with_second()?;
    }
    world.probes.extend(world.engine.probes().iter().copied());
    report.clones = world.cloned;
    report.trace = world.trace.digest();
    world.faults.add(&world.disk.counts);
    (report.probes, report.faults) = (world.probes, world.faults);
    Ok(report)
}

impl World {
    /// Runs the workload for some steps, or until the engine is fenced.
    fn live(&mut self, rng: &mut SimRng, steps_max: u64) -> Result<(), Violation> {
        let eager = rng.range(200, 800);
        for _ in 0..rng.range(1, steps_max) {
            if self.fenced {
                break;
            }
            match rng.below(1000) {
                n if n < eager => _ = self.disk_step()?,
                n if n < 980 => self.random_op()?,
                _ => {
                    let longest = Duration::from_micros(rng.below(60_000));
                    self.pass_time(longest);
                }
            }
            while self.timer_step()? {}
        }
        if rng.chance(200) {
            let image = self.disk.crash_image(&mut rng.clone());
            self.verify(&image)?;
        }
        Ok(())
    }

    fn end_life(&mut self, rng: &mut SimRng) -> Result<(), Violation> {
        if self.fenced {
            // Reads go on; nothing is acknowledged any more.
            for _ in 0..10 {
                if let Some(id) = self.any_group() {
                    let blocks = self.groups[&id].applied.size_bytes / BLOCK_SIZE_U64;
                    let range = super::ops::random_range(rng, blocks, 64);
                    self.read(id, range, rng.chance(500))?;
                }
                self.run(true)?;
            }
        } else if rng.chance(250) {
            self.step(Event::Stop)?;
            self.run(true)?;
            if !self.stopped {
                return Err(Violation::new(format!(
                    "the engine does not stop: {:?}",
                    self.engine.progress()
                )));
            }
            if !self.fenced && self.groups.values().any(|m| m.durable_last() < m.last()) {
                // Entries in records that nobody has applied hold back room for the map's nodes.
                let unapplied = self.groups.values().any(|m| m.applied.index < m.last());
                let waits = unapplied && self.engine.sample().is_stalled;
                let stuck = waits || !self.engine.has_room_for(1 << 16);
                if !stuck {
                    return Err(Violation::new(format!(
                        "stopped with entries that are not durable: {}",
                        self.engine.progress()
                    )));
                }
            }
        } else if rng.chance(400) {
            self.run(rng.chance(500))?;
        }
        self.disk.power_cut();
        self.restart();
        Ok(())
    }

    /// Opens the store, with crashes in between.
    ///
    /// # Errors
    /// When a rule is broken.
    pub fn open(&mut self, rng: &mut SimRng, faults: bool) -> Result<(), Violation> {
        for attempt in 0.. {
            let crash_at = match attempt < 3 && rng.chance(250) {
                true => rng.below(40),
                false => u64::MAX,
            };
            self.disk.faults = match rng.below(12) {
                0 if faults && attempt < 3 => DiskFaults {
                    read_error: 100,
                    write_error: 50,
                    sync_error: 50,
                    ..DiskFaults::default()
                },
                _ => DiskFaults::default(),
            };
            let mut steps = 0;
            while self.open.is_none() && self.refused.is_none() && steps < crash_at {
                steps += 1;
                if !self.disk_step()? && !self.timer_step()? {
                    return Err(Violation::new("the opening hangs"));
                }
            }
            if self.open.is_some() {
                return Ok(());
            }
            if let Some(error) = &self.refused {
                let counts = self.disk.counts;
                let excused = match error {
                    OpenError::Read { .. } => counts.read_errors > 0,
                    OpenError::Fenced(_) => {
                        counts.write_errors + counts.sync_errors + counts.read_errors > 0
                    }
                    _ => false,
                };
                if !excused {
                    return Err(Violation::new(format!("refused to open: {error}")));
                }
            }
            self.disk.power_cut();
            self.restart();
        }
        Ok(())
    }

    /// Holds what the opening found against the models.
    ///
    /// # Errors
    /// When a rule is broken.
    pub fn check_opened(&mut self) -> Result<(), Violation> {
        self.check_opened_with(&BTreeSet::new())
    }

    /// As [`World::check_opened`], but groups in `touched` may have lost what a damaged record held.
    ///
    /// # Errors
    /// When a rule is broken.
    pub fn check_opened_with(&mut self, touched: &BTreeSet<GroupId>) -> Result<(), Violation> {
        let Some(opened) = self.open.clone() else {
            return Err(Violation::new("not open"));
        };
        if !self.damaged {
            let r = &opened.report;
            if r.damaged_blocks + r.damaged_records + r.suspended_groups > 0 {
                return Err(Violation::new(format!("damage without damage: {r:?}")));
            }
        }
        let found: BTreeSet<GroupId> = opened.groups.iter().map(|g| g.meta.group).collect();
        let missing: Vec<GroupId> = self
            .groups
            .values()
            .filter(|m| !found.contains(&m.meta.group))
            .map(|m| m.meta.group)
            .collect();
        for id in missing {
            let Some(model) = self.groups.remove(&id) else {
                continue;
            };
            // A clone that nobody used may begin anew: its entry is there, and not applied.
            let again = model.origin.as_ref().is_some_and(|origin| {
                let group = |g: &&esker_engine::event::RecoveredGroup| {
                    (g.meta.group, g.meta.replica) == origin.base.0
                };
                let of = opened.groups.iter().find(group);
                model.durable_last() == 1 && of.is_some_and(|g| g.applied.0 < origin.index)
            });
            if again {
                continue;
            }
            if model.created && !model.deleting && !touched.contains(&id) {
                return Err(Violation::new(format!("group {id} is gone")));
            }
            self.groups.insert(id, model);
            self.bury(id);
        }
        for group in &opened.groups {
            let Some(model) = self.groups.get_mut(&group.meta.group) else {
                if touched.contains(&group.meta.group) {
                    continue; // its end was lost
                }
                return Err(Violation::new(format!(
                    "group {} exists and must not",
                    group.meta.group
                )));
            };
            if model.meta.replica != group.meta.replica {
                return Err(Violation::new(format!(
                    "group {} is an earlier one of its name",
                    group.meta.group
                )));
            }
            model.suspended = group.suspended;
            (model.created, model.deleting) = (true, false);
            if !group.suspended {
                model.recovered(group)?;
            }
        }
        Ok(())
    }

    /// Applies everything and compares every block of every group, then the whole image.
    ///
    /// # Errors
    /// When a rule is broken.
    pub fn settle(&mut self) -> Result<(), Violation> {
        self.disk.faults = DiskFaults::default();
        self.run(true)?;
        let ids: Vec<GroupId> = self
            .groups
            .values()
            .filter(|m| !m.deleting && !m.suspended)
            .map(|m| m.meta.group)
            .collect();
        for id in &ids {
            let Some(model) = self.groups.get_mut(id) else {
                continue;
            };
            let through = model.commit.min(model.durable_common());
            self.step(Event::Apply {
                group: *id,
                through: RaftIndex(through),
            })?;
            self.run(true)?;
        }
        self.read_all(&ids)?;
        for id in &ids {
            self.check_diffs(*id)?;
        }
        for _ in 0..2 {
            let token = self.token();
            self.step(Event::Checkpoint { token })?;
            self.run(true)?;
            if !self.checkpoints.contains(&token) && !self.fenced {
                return Err(Violation::new("a checkpoint does not end"));
            }
        }
        self.read_all(&ids)?;
        for id in &ids {
            self.check_snapshots(*id)?;
            self.check_space(*id)?;
            self.check_diffs(*id)?;
        }
        self.check_scrub()?;
        for id in &ids {
            let (Some(model), Some(view)) = (self.groups.get(id), self.engine.group(*id)) else {
                return Err(Violation::new(format!("group {id} has vanished")));
            };
            let live = model.applied.blocks.len() as u64;
            if view.root.live != live || view.used_blocks != live {
                return Err(Violation::new(format!(
                    "group {id}: {} blocks in the map, {} used, {live} in the model",
                    view.root.live, view.used_blocks
                )));
            }
        }
        let image = self.disk.visible().clone();
        self.verify(&image)
    }

    /// Holds what the engine says of a group's snapshots against copies of all of them.
    ///
    /// # Errors
    /// When a rule is broken.
    pub fn check_snapshots(&mut self, id: GroupId) -> Result<(), Violation> {
        let Some(model) = self.groups.get(&id) else {
            return Ok(());
        };
        let applied = &model.applied;
        let seen = self.engine.snapshots(id);
        let cuts: Vec<u64> = seen.iter().map(|s| s.cut.0).collect();
        if cuts != applied.snapshots.keys().copied().collect::<Vec<_>>() {
            let text = format!("group {id}: snapshots {cuts:?}");
            return Err(Violation::new(text));
        }
        let points = applied
            .snapshots
            .iter()
            .filter(|(_, s)| s.name.starts_with('@'));
        let points: Vec<u64> = points.map(|(cut, _)| *cut).collect();
        for at in cuts.iter().flat_map(|cut| [*cut - 1, *cut]) {
            // The time of each is its stamp.
            let last = points.iter().rfind(|cut| **cut <= at).copied();
            let found = self.engine.rewound_to(id, at).map(|view| view.cut.0);
            if found != last {
                let text = format!("group {id}: as of {at} it is {found:?} instead of {last:?}");
                return Err(Violation::new(text));
            }
        }
        let (forest, instance) = (self.forest(), model.instance());
        for (view, model) in seen.iter().zip(applied.snapshots.values()) {
            let key = (instance, view.cut.0);
            let (all, own) = (model.blocks.len(), forest.alone(key));
            // What a version alone holds at which several begin is told only if one of them has all of it.
            let several = forest.children(key).len() > 1;
            let told = match several && view.unique_blocks.is_none() {
                true => None,
                false => Some(own),
            };
            if (view.referenced_blocks, view.unique_blocks) != (Some(all as u64), told)
                || view.meta.name != model.name
                || view.meta.size_bytes != model.size_bytes
            {
                let text = format!("group {id}: {view:?}, of {all} blocks {own} its own");
                return Err(Violation::new(text));
            }
        }
        let all: Vec<(u64, u64)> = applied
            .snapshots
            .iter()
            .map(|(cut, s)| (*cut, s.size_bytes / BLOCK_SIZE_U64))
            .collect();
        for (cut, blocks) in all {
            self.read_at(id, BlockRange::new(0, blocks), cut)?;
            self.run(false)?;
        }
        Ok(())
    }

    /// Reads every block of these groups.
    ///
    /// # Errors
    /// When a rule is broken.
    pub fn read_all(&mut self, ids: &[GroupId]) -> Result<(), Violation> {
        for id in ids {
            let Some(model) = self.groups.get(id) else {
                continue;
            };
            let blocks = model.applied.size_bytes / BLOCK_SIZE_U64;
            for latest in [false, true] {
                self.read(*id, BlockRange::new(0, blocks), latest)?;
                self.run(false)?;
            }
        }
        match self.reads.is_empty() {
            true => Ok(()),
            false => Err(Violation::new("a read does not end")),
        }
    }

    /// Runs the offline check on an image.
    ///
    /// # Errors
    /// When it finds a problem and no damage was done.
    pub fn verify(&self, image: &Image) -> Result<(), Violation> {
        let mut image = image.clone();
        let report = esker_engine::verify::verify(&mut image, &mut |_| {}).map_err(|error| {
            let progress = self.engine.progress();
            Violation::new(format!("verify cannot open: {error} ({progress})"))
        })?;
        if report.deleted_slots > 0 && !self.damaged {
            let text = format!("{} slots are held for nobody", report.deleted_slots);
            return Err(Violation::new(text));
        }
        if report.problem_count > 0 && !self.damaged {
            return Err(Violation::new(format!("verify: {:?}", report.problems)));
        }
        let liveness = |p: &&String| p.contains("live and nothing") || p.contains("is dead and");
        if let Some(problem) = report.problems.iter().find(liveness) {
            return Err(Violation::new(format!("verify: {problem}")));
        }
        Ok(())
    }

    /// A second engine that applies the same logs has the same logical hashes.
    ///
    /// # Errors
    /// When it has not.
    pub fn compare_with_second(&mut self) -> Result<(), Violation> {
        let models = self.groups.values();
        let mut models: Vec<GroupModel> = models
            .filter(|m| !m.suspended && !m.deleting)
            .cloned()
            .collect();
        let config = EngineConfig {
            device_bytes: 1 << 30,
            segment_bytes: 1 << 20,
            store_entropy: 7,
            sabotage: Sabotage::None,
            ..self.config.clone()
        };
        let mut second = World::new(1, config);
        second.run(false)?;
        // Clones come after what they began from. Those whose origin is gone are not made again.
        let there = |second: &World, m: &GroupModel| {
            m.origin.is_none() || second.groups.contains_key(&m.meta.group)
        };
        let mut made = Vec::new();
        while let Some(at) = models.iter().position(|m| there(&second, m)) {
            let model = models.swap_remove(at);
            second.replay(&model)?;
            made.push(model);
        }
        let token = second.token();
        second.step(Event::Checkpoint { token })?;
        second.run(false)?;
        for model in made {
            self.compare(&second, model.meta.group)?;
        }
        Ok(())
    }

    /// Does again what was applied of a group.
    fn replay(&mut self, model: &GroupModel) -> Result<(), Violation> {
        let id = model.meta.group;
        if model.origin.is_none() {
            self.groups.insert(id, GroupModel::new(model.meta.clone()));
            let token = self.token();
            let meta = Box::new(model.meta.clone());
            self.step(Event::Create { token, meta })?;
        }
        let first = self.groups.get(&id).map_or(0, GroupModel::last) + 1;
        let applied = model
            .log
            .iter()
            .take(super::group::index(model.applied.index));
        for (at, entry) in (1..).zip(applied).filter(|(at, _)| *at >= first) {
            let append = Append {
                group: id,
                ticket: at,
                entries: vec![append_entry(at, entry)],
                hard_state: None,
                urgent: true,
            };
            if let Some(m) = self.groups.get_mut(&id) {
                m.appended(at, None, at, std::slice::from_ref(entry));
            }
            self.step(Event::Append(append))?;
            self.run(false)?;
            let through = RaftIndex(at);
            self.step(Event::Apply { group: id, through })?;
        }
        self.run(false)
    }

    fn compare(&self, second: &World, id: GroupId) -> Result<(), Violation> {
        let (Some(a), Some(b)) = (self.engine.group(id), second.engine.group(id)) else {
            return Err(Violation::new(format!("group {id} is missing")));
        };
        let of =
            |v: &esker_engine::GroupView| (v.root.logical_hash, v.root.live, v.epoch, v.max_stamp);
        let hashes = |w: &World| -> Vec<_> {
            let all = w.engine.snapshots(id);
            all.iter().map(|s| (s.cut, s.logical_hash)).collect()
        };
        if hashes(self) != hashes(second) {
            let text = format!("group {id}: snapshots differ from a second engine's");
            return Err(Violation::new(text));
        }
        if of(&a) != of(&b) {
            return Err(Violation::new(format!(
                "group {id}: {:?} and a second engine has {:?}",
                of(&a),
                of(&b)
            )));
        }
        Ok(())
    }
}
