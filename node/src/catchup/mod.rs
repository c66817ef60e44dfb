//! Replicas that the retained log does not reach any more become what the others are, by versions.
//!
//! The leader tells a replica that it lags ([`wire::Behind`]). That one asks for what it needs, at its own
//! pace: for a *manifest*, the volume at an index of its log, which the leader takes as a rewind point
//! ([`source`]); and for what each version has above what it holds itself ([`sink`], [`plan`]). What comes goes
//! through a feed into the map (`esker_engine`). A leader that changes, a node that stops, a snapshot that is
//! deleted meanwhile only mean that it asks anew, for what it still lacks.

mod plan;
mod sink;
mod source;
mod wire;

pub(crate) use sink::Sink;
pub(crate) use source::{Serving, Source};

use crate::event::{FrameKind, PeerFrame};
use crate::node::Node;
use bytes::Bytes;
use esker_base::num::to_u64;
use esker_base::Place;
pub(crate) use wire::{Copy, CopyKind, Note, Outsider, Want};

/// Replicas of this store that caught up by versions since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CatchUps {
    /// How many did.
    pub ended: u64,
    /// Blocks of data that came for those, and for others that are still at it.
    pub blocks: u64,
    /// Blocks of data that this store gave to others.
    pub given: u64,
    /// Replicas that are at it now.
    pub running: u64,
}

impl Node {
    /// Replicas that caught up by versions since the store was opened.
    #[must_use]
    pub fn catch_ups(&self) -> CatchUps {
        let running = self.volumes.values().filter(|v| v.sink.is_some()).count();
        CatchUps {
            running: to_u64(running),
            ..self.catch_ups
        }
    }

    /// A frame about catching up.
    pub(crate) fn catch_up_frame(&mut self, from: Place, frame: PeerFrame) {
        match Note::unpack(&frame.header) {
            Ok(Note::Behind(behind)) => self.told_behind(&behind),
            Ok(Note::Fetch(fetch)) => self.fetch_asked(from, &fetch),
            Ok(Note::Part(part)) => self.part_came(&part, frame.payloads),
            Ok(Note::Outsider(told)) => self.told_outsider(&told),
            Ok(Note::Want(want)) => self.wanted(from, want),
            Ok(Note::Copy(copy)) => self.copy_came(from, &copy, frame.payloads),
            Err(why) => tracing::warn!(%from, why, "peer frame refused"),
        }
    }

    pub(crate) fn send_catch_up(&mut self, to: Place, note: Note, payloads: Vec<Bytes>) {
        let frame = PeerFrame {
            kind: FrameKind::CatchUp,
            header: note.pack(),
            payloads,
        };
        self.notes.push((to, frame));
    }
}
