//! Replies of the transmission phase, simple and structured.
//!
//! With structured replies negotiated, reads are answered in chunks and every error in an error
//! chunk, which carries a message. Success without data stays a simple reply, which the protocol
//! allows for everything but reads and which is the shortest.

use crate::errno;
use crate::option::cut;
use crate::output::Output;
use crate::request::{ReadPiece, RequestError};
use crate::wire::{chunk, MAGIC_SIMPLE_REPLY, MAGIC_STRUCTURED_REPLY};
use esker_base::num::to_usize;

/// Success without data, of a request other than a read.
pub(crate) fn done(output: &mut Output, cookie: u64) {
    simple(output, 0, cookie);
}

/// Failure.
pub(crate) fn error(
    output: &mut Output,
    structured: bool,
    cookie: u64,
    error: RequestError,
    text: &str,
) {
    let number = errno::number(error);
    if !structured {
        simple(output, number, cookie);
        return;
    }
    let text = cut(text).as_bytes();
    let Ok(length) = u16::try_from(text.len()) else {
        return;
    }; // `cut` keeps 4096 at most
    chunk_header(
        output,
        chunk::FLAG_DONE,
        chunk::ERROR,
        cookie,
        6 + u32::from(length),
    );
    output.u32(number);
    output.u16(length);
    output.bytes(text);
}

/// What a read is answered in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadReply {
    pub cookie: u64,
    pub offset: u64,
    pub length: u32,
    pub structured: bool,
    pub dont_fragment: bool,
}

impl ReadReply {
    /// Answers with `pieces`; with EIO when they are not exactly what was asked for.
    pub(crate) fn send(&self, output: &mut Output, mut pieces: Vec<ReadPiece>) {
        let total = pieces
            .iter()
            .try_fold(0u64, |sum, piece| sum.checked_add(piece.length()));
        if total != Some(u64::from(self.length)) {
            let text = "the server read another length than was asked for";
            error(output, self.structured, self.cookie, RequestError::Io, text);
            return;
        }
        if !self.structured {
            simple(output, 0, self.cookie);
            spell_out(output, &pieces);
            return;
        }
        pieces.retain(|piece| piece.length() > 0);
        let (mut offset, mut rest) = (self.offset, pieces.as_slice());
        loop {
            let (run, after) = rest.split_at(self.run_length(rest));
            let flags = if after.is_empty() {
                chunk::FLAG_DONE
            } else {
                0
            };
            offset += self.content(output, flags, offset, run);
            rest = after;
            if rest.is_empty() {
                return;
            }
        }
    }

    /// How many of the first pieces travel in one chunk: neighbours of one kind, or all of them when
    /// the client wants no fragments.
    fn run_length(&self, pieces: &[ReadPiece]) -> usize {
        let Some(first) = pieces.first() else {
            return 0;
        };
        if self.dont_fragment {
            return pieces.len();
        }
        pieces
            .iter()
            .take_while(|piece| is_hole(piece) == is_hole(first))
            .count()
    }

    /// Sends one chunk: a hole when all of it is zero. Returns its length in bytes, which is part of
    /// the read's and so fits 32 bits.
    fn content(&self, output: &mut Output, flags: u16, offset: u64, run: &[ReadPiece]) -> u64 {
        let sum: u64 = run.iter().map(ReadPiece::length).sum();
        let length = u32::try_from(sum).unwrap_or(u32::MAX);
        if run.is_empty() {
            chunk_header(output, flags, chunk::NONE, self.cookie, 0);
        } else if run.iter().all(is_hole) {
            chunk_header(output, flags, chunk::OFFSET_HOLE, self.cookie, 12);
            output.u64(offset);
            output.u32(length);
        } else {
            // Reads are limited far below 4 GiB, so nothing saturates.
            chunk_header(
                output,
                flags,
                chunk::OFFSET_DATA,
                self.cookie,
                length.saturating_add(8),
            );
            output.u64(offset);
            spell_out(output, run);
        }
        sum
    }
}

fn is_hole(piece: &ReadPiece) -> bool {
    matches!(piece, ReadPiece::Zeros(_))
}

fn spell_out(output: &mut Output, pieces: &[ReadPiece]) {
    for piece in pieces {
        match piece {
            ReadPiece::Data(bytes) => output.payload(bytes.clone()),
            ReadPiece::Zeros(length) => output.zeros(to_usize(*length)),
        }
    }
}

fn simple(output: &mut Output, number: u32, cookie: u64) {
    output.u32(MAGIC_SIMPLE_REPLY);
    output.u32(number);
    output.u64(cookie);
}

fn chunk_header(output: &mut Output, flags: u16, kind: u16, cookie: u64, length: u32) {
    output.u32(MAGIC_STRUCTURED_REPLY);
    output.u16(flags);
    output.u16(kind);
    output.u64(cookie);
    output.u32(length);
}
