//! A disk that forgets, tears and fails, by seed.
//!
//! An operation is *submitted* and later *completed*, in whatever order the caller or the seed
//! picks. What a completed write wrote is visible to reads and volatile. A completed sync makes
//! durable what had completed when the sync was submitted. A power cut keeps, loses or tears every
//! other write by itself, whether it had completed or not; a write tears into any subset of its
//! 512-byte sectors. After a failed sync the writes it was to cover are marked clean and may be
//! gone at the next power cut, which no later sync repairs ("Can Applications Recover from fsync
//! Failures?", ATC'20).

use super::rng::SimRng;
use bytes::Bytes;
use esker_base::{AlignedBuf, DiskError, DiskErrorKind, DiskOp, IoId, BLOCK_SIZE, BLOCK_SIZE_U64};
use esker_engine::verify::ReadAt;
use std::collections::{BTreeMap, BTreeSet};

/// Bytes the device writes in one piece.
pub const SECTOR_BYTES: usize = 512;

/// What a device holds: pages that are not zero, by number.
#[derive(Clone, Debug)]
pub struct Image {
    pages: BTreeMap<u64, Bytes>,
    size_bytes: u64,
}

impl Image {
    /// A device of zeros.
    #[must_use]
    pub fn blank(size_bytes: u64) -> Self {
        Self {
            pages: BTreeMap::new(),
            size_bytes,
        }
    }

    /// Size of the device in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size_bytes
    }

    /// Changes the size; what lies past a smaller one is gone.
    pub fn resize(&mut self, size_bytes: u64) {
        self.size_bytes = size_bytes;
        self.pages.split_off(&(size_bytes / BLOCK_SIZE_U64));
    }

    /// A page, if it was ever written.
    #[must_use]
    pub fn page(&self, number: u64) -> Option<&Bytes> {
        self.pages.get(&number)
    }

    /// Pages that were written, by number.
    pub fn pages(&self) -> impl Iterator<Item = (u64, &Bytes)> {
        self.pages.iter().map(|(number, page)| (*number, page))
    }

    /// Replaces a page.
    ///
    /// # Panics
    /// When `page` is not one page long.
    pub fn set_page(&mut self, number: u64, page: Bytes) {
        assert_eq!(page.len(), BLOCK_SIZE);
        self.pages.insert(number, page);
    }

    /// Media damage: flips one bit of a page.
    pub fn flip_bit(&mut self, number: u64, bit: usize) {
        let mut page = self.page_bytes(number);
        page[bit / 8 % BLOCK_SIZE] ^= 1 << (bit % 8);
        self.set_page(number, Bytes::from(page));
    }

    /// Media damage: a page reads as zeros.
    pub fn zero_page(&mut self, number: u64) {
        self.pages.remove(&number);
    }

    /// Media damage: a page holds what belongs to another place.
    pub fn misdirect(&mut self, from: u64, to: u64) {
        let page = self.page_bytes(from);
        self.set_page(to, Bytes::from(page));
    }

    /// The bytes of a page.
    #[must_use]
    pub fn page_bytes(&self, number: u64) -> Vec<u8> {
        self.pages
            .get(&number)
            .map_or_else(|| vec![0; BLOCK_SIZE], |page| page.to_vec())
    }

    /// The content at `offset`, a multiple of the page size.
    #[must_use]
    pub fn read(&self, offset: u64, length: usize) -> AlignedBuf {
        let mut out = AlignedBuf::zeroed(length);
        let first = offset / BLOCK_SIZE_U64;
        let end = first + (length / BLOCK_SIZE) as u64;
        for (number, page) in self.pages.range(first..end) {
            let at = usize::try_from(number - first).unwrap_or(0) * BLOCK_SIZE;
            out[at..at + BLOCK_SIZE].copy_from_slice(page);
        }
        out
    }

    fn contains(&self, offset: u64, length: usize) -> bool {
        offset
            .checked_add(length as u64)
            .is_some_and(|end| end <= self.size_bytes)
    }
}

