//! The leader's part: what replicas that lag ask for.

use super::wire::{Behind, Fetch, FetchKind, Note, Part, PartKind};
use crate::envelope::crc_of;
use crate::node::{Node, ReadFor};
use crate::rewind::NOBODY;
use crate::snapshots::SnapshotAsk;
use crate::volume::Volume;
use bytes::Bytes;
use esker_base::num::{to_u64, to_usize};
use esker_base::{BlockRange, GroupId, Place, RaftIndex, ReplicaId, Stamp, BLOCK_SIZE_U64};
use esker_engine::event::{self as engine_event, Harvest, HarvestRequest, ReadPiece, ReadRequest};
use esker_engine::format::ingest::{Run, RunContent};
use esker_engine::format::manifest::Manifest;
use esker_engine::format::operation::{Operation, RequestId};
use esker_engine::ReadError;
use esker_replication::{Group, Role};

/// Bytes of a manifest in one answer.
const MANIFEST_PART_BYTES: usize = 1 << 20;
/// Fetches of blocks that a store answers at a time; others are asked to come later.
const SERVING_MAX: usize = 8;
/// Ticks after which a manifest that nobody asks for is dropped.
const UNHEARD_TICKS: u64 = 300;
/// Ticks after which a manifest does without an entry of the log that did not come into force: whoever would make its majority may
/// be who waits for the manifest.
const UNCOMMITTED_TICKS: u64 = 30;

/// A volume as it was at an index of its log.
#[derive(Clone, Debug)]
struct Kept {
    /// The stamp that names it.
    pin: Stamp,
    /// The manifest.
    bytes: Bytes,
    /// The index.
    applied: RaftIndex,
    /// Its head is this replica's own, as long as nothing changes that; otherwise its newest snapshot.
    is_head: bool,
}

impl Kept {
    fn new(manifest: &Manifest) -> Self {
        Self {
            pin: manifest.pin(),
            bytes: Bytes::from(manifest.encode()),
            applied: manifest.state.applied,
            is_head: manifest.head.is_some(),
        }
    }
}

/// What a leader keeps for replicas that lag.
#[derive(Debug, Default)]
pub(crate) struct Source {
    /// The newest manifest.
    manifest: Option<Kept>,
    /// One is on its way.
    is_asked: bool,
    /// The tick since which one is wanted that is not there.
    wanted_since: Option<u64>,
    /// The tick at which somebody asked last.
    heard: u64,
}

impl Source {
    /// Somebody needs the rewind points that manifests were made of.
    pub fn is_active(&self) -> bool {
        self.is_asked || self.manifest.is_some() || self.wanted_since.is_some()
    }
}

/// An answer that is being put together.
#[derive(Debug)]
pub(crate) struct Serving {
    to: Place,
    fetch: Fetch,
    runs: Vec<Run>,
    through: u64,
    /// What each run with data has, once it is read.
    data: Vec<Option<Vec<Bytes>>>,
    missing: usize,
    /// It is of the head: no good once that has changed.
    is_head: bool,
}

impl Serving {
    /// The group that it is about.
    pub fn group(&self) -> GroupId {
        GroupId(self.fetch.group)
    }
}

/// Whether this replica leads a volume, serving it or not.
fn leads(volume: &Volume) -> bool {
    let role = volume.group.as_ref().map(Group::role);
    !volume.deleting && role == Some(Role::Leader)
}

impl Node {
    /// A replica is behind the retained log.
    pub(crate) fn tell_behind(&mut self, id: GroupId, to: ReplicaId) {
        if let Some(place) = self.place_of(to) {
            let group = id.0;
            self.send_catch_up(place, Note::Behind(Behind { group }), Vec::new());
        }
    }

    /// A replica asks for something.
    pub(super) fn fetch_asked(&mut self, from: Place, fetch: &Fetch) {
        let id = GroupId(fetch.group);
        let ticks = self.ticks;
        // Whoever leads has all that was committed, if not in force; it may wait for this very replica to serve.
        let Some(volume) = self.volumes.get_mut(&id).filter(|v| leads(v)) else {
            return self.answer_fetch(from, fetch, PartKind::Later);
        };
        volume.source.heard = ticks;
        match FetchKind::from_i32(fetch.kind).unwrap_or(FetchKind::Unknown) {
            FetchKind::Manifest => self.give_manifest(from, fetch),
            FetchKind::Blocks if self.harvests.len() >= SERVING_MAX => {
                self.answer_fetch(from, fetch, PartKind::Later);
            }
            FetchKind::Blocks => {
                let token = self.next_read;
                self.next_read += 1;
                let serving = Serving {
                    to: from,
                    fetch: fetch.clone(),
                    runs: Vec::new(),
                    through: fetch.from,
                    data: Vec::new(),
                    missing: 0,
                    is_head: false,
                };
                self.harvests.insert(token, serving);
                self.tell_engine(engine_event::Event::Harvest(HarvestRequest {
                    token,
                    group: id,
                    cut: Stamp(fetch.cut),
                    floor: Stamp(fetch.floor),
                    from: fetch.from,
                    until: fetch.until,
                    blocks_max: fetch.blocks_max,
                }));
            }
            FetchKind::Unknown => {}
        }
    }

