//! Opening a store: superblock, checkpoint, log, and then a checkpoint of what was found.
//!
//! Every opening ends with a checkpoint whose log begins in a new segment, with a higher generation
//! and seqs never used. Until its superblock is durable nothing that recovery would need again is
//! changed, and nothing new is written to the log: that makes the cut durable before anything
//! builds on it.

use crate::config::Sabotage;
use crate::engine::{Engine, Purpose};
use crate::error::{OpenError, StoreError};
use crate::event::{Effect, Opened};
use crate::format::checkpoint::{Checkpoint, SegmentKind};
use crate::format::codec::FormatError;
use crate::format::superblock::{Chunk, LogStart, Superblock, COPIES};
use crate::format::{PAGE, PAGE_U64, SEGMENTS_MIN, SEGMENTS_OFFSET};
use crate::group::Group;
use crate::log::reader::{slots_bytes, Found, Place};
use crate::log::windows::{Ask, Windows};
use crate::recovery_tables::Tables;
use crate::snapshot::deadlist::Deadlists;
use crate::snapshot::forest::Forest;
use crate::space::load::SpaceLoader;
use crate::space::Segments;
use crate::superblock_io::{choose, Choice};
use crate::vouch::{relied, Proof};
use bytes::Bytes;
use esker_base::checksum::crc32;
use esker_base::num::to_u64;
use esker_base::num::to_usize;
use esker_base::{DiskError, DiskOp, GroupId, Moment, Seq, StoreId};
use std::collections::{BTreeMap, BTreeSet};

/// The segment that a formatting gives to the map, after two for the log.
const FORMAT_MAP_SEGMENT: usize = 2;
/// Most reads that make sure that a device is blank.
const BLANK_READS_MAX: usize = 4096;
/// Seqs skipped after a crash: more than records can have been written and not synced, whatever
/// the configuration, because each takes at least a page of the device's cache.
const SEQ_SKIP: u64 = 1 << 20;

/// A branch that tests must be seen to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Probe {
    /// A blank device was formatted.
    Formatted,
    /// The log ended where its last record ended.
    CleanEnd,
    /// The log ended in something that began like a record.
    TornHeader,
    /// The log was cut at a record with bad payload or behind a gap.
    TornTail,
    /// A durable record's payload was damaged.
    DamagedPayload,
    /// A durable record's header was damaged.
    DamagedHeader,
    /// A group that may have been in a damaged record was suspended.
    GroupSuspended,
    /// A group was shown not to have been in a damaged record.
    GroupCleared,
    /// The log went on in another segment.
    SegmentCrossed,
    /// Not all superblock copies agreed.
    SuperblockMixed,
    /// The first copy of the checkpoint was damaged.
    SecondCheckpointCopy,
    /// The first copy of a page of a table was damaged.
    SecondTableCopy,
    /// Slots had died since the page of their piece was written.
    DeathsRead,
    /// Entries were replayed that no checkpoint had applied.
    UnappliedReplayed,
    /// An entry replaced others in replay.
    ConflictReplayed,
    /// A group's end was replayed.
    DeleteReplayed,
    /// A closing record was written.
    ClosingRecordWritten,
    /// A closing record was read.
    ClosingRecordRead,
    /// A clone's first item was replayed, and its origin was applied for it.
    CloneReplayed,
    /// That, or a loss that was accepted, changed roots which nobody had compared yet: unless the keys come before this process ends, they have
    /// no MAC.
    ClaimPassed,
    /// What only deleted versions held was given back.
    OrphanReleased,
    /// An accepted loss was replayed.
    AcceptLossReplayed,
    /// The log waited for a checkpoint to make room.
    LogStalled,
    /// What was live in a segment was moved elsewhere.
    SegmentCollected,
    /// The same of a segment that already held survivors.
    SurvivorsCollected,
    /// A page of a nearly empty virtual segment got another address.
    PageRehomed,
}

/// What opening found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// The device was blank and has been formatted.
    pub formatted: bool,
    /// Records replayed.
    pub records_replayed: u64,
    /// Bytes of log read.
    pub bytes_scanned: u64,
    /// When the last record replayed was written; zero without one.
    pub last_wall: esker_base::WallClock,
    /// D: the highest seq that any record says was durable.
    pub durable_seq: Seq,
    /// Something at the end of the log was cut.
    pub torn_tail: bool,
    /// Blocks whose stored bytes do not match.
    pub damaged_blocks: u64,
    /// Pages of the log that could not be read.
    pub unreadable_pages: u64,
    /// Durable records whose header is damaged.
    pub damaged_records: u64,
    /// Groups suspended because of it, now or before.
    pub suspended_groups: u64,
}

