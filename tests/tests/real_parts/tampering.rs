//! Somebody changes what lies on the device: what the checksums find without a key, and what only the key finds.

use crate::client::{Client, EIO};
use crate::harness::{run, Daemon, Folder, Start};
use esker_base::checksum::crc32;
use esker_base::Stamp;
use esker_engine::format::checkpoint::Checkpoint;
use esker_engine::format::operation::{BlockInfo, Operation};
use esker_engine::format::record::{ItemBody, RecordHeader, MAGIC};
use esker_engine::format::superblock::{Superblock, COPIES};
use esker_engine::format::vaddr::VAddr;
use esker_engine::format::SEGMENTS_OFFSET;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::xxh3_64;

pub(crate) const BLOCK: u64 = 4096;
pub(crate) const BLOCKS: u64 = 64;
/// Blocks that are changed in one way each.
const FLIPPED: u64 = 10;
const SWAPPED: [u64; 2] = [20, 21];
pub(crate) const REPLAYED: u64 = 30;
/// In a record's header.
const CRC_AT: usize = 8;
const PREV_HASH_AT: usize = 48;

/// What a block holds in its versions.
pub(crate) fn block(lba: u64, version: u64) -> Vec<u8> {
    let words = (0..BLOCK / 8).map(|i| (version << 48 | lba << 16 | i).wrapping_mul(0x9e37_79b9));
    words.flat_map(u64::to_le_bytes).collect()
}

pub(crate) fn start(folder: &Folder, store: &Path) -> Start {
    let store = store.to_str().unwrap();
    Start::new(&folder.join("d")).with(&["--store", store, "--scrub-rate", "none"])
}

/// An encrypted volume and a plain one, each with two versions of its blocks, on a store that was stopped or
/// killed.
pub(crate) fn made(folder: &Folder, is_clean: bool) -> PathBuf {
    let store = folder.join("good.esker");
    let size = 1 << 30;
    let words = ["--store-size", "1GiB"];
    let daemon = start(folder, &store).with(&words).ready();
    let words = ["volume", "create", "sealed", "--size", "1MiB", "--encrypt"];
    daemon.esker(&words).ok();
    daemon.create("plain", "1MiB");
    for version in [1, 2] {
        for name in ["sealed", "plain"] {
            let mut client = daemon.client(name);
            for lba in 0..BLOCKS {
                let data = block(lba, version);
                client.write(lba * BLOCK, &data, 0).unwrap().unwrap();
            }
            client.flush().unwrap().unwrap();
        }
    }
    if is_clean {
        daemon.stop();
    } else {
        // Idle, so that the closing record is there.
        std::thread::sleep(std::time::Duration::from_millis(300));
        daemon.kill();
    }
    assert_eq!(fs::metadata(&store).unwrap().len(), size);
    store
}

/// Where a version of a block lies, and the record that says so.
#[derive(Clone, Debug)]
struct Place {
    /// Of its bytes.
    at: u64,
    /// What the record says of it: a CRC; when it is sealed, the CRC, and it again with the tag.
    proof: Vec<u8>,
    /// Of the record.
    record: u64,
}

/// Whoever has the device and knows the format.
struct Attacker {
    file: File,
    /// By sealed or not, LBA and version.
    places: BTreeMap<(bool, u64, usize), Place>,
    /// Offsets and bytes of the headers of records, in the order of the log.
    records: Vec<(u64, usize)>,
}

/// Blocks that an entry of the log wrote.
pub(crate) struct Written {
    /// Of the record.
    pub record: u64,
    /// Of the first block's bytes.
    pub at: u64,
    pub lba: u64,
    pub is_sealed: bool,
    /// Of the first block.
    pub stamp: Stamp,
    pub vaddr: VAddr,
    pub blocks: Vec<BlockInfo>,
}

