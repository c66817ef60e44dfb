//! Client requests: reads, writes and flushes on their way through a volume's group and the store.

use crate::event::Effect;
use crate::node::{Node, ReadFor};
use crate::sealing::Sealer;
use crate::status::place_of;
use crate::volume::{Action, EpochState, Op, OpId, Proposal, Volume};
use bytes::Bytes;
use esker_base::checksum::crc32;
use esker_base::num::{to_u64, to_usize};
use esker_base::BLOCK_SIZE_U64;
use esker_base::{
    limits, AlignedBuf, BlockRange, ConnId, GroupId, Lba, RaftIndex, SessionId, Stamp, BLOCK_SIZE,
};
use esker_engine::event::{self as engine_event, ReadPiece, ReadRequest};
use esker_engine::format::operation::{BlockInfo, Operation, RequestId};
use esker_engine::{Known, ReadError, Sabotage};
use esker_nbd::{Reply, RequestError};
use esker_replication::ProposeError;

/// Bytes of all volumes proposed and not committed at which further writes wait.
const UNCOMMITTED_BYTES_MAX: u64 = 48 << 20;

/// Whether so many bytes proposed and not committed are too many.
pub(crate) fn is_much(uncommitted_bytes: u64) -> bool {
    uncommitted_bytes > UNCOMMITTED_BYTES_MAX
}

/// Why a request could not be proposed now.
enum Held {
    /// No epoch is open.
    Epoch,
    /// Too much is on its way.
    Busy,
    /// It will never be.
    Failed(RequestError),
}

/// A part of what a request writes, in whole blocks.
enum Part {
    Data(u64, Bytes),
    Hollow(BlockRange, bool),
}

impl Node {
    /// Takes a request on.
    pub(crate) fn submit(&mut self, op: Op) {
        let id = self.next_op;
        self.next_op += 1;
        let group = op.group;
        self.op_bytes += op.bytes_counted;
        let refused = self.refusal(&op);
        self.request_begins(id, &op);
        if op.mutates() {
            self.rewind_soon(group);
        }
        self.ops.insert(id, op);
        match refused {
            None => self.admit(id),
            Some(RequestError::NoSpace) if self.park(id) => {}
            Some(error) => self.fail_op(id, error),
        }
    }

    /// Lets a request in that is not refused.
    pub(crate) fn admit(&mut self, id: OpId) {
        let Some(op) = self.ops.get(&id) else {
            return;
        };
        let group = op.group;
        let takes_turns = op.mutates() || op.reads();
        let (conn, bytes) = (op.conn, op.range().bytes());
        if self.hold_back(id, group) {
            return;
        }
        let Some(op) = self.ops.get(&id) else {
            return;
        };
        let moves = matches!(op.action, Action::Read | Action::Write(_));
        let volume = self.volumes.get(&group);
        if volume.is_some_and(|v| v.spans) {
            // What waits for other nodes must not keep the engine from everybody else: replicated
            // volumes have limits of their own.
            return self.route(id);
        }
        if !takes_turns {
            return self.begin_flush(id, group);
        }
        let bytes = if moves { to_usize(bytes) } else { 0 };
        self.turns.push(self.now, conn, id, bytes);
    }

    /// Whether what a write brings finds room. If not, a checkpoint is due that may make some.
    pub(crate) fn fits(&self, op: &Op) -> bool {
        self.engine.has_room_for(self.accepted_with(op))
    }

    /// The same, as a question.
    pub(crate) fn would_fit(&self, op: &Op) -> bool {
        self.engine.finds_room(self.accepted_with(op))
    }

    /// What was accepted and is not in the log yet needs its room, too.
    fn accepted_with(&self, op: &Op) -> u64 {
        op.range().bytes() + to_u64(self.op_bytes)
    }

    /// Whether a request that is to enter here finds no room.
    pub(crate) fn no_room_for(&self, id: OpId) -> bool {
        let op = self.ops.get(&id);
        op.is_some_and(|op| !self.has_room(op))
    }

    fn has_room(&self, op: &Op) -> bool {
        match &op.action {
            Action::Write(_) => self.fits(op),
            Action::Trim | Action::Zeroes { .. } => self.engine.has_room_for_metadata(),
            Action::Read | Action::Status(_) | Action::Flush => true,
        }
    }

