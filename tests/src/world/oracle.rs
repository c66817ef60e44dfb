//! What a read of a volume may return: one register per cell, with the writes that are on their
//! way, answered, durable, or cut off by a crash.
//!
//! Times are numbers of events of the run, so that no two are equal. A write takes effect at one
//! moment between its request and its answer. Two writes are *ordered* when one was answered before
//! the other was asked for, or when a read showed it. A value is dead once a write ordered after it
//! has taken effect. A power cut takes back every effect that is not durable, and with it the deaths
//! it caused: that is why a death remembers its cause.

use super::content::{is_from, is_zero, Grid};
use std::collections::BTreeMap;
use std::ops::Range;

const NEVER: u64 = u64::MAX;

/// A write that a cell may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Candidate {
    id: u64,
    zero: bool,
    asked: u64,
    /// Has taken effect by then.
    effective: u64,
    /// Takes effect by then or never: a crash cut it off.
    expires: u64,
    durable: bool,
    answered: bool,
    /// Later writes that took its place, and by when.
    deaths: Vec<(u64, u64)>,
}

impl Candidate {
    fn settled_by(&self) -> u64 {
        self.effective.min(self.expires)
    }
    fn dead_by(&self) -> u64 {
        self.deaths.iter().map(|d| d.1).min().unwrap_or(NEVER)
    }
}

#[derive(Clone, Debug)]
struct Pending {
    cells: Range<usize>,
}

/// The oracle of one volume.
#[derive(Clone, Debug)]
pub struct Oracle {
    grid: Grid,
    cells: Vec<Vec<Candidate>>,
    pending: BTreeMap<u64, Pending>,
    /// Answered and not durable: id, when answered, cells.
    volatile: Vec<(u64, u64, Range<usize>)>,
    /// Reads on their way, by when they were asked for.
    reads: BTreeMap<u64, usize>,
    last_ready: u64,
    /// Groups of several: an unanswered write can take effect even after a crash.
    replicated: bool,
    /// Keep every value that ever was, for runs in which acknowledged data may be given up.
    keep_all: bool,
}

impl Oracle {
    /// A volume of zeros with room for `blocks` blocks.
    #[must_use]
    pub fn new(grid: Grid, blocks: usize, replicated: bool, keep_all: bool) -> Self {
        let zero = Candidate {
            id: 0,
            zero: true,
            asked: 0,
            effective: 0,
            expires: NEVER,
            durable: true,
            answered: true,
            deaths: Vec::new(),
        };
        let cells = vec![vec![zero]; blocks * grid.per_block()];
        Self {
            grid,
            cells,
            pending: BTreeMap::new(),
            volatile: Vec::new(),
            reads: BTreeMap::new(),
            last_ready: 0,
            replicated,
            keep_all,
        }
    }

    /// A write is asked for. `zero`: it leaves zeros.
    pub fn write_asked(&mut self, id: u64, cells: Range<usize>, zero: bool, now: u64) {
        for cell in &mut self.cells[cells.clone()] {
            cell.push(Candidate {
                id,
                zero,
                asked: now,
                effective: NEVER,
                expires: NEVER,
                durable: false,
                answered: false,
                deaths: Vec::new(),
            });
        }
        self.pending.insert(id, Pending { cells });
    }

    /// A write is answered with success.
    pub fn write_answered(&mut self, id: u64, durable: bool, now: u64) {
        let Some(Pending { cells }) = self.pending.remove(&id) else {
            return;
        };
        for at in cells.clone() {
            self.took_effect(at, id, now);
            if let Some(c) = self.cells[at].iter_mut().find(|c| c.id == id) {
                c.answered = true;
            }
        }
        if durable {
            self.make_durable(id, cells);
        } else {
            self.volatile.push((id, now, cells));
        }
    }

    fn took_effect(&mut self, at: usize, id: u64, by: u64) {
        let cell = &mut self.cells[at];
        let Some(this) = cell.iter_mut().find(|c| c.id == id) else {
            return;
        };
        this.effective = this.effective.min(by).min(this.expires);
        let (asked, effective) = (this.asked, this.effective);
        for other in cell.iter_mut().filter(|c| c.id != id) {
            if other.settled_by() < asked && other.deaths.iter().all(|d| d.0 != id) {
                other.deaths.push((id, effective));
            }
        }
    }