/// Offsets and lengths of the headers of all records of a store that was never collected, and what they wrote.
pub(crate) fn log_of(file: &File) -> (Vec<(u64, usize)>, Vec<Written>) {
    let (mut records, mut all) = (Vec::new(), Vec::new());
    let size = file.metadata().unwrap().len();
    let (mut at, mut window) = (SEGMENTS_OFFSET, vec![0; 64 << 10]);
    while at < size {
        let mut magic = [0; 4];
        file.read_exact_at(&mut magic, at).unwrap();
        let count = match u32::from_le_bytes(magic) == MAGIC {
            true => file.read_at(&mut window, at).unwrap(),
            false => 0,
        };
        let Ok((header, items, _)) = RecordHeader::decode(&window[..count]) else {
            at += BLOCK;
            continue;
        };
        let header_bytes = usize::from(header.header_pages) * BLOCK as usize;
        records.push((at, header_bytes));
        for item in items {
            let ItemBody::Entry {
                payload_page, data, ..
            } = item.body
            else {
                continue;
            };
            if let Ok((
                Operation::Write {
                    lba,
                    stamp,
                    key_id,
                    blocks,
                },
                _,
            )) = Operation::decode(&data)
            {
                all.push(Written {
                    record: at,
                    at: at + header_bytes as u64 + u64::from(payload_page) * BLOCK,
                    lba,
                    is_sealed: key_id != 0,
                    stamp,
                    vaddr: VAddr::new(
                        header.generation,
                        header.slot + u32::from(header.header_pages) + payload_page,
                    ),
                    blocks,
                });
            }
        }
        at += u64::from(header.pages()) * BLOCK;
    }
    (records, all)
}

impl Attacker {
    fn new(store: &Path) -> Self {
        let file = File::options().read(true).write(true).open(store).unwrap();
        let (records, all) = log_of(&file);
        let mut places = BTreeMap::new();
        let mut versions: BTreeMap<(bool, u64), usize> = BTreeMap::new();
        for written in all {
            let sealed = written.is_sealed;
            for (n, info) in (0..).zip(&written.blocks) {
                let lba = written.lba + n;
                let version = versions.entry((sealed, lba)).or_default();
                *version += 1;
                let mut proof = info.crc.to_le_bytes().to_vec();
                if sealed {
                    proof.extend(info.auth);
                }
                let place = Place {
                    at: written.at + n * BLOCK,
                    proof,
                    record: written.record,
                };
                places.insert((sealed, lba, *version), place);
            }
        }
        assert_eq!(places.len() as u64, 4 * BLOCKS, "every version is found");
        Self {
            file,
            places,
            records,
        }
    }

    fn place(&self, sealed: bool, lba: u64, version: usize) -> Place {
        self.places[&(sealed, lba, version)].clone()
    }

    fn bytes(&self, place: &Place) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK as usize];
        self.file.read_exact_at(&mut bytes, place.at).unwrap();
        bytes
    }

    /// Puts bytes in a block's place; with a forged proof, the record says so, and those after it
    /// carry its new hash.
    fn put(&self, place: &Place, bytes: &[u8], forged: Option<&[u8]>) {
        self.file.write_all_at(bytes, place.at).unwrap();
        let Some(proof) = forged else { return };
        let mut hash = None;
        for (at, length) in &self.records {
            let mut header = vec![0; *length];
            self.file.read_exact_at(&mut header, *at).unwrap();
            if *at == place.record {
                let found = header.windows(proof.len()).position(|w| w == place.proof);
                let found = found.unwrap();
                header[found..found + proof.len()].copy_from_slice(proof);
            } else if let Some(hash) = hash {
                header[PREV_HASH_AT..PREV_HASH_AT + 8].copy_from_slice(&u64::to_le_bytes(hash));
            } else {
                continue;
            }
            header[CRC_AT..CRC_AT + 4].fill(0);
            let crc = crc32(&header);
            header[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
            hash = Some(xxh3_64(&header));
            self.file.write_all_at(&header, *at).unwrap();
        }
    }

    /// A bit of one block, two blocks for each other, and an older version for the newest; of one volume.
    fn tamper(&mut self, sealed: bool, is_forged: bool) {
        let place = self.place(sealed, FLIPPED, 2);
        let mut bytes = self.bytes(&place);
        bytes[100] ^= 4;
        let mut proof = place.proof.clone();
        for at in (0..proof.len().min(8)).step_by(4) {
            proof[at..at + 4].copy_from_slice(&crc32(&bytes).to_le_bytes());
        }
        self.put(&place, &bytes, is_forged.then_some(&proof[..]));

        let [a, b] = SWAPPED.map(|lba| self.place(sealed, lba, 2));
        let (of_a, of_b) = (self.bytes(&a), self.bytes(&b));
        self.put(&a, &of_b, is_forged.then_some(&b.proof[..]));
        self.put(&b, &of_a, is_forged.then_some(&a.proof[..]));

        let [old, new] = [1, 2].map(|version| self.place(sealed, REPLAYED, version));
        self.put(&new, &self.bytes(&old), is_forged.then_some(&old.proof[..]));
    }
}