    fn refusal(&self, op: &Op) -> Option<RequestError> {
        let spans = |v: &Volume| v.spans && !v.deleting;
        if self.volumes.get(&op.group).is_some_and(spans) {
            return None; // whoever leads knows
        }
        let volume = self.volumes.get(&op.group).filter(|v| v.is_serving());
        let changes = !op.reads() && op.at.is_none();
        if volume.is_none() || (self.fenced.is_some() && changes) {
            return Some(RequestError::Io);
        }
        (!self.has_room(op)).then_some(RequestError::NoSpace)
    }

    fn begin_flush(&mut self, id: OpId, group: GroupId) {
        let Some(volume) = self.volumes.get_mut(&group) else {
            return;
        };
        // A flush covers what was answered before it came: what is applied, and early answers, which
        // were given for entries on the device. What is still on its way there was not answered, and
        // the flush does not wait for it.
        let answered = volume.answered();
        // A snapshot is durable when it is there.
        let is_snapshot = self.ops.get(&id).is_some_and(|op| op.at.is_some());
        if volume.applied >= answered || is_snapshot {
            return self.finish_op(id, Ok(Reply::Done));
        }
        volume.flushes.push((id, answered));
        self.flush_after_drive.insert(group);
    }

    pub(crate) fn begin_read(&mut self, id: OpId, group: GroupId) {
        let Some(volume) = self.volumes.get_mut(&group) else {
            return;
        };
        if volume.is_single() {
            // Proposals of this step are in the store before the read is.
            if let Some(op) = self.ops.get_mut(&id) {
                let piece = op.pieces.len();
                op.pieces.push(Vec::new());
                self.reads_after_drive.push((id, piece, op.granted));
            }
            self.dirty.insert(group);
            return;
        }
        self.check_read(id, group);
    }

    /// The group vouches that this is the leader: a read may be served at `index`.
    pub(crate) fn read_allowed(&mut self, group: GroupId, context: u64, index: RaftIndex) {
        let Some(volume) = self.volumes.get_mut(&group) else {
            return;
        };
        let reads = volume.route.reads_allowed(context);
        volume
            .read_waits
            .extend(reads.into_iter().map(|read| (read, index)));
        self.dirty.insert(group);
    }

    /// Hands reads to the engine that waited for the group to be driven, and asks for the sync that
    /// flushes wait for.
    pub(crate) fn release_after_drive(&mut self) {
        for (id, piece, through) in std::mem::take(&mut self.reads_after_drive) {
            self.read_data(id, piece, through, true);
        }
        if !self.flush_after_drive.is_empty() {
            self.flush_after_drive.clear();
            self.tell_engine(engine_event::Event::SyncWritten);
        }
    }

    /// Asks the engine for the next piece of a read, `through` this of its bytes.
    fn read_data(&mut self, id: OpId, piece: usize, through: u64, latest: bool) {
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        if matches!(op.action, Action::Status(_)) {
            return self.tell_status(id, latest);
        }
        let (group, at, whole) = (op.group, op.at, op.range());
        let from = whole.start.0 + op.taken / BLOCK_SIZE_U64;
        let range = BlockRange::new(from, (through - op.taken) / BLOCK_SIZE_U64);
        op.taken = through;
        op.outstanding += 1;
        op.proposed = op.taken == whole.bytes();
        let request = ReadRequest {
            token: 0,
            group,
            range,
            latest,
            at,
        };
        self.read_blocks(ReadFor::Data(id, piece), request);
    }

    /// A token for a read of the engine.
    pub(crate) fn read_token(&mut self, purpose: ReadFor) -> u64 {
        let token = self.next_read;
        self.next_read += 1;
        self.reads.insert(token, purpose);
        token
    }

    /// A read of the engine ended.
    pub(crate) fn read_done(&mut self, token: u64, result: Result<Vec<ReadPiece>, ReadError>) {
        let Some(purpose) = self.reads.remove(&token) else {
            return;
        };
        let asked = self.repeatable.remove(&token);
        let result = match (result, purpose) {
            (Ok(pieces), ReadFor::Data(id, _) | ReadFor::Head(id) | ReadFor::Tail(id)) => {
                match self.ops.get(&id).map(|op| op.group) {
                    Some(group) => self.open_read(group, pieces),
                    None => Ok(pieces),
                }
            }
            (result, ReadFor::Wanted) => return self.wanted_read(token, result),
            (result, _) => result,
        };
        match (&asked, &result) {
            (Some(asked), Err(error)) if self.waits_for_repair(purpose, asked, error) => {}
            _ => self.read_over(purpose, result),
        }
    }

