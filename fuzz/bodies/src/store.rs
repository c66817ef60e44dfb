//! A store in memory: a device of pages, an engine over it, and the small store whose images the
//! targets damage, with what each of its blocks may read as.

use arbitrary::{Arbitrary, Result, Unstructured};
use bytes::Bytes;
use esker_base::checksum::crc32;
use esker_base::{
    AlignedBuf, BlockRange, DiskError, DiskErrorKind, DiskOp, Epoch, GroupId, Moment, RaftIndex,
    ReplicaId, Stamp, Term, VolumeId, WallClock,
};
use esker_engine::event::{Append, AppendEntry, Effect, Event};
use esker_engine::format::checkpoint::{GroupMeta, Membership};
use esker_engine::format::node::{ENTRY_BYTES, FANOUT, HEAD_BYTES};
use esker_engine::format::operation::{BlockInfo, Operation, RequestId};
use esker_engine::format::record::{EntryKind, HardState};
use esker_engine::format::{PAGE, PAGE_U64, SEGMENTS_OFFSET};
use esker_engine::verify::ReadAt;
use esker_engine::{Engine, EngineConfig};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::OnceLock;

pub(crate) const SEGMENT_BYTES: u64 = 32 * PAGE_U64;
const SEGMENTS: u64 = 16;
/// Disk operations after which an engine counts as endless.
pub(crate) const OPERATIONS_MAX: usize = 20_000;
pub(crate) const WALL: WallClock = WallClock(1_700_000_000_000_000);

/// A device: the pages that are not zero.
#[derive(Clone, Debug, Default)]
pub(crate) struct Device {
    pub pages: BTreeMap<u64, Bytes>,
    pub size_bytes: u64,
}

impl Device {
    pub fn page(&self, number: u64) -> Bytes {
        static ZEROS: [u8; PAGE] = [0; PAGE];
        let page = self.pages.get(&number).cloned();
        page.unwrap_or_else(|| Bytes::from_static(&ZEROS))
    }

    pub fn set(&mut self, number: u64, page: Vec<u8>) {
        assert_eq!(page.len(), PAGE);
        self.pages.insert(number, Bytes::from(page));
    }

    /// Runs a disk operation, which must lie within the device and be aligned.
    pub fn perform(&mut self, op: DiskOp) -> std::result::Result<Bytes, DiskError> {
        match op {
            DiskOp::Read { offset, length } => {
                assert!(offset % PAGE_U64 == 0 && length % PAGE == 0 && length > 0);
                let bytes = self.read_at(offset, length)?;
                Ok(AlignedBuf::copy_of(&bytes).freeze())
            }
            DiskOp::Write { offset, bufs } => {
                let all = bufs.concat();
                assert!(offset % PAGE_U64 == 0 && all.len() % PAGE == 0 && !all.is_empty());
                let end = offset.checked_add(crate::nbd_client::to_u64(all.len()));
                if end.is_none_or(|end| end > self.size_bytes) {
                    return Err(short());
                }
                for (number, page) in (offset / PAGE_U64..).zip(all.chunks(PAGE)) {
                    self.set(number, page.to_vec());
                }
                Ok(Bytes::new())
            }
            DiskOp::Sync => Ok(Bytes::new()),
        }
    }
}

fn short() -> DiskError {
    DiskError {
        kind: DiskErrorKind::Short,
        errno: 0,
    }
}

