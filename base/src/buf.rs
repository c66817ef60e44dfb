//! Page-aligned buffers, the only memory that disk operations accept.
//!
//! `O_DIRECT` wants addresses, offsets and lengths that are multiples of the device's block size;
//! 4096 serves every device. A buffer is filled while it is exclusively owned and then frozen into
//! [`Bytes`], which can be cloned, sliced at multiples of 4096 and dropped anywhere.
//!
//! Freed buffers of up to 1 MiB are kept per thread, up to [`KEPT_BYTES_MAX`], and given out again:
//! a general-purpose allocator spends a fifth of a small write's CPU time on such alignments.

#![allow(unsafe_code)] // the one place outside the runtime: allocation with an alignment

use crate::lba::BLOCK_SIZE;
use bytes::Bytes;
use std::alloc::{alloc_zeroed, dealloc, handle_alloc_error, Layout};
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Bytes of freed buffers that a thread keeps.
pub const KEPT_BYTES_MAX: usize = 16 << 20;
/// Sizes that are kept: 1, 2, 4, … 256 pages.
const CLASSES: usize = 9;

/// Freed memory of this thread. Every piece is `BLOCK_SIZE << class` bytes, aligned to
/// `BLOCK_SIZE`, initialised, and owned by nobody else.
struct Kept {
    classes: [Vec<NonNull<u8>>; CLASSES],
    bytes: usize,
}

thread_local! {
    static KEPT: RefCell<Kept> =
        const { RefCell::new(Kept { classes: [const { Vec::new() }; CLASSES], bytes: 0 }) };
}

impl Drop for Kept {
    fn drop(&mut self) {
        for (class, pieces) in self.classes.iter_mut().enumerate() {
            for piece in pieces.drain(..) {
                // SAFETY: pieces of this class were allocated with exactly this layout and are
                // owned by the list they were just taken from.
                unsafe { dealloc(piece.as_ptr(), layout_for(BLOCK_SIZE << class)) }
            }
        }
    }
}

/// The layout of a buffer for `length` bytes, and its class when that size is kept.
fn size_for(length: usize) -> (usize, Option<usize>) {
    let pages = length.max(1).div_ceil(BLOCK_SIZE);
    let class = pages.next_power_of_two().trailing_zeros() as usize;
    if class < CLASSES {
        (BLOCK_SIZE << class, Some(class))
    } else {
        (pages.saturating_mul(BLOCK_SIZE), None)
    }
}

fn layout_for(size: usize) -> Layout {
    match Layout::from_size_align(size, BLOCK_SIZE) {
        Ok(layout) => layout,
        Err(_) => panic!("buffer of {size} bytes exceeds the address space"),
    }
}

/// A heap buffer whose address is a multiple of 4096.
pub struct AlignedBuf {
    start: NonNull<u8>,
    length: usize,
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
        match Self::kept(length) {
            Some(mut buf) => {
                buf.fill(0);
                buf
            }
            None => Self::fresh(length),
        }
    }

    /// A buffer of `length` bytes whose contents are arbitrary: zeros, or what a freed buffer of
    /// this thread held. For callers that overwrite all of it before anybody reads it.
    ///
    /// # Panics
    /// As [`AlignedBuf::zeroed`].
    #[must_use]
    pub fn to_overwrite(length: usize) -> Self {
        Self::kept(length).unwrap_or_else(|| Self::fresh(length))
    }

    fn kept(length: usize) -> Option<Self> {
        let class = size_for(length).1?;
        // During the thread's end there is no list any more; then memory is allocated anew.
        let piece = KEPT.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            let piece = kept.classes[class].pop()?;
            kept.bytes -= BLOCK_SIZE << class;
            Some(piece)
        });
        let start = piece.ok()??;
        Some(Self { start, length })
    }

    fn fresh(length: usize) -> Self {
        let layout = layout_for(size_for(length).0);
        // SAFETY: `layout` has a non-zero size: at least one page.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(raw) else {
            handle_alloc_error(layout)
        };
        Self { start, length }
    }

    /// A buffer that holds a copy of `bytes`.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buf = Self::to_overwrite(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }

    /// Gives up exclusive ownership; clones and slices of the result share this memory.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(Frozen(self))
    }
}

/// Keeps a frozen buffer alive for the `Bytes` that share it.
struct Frozen(AlignedBuf);

impl AsRef<[u8]> for Frozen {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `start` points to an allocation of at least `length` bytes that were initialised
        // by `alloc_zeroed` (kept memory was too) and that lives as long as `self`.
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
        let (size, class) = size_for(self.length);
        if let Some(class) = class {
            let start = self.start;
            let taken = KEPT.try_with(|kept| {
                let mut kept = kept.borrow_mut();
                let fits = kept.bytes + size <= KEPT_BYTES_MAX;
                if fits {
                    kept.bytes += size;
                    kept.classes[class].push(start);
                }
                fits
            });
            if taken == Ok(true) {
                return;
            }
        }
        // SAFETY: `start` came from `alloc_zeroed` with the layout of this length's size (the
        // length never changes), and is freed once: it was not handed to the kept list.
        unsafe { dealloc(self.start.as_ptr(), layout_for(size)) }
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

    fn kept_bytes() -> usize {
        KEPT.with(|kept| kept.borrow().bytes)
    }

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
        let buf = AlignedBuf::copy_of(&[1, 2, 3]);
        assert_eq!(&buf[..], &[1, 2, 3]);
        assert!(AlignedBuf::zeroed(0).is_empty());
    }

    #[test]
    fn reused_memory_is_zero_when_zeros_are_asked_for() {
        let mut buf = AlignedBuf::zeroed(BLOCK_SIZE);
        buf.fill(0xff);
        let address = buf.as_ptr();
        drop(buf);
        let again = AlignedBuf::to_overwrite(100);
        assert_eq!(again.as_ptr(), address, "memory is given out again");
        drop(again);
        let zeros = AlignedBuf::zeroed(BLOCK_SIZE);
        assert_eq!(zeros.as_ptr(), address);
        assert!(zeros.iter().all(|b| *b == 0));
    }

    #[test]
    fn what_is_kept_is_bounded_and_large_buffers_are_not_kept() {
        let many: Vec<AlignedBuf> = (0..100).map(|_| AlignedBuf::zeroed(1 << 20)).collect();
        drop(many);
        assert!(kept_bytes() <= KEPT_BYTES_MAX && kept_bytes() >= KEPT_BYTES_MAX / 2);
        let before = kept_bytes();
        drop(AlignedBuf::zeroed(4 << 20));
        assert_eq!(kept_bytes(), before);
    }
}
