//! Received bytes that are not parsed yet.

use bytes::{Buf, Bytes};
use std::collections::VecDeque;

/// A queue of bytes, held in the buffers they arrived in.
#[derive(Debug, Default)]
pub(crate) struct Input {
    chunks: VecDeque<Bytes>,
    length: usize,
}

impl Input {
    pub(crate) fn push(&mut self, data: Bytes) {
        if !data.is_empty() {
            self.length += data.len();
            self.chunks.push_back(data);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Takes exactly `N` bytes, or none.
    pub(crate) fn take_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        if self.length < N {
            return None;
        }
        let mut array = [0; N];
        let taken = self.copy_to(&mut array);
        debug_assert_eq!(taken, N);
        Some(array)
    }

    /// Moves bytes into `target` until it is full or the queue is empty; returns how many.
    pub(crate) fn copy_to(&mut self, target: &mut [u8]) -> usize {
        let mut filled = 0;
        self.consume(target.len(), |piece| {
            target[filled..filled + piece.len()].copy_from_slice(piece);
            filled += piece.len();
        })
    }

    /// Appends up to `count` bytes to `target`; returns how many.
    pub(crate) fn append_to(&mut self, target: &mut Vec<u8>, count: usize) -> usize {
        self.consume(count, |piece| target.extend_from_slice(piece))
    }

    /// Drops up to `count` bytes; returns how many.
    pub(crate) fn discard(&mut self, count: usize) -> usize {
        self.consume(count, |_| ())
    }

    fn consume(&mut self, count: usize, mut sink: impl FnMut(&[u8])) -> usize {
        let mut left = count.min(self.length);
        let taken = left;
        self.length -= taken;
        while left > 0 {
            let Some(chunk) = self.chunks.front_mut() else {
                break;
            };
            let part = left.min(chunk.len());
            sink(&chunk[..part]);
            chunk.advance(part);
            left -= part;
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_in_order_across_chunks() {
        let mut input = Input::default();
        for chunk in [&b"ab"[..], b"", b"c", b"defg"] {
            input.push(Bytes::copy_from_slice(chunk));
        }
        assert_eq!(input.take_array::<8>(), None);
        assert_eq!(input.take_array::<3>(), Some(*b"abc"));
        assert_eq!(input.discard(1), 1);
        let mut rest = Vec::new();
        assert_eq!(input.append_to(&mut rest, 2), 2);
        let mut last = [0; 4];
        assert_eq!(input.copy_to(&mut last), 1);
        assert_eq!((rest.as_slice(), last[0]), (&b"ef"[..], b'g'));
        assert_eq!((input.len(), input.discard(9)), (0, 0));
    }
}