    fn make_durable(&mut self, id: u64, cells: Range<usize>) {
        let horizon = self.reads.keys().next().copied().unwrap_or(NEVER);
        for cell in &mut self.cells[cells] {
            if let Some(c) = cell.iter_mut().find(|c| c.id == id) {
                c.durable = true;
            }
            prune(cell, horizon, self.keep_all);
        }
    }

    /// A flush that was asked for at `asked` is answered: what was answered before is durable.
    pub fn flushed(&mut self, asked: u64) {
        let all = std::mem::take(&mut self.volatile);
        let (covered, rest) = all.into_iter().partition(|v| v.1 < asked);
        self.volatile = rest;
        let covered: Vec<(u64, u64, Range<usize>)> = covered;
        for (id, _, cells) in covered {
            self.make_durable(id, cells);
        }
    }

    /// A read is asked for.
    pub fn read_asked(&mut self, now: u64) {
        *self.reads.entry(now).or_default() += 1;
    }

    /// A read that was asked for at `asked` will not be checked.
    pub fn read_dropped(&mut self, asked: u64) {
        self.reads.remove(&asked);
    }

    /// A read ended: holds its bytes, which begin at the first of `cells`, against what may be.
    ///
    /// # Errors
    /// A sentence that says what was read and what was allowed.
    pub fn read_answered(
        &mut self,
        cells: Range<usize>,
        data: &[u8],
        asked: u64,
        now: u64,
    ) -> Result<(), String> {
        self.reads.remove(&asked);
        let base = self.grid.start(cells.start);
        for at in cells {
            let start = self.grid.start(at);
            let end = self.grid.start(at + 1);
            let offset = |byte: u64| usize::try_from(byte - base).unwrap_or(usize::MAX);
            let bytes = &data[offset(start)..offset(end)];
            self.check_cell(at, start, bytes, asked, now)?;
        }
        Ok(())
    }

    fn check_cell(
        &mut self,
        at: usize,
        start: u64,
        bytes: &[u8],
        asked: u64,
        now: u64,
    ) -> Result<(), String> {
        let zero = is_zero(bytes);
        let same = |c: &Candidate| {
            if c.zero {
                zero
            } else {
                is_from(c.id, start, bytes)
            }
        };
        let mut seen = self.cells[at]
            .iter()
            .filter(|c| c.dead_by() >= asked && same(c));
        let first = seen.next().map(|c| c.id);
        let several = seen.next().is_some();
        let Some(id) = first else {
            return Err(self.explain(at, start, bytes, asked, now));
        };
        if several {
            return Ok(()); // zeros of more than one origin: nothing follows
        }
        self.took_effect(at, id, now);
        let cell = &mut self.cells[at];
        for other in cell.iter_mut().filter(|c| c.id != id) {
            if other.settled_by() < asked && other.deaths.iter().all(|d| d.0 != id) {
                other.deaths.push((id, now));
            }
        }
        let ready = self.last_ready;
        if let Some(this) = cell.iter_mut().find(|c| c.id == id) {
            // What recovery found it has made durable.
            this.durable |= !self.replicated && this.settled_by() < ready;
        }
        Ok(())
    }

    /// The power was cut at `now`: effects that are not durable may be gone.
    pub fn power_cut(&mut self, now: u64) {
        if self.replicated {
            return; // other nodes go on
        }
        self.reads.clear();
        self.pending.clear();
        self.volatile.clear();
        for cell in &mut self.cells {
            take_back(cell, now, |c| c.durable);
        }
    }

    /// The process was killed at `now`: what was answered stays, the rest is in or out by now. That
    /// includes what only a read has shown: reads see what is on its way to the device.
    pub fn killed(&mut self, now: u64) {
        if self.replicated {
            return; // other nodes go on
        }
        self.killed_alone(now);
    }

