//! Garbage collection: what is still live in a segment is written elsewhere, so that the segment
//! can be used again.
//!
//! 1. *Choose* a victim: sealed, older than the newest checkpoint, with enough dead slots.
//! 2. *Copy*: the victim is read in windows; live slots go into batches behind a page that names
//!    them. Each page is checked against the CRC it was written with.
//! 3. *Publish*: when a checkpoint begins, victims whose batches are all written change place in
//!    the table, in memory. The map is not touched: virtual addresses stay.
//! 4. *Release*: once that checkpoint is durable the victim is free, by the rule for all segments.
//!
//! A crash before 4 leaves the old table with the old places; what was copied is garbage. Slots
//! that die between 2 and 3 stay dead at their new place.

mod batch;
mod rehome;
mod streams;
mod victim;

use crate::config::Sabotage;
use crate::engine::{Engine, Purpose};
use crate::event::Effect;
use crate::format::checkpoint::SegmentKind;
use crate::format::node::NodePage;
use crate::format::survivors::{Owner, Survivor, ENTRIES_MAX};
use crate::format::table;
use crate::format::vaddr::VAddr;
use crate::format::PAGE;
use crate::group::liveness;
use crate::recovery::Probe;
use crate::space::segments::Moved;
use batch::Batch;
use bytes::Bytes;
use esker_base::checksum::crc32;
use esker_base::num::{to_u32_saturating, to_u64};
use esker_base::{DiskError, DiskOp};
use std::collections::{BTreeMap, BTreeSet};
use streams::{stream_of, Streams, STREAMS};

pub(crate) use streams::count as streams_count;

/// Slots read at a time (1 MiB).
const WINDOW_SLOTS: u32 = 256;
/// Batches being written at a time; reading waits at that.
const BATCHES_IN_FLIGHT_MAX: usize = 2;
/// How often a window is read again when a page does not match or cannot be read.
const READ_ATTEMPTS_MAX: u32 = 3;
/// Victims copied and not published; beyond, the collector waits for a checkpoint.
const COPIED_MAX: usize = 64;

/// A live slot of the victim, when it was chosen.
#[derive(Clone, Copy, Debug)]
struct Resident {
    /// Where it is.
    slot: u32,
    vaddr: VAddr,
    /// The piece it belongs to.
    piece: VAddr,
}

/// The segment being copied.
#[derive(Debug)]
struct Victim {
    segment: u32,
    generation: u64,
    kind: SegmentKind,
    residents: Vec<Resident>,
    /// The next of them.
    next: usize,
    /// First slot of the window being read.
    window: u32,
    /// Slots of that window.
    length: u32,
    /// Where the next header is expected.
    header_at: u32,
    /// CRCs that headers gave, and whose the pages are, by slot.
    named: BTreeMap<u32, (u32, Owner)>,
    attempts: u32,
    moved: Vec<Moved>,
    last_batch: u64,
    /// Where its survivors go.
    stream: usize,
}

/// A victim that is wholly copied.
#[derive(Debug)]
struct Copied {
    segment: u32,
    generation: u64,
    moved: Vec<Moved>,
    /// Nothing of it is in a later batch.
    last_batch: u64,
}

/// What became of a window.
enum Outcome {
    Copied,
    /// A page does not match: the window is to be read again.
    Mismatch,
    /// It could not be read.
    Unread,
    /// There is no room to copy to.
    NoRoom,
}

/// What decides whether there is something to collect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Finding {
    deaths: u64,
    checkpoints: u64,
    /// The log takes segments without anything dying: what was enough room is none any more.
    free: usize,
}

/// The collector's state.
#[derive(Debug, Default)]
pub(crate) struct Collector {
    victim: Option<Victim>,
    reading: bool,
    copied: Vec<Copied>,
    /// Victims that a checkpoint on its way releases.
    published: Vec<(u32, u64)>,
    batch: Option<Batch>,
    batches: u64,
    /// Batches being written, and the segments they go to.
    outstanding: BTreeMap<u64, u32>,
    streams: Streams,
    /// Segments that could not be read, by generation: left alone until the store is opened again.
    unreadable: BTreeSet<u64>,
    /// When nothing worth collecting was found.
    nothing_at: Option<Finding>,
    rehoming: rehome::Rehoming,
}

impl Collector {
    /// Reads or writes are on their way, or copied segments wait for their checkpoint.
    pub fn is_working(&self) -> bool {
        self.reading
            || !self.outstanding.is_empty()
            || self.victim.is_some()
            || !self.copied.is_empty()
    }

