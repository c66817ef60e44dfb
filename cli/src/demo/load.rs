//! The demo's clients: one that fills a volume, one that writes and reads blocks here and there and checks what it reads, and
//! one that reads everything.

use super::content::{Dice, Generation, Pattern};
use super::ledger::{Ledger, Seen};
use super::nbd::{Session, ANSWER_WAIT_MAX};
use esker_base::{BLOCK_SIZE, BLOCK_SIZE_U64};
use esker_nbd::wire::command;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Blocks of one request when everything is written or read.
const PIECE_BLOCKS: usize = 64;
/// Those requests on their way at a time.
const PIECES_DEPTH: u64 = 4;
/// Of so many requests of the load one reads.
const READ_EVERY: u64 = 4;

/// A volume that the demo writes, and what it must hold.
pub struct Volume {
    /// Its name.
    pub name: String,
    /// What is written.
    pub pattern: Pattern,
    ledger: Mutex<Ledger>,
    seen: Mutex<Seen>,
}

impl Volume {
    /// One that is new.
    #[must_use]
    pub fn new(name: &str, blocks: usize, seed: u64) -> Self {
        Self {
            name: name.into(),
            pattern: Pattern { seed },
            ledger: Mutex::new(Ledger::new(blocks)),
            seen: Mutex::new(Seen::from_now()),
        }
    }

    /// What it must hold.
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What its clients saw, up to now.
    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What its clients saw since this was asked last.
    pub fn take_seen(&self) -> Seen {
        std::mem::replace(&mut self.seen(), Seen::from_now())
    }

    /// Writes every block.
    ///
    /// # Errors
    /// When the session breaks or a write is refused.
    pub fn fill(&self, socket: &Path) -> io::Result<()> {
        let mut session = Session::open(socket, &self.name)?;
        let blocks = self.ledger().sent.len();
        let mut pieces = Pieces::new(blocks);
        let mut payload = Vec::new();
        while let Some((first, count)) = pieces.next() {
            payload.resize(count * BLOCK_SIZE, 0);
            let mut ledger = self.ledger();
            for (block, out) in (first..).zip(payload.chunks_exact_mut(BLOCK_SIZE)) {
                ledger.sent[block] += 1;
                self.pattern.fill(block as u64, ledger.sent[block], out);
            }
            drop(ledger);
            pieces.send(&mut session, command::WRITE, first, count, &payload)?;
            if pieces.is_full() {
                self.filled(&mut session, &mut pieces)?;
            }
        }
        while !pieces.is_idle() {
            self.filled(&mut session, &mut pieces)?;
        }
        Ok(())
    }

    fn filled(&self, session: &mut Session, pieces: &mut Pieces) -> io::Result<()> {
        let (first, count) = pieces.answered(session)?;
        let mut ledger = self.ledger();
        for block in first..first + count {
            ledger.answered[block] = ledger.sent[block];
        }
        Ok(())
    }

    /// Reads every block of an export (the volume or a snapshot) and tells which generation each is.
    ///
    /// # Errors
    /// When the session breaks, a read is refused, or a block is not one of the generations that `may` allows.
    pub fn check(&self, socket: &Path, export: &str, may: &Ledger) -> io::Result<Vec<Generation>> {
        let mut session = Session::open(socket, export)?;
        let mut found = vec![0; may.sent.len()];
        let mut pieces = Pieces::new(found.len());
        let mut data = Vec::new();
        loop {
            match pieces.next() {
                Some((first, count)) => {
                    pieces.send(&mut session, command::READ, first, count, &[])?;
                    if !pieces.is_full() {
                        continue;
                    }
                }
                None if pieces.is_idle() => return Ok(found),
                None => {}
            }
            let (first, count) = pieces.answered(&mut session)?;
            data.resize(count * BLOCK_SIZE, 0);
            session.data(&mut data)?;
            for (block, bytes) in (first..).zip(data.chunks_exact(BLOCK_SIZE)) {
                let allowed = may.answered[block]..=may.sent[block];
                found[block] = self.pattern.expect(block, bytes, allowed).map_err(|told| {
                    io::Error::new(io::ErrorKind::InvalidData, format!("{export}: {told}"))
                })?;
            }
        }
    }
}

