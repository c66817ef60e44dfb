//! A volume's blocks under a new data key: what its head holds under older ones is read, opened, sealed anew and
//! written, a part at a time, at the pace of whoever asks for parts ([`crate::admin::AdminRequest::Reseal`]).
//!
//! A block is locked from before it is read until it is proposed, like one that a request covers in part: nothing
//! else changes it in between, so that the write that goes into the log holds what the block held there. A part
//! whose lock is gone (a rollback, another leadership) is dropped with what it read.
//!
//! Nothing of how far a pass is is kept: the map tells which blocks are left. When a pass over the whole volume has
//! left none, an epoch is opened that says so; with the last snapshot from before it, the older keys are spent.

use crate::admin::{AdminError, AdminReply, ResealPage, ResealReport};
use crate::control::Outcome;
use crate::event::AdminToken;
use crate::keys::Lock;
use crate::node::{Node, ReadFor};
use crate::volume::{EpochState, OpId, Proposal, Volume};
use bytes::Bytes;
use esker_base::num::to_u64;
use esker_base::{BlockRange, GroupId, Lba, Moment, Stamp, BLOCK_SIZE, BLOCK_SIZE_U64};
use esker_engine::event::{
    self as engine_event, ExtentKind, ExtentRun, ExtentsRequest, ReadPiece, ReadRequest,
};
use esker_engine::format::operation::{Operation, RequestId, TAG_BYTES};
use esker_engine::ReadError;
use esker_replication::ProposeError;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Blocks sealed anew for one part (1 MiB).
pub(crate) const PART_BLOCKS_MAX: u64 = 256;
/// Blocks locked, read and written together: a client that wants one of them waits for all.
const RUN_BLOCKS_MAX: u64 = 32;
/// After which time a pass begins again that could not do all blocks.
const RETRY_INTERVAL: Duration = Duration::from_secs(600);

const _: () = assert!(RUN_BLOCKS_MAX <= esker_base::limits::ENTRY_BLOCKS_MAX);

/// How far the pass over a volume is.
#[derive(Debug, Default)]
pub(crate) struct Reseal {
    /// The first block that is not looked at.
    next: u64,
    /// Blocks sealed anew.
    blocks: u64,
    /// What could not be done.
    problem: Option<String>,
    /// It begins again then.
    not_before: Option<Moment>,
    part: Option<Part>,
}

/// A part on its way.
#[derive(Debug)]
struct Part {
    number: u64,
    token: AdminToken,
    /// The engine was asked which blocks are to be done.
    is_asked: bool,
    /// Where the next part begins.
    through: u64,
    /// To be locked and read.
    todo: VecDeque<BlockRange>,
    reading: BTreeMap<OpId, BlockRange>,
    /// Opened, and to be proposed: by lock, with the first block of each run.
    ready: VecDeque<(OpId, VecDeque<(u64, Bytes)>)>,
    /// Proposed and not applied.
    outstanding: usize,
    blocks: u64,
    /// All blocks are done, and the epoch that says so is on its way.
    is_last: bool,
}

impl Part {
    fn is_idle(&self) -> bool {
        !self.is_asked
            && self.todo.is_empty()
            && self.reading.is_empty()
            && self.ready.is_empty()
            && self.outstanding == 0
    }
}

/// Why nothing more of a run is proposed now.
enum Held {
    Epoch,
    Busy,
    Lost,
}

impl Volume {
    /// The epoch that is opened next says that the head is under its key alone.
    pub(crate) fn ends_reseal(&self) -> bool {
        let part = self.reseal.as_ref().and_then(|r| r.part.as_ref());
        part.is_some_and(|p| p.is_last) && !self.is_rolling_back && self.rekey.is_none()
    }
}