#[derive(Debug)]
pub(crate) enum Stage {
    Sync,
    Superblock,
    /// Making sure that nothing is on the device before it is formatted.
    Blank,
    Checkpoint,
    /// Pages of the tables that the checkpoint names.
    Tables,
    Log,
    Writing,
}

/// An opening on its way.
#[derive(Debug)]
pub(crate) struct Recovery {
    pub(crate) stage: Stage,
    /// What is being read: offsets and lengths.
    pub(crate) reads: Vec<(u64, usize)>,
    /// What came; none for what could not be read.
    pub(crate) parts: Vec<Option<Bytes>>,
    pub(crate) missing: usize,
    /// The segment of the log that is being read.
    pub(crate) windows: Option<Windows>,
    pub(crate) records: Vec<Found>,
    /// Segments of the log after the one it starts in, with their generations.
    pub(crate) chain: Vec<(u32, u64)>,
    pub(crate) broken_at_end: bool,
    /// Where each scanned segment's last record ends.
    pub(crate) ends: BTreeMap<u32, u32>,
    /// Slots of the log that could not be read.
    pub(crate) unreadable: BTreeSet<(u32, u32)>,
    /// Groups that the replayed log shows to have lost something: whatever it says later, it was
    /// written when that was still there.
    pub(crate) lost: BTreeSet<GroupId>,
    /// The last read that failed, for the message.
    pub(crate) read_error: Option<(u64, DiskError)>,
    pub(crate) tables: Option<Tables>,
    pub(crate) report: OpenReport,
}

impl Engine {
    /// Begins to open the store.
    pub(crate) fn recovery_begin(&mut self, effects: &mut Vec<Effect>) {
        self.recovery = Some(Recovery {
            stage: Stage::Sync,
            reads: vec![(0, 0)],
            parts: vec![None],
            missing: 1,
            windows: None,
            records: Vec::new(),
            chain: Vec::new(),
            broken_at_end: false,
            ends: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            lost: BTreeSet::new(),
            read_error: None,
            tables: None,
            report: OpenReport::default(),
        });
        let needed = SEGMENTS_OFFSET + SEGMENTS_MIN * self.config.segment_bytes;
        let actual = self.config.device_bytes;
        if actual < SEGMENTS_OFFSET {
            return self.open_failed(OpenError::TooSmall { needed, actual }, effects);
        }
        // What a killed process wrote last is there to be read and may not be durable. What is
        // built on it would outlive it: two superblock copies that a power cut takes back name a
        // checkpoint whose place the next one has taken.
        self.disk(DiskOp::Sync, Purpose::Recovery(0), effects);
    }

    fn open_failed(&mut self, error: OpenError, effects: &mut Vec<Effect>) {
        self.fenced = Some(StoreError::Invariant(error.to_string()));
        self.checkpoint = None;
        effects.push(Effect::OpenFailed(error));
    }

    pub(crate) fn recovery_read_parts(
        &mut self,
        parts: Vec<(u64, usize)>,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(r) = &mut self.recovery {
            r.reads = parts.clone();
            r.parts = vec![None; parts.len()];
            r.missing = parts.len();
        }
        for (n, (offset, length)) in parts.into_iter().enumerate() {
            self.disk(
                DiskOp::Read { offset, length },
                Purpose::Recovery(n),
                effects,
            );
        }
    }

