//! Memory for the kernel: registered staging buffers for small writes, and receive buffers.

use bytes::Bytes;
use esker_base::AlignedBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Largest write that is gathered into a registered buffer, in bytes.
const STAGED_BYTES_MAX: usize = 256 * 1024;
/// Registered buffers of one ring. When all are in flight, writes go out from their own buffers.
/// 4 MiB in all: half of the locked memory an unprivileged process may have by default.
pub(super) const STAGING_SLOTS: usize = 16;
/// Registered buffers when only unaligned writes need them.
pub(super) const STAGING_SLOTS_FEW: usize = 2;
/// Free receive buffers kept for reuse; more are given back to the allocator.
const RECEIVE_BUFFERS_KEPT_MAX: usize = 256;
/// Received pieces up to this size are copied, so that a few bytes don't keep a large buffer.
const RECEIVED_COPIED_MAX: usize = 4096;
/// Size of the buffers in which clients are awaited that send little.
const SMALL_BYTES: usize = 4096;
/// Large buffers in use; when so many are, clients are awaited in small ones. 32 MiB of those of 64 KiB.
pub(crate) const LARGE_BUFFERS_MAX: usize = 512;

/// The registered buffers. Each is its own allocation: filling one never touches another that the
/// kernel may be reading.
pub(crate) struct Staging {
    bufs: Vec<AlignedBuf>,
    free: Vec<u16>,
}

/// Exclusive use of one registered buffer. Not cloned; given back to [`Staging::release`].
#[derive(Debug)]
pub(crate) struct StagingSlot(u16);

impl StagingSlot {
    pub(super) fn index(&self) -> u16 {
        self.0
    }
}

impl Staging {
    pub(super) fn with_slots(count: usize) -> Self {
        let bufs: Vec<_> = (0..count)
            .map(|_| AlignedBuf::zeroed(STAGED_BYTES_MAX))
            .collect();
        let free = (0..u16::try_from(count).unwrap_or(u16::MAX))
            .rev()
            .collect();
        Self { bufs, free }
    }

    /// What to register: one entry per buffer, in order.
    pub(super) fn vectors(&mut self) -> Vec<libc::iovec> {
        let each = |buf: &mut AlignedBuf| libc::iovec {
            iov_base: buf.as_mut_ptr().cast(),
            iov_len: buf.len(),
        };
        self.bufs.iter_mut().map(each).collect()
    }

    pub(super) fn start(&self, slot: &StagingSlot) -> *const u8 {
        self.bufs[usize::from(slot.0)].as_ptr()
    }

    /// Copies `bufs` into a free registered buffer; none when they don't fit or none is free.
    pub(crate) fn gather(&mut self, bufs: &[Bytes], length: usize) -> Option<StagingSlot> {
        if length > STAGED_BYTES_MAX {
            return None;
        }
        let slot = StagingSlot(self.free.pop()?);
        let mut rest = &mut self.bufs[usize::from(slot.0)][..length];
        for buf in bufs {
            let (piece, after) = rest.split_at_mut(buf.len());
            piece.copy_from_slice(buf);
            rest = after;
        }
        Some(slot)
    }

    /// Gives a buffer back once its operation has completed.
    pub(crate) fn release(&mut self, slot: StagingSlot) {
        self.free.push(slot.0);
    }
}

/// Buffers to receive into. A large piece that was received keeps its buffer until the last
/// [`Bytes`] of it is dropped, in whatever thread; then the buffer comes back here.
#[derive(Clone)]
pub(crate) struct ReceiveBuffers {
    length: usize,
    large: Arc<Mutex<Large>>,
}

#[derive(Default)]
struct Large {
    free: Vec<AlignedBuf>,
    in_use: usize,
}

struct Lent {
    buf: Option<AlignedBuf>,
    length: usize,
    home: ReceiveBuffers,
}

impl ReceiveBuffers {
    pub(crate) fn new(length: usize) -> Self {
        Self {
            length: length.max(2 * SMALL_BYTES),
            large: Arc::default(),
        }
    }

    /// A buffer to receive into: a large one when that is wanted and there are not too many.
    pub(crate) fn take(&self, wants_large: bool) -> AlignedBuf {
        let mut large = self.large.lock().unwrap_or_else(PoisonError::into_inner);
        if !wants_large || large.in_use >= LARGE_BUFFERS_MAX {
            return AlignedBuf::to_overwrite(SMALL_BYTES);
        }
        large.in_use += 1;
        let kept = large.free.pop();
        kept.unwrap_or_else(|| AlignedBuf::zeroed(self.length))
    }

    pub(crate) fn give_back(&self, buf: AlignedBuf) {
        if buf.len() != self.length {
            return; // a small one
        }
        let mut large = self.large.lock().unwrap_or_else(PoisonError::into_inner);
        large.in_use -= 1;
        if large.free.len() < RECEIVE_BUFFERS_KEPT_MAX {
            large.free.push(buf);
        }
    }

    /// The first `length` bytes of a buffer that was received into.
    pub(crate) fn hand_up(&self, buf: AlignedBuf, length: usize) -> Bytes {
        if length <= RECEIVED_COPIED_MAX {
            let copy = Bytes::copy_from_slice(&buf[..length]);
            self.give_back(buf);
            return copy;
        }
        Bytes::from_owner(Lent {
            buf: Some(buf),
            length,
            home: self.clone(),
        })
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        self.buf.as_ref().map_or(&[], |buf| &buf[..self.length])
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(buf) = self.buf.take() {
            self.home.give_back(buf);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staging_gathers_until_it_runs_out_and_takes_slots_back() {
        let mut staging = Staging::with_slots(1);
        let bufs = [Bytes::from_static(b"ab"), Bytes::from_static(b"cd")];
        let slot = staging.gather(&bufs, 4).unwrap();
        assert_eq!(&staging.bufs[0][..4], b"abcd");
        assert!(staging.gather(&bufs, 4).is_none());
        staging.release(slot);
        assert!(staging.gather(&bufs, STAGED_BYTES_MAX + 1).is_none());
        assert!(staging.gather(&bufs, 4).is_some());
    }

    #[test]
    fn a_received_buffer_comes_back_when_its_last_slice_is_dropped() {
        let buffers = ReceiveBuffers::new(64 * 1024);
        let mut buf = buffers.take(true);
        buf[9_999] = 5;
        let bytes = buffers.hand_up(buf, 10_000);
        let slice = bytes.slice(9_999..);
        drop(bytes);
        let free = || buffers.large.lock().unwrap().free.len();
        assert_eq!((slice[0], free()), (5, 0));
        drop(slice);
        assert_eq!(free(), 1);
        let small = buffers.hand_up(buffers.take(true), 3);
        assert_eq!((small.len(), free()), (3, 1));
    }

    #[test]
    fn large_buffers_are_for_those_who_fill_them_and_are_few() {
        let buffers = ReceiveBuffers::new(64 * 1024);
        assert_eq!(buffers.take(false).len(), SMALL_BYTES);
        let mut taken: Vec<_> = (0..LARGE_BUFFERS_MAX).map(|_| buffers.take(true)).collect();
        assert!(taken.iter().all(|buf| buf.len() == 64 * 1024));
        assert_eq!(buffers.take(true).len(), SMALL_BYTES);
        buffers.give_back(buffers.take(true));
        // A slice keeps a buffer in use.
        let held = buffers.hand_up(taken.swap_remove(0), 64 * 1024);
        assert_eq!(buffers.take(true).len(), SMALL_BYTES);
        drop(held);
        assert_eq!(buffers.take(true).len(), 64 * 1024);
    }
}