impl Node {
    /// Does a part of the first volume that wants it.
    pub(crate) fn reseal(&mut self, token: AdminToken) -> Outcome {
        self.writable()?;
        let from = self
            .reseal_last
            .map_or(GroupId(0), |GroupId(id)| GroupId(id + 1));
        let later = self.volumes.range(from..).map(|(id, _)| *id);
        let mut all = later.chain(self.volumes.range(..from).map(|(id, _)| *id));
        let Some(id) = all.find(|id| self.wants_reseal(*id)) else {
            return Ok(Some(AdminReply::Resealed(None)));
        };
        self.reseal_last = Some(id);
        if !self.engine.has_room_for(PART_BLOCKS_MAX * BLOCK_SIZE_U64) {
            return Err(AdminError::NoSpace(
                "the store is full: blocks under an older key wait for room; delete or trim a volume"
                    .into(),
            ));
        }
        let number = self.next_op;
        self.next_op += 1;
        let Some(volume) = self.volumes.get_mut(&id) else {
            return Ok(Some(AdminReply::Resealed(None)));
        };
        let end = volume.size_bytes / BLOCK_SIZE_U64;
        let state = volume.reseal.get_or_insert_default();
        if state.not_before.take().is_some() {
            *state = Reseal::default();
        }
        state.part = Some(Part {
            number,
            token,
            is_asked: true,
            through: state.next,
            todo: VecDeque::new(),
            reading: BTreeMap::new(),
            ready: VecDeque::new(),
            outstanding: 0,
            blocks: 0,
            is_last: false,
        });
        let range = BlockRange::new(state.next, end.saturating_sub(state.next));
        if range.is_empty() {
            self.reseal_found(id, number, Ok(Vec::new()));
            return Ok(None);
        }
        let token = self.read_token(ReadFor::ResealFind(id, number));
        self.tell_engine(engine_event::Event::Extents(ExtentsRequest {
            token,
            group: id,
            range,
            latest: false,
            at: None,
            one: false,
            old_keys: true,
        }));
        Ok(None)
    }

    fn wants_reseal(&self, id: GroupId) -> bool {
        let Some(volume) = self.volumes.get(&id) else {
            return false;
        };
        let waits = volume
            .reseal
            .as_ref()
            .is_some_and(|r| r.part.is_some() || r.not_before.is_some_and(|at| at > self.now));
        let can = volume.is_serving() && volume.lock == Lock::Open && !volume.is_rolling_back;
        can && !waits && volume.rekey.is_none() && self.engine.is_to_be_resealed(id)
    }

    /// How far a volume is that is being sealed anew.
    pub(crate) fn reseal_report(&self, id: GroupId) -> Option<ResealReport> {
        let volume = self.volumes.get(&id)?;
        if !self.engine.is_to_be_resealed(id) {
            return None;
        }
        let state = volume.reseal.as_ref();
        Some(ResealReport {
            key_id: volume.key_id,
            through_bytes: state.map_or(0, |r| r.next * BLOCK_SIZE_U64),
            size_bytes: volume.size_bytes,
            resealed_bytes: state.map_or(0, |r| r.blocks * BLOCK_SIZE_U64),
            problem: state.and_then(|r| r.problem.clone()).unwrap_or_default(),
        })
    }

    /// What an operator should know of passes that cannot do everything.
    pub(crate) fn reseal_problems(&self) -> Vec<String> {
        let states = self.volumes.values().filter_map(|v| v.reseal.as_ref());
        states.filter_map(|state| state.problem.clone()).collect()
    }