impl ReadAt for Image {
    fn read_at(&mut self, offset: u64, length: usize) -> Result<Vec<u8>, DiskError> {
        if !self.contains(offset, length) {
            return Err(error(DiskErrorKind::Short, 0));
        }
        Ok(self.read(offset, length).to_vec())
    }
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

/// How often operations fail, in per mille.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskFaults {
    /// Reads that fail once with EIO.
    pub read_error: u64,
    /// Writes that fail with EIO, partly done.
    pub write_error: u64,
    /// Writes that fail with ENOSPC, not done.
    pub no_space: u64,
    /// Syncs that fail.
    pub sync_error: u64,
}

/// Faults that happened, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounts {
    /// Failed reads.
    pub read_errors: u64,
    /// Reads of pages that cannot be read.
    pub unreadable: u64,
    /// Failed writes.
    pub write_errors: u64,
    /// Writes without space.
    pub no_space: u64,
    /// Failed syncs.
    pub sync_errors: u64,
    /// Power cuts.
    pub power_cuts: u64,
    /// Unsynced writes a power cut kept.
    pub kept: u64,
    /// Unsynced writes a power cut lost.
    pub lost: u64,
    /// Unsynced writes a power cut tore.
    pub torn: u64,
    /// Writes a failed sync made clean without making them durable.
    pub forgotten: u64,
}

impl FaultCounts {
    /// Adds what another disk, or the same after a restart, counted.
    pub fn add(&mut self, other: &Self) {
        self.read_errors += other.read_errors;
        self.unreadable += other.unreadable;
        self.write_errors += other.write_errors;
        self.no_space += other.no_space;
        self.sync_errors += other.sync_errors;
        self.power_cuts += other.power_cuts;
        self.kept += other.kept;
        self.lost += other.lost;
        self.torn += other.torn;
        self.forgotten += other.forgotten;
    }
}

#[derive(Clone, Debug)]
struct VolatileWrite {
    first_page: u64,
    pages: Vec<Bytes>,
    /// Its place in the order of completions.
    completed: u64,
}

#[derive(Clone, Debug)]
enum Pending {
    Read {
        offset: u64,
        length: usize,
    },
    Write {
        first_page: u64,
        pages: Vec<Bytes>,
    },
    /// Covers writes that completed before this place in the order of completions.
    Sync {
        before: u64,
    },
    /// Fails whatever the seed says: out of range.
    Short,
}

/// A disk.
#[derive(Clone, Debug)]
pub struct SimDisk {
    rng: SimRng,
    /// What survives a power cut for certain.
    durable: Image,
    /// What reads see.
    visible: Image,
    /// Completed and not durable, in the order of completion.
    volatile: Vec<VolatileWrite>,
    in_flight: BTreeMap<IoId, Pending>,
    completions: u64,
    /// Pages that cannot be read until they are written.
    bad_pages: BTreeSet<u64>,
    /// How operations fail.
    pub faults: DiskFaults,
    /// How often they did.
    pub counts: FaultCounts,
}

impl SimDisk {
    /// A disk that holds `image`.
    #[must_use]
    pub fn new(image: Image, rng: SimRng) -> Self {
        Self {
            rng,
            visible: image.clone(),
            durable: image,
            volatile: Vec::new(),
            in_flight: BTreeMap::new(),
            completions: 0,
            bad_pages: BTreeSet::new(),
            faults: DiskFaults::default(),
            counts: FaultCounts::default(),
        }
    }

