//! The workload: what clients and Raft do to an engine, drawn from a seed.

use super::group::{index, GroupModel, ModelEntry};
use super::world::{Catalog, World};
use super::Violation;
use bytes::Bytes;
use esker_base::checksum::crc32;
use esker_base::{
    AlignedBuf, BlockRange, DiskOp, Epoch, GroupId, RaftIndex, ReplicaId, Stamp, Term, VolumeId,
    BLOCK_SIZE, BLOCK_SIZE_U64,
};
use esker_engine::event::{Append, AppendEntry};
use esker_engine::format::checkpoint::{GroupMeta, Membership};
use esker_engine::format::operation::{BlockInfo, Operation, RequestId};
use esker_engine::format::record::{EntryKind, HardState, RecordHeader};
use esker_engine::format::superblock::Superblock;
use esker_engine::Event;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What must never come twice: seqs, and generations of log segments.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    seq: u64,
    now: BTreeSet<u64>,
    before: BTreeSet<u64>,
}

impl Seen {
    /// Looks at a write.
    ///
    /// # Errors
    /// When it uses a seq or a generation a second time.
    pub fn write(&mut self, op: &DiskOp, sb: &Superblock) -> Result<(), Violation> {
        let DiskOp::Write { offset, bufs } = op else {
            return Ok(());
        };
        let Some(first) = bufs.first() else {
            return Ok(());
        };
        let Ok((header, ..)) = RecordHeader::decode(first) else {
            return Ok(());
        };
        let length: usize = bufs.iter().map(Bytes::len).sum();
        let end = u64::from(header.slot) + (length / BLOCK_SIZE) as u64;
        if sb.offset_of(header.segment, header.slot) != *offset || end > u64::from(sb.slots()) {
            return Err(Violation::new(format!(
                "record {} is misplaced",
                header.seq
            )));
        }
        if header.seq.0 <= self.seq {
            return Err(Violation::new(format!("seq {} is used again", header.seq)));
        }
        if self.before.contains(&header.generation) {
            return Err(Violation::new(format!(
                "generation {} is used again",
                header.generation
            )));
        }
        self.seq = header.seq.0;
        self.now.insert(header.generation);
        Ok(())
    }

    /// The engine restarts.
    pub fn restart(&mut self) {
        self.before.append(&mut self.now);
    }
}

/// Sizes of volumes, in blocks: around the bounds of tree levels, and sparse ones.
const VOLUME_BLOCKS: [u64; 10] = [1, 16, 127, 128, 129, 1000, 16_384, 16_385, 1 << 22, 1 << 34];
/// Blocks of the largest write.
const WRITE_BLOCKS_MAX: u64 = 40;
/// Groups alive at a time.
const GROUPS_MAX: usize = 5;
/// Clones alive beside them.
const CLONES_MAX: usize = 4;

/// The page that a block gets: names its group and stamp, so that no two versions are alike.
#[must_use]
pub fn page_of(group: GroupId, stamp: u64) -> Bytes {
    let mut buf = AlignedBuf::zeroed(BLOCK_SIZE);
    let word = stamp
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(group.0)
        .to_le_bytes();
    buf.chunks_exact_mut(8)
        .for_each(|chunk| chunk.copy_from_slice(&word));
    buf[..8].copy_from_slice(&group.0.to_le_bytes());
    buf[8..16].copy_from_slice(&stamp.to_le_bytes());
    buf.freeze()
}

/// An entry that carries `operation`.
#[must_use]
pub fn entry_of(term: u64, operation: Option<Operation>, pages: Vec<Bytes>) -> Arc<ModelEntry> {
    let data = operation.as_ref().map_or_else(Bytes::new, |op| {
        Bytes::from(op.encode(RequestId::default()))
    });
    Arc::new(ModelEntry {
        term: Term(term),
        data,
        operation,
        pages,
    })
}

/// The entry as the engine takes it.
#[must_use]
pub fn append_entry(at: u64, entry: &ModelEntry) -> AppendEntry {
    AppendEntry {
        term: entry.term,
        index: RaftIndex(at),
        kind: EntryKind::Normal,
        data: entry.data.clone(),
        payload: entry.pages.clone(),
    }
}

impl World {
    /// A group of the seed's choice that is there and takes appends.
    pub fn any_group(&mut self) -> Option<GroupId> {
        let ids: Vec<GroupId> = self
            .groups
            .values()
            .filter(|m| !m.deleting && !m.suspended)
            .map(|m| m.meta.group)
            .collect();
        (!ids.is_empty()).then(|| self.rng.pick(&ids))
    }

