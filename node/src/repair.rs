//! Repair: a block that is damaged here is asked of the other replicas, and written over.
//!
//! Whatever reads it waits meanwhile: a client's read, the edges of a write, an answer to a replica that lags, a
//! scrub. All replicas store the same bytes under the same stamp, so what comes is compared with what the map here
//! says before it is written (`esker_engine::event::RepairRequest`), and read again from the device afterwards. No key
//! is needed.
//!
//! The others are asked one after the other, whoever leads first. One of them may have applied more or less of the
//! log, or be away for now: then they are asked again, for a bounded time. When all of them say that the block is
//! damaged there, too, the read fails at once.

use crate::catchup::{Copy, CopyKind, Note, Want};
use crate::envelope::{crc_of, joined};
use crate::node::{Node, Phase, ReadFor};
use crate::status::place_of;
use crate::volume::{Action, OpId, Volume};
use bytes::Bytes;
use esker_base::{BlockRange, GroupId, Place, ReplicaId, Stamp, BLOCK_SIZE};
use esker_engine::event::{self as engine_event, ReadPiece, ReadRequest, Repair, RepairRequest};
use esker_engine::ReadError;
use std::collections::{BTreeMap, BTreeSet};

/// Ticks after which a replica that does not answer is given up for this round.
const ANSWER_TICKS: u64 = 10;
/// Ticks between two rounds.
const ROUND_TICKS: u64 = 10;
/// Ticks for which a read waits for its blocks: a node that is away may come back, and an error is for ever.
const PATIENCE_TICKS: u64 = 300;
/// Blocks of a volume that are being repaired at a time; reads of further ones fail.
const REPAIRS_MAX: usize = 1024;
/// Blocks being read for other replicas at a time.
const WANTED_MAX: usize = 64;

/// A block of a volume, or of a snapshot of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Spot {
    lba: u64,
    /// Of an entry that is not applied, if there is one.
    latest: bool,
    /// The snapshot's cut.
    at: Option<Stamp>,
}

/// A read that waits for a block.
#[derive(Debug)]
struct Waiter {
    purpose: ReadFor,
    request: ReadRequest,
    error: ReadError,
    patience: Patience,
}

/// How long a read has waited already.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Since which tick.
    since: u64,
    /// Blocks that were repaired for it.
    repaired: u64,
    /// The last round brought nothing.
    in_vain: bool,
}

/// A block that is being repaired.
#[derive(Debug)]
pub(crate) struct Repairing {
    waiters: Vec<Waiter>,
    /// Who was asked last, and when.
    asked: Option<(Place, u64)>,
    /// Who was asked in this round, or need not be.
    tried: BTreeSet<ReplicaId>,
    /// Replicas where it is damaged, too.
    damaged: BTreeSet<ReplicaId>,
    /// From which tick on the next round begins.
    from: u64,
    /// What came is being written.
    is_writing: bool,
}

/// Reads of the engine that can be repaired and repeated: what was asked, and for how long.
pub(crate) type Repeatable = BTreeMap<u64, (ReadRequest, Option<Patience>)>;

/// Blocks that other replicas want, and who.
pub(crate) type Wanted = BTreeMap<u64, (Place, Want)>;

/// The block that a read failed at, if another replica may have it.
fn repairable(error: &ReadError) -> Option<u64> {
    match error {
        ReadError::Damaged(lba) | ReadError::Disk { lba, .. } => Some(lba.0),
        _ => None,
    }
}

fn is_repeatable(purpose: ReadFor) -> bool {
    matches!(
        purpose,
        ReadFor::Data(..)
            | ReadFor::Head(_)
            | ReadFor::Tail(_)
            | ReadFor::Harvest(..)
            | ReadFor::Check(..)
    )
}

impl Node {
    /// Asks the engine for blocks; what is damaged of them is repaired where the volume spans nodes.
    pub(crate) fn read_blocks(&mut self, purpose: ReadFor, request: ReadRequest) {
        self.read_patiently(purpose, request, None);
    }