impl Pattern {
    /// The generation of a block, when it is one of those that may be.
    fn expect(
        self,
        block: usize,
        bytes: &[u8],
        may: std::ops::RangeInclusive<Generation>,
    ) -> Result<Generation, String> {
        match self.generation(block as u64, bytes) {
            Some(found) if may.contains(&found) => Ok(found),
            Some(found) => Err(format!(
                "block {block} holds what was written the {found}th time, and the {}th was acknowledged",
                may.start()
            )),
            None => Err(format!("block {block} holds what was never written there")),
        }
    }
}

/// A whole volume in large requests, some of which are on their way.
struct Pieces {
    blocks: usize,
    next: usize,
    on_their_way: u64,
}

impl Pieces {
    fn new(blocks: usize) -> Self {
        Self {
            blocks,
            next: 0,
            on_their_way: 0,
        }
    }

    fn next(&mut self) -> Option<(usize, usize)> {
        let first = self.next;
        let count = PIECE_BLOCKS.min(self.blocks - first);
        self.next += count;
        (count > 0).then_some((first, count))
    }

    fn is_full(&self) -> bool {
        self.on_their_way >= PIECES_DEPTH
    }

    fn is_idle(&self) -> bool {
        self.on_their_way == 0
    }

    fn send(
        &mut self,
        session: &mut Session,
        command: u16,
        first: usize,
        count: usize,
        payload: &[u8],
    ) -> io::Result<()> {
        let (offset, length) = (first as u64 * BLOCK_SIZE_U64, bytes_of(count));
        session.send(command, first as u64, offset, length, payload)?;
        self.on_their_way += 1;
        Ok(())
    }

    fn answered(&mut self, session: &mut Session) -> io::Result<(usize, usize)> {
        let reply = session.reply()?;
        let first = usize::try_from(reply.cookie).unwrap_or(usize::MAX);
        if first >= self.blocks {
            return Err(io::Error::other("an answer to what was not asked"));
        }
        if reply.error != 0 {
            let error = reply.error;
            return Err(io::Error::other(format!("block {first}: error {error}")));
        }
        self.on_their_way -= 1;
        Ok((first, PIECE_BLOCKS.min(self.blocks - first)))
    }
}

fn bytes_of(blocks: usize) -> u32 {
    u32::try_from(blocks * BLOCK_SIZE).unwrap_or(u32::MAX)
}

/// How the load asks.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Requests on their way at a time.
    pub depth: usize,
    /// Requests a second; 0 for as many as get answers.
    pub per_second: u32,
}

