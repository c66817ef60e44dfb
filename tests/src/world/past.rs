//! Moments of volumes with rewind windows, and what a volume that is cloned as it was then may hold: nothing
//! that was asked for after the moment, and whatever was answered well before it.

use super::catalog::Change;
use super::oracle::Frozen;
use super::world::World;
use std::collections::BTreeMap;

/// A second, and what a timer may be late.
const SURELY_POINTED_US: u64 = 1_200_000;
/// Moments that are remembered.
const MARKS_MAX: usize = 8;

/// Since when what volumes held is remembered.
#[derive(Debug)]
struct Watch {
    born: u64,
    step: u64,
    wall_us: u64,
}

/// A moment of a volume.
#[derive(Debug)]
struct Mark {
    slot: usize,
    born: u64,
    at_us: u64,
    frozen: Frozen,
}

/// All that is remembered.
#[derive(Debug, Default)]
pub(crate) struct Past {
    /// By slot.
    watched: BTreeMap<usize, Watch>,
    marks: Vec<Mark>,
}

impl World {
    /// Remembers what a volume holds at this moment, once it has been watched for long enough.
    pub(crate) fn note_past(&mut self, slot: usize) {
        let (step, wall_us) = (self.step, self.wall().0);
        let Some(volume) = self.slots[slot].volume.as_mut() else {
            return;
        };
        let watch = self.past.watched.remove(&slot);
        let watch = watch.filter(|w| w.born == volume.born);
        if let Some(watch) = watch {
            if watch.wall_us + SURELY_POINTED_US > wall_us {
                self.past.watched.insert(slot, watch);
                return;
            }
            let mark = Mark {
                slot,
                born: volume.born,
                at_us: wall_us,
                frozen: volume.oracle.freeze(watch.step),
            };
            volume.oracle.read_dropped(watch.step);
            if self.past.marks.len() >= MARKS_MAX {
                self.past.marks.remove(0);
            }
            self.past.marks.push(mark);
            self.stats.did("moments remembered");
        }
        // Values that were replaced are kept as long as a read could still return them.
        volume.oracle.read_asked(step);
        let born = volume.born;
        let watch = Watch {
            born,
            step,
            wall_us,
        };
        self.past.watched.insert(slot, watch);
    }

    /// A crash took away what was not durable, points among it, or a volume has gone back to a snapshot.
    pub(crate) fn past_is_lost(&mut self) {
        self.past = Past::default();
    }

    /// A volume that begins as another one was at a moment.
    pub(crate) fn clone_of_the_past(&mut self, name: &str) -> Option<Change> {
        if self.plan.past_clones == 0 || !self.rng.chance(self.plan.past_clones) {
            return None;
        }
        let at = self.rng.index(self.past.marks.len().max(1));
        let mark = self.past.marks.get(at)?;
        let slot = &self.slots[mark.slot];
        let volume = slot.volume.as_ref().filter(|v| v.born == mark.born)?;
        slot.change.is_none().then(|| Change::Clone {
            name: name.to_owned(),
            volume: volume.name.clone(),
            snapshot: String::new(),
            at_us: Some(mark.at_us),
            frozen: mark.frozen.clone(),
        })
    }
}