/// The blocks that were changed.
fn changed() -> [u64; 4] {
    [FLIPPED, SWAPPED[0], SWAPPED[1], REPLAYED]
}

/// Blocks that cannot be read; all others are right, or `wrong` is told.
pub(crate) fn unreadable(daemon: &Daemon, name: &str, wrong: &mut Vec<u64>) -> Vec<u64> {
    let mut client = daemon.client(name);
    let mut refused = Vec::new();
    for lba in 0..BLOCKS {
        match client.read(lba * BLOCK, BLOCK as u32).unwrap() {
            Ok(data) if data == block(lba, 2) => {}
            Ok(_) => wrong.push(lba),
            Err(error) => {
                assert_eq!(error, EIO);
                refused.push(lba);
            }
        }
    }
    refused
}

/// What a scrub of a volume finds, by block.
pub(crate) fn scrubbed(daemon: &Daemon, name: &str) -> Vec<u64> {
    let done = daemon.esker(&["-o", "json", "volume", "scrub", name]);
    let found: serde_json::Value = serde_json::from_str(&done.out).unwrap();
    let damaged = found["damaged"].as_array().unwrap();
    let mut blocks = Vec::new();
    for damage in damaged {
        assert_eq!(damage["volume"], name);
        let [offset, length] = ["offset", "length"].map(|of| damage[of].as_u64().unwrap());
        blocks.extend((offset / BLOCK..(offset + length) / BLOCK).collect::<Vec<u64>>());
    }
    assert_eq!(done.code, Some(i32::from(!blocks.is_empty())));
    blocks
}

pub(crate) fn verify(store: &Path) -> (Option<i32>, String) {
    let esker = crate::harness::program("esker");
    let done = run(
        esker.to_str().unwrap(),
        &["verify", store.to_str().unwrap()],
    );
    (done.code, done.out + &done.err)
}

pub(crate) fn metric(address: &str, name: &str) -> u64 {
    crate::metrics::Scrape::of(address).get(&format!("{name}{{store=\"0\"}}")) as u64
}

/// Each block that was changed, in the log, by volume and offset. A thread of its own writes the log: a line may come after
/// the answer it is about.
fn told(daemon: &Daemon, name: &str) {
    let end = Instant::now() + Duration::from_secs(20);
    let lines = |log: &str| {
        log.lines()
            .filter(|l| l.contains("read failed") && l.contains(name))
            .count()
    };
    while lines(&daemon.log()) < changed().len() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
    let log = daemon.log();
    for lba in changed() {
        let line = |l: &&str| {
            l.contains("read failed")
                && l.contains(name)
                && l.contains(&format!("block lba {lba} "))
        };
        assert!(log.lines().any(|l| line(&l)), "{name} {lba}: {log}");
    }
}

