//! Zeros ahead of the log: segments that nothing was ever written to get them while nobody wants anything.
//!
//! In a preallocated file the first write to an extent turns it from unwritten to written, and the sync behind it writes the
//! file's inode and extent blocks before the data counts as durable: half of the device's writes at depth 1 (see
//! docs/performance.md). A device has no such extents, nor has a segment that was used before: its generation is not zero.
//!
//! A segment stays free meanwhile, but is not opened while a write to it is on its way. Nothing of this is durable, or has
//! to be: what was written with zeros reads as what was never written.

use crate::config::Sabotage;
use crate::engine::{Engine, Purpose};
use crate::event::Effect;
use crate::format::PAGE_U64;
use bytes::Bytes;
use esker_base::num::to_usize;
use esker_base::{AlignedBuf, DiskOp, Moment};
use std::collections::BTreeSet;
use std::time::Duration;

/// One in so many segments is written ahead, at most [`SEGMENTS_MAX`].
const SHARE: u64 = 8;
/// 2 GiB of segments of 64 MiB.
const SEGMENTS_MAX: u64 = 32;
/// With fewer free segments nothing is written ahead: one that is being written is not to be had.
const FREE_LEAST: usize = 12;
/// Slots of one write, 256 KiB: others may come and wait for it.
const WRITE_SLOTS: u32 = 64;
/// The zeros that a write consists of, over and over.
const ZEROS_BYTES: usize = 64 << 10;
/// Time between two writes: 50 MB/s at most.
const PAUSE: Duration = Duration::from_millis(5);

/// How far it is.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    /// Free segments that were never used and are full of zeros.
    done: BTreeSet<u32>,
    /// The one being written, and its first slot without zeros.
    at: Option<(u32, u32)>,
    /// A write is on its way, which ends at this slot.
    on_its_way: Option<u32>,
    /// When the last one ended.
    last: Moment,
    zeros: Option<Bytes>,
    /// Bytes written.
    pub bytes: u64,
    /// The device refused one: what is wrong with it, the next record will tell.
    is_over: bool,
}

impl Engine {
    /// When the next write may begin, if one is to.
    pub(crate) fn ahead_due(&self) -> Option<Moment> {
        let ahead = &self.ahead;
        let wanted = self.config.zero_ahead && !ahead.is_over && !self.stopping;
        let alone = self.purposes.is_empty() && self.log.is_quiet() && self.checkpoint.is_none();
        if !wanted || !alone || self.next_ahead().is_none() {
            return None;
        }
        let idle = self.log.quiet_since + self.config.ahead_idle_time;
        Some(idle.max(ahead.last + PAUSE))
    }

    /// The first segment that will be opened and was never written.
    fn next_ahead(&self) -> Option<u32> {
        let many = (self.sb.segment_count / SHARE).min(SEGMENTS_MAX);
        if self.segs.free_count() < FREE_LEAST {
            return None;
        }
        let new = |number: &u32| {
            self.segs.get(*number).generation == 0 && !self.ahead.done.contains(number)
        };
        self.segs.next_free().take(to_usize(many)).find(new)
    }

    /// Writes some zeros, if it is time.
    pub(crate) fn ahead_step(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        if self.ahead_due().is_none_or(|due| due > now) {
            return;
        }
        let Some(segment) = self.next_ahead() else {
            return;
        };
        let begun = self.ahead.at.filter(|(at, _)| *at == segment);
        let from = begun.map_or(0, |(_, slot)| slot);
        let to = (from + WRITE_SLOTS).min(self.sb.slots());
        let zeros = self
            .ahead
            .zeros
            .get_or_insert_with(|| AlignedBuf::zeroed(ZEROS_BYTES).freeze());
        let (mut left, mut bufs) = (to_usize(u64::from(to - from) * PAGE_U64), Vec::new());
        while left > 0 {
            let some = left.min(ZEROS_BYTES);
            bufs.push(zeros.slice(..some));
            left -= some;
        }
        self.ahead.at = Some((segment, from));
        self.ahead.on_its_way = Some(to);
        self.ahead.bytes += u64::from(to - from) * PAGE_U64;
        if self.config.sabotage != Sabotage::OpenWhileZeroed {
            self.segs.hold(Some(segment));
        }
        let offset = self.sb.offset_of(segment, from);
        self.disk(DiskOp::Write { offset, bufs }, Purpose::Ahead, effects);
    }

    /// A write ended.
    pub(crate) fn ahead_written(&mut self, now: Moment, is_there: bool) {
        let ahead = &mut self.ahead;
        self.segs.hold(None);
        ahead.last = now;
        ahead.is_over |= !is_there;
        let (Some((segment, _)), Some(to)) = (ahead.at, ahead.on_its_way.take()) else {
            return;
        };
        ahead.at = Some((segment, to));
        if is_there && to == self.sb.slots() {
            ahead.at = None;
            ahead.done.insert(segment);
        }
        if self.next_ahead().is_none() {
            self.ahead.zeros = None;
        }
    }
}