    /// Does one thing.
    ///
    /// # Errors
    /// When a rule is broken.
    pub fn random_op(&mut self) -> Result<(), Violation> {
        let Some(id) = self.any_group() else {
            return self.create();
        };
        match self.rng.below(100) {
            0..=44 => self.append_something(id),
            45..=69 => self.apply_something(id),
            70..=91 => self.read_something(id),
            92..=93 => {
                let token = self.token();
                self.step(Event::Checkpoint { token })
            }
            94 => self.create(),
            95 if self.rng.chance(if self.clones { 600 } else { 300 }) => self.delete(id),
            96 if self.rng.chance(300) => self.rename(id),
            97 if self.rng.chance(500) => self.step(Event::SyncWritten),
            97 => self.step(Event::SyncSoon),
            98 => self.read_payload(id),
            _ => self.scrub_something(id),
        }
    }

    /// Begins a group.
    ///
    /// # Errors
    /// When a rule is broken.
    pub fn create(&mut self) -> Result<(), Violation> {
        if self.groups.len() >= GROUPS_MAX {
            return Ok(());
        }
        // Now and then a replica comes back to a store under the same group and a new replica id.
        let again: Vec<GroupId> = self.deleted.iter().copied().collect();
        let group = match again.is_empty() || self.rng.chance(700) {
            true => GroupId(self.next_group),
            false => self.rng.pick(&again),
        };
        if self.groups.contains_key(&group) {
            return Ok(());
        }
        self.deleted.remove(&group);
        let replica = ReplicaId(self.next_group);
        self.next_group += 1;
        let blocks = self.rng.pick(&VOLUME_BLOCKS);
        let single = self.rng.chance(650);
        let others = [ReplicaId(1_000_001), ReplicaId(1_000_002)];
        let mut voters = vec![replica];
        voters.extend(others.iter().filter(|_| !single));
        let meta = GroupMeta {
            group,
            volume: VolumeId(u128::from(group.0)),
            replica,
            name: format!("v{}", replica.0),
            size_bytes: blocks * BLOCK_SIZE_U64,
            block_bytes: 4096,
            membership: Membership {
                voters,
                ..Membership::default()
            },
            ..GroupMeta::default()
        };
        self.groups.insert(group, GroupModel::new(meta.clone()));
        let token = self.token();
        self.catalog.insert(token, Catalog::Create(group));
        self.step(Event::Create {
            token,
            meta: Box::new(meta),
        })
    }

    /// Ends a group.
    ///
    /// # Errors
    /// When a rule is broken.
    pub fn delete(&mut self, id: GroupId) -> Result<(), Violation> {
        if let Some(model) = self.groups.get_mut(&id) {
            if !model.created {
                return Ok(());
            }
            model.deleting = true;
        }
        let token = self.token();
        self.catalog.insert(token, Catalog::Delete(id));
        self.step(Event::Delete { token, group: id })
    }

    fn rename(&mut self, id: GroupId) -> Result<(), Violation> {
        let token = self.token();
        let name = format!("renamed {token}");
        if let Some(model) = self.groups.get_mut(&id) {
            model.names.push(name.clone());
            model.is_renamed_by_store = true;
        }
        self.catalog
            .insert(token, Catalog::Rename(id, name.clone()));
        self.step(Event::Rename {
            token,
            group: id,
            name,
        })
    }

    fn read_payload(&mut self, id: GroupId) -> Result<(), Violation> {
        let last = self.groups.get(&id).map_or(0, GroupModel::last);
        let (token, index) = (self.token(), RaftIndex(self.rng.range(0, last)));
        self.step(Event::ReadPayload {
            token,
            group: id,
            index,
        })
    }

    fn apply_something(&mut self, id: GroupId) -> Result<(), Violation> {
        let Some(model) = self.groups.get_mut(&id) else {
            return Ok(());
        };
        let (applied, durable) = (model.applied.index, model.durable_common());
        if !model.is_single() && model.commit < durable {
            model.commit = self.rng.range(model.commit, durable);
        }
        let commit = model.commit.min(durable);
        if commit <= applied {
            return Ok(());
        }
        let through = RaftIndex(self.rng.range(applied + 1, commit));
        if self.rng.chance(300) {
            let mut hard_state = model.hard;
            hard_state.commit = RaftIndex(commit);
            self.step(Event::NoteHardState {
                group: id,
                hard_state,
            })?;
        }
        self.step(Event::Apply { group: id, through })
    }