impl ReadAt for Device {
    fn read_at(&mut self, offset: u64, length: usize) -> std::result::Result<Vec<u8>, DiskError> {
        let end = offset.checked_add(crate::nbd_client::to_u64(length));
        if end.is_none_or(|end| end > self.size_bytes) {
            return Err(short());
        }
        let mut out = Vec::with_capacity(length);
        let mut number = offset / PAGE_U64;
        while out.len() < length {
            match self.pages.get(&number) {
                Some(page) => out.extend_from_slice(page),
                None => out.resize(out.len() + PAGE, 0),
            }
            number += 1;
        }
        Ok(out)
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

pub(crate) fn config(size_bytes: u64) -> EngineConfig {
    EngineConfig {
        device_bytes: size_bytes,
        format_if_blank: true,
        segment_bytes: SEGMENT_BYTES,
        store_entropy: 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef,
        checkpoint_records: 1000,
        ..EngineConfig::default()
    }
}

/// An engine over memory that completes everything at once.
struct Maker {
    engine: Engine,
    device: Device,
}

impl Maker {
    fn new() -> Self {
        let size_bytes = SEGMENTS_OFFSET + SEGMENTS * SEGMENT_BYTES;
        let mut effects = Vec::new();
        let engine = Engine::open(config(size_bytes), &mut effects);
        let device = Device {
            size_bytes,
            ..Device::default()
        };
        let mut maker = Self { engine, device };
        maker.run(effects);
        assert!(maker.engine.is_open());
        maker
    }

    fn run(&mut self, effects: Vec<Effect>) {
        let mut queue = VecDeque::from(effects);
        while let Some(effect) = queue.pop_front() {
            let Effect::Disk { io, op } = effect else {
                continue;
            };
            let result = self.device.perform(op);
            let mut more = Vec::new();
            let event = Event::Disk { io, result };
            self.engine.step(Moment(1), WALL, event, &mut more);
            queue.extend(more);
        }
    }

    fn tell(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.engine.step(Moment(1), WALL, event, &mut effects);
        self.run(effects);
    }

    fn append(&mut self, group: GroupId, index: u64, operation: &Operation, payload: Vec<Bytes>) {
        let data = Bytes::from(operation.encode(RequestId::default()));
        let (term, index, kind) = (Term(1), RaftIndex(index), EntryKind::Normal);
        let entries = vec![AppendEntry {
            term,
            index,
            kind,
            data,
            payload,
        }];
        let hard_state = Some(HardState {
            term,
            vote: ReplicaId(7),
            commit: RaftIndex(index.0 - 1),
        });
        self.tell(Event::Append(Append {
            group,
            ticket: index.0,
            entries,
            hard_state,
            urgent: true,
        }));
    }
}

/// A small store and what its blocks may read as.
pub(crate) struct Golden {
    pub device: Device,
    /// By group and block.
    pub versions: BTreeMap<(u64, u64), Versions>,
}

/// What was ever in a block.
#[derive(Debug)]
pub(crate) struct Versions {
    /// The tag of every version, the newest last; zero stands for a block of zeros.
    tags: Vec<u8>,
    /// Which of them the last checkpoint holds.
    kept: usize,
}

impl Versions {
    fn new() -> Self {
        Self {
            tags: vec![0],
            kept: 0,
        }
    }

    /// What the block may read as. What a checkpoint holds is never lost; of the log after it, a
    /// tail may be taken for torn when the records that say otherwise are damaged too.
    pub fn allowed(&self) -> &[u8] {
        &self.tags[self.kept..]
    }
}

fn block(tag: u8) -> Vec<u8> {
    let fill = (0..PAGE).map(|i| tag.wrapping_add((i % 251).to_le_bytes()[0]));
    fill.collect()
}

/// The tag of a block made by [`block`], or zero for one of zeros.
pub(crate) fn tag_of(bytes: &[u8]) -> Option<u8> {
    if bytes.iter().all(|b| *b == 0) {
        return Some(0);
    }
    (bytes == block(bytes[0])).then_some(bytes[0])
}

/// The store: two volumes of one copy with overwrites, discards, several checkpoints and a tail of
/// log, and one of three copies with entries that are not committed.
pub(crate) fn golden() -> &'static Golden {
    static GOLDEN: OnceLock<Golden> = OnceLock::new();
    GOLDEN.get_or_init(make)
}

fn meta(group: u64, voters: &[u64], blocks: u64) -> Box<GroupMeta> {
    Box::new(GroupMeta {
        group: GroupId(group),
        volume: VolumeId(u128::from(group) << 64),
        replica: ReplicaId(7),
        name: format!("volume-{group}"),
        size_bytes: blocks * PAGE_U64,
        block_bytes: 4096,
        created_us: 1_600_000_000_000_000,
        labels: BTreeMap::from([("purpose".into(), "fuzzing".into())]),
        membership: Membership {
            voters: voters.iter().copied().map(ReplicaId).collect(),
            ..Membership::default()
        },
        key_id: 0,
        feeds: GroupId(0),
    })
}

fn make() -> Golden {
    let mut maker = Maker::new();
    let mut versions = BTreeMap::<(u64, u64), Versions>::new();
    let groups: [(u64, &[u64], u64); 3] = [(1, &[7], 20_000), (2, &[7], 64), (3, &[7, 8, 9], 500)];
    for (group, voters, blocks) in groups {
        let meta = meta(group, voters, blocks);
        maker.tell(Event::Create { token: group, meta });
        let open = Operation::OpenEpoch {
            salt: 5,
            key_id: 0,
            nonce: 6,
            resealed: false,
        };
        maker.append(GroupId(group), 1, &open, Vec::new());
    }
    let mut counter = 0u32;
    for round in 0u64..8 {
        for (group, _, blocks) in groups {
            let index = 2 + round;
            counter += 8;
            let stamp = Stamp::new(Epoch(1), counter);
            let lba = (round * 37 + group * 11) % (blocks / 2) * 2 % (blocks - 8);
            if round == 5 {
                let range = BlockRange::new(lba, 5);
                (lba..lba + 5).for_each(|b| note(&mut versions, group, b, 0));
                maker.append(
                    GroupId(group),
                    index,
                    &Operation::Discard { range, stamp },
                    vec![],
                );
                continue;
            }
            // Half of the rounds write where an earlier one did.
            let lba = if round % 2 == 1 {
                group * 11 % (blocks - 8)
            } else {
                lba
            };
            let count = 1 + round % 3;
            let tag = |i: u64| (1 + round * 20 + group * 4 + i).to_le_bytes()[0];
            let bytes: Vec<u8> = (0..count).flat_map(|i| block(tag(i))).collect();
            let crcs = bytes.chunks(PAGE).map(|b| BlockInfo::plain(crc32(b)));
            let operation = Operation::Write {
                lba,
                stamp,
                key_id: 0,
                blocks: crcs.collect(),
            };
            (0..count).for_each(|i| note(&mut versions, group, lba + i, tag(i)));
            let payload = vec![AlignedBuf::copy_of(&bytes).freeze()];
            maker.append(GroupId(group), index, &operation, payload);
            let through = RaftIndex(if group == 3 { index - 1 } else { index });
            if round < 6 {
                let group = GroupId(group);
                maker.tell(Event::Apply { group, through });
            }
        }
        if round == 2 || round == 4 {
            maker.tell(Event::Checkpoint { token: 100 + round });
            versions
                .values_mut()
                .for_each(|v| v.kept = v.tags.len() - 1);
        }
    }
    Golden {
        device: maker.device,
        versions,
    }
}

fn note(versions: &mut BTreeMap<(u64, u64), Versions>, group: u64, lba: u64, tag: u8) {
    let of_block = versions.entry((group, lba)).or_insert_with(Versions::new);
    of_block.tags.push(tag);
}

/// What can happen to a device.
#[derive(Arbitrary, Debug)]
pub(crate) enum Damage {
    /// A bit flips.
    Flip { page: u16, bit: u16 },
    /// A page reads as zeros.
    Zero { page: u16 },
    /// A page holds what belongs to another place.
    Misdirect { from: u16, to: u16 },
    /// A page's second half, in 512-byte sectors, is what it was before: zeros.
    Tear { page: u16, sectors: u8 },
    /// The device is shorter.
    Truncate { pages: u16 },
}

/// Somebody rewrites a page and mends every checksum over it.
#[derive(Arbitrary, Debug)]
pub(crate) struct Forgery<'a> {
    page: u16,
    at: u16,
    /// Put at `at`; or added to the number there, for small steps from valid values.
    bytes: &'a [u8],
    add: Option<i8>,
}

