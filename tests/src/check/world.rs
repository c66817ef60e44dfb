//! One engine over one simulated disk, and the models that judge what it says.

use super::diff::PendingDiff;
use super::forest::Grave;
use super::group::{check_extents, check_read, Blocks, GroupModel, ModelEntry, Origin};
use super::scrub::Scrubbed;
use super::trace::Trace;
use super::Violation;
use crate::sim::{FaultCounts, Image, SimDisk, SimRng};
use esker_base::num::to_usize;
use esker_base::{BlockRange, GroupId, Moment, RaftIndex, Stamp, WallClock};
use esker_engine::event::ScrubTarget;
use esker_engine::event::{ExtentRun, ExtentsRequest, Opened, ReadPiece, ReadRequest};
use esker_engine::format::checkpoint::GroupMeta;
use esker_engine::format::operation::Operation;
use esker_engine::format::table::CONTENT_MAX;
use esker_engine::format::SEGMENTS_OFFSET;
use esker_engine::{
    CatalogError, Effect, Engine, EngineConfig, Event, OpenError, Probe, ReadError, Sabotage,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Steps without any effect after which an engine that still asks for a timer counts as spinning.
const IDLE_TIMERS_MAX: u32 = 2000;
/// Disk operations after which something that should end counts as endless.
const DISK_OPERATIONS_MAX: u64 = 400_000;

/// A catalog operation on its way.
#[derive(Clone, Debug)]
pub enum Catalog {
    /// A group is being created.
    Create(GroupId),
    /// A group is being deleted.
    Delete(GroupId),
    /// A volume is being renamed.
    Rename(GroupId, String),
    /// A loss is being accepted.
    AcceptLoss(GroupId),
}

/// A read on its way.
#[derive(Clone, Debug)]
pub struct PendingRead {
    /// Its group.
    pub group: GroupId,
    /// Which blocks.
    pub range: BlockRange,
    /// Entries not applied count.
    pub latest: bool,
    /// The snapshot with this stamp rather than the head.
    pub at: Option<u64>,
    /// Every state of the range since it was asked for.
    pub allowed: Vec<Blocks>,
    /// Where data is, rather than what it is: all runs, or the first.
    pub extents: Option<Runs>,
}

/// How much a query of extents asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runs {
    /// All.
    All,
    /// The first.
    First,
}

/// The world of one run.
pub struct World {
    /// Randomness of the workload; the disk has its own.
    pub rng: SimRng,
    /// The disk.
    pub disk: SimDisk,
    /// The engine.
    pub engine: Engine,
    /// Its configuration.
    pub config: EngineConfig,
    /// The time.
    pub now: Moment,
    /// Everything that happened, as a hash.
    pub trace: Trace,
    /// The models.
    pub groups: BTreeMap<GroupId, GroupModel>,
    /// Groups that are gone for good.
    pub deleted: BTreeSet<GroupId>,
    /// What those were of which others may have been made.
    pub graves: Vec<Grave>,
    /// Comparisons of versions on their way.
    pub diffs: BTreeMap<u64, PendingDiff>,
    /// Parts of scrubs on their way.
    pub scrubs: BTreeMap<u64, ScrubTarget>,
    /// What scrubs found.
    pub scrubbed: Scrubbed,
    /// Reads on their way.
    pub reads: BTreeMap<u64, PendingRead>,
    /// Catalog operations on their way.
    pub catalog: BTreeMap<u64, Catalog>,
    /// Appends on their way: ticket to group.
    pub tickets: BTreeMap<u64, GroupId>,
    /// Next token, ticket and nonce.
    pub next_token: u64,
    /// Next id of a group and of a replica.
    pub next_group: u64,
    /// Branches taken, over all restarts.
    pub probes: BTreeSet<Probe>,
    /// The engine said that it is open.
    pub open: Option<Box<Opened>>,
    /// The engine refused.
    pub refused: Option<OpenError>,
    /// The engine takes no more writes.
    pub fenced: bool,
    /// The engine has stopped.
    pub stopped: bool,
    /// Checkpoints that ended, by token.
    pub checkpoints: BTreeSet<u64>,
    /// Media damage was done: reads may fail, groups may be suspended.
    pub damaged: bool,
    /// Results of reads that nobody checks at once, by token.
    pub results: BTreeMap<u64, Result<Vec<ReadPiece>, ReadError>>,
    /// Tokens whose results are wanted.
    pub wanted: BTreeSet<u64>,
    /// Highest seq of any record given to the disk, and generations used by engines before.
    pub seen: super::ops::Seen,
    /// Faults before the last restart.
    pub faults: FaultCounts,
    /// The workload takes snapshots.
    pub snapshots: bool,
    /// It makes clones of them.
    pub clones: bool,
    /// How many in a thousand of its operations on snapshots delete one.
    pub snapshot_deletes: u64,
    /// Clones that began.
    pub cloned: u64,
    queue: VecDeque<Effect>,
    idle_timers: u32,
    operations: u64,
}