    /// The engine has told which blocks are under older keys.
    pub(crate) fn reseal_found(
        &mut self,
        id: GroupId,
        number: u64,
        result: Result<Vec<ExtentRun>, ReadError>,
    ) {
        let Some((next, part)) = self.reseal_part(id, number) else {
            return;
        };
        part.is_asked = false;
        match result {
            Ok(runs) => {
                let (mut at, mut blocks) = (next, 0);
                for run in runs {
                    let is_older = run.kind == ExtentKind::Data;
                    let take = match is_older {
                        true => run.count.min(PART_BLOCKS_MAX - blocks),
                        false => run.count,
                    };
                    let end = at + take;
                    while is_older && at < end {
                        let count = (end - at).min(RUN_BLOCKS_MAX);
                        part.todo.push_back(BlockRange::new(at, count));
                        (at, blocks) = (at + count, blocks + count);
                    }
                    at = end;
                    if take < run.count || blocks == PART_BLOCKS_MAX {
                        break;
                    }
                }
                part.through = at;
            }
            Err(error) => {
                // Nothing is known of what is behind a node that cannot be read; the next run of this
                // pass begins there all the same, so that one bad node does not stop everything.
                part.through = next + RUN_BLOCKS_MAX;
                self.reseal_failed(id, format!("the map cannot be read ({error})"));
            }
        }
        self.reseal_part_done(id);
        self.volume_progress(id);
    }

    fn reseal_part(&mut self, id: GroupId, number: u64) -> Option<(u64, &mut Part)> {
        let state = self.volumes.get_mut(&id)?.reseal.as_mut()?;
        let part = state.part.as_mut().filter(|p| p.number == number)?;
        Some((state.next, part))
    }

    fn reseal_failed(&mut self, id: GroupId, why: String) {
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        if let Some(state) = &mut volume.reseal {
            let name = &volume.name;
            tracing::error!(volume = name, why, "blocks stay under an older key");
            state.problem = Some(format!(
                "volume {name}: blocks stay under an older data key, because {why}; `esker volume scrub {name}` \
                 names damage: write these blocks anew, trim them, or restore them from a copy"
            ));
        }
    }

    /// Goes on with the part on its way.
    pub(crate) fn reseal_progress(&mut self, id: GroupId) {
        self.reseal_read_next(id);
        match self.reseal_propose_next(id) {
            None => {}
            Some(Held::Epoch) => self.open_epoch(id),
            Some(Held::Busy) => self.tell_engine(engine_event::Event::SyncSoon),
            Some(Held::Lost) => self.reseal_stop(id),
        }
        self.reseal_part_done(id);
    }

    /// Locks and reads blocks that nobody else is about to change.
    fn reseal_read_next(&mut self, id: GroupId) {
        while let Some(volume) = self.volumes.get_mut(&id) {
            let last = volume.group.as_ref().map(|g| g.last_index());
            let is_behind = last.is_some_and(|last| volume.driven < last);
            let part = volume.reseal.as_mut().and_then(|r| r.part.as_mut());
            let Some((number, range)) = part
                .as_ref()
                .and_then(|p| Some((p.number, *p.todo.front()?)))
            else {
                return;
            };
            if is_behind {
                // What was proposed must be in the store before the read is.
                self.dirty.insert(id);
                return;
            }
            if volume.locked.values().any(|r| r.overlaps(&range)) {
                return;
            }
            let lock = self.next_op;
            self.next_op += 1;
            volume.locked.insert(lock, range);
            if let Some(part) = part {
                part.todo.pop_front();
                part.reading.insert(lock, range);
            }
            let token = self.read_token(ReadFor::Reseal(id, number, lock));
            self.tell_engine(engine_event::Event::Read(ReadRequest {
                token,
                group: id,
                range,
                latest: true,
                at: None,
            }));
        }
    }

    /// Blocks came from the store: those under older keys are opened.
    pub(crate) fn reseal_read(
        &mut self,
        id: GroupId,
        (number, lock): (u64, OpId),
        result: Result<Vec<ReadPiece>, ReadError>,
    ) {
        let is_known = |(_, part): (u64, &mut Part)| part.reading.remove(&lock).is_some();
        if !self.reseal_part(id, number).is_some_and(is_known) {
            return;
        }
        let opened = result.and_then(|pieces| self.open_older(id, lock, pieces));
        let runs = opened.unwrap_or_else(|error| {
            self.reseal_failed(id, error.to_string());
            VecDeque::new()
        });
        match self.reseal_part(id, number) {
            Some((_, part)) if !runs.is_empty() => part.ready.push_back((lock, runs)),
            _ => {
                if let Some(volume) = self.volumes.get_mut(&id) {
                    volume.locked.remove(&lock);
                }
            }
        }
        self.volume_progress(id);
    }