    fn read_something(&mut self, id: GroupId) -> Result<(), Violation> {
        let Some(model) = self.groups.get(&id) else {
            return Ok(());
        };
        let range = random_range(&mut self.rng, model.applied.size_bytes / BLOCK_SIZE_U64, 64);
        let cuts: Vec<(u64, u64)> = model
            .applied
            .snapshots
            .iter()
            .map(|(cut, s)| (*cut, s.size_bytes / BLOCK_SIZE_U64))
            .collect();
        if !cuts.is_empty() && self.rng.chance(400) {
            if self.rng.chance(200) {
                let (from, to) = (self.rng.pick(&cuts).0, self.rng.pick(&cuts).0);
                let to = self.rng.chance(600).then_some(to);
                return self.diff(id, from, to, false);
            }
            let (cut, blocks) = self.rng.pick(&cuts);
            let range = random_range(&mut self.rng, blocks, 64);
            self.read_at(id, range, cut)?;
            return Ok(());
        }
        let latest = self.rng.chance(500);
        self.read(id, range, latest)?;
        Ok(())
    }

    /// Appends what a leader of the group would: first the entries that begin a term, then
    /// operations under the open epoch.
    ///
    /// # Errors
    /// When a rule is broken.
    pub fn append_something(&mut self, id: GroupId) -> Result<(), Violation> {
        let Some(model) = self.groups.get(&id) else {
            return Ok(());
        };
        if !self.engine.has_room_for_metadata() {
            return Ok(());
        }
        let floor = model.commit.max(model.applied.index);
        let conflict = !model.is_single() && model.last() > floor && self.rng.chance(80);
        let Some(model) = self.groups.get_mut(&id) else {
            return Ok(());
        };
        if (model.epoch.is_none() && model.epoch_nonce.is_none()) || conflict {
            let first = match conflict {
                true => self.rng.range(floor + 1, model.last()),
                false => model.last() + 1,
            };
            return self.begin_term(id, first);
        }
        let mut entries = Vec::new();
        let mut blocks = 0;
        for _ in 0..=self.rng.below(3) {
            let Some((entry, written)) = self.operation(id) else {
                break;
            };
            blocks += written;
            entries.push(entry);
        }
        let payload = blocks * BLOCK_SIZE_U64;
        // A leader asks for room; a follower is given what the leader has, now and then too much.
        let asked = self.groups.get(&id).is_none_or(GroupModel::is_single) || self.rng.chance(800);
        let refused = payload > 0 && asked && !self.engine.has_room_for(payload);
        if entries.is_empty() || refused {
            return Ok(());
        }
        let first = self.groups.get(&id).map_or(0, GroupModel::last) + 1;
        self.append(id, None, first, &entries)
    }

    /// A new leader begins: hard state, an empty entry, and an entry that opens its epoch.
    ///
    /// # Errors
    /// When a rule is broken.
    pub fn begin_term(&mut self, id: GroupId, first: u64) -> Result<(), Violation> {
        let nonce = self.token();
        let Some(model) = self.groups.get_mut(&id) else {
            return Ok(());
        };
        model.term += 1;
        (model.epoch, model.epoch_nonce) = (None, Some(nonce));
        let hard = HardState {
            term: Term(model.term),
            vote: model.meta.replica,
            commit: RaftIndex(model.commit.min(first - 1)),
        };
        let opening = Operation::OpenEpoch {
            salt: u128::from(nonce),
            key_id: 0,
            nonce,
            resealed: false,
        };
        let entries = [
            entry_of(model.term, None, Vec::new()),
            entry_of(model.term, Some(opening), Vec::new()),
        ];
        self.append(id, Some(hard), first, &entries)
    }

