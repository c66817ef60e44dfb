//! Page-aligned buffers, the only memory that disk operations accept.
//!
//! `O_DIRECT` wants addresses, offsets and lengths that are multiples of the device's block size;
//! 4096 serves every device. A buffer is filled while it is exclusively owned and then frozen into
//! [`Bytes`], which can be cloned, sliced at multiples of 4096 and dropped anywhere.

#![allow(unsafe_code)] // the one place outside the runtime: allocation with an alignment

use crate::lba::BLOCK_SIZE;
use bytes::Bytes;
use std::alloc::{alloc_zeroed, dealloc, handle_alloc_error, Layout};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// A zero-filled heap buffer whose address is a multiple of 4096.
pub struct AlignedBuf {
    start: NonNull<u8>,
    length: usize,
    layout: Layout,
}

// SAFETY: the buffer owns its allocation exclusively, like `Vec<u8>`; nothing is shared.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access only hands out `&[u8]`.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// A buffer of `length` zero bytes. The allocation is rounded up to whole pages.
    ///
    /// # Panics
    /// When `length` rounded up exceeds `isize::MAX`, which no caller's limit allows.
    #[must_use]
    pub fn zeroed(length: usize) -> Self {
        let size = length.max(1).next_multiple_of(BLOCK_SIZE);
        let Ok(layout) = Layout::from_size_align(size, BLOCK_SIZE) else {
            panic!("buffer of {length} bytes exceeds the address space")
        };
        // SAFETY: `layout` has a non-zero size.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(raw) else {
            handle_alloc_error(layout)
        };
        Self {
            start,
            length,
            layout,
        }
    }

    /// A buffer that holds a copy of `bytes`.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buf = Self::zeroed(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }

    /// Shortens the buffer to `length` bytes; longer lengths change nothing.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// Gives up exclusive ownership; clones and slices of the result share this memory.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `start` points to an allocation of at least `length` initialised bytes
        // (`alloc_zeroed`) that lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: `start` came from `alloc_zeroed` with this very layout and is freed once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.length)
    }
}

/// True when `bytes` starts at an address that `O_DIRECT` accepts.
#[must_use]
pub fn is_aligned(bytes: &[u8]) -> bool {
    bytes.as_ptr().addr().is_multiple_of(BLOCK_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_zeroed_aligned_and_survives_slicing() {
        let mut buf = AlignedBuf::zeroed(3 * BLOCK_SIZE);
        assert!(is_aligned(&buf) && buf.iter().all(|b| *b == 0));
        buf[BLOCK_SIZE] = 7;
        let frozen = buf.freeze();
        let second = frozen.slice(BLOCK_SIZE..2 * BLOCK_SIZE);
        drop(frozen);
        assert!(is_aligned(&second) && second[0] == 7);
    }

    #[test]
    fn odd_lengths_are_kept() {
        let mut buf = AlignedBuf::copy_of(&[1, 2, 3]);
        assert_eq!(&buf[..], &[1, 2, 3]);
        buf.truncate(2);
        assert_eq!(&buf[..], &[1, 2]);
    }
}
