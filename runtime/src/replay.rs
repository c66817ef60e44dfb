//! What a device may hold after a power cut, computed from a trace.
//!
//! A write is certain once a sync that was submitted after its completion has succeeded. Until then
//! any 512-byte sector of it may or may not be on the device, whatever its order among the others.
//! (A real device can lose no more than that, unless it lies about flushes.)

use crate::record::TraceEvent;
use bytes::Bytes;
use esker_base::num::{to_u64, to_usize};
use esker_base::{IoId, BLOCK_SIZE, BLOCK_SIZE_U64};
use std::collections::{BTreeMap, HashMap};

/// The unit that a device writes whole or not at all, in bytes.
pub const SECTOR_BYTES: usize = 512;

/// The state of a device while a trace is replayed.
#[derive(Clone, Debug, Default)]
pub struct PowerCut {
    certain: Image,
    uncertain: Vec<Uncertain>,
    syncs: HashMap<IoId, Vec<IoId>>,
}

/// A write that no completed sync covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uncertain {
    /// Its id.
    pub io: IoId,
    /// Byte offset.
    pub offset: u64,
    /// What was written.
    pub data: Bytes,
    /// True when the device has reported it written.
    pub has_completed: bool,
}

/// What becomes of an uncertain write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// None of it reached the medium.
    Lost,
    /// All of it did.
    Whole,
    /// The sectors marked true did; those past the end of the list did not.
    Torn(Vec<bool>),
}

/// The content of a device; zeros where nothing was ever written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    blocks: BTreeMap<u64, Bytes>,
}

impl PowerCut {
    /// A device that holds `image`; recorded stores that began empty start from the default.
    #[must_use]
    pub fn from_image(image: Image) -> Self {
        Self {
            certain: image,
            ..Self::default()
        }
    }

    /// Takes the next step of the trace.
    pub fn apply(&mut self, event: &TraceEvent) {
        match event {
            TraceEvent::Write { io, offset, data } => self.uncertain.push(Uncertain {
                io: *io,
                offset: *offset,
                data: data.clone(),
                has_completed: false,
            }),
            TraceEvent::Sync { io } => {
                let completed = self.uncertain.iter().filter(|write| write.has_completed);
                let covered = completed.map(|write| write.io).collect();
                self.syncs.insert(*io, covered);
            }
            TraceEvent::Completed { io, result } => {
                if let Some(covered) = self.syncs.remove(io) {
                    if result.is_ok() {
                        self.settle(&covered);
                    }
                } else if let Some(write) = self.uncertain.iter_mut().find(|w| w.io == *io) {
                    // A failed write stays uncertain for ever: part of it may be on the medium.
                    write.has_completed = result.is_ok();
                }
            }
            _ => {}
        }
    }

    /// The writes that may be lost, in the order of their submission.
    #[must_use]
    pub fn uncertain(&self) -> &[Uncertain] {
        &self.uncertain
    }

    /// What the device holds if the power fails now and each uncertain write has this fate.
    pub fn image(&self, mut fate: impl FnMut(&Uncertain) -> Fate) -> Image {
        let mut image = self.certain.clone();
        for write in &self.uncertain {
            match fate(write) {
                Fate::Lost => {}
                Fate::Whole => image.write(write.offset, &write.data),
                Fate::Torn(kept) => {
                    let sectors = write.data.chunks(SECTOR_BYTES).zip(kept).enumerate();
                    for (index, (sector, _)) in sectors.filter(|(_, (_, kept))| *kept) {
                        image.write(write.offset + to_u64(index * SECTOR_BYTES), sector);
                    }
                }
            }
        }
        image
    }

    fn settle(&mut self, covered: &[IoId]) {
        let mut rest = Vec::new();
        for write in std::mem::take(&mut self.uncertain) {
            if covered.contains(&write.io) {
                self.certain.write(write.offset, &write.data);
            } else {
                rest.push(write);
            }
        }
        self.uncertain = rest;
    }
}

impl Image {
    /// `length` bytes at `offset`.
    #[must_use]
    pub fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut out = vec![0; length];
        let mut done = 0;
        while done < length {
            let at = offset + to_u64(done);
            let within = to_usize(at % BLOCK_SIZE_U64);
            let count = (BLOCK_SIZE - within).min(length - done);
            if let Some(block) = self.blocks.get(&(at / BLOCK_SIZE_U64)) {
                out[done..done + count].copy_from_slice(&block[within..within + count]);
            }
            done += count;
        }
        out
    }

    /// Overwrites part of it.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let at = offset + to_u64(done);
            let within = to_usize(at % BLOCK_SIZE_U64);
            let count = (BLOCK_SIZE - within).min(data.len() - done);
            let mut block = match self.blocks.get(&(at / BLOCK_SIZE_U64)) {
                Some(block) => block.to_vec(),
                None => vec![0; BLOCK_SIZE],
            };
            block[within..within + count].copy_from_slice(&data[done..done + count]);
            self.blocks.insert(at / BLOCK_SIZE_U64, Bytes::from(block));
            done += count;
        }
    }

    /// The blocks that were ever written, by index, each of 4096 bytes.
    pub fn blocks(&self) -> impl Iterator<Item = (u64, &Bytes)> {
        self.blocks.iter().map(|(index, block)| (*index, block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(io: u64, offset: u64, byte: u8) -> TraceEvent {
        let data = Bytes::from(vec![byte; BLOCK_SIZE]);
        TraceEvent::Write {
            io: IoId(io),
            offset,
            data,
        }
    }

    fn done(io: u64) -> TraceEvent {
        TraceEvent::Completed {
            io: IoId(io),
            result: Ok(()),
        }
    }

    #[test]
    fn only_a_completed_sync_makes_earlier_completions_certain() {
        let mut device = PowerCut::default();
        let sync = TraceEvent::Sync { io: IoId(9) };
        for event in [write(1, 0, 1), write(2, 4096, 2), done(1), sync, done(2)] {
            device.apply(&event);
        }
        assert_eq!(device.image(|_| Fate::Lost).read(0, 4096), vec![0; 4096]);
        device.apply(&done(9));
        let image = device.image(|_| Fate::Lost);
        assert_eq!((image.read(0, 1), image.read(4096, 1)), (vec![1], vec![0]));
        assert_eq!(device.uncertain().len(), 1);
        let torn = device.image(|_| Fate::Torn(vec![false, true]));
        assert_eq!(torn.read(4096 + 511, 3), vec![0, 2, 2]);
        assert_eq!(torn.read(4096 + 1023, 2), vec![2, 0]);
    }
}