    /// The same, of the only node that has a copy now.
    pub fn killed_alone(&mut self, now: u64) {
        self.reads.clear();
        self.pending.clear();
        for cell in &mut self.cells {
            take_back(cell, now, |c| c.durable || c.answered);
        }
    }

    /// The store is open again: what it found is durable.
    pub fn recovered(&mut self, now: u64) {
        self.last_ready = now;
        if self.replicated {
            return;
        }
        self.volatile.clear();
        for cell in &mut self.cells {
            for c in cell.iter_mut().filter(|c| c.effective != NEVER) {
                c.durable = true;
            }
            prune(cell, NEVER, self.keep_all);
        }
    }

    /// Of the writes for which this holds, those that were not answered take effect by now or never. Gives how many cells they are
    /// about.
    pub fn fenced(&mut self, is: impl Fn(u64) -> bool, now: u64) -> usize {
        let cells = self.cells.iter_mut().flatten();
        let open = cells.filter(|c| c.effective == NEVER && c.expires == NEVER && is(c.id));
        open.map(|c| c.expires = now).count()
    }

    /// An operator accepted a loss: every value that ever was may be back.
    pub fn loss_accepted(&mut self, now: u64) {
        self.volatile.clear();
        for c in self.cells.iter_mut().flatten() {
            (c.effective, c.expires) = (NEVER, now);
            c.durable = false;
            c.deaths.clear();
        }
    }

    fn explain(&self, at: usize, start: u64, bytes: &[u8], asked: u64, now: u64) -> String {
        let known = self.cells[at].iter().find(|c| match c.zero {
            true => is_zero(bytes),
            false => is_from(c.id, start, bytes),
        });
        let got = match known {
            Some(c) => format!("the dead write {c:?}"),
            None if is_zero(bytes) => "zeros".to_owned(),
            None => match (0..1_000_000).find(|id| is_from(*id, start, bytes)) {
                Some(id) => format!("write {id}, long dead"),
                None => format!(
                    "bytes nobody wrote here: {:02x?}",
                    &bytes[..bytes.len().min(16)]
                ),
            },
        };
        let allowed: Vec<&Candidate> = self.cells[at]
            .iter()
            .filter(|c| c.dead_by() >= asked)
            .collect();
        format!(
            "byte {start} (block {}): a read asked at {asked} and answered at {now} returned {got}; \
             allowed: {allowed:?}",
            start / 4096
        )
    }
}

/// What a snapshot may hold, cell by cell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frozen {
    per_block: usize,
    cells: Vec<Vec<Candidate>>,
    /// What was read first, by cell.
    seen: BTreeMap<usize, Vec<u8>>,
}

impl Frozen {
    /// A read of the snapshot ended: holds its bytes, which begin at the first of `cells`, against what may be
    /// and against what was read before.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn read(&mut self, grid: &Grid, cells: Range<usize>, data: &[u8]) -> Result<(), String> {
        let base = grid.start(cells.start);
        for at in cells {
            let (start, end) = (grid.start(at), grid.start(at + 1));
            let offset = |byte: u64| usize::try_from(byte - base).unwrap_or(usize::MAX);
            let bytes = &data[offset(start)..offset(end)];
            let is = |c: &Candidate| match c.zero {
                true => is_zero(bytes),
                false => is_from(c.id, start, bytes),
            };
            let may = self.cells.get(at).is_some_and(|cell| cell.iter().any(is));
            if !may {
                return Err(format!("cell {at} holds what it never may"));
            }
            let first = self.seen.entry(at).or_insert_with(|| bytes.to_vec());
            if first != bytes {
                return Err(format!(
                    "cell {at} is not what it was when it was read first"
                ));
            }
        }
        Ok(())
    }

    /// Blocks of the largest volume of the world.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.cells.len().checked_div(self.per_block).unwrap_or(0)
    }

    fn cells_of(&self, lba: usize) -> &[Vec<Candidate>] {
        &self.cells[lba * self.per_block..(lba + 1) * self.per_block]
    }

    /// Whether a block is another one in another snapshot; none where it cannot be told.
    #[must_use]
    pub fn block_differs(&self, other: &Self, lba: usize) -> Option<bool> {
        let mut is_same = true;
        for (a, b) in self.cells_of(lba).iter().zip(other.cells_of(lba)) {
            // Zeros may be of any origin, and stored or not.
            let both = a
                .iter()
                .any(|c| b.iter().any(|d| c.id == d.id || (c.zero && d.zero)));
            if !both {
                return Some(true);
            }
            is_same &= matches!((&a[..], &b[..]), ([a], [b]) if a.id == b.id && !a.zero);
        }
        is_same.then_some(false)
    }

    /// Whether a block is surely not all zeros.
    #[must_use]
    pub fn holds_data(&self, lba: usize) -> bool {
        self.cells_of(lba)
            .iter()
            .any(|cell| cell.iter().all(|c| !c.zero))
    }
}

