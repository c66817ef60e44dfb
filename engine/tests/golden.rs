//! Golden images: a store of every version of the format, as its nonzero pages, with its decoded
//! dump. Today's code must read each and decode it to the same text.
//!
//! `ESKER_BLESS=1 cargo test -p esker-engine --test golden` writes the image and dump of the
//! current version anew; that is only right together with a bump of the version. `ESKER_BLESS_DUMPS=1`
//! writes the dumps alone, for structures that got a field which older versions do not have.

use bytes::Bytes;
use esker_base::checksum::crc32;
use esker_base::{
    AlignedBuf, BlockRange, DiskOp, Epoch, GroupId, Moment, RaftIndex, ReplicaId, Stamp, Term,
    VolumeId, WallClock,
};
use esker_engine::event::{Append, AppendEntry, Effect, Event};
use esker_engine::format::checkpoint::RootMac;
use esker_engine::format::checkpoint::{GroupMeta, Membership};
use esker_engine::format::operation::{BlockInfo, Operation, RequestId};
use esker_engine::format::record::{EntryKind, HardState};
use esker_engine::format::{PAGE, SEGMENTS_OFFSET};
use esker_engine::inspect::{inspect, What};
use esker_engine::verify::{verify, MemoryDevice, Offline};
use esker_engine::vouch::{RootSigner, RootSigners, Statement};
use esker_engine::{Engine, EngineConfig, OpenError};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

const SEGMENT_BYTES: u64 = 32 * 4096;
const SEGMENTS: u64 = 16;
const VERSION: u32 = 8;
/// The oldest version that is still read.
const OLDEST: u32 = 4;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

/// An engine over memory that completes everything at once.
struct Bench {
    engine: Engine,
    device: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let size = SEGMENTS_OFFSET + SEGMENTS * SEGMENT_BYTES;
        let config = EngineConfig {
            device_bytes: size,
            format_if_blank: true,
            segment_bytes: SEGMENT_BYTES,
            store_entropy: 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef,
            ..EngineConfig::default()
        };
        let mut effects = Vec::new();
        let engine = Engine::open(config, &mut effects);
        let mut bench = Self {
            engine,
            device: vec![0; usize::try_from(size).expect("small")],
        };
        bench.run(effects);
        assert!(bench.engine.is_open());
        bench
    }

    fn run(&mut self, effects: Vec<Effect>) {
        let mut queue = VecDeque::from(effects);
        while let Some(effect) = queue.pop_front() {
            let Effect::Disk { io, op } = effect else {
                continue;
            };
            let bytes = match op {
                DiskOp::Read { offset, length } => {
                    let at = usize::try_from(offset).expect("small");
                    AlignedBuf::copy_of(&self.device[at..at + length]).freeze()
                }
                DiskOp::Write { offset, bufs } => {
                    let at = usize::try_from(offset).expect("small");
                    let all = bufs.concat();
                    self.device[at..at + all.len()].copy_from_slice(&all);
                    Bytes::new()
                }
                DiskOp::Sync => Bytes::new(),
            };
            let mut more = Vec::new();
            let event = Event::Disk {
                io,
                result: Ok(bytes),
            };
            self.engine.step(
                Moment(1),
                WallClock(1_700_000_000_000_000),
                event,
                &mut more,
            );
            queue.extend(more);
        }
    }

    fn tell(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.engine.step(
            Moment(1),
            WallClock(1_700_000_000_000_000),
            event,
            &mut effects,
        );
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
            commit: RaftIndex(0),
        });
        let append = Append {
            group,
            ticket: index.0,
            entries,
            hard_state,
            urgent: true,
        };
        self.tell(Event::Append(append));
    }
}

fn block(tag: u8) -> Vec<u8> {
    (0..PAGE)
        .map(|i| tag.wrapping_add(u8::try_from(i % 251).expect("small")))
        .collect()
}

fn write(lba: u64, counter: u32, tags: &[u8]) -> (Operation, Vec<Bytes>) {
    let bytes: Vec<u8> = tags.iter().flat_map(|tag| block(*tag)).collect();
    let blocks = bytes
        .chunks(PAGE)
        .map(|b| BlockInfo::plain(crc32(b)))
        .collect();
    let stamp = Stamp::new(Epoch(1), counter);
    let operation = Operation::Write {
        lba,
        stamp,
        key_id: 0,
        blocks,
    };
    (operation, vec![AlignedBuf::copy_of(&bytes).freeze()])
}

