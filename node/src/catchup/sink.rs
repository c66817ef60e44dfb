//! The part of a replica that lags: it asks for what it lacks and gives that to its feed.

use super::plan::{self, Step, Zones};
use super::wire::{Behind, Fetch, FetchKind, Note, Part, PartKind};
use crate::control::AdminPending;
use crate::envelope::{crc_of, joined};
use crate::groups::{is_member, raft_state};
use crate::node::{Node, Phase};
use crate::volume::EpochState;
use bytes::Bytes;
use esker_base::checksum::crc32;
use esker_base::num::to_u64;
use esker_base::{GroupId, Moment, Place, RaftIndex, Stamp, Term, BLOCK_SIZE, BLOCK_SIZE_U64};
use esker_engine::event::{self as engine_event, Append, AppendEntry, Outcome};
use esker_engine::feed_of;
use esker_engine::format::ingest::Run;
use esker_engine::format::manifest::{Manifest, ManifestVersion};
use esker_engine::format::operation::{Operation, RequestId};
use esker_engine::format::record::EntryKind;
use esker_replication::{Group, GroupConfig, Role};
use std::collections::BTreeSet;

/// Ticks after which something is asked for again that did not come.
const ASK_AGAIN_TICKS: u64 = 20;
/// Ticks to wait when the leader says later, or there is none.
const LATER_TICKS: u64 = 2;
/// Entries of the feed that are not in the map yet, at most.
const UNAPPLIED_MAX: u64 = 8;
/// For how many times an entry's blocks the store must have room before that is fetched: for them, and the map over them.
const ROOM_SHARE: u64 = 2;
/// With room for fewer blocks nothing is fetched.
const ROOM_BLOCKS_MIN: u64 = 4;
/// Longest manifest, in bytes.
const MANIFEST_BYTES_MAX: u64 = 256 << 20;
/// The term of a feed's entries: nobody else ever writes to it.
const FEED_TERM: Term = Term(1);

/// What a replica that lags is at.
#[derive(Debug)]
enum Stage {
    /// What is committed here is not all in force; or it was told only once, with its log at this index: then
    /// something may be on its way that brings it up.
    Begins(RaftIndex, bool),
    /// Its feed is not durable yet.
    Creates,
    /// The manifest comes in parts: which one, and what there is of it.
    Manifest(Stamp, Vec<u8>),
    /// Versions come.
    Works(Box<Manifest>, Option<Fill>),
    /// All is there, and becomes the volume.
    Publishes,
    /// The log goes on after all, and the feed is being dropped.
    Ends,
}

/// A version that is being fetched.
#[derive(Clone, Copy, Debug)]
struct Fill {
    cut: Stamp,
    /// The first block that was not asked for or did not come.
    next: u64,
    /// Blocks of the volume then.
    blocks: u64,
}

/// A replica that lags.
#[derive(Debug)]
pub(crate) struct Sink {
    stage: Stage,
    zones: Zones,
    /// The question on its way; 0 for none.
    number: u64,
    /// When it was asked; or, without one, when the next may be.
    at_tick: u64,
    since: Moment,
    /// Blocks that came.
    blocks: u64,
    told_full: bool,
    /// Manifests of this index, or an older one, are of no use.
    older: RaftIndex,
    /// All of the manifest's head is fetched.
    has_head: bool,
}

impl Sink {
    fn new(stage: Stage, now: Moment) -> Self {
        Self {
            stage,
            zones: Zones::default(),
            number: 0,
            at_tick: 0,
            since: now,
            blocks: 0,
            told_full: false,
            older: RaftIndex(0),
            has_head: false,
        }
    }

    /// From the manifest on again, with one that is newer than this: not all that it names is there any more. Another leader
    /// may have the same head.
    fn begin_anew(&mut self) {
        if let Stage::Works(manifest, _) = &self.stage {
            if manifest.head.is_none() {
                self.older = self.older.max(manifest.state.applied);
            }
        }
        self.stage = Stage::Manifest(Stamp(0), Vec::new());
        (self.number, self.has_head) = (0, false);
    }
}