    /// A read of the engine ended, and nothing more can be done for it.
    pub(crate) fn read_over(
        &mut self,
        purpose: ReadFor,
        result: Result<Vec<ReadPiece>, ReadError>,
    ) {
        if let Err(error) = &result {
            let volume = self.read_of(purpose);
            tracing::error!(volume, %error, ?purpose, "read failed");
        }
        match purpose {
            ReadFor::Data(id, piece) => self.piece_read(id, piece, result),
            ReadFor::Head(id) | ReadFor::Tail(id) => {
                let Some(op) = self.ops.get_mut(&id) else {
                    return;
                };
                op.edges_awaited -= 1;
                let is_last = op.edges_awaited == 0;
                match result.map(flatten) {
                    Ok(block) if purpose == ReadFor::Head(id) => op.head = Some(block),
                    Ok(block) => op.tail = Some(block),
                    Err(error) => {
                        op.failed = Some(place_of(&error, op.offset));
                        self.without_key(&error);
                    }
                }
                if is_last {
                    self.edges_read(id);
                }
            }
            ReadFor::Harvest(token, n) => self.harvest_read(token, n, result),
            ReadFor::Reseal(group, part, lock) => self.reseal_read(group, (part, lock), result),
            ReadFor::Check(scrub, place) => self.scrub_checked(scrub, place, result.is_ok()),
            ReadFor::Payload { .. }
            | ReadFor::Status(_)
            | ReadFor::Changes(_)
            | ReadFor::Wanted
            | ReadFor::Repair(..)
            | ReadFor::ResealFind(..) => {}
        }
    }

    /// The volume that a read is of, for the log.
    fn read_of(&self, purpose: ReadFor) -> &str {
        let group = match purpose {
            ReadFor::Data(id, _)
            | ReadFor::Head(id)
            | ReadFor::Tail(id)
            | ReadFor::Status(id)
            | ReadFor::Changes(id) => self.ops.get(&id).map(|op| op.group),
            ReadFor::Harvest(token, _) => self.harvests.get(&token).map(|s| s.group()),
            ReadFor::Check(..) | ReadFor::Wanted => None,
            ReadFor::Payload { group, .. }
            | ReadFor::Repair(group, _)
            | ReadFor::ResealFind(group, _)
            | ReadFor::Reseal(group, ..) => Some(group),
        };
        let volume = group.and_then(|group| self.volumes.get(&group));
        volume.map_or("", |v| v.name.as_str())
    }

    /// The old contents of a request's edges are here: it can be proposed, before any other that
    /// waited for its blocks.
    fn edges_read(&mut self, id: OpId) {
        let Some(op) = self.ops.get(&id) else { return };
        let (group, failed) = (op.group, op.failed);
        let Some(volume) = self.volumes.get_mut(&group) else {
            return;
        };
        volume.locked.remove(&id);
        if let Some(at) = failed {
            self.fail_op_at(id, RequestError::Io, at);
        } else {
            volume.waiting.push_front(id);
        }
        self.volume_progress(group);
    }

