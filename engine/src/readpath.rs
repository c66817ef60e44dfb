//! Reads: what is appended and not applied, then the delta, then the delta a checkpoint is merging,
//! then the tree; then the blocks themselves, each checked against its authenticator.

use crate::checkpoint::NODE_READ_ATTEMPTS_MAX;
use crate::engine::{Engine, Purpose};
use crate::error::{ReadError, StoreError};
use crate::event::{Effect, ReadPiece, ReadRequest};
use crate::format::dead;
use crate::format::node::{LeafKind, NodeHead, NodePage};
use crate::format::operation::{stored_crc, tag_of, Authenticator, Operation, TAG_BYTES};
use crate::format::vaddr::VAddr;
use crate::format::{PAGE, PAGE_U64};
use crate::group::Group;
use crate::map::delta::Extent;
use crate::map::tree::{is_vouched_by, lookup, Held, Lookup, Missing, TreeRun, ANYWHERE};
use crate::map::view::View;
use crate::repair::Copied;
use crate::snapshot::DEAD_PAGE;
use bytes::Bytes;
use esker_base::checksum::crc32;
use esker_base::num::{to_u64, to_usize};
use esker_base::{BlockRange, DiskError, DiskOp, GroupId, Lba, RaftIndex, Stamp};
use std::sync::Arc;

/// Most blocks in one device read (1 MiB).
const DEVICE_READ_BLOCKS_MAX: u64 = 256;
/// Most map nodes fetched at a time for one request.
const NODES_AT_A_TIME_MAX: usize = 32;

/// Who waits for a map node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NodeWaiter {
    Read(u64),
    Extents(u64),
    Diff(u64),
    Harvest(u64),
    Merge,
    Discard,
}

/// Where a run of blocks comes from.
#[derive(Clone, Debug)]
enum Source {
    Zeros(u64),
    Memory(Bytes),
    Device {
        vaddr: VAddr,
        auths: Vec<Authenticator>,
    },
}

/// Stamp and tag of each block of a piece; none when they are not sealed.
type Seals = Vec<(Stamp, [u8; TAG_BYTES])>;

#[derive(Debug)]
struct Piece {
    lba: u64,
    source: Source,
    data: Option<Bytes>,
    seals: Seals,
}

/// What becomes of what a read finds.
#[derive(Debug)]
pub(crate) enum How {
    /// It is given back, with stamp and tag where it is sealed.
    Opened,
    /// It is given back with stamp and tag of every block.
    Stored,
    /// It is written over with what another replica has.
    Repair(Copied),
}

/// A read on its way.
#[derive(Debug)]
pub(crate) struct ReadState {
    request: ReadRequest,
    how: How,
    held: Held,
    nodes_awaited: usize,
    pieces: Vec<Piece>,
    outstanding: usize,
    error: Option<ReadError>,
    /// The device could not read several blocks in one go: so that it is known which, each is read by itself.
    block_by_block: bool,
    /// It is to be so from the beginning.
    begins_anew: bool,
}

impl Engine {
    /// Begins a read.
    pub(crate) fn read(&mut self, request: ReadRequest, how: How, effects: &mut Vec<Effect>) {
        let token = request.token;
        let refused = match self.groups.get(&request.group).filter(|g| !g.deleting) {
            None => Some(ReadError::UnknownGroup),
            Some(g) => self.out_of_range(g, request.at, request.range),
        };
        if let Some(error) = refused {
            effects.push(failed(&how, token, error));
            return;
        }
        let state = ReadState {
            request,
            how,
            held: Held::new(),
            nodes_awaited: 0,
            pieces: Vec::new(),
            outstanding: 0,
            error: None,
            block_by_block: false,
            begins_anew: false,
        };
        self.reads.insert(token, state);
        self.resolve_read(token, effects);
    }

    /// Whether a range is none of the volume, or of a snapshot of it.
    pub(crate) fn out_of_range(
        &self,
        group: &Group,
        at: Option<Stamp>,
        range: BlockRange,
    ) -> Option<ReadError> {
        let size_bytes = match at {
            None => group.meta.size_bytes,
            Some(cut) => match self.forest.at(group.meta.group, cut) {
                Some(version) => version.meta.size_bytes,
                None => return Some(ReadError::UnknownSnapshot),
            },
        };
        (range.end() > size_bytes.div_ceil(PAGE_U64)).then_some(ReadError::OutOfRange)
    }