    /// Runs of blocks under older keys, in the clear.
    fn open_older(
        &mut self,
        id: GroupId,
        lock: OpId,
        pieces: Vec<ReadPiece>,
    ) -> Result<VecDeque<(u64, Bytes)>, ReadError> {
        let volume = self.volumes.get(&id).ok_or(ReadError::UnknownGroup)?;
        let newest = (volume.id, volume.key_id);
        let mut lba = volume.locked.get(&lock).map_or(0, |range| range.start.0);
        let mut runs: VecDeque<(u64, Bytes)> = VecDeque::new();
        for piece in pieces {
            let (data, seals) = match piece {
                ReadPiece::Zeros(count) => {
                    lba += count;
                    continue;
                }
                ReadPiece::Data(_) => return Err(ReadError::Unsealed),
                ReadPiece::Sealed { data, seals, .. } => (data, seals),
            };
            let is_older = |(stamp, _): &(Stamp, [u8; TAG_BYTES])| {
                let epoch = self.engine.epoch(id, stamp.epoch());
                epoch.is_none_or(|e| (e.volume, e.key_id) != newest)
            };
            let older: Vec<bool> = seals.iter().map(is_older).collect();
            let mut at = 0;
            while at < seals.len() {
                let same = older[at..].iter().take_while(|o| **o == older[at]).count();
                if older[at] {
                    let bytes = data.slice(at * BLOCK_SIZE..(at + same) * BLOCK_SIZE);
                    let opened = self.open_blocks(id, Lba(lba), &bytes, &seals[at..at + same]);
                    self.keys.refused += u64::from(opened.is_err());
                    runs.push_back((lba, opened?));
                }
                lba += to_u64(same);
                at += same;
            }
        }
        Ok(runs)
    }

    /// Proposes what is opened; what holds it up.
    fn reseal_propose_next(&mut self, id: GroupId) -> Option<Held> {
        loop {
            let bytes_now = self.uncommitted_bytes;
            let volume = self.volumes.get_mut(&id)?;
            let serving = volume.is_serving();
            let part = volume.reseal.as_mut()?.part.as_mut()?;
            let number = part.number;
            let (lock, runs) = part.ready.front_mut()?;
            let lock = *lock;
            if !serving || !volume.locked.contains_key(&lock) {
                return Some(Held::Lost);
            }
            let Some((lba, plain)) = runs.front().cloned() else {
                part.ready.pop_front();
                volume.locked.remove(&lock);
                continue;
            };
            if crate::io::is_much(bytes_now + to_u64(plain.len())) && !volume.proposals.is_empty() {
                return Some(Held::Busy);
            }
            let count = to_u64(plain.len() / BLOCK_SIZE);
            let Some(stamp) = volume.take_stamps(count) else {
                return Some(Held::Epoch);
            };
            let key_id = volume.key_id;
            let epoch = self.engine.epoch(id, stamp.epoch());
            let epoch = epoch.filter(|e| e.key_id == key_id && e.volume == volume.id);
            let Some(mut sealer) = epoch.and_then(|epoch| self.keys.sealer(&epoch)) else {
                return Some(Held::Lost);
            };
            let (blocks, sealed) = sealer.seal(Lba(lba), stamp, &plain);
            let operation = Operation::Write {
                lba,
                stamp,
                key_id,
                blocks,
            };
            let data = Bytes::from(operation.encode(RequestId::default()));
            let placed = volume.group.as_mut()?.propose(data, vec![sealed]);
            let placed = match placed {
                Ok(placed) => placed,
                Err(ProposeError::Busy) => return Some(Held::Busy),
                Err(_) => return Some(Held::Lost),
            };
            let proposal = (placed.term, Proposal::Reseal(number));
            volume.proposals.insert(placed.index, proposal);
            volume.urgent = true;
            if let Some(part) = volume.reseal.as_mut().and_then(|r| r.part.as_mut()) {
                part.outstanding += 1;
                part.blocks += count;
                if let Some((_, runs)) = part.ready.front_mut() {
                    runs.pop_front();
                }
            }
            self.dirty.insert(id);
            self.count_uncommitted(id);
        }
    }