impl Node {
    /// The leader says that its log does not reach back to this replica.
    pub(super) fn told_behind(&mut self, behind: &Behind) {
        let id = GroupId(behind.group);
        let now = self.now;
        if self.phase != Phase::Serving || self.fenced.is_some() {
            return;
        }
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        let last = volume.group.as_ref().map(Group::last_index);
        let Some(last) = last.filter(|_| !volume.deleting) else {
            return;
        };
        match volume.sink.as_mut().map(|sink| &mut sink.stage) {
            None => volume.sink = Some(Sink::new(Stage::Begins(last, false), now)),
            // Entries have come since.
            Some(Stage::Begins(at, _)) if *at != last => volume.sink = None,
            Some(Stage::Begins(_, is_sure)) => *is_sure = true,
            Some(_) => return,
        }
        self.dirty.insert(id);
    }

    /// A feed was found when the store was opened.
    pub(crate) fn resume_feed(&mut self, id: GroupId, last: RaftIndex) {
        let now = self.now;
        if let Some(volume) = self.volumes.get_mut(&id) {
            let stage = Stage::Manifest(Stamp(0), Vec::new());
            volume.sink = Some(Sink::new(stage, now));
            if let Some(raft) = volume.group.as_mut() {
                raft.stop_log();
            }
            self.dirty.insert(id);
        }
        self.tell_engine(engine_event::Event::Apply {
            group: feed_of(id),
            through: last,
        });
    }

    /// Does whatever can be done for a replica that lags.
    pub(crate) fn feed_progress(&mut self, id: GroupId) {
        while self.feed_step(id) {}
    }

    /// True when there may be more to do.
    fn feed_step(&mut self, id: GroupId) -> bool {
        let reaches = self.log_reaches(id);
        let Some(volume) = self.volumes.get_mut(&id).filter(|v| !v.deleting) else {
            return false;
        };
        if volume.sink.is_none() || self.phase != Phase::Serving || self.fenced.is_some() {
            return false;
        }
        let leader = volume.group.as_mut();
        let leader = leader.filter(|raft| matches!(raft.role(), Role::Leader));
        let Some(sink) = &volume.sink else {
            return false;
        };
        match (leader, &sink.stage) {
            (Some(_), Stage::Begins(..)) => {
                // Whoever was told once that it lags, and was elected since, has all that was committed.
                volume.sink = None;
                return false;
            }
            (Some(raft), _) => raft.hand_over(), // it has nothing to serve with
            (None, _) => {}
        }
        match &sink.stage {
            Stage::Begins(_, false) => false,
            Stage::Begins(_, true) => self.feed_begin(id),
            Stage::Creates | Stage::Publishes | Stage::Ends => false,
            Stage::Manifest(..) if reaches => self.give_feed_up(id),
            Stage::Manifest(pin, bytes) => {
                let (pin, from) = (pin.0, to_u64(bytes.len()));
                let applied = volume.applied.max(sink.older).0;
                self.fetch(id, FetchKind::Manifest, |fetch| {
                    (fetch.pin, fetch.from, fetch.applied) = (pin, from, applied);
                });
                false
            }
            Stage::Works(_, Some(fill)) => {
                let fill = *fill;
                self.feed_fill(id, fill)
            }
            Stage::Works(..) => self.feed_plan(id),
        }
    }

    fn feed_begin(&mut self, id: GroupId) -> bool {
        let Some(volume) = self.volumes.get_mut(&id) else {
            return false;
        };
        let committed = volume.group.as_ref().map(Group::commit_index);
        if committed.is_none_or(|committed| volume.applied < committed) {
            return false;
        }
        let Some(meta) = self.engine.feed_meta(id) else {
            return false;
        };
        if let Some(sink) = &mut volume.sink {
            sink.stage = Stage::Creates;
        }
        if let Some(raft) = volume.group.as_mut() {
            raft.stop_log();
        }
        tracing::warn!(
            volume = volume.name,
            "this replica is behind what its leader's log holds: it fetches what has changed"
        );
        let token = self.admin_token(AdminPending::Feed(id));
        let meta = Box::new(meta);
        self.tell_engine(engine_event::Event::Create { token, meta });
        false
    }

    /// The feed is durable, or cannot be.
    pub(crate) fn feed_created(&mut self, id: GroupId, is_there: bool) {
        if let Some(volume) = self.volumes.get_mut(&id) {
            match (is_there, &mut volume.sink) {
                (true, Some(sink)) => sink.begin_anew(),
                // The leader will tell again, but for a store that is fenced.
                _ => volume.sink = None,
            }
            self.dirty.insert(id);
        }
    }