    /// Finds out where every block is, and reads them; or reads the map nodes that takes first.
    fn resolve_read(&mut self, token: u64, effects: &mut Vec<Effect>) {
        let Some(state) = self.reads.get(&token) else {
            return;
        };
        let Some(group) = self.groups.get(&state.request.group) else {
            return self.read_failed(token, ReadError::UnknownGroup, effects);
        };
        let (at, sabotage) = (state.request.at, self.config.sabotage);
        let Some(view) = View::of(&self.groups, &self.forest, group, at, sabotage) else {
            return self.read_failed(token, ReadError::UnknownSnapshot, effects);
        };
        let mut resolver = Resolver {
            view: &view,
            tells_stamps: !matches!(state.how, How::Opened),
            block_by_block: state.block_by_block,
            cache: &mut self.cache,
            held: &state.held,
            pieces: Vec::new(),
            missing: Vec::new(),
        };
        match view.is_head {
            true => resolver.overlay(state.request.range, state.request.latest),
            false => resolver.delta(state.request.range, 0),
        }
        let (pieces, missing) = (resolver.pieces, resolver.missing);
        if missing.is_empty() {
            self.start_device_reads(token, pieces, effects);
            return;
        }
        let group = state.request.group;
        let mut awaited = 0;
        for node in missing.into_iter().take(NODES_AT_A_TIME_MAX) {
            awaited += 1;
            if !self.fetch_node(group, node, NodeWaiter::Read(token), effects) {
                return self.read_failed(
                    token,
                    ReadError::MapDamaged(Lba(node.first_lba)),
                    effects,
                );
            }
        }
        if let Some(state) = self.reads.get_mut(&token) {
            state.nodes_awaited = awaited;
        }
    }

    fn start_device_reads(&mut self, token: u64, pieces: Vec<Piece>, effects: &mut Vec<Effect>) {
        let how = self.reads.get(&token).map(|state| &state.how);
        if let Some(How::Repair(_)) = how {
            return self.write_repair(token, &pieces, effects);
        }
        let mut reads = Vec::new();
        let mut placed = Vec::with_capacity(pieces.len());
        for mut piece in pieces {
            let Source::Device { vaddr, auths } = &mut piece.source else {
                placed.push(piece);
                continue;
            };
            let Some(runs) = self.segs.locate_run(*vaddr, to_u64(auths.len())) else {
                return self.read_failed(token, ReadError::Damaged(Lba(piece.lba)), effects);
            };
            // What garbage collection packed may lie in several places.
            let (mut vaddr, mut lba, mut rest) = (*vaddr, piece.lba, std::mem::take(auths));
            let mut seals = std::mem::take(&mut piece.seals);
            for (segment, slot, count) in runs {
                let after = rest.split_off((count as usize).min(rest.len()));
                let seals_after = seals.split_off((count as usize).min(seals.len()));
                reads.push((placed.len(), segment, slot, count as usize));
                placed.push(Piece {
                    lba,
                    source: Source::Device { vaddr, auths: rest },
                    data: None,
                    seals,
                });
                (rest, seals) = (after, seals_after);
                (vaddr, lba) = (vaddr.plus(u64::from(count)), lba + u64::from(count));
            }
        }
        let pieces = placed;
        let Some(state) = self.reads.get_mut(&token) else {
            return;
        };
        state.pieces = pieces;
        state.outstanding = reads.len();
        state.held.clear();
        for (piece, segment, slot, blocks) in reads {
            self.segs.reader_begins(segment);
            let offset = self.sb.offset_of(segment, slot);
            let op = DiskOp::Read {
                offset,
                length: blocks * PAGE,
            };
            self.disk(
                op,
                Purpose::Data {
                    read: token,
                    piece,
                    segment,
                },
                effects,
            );
        }
        self.read_finish_if_done(token, effects);
    }