fn meta(group: u64, name: &str, blocks: u64) -> Box<GroupMeta> {
    Box::new(GroupMeta {
        group: GroupId(group),
        volume: VolumeId(u128::from(group) << 64),
        replica: ReplicaId(7),
        name: name.into(),
        size_bytes: blocks * 4096,
        block_bytes: 4096,
        created_us: 1_600_000_000_000_000,
        labels: BTreeMap::from([("purpose".into(), "golden".into())]),
        membership: Membership {
            voters: vec![ReplicaId(7)],
            ..Membership::default()
        },
        key_id: 0,
        feeds: GroupId(0),
    })
}

/// The same history every time: two volumes, one with a map of two levels and unapplied entries,
/// a third that is deleted.
fn make() -> Vec<u8> {
    let mut b = Bench::new();
    let (alpha, beta) = (GroupId(1), GroupId(2));
    b.tell(Event::Create {
        token: 1,
        meta: meta(1, "alpha", 1000),
    });
    b.tell(Event::Create {
        token: 2,
        meta: meta(2, "beta", 64),
    });
    b.tell(Event::Create {
        token: 3,
        meta: meta(3, "gone", 64),
    });
    for group in [alpha, beta] {
        b.append(
            group,
            1,
            &Operation::OpenEpoch {
                salt: 5,
                key_id: 0,
                nonce: 6,
                resealed: false,
            },
            Vec::new(),
        );
    }
    let (operation, payload) = write(3, 1, &[1, 2, 3]);
    b.append(alpha, 2, &operation, payload);
    let (operation, payload) = write(300, 4, &[4]);
    b.append(alpha, 3, &operation, payload);
    let stamp = Stamp::new(Epoch(1), 5);
    b.append(
        alpha,
        4,
        &Operation::Discard {
            range: BlockRange::new(4, 1),
            stamp,
        },
        Vec::new(),
    );
    let (operation, payload) = write(0, 1, &[9]);
    b.append(beta, 2, &operation, payload);
    // Two snapshots of one volume, with changes between and after them.
    for (n, tag) in [(0u32, 13), (1, 14)] {
        let snapshot = Operation::Snapshot {
            stamp: Stamp::new(Epoch(1), 6 + 2 * n),
            created_us: 1_600_000_000_000_001,
            name: format!("snap{n}"),
            labels: BTreeMap::from([("kept".into(), "yes".into())]),
        };
        b.append(alpha, 5 + 2 * u64::from(n), &snapshot, Vec::new());
        let (operation, payload) = write(3, 7 + 2 * n, &[tag]);
        b.append(alpha, 6 + 2 * u64::from(n), &operation, payload);
    }
    // A volume that began at the first of them, with a change of its own.
    let clone = Operation::Clone {
        cut: Stamp::new(Epoch(1), 6),
        group: GroupId(9),
        volume: VolumeId(9 << 64),
        created_us: 1_600_000_000_000_002,
        name: "delta".into(),
        labels: BTreeMap::from([("purpose".into(), "golden".into())]),
        members: Vec::new(),
    };
    b.append(alpha, 9, &clone, Vec::new());
    b.tell(Event::Apply {
        group: alpha,
        through: RaftIndex(9),
    });
    let (mut operation, payload) = write(4, 1, &[30]);
    if let Operation::Write { stamp, .. } = &mut operation {
        *stamp = Stamp::new(Epoch(2), 1);
    }
    b.append(GroupId(9), 2, &operation, payload);
    b.tell(Event::Apply {
        group: GroupId(9),
        through: RaftIndex(2),
    });
    // Mostly the same blocks again and again, until what else lives in those segments is collected.
    for n in 0..80 {
        let (lba, tags): (u64, &[u8]) = match n % 4 {
            0 => (16 + u64::from(n / 4), &[21]),
            _ => (8, &[20; 8]),
        };
        let (operation, payload) = write(lba, 2 + 8 * n, tags);
        b.append(beta, 3 + u64::from(n), &operation, payload);
        b.tell(Event::Apply {
            group: beta,
            through: RaftIndex(3 + u64::from(n)),
        });
    }
    sealed(&mut b);
    b.tell(Event::Delete {
        token: 4,
        group: GroupId(3),
    });
    b.tell(Event::Checkpoint { token: 5 });
    let (operation, payload) = write(900, 10, &[11, 12]);
    b.append(alpha, 10, &operation, payload);
    b.tell(Event::Rename {
        token: 6,
        group: beta,
        name: "gamma".into(),
    });
    b.device
}