impl World {
    /// A world with a blank disk, and an engine that begins to format it.
    #[must_use]
    pub fn new(seed: u64, config: EngineConfig) -> Self {
        let image = Image::blank(config.device_bytes);
        Self::with_image(seed, config, image)
    }

    /// A world whose disk holds `image`.
    #[must_use]
    pub fn with_image(seed: u64, config: EngineConfig, image: Image) -> Self {
        let disk = SimDisk::new(image, SimRng::new(seed, 1));
        let mut effects = Vec::new();
        let engine = Engine::open(config.clone(), &mut effects);
        let mut world = Self {
            rng: SimRng::new(seed, 0),
            disk,
            engine,
            config,
            now: Moment(1),
            trace: Trace::default(),
            groups: BTreeMap::new(),
            deleted: BTreeSet::new(),
            graves: Vec::new(),
            diffs: BTreeMap::new(),
            scrubs: BTreeMap::new(),
            scrubbed: Scrubbed::default(),
            reads: BTreeMap::new(),
            catalog: BTreeMap::new(),
            tickets: BTreeMap::new(),
            next_token: 1,
            next_group: 1,
            probes: BTreeSet::new(),
            open: None,
            refused: None,
            fenced: false,
            stopped: false,
            checkpoints: BTreeSet::new(),
            damaged: false,
            results: BTreeMap::new(),
            wanted: BTreeSet::new(),
            seen: super::ops::Seen::default(),
            faults: FaultCounts::default(),
            snapshots: !seed.is_multiple_of(3),
            clones: seed % 4 != 1,
            snapshot_deletes: [100, 450, 700][super::group::index(seed / 3 % 3)],
            cloned: 0,
            queue: effects.into(),
            idle_timers: 0,
            operations: 0,
        };
        // Reads of the superblock are submitted; nothing else can be asked for yet.
        let submitted = world.take_effects();
        debug_assert!(submitted.is_ok());
        world
    }

    /// A small configuration drawn from `rng`: few and small segments, small limits, so that rare
    /// things happen often.
    #[must_use]
    pub fn config(rng: &mut SimRng, sabotage: Sabotage) -> EngineConfig {
        let slots = rng.pick(&[64, 64, 64, 128]);
        let segments = rng.range(24, 64);
        let entropy = rng.next();
        let shape = to_usize(entropy >> 32);
        EngineConfig {
            device_bytes: SEGMENTS_OFFSET + segments * slots * 4096,
            format_if_blank: true,
            segment_bytes: slots * 4096,
            store_entropy: u128::from(entropy),
            cache_bytes: 0,
            checkpoint_bytes: rng.pick(&[64 << 10, 512 << 10, 2 << 20]),
            checkpoint_records: rng.pick(&[5, 50, 1000]),
            delta_extents_max: rng.pick(&[8, 100, 10_000]),
            batches_in_flight_max: rng.pick(&[1, 2, 4]),
            batch_least: [0, 2, 12][shape / 16 % 3],
            checkpoint_stretch: [1, 1, 1, 4][shape / 48 % 4],
            pieces_least: [0, 0, 4096][shape / 576 % 3],
            reclaim_delay: Duration::from_millis([0, 20, 500][shape / 192 % 3]),
            unsynced_bytes_max: rng.pick(&[8 << 10, 1 << 20]),
            unsynced_time_max: Duration::from_millis(rng.range(1, 50)),
            idle_time: Duration::from_millis(rng.range(1, 20)),
            retained_entries_max: rng.pick(&[0, 3, 100]),
            table_content_max: [64, 256, CONTENT_MAX, CONTENT_MAX][shape % 4],
            table_rewrite_min: [0, 1, 4, 64][shape / 4 % 4],
            table_audit: true,
            sabotage,
            ..EngineConfig::default()
        }
    }

    /// A fresh token.
    pub fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    /// Gives the engine an event and looks at what follows.
    ///
    /// # Errors
    /// When a rule is broken.
    pub fn step(&mut self, event: Event) -> Result<(), Violation> {
        let mut effects = Vec::new();
        let wall = WallClock(self.now.0 / 1000);
        self.engine.step(self.now, wall, event, &mut effects);
        self.queue.extend(effects);
        self.take_effects()
    }