    /// Blocks came from the device.
    pub(crate) fn data_read(
        &mut self,
        token: u64,
        piece: usize,
        result: Result<Bytes, DiskError>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(state) = self.reads.get_mut(&token) else {
            return;
        };
        state.outstanding -= 1;
        if let Some(piece) = state.pieces.get_mut(piece) {
            match (result, &piece.source) {
                (Ok(data), Source::Device { auths, .. }) => {
                    let bad = (0..auths.len()).find(|i| {
                        data.get(i * PAGE..(i + 1) * PAGE)
                            .is_none_or(|block| crc32(block) != stored_crc(&auths[*i]))
                    });
                    match bad {
                        None => piece.data = Some(data),
                        Some(i) => {
                            let lba = piece.lba + to_u64(i);
                            self.damages.found(state.request.group, lba);
                            state.error = Some(ReadError::Damaged(Lba(lba)));
                        }
                    }
                }
                (Ok(_), _) => {}
                (Err(_), Source::Device { auths, .. }) if auths.len() > 1 => {
                    state.begins_anew = true;
                }
                (Err(error), _) => {
                    state.error = Some(ReadError::Disk {
                        lba: Lba(piece.lba),
                        error,
                    });
                }
            }
        }
        self.read_finish_if_done(token, effects);
    }

    fn read_finish_if_done(&mut self, token: u64, effects: &mut Vec<Effect>) {
        if self
            .reads
            .get(&token)
            .is_none_or(|state| state.outstanding > 0)
        {
            return;
        }
        let Some(mut state) = self.reads.remove(&token) else {
            return;
        };
        if state.error.is_none() && std::mem::take(&mut state.begins_anew) {
            // Nothing was held meanwhile: where the blocks are is asked of the map again.
            state.block_by_block = true;
            state.pieces.clear();
            self.reads.insert(token, state);
            return self.resolve_read(token, effects);
        }
        let result = match state.error {
            Some(error) => Err(error),
            None => Ok(state
                .pieces
                .into_iter()
                .map(|piece| match (piece.source, piece.data) {
                    (_, Some(data)) | (Source::Memory(data), None) => match piece.seals {
                        seals if seals.is_empty() => ReadPiece::Data(data),
                        seals => ReadPiece::Sealed {
                            lba: piece.lba,
                            data,
                            seals,
                        },
                    },
                    (Source::Zeros(count), None) => ReadPiece::Zeros(count),
                    (Source::Device { auths, .. }, None) => ReadPiece::Zeros(to_u64(auths.len())),
                })
                .collect()),
        };
        effects.push(Effect::ReadDone { token, result });
    }

    fn read_failed(&mut self, token: u64, error: ReadError, effects: &mut Vec<Effect>) {
        if let Some(state) = self.reads.remove(&token) {
            effects.push(failed(&state.how, token, error));
        }
    }

    /// Writes a block of another replica over the one here, if it is the same.
    fn write_repair(&mut self, token: u64, pieces: &[Piece], effects: &mut Vec<Effect>) {
        let Some(How::Repair(copied)) = self.reads.remove(&token).map(|state| state.how) else {
            return;
        };
        let place = match pieces {
            [Piece {
                source: Source::Device { vaddr, auths },
                seals,
                ..
            }] if auths.len() == 1 => {
                let is_same = seals.first() == Some(&(copied.stamp, copied.tag))
                    && stored_crc(&auths[0]) == crc32(&copied.data);
                self.segs.locate(*vaddr).filter(|_| is_same)
            }
            _ => None,
        };
        self.repair_at(token, place, &copied, effects);
    }

    /// Reads a map node, once for all who wait. False when its address is in no segment.
    pub(crate) fn fetch_node(
        &mut self,
        group: GroupId,
        node: Missing,
        waiter: NodeWaiter,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let vaddr = node.pointer.vaddr;
        let Some((segment, slot)) = self.segs.locate(vaddr) else {
            return false;
        };
        let first = !self.node_waiters.contains_key(&vaddr);
        let waiters = self.node_waiters.entry(vaddr).or_default();
        waiters.push(waiter);
        if first {
            self.map.expect(vaddr, node, group);
            self.segs.reader_begins(segment);
            let offset = self.sb.offset_of(segment, slot);
            self.disk(
                DiskOp::Read {
                    offset,
                    length: PAGE,
                },
                Purpose::Node { vaddr, segment },
                effects,
            );
        }
        true
    }