/// Pages that are not zero, in order: what damage and forgery choose among.
pub(crate) fn occupied(device: &Device) -> Vec<u64> {
    device.pages.keys().copied().collect()
}

fn pick(pages: &[u64], choice: u16) -> u64 {
    pages[usize::from(choice) % pages.len()]
}

impl Damage {
    pub fn apply(&self, device: &mut Device, pages: &[u64]) {
        match self {
            Self::Flip { page, bit } => {
                let number = pick(pages, *page);
                let mut bytes = device.page(number).to_vec();
                bytes[usize::from(bit / 8) % PAGE] ^= 1 << (bit % 8);
                device.set(number, bytes);
            }
            Self::Zero { page } => _ = device.pages.remove(&pick(pages, *page)),
            Self::Misdirect { from, to } => {
                let bytes = device.page(pick(pages, *from)).to_vec();
                device.set(pick(pages, *to), bytes);
            }
            Self::Tear { page, sectors } => {
                let number = pick(pages, *page);
                let mut bytes = device.page(number).to_vec();
                bytes[512 * usize::from(sectors % 8)..].fill(0);
                device.set(number, bytes);
            }
            Self::Truncate { pages } => {
                device.size_bytes -= (u64::from(*pages) * PAGE_U64).min(device.size_bytes);
                let end = device.size_bytes / PAGE_U64;
                device.pages.split_off(&end);
            }
        }
    }
}