    fn answer_fetch(&mut self, to: Place, fetch: &Fetch, kind: PartKind) {
        let part = Part {
            group: fetch.group,
            number: fetch.number,
            kind: kind.into(),
            pin: fetch.pin,
            ..Part::default()
        };
        self.send_catch_up(to, Note::Part(part), Vec::new());
    }

    fn give_manifest(&mut self, from: Place, fetch: &Fetch) {
        let id = GroupId(fetch.group);
        let applied = RaftIndex(fetch.applied);
        if fetch.pin == 0 && !self.has_fresh_manifest(id, applied) {
            self.note_head(id, applied);
        }
        let fresh = self.has_fresh_manifest(id, applied);
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        let known = volume.source.manifest.as_ref();
        let asked = known.filter(|kept| match fetch.pin {
            0 => fresh,
            named => kept.pin.0 == named,
        });
        let Some(Kept { pin, bytes, .. }) = asked.cloned() else {
            if fetch.pin != 0 {
                return self.answer_fetch(from, fetch, PartKind::Gone);
            }
            self.take_manifest(id);
            return self.answer_fetch(from, fetch, PartKind::Later);
        };
        volume.source.wanted_since = None;
        let start = to_usize(fetch.from).min(bytes.len());
        let end = (start + MANIFEST_PART_BYTES).min(bytes.len());
        let payload = vec![bytes.slice(start..end)];
        let part = Part {
            group: fetch.group,
            number: fetch.number,
            kind: PartKind::Here.into(),
            pin: pin.0,
            through: to_u64(bytes.len()),
            entry: Bytes::new(),
            crc: crc_of(&payload),
        };
        self.send_catch_up(from, Note::Part(part), payload);
    }

    /// Whether the log still follows on the newest manifest, what that names is there, and it is newer than
    /// what the replica has applied.
    fn has_fresh_manifest(&self, id: GroupId, applied: RaftIndex) -> bool {
        let Some(volume) = self.volumes.get(&id) else {
            return false;
        };
        let (kept, raft) = (volume.source.manifest.as_ref(), volume.group.as_ref());
        kept.zip(raft).is_some_and(|(kept, raft)| {
            let follows = kept.applied.0 + 1 >= raft.first_index().0;
            let is_there = match kept.is_head {
                true => self.engine.is_unchanged(id, kept.pin),
                false => self.engine.is_cut(id, kept.pin),
            };
            follows && kept.applied > applied && is_there
        })
    }

    /// No entry that would note the volume comes into force: it is noted as it is, since nothing can change it.
    fn note_head(&mut self, id: GroupId, applied: RaftIndex) {
        let ticks = self.ticks;
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        let since = *volume.source.wanted_since.get_or_insert(ticks);
        self.note_ticking(id);
        if ticks < since + UNCOMMITTED_TICKS {
            return;
        }
        let manifest = self.engine.head_manifest(id);
        let manifest = manifest.filter(|m| m.state.applied > applied);
        if let Some((manifest, volume)) = manifest.zip(self.volumes.get_mut(&id)) {
            tracing::info!(
                volume = volume.name,
                index = manifest.state.applied.0,
                "a replica that lags gets what is in force here: no majority is there for more"
            );
            volume.source.manifest = Some(Kept::new(&manifest));
        }
    }

    /// The volume is to be noted as it is now, as a rewind point.
    fn take_manifest(&mut self, id: GroupId) {
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        if volume.source.is_asked || volume.is_rolling_back {
            return;
        }
        volume.source.is_asked = true;
        self.engine.want_manifest(id);
        let asked = self.ask(NOBODY, id, SnapshotAsk::Point { created_us: 0 });
        if asked.is_err() {
            self.manifest_failed(id);
        }
    }

    /// A rewind point is not in the log and will not be, or this replica does not lead any more.
    pub(crate) fn manifest_failed(&mut self, id: GroupId) {
        if let Some(volume) = self.volumes.get_mut(&id) {
            if std::mem::take(&mut volume.source.is_asked) {
                self.engine.drop_manifest(id);
            }
        }
    }