/// What says of every statement that it is right, in its own words.
#[derive(Debug)]
struct Signer;

impl RootSigner for Signer {
    fn mac(&self, group: GroupId, statement: &Statement) -> RootMac {
        let mut mac = *statement;
        mac[0] ^= group.0.to_le_bytes()[0];
        mac
    }

    fn is_right(&self, group: GroupId, statement: &Statement, mac: &RootMac) -> bool {
        self.mac(group, statement) == *mac
    }
}

/// An encrypted volume; its blocks are as good as any that no key is at hand for.
fn sealed(b: &mut Bench) {
    let group = GroupId(4);
    let meta = Box::new(GroupMeta {
        key_id: 1,
        ..*meta(4, "secret", 64)
    });
    b.tell(Event::Create { token: 7, meta });
    let signers = RootSigners::from([(1, Arc::new(Signer) as Arc<dyn RootSigner>)]);
    b.engine.vouch(group, signers).expect("nothing is there");
    let (salt, key_id, nonce) = (8, 1, 9);
    let epoch = Operation::OpenEpoch {
        resealed: false,
        salt,
        key_id,
        nonce,
    };
    b.append(group, 1, &epoch, Vec::new());
    let bytes = block(77);
    let operation = Operation::Write {
        lba: 5,
        stamp: Stamp::new(Epoch(1), 1),
        key_id,
        blocks: vec![BlockInfo::sealed(crc32(&bytes), &[0xa5; 12])],
    };
    b.append(
        group,
        2,
        &operation,
        vec![AlignedBuf::copy_of(&bytes).freeze()],
    );
    let through = RaftIndex(2);
    b.tell(Event::Apply { group, through });
}

fn to_pages(device: &[u8]) -> Vec<u8> {
    let mut out = u64::try_from(device.len())
        .expect("small")
        .to_le_bytes()
        .to_vec();
    for (n, page) in device
        .chunks(PAGE)
        .enumerate()
        .filter(|(_, p)| p.iter().any(|b| *b != 0))
    {
        out.extend_from_slice(&u64::try_from(n * PAGE).expect("small").to_le_bytes());
        out.extend_from_slice(page);
    }
    out
}

fn from_pages(bytes: &[u8]) -> Vec<u8> {
    let number = |at: usize| {
        let word: [u8; 8] = bytes[at..at + 8].try_into().expect("eight bytes");
        usize::try_from(u64::from_le_bytes(word)).expect("small")
    };
    let mut device = vec![0; number(0)];
    for at in (8..bytes.len()).step_by(8 + PAGE) {
        let offset = number(at);
        device[offset..offset + PAGE].copy_from_slice(&bytes[at + 8..at + 8 + PAGE]);
    }
    device
}

fn dump(device: &[u8]) -> String {
    let mut device = MemoryDevice(device.to_vec());
    let mut out = String::new();
    let mut add = |device: &mut MemoryDevice, what| {
        _ = writeln!(out, "== {what:?}");
        _ = writeln!(out, "{}", inspect(device, what).expect("decodes"));
    };
    add(&mut device, What::Superblock);
    add(&mut device, What::Checkpoint);
    for segment in 0..u32::try_from(SEGMENTS).expect("small") {
        add(&mut device, What::Segment(segment));
        let listing = inspect(&mut device, What::Segment(segment)).expect("decodes");
        for line in listing.lines() {
            let Some((slot, what)) = line.trim_start_matches("slot ").split_once(": ") else {
                continue;
            };
            let slot = slot.parse().expect("a slot");
            if what.starts_with("survivors") || what.starts_with("page of table") {
                continue;
            }
            if what.starts_with("record") {
                add(&mut device, What::Record(segment, slot));
            } else {
                add(&mut device, What::Node(segment, slot));
            }
        }
    }
    out
}