    /// A map node came from the device.
    pub(crate) fn node_read(
        &mut self,
        vaddr: VAddr,
        result: Result<Bytes, DiskError>,
        effects: &mut Vec<Effect>,
    ) {
        let waiters = self.node_waiters.remove(&vaddr).unwrap_or_default();
        let Some((expected, group)) = self.map.expected(vaddr) else {
            return;
        };
        let page = result.ok().and_then(|bytes| check_node(&bytes, &expected));
        if let Some(page) = &page {
            self.cache.insert(vaddr, page.clone(), false);
        }
        for waiter in waiters {
            match (waiter, &page) {
                (NodeWaiter::Read(token), Some(page)) => {
                    self.node_for_read(token, vaddr, page.clone(), effects);
                }
                (NodeWaiter::Read(token), None) => {
                    let error = ReadError::MapDamaged(Lba(expected.first_lba));
                    self.read_failed(token, error, effects);
                }
                (NodeWaiter::Extents(token), page) => {
                    self.node_for_extents(token, vaddr, page.clone(), effects);
                }
                (NodeWaiter::Diff(token), page) => {
                    self.node_for_diff(token, vaddr, page.clone(), effects);
                }
                (NodeWaiter::Harvest(token), page) => {
                    self.node_for_harvest(token, vaddr, page.clone(), effects);
                }
                (NodeWaiter::Merge, page) => self.node_for_merge(group, vaddr, page.clone()),
                (NodeWaiter::Discard, Some(_)) => self.map.discard_failures = 0,
                (NodeWaiter::Discard, None) => {
                    // The discard asks for it again in this very step.
                    self.map.discard_failures += 1;
                    if self.map.discard_failures >= NODE_READ_ATTEMPTS_MAX {
                        self.fence(StoreError::Map { group, vaddr }, effects);
                    }
                }
            }
        }
    }

    fn node_for_read(
        &mut self,
        token: u64,
        vaddr: VAddr,
        page: Arc<NodePage>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(state) = self.reads.get_mut(&token) else {
            return;
        };
        state.held.insert(vaddr, page);
        state.nodes_awaited -= 1;
        if state.nodes_awaited == 0 {
            self.resolve_read(token, effects);
        }
    }

    /// Reads the payload of a retained entry, for a follower that lags.
    pub(crate) fn read_payload(
        &mut self,
        token: u64,
        group: GroupId,
        index: RaftIndex,
        effects: &mut Vec<Effect>,
    ) {
        let entry = self.groups.get(&group).and_then(|g| g.entry(index));
        let Some(entry) = entry.filter(|e| e.payload_pages > 0) else {
            effects.push(Effect::PayloadDone {
                token,
                payload: None,
            });
            return;
        };
        if let Some(pieces) = &entry.memory {
            let payload = Some(Bytes::from(pieces.concat()));
            effects.push(Effect::PayloadDone { token, payload });
            return;
        }
        let (vaddr, pages) = (entry.vaddr, u64::from(entry.payload_pages));
        let operation = entry.operation.clone();
        let Some(runs) = self.segs.locate_run(vaddr, pages) else {
            effects.push(Effect::PayloadDone {
                token,
                payload: None,
            });
            return;
        };
        let reading = PayloadRead {
            token,
            parts: vec![None; runs.len()],
            missing: runs.len(),
            operation,
        };
        let id = self.next_io;
        self.payloads.insert(id, reading);
        for (part, (segment, slot, count)) in runs.into_iter().enumerate() {
            self.segs.reader_begins(segment);
            let offset = self.sb.offset_of(segment, slot);
            let length = count as usize * PAGE;
            let purpose = Purpose::Payload {
                read: id,
                part,
                segment,
            };
            self.disk(DiskOp::Read { offset, length }, purpose, effects);
        }
    }

