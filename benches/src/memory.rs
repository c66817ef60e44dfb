//! A store's engine over memory: every disk operation completes at once, and what is written is
//! counted by what it is. Volumes far larger than memory fit, because payload can be dropped: every
//! block that is written is the same one.

use bytes::Bytes;
use esker_base::checksum::crc32;
use esker_base::num::to_u64;
use esker_base::{
    AlignedBuf, BlockRange, DiskOp, Epoch, GroupId, Moment, RaftIndex, ReplicaId, Stamp, Term,
    VolumeId, WallClock, BLOCK_SIZE, BLOCK_SIZE_U64,
};
use esker_engine::event::{Append, AppendEntry, Effect, Event, ReadRequest};
use esker_engine::format::checkpoint::{GroupMeta, Membership};
use esker_engine::format::operation::{BlockInfo, Operation, RequestId};
use esker_engine::format::record::EntryKind;
use esker_engine::format::SEGMENTS_OFFSET;
use esker_engine::{Engine, EngineConfig};
use std::collections::{HashMap, VecDeque};

/// The volume that [`MemoryStore::create`] makes.
pub const GROUP: GroupId = GroupId(1);
/// Blocks of the one payload that is ever written.
const PAYLOAD_BLOCKS: usize = 256;

/// Bytes written to the device, by what they are, and pages read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Clients' blocks.
    pub payload_bytes: u64,
    /// Headers of records.
    pub header_bytes: u64,
    /// Map nodes.
    pub node_bytes: u64,
    /// Checkpoints' tables: segments with their live slots, groups, retained entries.
    pub table_bytes: u64,
    /// Superblocks.
    pub superblock_bytes: u64,
    /// What garbage collection moved, with the pages that name it.
    pub survivor_bytes: u64,
    /// Map nodes that were read.
    pub nodes_read: u64,
}

impl Traffic {
    /// What was added since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            payload_bytes: self.payload_bytes - before.payload_bytes,
            header_bytes: self.header_bytes - before.header_bytes,
            node_bytes: self.node_bytes - before.node_bytes,
            table_bytes: self.table_bytes - before.table_bytes,
            superblock_bytes: self.superblock_bytes - before.superblock_bytes,
            survivor_bytes: self.survivor_bytes - before.survivor_bytes,
            nodes_read: self.nodes_read - before.nodes_read,
        }
    }
}

/// The device: pages by number.
#[derive(Clone, Debug, Default)]
pub struct MemoryDevice {
    /// What is kept; every other page reads as the one payload block.
    pages: HashMap<u64, Bytes>,
    keep_payload: bool,
    /// Superblocks were written.
    formatted: bool,
    /// Counts.
    pub traffic: Traffic,
}

/// The one block that is ever written.
fn payload() -> Bytes {
    thread_local! {
        static PAYLOAD: Bytes = AlignedBuf::copy_of(&[0x5a; PAYLOAD_BLOCKS * BLOCK_SIZE]).freeze();
    }
    PAYLOAD.with(Bytes::clone)
}

impl MemoryDevice {
    /// A blank device; with `keep_payload` it forgets nothing and can be opened again.
    #[must_use]
    pub fn blank(keep_payload: bool) -> Self {
        Self {
            keep_payload,
            ..Self::default()
        }
    }

    fn page(&self, number: u64) -> Bytes {
        static ZEROS: [u8; BLOCK_SIZE] = [0; BLOCK_SIZE];
        let in_front = number < SEGMENTS_OFFSET / BLOCK_SIZE_U64;
        match self.pages.get(&number) {
            Some(page) => page.clone(),
            None if in_front || self.keep_payload || !self.formatted => Bytes::from_static(&ZEROS),
            None => payload().slice(..BLOCK_SIZE),
        }
    }

