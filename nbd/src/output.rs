//! Bytes to send. Small fields are gathered in one buffer; payload is passed through.

use crate::wire;
use bytes::{BufMut, Bytes, BytesMut};

/// How much is allocated for headers at a time, in bytes.
const HEADERS_CHUNK_BYTES: usize = 4096;
/// Zeros to point at where a reply must spell them out.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// Everything to send, in order.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pieces: Vec<Bytes>,
    headers: BytesMut,
}

impl Output {
    /// Moves everything to the end of `out`.
    pub(crate) fn take(&mut self, out: &mut Vec<Bytes>) {
        self.end_headers();
        out.append(&mut self.pieces);
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.room(2).put_u16(value);
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.room(4).put_u32(value);
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.room(8).put_u64(value);
    }

    /// Copies a short text.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).put_slice(bytes);
    }

    /// Passes `data` through.
    pub(crate) fn payload(&mut self, data: Bytes) {
        if !data.is_empty() {
            self.end_headers();
            self.pieces.push(data);
        }
    }

    /// So many zero bytes, without memory for them.
    pub(crate) fn zeros(&mut self, mut length: usize) {
        while length > 0 {
            let part = length.min(ZEROS.len());
            self.payload(Bytes::from_static(&ZEROS[..part]));
            length -= part;
        }
    }

    /// Header of an option reply with `length` bytes of data.
    pub(crate) fn option_reply(&mut self, option: u32, kind: u32, length: u32) {
        self.u64(wire::MAGIC_OPTION_REPLY);
        self.u32(option);
        self.u32(kind);
        self.u32(length);
    }

    fn room(&mut self, length: usize) -> &mut BytesMut {
        if self.headers.capacity() - self.headers.len() < length {
            // What is there leaves as it is, so that growing never copies it.
            self.end_headers();
            self.headers.reserve(length.max(HEADERS_CHUNK_BYTES));
        }
        &mut self.headers
    }

    fn end_headers(&mut self) {
        if !self.headers.is_empty() {
            self.pieces.push(self.headers.split().freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_kept_and_payload_is_not_copied() {
        let mut output = Output::default();
        let payload = Bytes::from(vec![9; 100]);
        output.u16(1);
        output.payload(payload.clone());
        output.u16(2);
        output.zeros(ZEROS.len() + 1);
        let mut out = Vec::new();
        output.take(&mut out);
        let lengths: Vec<usize> = out.iter().map(Bytes::len).collect();
        assert_eq!(lengths, [2, 100, 2, ZEROS.len(), 1]);
        assert_eq!(out[1].as_ptr(), payload.as_ptr());
        out.clear();
        output.take(&mut out);
        assert!(out.is_empty());
    }

    #[test]
    fn headers_share_a_buffer_and_survive_its_end() {
        let mut output = Output::default();
        for i in 0..2000u32 {
            output.u32(i);
        }
        let mut out = Vec::new();
        output.take(&mut out);
        assert!(out.len() <= 3);
        let all: Vec<u8> = out.concat();
        let expected: Vec<u8> = (0..2000u32).flat_map(u32::to_be_bytes).collect();
        assert_eq!(all, expected);
    }
}
