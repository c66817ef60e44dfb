//! Replies of the transmission phase: simple, in structured chunks, or in extended chunks.
//!
//! With structured replies negotiated, reads and block status requests are answered in chunks and
//! every error in an error chunk, which carries a message. Success without data stays a simple reply,
//! which the protocol allows for everything but reads and which is the shortest. With extended headers
//! everything is a chunk.

use crate::errno;
use crate::headers::Headers;
use crate::limits::STATUS_EXTENTS_MAX;
use crate::option::cut;
use crate::output::Output;
use crate::request::{Extent, ReadPiece, RequestError};
use crate::wire::{chunk, MAGIC_EXTENDED_REPLY, MAGIC_SIMPLE_REPLY, MAGIC_STRUCTURED_REPLY};
use esker_base::num::{to_u32_saturating, to_usize};

/// Which request is answered, and in which form.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReplyTo {
    pub headers: Headers,
    pub cookie: u64,
    /// The request's; extended chunks repeat it.
    pub offset: u64,
}

impl ReplyTo {
    /// Success without data, of a request other than a read.
    pub(crate) fn done(&self, output: &mut Output) {
        if self.headers.extended() {
            self.chunk(output, chunk::FLAG_DONE, chunk::NONE, 0);
        } else {
            self.simple(output, 0);
        }
    }

    /// Failure; `at` says where, if that is known.
    pub(crate) fn error(
        &self,
        output: &mut Output,
        error: RequestError,
        text: &str,
        at: Option<u64>,
    ) {
        let number = errno::number(error);
        if !self.headers.chunks() {
            return self.simple(output, number);
        }
        let text = cut(text).as_bytes();
        let Ok(length) = u16::try_from(text.len()) else {
            return;
        }; // `cut` keeps 4096 at most
        let (kind, fixed) = match at {
            None => (chunk::ERROR, 6),
            Some(_) => (chunk::ERROR_OFFSET, 14),
        };
        self.chunk(output, chunk::FLAG_DONE, kind, fixed + u32::from(length));
        output.u32(number);
        output.u16(length);
        output.bytes(text);
        if let Some(offset) = at {
            output.u64(offset);
        }
    }

    fn malformed(&self, output: &mut Output, text: &str) {
        self.error(output, RequestError::Io, text, None);
    }

    /// Answers a read of `length` bytes with `pieces`; with EIO when they are not exactly that many.
    pub(crate) fn read(
        &self,
        output: &mut Output,
        length: u64,
        dont_fragment: bool,
        mut pieces: Vec<ReadPiece>,
    ) {
        let total = pieces
            .iter()
            .try_fold(0u64, |sum, piece| sum.checked_add(piece.length()));
        if total != Some(length) {
            return self.malformed(output, "the server read another length than was asked for");
        }
        if !self.headers.chunks() {
            self.simple(output, 0);
            return spell_out(output, &pieces);
        }
        pieces.retain(|piece| piece.length() > 0);
        let (mut offset, mut rest) = (self.offset, pieces.as_slice());
        loop {
            let (run, after) = rest.split_at(run_length(rest, dont_fragment));
            offset += self.content(output, done_if(after.is_empty()), offset, run);
            rest = after;
            if rest.is_empty() {
                return;
            }
        }
    }

    /// Sends one chunk: a hole when all of it is zero. Returns its length in bytes, which is part of
    /// the read's and so fits 32 bits.
    fn content(&self, output: &mut Output, flags: u16, offset: u64, run: &[ReadPiece]) -> u64 {
        let sum: u64 = run.iter().map(ReadPiece::length).sum();
        let length = u32::try_from(sum).unwrap_or(u32::MAX);
        if run.is_empty() {
            self.chunk(output, flags, chunk::NONE, 0);
        } else if run.iter().all(is_hole) {
            self.chunk(output, flags, chunk::OFFSET_HOLE, 12);
            output.u64(offset);
            output.u32(length);
        } else {
            // Reads are limited far below 4 GiB, so nothing saturates.
            let with_offset = length.saturating_add(8);
            self.chunk(output, flags, chunk::OFFSET_DATA, with_offset);
            output.u64(offset);
            spell_out(output, run);
        }
        sum
    }

    /// Answers a block status request of `length` bytes: for each of `ids` its extents. With EIO when
    /// they are not what [`crate::Reply::BlockStatus`] asks for.
    pub(crate) fn block_status(
        &self,
        output: &mut Output,
        length: u64,
        one: bool,
        ids: &[u32],
        extents: &[Vec<Extent>],
    ) {
        let fits = |list: &Vec<Extent>| {
            let total = list
                .iter()
                .try_fold(0u64, |sum, extent| sum.checked_add(extent.length));
            !list.is_empty()
                && list.iter().all(|extent| extent.length > 0)
                && total.is_some_and(|total| total <= length)
        };
        if ids.is_empty() || ids.len() != extents.len() || !extents.iter().all(fits) {
            let text = "the server's answer has another form than the request";
            return self.malformed(output, text);
        }
        let most = if one { 1 } else { STATUS_EXTENTS_MAX };
        for (i, (id, list)) in ids.iter().zip(extents).enumerate() {
            let list = &list[..list.len().min(most)];
            self.status(output, done_if(i + 1 == ids.len()), *id, list);
        }
    }

    fn status(&self, output: &mut Output, flags: u16, id: u32, list: &[Extent]) {
        let count = to_u32_saturating(list.len());
        if self.headers.extended() {
            self.chunk(output, flags, chunk::BLOCK_STATUS_EXT, 8 + 16 * count);
            output.u32(id);
            output.u32(count);
            for extent in list {
                output.u64(extent.length);
                output.u64(u64::from(extent.flags));
            }
        } else {
            self.chunk(output, flags, chunk::BLOCK_STATUS, 4 + 8 * count);
            output.u32(id);
            for extent in list {
                // A compact request is shorter than 4 GiB, and so are the extents in it.
                output.u32(u32::try_from(extent.length).unwrap_or(u32::MAX));
                output.u32(extent.flags);
            }
        }
    }

    fn simple(&self, output: &mut Output, number: u32) {
        output.u32(MAGIC_SIMPLE_REPLY);
        output.u32(number);
        output.u64(self.cookie);
    }

    fn chunk(&self, output: &mut Output, flags: u16, kind: u16, length: u32) {
        let extended = self.headers.extended();
        output.u32(if extended {
            MAGIC_EXTENDED_REPLY
        } else {
            MAGIC_STRUCTURED_REPLY
        });
        output.u16(flags);
        output.u16(kind);
        output.u64(self.cookie);
        if extended {
            output.u64(self.offset);
            output.u64(u64::from(length));
        } else {
            output.u32(length);
        }
    }
}

/// How many of the first pieces travel in one chunk: neighbours of one kind, or all of them when the
/// client wants no fragments.
fn run_length(pieces: &[ReadPiece], dont_fragment: bool) -> usize {
    let Some(first) = pieces.first() else {
        return 0;
    };
    if dont_fragment {
        return pieces.len();
    }
    pieces
        .iter()
        .take_while(|piece| is_hole(piece) == is_hole(first))
        .count()
}

fn done_if(last: bool) -> u16 {
    if last {
        chunk::FLAG_DONE
    } else {
        0
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
