//! Reading and writing little-endian fields with every bound checked.

use thiserror::Error;

/// Bytes that do not decode. Carries what was being decoded and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{structure}: {problem}")]
pub struct FormatError {
    /// The structure, by its name in `docs/format.md`.
    pub structure: &'static str,
    /// What is wrong.
    pub problem: &'static str,
}

/// Appends little-endian fields to a byte vector.
#[derive(Debug, Default)]
pub struct Writer {
    /// What has been written.
    pub bytes: Vec<u8>,
}

impl Writer {
    /// An empty writer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
    /// Appends one byte.
    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }
    /// Appends two bytes.
    pub fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }
    /// Appends four bytes.
    pub fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }
    /// Appends eight bytes.
    pub fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }
    /// Appends sixteen bytes.
    pub fn u128(&mut self, value: u128) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }
    /// Appends `count` zero bytes.
    pub fn zeros(&mut self, count: usize) {
        self.bytes.resize(self.bytes.len() + count, 0);
    }
    /// Appends raw bytes.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }
    /// Appends a 32-bit length and the bytes.
    ///
    /// # Panics
    /// When `bytes` exceeds 4 GiB, which no limit allows.
    pub fn bytes32(&mut self, bytes: &[u8]) {
        let Ok(length) = u32::try_from(bytes.len()) else {
            panic!("field over 4 GiB")
        };
        self.u32(length);
        self.raw(bytes);
    }
    /// Overwrites four bytes at `at`, for a length or a checksum known later.
    pub fn patch_u32(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
}

/// Takes little-endian fields off a byte slice.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    structure: &'static str,
}

impl<'a> Reader<'a> {
    /// A reader of `bytes`; errors name `structure`.
    #[must_use]
    pub fn new(structure: &'static str, bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            structure,
        }
    }
    /// An error about the structure being read.
    #[must_use]
    pub fn error(&self, problem: &'static str) -> FormatError {
        FormatError {
            structure: self.structure,
            problem,
        }
    }
    /// Bytes not yet taken.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }
    /// Takes `count` raw bytes.
    pub fn raw(&mut self, count: usize) -> Result<&'a [u8], FormatError> {
        if count > self.rest.len() {
            return Err(self.error("ends early"));
        }
        let (head, tail) = self.rest.split_at(count);
        self.rest = tail;
        Ok(head)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let mut out = [0; N];
        out.copy_from_slice(self.raw(N)?);
        Ok(out)
    }
    /// Takes one byte.
    pub fn u8(&mut self) -> Result<u8, FormatError> {
        Ok(self.array::<1>()?[0])
    }
    /// Takes two bytes.
    pub fn u16(&mut self) -> Result<u16, FormatError> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    /// Takes four bytes.
    pub fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    /// Takes eight bytes.
    pub fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    /// Takes sixteen bytes.
    pub fn u128(&mut self) -> Result<u128, FormatError> {
        Ok(u128::from_le_bytes(self.array()?))
    }
    /// Takes a 32-bit length and that many bytes.
    pub fn bytes32(&mut self) -> Result<&'a [u8], FormatError> {
        let length = self.u32()?;
        self.raw(length as usize)
    }
    /// Takes `count` bytes that must be zero.
    pub fn zeros(&mut self, count: usize) -> Result<(), FormatError> {
        if self.raw(count)?.iter().any(|b| *b != 0) {
            return Err(self.error("reserved bytes are not zero"));
        }
        Ok(())
    }
    /// Takes a 32-bit element count that `bytes_each` times must still fit what is left, so that a
    /// damaged count can never make us allocate.
    pub fn count32(&mut self, bytes_each: usize) -> Result<usize, FormatError> {
        let count = self.u32()? as usize;
        match count.checked_mul(bytes_each) {
            Some(total) if total <= self.remaining() => Ok(count),
            _ => Err(self.error("count exceeds the structure")),
        }
    }
    /// Refuses a version other than the one this code writes, and says on which side it lies.
    pub fn version(&self, known: u32, found: u32) -> Result<(), FormatError> {
        self.version_since(known, known, found)
    }
    /// The same where older versions, from `oldest` on, are read as well.
    pub fn version_since(&self, oldest: u32, known: u32, found: u32) -> Result<(), FormatError> {
        if found > known {
            Err(self.error("was written by a newer version of Esker"))
        } else if found < oldest {
            Err(self.error(
                "was written by an older version of Esker, whose format this one does not read; copy its volumes out with that version",
            ))
        } else {
            Ok(())
        }
    }
    /// Ends reading: nothing may be left.
    pub fn finish(self) -> Result<(), FormatError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.error("has bytes left over"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_that_exceed_the_input_are_refused() {
        let mut w = Writer::new();
        w.u32(u32::MAX);
        assert!(Reader::new("test", &w.bytes).count32(8).is_err());
    }

    #[test]
    fn fields_come_back_in_order() {
        let mut w = Writer::new();
        w.u8(1);
        w.u16(2);
        w.u32(3);
        w.u64(4);
        w.u128(5);
        w.bytes32(b"six");
        w.zeros(3);
        let mut r = Reader::new("test", &w.bytes);
        assert_eq!((r.u8(), r.u16(), r.u32()), (Ok(1), Ok(2), Ok(3)));
        assert_eq!((r.u64(), r.u128()), (Ok(4), Ok(5)));
        assert_eq!(r.bytes32(), Ok(&b"six"[..]));
        assert_eq!(r.zeros(3), Ok(()));
        assert_eq!(r.finish(), Ok(()));
    }
}