    /// Goes on with whatever waits in a volume.
    pub(crate) fn volume_progress(&mut self, id: GroupId) {
        self.answer_applied(id);
        self.growth_progress(id);
        self.ask_for_reads(id);
        self.send_home(id);
        self.attach_waiting(id);
        self.propose_asks(id);
        self.rekey_progress(id);
        self.reseal_progress(id);
        let mut passed: Vec<BlockRange> = Vec::new();
        let mut at = 0;
        while let Some(volume) = self.volumes.get_mut(&id) {
            let Some(op_id) = volume.waiting.get(at).copied() else {
                break;
            };
            let Some(op) = self.ops.get(&op_id) else {
                volume.waiting.remove(at);
                continue;
            };
            let range = op.range();
            let locked = volume
                .locked
                .values()
                .chain(&passed)
                .any(|r| r.overlaps(&range));
            if locked {
                passed.push(range);
                at += 1;
                continue;
            }
            let edges = needs_edges(op);
            if volume.is_rolling_back {
                break;
            }
            if edges
                && volume
                    .group
                    .as_ref()
                    .is_some_and(|g| volume.driven < g.last_index())
            {
                // Its edges must be read after what was proposed before it.
                self.dirty.insert(id);
                break;
            }
            if edges {
                volume.waiting.remove(at);
                volume.locked.insert(op_id, range);
                self.read_edges(op_id);
                continue;
            }
            match self.propose_op(op_id) {
                Ok(()) => {
                    if let Some(volume) = self.volumes.get_mut(&id) {
                        volume.waiting.remove(at);
                    }
                }
                Err(Held::Epoch | Held::Busy) => break,
                Err(Held::Failed(error)) => {
                    let volume = self.volumes.get_mut(&id);
                    let spans = volume.is_some_and(|v| {
                        v.waiting.remove(at);
                        v.spans
                    });
                    // Its leadership went while the edges were read: another one carries it out.
                    match spans && error == RequestError::Io {
                        true => self.reroute(op_id),
                        false => self.fail_op(op_id, error),
                    }
                }
            }
        }
    }

    /// Flushes and reads that waited for an index.
    fn answer_applied(&mut self, group: GroupId) {
        let Some(volume) = self.volumes.get_mut(&group) else {
            return;
        };
        let applied = volume.applied;
        if !volume.flushes.is_empty() {
            let (done, rest) = volume.flushes.drain(..).partition(|(_, i)| *i <= applied);
            volume.flushes = rest;
            let done: Vec<(OpId, RaftIndex)> = done;
            for (op, _) in done {
                self.finish_op(op, Ok(Reply::Done));
            }
        }
        let Some(volume) = self.volumes.get_mut(&group) else {
            return;
        };
        if !volume.read_waits.is_empty() {
            for id in volume.take_read_waits(applied) {
                if let Some(conn) = self.attaches(group, id) {
                    self.attach_when(conn, group, true);
                    continue;
                }
                // It may have been allowed twice: by a group that was asked again under another leader.
                let op = self.ops.get_mut(&id);
                let Some(op) = op.filter(|op| op.outstanding == 0 && op.taken == 0) else {
                    continue;
                };
                op.pieces = vec![Vec::new()];
                let through = op.granted;
                self.read_data(id, 0, through, false);
            }
        }
    }

    fn read_edges(&mut self, id: OpId) {
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        let (group, range) = (op.group, op.range());
        let (head, tail) = (op.head_is_partial(), op.tail_is_partial());
        op.edges_awaited = usize::from(head) + usize::from(tail);
        let mut ask = |purpose, lba| {
            let request = ReadRequest {
                token: 0,
                group,
                range: BlockRange::new(lba, 1),
                latest: true,
                at: None,
            };
            self.read_blocks(purpose, request);
        };
        if head {
            ask(ReadFor::Head(id), range.start.0);
        }
        if tail {
            ask(ReadFor::Tail(id), range.end() - 1);
        }
    }