    /// Whether the log here has committed entries to go on with, and nothing was fetched yet. Whoever leads now may
    /// have nothing to give but those: it may be damaged where this replica is whole.
    fn log_reaches(&self, id: GroupId) -> bool {
        let volume = self.volumes.get(&id).filter(|v| v.sink.is_some());
        let raft = volume.and_then(|v| v.group.as_ref());
        let (Some(raft), Some(view), Some(feed)) =
            (raft, self.engine.group(id), self.engine.feed(id))
        else {
            return false;
        };
        let is_untouched = feed.at.base == feed.at.reach && feed.last_index == RaftIndex(0);
        let committed = raft.commit_index();
        is_untouched && view.applied < committed && committed <= view.last_index
    }

    fn give_feed_up(&mut self, id: GroupId) -> bool {
        let token = self.admin_token(AdminPending::FeedEnds(id));
        if let Some(volume) = self.volumes.get_mut(&id) {
            tracing::info!(
                volume = volume.name,
                "this replica goes on with what its log holds, and fetches nothing"
            );
            if let Some(sink) = volume.sink.as_mut() {
                sink.stage = Stage::Ends;
            }
        }
        self.tell_engine(engine_event::Event::Delete {
            token,
            group: feed_of(id),
        });
        false
    }

    /// The feed is gone, or was refused to go.
    pub(crate) fn feed_given_up(&mut self, id: GroupId, is_gone: bool) {
        self.dirty.insert(id);
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        if !is_gone {
            if let Some(sink) = &mut volume.sink {
                sink.begin_anew();
            }
            return;
        }
        volume.sink = None;
        let first_ticket = volume.group.as_ref().map_or(1, Group::next_ticket);
        if let Some(group) = self.engine.recovered_group(id) {
            self.reopen(id, group, first_ticket);
        }
    }

    /// Asks the leader, unless something is on its way or it is too early.
    fn fetch(&mut self, id: GroupId, kind: FetchKind, fill: impl FnOnce(&mut Fetch)) {
        let number = self.random() | 1;
        let ticks = self.ticks;
        let Some(place) = self.leader_place(id) else {
            return;
        };
        let volume = self.volumes.get_mut(&id);
        let Some(sink) = volume.and_then(|v| v.sink.as_mut()) else {
            return;
        };
        if sink.number != 0 || ticks < sink.at_tick {
            return;
        }
        (sink.number, sink.at_tick) = (number, ticks);
        let mut fetch = Fetch {
            group: id.0,
            number,
            kind: kind.into(),
            ..Fetch::default()
        };
        fill(&mut fetch);
        self.note_ticking(id);
        self.send_catch_up(place, Note::Fetch(fetch), Vec::new());
    }

    fn leader_place(&self, id: GroupId) -> Option<Place> {
        let raft = self.volumes.get(&id)?.group.as_ref()?;
        let leader = raft.leader().filter(|l| *l != raft.config().replica)?;
        self.place_of(leader)
    }

    /// A tick: what did not come is asked for again.
    pub(crate) fn feed_tick(&mut self, id: GroupId) {
        let ticks = self.ticks;
        let volume = self.volumes.get_mut(&id);
        let Some(sink) = volume.and_then(|v| v.sink.as_mut()) else {
            return;
        };
        if sink.number != 0 && ticks >= sink.at_tick + ASK_AGAIN_TICKS {
            sink.number = 0;
        }
        if sink.number == 0 {
            self.dirty.insert(id);
        }
    }

