//! The hash of everything that happened in a run: equal for equal seeds, or something is not
//! deterministic.

use esker_base::{DiskOp, IoId};
use esker_engine::event::{Effect, ReadPiece};
use xxhash_rust::xxh3::Xxh3;

/// A running hash.
#[derive(Clone, Default)]
pub struct Trace {
    hash: Xxh3,
}

impl Trace {
    /// Folds numbers in.
    pub fn note(&mut self, numbers: &[u64]) {
        for n in numbers {
            self.hash.update(&n.to_le_bytes());
        }
    }

    /// Folds text in.
    pub fn text(&mut self, text: &str) {
        self.hash.update(text.as_bytes());
    }

    /// Folds a disk operation in, the bytes written included.
    pub fn disk(&mut self, io: IoId, op: &DiskOp) {
        match op {
            DiskOp::Read { offset, length } => self.note(&[1, io.0, *offset, *length as u64]),
            DiskOp::Write { offset, bufs } => {
                self.note(&[2, io.0, *offset]);
                bufs.iter().for_each(|b| self.hash.update(b));
            }
            DiskOp::Sync => self.note(&[3, io.0]),
        }
    }

    /// Folds an effect in.
    pub fn effect(&mut self, effect: &Effect) {
        match effect {
            Effect::Disk { io, op } => self.disk(*io, op),
            Effect::ReadDone {
                token,
                result: Ok(pieces),
            } => {
                self.note(&[4, *token]);
                for piece in pieces {
                    match piece {
                        ReadPiece::Data(data) | ReadPiece::Sealed { data, .. } => {
                            self.hash.update(data)
                        }
                        ReadPiece::Zeros(count) => self.note(&[*count]),
                    }
                }
            }
            other => self.text(&format!("{other:?}")),
        }
    }

    /// The hash so far.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.hash.digest()
    }
}