    /// A write of a part was applied, or is lost with a leadership.
    pub(crate) fn reseal_applied(&mut self, id: GroupId, number: u64, committed: bool) {
        let Some((_, part)) = self.reseal_part(id, number) else {
            return;
        };
        part.outstanding = part.outstanding.saturating_sub(1);
        match committed {
            true => self.reseal_part_done(id),
            false => self.reseal_stop(id),
        }
    }

    /// Answers who asked for the part when all of it is done.
    fn reseal_part_done(&mut self, id: GroupId) {
        let now = self.now;
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        let Some(state) = volume.reseal.as_mut() else {
            return;
        };
        let Some(part) = state.part.as_mut().filter(|p| p.is_idle()) else {
            return;
        };
        state.next = part.through;
        let is_end = state.next >= volume.size_bytes / BLOCK_SIZE_U64;
        if is_end && state.problem.is_some() {
            state.not_before = Some(now + RETRY_INTERVAL);
        } else if is_end {
            if !part.is_last {
                part.is_last = true;
                self.dirty.insert(id);
            }
            return self.reseal_end(id);
        }
        let Some(part) = state.part.take() else {
            return;
        };
        state.blocks += part.blocks;
        let page = ResealPage {
            volume: volume.name.clone(),
            bytes: part.blocks * BLOCK_SIZE_U64,
            ended: false,
        };
        let reply = AdminReply::Resealed(Some(page));
        self.answers.push((part.token, Ok(reply)));
    }

    /// Opens the epoch that says that all blocks are done.
    fn reseal_end(&mut self, id: GroupId) {
        let Some(volume) = self.volumes.get_mut(&id).filter(|v| v.ends_reseal()) else {
            return;
        };
        if matches!(volume.epoch, EpochState::Open { .. }) {
            volume.epoch = EpochState::None;
        }
        if volume.epoch == EpochState::None && volume.is_serving() {
            self.open_epoch(id);
        }
    }

    /// An epoch is open: perhaps the one that ends a pass.
    pub(crate) fn reseal_epoch_opened(&mut self, id: GroupId) {
        if self.engine.is_to_be_resealed(id) {
            return;
        }
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        let Some(part) = volume.reseal.take().and_then(|r| r.part) else {
            return;
        };
        tracing::info!(
            volume = volume.name,
            "all blocks are under the newest data key"
        );
        let page = ResealPage {
            volume: volume.name.clone(),
            bytes: part.blocks * BLOCK_SIZE_U64,
            ended: true,
        };
        let reply = AdminReply::Resealed(Some(page));
        self.answers.push((part.token, Ok(reply)));
    }

    /// The pass is over where it is; another one begins anew.
    pub(crate) fn reseal_stop(&mut self, id: GroupId) {
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        let Some(part) = volume.reseal.take().and_then(|r| r.part) else {
            return;
        };
        let locks = part.reading.into_keys();
        for lock in locks.chain(part.ready.into_iter().map(|(lock, _)| lock)) {
            volume.locked.remove(&lock);
        }
        let why = format!("volume {} was interrupted; it goes on", volume.name);
        self.answers
            .push((part.token, Err(AdminError::Refused(why))));
        self.dirty.insert(id);
    }
}