    /// A part of what is being read came.
    pub(crate) fn recovery_read(
        &mut self,
        part: usize,
        result: Result<Bytes, DiskError>,
        effects: &mut Vec<Effect>,
    ) {
        if self.fenced.is_some() {
            return;
        }
        let Some(r) = &mut self.recovery else { return };
        if matches!(r.stage, Stage::Log) {
            return self.log_part_read(part, result, effects);
        }
        match result {
            Ok(bytes) => {
                r.parts[part] = Some(bytes);
                r.missing -= 1;
            }
            Err(error) if matches!(r.stage, Stage::Sync) => {
                let text = StoreError::Sync(error).to_string();
                return self.open_failed(OpenError::Fenced(text), effects);
            }
            // Other copies may be readable.
            Err(error) => {
                let (offset, _) = r.reads[part];
                r.read_error = Some((offset, error.clone()));
                match r.stage {
                    Stage::Superblock | Stage::Checkpoint | Stage::Tables | Stage::Log => {}
                    Stage::Sync | Stage::Blank | Stage::Writing => {
                        return self.open_failed(OpenError::Read { offset, error }, effects);
                    }
                }
                r.missing -= 1;
            }
        }
        if r.missing > 0 {
            return;
        }
        let parts = std::mem::take(&mut r.parts);
        let done = match r.stage {
            Stage::Sync => {
                r.stage = Stage::Superblock;
                let copies = (0..COPIES).map(|n| (Superblock::copy_offset(n), PAGE));
                self.recovery_read_parts(copies.collect(), effects);
                Ok(())
            }
            Stage::Blank if is_blank(&parts) => self.format(effects),
            Stage::Blank => Err(OpenError::Foreign),
            Stage::Superblock => self.superblock_read(&parts, effects),
            Stage::Checkpoint => self.checkpoint_read(&parts, effects),
            Stage::Tables => self.tables_read(&parts, effects),
            Stage::Log | Stage::Writing => Ok(()),
        };
        if let Err(error) = done {
            self.open_failed(error, effects);
        }
    }

    /// No store was ever complete here. Before one is made, the rest of the area in front of the
    /// segments and the beginning of each segment must be zero as well; but for what a formatting
    /// that was interrupted may have written, which is in the segment it gives to the map.
    fn make_sure_it_is_blank(&mut self, effects: &mut Vec<Effect>) {
        let (device, segment) = (self.config.device_bytes, self.config.segment_bytes);
        let mut reads = vec![(0, to_usize(SEGMENTS_OFFSET))];
        let starts = (0..).map(|n| SEGMENTS_OFFSET + n * segment);
        let starts = starts.take_while(|start| start + segment <= device);
        let checked = starts.enumerate().filter(|(n, _)| *n != FORMAT_MAP_SEGMENT);
        reads.extend(
            checked
                .take(BLANK_READS_MAX)
                .map(|(_, start)| (start, PAGE)),
        );
        if let Some(r) = &mut self.recovery {
            r.stage = Stage::Blank;
        }
        self.recovery_read_parts(reads, effects);
    }

    /// Chooses a superblock. Copies that cannot be read may hide a newer one; then nothing is
    /// chosen.
    fn chosen(
        &self,
        pages: &[Vec<u8>],
        parts: &[Option<Bytes>],
        blank: bool,
    ) -> Result<Choice, OpenError> {
        let choice = choose(pages, blank);
        let failed = self.recovery.as_ref().and_then(|r| r.read_error.clone());
        let unread = parts.iter().filter(|part| part.is_none()).count();
        let Some((offset, error)) = failed.filter(|_| unread > 0) else {
            return choice;
        };
        let hidden = match &choice {
            Ok(Choice::Store(sb, _)) => {
                let newer = |page: &Vec<u8>| {
                    Superblock::decode(page).is_ok_and(|(other, _)| other.sequence > sb.sequence)
                };
                unread > 1 || pages.iter().any(newer)
            }
            Ok(Choice::Blank) | Err(_) => true,
        };
        if hidden {
            return Err(OpenError::Read { offset, error });
        }
        choice
    }

    fn superblock_read(
        &mut self,
        parts: &[Option<Bytes>],
        effects: &mut Vec<Effect>,
    ) -> Result<(), OpenError> {
        let page = |part: &Option<Bytes>| part.as_ref().map_or(Vec::new(), |b| b.to_vec());
        let pages: Vec<Vec<u8>> = parts.iter().map(page).collect();
        let blank = never_formatted(&pages);
        match self.chosen(&pages, parts, blank)? {
            Choice::Blank if self.config.format_if_blank => {
                self.make_sure_it_is_blank(effects);
                Ok(())
            }
            Choice::Blank => Err(OpenError::Blank),
            Choice::Store(sb, order) => {
                if pages
                    .iter()
                    .any(|page| Superblock::decode(page).map_or(true, |(other, _)| other != *sb))
                {
                    self.probes.insert(Probe::SuperblockMixed);
                }
                self.superblock_order = order;
                let needed = SEGMENTS_OFFSET + sb.segment_count * sb.segment_bytes;
                let actual = self.config.device_bytes;
                if actual < needed {
                    return Err(OpenError::Truncated { needed, actual });
                }
                let reads = sb
                    .chunks
                    .iter()
                    .map(|c| (sb.offset_of(c.segment, c.slot), c.pages as usize * PAGE))
                    .collect::<Vec<_>>();
                self.sb = *sb;
                if reads.is_empty() {
                    return Err(checkpoint_error("the superblock names no checkpoint"));
                }
                if let Some(r) = &mut self.recovery {
                    r.stage = Stage::Checkpoint;
                }
                self.recovery_read_parts(reads, effects);
                Ok(())
            }
        }
    }