    /// Segments that hold copies which no table names yet.
    pub fn unpublished_segments(&self) -> BTreeSet<u32> {
        let copied = self.copied.iter().flat_map(|c| &c.moved);
        let moving = self.victim.iter().flat_map(|v| &v.moved);
        let batch = self.batch.iter().map(|b| b.segment);
        let open = self.streams.segments();
        let moved = copied.chain(moving).map(|m| m.segment);
        // Also for a victim that was given up: a segment is not free while a write goes there.
        let writing = self.outstanding.values().copied();
        moved.chain(batch).chain(open).chain(writing).collect()
    }

    /// In words, for tests and logs.
    pub fn progress(&self) -> String {
        format!(
            "victim {:?} copied {} published {} writing {} open {:?}",
            self.victim.as_ref().map(|v| v.segment),
            self.copied.len(),
            self.published.len(),
            self.outstanding.len(),
            self.streams,
        )
    }

    /// Segments that will be free without more copying.
    fn promised(&self) -> u64 {
        to_u64(self.copied.len() + self.published.len())
    }

    fn is_taken(&self, segment: u32, generation: u64) -> bool {
        let same = |s: u32, g: u64| s == segment && g == generation;
        self.copied.iter().any(|c| same(c.segment, c.generation))
            || self.published.iter().any(|(s, g)| same(*s, *g))
            || self.unreadable.contains(&generation)
    }
}

impl Engine {
    /// Goes on with the collection, if room is short.
    pub(crate) fn collect_step(&mut self, effects: &mut Vec<Effect>) {
        if !self.config.collect || self.fenced.is_some() {
            return;
        }
        if self.stopping && !self.stalled {
            // Nobody waits for room any more.
            self.collector.victim = None;
            self.collector.copied.clear();
            return;
        }
        self.rehome_step(effects);
        let c = &self.collector;
        if c.reading || c.outstanding.len() >= BATCHES_IN_FLIGHT_MAX {
            return;
        }
        self.drop_reused_victim();
        if self.collector.victim.is_none() && !self.choose_victim() {
            return self.collection_round_ends(effects);
        }
        self.read_window(effects);
    }

    /// A victim that died out meanwhile, and was released, is none any more.
    fn drop_reused_victim(&mut self) {
        let is_still = |v: &Victim| self.segs.is_still(v.segment, v.generation);
        if !self.collector.victim.as_ref().is_some_and(is_still) {
            self.collector.victim = None;
        }
    }

    /// Nothing more is to be copied now: what is gathered is written, and if somebody waits for
    /// room, a checkpoint is asked for that releases the victims.
    fn collection_round_ends(&mut self, effects: &mut Vec<Effect>) {
        self.flush_batch(effects);
        let c = &self.collector;
        let ready = !c.copied.is_empty() && c.outstanding.is_empty();
        let waited_for = self.stalled || self.room_is_short() || c.copied.len() >= COPIED_MAX;
        if ready && waited_for && self.checkpoint.is_none() && !self.checkpoint_wanted {
            self.checkpoint_wanted = true;
            self.busy = true;
        }
    }

    /// Slots the collector may take without touching what the next checkpoints need. When no segment can be
    /// opened any more, a stream goes on in the other one's.
    fn collection_room(&self) -> u64 {
        let slots = u64::from(self.sb.slots());
        let spare = self.map_room().saturating_sub(self.checkpoint_room());
        let open = (0..STREAMS).filter_map(|stream| self.collector.streams.open(stream));
        let open: u64 = open.map(|(.., slot)| slots - u64::from(slot)).sum();
        let begun = self.collector.batch.as_ref();
        let begun = begun.map_or(0, |b| to_u64(b.entries.len()) + 1);
        (spare / slots * slots + open).saturating_sub(begun)
    }

    /// Streams of survivors that are kept apart here.
    pub(crate) fn survivor_streams(&self) -> usize {
        streams_count(self.sb.segment_count).min(self.config.survivor_streams)
    }