    /// The leader answers.
    pub(super) fn part_came(&mut self, part: &Part, payload: Vec<Bytes>) {
        let id = GroupId(part.group);
        let ticks = self.ticks;
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        let Some(sink) = volume.sink.as_mut().filter(|s| s.number == part.number) else {
            return; // to a question of before
        };
        sink.number = 0;
        self.dirty.insert(id);
        match PartKind::from_i32(part.kind).unwrap_or(PartKind::Unknown) {
            PartKind::Here if crc_of(&payload) == part.crc => {}
            PartKind::Gone => {
                sink.begin_anew();
                sink.at_tick = ticks + LATER_TICKS;
                return;
            }
            PartKind::Here | PartKind::Later | PartKind::Unknown => {
                sink.at_tick = ticks + LATER_TICKS;
                return;
            }
        }
        match &mut sink.stage {
            Stage::Manifest(pin, bytes) => {
                if bytes.is_empty() {
                    *pin = Stamp(part.pin);
                }
                if pin.0 != part.pin || part.through > MANIFEST_BYTES_MAX {
                    return sink.begin_anew();
                }
                payload
                    .iter()
                    .for_each(|piece| bytes.extend_from_slice(piece));
                if to_u64(bytes.len()) < part.through {
                    return;
                }
                match Manifest::decode(bytes) {
                    Ok(manifest) => sink.stage = Stage::Works(Box::new(manifest), None),
                    Err(error) => {
                        tracing::warn!(group = id.0, %error, "manifest refused");
                        sink.begin_anew();
                        sink.at_tick = ticks + ASK_AGAIN_TICKS;
                    }
                }
            }
            Stage::Works(_, Some(fill)) => {
                let cut = fill.cut;
                if part.through <= fill.next {
                    sink.at_tick = ticks + LATER_TICKS;
                    return;
                }
                let asked = (fill.next, part.through.min(fill.blocks));
                let (floor, _) = sink.zones.at(fill.next);
                let payload = joined(payload);
                if !part.entry.is_empty() && !fits(&part.entry, &payload, asked, (floor, cut)) {
                    tracing::warn!(
                        group = id.0,
                        "blocks of a leader refused: not what was asked for"
                    );
                    sink.begin_anew();
                    sink.at_tick = ticks + ASK_AGAIN_TICKS;
                    return;
                }
                fill.next = asked.1;
                sink.zones.passed(fill.next, cut);
                if !part.entry.is_empty() {
                    self.feed_ingest(id, part.entry.clone(), payload);
                }
            }
            _ => {}
        }
    }

    /// Blocks came: they go into the feed's log as they are.
    fn feed_ingest(&mut self, id: GroupId, data: Bytes, payload: Bytes) {
        let blocks = to_u64(payload.len()) / BLOCK_SIZE_U64;
        let volume = self.volumes.get_mut(&id);
        let Some(sink) = volume.and_then(|v| v.sink.as_mut()) else {
            return;
        };
        sink.blocks += blocks;
        self.catch_ups.blocks += blocks;
        let payload = match payload.is_empty() {
            true => Vec::new(),
            false => vec![payload],
        };
        self.feed_append(id, vec![(data, payload)]);
    }

    /// Appends to the feed's log.
    fn feed_append(&mut self, id: GroupId, entries: Vec<(Bytes, Vec<Bytes>)>) {
        let Some(feed) = self.engine.feed(id) else {
            return;
        };
        let first = feed.last_index.0 + 1;
        let last = feed.last_index.0 + to_u64(entries.len());
        let entries = (first..).zip(entries);
        let entries = entries.map(|(index, (data, payload))| AppendEntry {
            term: FEED_TERM,
            index: RaftIndex(index),
            kind: EntryKind::Normal,
            data,
            payload,
        });
        let append = Append {
            group: feed_of(id),
            ticket: last,
            entries: entries.collect(),
            hard_state: None,
            urgent: true,
        };
        self.tell_engine(engine_event::Event::Append(append));
    }

    fn feed_operations(&mut self, id: GroupId, operations: &[Operation]) {
        let encoded = operations.iter().map(|op| {
            let data = Bytes::from(op.encode(RequestId::default()));
            (data, Vec::new())
        });
        let encoded = encoded.collect();
        self.feed_append(id, encoded);
    }

    /// Entries of a feed are durable: they may be applied.
    pub(crate) fn feed_durable(&mut self, id: GroupId, ticket: u64) {
        self.tell_engine(engine_event::Event::Apply {
            group: feed_of(id),
            through: RaftIndex(ticket),
        });
    }

    /// An entry of a feed is in the map.
    pub(crate) fn feed_applied(&mut self, id: GroupId, outcome: &Outcome) {
        match outcome {
            Outcome::SnapshotTaken(_) | Outcome::SnapshotDeleted(_) | Outcome::RolledBack(_) => {
                self.snapshots_changed = true;
            }
            Outcome::SnapshotRefused(why) => {
                tracing::error!(group = id.0, ?why, "a version could not be kept as it is");
            }
            _ => {}
        }
        self.dirty.insert(id);
    }