#[test]
fn what_checksums_find_needs_no_key() {
    let folder = Folder::new();
    let store = made(&folder, true);
    let mut attacker = Attacker::new(&store);
    attacker.tamper(true, false);
    attacker.tamper(false, false);
    drop(attacker);
    let (code, out) = verify(&store);
    assert_eq!(code, Some(1), "{out}");
    for name in ["sealed", "plain"] {
        for lba in changed() {
            let line = |l: &&str| l.contains(&format!("volume {name} at byte {}:", lba * BLOCK));
            assert!(out.lines().any(|l| line(&l)), "{name} {lba}: {out}");
        }
    }
    // Without the key: the sealed volume is locked, and scrubbed all the same.
    let (keyring, away) = (folder.join("d/keyring"), folder.join("away"));
    fs::rename(&keyring, &away).unwrap();
    let daemon = start(&folder, &store).ready();
    assert!(Client::unix(&daemon.socket(), "sealed").is_err());
    for name in ["sealed", "plain"] {
        assert_eq!(scrubbed(&daemon, name), changed());
    }
    daemon.stop();
    fs::rename(&away, &keyring).unwrap();
    let address = crate::harness::free_address();
    let daemon = start(&folder, &store).metrics(&address).ready();
    let mut wrong = Vec::new();
    for (round, name) in (1..).zip(["sealed", "plain"]) {
        assert_eq!(unreadable(&daemon, name, &mut wrong), changed());
        told(&daemon, name);
        assert_eq!(metric(&address, "esker_damaged_blocks"), 4 * round);
    }
    assert!(wrong.is_empty(), "{wrong:?}");
    assert_eq!(metric(&address, "esker_blocks_refused_total"), 0);
    daemon.stop();
}

#[test]
fn what_is_forged_with_its_checksum_is_found_by_the_key_alone() {
    let folder = Folder::new();
    let store = made(&folder, false);
    let mut attacker = Attacker::new(&store);
    attacker.tamper(true, true);
    attacker.tamper(false, true);
    drop(attacker);
    crate::harness::verify(&store);
    let address = crate::harness::free_address();
    let daemon = start(&folder, &store).metrics(&address).ready();
    let (mut wrong, mut wrong_plain) = (Vec::new(), Vec::new());
    assert_eq!(unreadable(&daemon, "sealed", &mut wrong), changed());
    assert!(wrong.is_empty(), "{wrong:?}");
    told(&daemon, "sealed");
    assert_eq!(metric(&address, "esker_blocks_refused_total"), 4);
    // Nobody can tell in a volume without a key: this is what its checksums are not for.
    assert!(unreadable(&daemon, "plain", &mut wrong_plain).is_empty());
    assert_eq!(wrong_plain, changed());
    for name in ["sealed", "plain"] {
        assert!(scrubbed(&daemon, name).is_empty());
    }
    daemon.stop();
}

#[test]
fn a_store_that_was_cut_off_is_refused() {
    let folder = Folder::new();
    let store = made(&folder, true);
    let file = File::options().write(true).open(&store).unwrap();
    file.set_len(512 << 20).unwrap();
    let line = start(&folder, &store).refusal(1);
    assert!(line.contains("truncated"), "{line}");
    let (code, out) = verify(&store);
    assert!(code == Some(1) && out.contains("truncated"), "{out}");
}

/// Rewrites the checkpoint of a store that was stopped, as who knows the format can.
pub(crate) fn forge_checkpoint(store: &Path, change: impl FnOnce(&mut Checkpoint)) {
    let file = File::options().read(true).write(true).open(store).unwrap();
    let page = |at| {
        let mut page = vec![0; BLOCK as usize];
        file.read_exact_at(&mut page, at).unwrap();
        page
    };
    let copies = (0..COPIES).map(|n| Superblock::decode(&page(Superblock::copy_offset(n))));
    let copies = copies.map(|copy| copy.unwrap().0);
    let mut newest = copies.max_by_key(|s| s.sequence).unwrap();
    let mut bytes = Vec::new();
    for chunk in newest.checkpoint_copies()[0] {
        for slot in chunk.slot..chunk.slot + chunk.pages {
            bytes.extend(page(newest.offset_of(chunk.segment, slot)));
        }
    }
    bytes.truncate(newest.checkpoint_bytes as usize);
    let mut checkpoint = Checkpoint::decode(&bytes).unwrap();
    change(&mut checkpoint);
    let forged = checkpoint.encode();
    let pages = |bytes: u64| bytes.div_ceil(BLOCK);
    assert_eq!(pages(forged.len() as u64), pages(newest.checkpoint_bytes));
    newest.checkpoint_bytes = forged.len() as u64;
    let copies: Vec<usize> = newest.checkpoint_copies().iter().map(|c| c.len()).collect();
    let mut at = 0;
    for count in copies {
        let mut rest = forged.clone();
        rest.resize(rest.len().div_ceil(BLOCK as usize) * BLOCK as usize, 0);
        for chunk in at..at + count {
            let (segment, slot) = (newest.chunks[chunk].segment, newest.chunks[chunk].slot);
            let length = newest.chunks[chunk].pages as usize * BLOCK as usize;
            let part: Vec<u8> = rest.drain(..length.min(rest.len())).collect();
            newest.chunks[chunk].crc = crc32(&part);
            let offset = newest.offset_of(segment, slot);
            file.write_all_at(&part, offset).unwrap();
        }
        at += count;
    }
    for copy in 0..COPIES {
        let offset = Superblock::copy_offset(copy);
        file.write_all_at(&newest.encode(copy as u32), offset)
            .unwrap();
    }
}