    fn take_effects(&mut self) -> Result<(), Violation> {
        while let Some(effect) = self.queue.pop_front() {
            self.idle_timers = 0;
            self.trace.effect(&effect);
            self.effect(effect)?;
        }
        Ok(())
    }

    fn effect(&mut self, effect: Effect) -> Result<(), Violation> {
        match effect {
            Effect::Disk { io, op } => {
                self.operations += 1;
                if self.operations > DISK_OPERATIONS_MAX {
                    return Err(Violation::new(format!(
                        "the engine works without end: {}",
                        self.engine.progress()
                    )));
                }
                self.seen.write(&op, self.engine.superblock())?;
                self.disk.submit(io, op);
            }
            Effect::Opened(opened) => self.open = Some(opened),
            Effect::OpenFailed(error) => self.refused = Some(error),
            Effect::Written { .. } | Effect::LogTruncated { .. } | Effect::PayloadDone { .. } => {}
            Effect::Durable { group, ticket } => {
                if self.fenced {
                    return Err(Violation::new("durable after the fence"));
                }
                self.tickets.remove(&ticket);
                if let Some(model) = self.groups.get_mut(&group) {
                    model.ticket_durable(ticket)?;
                    if model.is_single() {
                        model.commit = model.durable_last();
                    }
                }
            }
            Effect::Applied {
                group,
                index,
                term,
                outcome,
                ..
            } => self.applied(group, index, term, &outcome)?,
            Effect::ReadDone { token, result } => self.read_done(token, result)?,
            Effect::ExtentsDone { token, result } => self.extents_done(token, result)?,
            Effect::DiffDone { token, result } => self.diff_done(token, result)?,
            Effect::HarvestDone { .. } | Effect::RepairDone { .. } => {} // nobody asks
            Effect::ScrubDone { token, result } => self.scrub_done(token, result)?,
            Effect::CatalogDone { token, result } => {
                let unknown = matches!(
                    result,
                    Err(CatalogError::Fenced(_) | CatalogError::Interrupted(_))
                );
                match unknown {
                    true => _ = self.catalog.remove(&token),
                    false => self.catalog_done(token, result.is_ok())?,
                }
            }
            Effect::CheckpointDone { token } => _ = self.checkpoints.insert(token),
            Effect::Fenced(error) => {
                let faults = self.disk.counts;
                let excused = faults.write_errors + faults.no_space + faults.sync_errors > 0
                    || (self.disk.faults.read_error > 0 && format!("{error:?}").contains("Map"));
                if !excused {
                    return Err(Violation::new(format!("fenced without a fault: {error}")));
                }
                self.fenced = true;
            }
            Effect::Stopped => self.stopped = true,
        }
        Ok(())
    }

    fn applied(
        &mut self,
        id: GroupId,
        index: RaftIndex,
        term: esker_base::Term,
        outcome: &esker_engine::event::Outcome,
    ) -> Result<(), Violation> {
        let Some(model) = self.groups.get_mut(&id) else {
            return Ok(());
        };
        let entry = model
            .log
            .get(super::group::index(model.applied.index))
            .cloned();
        let Some(entry) = entry.filter(|e| e.term == term && index.0 == model.applied.index + 1)
        else {
            return Err(Violation::new(format!(
                "group {id}: applied {index} wrongly"
            )));
        };
        let expected = model.applied.apply(&entry);
        model.applied_max = model.applied_max.max(index.0);
        if expected != *outcome {
            return Err(Violation::new(format!(
                "group {id}: entry {index} gave {outcome:?} instead of {expected:?}"
            )));
        }
        if let esker_engine::event::Outcome::EpochOpened { epoch, nonce } = outcome {
            if model.epoch_nonce == Some(*nonce) {
                model.epoch = Some((epoch.0, 1));
                model.epoch_nonce = None;
            }
        }
        if let esker_engine::event::Outcome::Cloned(_) = outcome {
            self.cloned(id, index.0, &entry);
        }
        self.state_changed(id);
        Ok(())
    }

    /// A clone has begun.
    fn cloned(&mut self, id: GroupId, index: u64, entry: &ModelEntry) {
        let Some(Operation::Clone {
            cut,
            group,
            volume,
            name,
            ..
        }) = &entry.operation
        else {
            return;
        };
        let Some(model) = self.groups.get(&id) else {
            return;
        };
        let meta = GroupMeta {
            group: *group,
            volume: *volume,
            name: name.clone(),
            ..model.meta.clone()
        };
        let origin = Origin {
            base: (model.instance(), cut.0),
            index,
        };
        if let Some(snapshot) = model.applied.snapshots.get(&cut.0) {
            let clone = GroupModel::cloned(meta, origin, snapshot);
            self.groups.insert(*group, clone);
            self.cloned += 1;
        }
    }