    fn perform(&mut self, op: DiskOp) -> Bytes {
        match op {
            DiskOp::Read { offset, length } => {
                let mut out = AlignedBuf::to_overwrite(length);
                for (number, chunk) in (offset / BLOCK_SIZE_U64..).zip(out.chunks_mut(BLOCK_SIZE)) {
                    let page = self.page(number);
                    self.traffic.nodes_read += u64::from(page.starts_with(b"ESND"));
                    chunk.copy_from_slice(&page);
                }
                out.freeze()
            }
            DiskOp::Write { offset, bufs } => {
                self.write(offset, &bufs);
                Bytes::new()
            }
            DiskOp::Sync => Bytes::new(),
        }
    }

    fn write(&mut self, offset: u64, bufs: &[Bytes]) {
        let bytes: u64 = bufs.iter().map(|b| to_u64(b.len())).sum();
        let first = bufs.first().map_or(&[][..], |b| &b[..8]);
        let mut kept = bytes;
        let mut keep_nodes = false;
        if offset < SEGMENTS_OFFSET {
            self.formatted = true;
            self.traffic.superblock_bytes += bytes;
        } else if first.starts_with(b"ESRK") {
            let header = u64::from(u16::from_le_bytes([first[6], first[7]])) * BLOCK_SIZE_U64;
            self.traffic.header_bytes += header;
            self.traffic.payload_bytes += bytes - header;
            kept = if self.keep_payload { bytes } else { 0 };
        } else if first.starts_with(b"ESSV") {
            self.traffic.survivor_bytes += bytes;
            keep_nodes = !self.keep_payload;
            kept = if self.keep_payload {
                bytes
            } else {
                BLOCK_SIZE_U64
            };
        } else if first.starts_with(b"ESND") {
            self.traffic.node_bytes += bytes;
        } else {
            self.traffic.table_bytes += bytes;
        }
        let mut number = offset / BLOCK_SIZE_U64;
        for buf in bufs {
            for at in (0..buf.len()).step_by(BLOCK_SIZE) {
                let page = buf.slice(at..at + BLOCK_SIZE);
                let node = keep_nodes && page.starts_with(b"ESND");
                if kept >= BLOCK_SIZE_U64 {
                    self.pages.insert(number, page);
                    kept -= BLOCK_SIZE_U64;
                } else if node {
                    // A slice would keep all of the window that it was read in.
                    self.pages.insert(number, Bytes::copy_from_slice(&page));
                } else {
                    self.pages.remove(&number);
                }
                number += 1;
            }
        }
    }
}

/// An engine and its device.
pub struct MemoryStore {
    /// The engine.
    pub engine: Engine,
    /// Its device.
    pub device: MemoryDevice,
    next_index: u64,
    next_counter: u32,
    crc: u32,
    read: Option<bool>,
}

impl MemoryStore {
    /// Opens the store on `device`, formatting a blank one.
    ///
    /// # Panics
    /// When it does not open.
    #[must_use]
    pub fn open(config: EngineConfig, device: MemoryDevice) -> Self {
        let mut effects = Vec::new();
        let engine = Engine::open(config, &mut effects);
        let mut store = Self {
            engine,
            device,
            next_index: 1,
            next_counter: 1,
            crc: crc32(&payload()[..BLOCK_SIZE]),
            read: None,
        };
        store.run(effects);
        assert!(store.engine.is_open(), "the store does not open");
        store
    }

    /// Makes the one volume, and opens its epoch.
    pub fn create(&mut self, blocks: u64) {
        let meta = GroupMeta {
            group: GROUP,
            volume: VolumeId(1),
            replica: ReplicaId(1),
            name: "bench".into(),
            size_bytes: blocks * BLOCK_SIZE_U64,
            block_bytes: 4096,
            membership: Membership {
                voters: vec![ReplicaId(1)],
                ..Membership::default()
            },
            ..GroupMeta::default()
        };
        let meta = Box::new(meta);
        self.tell(Event::Create { token: 1, meta });
        let open = Operation::OpenEpoch {
            salt: 1,
            key_id: 0,
            nonce: 1,
            resealed: false,
        };
        self.append(vec![(open, 0)]);
    }

