//! Where survivors go. What has outlived a collection outlives the next one more likely than what comes
//! from the log: apart from each other, segments are either full of what stays or soon empty.

use crate::format::checkpoint::SegmentKind;

/// Streams of survivors, each with an open segment: those from the log and from the map, and those that
/// have survived before.
pub(crate) const STREAMS: usize = 2;
/// A store of fewer segments has one: another open segment is more of it than is gained.
const SEGMENTS_MIN: u64 = 64;

/// An open segment: its number, its generation, and the next slot in it.
pub(super) type Open = (u32, u64, u32);

/// How many streams a store of so many segments has.
pub(crate) fn count(segments: u64) -> usize {
    match segments < SEGMENTS_MIN {
        true => 1,
        false => STREAMS,
    }
}

/// Which of `count` streams takes what survives in a segment of this kind.
pub(super) fn stream_of(kind: SegmentKind, count: usize) -> usize {
    usize::from(count > 1 && kind == SegmentKind::Survivors)
}

/// Segments of survivors that are being filled, by stream.
#[derive(Debug, Default)]
pub(super) struct Streams([Option<Open>; STREAMS]);

impl Streams {
    /// The open segment of a stream, if it has one.
    pub fn open(&self, stream: usize) -> Option<Open> {
        self.0[stream]
    }

    /// A stream goes on here.
    pub fn set(&mut self, stream: usize, open: Option<Open>) {
        self.0[stream] = open;
    }

    /// Any open segment of `slots` slots with room for so many more.
    pub fn any_with(&self, more: u32, slots: u32) -> Option<Open> {
        let mut all = self.0.iter().flatten();
        all.find(|(.., slot)| slot + more <= slots).copied()
    }

    /// An open segment is written up to this slot.
    pub fn goes_on(&mut self, generation: u64, slot: u32) {
        let here = self.0.iter_mut().flatten();
        for open in here.filter(|(_, g, _)| *g == generation) {
            open.2 = slot;
        }
    }

    /// The open segments.
    pub fn segments(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().flatten().map(|(segment, ..)| *segment)
    }
}