    /// A group is gone.
    pub fn bury(&mut self, id: GroupId) {
        let Some(model) = self.groups.remove(&id) else {
            return;
        };
        self.graves.push(Grave::of(&model));
        // The ids of clones are in logs, for ever.
        if model.origin.is_none() {
            self.deleted.insert(id);
        }
    }

    /// A group's blocks changed: reads on their way may see either state.
    pub fn state_changed(&mut self, id: GroupId) {
        let Some(model) = self.groups.get(&id) else {
            return;
        };
        for read in self.reads.values_mut() {
            if read.group != id || read.at.is_some() {
                continue;
            }
            let state = model.expected(read.range, read.latest);
            if read.allowed.last() != Some(&state) {
                read.allowed.push(state);
            }
        }
    }

    /// Begins a read that is checked when it ends.
    ///
    /// # Errors
    /// When a rule is broken.
    pub fn read(&mut self, id: GroupId, range: BlockRange, latest: bool) -> Result<u64, Violation> {
        let allowed = match self.groups.get(&id) {
            Some(model) => vec![model.expected(range, latest)],
            None => Vec::new(),
        };
        let read = PendingRead {
            group: id,
            range,
            latest,
            at: None,
            allowed,
            extents: None,
        };
        self.begin_read(read)
    }

    /// Begins a read of a snapshot.
    ///
    /// # Errors
    /// When a rule is broken.
    pub fn read_at(&mut self, id: GroupId, range: BlockRange, cut: u64) -> Result<u64, Violation> {
        let expected = self.groups.get(&id).and_then(|m| m.expected_at(range, cut));
        self.begin_read(PendingRead {
            group: id,
            range,
            latest: false,
            at: Some(cut),
            allowed: expected.into_iter().collect(),
            extents: None,
        })
    }

    fn begin_read(&mut self, read: PendingRead) -> Result<u64, Violation> {
        let token = self.token();
        let (id, range, latest, at) = (read.group, read.range, read.latest, read.at);
        let runs = match token % 4 {
            0 => Runs::First,
            _ => Runs::All,
        };
        let query = PendingRead {
            extents: Some(runs),
            ..read.clone()
        };
        self.reads.insert(token, read);
        self.step(Event::Read(ReadRequest {
            token,
            group: id,
            range,
            latest,
            at: at.map(Stamp),
        }))?;
        if !range.is_empty() {
            self.ask_extents(query)?;
        }
        Ok(token)
    }

    /// Asks where data is.
    fn ask_extents(&mut self, query: PendingRead) -> Result<(), Violation> {
        let token = self.token();
        let request = ExtentsRequest {
            token,
            group: query.group,
            range: query.range,
            latest: query.latest,
            at: query.at.map(Stamp),
            one: query.extents == Some(Runs::First),
            old_keys: false,
        };
        self.reads.insert(token, query);
        self.step(Event::Extents(request))
    }

    fn extents_done(
        &mut self,
        token: u64,
        result: Result<Vec<ExtentRun>, ReadError>,
    ) -> Result<(), Violation> {
        let Some(query) = self.reads.remove(&token) else {
            return Err(Violation::new(format!("query {token} ended twice")));
        };
        let id = query.group;
        let runs = match result {
            Ok(runs) => runs,
            Err(error) if self.excuses(id, query.at, &error) => return Ok(()),
            Err(error) => {
                let text = format!("group {id}: extents of {:?} failed: {error}", query.range);
                return Err(Violation::new(text));
            }
        };
        let first = query.extents == Some(Runs::First);
        let told = check_extents(query.range, &query.allowed, &runs, first)
            .map_err(|text| Violation::new(format!("group {id}: {text}")))?;
        // An answer may stop early; the next question begins there.
        let rest = BlockRange::new(query.range.start.0 + told, query.range.count - told);
        if first || rest.is_empty() {
            return Ok(());
        }
        self.ask_extents(PendingRead {
            range: rest,
            ..query
        })
    }

    /// Whether a read of this group may fail so.
    pub(super) fn excuses(&self, id: GroupId, at: Option<u64>, error: &ReadError) -> bool {
        match error {
            ReadError::UnknownGroup => self.groups.get(&id).is_none_or(|m| m.deleting),
            ReadError::Disk { .. } => self.disk.counts.read_errors > 0,
            ReadError::MapDamaged(_) => self.damaged || self.disk.counts.read_errors > 0,
            ReadError::Damaged(_) => self.damaged,
            // The engine has no keys: it opens nothing.
            ReadError::Refused(_) | ReadError::NoKey(_) | ReadError::Unsealed => false,
            ReadError::OutOfRange => false,
            ReadError::NotMerged => self.fenced,
            ReadError::UnknownSnapshot => at.is_some_and(|cut| {
                let model = self.groups.get(&id);
                model.is_none_or(|m| !m.applied.snapshots.contains_key(&cut))
            }),
        }
    }