impl Forgery<'_> {
    pub fn apply(&self, device: &mut Device, pages: &[u64]) {
        let number = pick(pages, self.page);
        let before = device.page(number);
        let mut bytes = before.to_vec();
        let at = usize::from(self.at) % PAGE;
        if let Some(add) = self.add {
            bytes[at] = bytes[at].wrapping_add_signed(add);
        } else {
            for (byte, new) in bytes[at..].iter_mut().zip(self.bytes) {
                *byte = *new;
            }
        }
        // A superblock has four copies, and two must agree.
        if bytes.starts_with(b"ESKERSTO") {
            for number in pages
                .iter()
                .copied()
                .filter(|n| *n < SEGMENTS_OFFSET / PAGE_U64)
            {
                let copy = device.page(number)[16..20].to_vec();
                let mut bytes = bytes.clone();
                bytes[16..20].copy_from_slice(&copy);
                crate::formats::seal(&mut bytes, 12);
                device.set(number, bytes);
            }
            return;
        }
        mend(device, pages, number, &before, bytes, &mut BTreeSet::new());
    }
}

/// Stores a changed page with its own checksum mended, and then every page that holds the checksum
/// it had, up to the superblocks.
fn mend(
    device: &mut Device,
    pages: &[u64],
    number: u64,
    before: &Bytes,
    mut bytes: Vec<u8>,
    seen: &mut BTreeSet<u64>,
) {
    if !seen.insert(number) {
        return;
    }
    if bytes.starts_with(b"ESKERSTO") {
        crate::formats::seal(&mut bytes, 12);
    } else if bytes.starts_with(b"ESKERCKP") {
        // The body's checksum covers the body's length, which only the superblock knows.
        let length = usize::try_from(checkpoint_bytes(device)).expect("64-bit");
        if (32..=PAGE).contains(&length) {
            let crc = crc32(&bytes[32..length]);
            bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        }
    } else if bytes.starts_with(b"ESTB") {
        crate::formats::seal(&mut bytes, 56);
    } else if bytes.starts_with(b"ESRK") && bytes[6..8] == [1, 0] {
        crate::formats::seal(&mut bytes, 8);
    }
    let (old, new) = (crc32(before).to_le_bytes(), crc32(&bytes).to_le_bytes());
    device.set(number, bytes);
    if old == new {
        return;
    }
    for other in pages.iter().copied().filter(|other| *other != number) {
        let holder = device.page(other);
        let mut changed = holder.to_vec();
        for at in checksums_in(&holder) {
            if holder[at..at + 4] == old {
                changed[at..at + 4].copy_from_slice(&new);
            }
        }
        if changed != *holder {
            mend(device, pages, other, &holder, changed, seen);
        }
    }
}

/// Where a page may hold the checksum of another: as a map node, as a superblock, or anywhere in a
/// checkpoint or a page of a table.
fn checksums_in(page: &[u8]) -> Box<dyn Iterator<Item = usize>> {
    if page.starts_with(b"ESND") {
        Box::new((0..FANOUT).map(|i| HEAD_BYTES + i * ENTRY_BYTES + 23))
    } else if page.starts_with(b"ESKERSTO") {
        Box::new((268..PAGE - 3).step_by(16))
    } else if page.starts_with(b"ESTB") {
        Box::new(64..PAGE - 3)
    } else if page.starts_with(b"ESKERCKP") {
        Box::new(0..PAGE - 3)
    } else {
        Box::new(std::iter::empty())
    }
}

fn checkpoint_bytes(device: &Device) -> u64 {
    let superblock = esker_engine::format::superblock::Superblock::decode(&device.page(0));
    superblock.map_or(0, |(superblock, _)| superblock.checkpoint_bytes)
}

/// At most `most` values.
pub(crate) fn some<'a, T: Arbitrary<'a>>(u: &mut Unstructured<'a>, most: usize) -> Result<Vec<T>> {
    let mut all = Vec::new();
    while all.len() < most && !u.is_empty() {
        all.push(T::arbitrary(u)?);
    }
    Ok(all)
}
