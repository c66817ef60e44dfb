//! The leader's part: what replicas that lag ask for.

use super::wire::{Behind, Fetch, FetchKind, Note, Part, PartKind};
use crate::envelope::crc_of;
use crate::node::{Node, ReadFor};
use crate::rewind::NOBODY;
use crate::snapshots::SnapshotAsk;
use bytes::Bytes;
use esker_base::num::{to_u64, to_usize};
use esker_base::{BlockRange, GroupId, Place, RaftIndex, ReplicaId, Stamp, BLOCK_SIZE_U64};
use esker_engine::event::{self as engine_event, Harvest, HarvestRequest, ReadPiece, ReadRequest};
use esker_engine::format::ingest::{Run, RunContent};
use esker_engine::format::operation::{Operation, RequestId};
use esker_engine::ReadError;

/// Bytes of a manifest in one answer.
const MANIFEST_PART_BYTES: usize = 1 << 20;
/// Fetches of blocks that a store answers at a time; others are asked to come later.
const SERVING_MAX: usize = 8;
/// Ticks after which a manifest that nobody asks for is dropped.
const UNHEARD_TICKS: u64 = 300;

/// What a leader keeps for replicas that lag.
#[derive(Debug, Default)]
pub(crate) struct Source {
    /// The newest manifest, by the stamp that names it.
    manifest: Option<(Stamp, Bytes)>,
    /// One is on its way.
    is_asked: bool,
    /// The tick at which somebody asked last.
    heard: u64,
}

impl Source {
    /// Somebody needs the rewind points that manifests were made of.
    pub fn is_active(&self) -> bool {
        self.is_asked || self.manifest.is_some()
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
}

impl Serving {
    /// The group that it is about.
    pub fn group(&self) -> GroupId {
        GroupId(self.fetch.group)
    }
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
        let Some(volume) = self.volumes.get_mut(&id).filter(|v| v.is_serving()) else {
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
        let fresh = self.fresh_manifest(id, RaftIndex(fetch.applied));
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        let known = volume.source.manifest.as_ref();
        let asked = known.filter(|(pin, _)| match fetch.pin {
            0 => fresh,
            named => pin.0 == named,
        });
        let Some((pin, bytes)) = asked.cloned() else {
            if fetch.pin != 0 {
                return self.answer_fetch(from, fetch, PartKind::Gone);
            }
            self.take_manifest(id);
            return self.answer_fetch(from, fetch, PartKind::Later);
        };
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

    /// Whether the log still follows on the newest manifest, that one's snapshot is there, and it is newer than
    /// what the replica has applied.
    fn fresh_manifest(&self, id: GroupId, applied: RaftIndex) -> bool {
        let raft = self.volumes.get(&id).and_then(|v| v.group.as_ref());
        let manifest = self.engine.manifest(id);
        manifest.zip(raft).is_some_and(|(manifest, raft)| {
            let follows = manifest.state.applied.0 + 1 >= raft.first_index().0;
            let is_newer = manifest.state.applied > applied;
            follows && is_newer && self.engine.is_rewind_point(id, manifest.pin())
        })
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
        volume.source.manifest = Some((manifest.pin(), Bytes::from(manifest.encode())));
        self.note_ticking(id);
    }

    /// Drops what nobody has asked for in a while.
    pub(crate) fn source_tick(&mut self, id: GroupId) {
        let ticks = self.ticks;
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        let leads = volume.is_serving();
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
        let at = Some(Stamp(serving.fetch.cut));
        self.harvests.insert(token, serving);
        for (n, range) in ranges.into_iter().enumerate() {
            let token = self.read_token(ReadFor::Harvest(token, n));
            self.tell_engine(engine_event::Event::Read(ReadRequest {
                token,
                group,
                range,
                latest: false,
                at,
            }));
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