    fn read_patiently(&mut self, purpose: ReadFor, request: ReadRequest, so_far: Option<Patience>) {
        let token = self.read_token(purpose);
        let request = ReadRequest { token, ..request };
        let spans = self.volumes.get(&request.group).is_some_and(|v| v.spans);
        if spans && is_repeatable(purpose) {
            self.repeatable.insert(token, (request.clone(), so_far));
        }
        self.tell_engine(match purpose {
            ReadFor::Check(..) | ReadFor::Wanted => engine_event::Event::ReadStored(request),
            _ => engine_event::Event::Read(request),
        });
    }

    /// A read failed: true when it waits for other replicas now.
    pub(crate) fn waits_for_repair(
        &mut self,
        purpose: ReadFor,
        asked: &(ReadRequest, Option<Patience>),
        error: &ReadError,
    ) -> bool {
        let (request, patience) = asked;
        let Some(lba) = repairable(error) else {
            return false;
        };
        let (id, ticks) = (request.group, self.ticks);
        let Some(volume) = self.volumes.get_mut(&id) else {
            return false;
        };
        let patience = patience.unwrap_or(Patience {
            since: ticks,
            repaired: 0,
            in_vain: false,
        });
        let is_over = ticks > patience.since + PATIENCE_TICKS
            || patience.repaired > 2 * request.range.count + 16
            || volume.deleting
            || volume.group.is_none();
        let spot = Spot {
            lba,
            latest: request.latest,
            at: request.at,
        };
        let is_known = volume.repairs.contains_key(&spot);
        if is_over || (!is_known && volume.repairs.len() >= REPAIRS_MAX) {
            return false;
        }
        if !is_known {
            let name = &volume.name;
            tracing::warn!(volume = name, lba, %error, "a block is asked of other replicas");
        }
        let repairing = volume.repairs.entry(spot).or_insert_with(|| Repairing {
            waiters: Vec::new(),
            asked: None,
            tried: BTreeSet::new(),
            damaged: BTreeSet::new(),
            from: ticks + if patience.in_vain { ROUND_TICKS } else { 0 },
            is_writing: false,
        });
        repairing.waiters.push(Waiter {
            purpose,
            request: request.clone(),
            error: error.clone(),
            patience,
        });
        self.repair_next(id, spot);
        self.note_ticking(id);
        true
    }

    /// Asks the next replica, if none is being asked.
    fn repair_next(&mut self, id: GroupId, spot: Spot) {
        let others = self.others_of(id);
        let view = self.engine.group(id);
        let members = view.map_or(0, |view| {
            view.meta.membership.voters.len() + view.meta.membership.learners.len()
        });
        let ticks = self.ticks;
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        let Some(repairing) = volume.repairs.get_mut(&spot) else {
            return;
        };
        if repairing.is_writing || repairing.asked.is_some() || ticks < repairing.from {
            return;
        }
        let next = others.iter().find(|(r, _)| !repairing.tried.contains(r));
        if let Some((replica, place)) = next.copied() {
            repairing.tried.insert(replica);
            repairing.asked = Some((place, ticks));
            let want = Want {
                group: id.0,
                lba: spot.lba,
                latest: spot.latest,
                at: spot.at.map(|cut| cut.0),
            };
            return self.send_catch_up(place, Note::Want(want), Vec::new());
        }
        // Nobody has it, or not yet. What is here may be another version by now.
        let all_are_asked = others.len() + 1 >= members;
        let hopeless = all_are_asked && others.iter().all(|(r, _)| repairing.damaged.contains(r));
        self.repair_over(id, spot, hopeless, 0);
    }

    /// A round is over, or the block is written: whoever waits reads anew.
    fn repair_over(&mut self, id: GroupId, spot: Spot, is_hopeless: bool, repaired: u64) {
        let volume = self.volumes.get_mut(&id);
        let Some(over) = volume.and_then(|v| v.repairs.remove(&spot)) else {
            return;
        };
        for waiter in over.waiters {
            let Waiter {
                purpose,
                request,
                error,
                mut patience,
            } = waiter;
            if is_hopeless {
                self.read_over(purpose, Err(error));
                continue;
            }
            patience.repaired += repaired;
            patience.in_vain = repaired == 0;
            if repaired > 0 {
                patience.since = self.ticks;
            }
            self.read_patiently(purpose, request, Some(patience));
        }
        self.note_ticking(id);
    }