    /// A part of a payload came.
    pub(crate) fn payload_part(
        &mut self,
        read: u64,
        part: usize,
        result: Result<Bytes, DiskError>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(reading) = self.payloads.get_mut(&read) else {
            return;
        };
        reading.parts[part] = result.ok();
        reading.missing -= 1;
        if reading.missing > 0 {
            return;
        }
        let Some(reading) = self.payloads.remove(&read) else {
            return;
        };
        let parts: Option<Vec<Bytes>> = reading.parts.into_iter().collect();
        let payload = parts.map(|mut parts| match parts.len() {
            1 => parts.swap_remove(0),
            _ => Bytes::from(parts.concat()),
        });
        effects.push(Effect::PayloadDone {
            token: reading.token,
            payload: payload.and_then(|b| checked_payload(b, reading.operation.as_deref())),
        });
    }
}

/// What is told of a read that failed.
fn failed(how: &How, token: u64, error: ReadError) -> Effect {
    match how {
        How::Opened | How::Stored => Effect::ReadDone {
            token,
            result: Err(error),
        },
        How::Repair(_) => Effect::RepairDone {
            token,
            result: Err(error),
        },
    }
}

/// A page, if it is the node that a pointer names.
pub(crate) fn check_node(bytes: &[u8], expected: &Missing) -> Option<Arc<NodePage>> {
    let is_it = |head: NodeHead| {
        head.level == expected.level && [head.first_lba, ANYWHERE].contains(&expected.first_lba)
    };
    let is_dead_page = expected.level == DEAD_PAGE;
    let is_whole = crc32(bytes) == expected.pointer.crc
        && match is_dead_page {
            true => dead::decode(bytes).is_ok(),
            false => NodePage::check(bytes).is_ok_and(is_it),
        };
    let page = is_whole.then(|| NodePage::of(bytes.to_vec().into_boxed_slice()));
    let page = page.filter(|page| is_dead_page || is_vouched_by(page, &expected.pointer));
    page.map(|page| Arc::new(page.with_hash(expected.pointer.logical_hash)))
}

/// The payload of a retained entry being read, in as many parts as it lies in.
#[derive(Debug)]
pub(crate) struct PayloadRead {
    token: u64,
    parts: Vec<Option<Bytes>>,
    missing: usize,
    operation: Option<Arc<Operation>>,
}

/// The payload of `operation`, if the bytes are the ones that were written: damage is not passed on
/// to other replicas.
pub(crate) fn checked_payload(bytes: Bytes, operation: Option<&Operation>) -> Option<Bytes> {
    let crcs = operation.map(Operation::payload_crcs)?;
    let mut pages = bytes.chunks(PAGE).zip(crcs);
    pages
        .all(|(page, (_, crc))| crc32(page) == crc)
        .then_some(bytes)
}

struct Resolver<'a> {
    view: &'a View<'a>,
    /// Of blocks that are not sealed, too.
    tells_stamps: bool,
    /// No two of them are read together.
    block_by_block: bool,
    cache: &'a mut crate::map::cache::NodeCache,
    held: &'a Held,
    pieces: Vec<Piece>,
    missing: Vec<Missing>,
}