impl Oracle {
    /// What a snapshot that was asked for at `asked`, and is answered now, may hold: what a read could return.
    #[must_use]
    pub fn freeze(&self, asked: u64) -> Frozen {
        let cells = self.cells.iter().map(|cell| {
            let alive = cell.iter().filter(|c| c.dead_by() >= asked);
            alive.cloned().collect()
        });
        Frozen {
            per_block: self.grid.per_block(),
            cells: cells.collect(),
            seen: BTreeMap::new(),
        }
    }

    /// The volume has gone back to a snapshot by now, or may have: nobody else uses it.
    pub fn rolled_back(&mut self, to: &Frozen, is_sure: bool, now: u64) {
        self.pending.clear();
        self.volatile.clear();
        for (cell, kept) in self.cells.iter_mut().zip(&to.cells) {
            // What was never answered is perhaps not what the snapshot holds: then it may still come.
            let comes = |id: u64| cell.iter().any(|c| c.id == id && c.effective == NEVER);
            let back = kept.iter().map(|c| Candidate {
                effective: match self.replicated && comes(c.id) {
                    true => NEVER,
                    false => now,
                },
                expires: NEVER,
                durable: true,
                answered: true,
                deaths: Vec::new(),
                ..c.clone()
            });
            let back: Vec<Candidate> = back.collect();
            if is_sure && self.replicated {
                // What was never answered may still come, from a leader that is none any more.
                let comes =
                    |c: &Candidate| c.effective == NEVER && back.iter().all(|b| b.id != c.id);
                cell.retain(comes);
            } else if is_sure {
                cell.clear();
            } else {
                cell.retain(|c| back.iter().all(|b| b.id != c.id));
            }
            cell.extend(back);
        }
    }
}

/// A crash at `now`: effects are taken back, and the deaths they caused, unless `kept` says that
/// they stay.
fn take_back(cell: &mut [Candidate], now: u64, kept: impl Fn(&Candidate) -> bool) {
    let stay: Vec<u64> = cell.iter().filter(|c| kept(c)).map(|c| c.id).collect();
    let here: Vec<u64> = cell.iter().map(|c| c.id).collect();
    for c in cell.iter_mut() {
        c.expires = c.expires.min(now);
        // A cause that was pruned was durable.
        c.deaths
            .retain(|d| stay.contains(&d.0) || !here.contains(&d.0));
        if !stay.contains(&c.id) {
            (c.effective, c.answered) = (NEVER, false);
        }
    }
}

/// Drops values that no read can return any more, whatever crashes.
fn prune(cell: &mut Vec<Candidate>, horizon: u64, keep_all: bool) {
    if keep_all || cell.len() < 2 {
        return;
    }
    let durable: Vec<u64> = cell.iter().filter(|c| c.durable).map(|c| c.id).collect();
    let here: Vec<u64> = cell.iter().map(|c| c.id).collect();
    cell.retain(|c| {
        let gone =
            |d: &(u64, u64)| d.1 < horizon && (durable.contains(&d.0) || !here.contains(&d.0));
        // Its own request may still be answered: only settled values go.
        !(c.settled_by() != NEVER && c.deaths.iter().any(gone))
    });
}