    /// The other members, whoever leads first, and where they are.
    fn others_of(&self, id: GroupId) -> Vec<(ReplicaId, Place)> {
        let (Some(view), Some(volume)) = (self.engine.group(id), self.volumes.get(&id)) else {
            return Vec::new();
        };
        let leader = volume.group.as_ref().and_then(|group| group.leader());
        let members = &view.meta.membership;
        let others = members.voters.iter().chain(&members.learners);
        let others = others.filter(|r| **r != view.meta.replica);
        let mut others: Vec<_> = others
            .filter_map(|r| Some((*r, self.place_of(*r)?)))
            .collect();
        others.sort_by_key(|(replica, _)| (Some(*replica) != leader, *replica));
        others.dedup();
        others
    }

    pub(crate) fn repair_tick(&mut self, id: GroupId) {
        let ticks = self.ticks;
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        let mut due = Vec::new();
        for (spot, repairing) in &mut volume.repairs {
            let is_late = |(_, at): (Place, u64)| ticks >= at + ANSWER_TICKS;
            if repairing.asked.is_some_and(is_late) {
                repairing.asked = None;
            }
            if repairing.asked.is_none() && !repairing.is_writing {
                due.push(*spot);
            }
        }
        for spot in due {
            self.repair_next(id, spot);
        }
    }

    /// Nothing can be written here any more, or nobody can be asked: what waits fails.
    pub(crate) fn repairs_stop(&mut self, id: GroupId) {
        let volume = self.volumes.get(&id);
        let spots: Vec<Spot> = volume.map_or(Vec::new(), |v| v.repairs.keys().copied().collect());
        for spot in spots {
            self.repair_over(id, spot, true, 0);
        }
    }

    /// Another replica wants a block.
    pub(crate) fn wanted(&mut self, from: Place, want: Want) {
        let id = GroupId(want.group);
        let volume = self.volumes.get(&id);
        let is_here = volume.is_some_and(|v| v.spans && !v.deleting);
        if !is_here || self.phase != Phase::Serving || self.wanted.len() >= WANTED_MAX {
            return self.give_copy(from, &want, CopyKind::Later, None);
        }
        let request = ReadRequest {
            token: 0,
            group: id,
            range: BlockRange::new(want.lba, 1),
            latest: want.latest,
            at: want.at.map(Stamp),
        };
        self.wanted.insert(self.next_read, (from, want));
        self.read_blocks(ReadFor::Wanted, request);
    }

    /// What another replica wants was read.
    pub(crate) fn wanted_read(&mut self, token: u64, result: Result<Vec<ReadPiece>, ReadError>) {
        let Some((from, want)) = self.wanted.remove(&token) else {
            return;
        };
        let kind = match &result {
            Err(ReadError::MapDamaged(_)) => CopyKind::Damaged,
            Err(error) if repairable(error).is_some() => CopyKind::Damaged,
            _ => CopyKind::Later, // there is none, or it has another version
        };
        match result.as_deref() {
            Ok([ReadPiece::Sealed { data, seals, .. }]) if data.len() == BLOCK_SIZE => {
                let found = seals
                    .first()
                    .map(|(stamp, tag)| (*stamp, *tag, data.clone()));
                self.give_copy(from, &want, CopyKind::Here, found);
            }
            _ => self.give_copy(from, &want, kind, None),
        }
    }

    fn give_copy(
        &mut self,
        to: Place,
        want: &Want,
        kind: CopyKind,
        found: Option<(Stamp, [u8; 12], Bytes)>,
    ) {
        let mut copy = Copy {
            group: want.group,
            lba: want.lba,
            latest: want.latest,
            at: want.at,
            kind: kind.into(),
            ..Copy::default()
        };
        let mut payload = Vec::new();
        if let Some((stamp, tag, data)) = found {
            copy.stamp = stamp.0;
            copy.tag = Bytes::copy_from_slice(&tag);
            payload.push(data);
            copy.crc = crc_of(&payload);
        }
        self.send_catch_up(to, Note::Copy(copy), payload);
    }