impl Resolver<'_> {
    fn overlay(&mut self, range: BlockRange, latest: bool) {
        let group = self.view.group;
        if !latest || group.overlay.is_empty() {
            return self.delta(range, 0);
        }
        let mut next = range.start.0;
        for (lba, pending) in group.overlay.overlapping(range) {
            self.delta(between(next, lba), 0);
            next = lba + pending.count;
            let entry = group.entry(pending.index);
            let operation = entry.and_then(|e| e.operation.as_deref());
            let (Some(entry), Some(Operation::Write { blocks, stamp, .. })) = (entry, operation)
            else {
                self.zeros(lba, pending.count);
                continue;
            };
            for i in 0..pending.count {
                let block = pending.from + i;
                let (auth, stamp) = (blocks[to_usize(block)].auth, Stamp(stamp.0 + block));
                match entry.block_in_memory(block) {
                    Some(data) => self.memory(lba + i, data, stamp, auth),
                    None => self.device(lba + i, entry.vaddr.plus(block), stamp, auth),
                }
            }
        }
        self.delta(between(next, range.end()), 0);
    }

    /// Looks into the deltas, newest first, and below them into the tree.
    fn delta(&mut self, range: BlockRange, layer: usize) {
        if range.is_empty() {
            return;
        }
        match self.view.layer(layer) {
            None => self.tree(range),
            Some((n, delta, Some(cut))) => {
                self.extents(delta.at(range, cut).into_iter(), range, n);
            }
            Some((n, delta, None)) => self.extents(delta.index.overlapping(range), range, n),
        }
    }

    /// What a delta has of a range, and between that what lies below.
    fn extents(
        &mut self,
        extents: impl Iterator<Item = (u64, Extent)>,
        range: BlockRange,
        layer: usize,
    ) {
        let mut next = range.start.0;
        for (lba, extent) in extents {
            self.delta(between(next, lba), layer + 1);
            next = lba + extent.count;
            if extent.kind != LeafKind::Data {
                self.zeros(lba, extent.count);
                continue;
            }
            for i in 0..extent.count {
                let leaf = extent.leaf(i);
                self.device(lba + i, leaf.vaddr, leaf.stamp, leaf.auth);
            }
        }
        self.delta(between(next, range.end()), layer + 1);
    }

    fn tree(&mut self, range: BlockRange) {
        let mut walk = Lookup {
            cache: self.cache,
            held: self.held,
            runs: Vec::new(),
            missing: Vec::new(),
        };
        let (root, level) = self.view.tree;
        lookup(&mut walk, &root, level, range);
        let (runs, mut missing) = (walk.runs, walk.missing);
        self.missing.append(&mut missing);
        for run in runs {
            match run {
                TreeRun::Zeros { lba, count } => self.zeros(lba, count),
                TreeRun::Data {
                    lba,
                    vaddr,
                    auth,
                    stamp,
                } => self.device(lba, vaddr, stamp, auth),
            }
        }
    }

    fn zeros(&mut self, lba: u64, count: u64) {
        if let Some(Piece {
            lba: first,
            source: Source::Zeros(run),
            ..
        }) = self.pieces.last_mut()
        {
            if *first + *run == lba {
                *run += count;
                return;
            }
        }
        self.pieces.push(Piece {
            lba,
            source: Source::Zeros(count),
            data: None,
            seals: Seals::new(),
        });
    }

    /// Stamp and tag of a block, if it was sealed or they are asked for.
    fn seal_of(&self, stamp: Stamp, auth: &Authenticator) -> Option<(Stamp, [u8; TAG_BYTES])> {
        let is_told = self.tells_stamps || self.view.group.epoch_entry(stamp.epoch()).is_some();
        is_told.then(|| (stamp, tag_of(auth)))
    }

    fn memory(&mut self, lba: u64, data: Bytes, stamp: Stamp, auth: Authenticator) {
        self.pieces.push(Piece {
            lba,
            source: Source::Memory(data),
            data: None,
            seals: self.seal_of(stamp, &auth).into_iter().collect(),
        });
    }

    fn device(&mut self, lba: u64, vaddr: VAddr, stamp: Stamp, auth: Authenticator) {
        let seal = self.seal_of(stamp, &auth);
        if let Some(Piece {
            lba: first,
            source:
                Source::Device {
                    vaddr: start,
                    auths,
                },
            seals,
            ..
        }) = self.pieces.last_mut()
        {
            let run = to_u64(auths.len());
            if *first + run == lba
                && start.vseg() == vaddr.vseg()
                && start.plus(run) == vaddr
                && run < DEVICE_READ_BLOCKS_MAX
                && !self.block_by_block
                && seals.is_empty() == seal.is_none()
            {
                auths.push(auth);
                seals.extend(seal);
                return;
            }
        }
        self.pieces.push(Piece {
            lba,
            source: Source::Device {
                vaddr,
                auths: vec![auth],
            },
            data: None,
            seals: seal.into_iter().collect(),
        });
    }
}

fn between(start: u64, end: u64) -> BlockRange {
    BlockRange::new(start, end.saturating_sub(start))
}