    /// Proposes all entries of a request, or none.
    fn propose_op(&mut self, id: OpId) -> Result<(), Held> {
        let Some(op) = self.ops.get(&id) else {
            return Ok(());
        };
        let (group_id, early) = (op.group, op.early);
        let request = self.request_of(id, op);
        let Some(volume) = self.volumes.get_mut(&group_id) else {
            return Err(Held::Failed(RequestError::Io));
        };
        if !volume.is_serving() {
            return Err(Held::Failed(RequestError::Io));
        }
        if op.attachment != volume.attachment.number {
            return Err(Held::Failed(RequestError::Shutdown)); // its session has been fenced
        }
        if volume.is_changing_hands() || volume.held(self.now).is_some() {
            return Err(Held::Busy);
        }
        let first_entry = op.entries;
        let parts = parts_of(op).into_iter().enumerate();
        let parts = parts.map(|(at, part)| {
            let at = u16::try_from(at).unwrap_or(u16::MAX);
            let part_of = RequestId {
                part: first_entry.saturating_add(at),
                ..request
            };
            (part_of, part)
        });
        // What was asked again may be done in part.
        let engine = &self.engine;
        let known = |r: &RequestId| volume.spans && engine.knows_request(group_id, *r) != Known::No;
        let parts: Vec<(RequestId, Part)> = parts.filter(|(r, _)| !known(r)).collect();
        let blocks: u64 = parts.iter().map(|(_, part)| part_stamps(part)).sum();
        if volume.group.is_none() {
            return Err(Held::Failed(RequestError::Io));
        }
        let bytes = op.granted - op.taken;
        if is_much(self.uncommitted_bytes + bytes) && !volume.proposals.is_empty() {
            self.tell_engine(engine_event::Event::SyncSoon);
            return Err(Held::Busy);
        }
        let Some(first) = volume.take_stamps(blocks) else {
            self.open_epoch(group_id);
            return Err(Held::Epoch);
        };
        let mut stamp = first;
        let mut sealer = match volume.key_id {
            0 => None,
            key_id => {
                let epoch = self.engine.epoch(group_id, first.epoch());
                let epoch = epoch.filter(|e| e.key_id == key_id && e.volume == volume.id);
                let Some(epoch) = epoch else {
                    return Err(Held::Failed(RequestError::Io));
                };
                let Some(sealer) = self.keys.sealer(&epoch) else {
                    return Err(Held::Failed(RequestError::Io));
                };
                Some((sealer, key_id))
            }
        };
        let mut outstanding = 0u16;
        for (request, part) in parts {
            let stamps = part_stamps(&part);
            let (data, payload) = encode_part(part, stamp, request, sealer.as_mut());
            stamp.0 += stamps;
            let gives_back = self.config.engine.sabotage == Sabotage::ReturnStamps
                && first.counter().is_multiple_of(7)
                && volume.given_back != Some(first);
            let placed = match volume.group.as_mut() {
                Some(_) if gives_back && outstanding == 0 => Some(Err(ProposeError::Busy)),
                group => group.map(|g| g.propose(data, payload)),
            };
            match placed {
                Some(Ok(placed)) => {
                    volume
                        .proposals
                        .insert(placed.index, (placed.term, Proposal::Op(id)));
                    outstanding += 1;
                }
                Some(Err(ProposeError::Busy)) if outstanding == 0 => {
                    if gives_back {
                        volume.return_stamps(first, blocks);
                        self.dirty.insert(group_id);
                    }
                    self.tell_engine(engine_event::Event::SyncSoon);
                    return Err(Held::Busy);
                }
                // Entries already proposed may still be applied; the client is told of an error,
                // which says nothing about what was written.
                _ => return Err(Held::Failed(RequestError::Io)),
            }
        }
        volume.urgent |= !early;
        let Some(op) = self.ops.get_mut(&id) else {
            return Ok(());
        };
        op.entries = first_entry.saturating_add(outstanding);
        op.outstanding += usize::from(outstanding);
        op.taken = op.granted;
        op.proposed = op.taken == op.range().bytes();
        (op.edges_proposed, op.is_queued) = (true, false);
        let is_done = op.proposed && op.outstanding == 0;
        self.dirty.insert(group_id);
        self.count_uncommitted(group_id);
        if is_done {
            self.finish_op(id, Ok(Reply::Done));
        }
        Ok(())
    }

    /// Opens an epoch, unless one is being opened.
    pub(crate) fn open_epoch(&mut self, id: GroupId) {
        let (nonce, high, low) = (self.random(), self.random(), self.random());
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        if volume.epoch != EpochState::None {
            return;
        }
        let (key_id, resealed) = (volume.next_key(), volume.ends_reseal());
        let Some(group) = volume.group.as_mut() else {
            return;
        };
        let salt = u128::from(high) << 64 | u128::from(low);
        let operation = Operation::OpenEpoch {
            salt,
            key_id,
            nonce,
            resealed,
        };
        let data = Bytes::from(operation.encode(RequestId::default()));
        if let Ok(placed) = group.propose(data, Vec::new()) {
            volume.epoch = EpochState::Opening {
                nonce,
                term: placed.term,
            };
            volume.urgent = true;
            self.dirty.insert(id);
        }
    }