    /// Prepares an empty store; the checkpoint that ends every opening writes it.
    fn format(&mut self, effects: &mut Vec<Effect>) -> Result<(), OpenError> {
        let c = &self.config;
        let count = c.device_bytes.saturating_sub(SEGMENTS_OFFSET) / c.segment_bytes;
        if count < SEGMENTS_MIN {
            let needed = SEGMENTS_OFFSET + SEGMENTS_MIN * c.segment_bytes;
            return Err(OpenError::TooSmall {
                needed,
                actual: c.device_bytes,
            });
        }
        self.sb = Superblock {
            cluster: c.cluster,
            node: c.node,
            store: StoreId::from_random(c.store_entropy),
            segment_bytes: c.segment_bytes,
            segment_count: count.min(u64::from(u32::MAX)),
            next_generation: 1,
            ..Superblock::default()
        };
        let (count, shape) = (u32::try_from(count).unwrap_or(u32::MAX), self.table_shape());
        self.segs = Segments::blank(count, self.sb.slots(), shape);
        self.probes.insert(Probe::Formatted);
        if let Some(r) = &mut self.recovery {
            r.report.formatted = true;
        }
        self.start_log(Seq(0), 0, effects)
    }

    /// The first copy of the checkpoint that is whole.
    fn whole_checkpoint(&mut self, parts: &[Option<Bytes>]) -> Result<Checkpoint, OpenError> {
        let mut problem = checkpoint_error("no copy is named");
        let failed = self.recovery.as_ref().and_then(|r| r.read_error.clone());
        let mut rest = parts;
        for (number, chunks) in self.sb.checkpoint_copies().into_iter().enumerate() {
            let (own, after) = rest.split_at(chunks.len().min(rest.len()));
            rest = after;
            let good = |(chunk, part): (&Chunk, &Option<Bytes>)| {
                part.as_ref().is_some_and(|bytes| crc32(bytes) == chunk.crc)
            };
            if own.len() != chunks.len() || !chunks.iter().zip(own).all(good) {
                // A device that fails for a moment is not damage.
                let unread = own.iter().any(Option::is_none);
                problem = match failed.clone().filter(|_| unread) {
                    Some((offset, error)) => OpenError::Read { offset, error },
                    None => checkpoint_error("a chunk does not match"),
                };
                continue;
            }
            let mut body = joined(own);
            body.truncate(to_usize(self.sb.checkpoint_bytes));
            match Checkpoint::decode(&body) {
                Ok(checkpoint) => {
                    if number > 0 {
                        self.probes.insert(Probe::SecondCheckpointCopy);
                    }
                    return Ok(checkpoint);
                }
                Err(error) if error.problem.contains("newer version") => {
                    return Err(OpenError::Newer(error));
                }
                Err(error) => problem = OpenError::Checkpoint(error),
            }
        }
        Err(problem)
    }

    fn checkpoint_read(
        &mut self,
        parts: &[Option<Bytes>],
        effects: &mut Vec<Effect>,
    ) -> Result<(), OpenError> {
        let checkpoint = self.whole_checkpoint(parts)?;
        self.tables_begin(checkpoint, effects)
    }