/// A client that writes and reads single blocks here and there on a thread of its own.
pub struct Load {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Load {
    /// Attaches to the volume at this node's socket.
    ///
    /// # Errors
    /// When the volume is not served there.
    pub fn start(volume: &Arc<Volume>, socket: &Path, pace: Pace, seed: u64) -> io::Result<Self> {
        let session = Session::open(socket, &volume.name)?;
        let stop = Arc::new(AtomicBool::new(false));
        let blocks = volume.ledger().sent.len();
        let mut client = Client {
            session,
            volume: Arc::clone(volume),
            asked: (0..pace.depth).map(|_| None).collect(),
            busy: vec![false; blocks],
            dice: Dice::new(seed),
            payload: vec![0; BLOCK_SIZE],
        };
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || client.run(pace, &stopped));
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Asks nothing any more, and waits for what is on its way.
    ///
    /// # Errors
    /// When the session broke.
    pub fn end(mut self) -> io::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            _ => Err(io::Error::other("the client ended oddly")),
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A request that is on its way.
struct Asked {
    block: usize,
    /// What it writes; none for a read.
    writes: Option<Generation>,
    at: Instant,
}

/// The load's state.
struct Client {
    session: Session,
    volume: Arc<Volume>,
    /// By cookie.
    asked: Vec<Option<Asked>>,
    /// Blocks that a request is on its way for: no other one is asked for meanwhile, so that each read has one right answer.
    busy: Vec<bool>,
    dice: Dice,
    payload: Vec<u8>,
}

impl Client {
    fn run(&mut self, pace: Pace, stop: &AtomicBool) -> io::Result<()> {
        let interval = match pace.per_second {
            0 => Duration::ZERO,
            rate => Duration::from_secs(1) / rate,
        };
        let mut next = Instant::now();
        loop {
            let (now, stopping) = (Instant::now(), stop.load(Ordering::Relaxed));
            let free = self.asked.iter().position(Option::is_none);
            let wait = match free {
                Some(cookie) if !stopping && now >= next => {
                    self.ask(cookie)?;
                    // What could not be asked while nothing was answered is not asked all at once afterwards.
                    next = (next + interval).max(now);
                    continue;
                }
                _ if stopping && self.asked.iter().all(Option::is_none) => return Ok(()),
                Some(_) if !stopping => next - now,
                _ => ANSWER_WAIT_MAX,
            };
            if self.session.wait(wait)? {
                self.answer()?;
            }
            let overdue = |asked: &Asked| asked.at.elapsed() > ANSWER_WAIT_MAX;
            if self.asked.iter().flatten().any(overdue) {
                let seconds = ANSWER_WAIT_MAX.as_secs();
                return Err(io::Error::other(format!("no answer for {seconds} s")));
            }
        }
    }

    fn ask(&mut self, cookie: usize) -> io::Result<()> {
        let blocks = self.busy.len() as u64;
        let block = loop {
            let block = usize::try_from(self.dice.below(blocks)).unwrap_or(0);
            if !self.busy[block] {
                break block;
            }
        };
        self.busy[block] = true;
        let reads = self.dice.below(READ_EVERY) == 0;
        let (offset, length) = (block as u64 * BLOCK_SIZE_U64, bytes_of(1));
        let writes = (!reads).then(|| {
            let mut ledger = self.volume.ledger();
            ledger.sent[block] += 1;
            ledger.sent[block]
        });
        let at = Instant::now();
        self.asked[cookie] = Some(Asked { block, writes, at });
        let cookie = cookie as u64;
        match writes {
            None => self
                .session
                .send(command::READ, cookie, offset, length, &[]),
            Some(generation) => {
                let pattern = self.volume.pattern;
                pattern.fill(block as u64, generation, &mut self.payload);
                self.session
                    .send(command::WRITE, cookie, offset, length, &self.payload)
            }
        }
    }

    fn answer(&mut self) -> io::Result<()> {
        let reply = self.session.reply()?;
        let slot = usize::try_from(reply.cookie).ok();
        let slot = slot.and_then(|at| self.asked.get_mut(at));
        let Some(asked) = slot.and_then(Option::take) else {
            return Err(io::Error::other("an answer to what was not asked"));
        };
        let took_us = u32::try_from(asked.at.elapsed().as_micros()).unwrap_or(u32::MAX);
        self.busy[asked.block] = false;
        let is_good = reply.error == 0;
        let mut wrong = None;
        match asked.writes {
            Some(generation) if is_good => {
                self.volume.ledger().answered[asked.block] = generation;
            }
            None if is_good => {
                self.session.data(&mut self.payload)?;
                let ledger = self.volume.ledger();
                let may = ledger.answered[asked.block]..=ledger.sent[asked.block];
                let pattern = self.volume.pattern;
                wrong = pattern.expect(asked.block, &self.payload, may).err();
            }
            _ => {}
        }
        let mut seen = self.volume.seen();
        seen.errors += u64::from(!is_good);
        match asked.writes {
            Some(_) => seen.writes_us.push(took_us),
            None => seen.reads_us.push(took_us),
        }
        if seen.wrong.is_none() {
            seen.wrong = wrong;
        }
        Ok(())
    }
}
