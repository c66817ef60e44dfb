//! `kill -9` under a load that knows what every block may hold: what was answered is there, what was
//! not answered is there or not, and nothing else ever.

use crate::client::{Client, FLUSH, FUA, TRIM, WRITE, WRITE_ZEROES};
use crate::harness::{free_address, setting, verify, Daemon, Folder, Start};
use crate::pattern::{content, fill, Content, Dice, BLOCK};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const VOLUME_BLOCKS: u64 = 8192;
const CONNECTIONS: u64 = 4;
/// Blocks that belong to one connection: it alone writes them.
const OWN_BLOCKS: u64 = VOLUME_BLOCKS / CONNECTIONS;
const WINDOW: usize = 12;
const RUN_BLOCKS_MAX: u64 = 16;
/// From the start of the process to the first answered read. The goal is one second; a machine that
/// runs other tests meanwhile gets more.
const START_MAX: Duration = Duration::from_secs(5);

/// What one connection may find in its blocks.
struct Part {
    first_lba: u64,
    /// Per block: the contents it may have. One, unless its last write was not answered.
    may_hold: Vec<Vec<Content>>,
    next_version: u64,
    dice: Dice,
    answered: u64,
}

/// A change on its way.
struct Pending {
    first: usize,
    content: Vec<Content>,
}

impl Part {
    fn new(index: u64) -> Self {
        Self {
            first_lba: index * OWN_BLOCKS,
            may_hold: vec![vec![Content::Zeros]; OWN_BLOCKS as usize],
            next_version: 1,
            dice: Dice::new(index + 77),
            answered: 0,
        }
    }

    /// Writes until the daemon is gone or the time is over.
    fn load(&mut self, mut client: Client, stop: &AtomicBool) {
        let mut pending: HashMap<u64, Pending> = HashMap::new();
        let mut busy = vec![false; OWN_BLOCKS as usize];
        while !stop.load(Ordering::Relaxed) || !pending.is_empty() {
            while pending.len() < WINDOW && !stop.load(Ordering::Relaxed) {
                let Ok((cookie, change)) = self.send(&mut client, &mut busy) else {
                    return;
                };
                pending.insert(cookie, change);
            }
            let Ok((cookie, error)) = client.reply() else {
                return;
            };
            assert_eq!(error, 0, "a request was refused");
            let change = pending.remove(&cookie).expect("a reply to nothing");
            self.answered += 1;
            for (i, content) in change.content.iter().enumerate() {
                busy[change.first + i] = false;
                self.may_hold[change.first + i] = vec![*content];
            }
        }
    }

    fn send(&mut self, client: &mut Client, busy: &mut [bool]) -> std::io::Result<(u64, Pending)> {
        let choice = self.dice.below(100);
        let mut count = 1;
        if choice >= 60 {
            count += self.dice.below(RUN_BLOCKS_MAX);
        }
        let first = self.dice.below(OWN_BLOCKS - count) as usize;
        let blocks = first..first + count as usize;
        if choice >= 97 || busy[blocks.clone()].contains(&true) {
            let cookie = client.send(0, FLUSH, 0, 0, &[])?;
            let content = Vec::new();
            return Ok((cookie, Pending { first, content }));
        }
        let lba = self.first_lba + first as u64;
        let (offset, length) = (lba * BLOCK as u64, (count * BLOCK as u64) as u32);
        let zeros = choice >= 92;
        let content: Vec<Content> = blocks
            .clone()
            .map(|_| {
                self.next_version += 1;
                match zeros {
                    true => Content::Zeros,
                    false => Content::Version(self.next_version),
                }
            })
            .collect();
        for (block, content) in blocks.zip(&content) {
            busy[block] = true;
            self.may_hold[block].push(*content); // from here on
        }
        let flags = if choice.is_multiple_of(8) { FUA } else { 0 };
        let cookie = if zeros {
            let kind = if choice >= 94 { TRIM } else { WRITE_ZEROES };
            client.send(flags, kind, offset, length, &[])?
        } else {
            let mut payload = Vec::with_capacity(length as usize);
            for (i, content) in content.iter().enumerate() {
                let Content::Version(version) = content else {
                    unreachable!()
                };
                payload.extend(fill(1, lba + i as u64, *version));
            }
            client.send(flags, WRITE, offset, length, &payload)?
        };
        Ok((cookie, Pending { first, content }))
    }