#[test]
fn images_of_every_version_are_read() {
    if std::env::var_os("ESKER_BLESS").is_some() {
        let device = make();
        std::fs::write(path(&format!("v{VERSION}.pages")), to_pages(&device)).expect("written");
        std::fs::write(path(&format!("v{VERSION}.dump")), dump(&device)).expect("written");
    }
    for version in OLDEST..=VERSION {
        if std::env::var_os("ESKER_BLESS_DUMPS").is_some() {
            let pages = std::fs::read(path(&format!("v{version}.pages"))).expect("image is there");
            let text = dump(&from_pages(&pages));
            std::fs::write(path(&format!("v{version}.dump")), text).expect("written");
        }
        let pages = std::fs::read(path(&format!("v{version}.pages"))).expect("image is there");
        let device = from_pages(&pages);
        let expected = std::fs::read_to_string(path(&format!("v{version}.dump"))).expect("dump");
        assert_eq!(
            dump(&device),
            expected,
            "version {version} decodes differently"
        );

        let mut memory = MemoryDevice(device.clone());
        let report = verify(&mut memory, &mut |_| {}).expect("opens");
        assert_eq!(report.problems, Vec::<String>::new(), "version {version}");
        assert_eq!(
            (report.volumes, report.blocks),
            match version {
                ..5 => (2, 36),
                5..7 => (3, 37),
                _ => (4, 38), // one is encrypted
            },
            "version {version}"
        );
        assert!(
            expected.contains(" survivors generation"),
            "nothing was collected"
        );

        let mut memory = MemoryDevice(device);
        let mut offline = Offline::open(&mut memory).expect("opens");
        let names: Vec<String> = offline
            .opened
            .groups
            .iter()
            .map(|g| g.meta.name.clone())
            .collect();
        match version {
            ..5 => assert_eq!(names, ["alpha", "gamma"]),
            5..7 => assert_eq!(names, ["alpha", "gamma", "delta"]),
            _ => assert_eq!(names, ["alpha", "gamma", "secret", "delta"]),
        }
        let mut read = |group, lba| {
            let range = BlockRange::new(lba, 1);
            offline
                .read_blocks(GroupId(group), range)
                .expect("readable")
        };
        assert_eq!(read(1, 3), block(14));
        assert_eq!(read(1, 4), vec![0; PAGE], "discarded");
        assert_eq!(read(1, 5), block(3));
        assert_eq!(read(1, 300), block(4));
        assert_eq!(read(1, 901), block(12), "appended after the checkpoint");
        assert_eq!(read(2, 0), block(9));
        if version > 6 {
            assert_eq!(read(4, 5), block(77), "as it is stored");
        }
        if version > 4 {
            let mut read = |lba| {
                let range = BlockRange::new(lba, 1);
                offline.read_blocks(GroupId(9), range).expect("readable")
            };
            assert_eq!((read(3), read(4)), (block(1), block(30)));
        }
        let snapshots = offline.engine.snapshots(GroupId(1));
        for (snapshot, tag) in snapshots.iter().zip([1, 13]) {
            let has_clone = version > 4 && tag == 1;
            // The clone still has all that it began with.
            let unique = u64::from(!has_clone);
            assert_eq!(snapshot.unique_blocks, Some(unique), "{snapshot:?}");
            let at = (GroupId(1), BlockRange::new(3, 1));
            let bytes = offline.read_snapshot(at.0, snapshot.cut, at.1);
            assert_eq!(bytes.expect("readable"), block(tag));
        }
        assert_eq!(snapshots.len(), 2);
    }
}

/// Before version 1.0 a format that is no longer read is refused, by name and untouched.
#[test]
fn images_of_older_versions_are_refused() {
    for version in 1..OLDEST {
        let pages = std::fs::read(path(&format!("v{version}.pages"))).expect("image is there");
        let mut memory = MemoryDevice(from_pages(&pages));
        let refused = verify(&mut memory, &mut |_| {}).expect_err("refused");
        assert!(matches!(refused, OpenError::Older(_)), "{refused:?}");
        assert!(refused.to_string().contains("older version"), "{refused}");
    }
}
