//! The offline check of every invariant of a store.
//!
//! The store is opened by the same recovery that the node runs, over an overlay that keeps every
//! write in memory: the device is only read. Then every node and every block is read and checked,
//! and the live slots are held against what the maps and logs name.

use crate::config::EngineConfig;
use crate::engine::Engine;
use crate::error::{OpenError, ReadError};
use crate::event::{Effect, Event, Opened, ReadPiece, ReadRequest};
use crate::format::dead::{self, DeadKind};
use crate::format::node::{ChildPointer, LeafKind, NodePage, FANOUT};
use crate::format::operation::{stored_crc, Operation};
use crate::format::table::{PagePointer, Place};
use crate::format::vaddr::VAddr;
use crate::format::versions::{Chunk, DeadlistId, VersionKind};
use crate::format::{PAGE, PAGE_U64};
use crate::map::tree::{agrees, span, summarise};
use crate::recovery::OpenReport;
use bytes::Bytes;
use esker_base::checksum::crc32;
use esker_base::num::{to_u64, to_usize};
use esker_base::{
    AlignedBuf, BlockRange, DiskError, DiskErrorKind, DiskOp, GroupId, IoId, Moment, Stamp,
    WallClock,
};
use std::collections::{BTreeMap, HashMap, VecDeque};

/// A device that can be read at any offset.
pub trait ReadAt {
    /// Reads exactly `length` bytes at `offset`.
    ///
    /// # Errors
    /// When the device fails or ends before that.
    fn read_at(&mut self, offset: u64, length: usize) -> Result<Vec<u8>, DiskError>;
    /// Size of the device in bytes.
    fn size_bytes(&self) -> u64;
}

/// Most problems that are kept in words; all are counted.
pub const PROBLEMS_MAX: usize = 100;

/// Most checkpoints until deleted versions are taken apart.
const CHECKPOINTS_MAX: u64 = 1 << 20;

/// What was checked and what is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// What recovery found.
    pub opened: OpenReport,
    /// Volumes.
    pub volumes: u64,
    /// Map nodes read and checked.
    pub nodes: u64,
    /// Data blocks read and checked.
    pub blocks: u64,
    /// Slots that only deleted snapshots hold at which others begin.
    pub deleted_slots: u64,
    /// Number of problems.
    pub problem_count: u64,
    /// The first [`PROBLEMS_MAX`] of them, in words.
    pub problems: Vec<String>,
}

/// How far a check is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Data blocks checked.
    pub blocks_done: u64,
    /// Data blocks there are.
    pub blocks_total: u64,
}

/// Checks the store on `device` without writing to it.
///
/// # Errors
/// When the store cannot be opened at all.
pub fn verify(
    device: &mut dyn ReadAt,
    progress: &mut dyn FnMut(Progress),
) -> Result<VerifyReport, OpenError> {
    let mut offline = Offline::open(device)?;
    offline.settle();
    let mut walk = Walk {
        offline,
        report: VerifyReport::default(),
        named: BTreeMap::new(),
        shared: HashMap::new(),
        shares: false,
    };
    walk.report.opened = walk.offline.opened.report.clone();
    walk.run(progress);
    Ok(walk.report)
}

/// A store opened over memory: reads come from the device, writes stay here.
pub struct Offline<'a> {
    device: &'a mut dyn ReadAt,
    overlay: BTreeMap<u64, Bytes>,
    /// The engine.
    pub engine: Engine,
    /// What recovery found.
    pub opened: Opened,
    queue: VecDeque<(IoId, DiskOp)>,
}

impl<'a> Offline<'a> {
    /// Opens the store.
    ///
    /// # Errors
    /// As recovery's.
    pub fn open(device: &'a mut dyn ReadAt) -> Result<Self, OpenError> {
        let mut effects = Vec::new();
        let config = EngineConfig {
            device_bytes: device.size_bytes(),
            collect: false,
            ..EngineConfig::default()
        };
        let engine = Engine::open(config, &mut effects);
        let (overlay, queue) = (BTreeMap::new(), VecDeque::new());
        let mut this = Self {
            device,
            overlay,
            engine,
            opened: Opened::default(),
            queue,
        };
        let mut result = Err(OpenError::Blank);
        this.run(effects, &mut |effect| match effect {
            Effect::Opened(opened) => result = Ok(*opened),
            Effect::OpenFailed(error) => result = Err(error),
            _ => {}
        });
        this.opened = result?;
        Ok(this)
    }