    /// Reads all its blocks; what is there now stays.
    fn check(&mut self, client: &mut Client, cycle: u64) {
        const CHUNK: usize = 256;
        for start in (0..self.may_hold.len()).step_by(CHUNK) {
            let offset = (self.first_lba + start as u64) * BLOCK as u64;
            let data = client.read(offset, (CHUNK * BLOCK) as u32).unwrap();
            let data = data.unwrap_or_else(|e| panic!("cycle {cycle}: read failed: errno {e}"));
            for (i, block) in data.chunks(BLOCK).enumerate() {
                let lba = self.first_lba + (start + i) as u64;
                let found = content(1, lba, block).unwrap_or_else(|e| panic!("cycle {cycle}: {e}"));
                let allowed = &mut self.may_hold[start + i];
                assert!(
                    allowed.contains(&found),
                    "cycle {cycle}: block {lba} holds {found:?}, allowed: {allowed:?}"
                );
                *allowed = vec![found];
            }
        }
    }
}

/// Starts the daemon; gives the time from its start to the first answered read.
fn start(start: &Start) -> (Daemon, Duration) {
    let began = Instant::now();
    let daemon = start.ready();
    daemon.client("v").read(0, 4096).unwrap().unwrap();
    (daemon, began.elapsed())
}

#[test]
fn kill_9_under_load_loses_nothing_that_was_answered() {
    let cycles = setting("ESKER_KILL_CYCLES", 40);
    let folder = Folder::new();
    // The same port every time: nothing of a killed daemon may keep it.
    let address = free_address();
    let how = Start::new(&folder.join("d"))
        .with(&["--store-size", "2GiB"])
        .nbd(&address);
    let daemon = how.ready();
    daemon.create("v", "32MiB");
    daemon.stop();

    let mut parts: Vec<Part> = (0..CONNECTIONS).map(Part::new).collect();
    let mut dice = Dice::new(5);
    let mut slowest = Duration::ZERO;
    let began = Instant::now();
    for cycle in 0..cycles {
        if cycle % 5 == 4 {
            // Killed while it starts.
            let mut child = how.spawn();
            std::thread::sleep(Duration::from_micros(dice.below(40_000)));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let (daemon, took) = start(&how);
        slowest = slowest.max(took);
        assert!(took < START_MAX, "cycle {cycle}: {took:?} to the first I/O");
        for part in &mut parts {
            part.check(&mut daemon.client("v"), cycle);
        }
        let clients: Vec<Client> = (0..CONNECTIONS)
            .map(|i| match i % 2 {
                0 => daemon.client("v"),
                _ => daemon.tcp_client("v"),
            })
            .collect();
        let stop = AtomicBool::new(false);
        let is_clean = cycle % 20 == 19;
        let mut daemon = Some(daemon);
        std::thread::scope(|scope| {
            for (part, client) in parts.iter_mut().zip(clients) {
                let stop = &stop;
                scope.spawn(move || part.load(client, stop));
            }
            std::thread::sleep(Duration::from_millis(20 + dice.below(400)));
            if is_clean {
                stop.store(true, Ordering::Relaxed);
            } else {
                daemon.take().unwrap().kill();
                stop.store(true, Ordering::Relaxed);
            }
        });
        if is_clean {
            // Killed with everything answered.
            daemon.take().unwrap().kill();
            verify(&folder.join("d/store-0.esker"));
        }
    }
    let (daemon, _) = start(&how);
    for part in &mut parts {
        part.check(&mut daemon.client("v"), cycles);
    }
    daemon.stop();
    verify(&folder.join("d/store-0.esker"));
    let answered: u64 = parts.iter().map(|part| part.answered).sum();
    println!(
        "{cycles} kills in {:.0?}: {answered} answered requests, slowest start to first I/O {slowest:.3?}",
        began.elapsed()
    );
}