    /// Entries of a group are on the device: writes that need no more are answered.
    pub(crate) fn written(&mut self, id: GroupId, through: RaftIndex) {
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        let from = RaftIndex(volume.written.0 + 1);
        if through < from {
            return;
        }
        volume.written = through;
        let written: Vec<OpId> = volume
            .proposals
            .range(from..=through)
            .filter_map(|(_, (_, proposal))| match proposal {
                Proposal::Op(op) => Some(*op),
                _ => None,
            })
            .collect();
        for op in written {
            if self.ops.get(&op).is_some_and(|op| op.early) {
                self.part_done(op);
            }
        }
    }

    /// An entry was applied, or another leader's took its place.
    pub(crate) fn entry_done(&mut self, id: OpId, committed: bool) {
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        if !committed {
            let spans = self.volumes.get(&op.group).is_some_and(|v| v.spans);
            return match spans {
                true => self.reroute(id),
                false => self.fail_op(id, RequestError::Io),
            };
        }
        if !op.early {
            self.part_done(id);
        }
    }

    fn part_done(&mut self, id: OpId) {
        self.part_left(id);
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        op.outstanding = op.outstanding.saturating_sub(1);
        if op.outstanding == 0 && op.proposed {
            self.finish_op(id, Ok(Reply::Done));
        }
    }

    /// Answers a request with an error.
    pub(crate) fn fail_op(&mut self, id: OpId, error: RequestError) {
        self.finish_op(id, Err(error));
    }

    /// Reads and flushes of a volume whose leadership is gone.
    pub(crate) fn fail_reads_and_flushes(&mut self, id: GroupId) {
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        let mut gone: Vec<OpId> = volume.flushes.drain(..).map(|(op, _)| op).collect();
        gone.extend(volume.read_waits.drain(..).map(|(op, _)| op));
        gone.extend(
            self.ops
                .iter()
                .filter(|(_, op)| op.group == id && op.reads())
                .map(|(id, _)| *id),
        );
        for op in gone {
            self.fail_op(op, RequestError::Io);
        }
    }

    /// The store takes no more writes: requests that wait for it fail, reads go on.
    pub(crate) fn store_fenced(&mut self, message: String, effects: &mut Vec<Effect>) {
        tracing::error!(message, "the store is fenced");
        effects.push(Effect::Fenced {
            message: message.clone(),
        });
        self.fenced = Some(message.clone());
        let alone = |op: &Op| self.volumes.get(&op.group).is_none_or(|v| !v.spans);
        let stuck = self.ops.iter().filter(|(_, op)| !op.reads() && alone(op));
        let stuck: Vec<OpId> = stuck.map(|(id, _)| *id).collect();
        for op in stuck {
            self.fail_op(op, RequestError::Io);
        }
        self.fail_admin(&message, effects);
        let (mut left, mut never) = (Vec::new(), Vec::new());
        for id in self.volumes.keys().copied().collect::<Vec<_>>() {
            self.rekey_stop(id);
            self.growth_stop(id, "the store is fenced");
        }
        for (id, volume) in &mut self.volumes {
            volume.waiting.clear();
            volume.flushes.clear();
            volume.locked.clear();
            volume.is_rolling_back = false;
            // A replica that cannot write takes no further part, so that another can lead.
            if volume.spans {
                volume.group = None;
                volume.trouble = Some(format!("volume {}: the store is fenced", volume.name));
                left.push(*id);
                continue;
            }
            // Nothing is applied any more.
            never.extend(volume.read_waits.drain(..).map(|(op, _)| op));
        }
        for op in never {
            self.fail_op(op, RequestError::Io);
        }
        self.ticking.clear();
        // Others carry out what clients of this node ask for.
        for id in left {
            self.reroute_all(id);
            self.refuse_attaching(id);
            self.repairs_stop(id);
        }
    }

    /// Answers a request with an error whose place may be known, as a byte of the volume.
    pub(crate) fn fail_op_at(&mut self, id: OpId, error: RequestError, at: Option<u64>) {
        let Some(at) = at else {
            return self.fail_op(id, error);
        };
        let Some(op) = self.take_op(id, Some(error)) else {
            return;
        };
        if let Some(caller) = op.caller {
            self.answer_caller(&op, caller, Err(error), Some(at));
        } else if let Some(conn) = self.conns.get_mut(&op.conn) {
            conn.session.fail_at(op.request, error, at);
        }
    }