    /// Chooses what to copy next. Greedy when somebody waits for room; else the one with the best
    /// ratio of benefit to cost, (1 - u) * age / (1 + u) for a share u of live slots (Rosenblum and
    /// Ousterhout, "The Design and Implementation of a Log-Structured File System", 1991).
    fn choose_victim(&mut self) -> bool {
        let slots = u64::from(self.sb.slots());
        let promised = self.collector.promised();
        let target = self.collection_target();
        if self.collector.copied.len() >= COPIED_MAX || self.map_room() + promised * slots >= target
        {
            return false;
        }
        let urgent = self.stalled || self.room_is_short();
        let now = self.finding();
        let same = |asked: Finding| {
            let deaths = now.deaths - asked.deaths;
            (asked.checkpoints, asked.free) == (now.checkpoints, now.free)
                && (deaths == 0 || !urgent && deaths < slots / 4)
        };
        if self.collector.nothing_at.is_some_and(same) {
            return false;
        }
        let room = self.collection_room();
        // A segment that is nearly full costs more than it gives.
        let live_max = if urgent {
            slots - self.urgent_gain()
        } else {
            slots * 17 / 20
        };
        let unpublished = self.collector.unpublished_segments();
        let mut emptied = 0;
        let mut best: Option<(u64, u32)> = None;
        for (number, s) in (0..).zip(self.segs.iter()) {
            let live = u64::from(s.live_count());
            let old = match s.kind {
                SegmentKind::Free => false,
                SegmentKind::Log => s.generation < self.sb.log.generation,
                SegmentKind::Map | SegmentKind::Survivors => self.segs.is_settled(number),
            };
            if !s.sealed || !old || unpublished.contains(&number) {
                continue;
            }
            if self.collector.is_taken(number, s.generation) {
                continue;
            }
            if live == 0 {
                // The next checkpoint frees it, unless pages of tables are there: those may stay.
                emptied += u64::from(self.segs.tables().pinned(number) == 0);
                continue;
            }
            let cost = live + live.div_ceil(to_u64(ENTRIES_MAX)) + 2;
            if live > live_max || cost > room {
                continue;
            }
            let age = self.log.position.generation.saturating_sub(s.generation) + 1;
            let score = match urgent {
                true => slots - live,
                false => (slots - live).saturating_mul(age) * 64 / (slots + live),
            };
            if best.is_none_or(|(other, _)| other < score) {
                best = Some((score, number));
            }
        }
        let enough = self.map_room() + (promised + emptied) * slots >= target;
        let Some((_, number)) = best.filter(|_| !enough) else {
            self.collector.nothing_at = Some(now);
            return false;
        };
        self.begin_victim(number);
        true
    }

    fn finding(&self) -> Finding {
        Finding {
            deaths: self.segs.deaths,
            checkpoints: self.counters.checkpoints,
            free: self.segs.free_count(),
        }
    }

    fn begin_victim(&mut self, number: u32) {
        let segment = self.segs.get(number);
        let (generation, kind) = (segment.generation, segment.kind);
        let mut residents = Vec::new();
        for key in self.segs.pieces_in(number) {
            let Some(piece) = self.segs.piece(key) else {
                continue;
            };
            for (rank, distance) in (0..).zip(piece.kept.distances()) {
                if piece.is_live(rank) {
                    residents.push(Resident {
                        slot: piece.base + rank,
                        vaddr: key.plus(u64::from(distance)),
                        piece: key,
                    });
                }
            }
        }
        residents.sort_by_key(|r| r.slot);
        self.collector.victim = Some(Victim {
            segment: number,
            generation,
            kind,
            residents,
            next: 0,
            window: 0,
            length: 0,
            header_at: 0,
            named: BTreeMap::new(),
            attempts: 0,
            moved: Vec::new(),
            last_batch: 0,
            stream: stream_of(kind, self.survivor_streams()),
        });
    }

    /// Reads on in the victim; when nothing is left, it is copied.
    fn read_window(&mut self, effects: &mut Vec<Effect>) {
        let slots = self.sb.slots();
        let Some(v) = &mut self.collector.victim else {
            return;
        };
        let Some(next) = v.residents.get(v.next) else {
            let Some(v) = self.collector.victim.take() else {
                return;
            };
            self.collector.copied.push(Copied {
                segment: v.segment,
                generation: v.generation,
                moved: v.moved,
                last_batch: v.last_batch,
            });
            self.busy = true; // the next one, or the end of the round
            return;
        };
        // Headers are found one behind the other; nodes stand for themselves.
        if v.kind == SegmentKind::Map {
            v.window = next.slot;
        }
        v.length = WINDOW_SLOTS.min(slots - v.window);
        let segment = v.segment;
        let offset = self.sb.offset_of(segment, v.window);
        let length = v.length as usize * PAGE;
        self.collector.reading = true;
        self.segs.reader_begins(segment);
        let op = DiskOp::Read { offset, length };
        self.disk(op, Purpose::Collect { segment }, effects);
    }

    /// A window came.
    pub(crate) fn collect_read(
        &mut self,
        result: Result<Bytes, DiskError>,
        effects: &mut Vec<Effect>,
    ) {
        self.collector.reading = false;
        self.drop_reused_victim();
        let Some(mut v) = self.collector.victim.take() else {
            return;
        };
        let outcome = match result {
            Ok(bytes) if bytes.len() == v.length as usize * PAGE => {
                self.copy_window(&mut v, &bytes, effects)
            }
            Ok(_) | Err(_) => Outcome::Unread,
        };
        match outcome {
            Outcome::Copied => v.attempts = 0,
            Outcome::Mismatch => v.attempts += 1,
            // What is copied stays garbage, the victim stays as it is.
            Outcome::NoRoom => {
                self.collector.nothing_at = Some(self.finding());
                return;
            }
            Outcome::Unread => {
                v.attempts += 1;
                if v.attempts >= READ_ATTEMPTS_MAX {
                    // Reads of what is there fail as before; it stays where it is.
                    self.collector.unreadable.insert(v.generation);
                    return;
                }
            }
        }
        self.collector.victim = Some(v);
    }