    fn read_done(
        &mut self,
        token: u64,
        result: Result<Vec<ReadPiece>, ReadError>,
    ) -> Result<(), Violation> {
        let Some(read) = self.reads.remove(&token) else {
            return Err(Violation::new(format!("read {token} ended twice")));
        };
        let id = read.group;
        match &result {
            Ok(pieces) => check_read(read.range, &read.allowed, pieces)
                .map_err(|text| Violation::new(format!("group {id}: {text}")))?,
            Err(error) => {
                if !self.excuses(id, read.at, error) {
                    return Err(Violation::new(format!(
                        "group {id}: reading {:?} failed: {error}",
                        read.range
                    )));
                }
            }
        }
        if self.wanted.remove(&token) {
            self.results.insert(token, result);
        }
        Ok(())
    }

    fn catalog_done(&mut self, token: u64, done: bool) -> Result<(), Violation> {
        if done && self.fenced {
            return Err(Violation::new("catalog operation after the fence"));
        }
        match self.catalog.remove(&token) {
            Some(Catalog::Create(id)) => {
                if let Some(model) = self.groups.get_mut(&id).filter(|_| done) {
                    model.created = true;
                } else {
                    // Refused: an earlier group of this id is not quite gone.
                    self.groups.remove(&id);
                    self.deleted.insert(id);
                }
            }
            Some(Catalog::Delete(id)) if done => self.bury(id),
            Some(Catalog::Rename(id, name)) if done => {
                if let Some(model) = self.groups.get_mut(&id) {
                    // Later renames may be on their way; earlier ones are over.
                    let at = model.names.iter().position(|n| *n == name).unwrap_or(0);
                    model.names.drain(..at);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Completes one disk operation of the disk's choice. False when there is none.
    ///
    /// # Errors
    /// When a rule is broken.
    pub fn disk_step(&mut self) -> Result<bool, Violation> {
        let Some((io, result)) = self.disk.complete_any() else {
            return Ok(false);
        };
        self.trace.note(&[10, io.0, u64::from(result.is_ok())]);
        self.step(Event::Disk { io, result })?;
        Ok(true)
    }

    /// Sends the timer if it is due. False when it is not.
    ///
    /// # Errors
    /// When a rule is broken, or the engine asks for timers and does nothing.
    pub fn timer_step(&mut self) -> Result<bool, Violation> {
        if self.engine.deadline().is_none_or(|at| at > self.now) {
            return Ok(false);
        }
        self.idle_timers += 1;
        if self.idle_timers > IDLE_TIMERS_MAX {
            return Err(Violation::new(format!(
                "the engine spins: deadline {:?} at {:?}",
                self.engine.deadline(),
                self.now
            )));
        }
        self.step(Event::Timer)?;
        Ok(true)
    }

    /// Lets time pass until the next deadline, but not longer than `at_most`.
    pub fn pass_time(&mut self, at_most: Duration) {
        let end = self.now + at_most;
        self.now = match self.engine.deadline() {
            Some(at) if at < end => at.max(self.now),
            _ => end,
        };
    }

    /// Runs until nothing is left to do, time included if `wait`.
    ///
    /// # Errors
    /// When a rule is broken.
    pub fn run(&mut self, wait: bool) -> Result<(), Violation> {
        loop {
            if self.disk_step()? || self.timer_step()? {
                continue;
            }
            match self.engine.deadline() {
                Some(at) if wait => self.now = at,
                _ => return Ok(()),
            }
        }
    }

    /// The engine is gone and begins anew on what the disk holds.
    pub fn restart(&mut self) {
        self.probes.extend(self.engine.probes().iter().copied());
        self.reads.clear();
        self.diffs.clear();
        self.scrubs.clear();
        self.catalog.clear();
        self.tickets.clear();
        self.queue.clear();
        (self.open, self.refused) = (None, None);
        (self.fenced, self.stopped) = (false, false);
        self.seen.restart();
        self.idle_timers = 0;
        self.faults.add(&self.disk.counts);
        self.disk.counts = FaultCounts::default();
        let mut effects = Vec::new();
        self.engine = Engine::open(self.config.clone(), &mut effects);
        self.queue.extend(effects);
        let submitted = self.take_effects();
        debug_assert!(submitted.is_ok());
    }
}
