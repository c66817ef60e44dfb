//! Power cuts: a daemon records every write and sync of its store and every byte of its clients.
//! From the record, images are built of what the device may hold if the power fails at a random
//! moment, with any part of the writes no sync covers missing or torn. Every image must open; what
//! was durable at that moment must be there, and no block may hold what was never written to it.

use crate::client::{Client, FLUSH, FUA, TRIM, WRITE, WRITE_ZEROES};
use crate::harness::{setting, Folder, Start};
use crate::pattern::{content, fill, Content, Dice, BLOCK};
use esker_base::{BlockRange, ConnId, DiskError};
use esker_engine::verify::{verify, Offline, ReadAt};
use esker_runtime::replay::{Fate, Image, PowerCut};
use esker_runtime::{TraceEvent, TraceReader};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const VOLUME_BLOCKS: u64 = 2048;
const CONNECTIONS: u64 = 4;
const OWN_BLOCKS: u64 = VOLUME_BLOCKS / CONNECTIONS;
/// The client's number in the upper part of its cookies; odd ones come over TCP.
const CLIENT_SHIFT: u32 = 48;

/// An image as a device of the recorded size.
struct Device<'a> {
    image: &'a Image,
    size_bytes: u64,
}

impl ReadAt for Device<'_> {
    fn read_at(&mut self, offset: u64, length: usize) -> Result<Vec<u8>, DiskError> {
        Ok(self.image.read(offset, length))
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

/// Changes to its own blocks, several at a time, none twice at a time; flushes between.
fn load(mut client: Client, index: u64, requests: u64, volume: u64) {
    let mut dice = Dice::new(index + 1000 * volume);
    let mut busy = vec![false; OWN_BLOCKS as usize];
    let mut pending = HashMap::new();
    let mut version = 1;
    let mut sent = 0;
    while sent < requests || !pending.is_empty() {
        while sent < requests && pending.len() < 8 {
            sent += 1;
            let choice = dice.below(100);
            let count = if choice < 50 { 1 } else { 1 + dice.below(24) };
            let first = dice.below(OWN_BLOCKS - count);
            let blocks = first as usize..(first + count) as usize;
            if choice >= 94 || busy[blocks.clone()].contains(&true) {
                let cookie = client.send(0, FLUSH, 0, 0, &[]).unwrap();
                pending.insert(cookie, 0..0);
                continue;
            }
            busy[blocks.clone()].fill(true);
            let lba = index * OWN_BLOCKS + first;
            let (offset, length) = (lba * BLOCK as u64, (count * BLOCK as u64) as u32);
            let flags = if choice.is_multiple_of(10) { FUA } else { 0 };
            let cookie = if choice >= 88 {
                let kind = if choice >= 91 { TRIM } else { WRITE_ZEROES };
                client.send(flags, kind, offset, length, &[]).unwrap()
            } else {
                let payload: Vec<u8> = (0..count)
                    .flat_map(|i| {
                        version += 1;
                        fill(volume, lba + i, version)
                    })
                    .collect();
                client.send(flags, WRITE, offset, length, &payload).unwrap()
            };
            pending.insert(cookie, blocks);
        }
        let (cookie, error) = client.reply().unwrap();
        assert_eq!(error, 0);
        busy[pending.remove(&cookie).unwrap()].fill(false);
        // Now and then nothing at all, so that the store falls idle.
        if dice.below(400) == 0 {
            std::thread::sleep(std::time::Duration::from_millis(60));
        }
    }
}

/// One direction of a connection, cut into its parts as bytes come.
#[derive(Default)]
struct Wire {
    bytes: Vec<u8>,
    is_transmitting: bool,
    is_greeted: bool,
}

/// A request as the server got it.
#[derive(Clone, Debug)]
struct Request {
    flags: u16,
    kind: u16,
    cookie: u64,
    offset: u64,
    length: u32,
    payload: Vec<u8>,
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}

fn be64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[..8].try_into().unwrap())
}

impl Wire {
    fn take(&mut self, count: usize) -> Option<Vec<u8>> {
        (self.bytes.len() >= count).then(|| self.bytes.drain(..count).collect())
    }