    /// Writes runs of blocks, given by first block and count, in one append, and applies them.
    pub fn write(&mut self, runs: &[(u64, usize)]) {
        let operations = runs.iter().map(|(lba, count)| {
            let stamp = Stamp::new(Epoch(1), self.next_counter);
            // One counter for every 256 blocks would do; stamps only have to rise.
            self.next_counter += u32::try_from(*count).unwrap_or(u32::MAX);
            let operation = Operation::Write {
                lba: *lba,
                stamp,
                key_id: 0,
                blocks: vec![BlockInfo::plain(self.crc); *count],
            };
            (operation, *count)
        });
        let operations = operations.collect();
        self.append(operations);
    }

    /// Takes a snapshot.
    pub fn snapshot(&mut self, name: &str) {
        let stamp = Stamp::new(Epoch(1), self.next_counter);
        self.next_counter += 1;
        let snapshot = Operation::Snapshot {
            stamp,
            created_us: 1,
            name: name.into(),
            labels: std::collections::BTreeMap::new(),
        };
        self.append(vec![(snapshot, 0)]);
    }

    fn append(&mut self, operations: Vec<(Operation, usize)>) {
        let mut entries = Vec::with_capacity(operations.len());
        for (operation, blocks) in operations {
            entries.push(AppendEntry {
                term: Term(1),
                index: RaftIndex(self.next_index),
                kind: EntryKind::Normal,
                data: Bytes::from(operation.encode(RequestId::default())),
                payload: match blocks {
                    0 => Vec::new(),
                    _ => vec![payload().slice(..blocks * BLOCK_SIZE)],
                },
            });
            self.next_index += 1;
        }
        self.tell(Event::Append(Append {
            group: GROUP,
            ticket: self.next_index,
            entries,
            hard_state: None,
            urgent: true,
        }));
        let through = RaftIndex(self.next_index - 1);
        let group = GROUP;
        self.tell(Event::Apply { group, through });
    }

    /// Writes a checkpoint.
    pub fn checkpoint(&mut self) {
        self.tell(Event::Checkpoint { token: 9 });
    }

    /// Reads blocks.
    ///
    /// # Panics
    /// When the engine does not give them.
    pub fn read(&mut self, lba: u64, count: u64) {
        self.read = None;
        self.tell(Event::Read(ReadRequest {
            token: 7,
            group: GROUP,
            range: BlockRange::new(lba, count),
            latest: true,
            at: None,
        }));
        assert_eq!(self.read, Some(true), "block {lba} cannot be read");
    }

    fn tell(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.engine
            .step(Moment(1), WallClock(1), event, &mut effects);
        self.run(effects);
    }

    fn run(&mut self, effects: Vec<Effect>) {
        let mut queue = VecDeque::from(effects);
        let mut more = Vec::new();
        while let Some(effect) = queue.pop_front() {
            match effect {
                Effect::Disk { io, op } => {
                    let result = Ok(self.device.perform(op));
                    let event = Event::Disk { io, result };
                    self.engine.step(Moment(1), WallClock(1), event, &mut more);
                    queue.extend(more.drain(..));
                }
                Effect::ReadDone { result, .. } => self.read = Some(result.is_ok()),
                Effect::Fenced(error) => panic!("fenced: {error}"),
                Effect::OpenFailed(error) => panic!("does not open: {error}"),
                _ => {}
            }
            if queue.is_empty() && self.engine.deadline() == Some(Moment(0)) {
                self.engine
                    .step(Moment(1), WallClock(1), Event::Timer, &mut more);
                queue.extend(more.drain(..));
            }
        }
    }
}

/// A configuration that writes checkpoints only when it is told to.
#[must_use]
pub fn config(device_bytes: u64, cache_bytes: usize) -> EngineConfig {
    EngineConfig {
        device_bytes,
        format_if_blank: true,
        store_entropy: 1,
        cache_bytes,
        checkpoint_bytes: u64::MAX,
        checkpoint_records: u64::MAX,
        checkpoint_entries: u64::MAX,
        delta_extents_max: usize::MAX,
        ..EngineConfig::default()
    }
}

/// Numbers without a pattern, the same every time (splitmix64).
#[derive(Clone, Copy, Debug)]
pub struct Random(pub u64);

impl Random {
    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}