    pub(crate) fn finish_op(&mut self, id: OpId, result: Result<Reply, RequestError>) {
        let Some(op) = self.take_op(id, result.as_ref().err().copied()) else {
            return;
        };
        if let Some(caller) = op.caller {
            self.answer_caller(&op, caller, result, None);
        } else if let Some(conn) = self.conns.get_mut(&op.conn) {
            conn.session.complete(op.request, result);
        }
    }

    /// Takes a request out, to be answered now.
    pub(crate) fn take_op(&mut self, id: OpId, error: Option<RequestError>) -> Option<Op> {
        let op = self.ops.remove(&id)?;
        self.request_ends(id, &op, error);
        self.op_bytes -= op.bytes_counted;
        self.turns.left(op.conn, op.inside);
        if self
            .volumes
            .get(&op.group)
            .is_some_and(|v| v.growth.is_some())
        {
            self.dirty.insert(op.group);
        }
        if let Some(volume) = self.volumes.get_mut(&op.group).filter(|v| v.spans) {
            volume.route.forget(id, &op);
            if volume.route.needs_tick() {
                self.dirty.insert(op.group); // a number that was held back may be in the window now
            }
        }
        if self.conns.contains_key(&op.conn) {
            self.conns_dirty.insert(op.conn);
        }
        Some(op)
    }

    /// How the log names a request: the same whenever it is asked, where the volume spans nodes.
    fn request_of(&self, id: OpId, op: &Op) -> RequestId {
        let spanning = self.volumes.get(&op.group).filter(|v| v.spans);
        let (session, sequence, behind) = match (op.caller, spanning) {
            (Some(caller), _) => (caller.session, op.sequence, Some(caller.behind)),
            (None, Some(volume)) => {
                let behind = volume.route.behind(op.sequence);
                (self.session, op.sequence, Some(behind))
            }
            (None, None) => {
                let conn = self.conns.get(&op.conn);
                (SessionId(conn.map_or(0, |c| c.session_id)), id, None)
            }
        };
        RequestId {
            session,
            sequence,
            part: 0,
            behind,
        }
    }

    /// The session whose attachment waits for this read of the group.
    fn attaches(&mut self, group: GroupId, context: u64) -> Option<ConnId> {
        self.volumes.get_mut(&group)?.route.attached(context)
    }
}

fn needs_edges(op: &Op) -> bool {
    let partial = matches!(op.action, Action::Write(_) | Action::Zeroes { .. });
    partial
        && ((op.head_is_partial() && op.head.is_none())
            || (op.tail_is_partial() && op.tail.is_none()))
}

/// Stamps an entry takes: one per data block, one for a whole range otherwise.
fn part_stamps(part: &Part) -> u64 {
    match part {
        Part::Data(_, bytes) => to_u64(bytes.len() / BLOCK_SIZE),
        Part::Hollow(..) => 1,
    }
}

/// What of a request has entered and is not proposed, in whole blocks, cut so that each part fits an
/// entry. The blocks it changes in part come first: what was read of them holds only now.
fn parts_of(op: &Op) -> Vec<Part> {
    let range = op.range();
    let mut parts = Vec::new();
    let whole_start = op.offset.div_ceil(BLOCK_SIZE_U64);
    let whole_end = ((op.offset + op.length) / BLOCK_SIZE_U64).max(whole_start);
    if let (Action::Trim, true) = (&op.action, whole_end > whole_start) {
        let whole = BlockRange::new(whole_start, whole_end - whole_start);
        return vec![Part::Hollow(whole, false)];
    }
    let payload = match &op.action {
        Action::Write(payload) => Some(payload),
        Action::Zeroes { .. } => None,
        Action::Read | Action::Status(_) | Action::Flush | Action::Trim => return parts,
    };
    let edge = |old: &Bytes, lba: u64| merged(old, lba, op.offset, op.length, payload);
    if !op.edges_proposed {
        if let Some(old) = op.head.as_ref().filter(|_| op.head_is_partial()) {
            parts.push(Part::Data(range.start.0, edge(old, range.start.0)));
        }
        if let Some(old) = op.tail.as_ref().filter(|_| op.tail_is_partial()) {
            parts.push(Part::Data(range.end() - 1, edge(old, range.end() - 1)));
        }
    }
    let whole_start = whole_start.max(range.start.0 + op.taken / BLOCK_SIZE_U64);
    let whole_end = whole_end.min(range.start.0 + op.granted / BLOCK_SIZE_U64);
    if whole_end > whole_start {
        let whole = BlockRange::new(whole_start, whole_end - whole_start);
        match (payload, &op.action) {
            (Some(payload), _) => {
                let from = to_usize(whole.start.0 * BLOCK_SIZE_U64 - op.offset);
                let bytes = payload.slice(from..from + to_usize(whole.bytes()));
                let step = to_usize(limits::ENTRY_BLOCKS_MAX) * BLOCK_SIZE;
                for at in (0..bytes.len()).step_by(step) {
                    let piece = bytes.slice(at..(at + step).min(bytes.len()));
                    parts.push(Part::Data(whole.start.0 + to_u64(at / BLOCK_SIZE), piece));
                }
            }
            (None, Action::Zeroes { no_hole }) => parts.push(Part::Hollow(whole, *no_hole)),
            (None, _) => {}
        }
    }
    parts
}