    fn feed_fill(&mut self, id: GroupId, fill: Fill) -> bool {
        let Some(feed) = self.engine.feed(id) else {
            return false;
        };
        if fill.next >= fill.blocks {
            return self.feed_keep(id, fill.cut);
        }
        // Where room is short, less comes at a time.
        let room = self.engine.room_bytes() / (ROOM_SHARE * BLOCK_SIZE_U64);
        let blocks_max = self.engine.ingest_blocks_max().min(room);
        let is_full = blocks_max < ROOM_BLOCKS_MIN;
        let volume = self.volumes.get_mut(&id);
        let Some((name, sink)) = volume.and_then(|v| Some((&v.name, v.sink.as_mut()?))) else {
            return false;
        };
        if is_full && !std::mem::replace(&mut sink.told_full, is_full) {
            tracing::error!(
                volume = name,
                "the store has no room for what this replica lacks: free some, or add a device"
            );
        }
        sink.told_full = is_full;
        let Stage::Works(manifest, _) = &sink.stage else {
            return false;
        };
        if is_full || feed.last_index.0 - feed.applied.0 >= UNAPPLIED_MAX {
            return false;
        }
        let pin = manifest.pin().0;
        let (floor, until) = sink.zones.at(fill.next);
        if floor >= fill.cut {
            // It came before this process was told so, or of a version that went.
            let next = until.min(fill.blocks);
            if let Stage::Works(_, Some(fill)) = &mut sink.stage {
                fill.next = next;
            }
            return true;
        }
        self.fetch(id, FetchKind::Blocks, |fetch| {
            (fetch.pin, fetch.cut, fetch.floor) = (pin, fill.cut.0, floor.0);
            (fetch.from, fetch.until) = (fill.next, until.min(fill.blocks));
            fetch.blocks_max = blocks_max;
        });
        false
    }

    /// All of a version is in the head: it is kept as that, unless it is to be the head.
    fn feed_keep(&mut self, id: GroupId, cut: Stamp) -> bool {
        let volume = self.volumes.get_mut(&id);
        let Some(sink) = volume.and_then(|v| v.sink.as_mut()) else {
            return false;
        };
        let Stage::Works(manifest, fill) = &mut sink.stage else {
            return false;
        };
        *fill = None;
        let Some(ManifestVersion { cut, meta, .. }) = manifest.at(cut).cloned() else {
            sink.has_head = true;
            return true;
        };
        let operations = [
            Operation::Resize {
                size_bytes: meta.size_bytes,
            },
            Operation::Snapshot {
                stamp: cut,
                created_us: meta.created_us,
                name: meta.name.clone(),
                labels: meta.labels.clone(),
            },
        ];
        self.feed_operations(id, &operations);
        true
    }

    fn feed_plan(&mut self, id: GroupId) -> bool {
        let Some(feed) = self.engine.feed(id) else {
            return false;
        };
        if feed.applied < feed.last_index {
            return false;
        }
        let cuts: BTreeSet<Stamp> = self.engine.cuts(id).into_iter().collect();
        let volume = self.volumes.get_mut(&id);
        let Some(sink) = volume.and_then(|v| v.sink.as_mut()) else {
            return false;
        };
        let Stage::Works(manifest, fill) = &mut sink.stage else {
            return false;
        };
        match plan::next(manifest, &cuts, feed.at, sink.has_head) {
            Step::Delete(gone) => {
                let delete = |cut: &Stamp| Operation::DeleteSnapshot { cut: *cut };
                let operations: Vec<Operation> = gone.iter().map(delete).collect();
                self.feed_operations(id, &operations);
            }
            Step::Branch(to) => {
                sink.zones = Zones::default();
                self.feed_operations(id, &[Operation::Branch { to }]);
            }
            Step::Fill(cut) => {
                let size = manifest.size_at(cut);
                *fill = Some(Fill {
                    cut,
                    next: 0,
                    blocks: size.div_ceil(BLOCK_SIZE_U64),
                });
                // What is known of parts holds as long as they are parts of this very head.
                if sink.zones.at(u64::MAX - 1).0 != feed.at.base {
                    sink.zones = Zones::all(feed.at.base);
                }
            }
            Step::Publish => {
                let mut state = Box::new(manifest.state.clone());
                let replica = self.engine.group(id).map(|view| view.meta.replica);
                state.meta.replica = replica.unwrap_or_default();
                sink.stage = Stage::Publishes;
                let token = self.admin_token(AdminPending::Publish(id));
                self.tell_engine(engine_event::Event::Publish {
                    token,
                    group: id,
                    state,
                    whole: feed.at,
                });
                return false;
            }
        }
        true
    }