    /// What the client sent. This test's client sends its flags, one GO, then requests.
    fn requests(&mut self, data: &[u8]) -> Vec<Request> {
        self.bytes.extend(data);
        if !self.is_transmitting {
            if self.bytes.len() < 20 {
                return Vec::new();
            }
            let length = be32(&self.bytes[16..]) as usize;
            if self.take(20 + length).is_none() {
                return Vec::new();
            }
            self.is_transmitting = true;
        }
        let mut requests = Vec::new();
        while self.bytes.len() >= 28 {
            let head = self.bytes[..28].to_vec();
            let kind = u16::from_be_bytes([head[6], head[7]]);
            let length = be32(&head[24..]);
            let payload = if kind == WRITE { length as usize } else { 0 };
            let Some(all) = self.take(28 + payload) else {
                break;
            };
            requests.push(Request {
                flags: u16::from_be_bytes([head[4], head[5]]),
                kind,
                cookie: be64(&head[8..]),
                offset: be64(&head[16..]),
                length,
                payload: all[28..].to_vec(),
            });
        }
        requests
    }

    /// What the server sent: cookies of its replies. This test's clients do not read.
    fn replies(&mut self, data: &[u8]) -> Vec<u64> {
        self.bytes.extend(data);
        if !self.is_greeted {
            if self.take(18).is_none() {
                return Vec::new();
            }
            self.is_greeted = true;
        }
        while !self.is_transmitting {
            if self.bytes.len() < 20 {
                return Vec::new();
            }
            let (kind, length) = (be32(&self.bytes[12..]), be32(&self.bytes[16..]) as usize);
            if self.take(20 + length).is_none() {
                return Vec::new();
            }
            self.is_transmitting = kind == 1;
        }
        let mut cookies = Vec::new();
        while let Some(reply) = self.take(16) {
            assert_eq!(be32(&reply[4..]), 0, "a request was refused");
            cookies.push(be64(&reply[8..]));
        }
        cookies
    }
}

/// What a change did to a block, in the order of that block's changes.
#[derive(Clone, Debug)]
struct Change {
    content: Content,
    is_answered: bool,
    is_durable: bool,
}

/// What each block may hold, from what has passed over the wires.
#[derive(Default)]
struct Expected {
    volume: u64,
    blocks: BTreeMap<u64, Vec<Change>>,
    /// Changes that were answered and that no flush has covered: block and index.
    unflushed: Vec<(u64, usize)>,
    open: HashMap<u64, (Request, Vec<(u64, usize)>)>,
    flushes: u64,
}

impl Expected {
    fn requested(&mut self, request: Request) {
        let mut covers = Vec::new();
        if request.kind == FLUSH {
            // What was answered before it came.
            covers.clone_from(&self.unflushed);
        } else {
            let first = request.offset / BLOCK as u64;
            for i in 0..u64::from(request.length) / BLOCK as u64 {
                let lba = first + i;
                let content = if request.kind == WRITE {
                    let at = i as usize * BLOCK;
                    let block = &request.payload[at..at + BLOCK];
                    content(self.volume, lba, block).unwrap_or_else(|e| panic!("{e}"))
                } else {
                    Content::Zeros
                };
                let changes = self.blocks.entry(lba).or_default();
                changes.push(Change {
                    content,
                    is_answered: false,
                    is_durable: false,
                });
                covers.push((lba, changes.len() - 1));
            }
        }
        self.open.insert(request.cookie, (request, covers));
    }

    fn answered(&mut self, cookie: u64) {
        let (request, covers) = self.open.remove(&cookie).unwrap();
        let over_tcp = (cookie >> CLIENT_SHIFT) % 2 == 1;
        let is_flush = request.kind == FLUSH;
        self.flushes += u64::from(is_flush);
        let is_durable = is_flush || over_tcp || request.flags & FUA != 0;
        for (lba, index) in &covers {
            let change = &mut self.blocks.get_mut(lba).unwrap()[*index];
            change.is_answered = true;
            change.is_durable |= is_durable;
        }
        if is_flush {
            let covered: std::collections::HashSet<_> = covers.into_iter().collect();
            self.unflushed.retain(|change| !covered.contains(change));
        } else if !is_durable {
            self.unflushed.extend(covers);
        }
    }