/// The map says that a volume was never encrypted: whoever says so has blocks of his own for it. The key that lies in
/// a slot says otherwise.
#[test]
fn an_encrypted_volume_that_is_marked_as_plain_is_not_served() {
    let folder = Folder::new();
    let store = made(&folder, true);
    forge_checkpoint(&store, |checkpoint| {
        let groups = checkpoint.groups.iter_mut();
        for group in groups.filter(|g| g.meta.name == "sealed") {
            group.meta.key_id = 0;
            group.epochs.clear();
        }
    });
    crate::harness::verify(&store);
    for _ in 0..2 {
        let daemon = start(&folder, &store).ready();
        let refused = Client::unix(&daemon.socket(), "sealed");
        let error = refused.err().expect("it was attached").to_string();
        assert!(error.contains("changed the store"), "{error}");
        let status = daemon.esker(&["status", "--why"]).out;
        assert!(status.contains("volume sealed is locked"), "{status}");
        let mut wrong = Vec::new();
        assert!(unreadable(&daemon, "plain", &mut wrong).is_empty() && wrong.is_empty());
        daemon.stop();
    }
}

/// 256 MiB of zeros: on the device no 16 bytes of them come twice, so no two blocks are the same either.
#[test]
fn zeros_leave_no_trace() {
    const CHUNK: usize = 1 << 20;
    const CHUNKS: u64 = 256;
    let folder = Folder::new();
    let store = folder.join("good.esker");
    let daemon = start(&folder, &store)
        .with(&["--store-size", "1GiB"])
        .ready();
    let words = ["volume", "create", "s", "--size", "256MiB", "--encrypt"];
    daemon.esker(&words).ok();
    let mut client = daemon.client("s");
    for chunk in 0..CHUNKS {
        let zeros = vec![0; CHUNK];
        client
            .write(chunk * CHUNK as u64, &zeros, 0)
            .unwrap()
            .unwrap();
    }
    client.flush().unwrap().unwrap();
    drop(client);
    daemon.stop();
    let file = File::open(&store).unwrap();
    let mut pages = Vec::new();
    for written in log_of(&file).1 {
        assert!(written.is_sealed);
        let mut bytes = vec![0; written.blocks.len() * BLOCK as usize];
        file.read_exact_at(&mut bytes, written.at).unwrap();
        for (block, info) in bytes.chunks(BLOCK as usize).zip(&written.blocks) {
            assert_eq!(crc32(block), info.crc, "these are the blocks");
        }
        pages.extend(bytes);
    }
    assert_eq!(pages.len() as u64, CHUNKS * CHUNK as u64);
    // In parts by their first bits, so that a part fits memory beside the blocks.
    for part in 0..16 {
        let cells = pages.chunks(16).filter(|cell| cell[0] >> 4 == part);
        let cells = cells.map(|cell| u128::from_le_bytes(cell.try_into().unwrap()));
        let mut cells: Vec<u128> = cells.collect();
        assert!(cells.len() > 1_000_000, "{} in part {part}", cells.len());
        cells.sort_unstable();
        let twice = cells.windows(2).find(|pair| pair[0] == pair[1]);
        assert_eq!(twice, None, "16 bytes come twice in what is sealed");
    }
}