/// An old block with the request's bytes (or zeros) over it.
fn merged(old: &Bytes, lba: u64, offset: u64, length: u64, payload: Option<&Bytes>) -> Bytes {
    let mut block = AlignedBuf::copy_of(old);
    let first = lba * BLOCK_SIZE_U64;
    let from = offset.max(first);
    let to = (offset + length).min(first + BLOCK_SIZE_U64);
    let target = &mut block[to_usize(from - first)..to_usize(to - first)];
    match payload {
        Some(payload) => {
            target.copy_from_slice(&payload[to_usize(from - offset)..to_usize(to - offset)]);
        }
        None => target.fill(0),
    }
    block.freeze()
}

fn encode_part(
    part: Part,
    stamp: Stamp,
    request: RequestId,
    sealer: Option<&mut (Sealer<'_>, u32)>,
) -> (Bytes, Vec<Bytes>) {
    let (operation, payload) = match (part, sealer) {
        (Part::Data(lba, bytes), Some((sealer, key_id))) => {
            let (blocks, sealed) = sealer.seal(Lba(lba), stamp, &bytes);
            let operation = Operation::Write {
                lba,
                stamp,
                key_id: *key_id,
                blocks,
            };
            (operation, vec![sealed])
        }
        (Part::Data(lba, bytes), None) => {
            let blocks = bytes
                .chunks(BLOCK_SIZE)
                .map(|b| BlockInfo::plain(crc32(b)))
                .collect();
            (
                Operation::Write {
                    lba,
                    stamp,
                    key_id: 0,
                    blocks,
                },
                vec![bytes],
            )
        }
        (Part::Hollow(range, true), _) => (Operation::Zero { range, stamp }, Vec::new()),
        (Part::Hollow(range, false), _) => (Operation::Discard { range, stamp }, Vec::new()),
    };
    (Bytes::from(operation.encode(request)), payload)
}

/// Pieces of whole blocks, cut to the bytes that were asked for.
pub(crate) fn cut(pieces: Vec<ReadPiece>, offset: u64, length: u64) -> Vec<esker_nbd::ReadPiece> {
    let mut skip = offset % BLOCK_SIZE_U64;
    let mut left = length;
    let mut out = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let bytes = match &piece {
            ReadPiece::Data(data) | ReadPiece::Sealed { data, .. } => to_u64(data.len()),
            ReadPiece::Zeros(blocks) => blocks * BLOCK_SIZE_U64,
        };
        let take = (bytes - skip.min(bytes)).min(left);
        if take > 0 {
            out.push(match piece {
                ReadPiece::Data(data) | ReadPiece::Sealed { data, .. } => {
                    esker_nbd::ReadPiece::Data(data.slice(to_usize(skip)..to_usize(skip + take)))
                }
                ReadPiece::Zeros(_) => esker_nbd::ReadPiece::Zeros(take),
            });
        }
        left -= take;
        skip = skip.saturating_sub(bytes);
    }
    out
}

/// One block's bytes.
fn flatten(pieces: Vec<ReadPiece>) -> Bytes {
    match pieces.into_iter().next() {
        Some(ReadPiece::Data(data)) => data,
        _ => AlignedBuf::zeroed(BLOCK_SIZE).freeze(),
    }
}