    /// Whether a block may hold this after a power cut now.
    fn allows(&self, lba: u64, found: Content) -> Result<(), String> {
        let Some(changes) = self.blocks.get(&lba) else {
            return match found {
                Content::Zeros => Ok(()),
                _ => Err(format!("{found:?} although nothing was ever written")),
            };
        };
        let durable = changes.iter().rposition(|change| change.is_durable);
        let never_written = durable.is_none() && found == Content::Zeros;
        let rest = &changes[durable.unwrap_or(0)..];
        if never_written || rest.iter().any(|change| change.content == found) {
            return Ok(());
        }
        Err(format!("{found:?}, where it may hold {rest:?}"))
    }
}

/// The state at some moment of the trace.
struct Moment {
    device: PowerCut,
    expected: Expected,
    wires: HashMap<ConnId, (Wire, Wire)>,
}

impl Moment {
    fn new(volume: u64) -> Self {
        Self {
            device: PowerCut::default(),
            expected: Expected {
                volume,
                ..Expected::default()
            },
            wires: HashMap::new(),
        }
    }

    /// Takes a step; true when it tells a client that something is durable.
    fn apply(&mut self, event: &TraceEvent) -> bool {
        self.device.apply(event);
        let flushes = self.expected.flushes;
        match event {
            TraceEvent::Received { conn, data } => {
                let (from_client, _) = self.wires.entry(*conn).or_default();
                for request in from_client.requests(data) {
                    self.expected.requested(request);
                }
            }
            TraceEvent::Sent { conn, data } => {
                let (_, to_client) = self.wires.entry(*conn).or_default();
                for cookie in to_client.replies(data) {
                    self.expected.answered(cookie);
                }
            }
            _ => {}
        }
        self.expected.flushes > flushes
    }

    /// One thing the device may hold now.
    fn image(&self, kind: u64, dice: &mut Dice) -> Image {
        let mut order = 0;
        let last = dice.below(1 + self.device.uncertain().len() as u64);
        self.device.image(|write| {
            order += 1;
            let sectors = write.data.len().div_ceil(512);
            match kind % 5 {
                0 => Fate::Lost,
                1 => Fate::Whole,
                // A prefix, its last write torn.
                2 if order <= last => Fate::Whole,
                2 if order == last + 1 => {
                    let kept = dice.below(sectors as u64 + 1);
                    Fate::Torn((0..sectors as u64).map(|i| i < kept).collect())
                }
                2 => Fate::Lost,
                // Anything.
                3 => match dice.below(3) {
                    0 => Fate::Lost,
                    1 => Fate::Whole,
                    _ => Fate::Torn((0..sectors).map(|_| dice.below(2) == 0).collect()),
                },
                _ => match dice.below(2) {
                    0 => Fate::Lost,
                    _ => Fate::Whole,
                },
            }
        })
    }
}

/// Recovers an image and compares all of the volume; gives whether it had a torn tail.
fn check(image: &Image, size_bytes: u64, expected: &Expected, what: &str) -> bool {
    let mut device = Device { image, size_bytes };
    let mut offline = Offline::open(&mut device).unwrap_or_else(|e| panic!("{what}: {e}"));
    let torn = offline.opened.report.torn_tail;
    let groups: Vec<_> = offline.opened.groups.clone();
    assert_eq!(groups.len(), 1, "{what}: volumes");
    assert!(!groups[0].suspended, "{what}: suspended");
    offline.settle();
    let id = groups[0].meta.group;
    for start in (0..VOLUME_BLOCKS).step_by(256) {
        let range = BlockRange::new(start, 256);
        let bytes = offline.read_blocks(id, range);
        let bytes = bytes.unwrap_or_else(|e| panic!("{what}: {e}"));
        for (lba, block) in (start..).zip(bytes.chunks(BLOCK)) {
            compare(expected, lba, block, what);
        }
    }
    torn
}

fn compare(expected: &Expected, lba: u64, block: &[u8], what: &str) {
    let found = content(expected.volume, lba, block).unwrap_or_else(|e| panic!("{what}: {e}"));
    if let Err(wrong) = expected.allows(lba, found) {
        panic!("{what}: block {lba} holds {wrong}");
    }
}