    /// The tables are read: everything but the log is known.
    pub(crate) fn tables_done(
        &mut self,
        mut loader: SpaceLoader,
        checkpoint: Checkpoint,
        effects: &mut Vec<Effect>,
    ) -> Result<(), OpenError> {
        let v = checkpoint.versions;
        let is_old = v.whole.is_some();
        let all = v.whole.map_or_else(|| loader.take_versions(), Ok);
        let all = all.map_err(OpenError::Checkpoint)?;
        let mut keep: BTreeSet<u32> = self.sb.chunks.iter().map(|c| c.segment).collect();
        keep.extend([self.sb.log.segment, self.sb.log.next_segment]);
        // Between two updates of the superblock every segment is opened at most once.
        let next_generation = self.sb.next_generation + self.sb.segment_count + 1;
        self.segs = loader
            .finish(next_generation, &keep)
            .ok_or_else(|| checkpoint_error("segment table contradicts itself"))?;
        if let Some(last) = self.sb.chunks.last().copied() {
            let slot = last.slot + last.pages;
            if let Some(generation) = self.segs.resume_map(last.segment, slot) {
                self.map.resume(last.segment, generation, slot);
            }
        }
        self.counters = checkpoint.counters;
        self.checkpoints_done = self.counters.checkpoints;
        self.doubtful = checkpoint.doubtful.into_iter().collect();
        self.discards = checkpoint.discards;
        self.forest = Forest::from_table(all.versions, v.next_version, v.next_deadlist)
            .ok_or_else(|| checkpoint_error("tree of versions contradicts itself"))?;
        self.dead = Deadlists::from_table(all.deadlists);
        if is_old {
            // They get tables of their own with the checkpoint that ends the opening.
            self.forest.mark_all();
            self.dead.mark_all();
        }
        let relied = relied(&checkpoint.groups, &self.forest);
        for entry in checkpoint.groups {
            let id = entry.meta.group;
            let proof = Proof::claimed(&entry, &self.forest, &relied);
            let mut group = Group::from_entry(entry).map_err(OpenError::Checkpoint)?;
            group.proof = proof;
            group.newest_cut = self.forest.newest_cut(id);
            self.groups.insert(id, group);
        }
        let log = self.sb.log;
        self.scan_segment(log.segment, log.generation, log.slot, effects)
    }

    /// Begins to read a segment of the log.
    fn scan_segment(
        &mut self,
        segment: u32,
        generation: u64,
        first_slot: u32,
        effects: &mut Vec<Effect>,
    ) -> Result<(), OpenError> {
        let place = Place {
            store: self.sb.store,
            segment,
            generation,
            first_slot,
            from: self.sb.log.seq,
        };
        let end = self.sb.slots();
        if let Some(r) = &mut self.recovery {
            r.stage = Stage::Log;
            r.report.bytes_scanned += to_u64(slots_bytes(end.saturating_sub(first_slot)));
            r.windows = Some(Windows::new(place, end));
        }
        self.log_read_on(effects)
    }

    /// Asks for more of the segment, or goes on when all of it was read.
    fn log_read_on(&mut self, effects: &mut Vec<Effect>) -> Result<(), OpenError> {
        while let Some(windows) = self.recovery.as_mut().and_then(|r| r.windows.as_mut()) {
            if let Some(ask) = windows.ask() {
                self.read_log(ask, effects);
                continue;
            }
            if !windows.is_done() {
                break;
            }
            let whole = self.recovery.as_mut().and_then(|r| r.windows.take());
            return whole.map_or(Ok(()), |windows| self.log_read(windows, effects));
        }
        Ok(())
    }

    fn read_log(&mut self, ask: Ask, effects: &mut Vec<Effect>) {
        let windows = self.recovery.as_ref().and_then(|r| r.windows.as_ref());
        let segment = windows.map_or(0, |windows| windows.place().segment);
        let (offset, length) = (self.sb.offset_of(segment, ask.slot), ask.length());
        let op = DiskOp::Read { offset, length };
        self.disk(op, Purpose::Recovery(ask.part), effects);
    }

    /// A part of the log came. A page of it that cannot be read is a damaged page, to be judged like
    /// any other.
    fn log_part_read(
        &mut self,
        part: usize,
        result: Result<Bytes, DiskError>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(r) = &mut self.recovery else { return };
        let Some(windows) = &mut r.windows else {
            return;
        };
        let segment = windows.place().segment;
        let error = result.as_ref().err().cloned();
        let (again, given_up) = windows.came(part, result.ok());
        if let Some(slot) = given_up {
            r.unreadable.insert((segment, slot));
            r.report.unreadable_pages += 1;
            let offset = self.sb.offset_of(segment, slot);
            r.read_error = error.map(|error| (offset, error));
        }
        for ask in again {
            self.read_log(ask, effects);
        }
        if let Err(error) = self.log_read_on(effects) {
            self.open_failed(error, effects);
        }
    }