    /// The volume is what it was at the manifest's index, or that was refused.
    pub(crate) fn feed_published(&mut self, id: GroupId, result: Result<(), String>) {
        self.dirty.insert(id);
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        if let Err(why) = result {
            tracing::error!(
                group = id.0,
                why,
                "a replica that caught up goes over it again"
            );
            if let Some(sink) = &mut volume.sink {
                sink.begin_anew();
            }
            return;
        }
        let sink = volume.sink.take();
        self.catch_ups.ended += 1;
        let Some(group) = self.engine.recovered_group(id) else {
            return;
        };
        let first_ticket = volume.group.as_ref().map_or(1, Group::next_ticket);
        if let Some(sink) = sink {
            tracing::info!(
                volume = volume.name,
                index = group.applied.0,
                blocks = sink.blocks,
                seconds = self.now.since(sink.since).as_secs(),
                "this replica has caught up"
            );
        }
        self.reopen(id, group, first_ticket);
    }

    fn reopen(&mut self, id: GroupId, group: engine_event::RecoveredGroup, first_ticket: u64) {
        let config = GroupConfig {
            first_ticket,
            ..self.group_config(id, group.meta.replica)
        };
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        volume.applied = group.applied;
        volume.written = volume.written.max(group.applied);
        volume.driven = volume.driven.max(group.applied);
        volume.epoch = EpochState::None;
        volume.lazy_hard_state = None;
        volume.size_bytes = group.meta.size_bytes;
        volume.take_labels(group.meta.labels.clone());
        self.refenced.push(id);
        volume.key_id = group.meta.key_id;
        let places = group.meta.membership.places.clone();
        volume.member_places.clone_from(&places);
        volume.is_member = is_member(&group.meta);
        let name = group.meta.name.clone();
        volume.group = match Group::new(config, raft_state(group)) {
            Ok(group) => Some(group),
            Err(error) => {
                volume.trouble = Some(format!("volume {name}: its group does not start: {error}"));
                None
            }
        };
        self.take_name(id, &name);
        self.learn_places(&places);
        self.snapshots_changed = true;
        self.key_changed(id);
        self.note_rewind(id);
        self.leader_changed(id);
        self.dirty.insert(id);
    }
}

/// Whether an entry brings blocks of what was asked for and nothing else, each with the bytes that its checksum
/// names: anything else would stop this store, or pass damage on.
fn fits(
    entry: &[u8],
    payload: &[u8],
    (from, until): (u64, u64),
    (floor, cut): (Stamp, Stamp),
) -> bool {
    let Ok((operation @ Operation::Ingest { .. }, _)) = Operation::decode(entry) else {
        return false;
    };
    let Operation::Ingest { runs } = &operation else {
        return false;
    };
    let inside = |run: &Run| {
        let range = run.range();
        range.start.0 >= from
            && range.end() <= until
            && run.min_stamp() > floor
            && run.max_stamp() <= cut
    };
    let blocks = payload.chunks(BLOCK_SIZE);
    let crcs = operation.payload_crcs();
    runs.iter().all(inside)
        && payload.len() == crcs.len() * BLOCK_SIZE
        && blocks
            .zip(&crcs)
            .all(|(block, (_, crc))| crc32(block) == *crc)
}

#[cfg(test)]
mod tests {
    use super::*;
    use esker_engine::format::ingest::RunContent;
    use esker_engine::format::operation::plain_authenticator;

    #[test]
    fn what_was_not_asked_for_is_refused() {
        let block = vec![7; BLOCK_SIZE];
        let auth = plain_authenticator(crc32(&block));
        let runs = vec![Run {
            lba: 10,
            content: RunContent::Data(vec![(Stamp(5), auth)]),
        }];
        let entry = Operation::Ingest { runs }.encode(RequestId::default());
        let fits = |payload: &[u8], range, stamps: (u64, u64)| {
            fits(&entry, payload, range, (Stamp(stamps.0), Stamp(stamps.1)))
        };
        assert!(fits(&block, (10, 11), (4, 5)));
        assert!(!fits(&block, (11, 20), (4, 5)), "before the first block");
        assert!(!fits(&block, (0, 10), (4, 5)), "behind the last one");
        assert!(!fits(&block, (0, 20), (5, 9)), "not above what is here");
        assert!(!fits(&block, (0, 20), (1, 4)), "younger than the version");
        assert!(!fits(&[], (0, 20), (1, 9)), "without its bytes");
        let mut damaged = block.clone();
        damaged[9] ^= 1;
        assert!(!fits(&damaged, (0, 20), (1, 9)), "with other bytes");
        let other = Operation::Resize {
            size_bytes: 1 << 40,
        }
        .encode(RequestId::default());
        assert!(!super::fits(&other, &[], (0, 20), (Stamp(1), Stamp(9))));
    }
}