    /// Takes an operation.
    ///
    /// # Panics
    /// When the operation breaks the rules of [`DiskOp`]: alignment, empty writes, an id in use, writes that overlap others
    /// on their way.
    pub fn submit(&mut self, io: IoId, op: DiskOp) {
        let pending = match op {
            DiskOp::Read { offset, length } => {
                assert!(
                    offset.is_multiple_of(BLOCK_SIZE_U64) && length.is_multiple_of(BLOCK_SIZE),
                    "misaligned read at {offset}"
                );
                match self.visible.contains(offset, length) {
                    true => Pending::Read { offset, length },
                    false => Pending::Short,
                }
            }
            DiskOp::Write { offset, bufs } => {
                let mut pages = Vec::new();
                for buf in &bufs {
                    assert!(buf.len().is_multiple_of(BLOCK_SIZE), "misaligned write");
                    pages.extend(
                        (0..buf.len() / BLOCK_SIZE)
                            .map(|i| buf.slice(i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE)),
                    );
                }
                assert!(!pages.is_empty(), "empty write at {offset}");
                assert!(offset.is_multiple_of(BLOCK_SIZE_U64), "misaligned write");
                let first_page = offset / BLOCK_SIZE_U64;
                let end_page = first_page + pages.len() as u64;
                let overlaps = |pending: &Pending| match pending {
                    Pending::Write {
                        first_page: other,
                        pages,
                    } => *other < end_page && first_page < *other + pages.len() as u64,
                    Pending::Read { .. } | Pending::Sync { .. } | Pending::Short => false,
                };
                assert!(
                    !self.in_flight.values().any(overlaps),
                    "two writes to page {first_page} are on their way: nothing says which one stays"
                );
                match self.visible.contains(offset, pages.len() * BLOCK_SIZE) {
                    true => Pending::Write { first_page, pages },
                    false => Pending::Short,
                }
            }
            DiskOp::Sync => Pending::Sync {
                before: self.completions,
            },
        };
        assert!(
            self.in_flight.insert(io, pending).is_none(),
            "operation {io} is in flight already"
        );
    }

