//! The payload of a write while it arrives.

use crate::input::Input;
use bytes::Bytes;
use esker_base::num::to_usize;
use esker_base::{AlignedBuf, BLOCK_SIZE_U64};

/// Collects a write's payload so that whole 4 KiB blocks of the export are page-aligned slices.
#[derive(Debug)]
pub(crate) struct Payload {
    /// Allocated when the first byte is there: a header alone costs no memory.
    buf: Option<AlignedBuf>,
    /// Bytes before the payload, `offset` modulo 4096.
    lead: usize,
    length: usize,
    filled: usize,
}

impl Payload {
    /// For `length` bytes that are written at `offset`. The caller has validated both.
    pub(crate) fn new(offset: u64, length: usize) -> Self {
        Self {
            buf: None,
            lead: to_usize(offset % BLOCK_SIZE_U64),
            length,
            filled: 0,
        }
    }

    /// Takes what is there; gives the payload when it is complete.
    pub(crate) fn fill(&mut self, input: &mut Input) -> Option<Bytes> {
        if input.len() > 0 && self.filled < self.length {
            let (lead, length) = (self.lead, self.length);
            let buf = self
                .buf
                .get_or_insert_with(|| AlignedBuf::to_overwrite(lead + length));
            self.filled += input.copy_to(&mut buf[lead + self.filled..lead + length]);
        }
        if self.filled < self.length {
            return None;
        }
        let buf = self.buf.take()?;
        Some(buf.freeze().slice(self.lead..self.lead + self.length))
    }

    /// Bytes that have not arrived yet.
    pub(crate) fn missing(&self) -> usize {
        self.length - self.filled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use esker_base::buf::is_aligned;

    #[test]
    fn whole_blocks_are_aligned_whatever_the_offset() {
        let mut payload = Payload::new(3 * BLOCK_SIZE_U64 + 100, 10_000);
        let mut input = Input::default();
        assert_eq!(payload.fill(&mut input), None);
        assert!(payload.buf.is_none());
        let data: Vec<u8> = (0..10_000u32).map(|i| i.to_le_bytes()[0]).collect();
        for part in data.chunks(37) {
            input.push(Bytes::copy_from_slice(part));
            if let Some(bytes) = payload.fill(&mut input) {
                assert_eq!(bytes, data);
                assert!(is_aligned(&bytes[4096 - 100..]));
                return;
            }
        }
        panic!("never complete");
    }
}