    /// A segment of the log was read.
    fn log_read(&mut self, windows: Windows, effects: &mut Vec<Effect>) -> Result<(), OpenError> {
        let Place {
            segment,
            generation,
            first_slot,
            ..
        } = *windows.place();
        let found = windows.finish();
        let log = self.sb.log;
        let is_first = segment == log.segment && generation == log.generation;
        let Some(r) = &mut self.recovery else {
            return Ok(());
        };
        if !is_first && !found.records.is_empty() {
            r.chain.push((segment, generation));
        }
        let end = found
            .records
            .last()
            .map(|f| f.header.slot + f.header.pages());
        r.ends.insert(segment, end.unwrap_or(first_slot));
        r.broken_at_end = found
            .broken_headers
            .iter()
            .any(|slot| *slot >= end.unwrap_or(first_slot));
        let next = match found.records.last() {
            Some(last) => Some((last.header.next_segment, last.header.next_generation)),
            None if is_first => Some((log.next_segment, log.next_generation)),
            None => None,
        };
        let crossed = !is_first && !found.records.is_empty();
        r.records.extend(found.records);
        let seen: BTreeSet<u32> = r.chain.iter().map(|c| c.0).chain([log.segment]).collect();
        let bound = self.segs.count();
        if crossed {
            self.probes.insert(Probe::SegmentCrossed);
        }
        match next {
            Some((segment, generation)) if segment < bound && !seen.contains(&segment) => {
                self.scan_segment(segment, generation, 0, effects)
            }
            _ => self.replay(effects),
        }
    }

    /// Opens new segments for the log and writes the checkpoint that ends the opening.
    pub(crate) fn start_log(
        &mut self,
        highest: Seq,
        prev_hash: u64,
        effects: &mut Vec<Effect>,
    ) -> Result<(), OpenError> {
        let (segment, generation) = self.segs.open(SegmentKind::Log).ok_or(OpenError::Full)?;
        let (next_segment, next_generation) =
            self.segs.open(SegmentKind::Log).ok_or(OpenError::Full)?;
        // A store being formatted has used none. One that was opened may have, even if every record
        // of it was lost.
        let skip = if self.sb.sequence == 0 { 0 } else { SEQ_SKIP };
        let seq = Seq(highest.0 + 1 + skip);
        self.log.position = LogStart {
            segment,
            slot: 0,
            generation,
            next_segment,
            next_generation,
            seq,
            prev_hash,
        };
        (self.log.written, self.log.durable) = (Seq(seq.0 - 1), Seq(seq.0 - 1));
        self.log.closed = true;
        if let Some(r) = &mut self.recovery {
            r.stage = Stage::Writing;
        }
        if self.config.sabotage == Sabotage::CutNotDurable && self.sb.sequence > 0 {
            self.recovery_opened(Moment(0), effects);
            return Ok(());
        }
        self.checkpoint_begin(true);
        Ok(())
    }

    /// The checkpoint is durable: the store is open.
    pub(crate) fn recovery_opened(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        let Some(recovery) = self.recovery.take() else {
            return;
        };
        self.log.quiet_since = now;
        let alive = self.groups.values().filter(|g| !g.deleting);
        let groups = alive.map(Group::recovered).collect();
        effects.push(Effect::Opened(Box::new(Opened {
            groups,
            report: recovery.report,
        })));
    }

    /// Bytes per segment of the open store.
    #[must_use]
    pub fn segment_bytes(&self) -> u64 {
        u64::from(self.sb.slots()) * PAGE_U64
    }
}

/// Copies 2 and 3 are written last when a store is made: where they are zero, none ever was. The
/// first two may hold what an interrupted formatting wrote, and nothing else.
fn never_formatted(pages: &[Vec<u8>]) -> bool {
    let zero = |page: &Vec<u8>| page.len() == PAGE && page.iter().all(|b| *b == 0);
    let ours = |page: &Vec<u8>| zero(page) || page.starts_with(&crate::format::superblock::MAGIC);
    pages.iter().take(2).all(ours) && pages.iter().skip(2).all(zero)
}

/// Whether everything that was looked at before formatting is zero, but for the first two copies.
fn is_blank(parts: &[Option<Bytes>]) -> bool {
    let zero = |bytes: &[u8]| bytes.iter().all(|b| *b == 0);
    let second = to_usize(Superblock::copy_offset(1));
    parts.iter().enumerate().all(|(n, part)| match part {
        None => false,
        Some(area) if n == 0 => zero(&area[PAGE..second]) && zero(&area[second + PAGE..]),
        Some(page) => zero(page),
    })
}

/// All parts that came, as one.
fn joined(parts: &[Option<Bytes>]) -> Vec<u8> {
    let mut all = Vec::with_capacity(parts.iter().flatten().map(Bytes::len).sum());
    for part in parts.iter().flatten() {
        all.extend_from_slice(part);
    }
    all
}

pub(crate) fn checkpoint_error(problem: &'static str) -> OpenError {
    OpenError::Checkpoint(FormatError {
        structure: "checkpoint",
        problem,
    })
}