    /// Operations submitted and not completed, by id.
    pub fn in_flight(&self) -> impl Iterator<Item = IoId> + '_ {
        self.in_flight.keys().copied()
    }

    /// How many there are.
    #[must_use]
    pub fn in_flight_count(&self) -> usize {
        self.in_flight.len()
    }

    /// Completes the operation that the seed picks.
    pub fn complete_any(&mut self) -> Option<(IoId, Result<Bytes, DiskError>)> {
        let at = self.rng.index(self.in_flight.len().max(1));
        let io = self.in_flight().nth(at)?;
        let result = self.complete(io)?;
        Some((io, result))
    }

    /// Completes an operation; none when it is not in flight.
    pub fn complete(&mut self, io: IoId) -> Option<Result<Bytes, DiskError>> {
        let pending = self.in_flight.remove(&io)?;
        Some(match pending {
            Pending::Short => Err(error(DiskErrorKind::Short, 0)),
            Pending::Read { offset, length } => {
                if self.rng.chance(self.faults.read_error) {
                    self.counts.read_errors += 1;
                    return Some(Err(error(DiskErrorKind::Io, 5)));
                }
                let first = offset / BLOCK_SIZE_U64;
                let end = first + (length / BLOCK_SIZE) as u64;
                if self.bad_pages.range(first..end).next().is_some() {
                    self.counts.unreadable += 1;
                    return Some(Err(error(DiskErrorKind::Io, 5)));
                }
                Ok(self.visible.read(offset, length).freeze())
            }
            Pending::Write { first_page, pages } => self.write(first_page, pages),
            Pending::Sync { before } => self.sync(before),
        })
    }

    fn write(&mut self, first_page: u64, pages: Vec<Bytes>) -> Result<Bytes, DiskError> {
        if self.rng.chance(self.faults.no_space) {
            self.counts.no_space += 1;
            return Err(error(DiskErrorKind::NoSpace, 28));
        }
        let failed = self.rng.chance(self.faults.write_error);
        let write = VolatileWrite {
            first_page,
            pages,
            completed: self.completions,
        };
        self.completions += 1;
        if failed {
            self.counts.write_errors += 1;
            self.torn(write);
            return Err(error(DiskErrorKind::Io, 5));
        }
        put(&mut self.visible, &write);
        if !self.bad_pages.is_empty() {
            let end = first_page + write.pages.len() as u64;
            self.bad_pages
                .retain(|page| !(first_page..end).contains(page));
        }
        self.volatile.push(write);
        Ok(Bytes::new())
    }

    /// A write of which the device took parts. Whatever reads see of it is what a later sync makes
    /// durable: nothing but the device's own cache lies between the two.
    fn torn(&mut self, mut write: VolatileWrite) {
        tear(&mut self.visible, &write, &mut self.rng);
        for (number, page) in (write.first_page..).zip(&mut write.pages) {
            *page = Bytes::from(self.visible.page_bytes(number));
        }
        self.volatile.push(write);
    }

    fn sync(&mut self, before: u64) -> Result<Bytes, DiskError> {
        let failed = self.rng.chance(self.faults.sync_error);
        let covered = self.volatile.partition_point(|w| w.completed < before);
        for write in self.volatile.drain(..covered) {
            if failed && self.rng.chance(500) {
                self.counts.forgotten += 1;
                continue;
            }
            put(&mut self.durable, &write);
        }
        if failed {
            self.counts.sync_errors += 1;
            return Err(error(DiskErrorKind::Io, 5));
        }
        Ok(Bytes::new())
    }

    /// Cuts the power: what is not durable is kept, lost or torn, write by write; what was in
    /// flight never completes. The disk goes on with the result.
    pub fn power_cut(&mut self) {
        let mut rng = self.rng.clone();
        let (image, counts) = self.cut(&mut rng);
        self.rng = rng;
        self.counts.add(&counts);
        self.durable = image;
        self.visible = self.durable.clone();
        self.volatile.clear();
        self.in_flight.clear();
    }

    /// Kills the process above the disk: what was in flight is done, not done or torn, and the rest
    /// goes on as it was, volatile writes included.
    pub fn kill(&mut self) {
        for (_, pending) in std::mem::take(&mut self.in_flight) {
            let Pending::Write { first_page, pages } = pending else {
                continue;
            };
            let write = VolatileWrite {
                first_page,
                pages,
                completed: self.completions,
            };
            match self.rng.below(4) {
                0 => continue,
                1 => self.torn(write),
                _ => {
                    put(&mut self.visible, &write);
                    self.volatile.push(write);
                }
            }
            self.completions += 1;
        }
    }

    /// What a power cut now could leave, drawn from `rng`; the disk itself goes on.
    #[must_use]
    pub fn crash_image(&self, rng: &mut SimRng) -> Image {
        self.cut(rng).0
    }

    fn cut(&self, rng: &mut SimRng) -> (Image, FaultCounts) {
        let mut image = self.durable.clone();
        let mut counts = FaultCounts {
            power_cuts: 1,
            ..FaultCounts::default()
        };
        let flying = self.in_flight.values().filter_map(|p| match p {
            Pending::Write { first_page, pages } => Some(VolatileWrite {
                first_page: *first_page,
                pages: pages.clone(),
                completed: u64::MAX,
            }),
            _ => None,
        });
        // One cut in a few is merciful or merciless altogether: both are cases of their own.
        let mood = rng.below(8);
        for write in self.volatile.iter().cloned().chain(flying) {
            match (mood, rng.below(3)) {
                (0, _) | (2.., 0) => {
                    counts.kept += 1;
                    put(&mut image, &write);
                }
                (1, _) | (2.., 1) => counts.lost += 1,
                _ => {
                    counts.torn += 1;
                    tear(&mut image, &write, rng);
                }
            }
        }
        (image, counts)
    }

    /// What reads see.
    #[must_use]
    pub fn visible(&self) -> &Image {
        &self.visible
    }

    /// Media damage: a page cannot be read any more, until it is written anew.
    pub fn spoil(&mut self, page: u64) {
        self.bad_pages.insert(page);
    }

    /// What cannot be read reads as zeros from now on, as on a copy made by a tool that skips such sectors. How many pages that
    /// were.
    pub fn skip_bad_pages(&mut self) -> usize {
        let pages = std::mem::take(&mut self.bad_pages);
        self.damage(|image| pages.iter().for_each(|page| image.zero_page(*page)));
        pages.len()
    }

    /// Changes what is on the media, for reads and for good: damage chosen by a test.
    pub fn damage(&mut self, change: impl Fn(&mut Image)) {
        change(&mut self.durable);
        change(&mut self.visible);
    }
}