    fn operation(&mut self, id: GroupId) -> Option<(Arc<ModelEntry>, u64)> {
        let clones = self.clones && self.groups.len() < GROUPS_MAX + CLONES_MAX;
        let model = self.groups.get_mut(&id)?;
        let (epoch, counter) = model.epoch.as_mut()?;
        let stamp = Stamp::new(Epoch(*epoch), *counter);
        let blocks = model.applied.size_bytes / BLOCK_SIZE_U64;
        // A larger write takes several entries, so that a segment holds several records.
        let quarter = u64::from(self.engine.superblock().slots()) / 4;
        let longest = WRITE_BLOCKS_MAX.min(quarter.max(1));
        let rng = &mut self.rng;
        if self.snapshots && rng.chance(150) {
            let known: Vec<u64> = model.applied.snapshots.keys().copied().collect();
            // Few at a time in some runs, many in others.
            let delete = !known.is_empty() && rng.chance(self.snapshot_deletes);
            let back = !known.is_empty() && rng.chance(200);
            if clones && !known.is_empty() && rng.chance(300) {
                let group = GroupId(self.next_group);
                self.next_group += 1;
                let operation = Operation::Clone {
                    cut: Stamp(rng.pick(&known)),
                    group,
                    volume: VolumeId(u128::from(group.0)),
                    created_us: 3,
                    name: format!("c{}", group.0),
                    labels: std::collections::BTreeMap::new(),
                    members: Vec::new(),
                };
                return Some((entry_of(model.term, Some(operation), Vec::new()), 0));
            }
            let operation = match delete {
                _ if back => Operation::Rollback {
                    stamp,
                    created_us: stamp.0,
                    to: Stamp(rng.pick(&known)),
                    keep: rng.chance(500).then(|| format!("left{}", stamp.0)),
                },
                true => Operation::DeleteSnapshot {
                    cut: Stamp(rng.pick(&known)),
                },
                false => Operation::Snapshot {
                    stamp,
                    created_us: stamp.0,
                    // Now and then a name that is taken, or a rewind point.
                    name: match rng.pick(&[5, 1u64 << 40]) {
                        5 => format!("s{}", stamp.0 % 5),
                        _ if stamp.0.is_multiple_of(2) => format!("@{}", stamp.0),
                        _ => format!("s{}", stamp.0),
                    },
                    labels: std::collections::BTreeMap::new(),
                },
            };
            *counter += 1;
            return Some((entry_of(model.term, Some(operation), Vec::new()), 0));
        }
        let (operation, pages) = match rng.below(20) {
            0..=15 => {
                let range = random_range(rng, blocks, longest);
                let pages: Vec<Bytes> =
                    (0..range.count).map(|i| page_of(id, stamp.0 + i)).collect();
                let blocks = pages.iter().map(|p| BlockInfo::plain(crc32(p))).collect();
                let lba = range.start.0;
                let key_id = 0;
                let operation = Operation::Write {
                    lba,
                    stamp,
                    key_id,
                    blocks,
                };
                (operation, pages)
            }
            16 | 17 => {
                let range = random_range(rng, blocks, 300);
                (Operation::Discard { range, stamp }, Vec::new())
            }
            18 => {
                let range = match rng.chance(500) {
                    true => BlockRange::new(0, blocks),
                    false => random_range(rng, blocks, blocks),
                };
                let operation = match rng.chance(500) {
                    true => Operation::Discard { range, stamp },
                    false => Operation::Zero { range, stamp },
                };
                (operation, Vec::new())
            }
            _ => {
                let size_bytes = rng.pick(&VOLUME_BLOCKS).min(1 << 22) * BLOCK_SIZE_U64;
                let size_bytes = size_bytes.max(model.applied.size_bytes);
                if size_bytes == model.applied.size_bytes {
                    let key = format!("k{}", stamp.0 % 5);
                    if stamp.0.is_multiple_of(4) {
                        let name = format!("entry {}", stamp.0);
                        let operation = Some(Operation::Rename { name });
                        return Some((entry_of(model.term, operation, Vec::new()), 0));
                    }
                    let value = (!stamp.0.is_multiple_of(3)).then(|| stamp.0.to_string());
                    let labels = [(key, value)].into();
                    return Some((
                        entry_of(model.term, Some(Operation::Relabel { labels }), Vec::new()),
                        0,
                    ));
                }
                (Operation::Resize { size_bytes }, Vec::new())
            }
        };
        let written = pages.len() as u64;
        *counter += u32::try_from(written.max(1)).ok()?;
        Some((entry_of(model.term, Some(operation), pages), written))
    }

    /// Appends entries from `first` on.
    ///
    /// # Errors
    /// When a rule is broken.
    pub fn append(
        &mut self,
        id: GroupId,
        hard_state: Option<HardState>,
        first: u64,
        entries: &[Arc<ModelEntry>],
    ) -> Result<(), Violation> {
        let ticket = self.token();
        let Some(model) = self.groups.get_mut(&id) else {
            return Ok(());
        };
        model.appended(ticket, hard_state, first, entries);
        self.tickets.insert(ticket, id);
        self.state_changed(id);
        let entries = (first..).zip(entries).map(|(at, e)| append_entry(at, e));
        let append = Append {
            group: id,
            ticket,
            entries: entries.collect(),
            hard_state,
            urgent: self.rng.chance(700),
        };
        self.step(Event::Append(append))
    }
}

/// A range of at most `longest` blocks in a volume, mostly near its beginning and around the
/// bounds of map nodes.
pub fn random_range(rng: &mut SimRng, blocks: u64, longest: u64) -> BlockRange {
    let near = blocks.min(rng.pick(&[8, 64, 300, 20_000, u64::MAX]));
    let start = match rng.below(8) {
        0 => (rng.below(near) / 128) * 128,
        1 => blocks - 1 - rng.below(near),
        _ => rng.below(near),
    };
    let count = match rng.below(4) {
        0 => 1,
        1 => rng.range(1, 4),
        _ => rng.range(1, longest),
    };
    BlockRange::new(start, count.min(blocks - start).min(longest))
}

use crate::sim::SimRng;

/// The model's view of how far a group is, for messages.
#[must_use]
pub fn progress(model: &GroupModel) -> String {
    format!(
        "applied {} durable {} last {} of {}",
        model.applied.index,
        model.durable_last(),
        index(model.last()),
        model.meta.name
    )
}