    fn read(&mut self, offset: u64, length: usize) -> Result<Bytes, DiskError> {
        let device = self.device.read_at(offset, length)?;
        let mut out = AlignedBuf::copy_of(&device);
        for i in 0..length / PAGE {
            if let Some(page) = self.overlay.get(&(offset + to_u64(i * PAGE))) {
                out[i * PAGE..(i + 1) * PAGE].copy_from_slice(page);
            }
        }
        Ok(out.freeze())
    }

    fn perform(&mut self, op: DiskOp) -> Result<Bytes, DiskError> {
        match op {
            DiskOp::Read { offset, length } => self.read(offset, length),
            DiskOp::Write { offset, bufs } => {
                let all = Bytes::from(bufs.concat());
                for i in 0..all.len() / PAGE {
                    let page = all.slice(i * PAGE..(i + 1) * PAGE);
                    self.overlay.insert(offset + to_u64(i * PAGE), page);
                }
                Ok(Bytes::new())
            }
            DiskOp::Sync => Ok(Bytes::new()),
        }
    }

    fn run(&mut self, effects: Vec<Effect>, see: &mut dyn FnMut(Effect)) {
        let mut pending = effects;
        loop {
            for effect in pending.drain(..) {
                match effect {
                    Effect::Disk { io, op } => self.queue.push_back((io, op)),
                    other => see(other),
                }
            }
            let event = match self.queue.pop_front() {
                Some((io, op)) => Event::Disk {
                    io,
                    result: self.perform(op),
                },
                None if self.engine.deadline() == Some(Moment(0)) => Event::Timer,
                None => return,
            };
            self.engine
                .step(Moment(1), WallClock(0), event, &mut pending);
        }
    }

    fn step(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.engine
            .step(Moment(1), WallClock(0), event, &mut effects);
        self.run(effects, &mut |_| {});
    }

    /// Reads blocks of a volume as the next start would serve them; zeros where nothing was
    /// written.
    ///
    /// # Errors
    /// As reads of the engine; [`ReadError::UnknownGroup`] also when nothing answers.
    pub fn read_blocks(&mut self, group: GroupId, range: BlockRange) -> Result<Vec<u8>, ReadError> {
        self.read_version(group, None, range)
    }

    /// The same of the snapshot with this stamp.
    ///
    /// # Errors
    /// As [`Offline::read_blocks`].
    pub fn read_snapshot(
        &mut self,
        group: GroupId,
        cut: Stamp,
        range: BlockRange,
    ) -> Result<Vec<u8>, ReadError> {
        self.read_version(group, Some(cut), range)
    }

    fn read_version(
        &mut self,
        group: GroupId,
        at: Option<Stamp>,
        range: BlockRange,
    ) -> Result<Vec<u8>, ReadError> {
        let mut effects = Vec::new();
        let request = ReadRequest {
            token: 0,
            group,
            range,
            latest: at.is_none(),
            at,
        };
        self.engine
            .step(Moment(1), WallClock(0), Event::Read(request), &mut effects);
        let mut answer = Err(ReadError::UnknownGroup);
        self.run(effects, &mut |effect| {
            if let Effect::ReadDone { result, .. } = effect {
                answer = result;
            }
        });
        let mut bytes = Vec::new();
        for piece in answer? {
            match piece {
                ReadPiece::Data(data) | ReadPiece::Sealed { data, .. } => {
                    bytes.extend_from_slice(&data)
                }
                ReadPiece::Zeros(blocks) => {
                    bytes.resize(bytes.len() + to_usize(blocks) * PAGE, 0);
                }
            }
        }
        Ok(bytes)
    }

    /// Applies what is committed and merges it into the maps, in memory.
    pub fn settle(&mut self) {
        for group in self.opened.groups.clone() {
            let last = group.entries.last().map_or(group.truncated.0, |e| e.1);
            let single = group.meta.membership.voters == [group.meta.replica];
            let through = if single {
                last
            } else {
                group.hard_state.commit.min(last)
            };
            if !group.suspended {
                self.step(Event::Apply {
                    group: group.meta.group,
                    through,
                });
            }
        }
        // The second checkpoint holds what discards after the first one freed. Versions that are
        // being taken apart may need more.
        for token in 0..CHECKPOINTS_MAX {
            self.step(Event::Checkpoint { token });
            if token > 0 && !self.engine.has_to_reclaim() {
                return;
            }
        }
    }
}