    /// Another replica gives a block, or says that it cannot.
    pub(crate) fn copy_came(&mut self, from: Place, copy: &Copy, payload: Vec<Bytes>) {
        let id = GroupId(copy.group);
        let spot = Spot {
            lba: copy.lba,
            latest: copy.latest,
            at: copy.at.map(Stamp),
        };
        let others = self.others_of(id);
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        let asked = volume.repairs.get_mut(&spot);
        let Some(repairing) = asked.filter(|r| r.asked.is_some_and(|(place, _)| place == from))
        else {
            return; // it came too late
        };
        repairing.asked = None;
        let is_whole = crc_of(&payload) == copy.crc;
        let tag = <[u8; 12]>::try_from(&copy.tag[..]);
        match (CopyKind::from_i32(copy.kind), tag) {
            (Some(CopyKind::Here), Ok(tag)) if is_whole => {
                repairing.is_writing = true;
                let token = self.read_token(ReadFor::Repair(id, spot));
                self.tell_engine(engine_event::Event::Repair(RepairRequest {
                    token,
                    group: id,
                    lba: spot.lba,
                    latest: spot.latest,
                    at: spot.at,
                    stamp: Stamp(copy.stamp),
                    tag,
                    data: joined(payload),
                }));
            }
            (Some(CopyKind::Damaged), _) => {
                let there = others.iter().filter(|(_, place)| *place == from);
                repairing.damaged.extend(there.map(|(replica, _)| *replica));
                self.repair_next(id, spot);
            }
            _ => self.repair_next(id, spot),
        }
    }

    /// The engine has written a block, or has not.
    pub(crate) fn repair_done(&mut self, token: u64, result: Result<Repair, ReadError>) {
        let Some(ReadFor::Repair(id, spot)) = self.reads.remove(&token) else {
            return;
        };
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        let Some(repairing) = volume.repairs.get_mut(&spot) else {
            return;
        };
        repairing.is_writing = false;
        match result {
            Ok(Repair::Done) => {
                tracing::info!(volume = volume.name, lba = spot.lba, "a block is repaired");
                self.repair_over(id, spot, false, 1);
            }
            Ok(Repair::Other) => self.repair_next(id, spot),
            Err(error) => {
                let volume = volume.name.as_str();
                tracing::error!(volume, lba = spot.lba, %error, "a block cannot be repaired");
                self.repair_over(id, spot, true, 0);
            }
        }
    }

    /// A read of a client cannot be carried out here: whoever leads does, if that is another one.
    pub(crate) fn read_elsewhere(&mut self, id: OpId, error: &ReadError) -> bool {
        let Some(op) = self.ops.get_mut(&id) else {
            return false;
        };
        // A replica that has caught up may be past a key that is still on its way to it.
        let lacks_key = matches!(error, ReadError::NoKey(_));
        let is_local = place_of(error, 0).is_some();
        let volume = self.volumes.get(&op.group);
        let sends_back = |v: &Volume| v.spans && (v.group.is_none() || lacks_key && !v.leads());
        if op.caller.is_some() && volume.is_some_and(sends_back) {
            self.reroute(id);
            return true;
        }
        let is_read = matches!(op.action, Action::Read) && op.caller.is_none();
        let leads = volume.is_none_or(|v| !v.spans || v.is_serving() || v.leads());
        if !is_local || !is_read || op.is_forwarded || leads {
            return false;
        }
        op.is_forwarded = true;
        self.reroute(id);
        true
    }
}

impl Volume {
    /// Whether this replica leads, serving or not.
    fn leads(&self) -> bool {
        let role = self.group.as_ref().map(esker_replication::Group::role);
        role == Some(esker_replication::Role::Leader)
    }
}