    /// A rewind point is in force: it may be the one that was wanted.
    pub(crate) fn manifest_taken(&mut self, id: GroupId) {
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        let Some(manifest) = self.engine.manifest(id).filter(|_| volume.source.is_asked) else {
            return;
        };
        volume.source.is_asked = false;
        volume.source.manifest = Some(Kept::new(manifest));
        self.note_ticking(id);
    }

    /// Drops what nobody has asked for in a while.
    pub(crate) fn source_tick(&mut self, id: GroupId) {
        let ticks = self.ticks;
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        let leads = leads(volume);
        let source = &mut volume.source;
        if !source.is_active() || (leads && ticks < source.heard + UNHEARD_TICKS) {
            return;
        }
        *source = Source::default();
        self.engine.drop_manifest(id);
        self.note_rewind(id);
    }

    /// The engine tells what a snapshot has.
    pub(crate) fn harvest_done(&mut self, token: u64, result: Result<Harvest, ReadError>) {
        let Some(mut serving) = self.harvests.remove(&token) else {
            return;
        };
        let (to, group) = (serving.to, GroupId(serving.fetch.group));
        let harvest = match result {
            Ok(harvest) => harvest,
            Err(ReadError::UnknownSnapshot | ReadError::UnknownGroup) => {
                return self.answer_fetch(to, &serving.fetch, PartKind::Gone);
            }
            Err(error) => {
                tracing::error!(group = group.0, %error, "a replica that lags cannot be served");
                return self.answer_fetch(to, &serving.fetch, PartKind::Later);
            }
        };
        serving.through = harvest.through;
        serving.runs = harvest.runs;
        let stored = serving.runs.iter();
        let stored = stored.filter(|run| matches!(run.content, RunContent::Data(_)));
        let ranges: Vec<BlockRange> = stored.map(Run::range).collect();
        serving.data = vec![None; ranges.len()];
        serving.missing = ranges.len();
        if ranges.is_empty() {
            return self.give_blocks(serving);
        }
        let cut = Stamp(serving.fetch.cut);
        serving.is_head = !self.engine.is_cut(group, cut);
        let at = (!serving.is_head).then_some(cut);
        self.harvests.insert(token, serving);
        for (n, range) in ranges.into_iter().enumerate() {
            let request = ReadRequest {
                token: 0,
                group,
                range,
                latest: false,
                at,
            };
            self.read_blocks(ReadFor::Harvest(token, n), request);
        }
    }

    /// Blocks of an answer were read.
    pub(crate) fn harvest_read(
        &mut self,
        token: u64,
        n: usize,
        result: Result<Vec<ReadPiece>, ReadError>,
    ) {
        let Some(serving) = self.harvests.get_mut(&token) else {
            return;
        };
        serving.missing -= 1;
        if let (Ok(pieces), Some(place)) = (result, serving.data.get_mut(n)) {
            let stored = |piece| match piece {
                ReadPiece::Data(data) | ReadPiece::Sealed { data, .. } => Some(data),
                ReadPiece::Zeros(_) => None,
            };
            *place = pieces.into_iter().map(stored).collect();
        }
        if serving.missing > 0 {
            return;
        }
        if let Some(serving) = self.harvests.remove(&token) {
            self.give_blocks(serving);
        }
    }

    fn give_blocks(&mut self, serving: Serving) {
        let (group, cut) = (serving.group(), Stamp(serving.fetch.cut));
        if serving.is_head && !self.engine.is_unchanged(group, cut) {
            return self.answer_fetch(serving.to, &serving.fetch, PartKind::Gone);
        }
        let payload: Option<Vec<Vec<Bytes>>> = serving.data.into_iter().collect();
        let payload: Option<Vec<Bytes>> = payload.map(|all| all.into_iter().flatten().collect());
        let blocks: u64 = serving.runs.iter().map(Run::payload_blocks).sum();
        let whole = |all: &Vec<Bytes>| {
            let bytes: usize = all.iter().map(Bytes::len).sum();
            to_u64(bytes) == blocks * BLOCK_SIZE_U64
        };
        let Some(payload) = payload.filter(whole) else {
            // A block that cannot be read was told to the log.
            return self.answer_fetch(serving.to, &serving.fetch, PartKind::Later);
        };
        self.catch_ups.given += blocks;
        let entry = match serving.runs.is_empty() {
            true => Vec::new(),
            false => Operation::Ingest { runs: serving.runs }.encode(RequestId::default()),
        };
        let part = Part {
            group: serving.fetch.group,
            number: serving.fetch.number,
            kind: PartKind::Here.into(),
            pin: serving.fetch.pin,
            through: serving.through,
            entry: Bytes::from(entry),
            crc: crc_of(&payload),
        };
        self.send_catch_up(serving.to, Note::Part(part), payload);
    }
}