    /// Copies the live slots of a window.
    fn copy_window(&mut self, v: &mut Victim, bytes: &Bytes, effects: &mut Vec<Effect>) -> Outcome {
        let header_at = v.header_at;
        let limit = v.find_headers(bytes, self.sb.store, self.sb.slots());
        let (first, last_try) = (v.window, v.attempts + 1 >= READ_ATTEMPTS_MAX);
        let page = |slot: u32| {
            let at = (slot - first) as usize * PAGE;
            &bytes[at..at + PAGE]
        };
        let until = v.next + v.residents[v.next..].partition_point(|r| r.slot < limit);
        let here: Vec<Resident> = v.residents[v.next..until].to_vec();
        let live: Vec<Resident> = here
            .into_iter()
            .filter(|r| self.segs.is_live(r.vaddr))
            .collect();
        let mut checked = Vec::with_capacity(live.len());
        let mut damaged = 0;
        for r in live {
            let bytes = page(r.slot);
            let found = crc32(bytes);
            let expected = match v.kind {
                SegmentKind::Map => {
                    let whole = NodePage::is_whole(bytes) || table::is_whole(bytes);
                    whole.then_some(found)
                }
                _ => Some(v.named.get(&r.slot).map_or(found, |(crc, _)| *crc)),
            };
            if expected != Some(found) {
                if !last_try {
                    v.header_at = header_at;
                    return Outcome::Mismatch;
                }
                damaged += 1;
            }
            checked.push((r, expected.unwrap_or(found)));
        }
        self.damages.unplaced += damaged;
        let mut run: Option<(u32, u32)> = None;
        let other = |b: &Batch| b.stream != v.stream;
        if self.collector.batch.as_ref().is_some_and(other) {
            self.flush_batch(effects);
        }
        for (r, crc) in checked {
            let full = self
                .collector
                .batch
                .as_ref()
                .is_some_and(|b| b.entries.len() >= b.capacity);
            if full || run.is_some_and(|(_, end)| end != r.slot) {
                self.take_run(&mut run, first, bytes);
            }
            if full {
                self.flush_batch(effects);
            }
            if self.collector.batch.is_none() && !self.begin_batch(v.stream) {
                return Outcome::NoRoom;
            }
            let Some(b) = &mut self.collector.batch else {
                return Outcome::NoRoom;
            };
            let at = b.slot + 1 + to_u32_saturating(b.entries.len());
            let owner = v.named.get(&r.slot).map(|(_, owner)| *owner);
            b.entries.push(Survivor {
                vaddr: r.vaddr,
                crc,
                owner: owner.unwrap_or_default(),
            });
            v.note_moved(&r, b.segment, at, b.id);
            run = Some((run.map_or(r.slot, |(start, _)| start), r.slot + 1));
        }
        self.take_run(&mut run, first, bytes);
        v.next = until;
        v.window = limit;
        v.named.retain(|slot, _| *slot >= limit);
        Outcome::Copied
    }

    /// A checkpoint begins: victims whose survivors are written have moved from now on.
    pub(crate) fn publish_collected(&mut self) {
        let c = &mut self.collector;
        let gathering = c.batch.as_ref().map_or(u64::MAX, |b| b.id);
        let writing = c.outstanding.keys().next().copied().unwrap_or(u64::MAX);
        let bound = match self.config.sabotage {
            Sabotage::MoveUnwritten => gathering,
            _ => gathering.min(writing),
        };
        let (ready, rest) = std::mem::take(&mut c.copied)
            .into_iter()
            .partition(|copied: &Copied| copied.last_batch < bound);
        c.copied = rest;
        for v in ready {
            if !self.segs.is_still(v.segment, v.generation) {
                continue;
            }
            let segment_kind = self.segs.get(v.segment).kind;
            if let Err(violation) = self.segs.move_out(v.segment, &v.moved) {
                self.fence_pending.get_or_insert(liveness(violation));
                return;
            }
            self.probes.insert(match segment_kind {
                SegmentKind::Survivors => Probe::SurvivorsCollected,
                _ => Probe::SegmentCollected,
            });
            self.collector.published.push((v.segment, v.generation));
        }
    }

    /// The checkpoint that releases the published victims is durable.
    pub(crate) fn collected_released(&mut self) {
        self.collector.published.clear();
        self.collector.nothing_at = None;
    }
}