/// Puts an image into a file and has a real daemon start on it.
fn check_with_daemon(
    image: &Image,
    size_bytes: u64,
    expected: &Expected,
    folder: &Folder,
    what: &str,
) {
    let store = folder.join("image.esker");
    let file = File::create(&store).unwrap();
    file.set_len(size_bytes).unwrap();
    for (index, block) in image.blocks() {
        file.write_all_at(block, index * BLOCK as u64).unwrap();
    }
    drop(file);
    // The node's name stays with the recorded one's stores.
    let how = Start::new(&folder.join("d")).with(&["--store", store.to_str().unwrap()]);
    for _ in 0..2 {
        let daemon = how.ready();
        let mut client = daemon.client("v");
        for start in (0..VOLUME_BLOCKS).step_by(256) {
            let data = client.read(start * BLOCK as u64, (256 * BLOCK) as u32);
            let data = data.unwrap().unwrap();
            for (lba, block) in (start..).zip(data.chunks(BLOCK)) {
                compare(expected, lba, block, what);
            }
        }
        // Killed: the second start finds what the first one's recovery wrote.
        daemon.kill();
    }
}

fn record(folder: &Folder, trace: &Path, requests: u64, volume: u64) {
    let daemon = Start::new(&folder.join("d"))
        .with(&["--store-size", "1GiB"])
        .env("ESKER_RECORD", trace)
        .ready();
    daemon.create("v", &format!("{}KiB", VOLUME_BLOCKS * 4));
    std::thread::scope(|scope| {
        for index in 0..CONNECTIONS {
            let client = match index % 2 {
                0 => daemon.client("v"),
                _ => daemon.tcp_client("v"),
            };
            let client = client.cookies_from(index << CLIENT_SHIFT);
            scope.spawn(move || load(client, index, requests, volume));
        }
    });
    daemon.stop();
}

#[test]
fn nothing_durable_is_lost_at_any_power_cut_of_a_recorded_run() {
    let cuts = setting("ESKER_POWER_CUTS", 80);
    let requests = setting("ESKER_POWER_CUT_REQUESTS", 1500);
    let seed = setting("ESKER_POWER_CUT_SEED", 1);
    let folder = Folder::new();
    let trace = folder.join("trace");
    record(&folder, &trace, requests, seed);

    let reader = TraceReader::open(&trace).unwrap();
    let size_bytes = reader.store_bytes();
    let events: Vec<TraceEvent> = reader.collect();
    let connected = |event: &TraceEvent| matches!(event, TraceEvent::Connected { .. });
    let first = events.iter().position(connected).unwrap();
    let writes = events
        .iter()
        .filter(|e| matches!(e, TraceEvent::Write { .. }))
        .count();
    let syncs = events
        .iter()
        .filter(|e| matches!(e, TraceEvent::Sync { .. }))
        .count();

    // Moments, in order: some at random, some right after a client was told that it is durable.
    let mut dice = Dice::new(seed + 31);
    let mut at: Vec<usize> = (0..cuts)
        .map(|_| first + dice.below((events.len() - first) as u64) as usize)
        .collect();
    at.push(events.len() - 1);
    at.sort_unstable();
    let mut moment = Moment::new(seed);
    let (mut images, mut torn, mut flushes, mut next) = (0, 0, 0, 0);
    for (index, event) in events.iter().enumerate() {
        let tells_durable = moment.apply(event);
        flushes += u64::from(tells_durable);
        let is_chosen = at.get(next) == Some(&index);
        while at.get(next) == Some(&index) {
            next += 1;
        }
        let is_flushed = tells_durable && flushes % 32 == 0;
        if !is_chosen && !is_flushed {
            continue;
        }
        for kind in 0..5 {
            let what = format!("cut {index} of {}, kind {kind}, seed {seed}", events.len());
            let image = moment.image(kind, &mut dice);
            torn += u64::from(check(&image, size_bytes, &moment.expected, &what));
            images += 1;
            if images % 40 == 7 {
                let mut device = Device {
                    image: &image,
                    size_bytes,
                };
                let report = verify(&mut device, &mut |_| ()).unwrap();
                assert_eq!(report.problem_count, 0, "{what}: {:?}", report.problems);
            }
            if images % 100 == 33 {
                check_with_daemon(&image, size_bytes, &moment.expected, &folder, &what);
            }
        }
    }
    println!(
        "{images} images ({torn} with a torn tail) of {} events: {writes} writes, {syncs} syncs, \
         {} flushes answered",
        events.len(),
        moment.expected.flushes
    );
    assert!(images > cuts && torn > 0 && moment.expected.flushes > 50);
    assert!(
        moment.expected.open.is_empty(),
        "the trace holds every answer"
    );
}