struct Walk<'a> {
    offline: Offline<'a>,
    report: VerifyReport,
    /// Slots that something names: a bit per slot of each virtual segment.
    named: BTreeMap<u64, Vec<u64>>,
    /// Where the blocks and nodes of versions lie that may share them: level plus one (zero for a
    /// block) and first block.
    shared: HashMap<VAddr, (u8, u64)>,
    /// The store has versions beside heads.
    shares: bool,
}

impl Walk<'_> {
    fn problem(&mut self, text: String) {
        self.report.problem_count += 1;
        if self.report.problems.len() < PROBLEMS_MAX {
            self.report.problems.push(text);
        }
    }

    fn run(&mut self, progress: &mut dyn FnMut(Progress)) {
        if let Some(error) = self.offline.engine.fenced().cloned() {
            self.problem(format!("the store cannot be replayed: {error}"));
            return;
        }
        let lost = self.report.opened.damaged_records;
        if lost > 0 {
            self.problem(format!(
                "{lost} records of the log have damaged headers; what they held is lost here"
            ));
        }
        let groups: Vec<GroupId> = self.offline.engine.groups.keys().copied().collect();
        let total: u64 = self
            .offline
            .engine
            .groups
            .values()
            .map(|g| g.root.live)
            .sum();
        for id in groups {
            self.report.volumes += 1;
            let Some(group) = self.offline.engine.groups.get(&id) else {
                continue;
            };
            let (name, root, level) = (group.meta.name.clone(), group.root, group.root_level);
            if group.suspended {
                self.problem(format!(
                    "volume {name} is suspended: a record of its log may be lost"
                ));
            }
            self.shares = !self.offline.engine.forest.is_empty();
            self.node(&name, &root, level, 0, total, progress);
            self.unapplied(id, &name);
        }
        self.versions(total, progress);
        self.tables();
        self.compare();
    }

    /// Snapshots, and deadlists: what a deleted version holds that none sees is in one of those.
    fn versions(&mut self, total: u64, progress: &mut dyn FnMut(Progress)) {
        let all = self.offline.engine.forest.iter();
        let all = all.filter(|v| v.kind == VersionKind::Snapshot);
        let roots = all.filter_map(|v| Some((v.group, v.meta.name.clone(), v.root?)));
        for (group, snapshot, (root, level)) in roots.collect::<Vec<_>>() {
            let volume = self.offline.engine.groups.get(&group);
            let volume = volume.map_or("deleted", |g| &g.meta.name);
            let name = format!("{volume}@{snapshot}");
            self.node(&name, &root, level, 0, total, progress);
        }
        let pages: Vec<VAddr> = self.offline.engine.dead.pages().collect();
        for page in pages {
            self.name_slot(page, || "a deadlist".into());
        }
        let lists = self.offline.engine.dead.iter();
        let chunks = lists.flat_map(|(id, l)| l.chunks.iter().map(move |c| (id, *c)));
        for (id, chunk) in chunks.collect::<Vec<_>>() {
            self.dead_entries(id, &chunk);
        }
    }

    /// A run of entries of a deadlist: each names a slot that the owner's parent uses.
    fn dead_entries(&mut self, id: DeadlistId, chunk: &Chunk) {
        let page = self.slot_bytes(chunk.page);
        let page = page.filter(|bytes| crc32(bytes) == chunk.crc);
        let entries = page.and_then(|bytes| dead::decode(&bytes).ok());
        let (first, count) = (usize::from(chunk.first), usize::from(chunk.count));
        let Some(entries) = entries.as_ref().and_then(|e| e.get(first..first + count)) else {
            return self.problem(format!("page {} of a deadlist is damaged", chunk.page));
        };
        for e in entries {
            // Given back while the version that it was born with was deleted already.
            if !self.offline.engine.segs.is_live(e.vaddr) && self.was_released(id, e.birth) {
                continue;
            }
            let place = match e.kind {
                DeadKind::Data => (0, e.lba),
                DeadKind::Node => (u8::MAX, e.lba),
            };
            if self.shared.contains_key(&e.vaddr) {
                continue;
            }
            self.shared.insert(e.vaddr, place);
            self.report.deleted_slots += 1;
            self.name_slot(e.vaddr, || format!("deadlist {}", id.0));
        }
    }

    /// Whether the version that something in a deadlist was born with has given anything back.
    fn was_released(&self, list: DeadlistId, birth: Stamp) -> bool {
        let forest = &self.offline.engine.forest;
        let mut at = forest.owner(list).and_then(|v| forest.get(v.parent));
        while let Some(v) = at.filter(|v| birth <= forest.parent_cut(v.id)) {
            at = forest.get(v.parent);
        }
        at.is_some_and(|v| v.released + v.released_nodes > 0)
    }

    /// Both copies of every page of the tables, and the slots of those that lie in slots.
    fn tables(&mut self) {
        let tables = self.offline.engine.segs.tables();
        let physical: Vec<PagePointer> = tables.physical_pages().copied().collect();
        let at_slots: Vec<PagePointer> = tables.virtual_pages().copied().collect();
        for pointer in at_slots {
            for place in pointer.places.into_iter().filter(|p| *p != Place::NONE) {
                self.name_slot(place.vaddr(), || "the table of deaths".to_owned());
                let at = self.offline.engine.segs.locate(place.vaddr());
                self.table_page(at, pointer.crc);
            }
        }
        for pointer in physical {
            for place in pointer.places.into_iter().filter(|p| *p != Place::NONE) {
                self.table_page(place.segment_slot(), pointer.crc);
            }
        }
    }

    fn table_page(&mut self, at: Option<(u32, u32)>, crc: u32) {
        let Some((segment, slot)) = at else {
            return;
        };
        let offset = self.offline.engine.sb.offset_of(segment, slot);
        let bytes = self.offline.read(offset, PAGE);
        if !bytes.is_ok_and(|bytes| crc32(&bytes) == crc) {
            self.problem(format!(
                "a copy of a page of the store's tables is damaged (slot {slot} of segment {segment})"
            ));
        }
    }

    /// Whether a slot was looked at for another version, at the same place.
    fn is_known(&mut self, vaddr: VAddr, place: (u8, u64)) -> bool {
        self.shares && self.shared.insert(vaddr, place) == Some(place)
    }

    /// Notes that something names a slot. `what` is put in words only when that is a problem.
    fn name_slot(&mut self, vaddr: VAddr, what: impl Fn() -> String) {
        let words =
            esker_base::num::to_usize(u64::from(self.offline.engine.sb.slots()).div_ceil(64));
        let bits = self
            .named
            .entry(vaddr.vseg())
            .or_insert_with(|| vec![0; words]);
        let bit = 1u64 << (vaddr.slot() % 64);
        let word = bits.get_mut(vaddr.slot() as usize / 64);
        let again = word.map(|word| std::mem::replace(word, *word | bit) & bit != 0);
        if again == Some(true) {
            self.problem(format!(
                "slot {vaddr} is named twice, the second time by {}",
                what()
            ));
        }
        if again.is_none() || self.offline.engine.segs.locate(vaddr).is_none() {
            self.problem(format!(
                "slot {vaddr}, named by {}, is in no segment",
                what()
            ));
        }
    }

    fn slot_bytes(&mut self, vaddr: VAddr) -> Option<Bytes> {
        let (segment, slot) = self.offline.engine.segs.locate(vaddr)?;
        let offset = self.offline.engine.sb.offset_of(segment, slot);
        self.offline.read(offset, PAGE).ok()
    }

    fn node(
        &mut self,
        name: &str,
        pointer: &ChildPointer,
        level: u8,
        first_lba: u64,
        total: u64,
        progress: &mut dyn FnMut(Progress),
    ) {
        if pointer.vaddr.is_none() {
            return;
        }
        if self.is_known(pointer.vaddr, (level + 1, first_lba)) {
            return;
        }
        let what = format!("the map of volume {name} at byte {}", first_lba * PAGE_U64);
        self.name_slot(pointer.vaddr, || what.clone());
        self.report.nodes += 1;
        let page = self.slot_bytes(pointer.vaddr).filter(|bytes| {
            crc32(bytes) == pointer.crc
                && NodePage::check(bytes)
                    .is_ok_and(|head| head.level == level && head.first_lba == first_lba)
        });
        let Some(page) = page else {
            return self.problem(format!("{what}: node is damaged"));
        };
        let page = NodePage::of(page.to_vec().into_boxed_slice());
        let sum = summarise(&page);
        if !agrees(&sum, pointer) || page.is_strong() != pointer.is_strong {
            self.problem(format!("{what}: the pointer's sums differ from the node's"));
        }
        for i in 0..FANOUT {
            if level > 0 {
                let first = first_lba + to_u64(i) * span(level - 1);
                self.node(name, &page.child(i), level - 1, first, total, progress);
            } else if page.leaf(i).kind == LeafKind::Data {
                let entry = page.leaf(i);
                self.block(
                    name,
                    first_lba + to_u64(i),
                    entry.vaddr,
                    stored_crc(&entry.auth),
                );
            }
        }
        if level == 0 {
            progress(Progress {
                blocks_done: self.report.blocks,
                blocks_total: total,
            });
        }
    }

    fn block(&mut self, name: &str, lba: u64, vaddr: VAddr, crc: u32) {
        if self.is_known(vaddr, (0, lba)) {
            return;
        }
        let what = || format!("volume {name} at byte {}", lba * PAGE_U64);
        self.name_slot(vaddr, what);
        self.report.blocks += 1;
        match self.slot_bytes(vaddr) {
            Some(bytes) if crc32(&bytes) == crc => {}
            Some(_) => self.problem(format!("{}: block is damaged (slot {vaddr})", what())),
            None => self.problem(format!("{}: block cannot be read (slot {vaddr})", what())),
        }
    }

    /// Entries that are not applied keep their payload alive.
    fn unapplied(&mut self, id: GroupId, name: &str) {
        let Some(group) = self.offline.engine.groups.get(&id) else {
            return;
        };
        let mut slots = Vec::new();
        for entry in group.log.iter().filter(|e| e.index > group.applied) {
            let operation = entry.operation.as_deref();
            let blocks = operation.map_or_else(Vec::new, Operation::payload_crcs);
            for (i, (lba, crc)) in (0u64..).zip(blocks) {
                slots.push((entry.index, lba, entry.vaddr.plus(i), crc));
            }
        }
        for (index, lba, vaddr, crc) in slots {
            let what = || format!("entry {index} of volume {name} at byte {}", lba * PAGE_U64);
            self.name_slot(vaddr, what);
            if self
                .slot_bytes(vaddr)
                .is_none_or(|bytes| crc32(&bytes) != crc)
            {
                self.problem(format!("{}: block is damaged (slot {vaddr})", what()));
            }
        }
    }

    /// Live slots are exactly the named ones.
    fn compare(&mut self) {
        let mut named = std::mem::take(&mut self.named);
        for vaddr in self.offline.engine.segs.all_live() {
            let word = named
                .get_mut(&vaddr.vseg())
                .and_then(|bits| bits.get_mut(vaddr.slot() as usize / 64));
            let bit = 1u64 << (vaddr.slot() % 64);
            match word {
                Some(word) if *word & bit != 0 => *word ^= bit,
                _ => self.problem(format!("slot {vaddr} is live and nothing names it")),
            }
        }
        for (vseg, bits) in named {
            for slot in (0u32..).zip(&bits).flat_map(|(n, word)| {
                let set = move |bit: &u32| word >> bit & 1 == 1;
                (0..64).filter(set).map(move |bit| n * 64 + bit)
            }) {
                let vaddr = VAddr::new(vseg, slot);
                self.problem(format!("slot {vaddr} is dead and a map or a log names it"));
            }
        }
    }
}

/// A device in memory, for tests and tools.
#[derive(Clone, Debug)]
pub struct MemoryDevice(pub Vec<u8>);

impl ReadAt for MemoryDevice {
    fn read_at(&mut self, offset: u64, length: usize) -> Result<Vec<u8>, DiskError> {
        let start = to_usize(offset);
        match self.0.get(start..start.saturating_add(length)) {
            Some(bytes) => Ok(bytes.to_vec()),
            None => Err(DiskError {
                kind: DiskErrorKind::Short,
                errno: 0,
            }),
        }
    }
    fn size_bytes(&self) -> u64 {
        to_u64(self.0.len())
    }
}