fn put(image: &mut Image, write: &VolatileWrite) {
    for (number, page) in (write.first_page..).zip(&write.pages) {
        image.pages.insert(number, page.clone());
    }
}

/// Writes some sectors of a write: a prefix, a suffix, or any subset.
fn tear(image: &mut Image, write: &VolatileWrite, rng: &mut SimRng) {
    let per_page = BLOCK_SIZE / SECTOR_BYTES;
    let sectors = write.pages.len() * per_page;
    let cut = rng.index(sectors + 1);
    let how = rng.below(3);
    for (i, page) in write.pages.iter().enumerate() {
        let mut old = None;
        for s in 0..per_page {
            let sector = i * per_page + s;
            let kept = match how {
                0 => sector < cut,
                1 => sector >= cut,
                _ => rng.chance(500),
            };
            if kept {
                let number = write.first_page + i as u64;
                let bytes = old.get_or_insert_with(|| image.page_bytes(number));
                let at = s * SECTOR_BYTES..(s + 1) * SECTOR_BYTES;
                bytes[at.clone()].copy_from_slice(&page[at]);
            }
        }
        if let Some(bytes) = old {
            image.set_page(write.first_page + i as u64, Bytes::from(bytes));
        }
    }
}

fn error(kind: DiskErrorKind, errno: i32) -> DiskError {
    DiskError { kind, errno }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(seed: u64) -> SimDisk {
        SimDisk::new(Image::blank(1 << 20), SimRng::new(seed, 0))
    }

    fn write(disk: &mut SimDisk, io: u64, page: u64, byte: u8) {
        let bufs = vec![Bytes::from(vec![byte; BLOCK_SIZE])];
        let offset = page * BLOCK_SIZE_U64;
        disk.submit(IoId(io), DiskOp::Write { offset, bufs });
    }

    #[test]
    fn a_sync_covers_only_what_completed_before_it_was_submitted() {
        let mut losses = 0;
        for seed in 0..64 {
            let mut d = disk(seed);
            write(&mut d, 1, 0, 1);
            d.complete(IoId(1)).unwrap().unwrap();
            write(&mut d, 2, 1, 2);
            d.submit(IoId(3), DiskOp::Sync);
            d.complete(IoId(2)).unwrap().unwrap();
            d.complete(IoId(3)).unwrap().unwrap();
            d.power_cut();
            assert_eq!(d.visible().page_bytes(0), vec![1; BLOCK_SIZE]);
            losses += u32::from(d.visible().page_bytes(1) != vec![2; BLOCK_SIZE]);
        }
        assert!(losses > 10, "{losses}");
    }

    #[test]
    fn a_failed_sync_may_forget_for_good() {
        let mut forgotten = 0;
        for seed in 0..64 {
            let mut d = disk(seed);
            write(&mut d, 1, 0, 1);
            d.complete(IoId(1)).unwrap().unwrap();
            d.faults.sync_error = 1000;
            d.submit(IoId(2), DiskOp::Sync);
            d.complete(IoId(2)).unwrap().unwrap_err();
            d.faults.sync_error = 0;
            d.submit(IoId(3), DiskOp::Sync);
            d.complete(IoId(3)).unwrap().unwrap();
            assert_eq!(d.visible().page_bytes(0)[0], 1);
            d.power_cut();
            forgotten += u32::from(d.visible().page_bytes(0)[0] == 0);
        }
        assert!((10..60).contains(&forgotten), "{forgotten}");
    }
}
