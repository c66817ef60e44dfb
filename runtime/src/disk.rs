//! Disk operations of the machine: from a [`DiskOp`] to submissions, from completions to the one
//! event that answers it.

use crate::ring::{Completion, Op, Owner, Ring, Vectors};
use bytes::Bytes;
use esker_base::num::to_u64;
use esker_base::{buf, AlignedBuf, DiskError, DiskErrorKind, DiskOp, IoId, BLOCK_SIZE};
use esker_node::Event;

/// How often in a row an operation may be interrupted, or move no byte, before that is an error.
const TRIES_MAX: u32 = 64;

/// Counts of what has been asked of the device since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCounts {
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Writes that went through a registered buffer.
    pub writes_staged: u64,
    /// Writes whose buffers had to be copied because they were not aligned.
    pub writes_realigned: u64,
    /// Syncs.
    pub syncs: u64,
    /// Operations that took more than one submission.
    pub continued: u64,
    /// Operations not answered yet.
    pub in_flight: u64,
}

/// The machine's operations on its store.
pub(crate) struct Disk {
    size_bytes: u64,
    staged_bytes_max: usize,
    counts: DiskCounts,
}

impl Disk {
    pub(crate) fn new(size_bytes: u64, staged_bytes_max: usize) -> Self {
        Self {
            size_bytes,
            staged_bytes_max,
            counts: DiskCounts::default(),
        }
    }

    pub(crate) fn counts(&self) -> DiskCounts {
        self.counts
    }

    /// Starts an operation. One that cannot succeed is answered at once.
    pub(crate) fn start(&mut self, ring: &mut Ring, io: IoId, op: DiskOp) -> Option<Event> {
        let owner = Owner::Disk { io, tries: 0 };
        let op = match op {
            DiskOp::Read { offset, length } => {
                self.counts.reads += 1;
                match self.check(offset, length) {
                    Err(error) => return Some(ended(io, Err(error))),
                    Ok(()) if length == 0 => return Some(ended(io, Ok(Bytes::new()))),
                    Ok(()) => Op::Read {
                        buf: AlignedBuf::to_overwrite(length),
                        done: 0,
                        offset,
                    },
                }
            }
            DiskOp::Write { offset, bufs } => {
                self.counts.writes += 1;
                let length = bufs.iter().map(Bytes::len).fold(0, usize::saturating_add);
                match self.check(offset, length) {
                    Err(error) => return Some(ended(io, Err(error))),
                    Ok(()) if length == 0 => return Some(ended(io, Ok(Bytes::new()))),
                    Ok(()) => self.write(ring, offset, bufs, length),
                }
            }
            DiskOp::Sync => {
                self.counts.syncs += 1;
                Op::Sync
            }
        };
        self.counts.in_flight += 1;
        ring.submit(op, owner);
        None
    }

    /// A sync is called by the loop itself.
    pub(crate) fn sync_begins(&mut self) {
        self.counts.syncs += 1;
        self.counts.in_flight += 1;
    }

    /// It has ended, with this error number if it failed.
    pub(crate) fn synced(&mut self, io: IoId, result: Result<(), i32>) -> Event {
        self.counts.in_flight -= 1;
        ended(io, result.map(|()| Bytes::new()).map_err(error_of))
    }

    /// Takes a completion: the event when the operation has ended, none when it goes on.
    pub(crate) fn complete(
        &mut self,
        ring: &mut Ring,
        io: IoId,
        tries: u32,
        completion: Completion,
    ) -> Option<Event> {
        let Some(op) = completion.op else {
            unreachable!("disk operations complete once")
        };
        let result = match advance(op, completion.result) {
            Progress::Moved(op) => return self.go_on(ring, op, io, 0),
            Progress::Stuck(op, _) if tries < TRIES_MAX => {
                return self.go_on(ring, op, io, tries + 1);
            }
            Progress::Stuck(op, errno) => {
                release(ring, op);
                Err(error_of(errno))
            }
            Progress::Done(op) => Ok(release(ring, op)),
            Progress::Failed(op, error) => {
                release(ring, op);
                Err(error)
            }
        };
        self.counts.in_flight -= 1;
        Some(ended(io, result))
    }

    fn go_on(&mut self, ring: &mut Ring, op: Op, io: IoId, tries: u32) -> Option<Event> {
        self.counts.continued += 1;
        ring.submit(op, Owner::Disk { io, tries });
        None
    }

    /// Writes go out from their own buffers. A copy into a registered buffer, which saves the kernel
    /// pinning the pages, costs more than it saves: with 8 writes in flight (O_DIRECT, ext4 on a
    /// virtio disk, Linux 6.18, 2 cores, best of 5) in place against copied took 3.3 against 3.7 µs
    /// of processor time for 4 KiB, 3.3 against 4.0 µs for 8 KiB in 2 pieces, and 8.3 against
    /// 22.4 µs for 256 KiB in 64 pieces. So registered buffers serve memory that has to be copied
    /// anyway, and whoever measures otherwise ([`crate::LoopConfig::staged_bytes_max`]).
    fn write(&mut self, ring: &mut Ring, offset: u64, bufs: Vec<Bytes>, length: usize) -> Op {
        let aligned =
            |b: &Bytes| b.len().is_multiple_of(BLOCK_SIZE) && (b.is_empty() || buf::is_aligned(b));
        let is_aligned = bufs.iter().all(aligned);
        if !is_aligned {
            self.counts.writes_realigned += 1;
        }
        if !is_aligned || length <= self.staged_bytes_max {
            if let Some(slot) = ring.staging.gather(&bufs, length) {
                self.counts.writes_staged += 1;
                return Op::WriteStaged {
                    slot,
                    length,
                    done: 0,
                    offset,
                };
            }
        }
        let bufs = if is_aligned {
            bufs
        } else {
            vec![gathered(&bufs, length)]
        };
        Op::WriteVectored {
            bufs,
            done: 0,
            offset,
            vectors: Vectors::default(),
        }
    }

    /// The device would refuse misaligned operations, and a write past the end would grow a file.
    fn check(&self, offset: u64, length: usize) -> Result<(), DiskError> {
        let block = to_u64(BLOCK_SIZE);
        if !offset.is_multiple_of(block) || !length.is_multiple_of(BLOCK_SIZE) {
            return Err(error_of(libc::EINVAL));
        }
        match offset.checked_add(to_u64(length)) {
            Some(end) if end <= self.size_bytes => Ok(()),
            _ => Err(DiskError {
                kind: DiskErrorKind::Short,
                errno: 0,
            }),
        }
    }
}

enum Progress {
    Done(Op),
    Moved(Op),
    Stuck(Op, i32),
    Failed(Op, DiskError),
}

/// Applies what the kernel returned to the operation.
fn advance(mut op: Op, result: Result<usize, i32>) -> Progress {
    let moved = match result {
        Ok(moved) => moved,
        // A sync is never retried: after a failed one the kernel may have dropped the pages.
        Err(errno) if matches!(op, Op::Sync) => return Progress::Failed(op, error_of(errno)),
        Err(errno @ (libc::EINTR | libc::EAGAIN)) => return Progress::Stuck(op, errno),
        Err(errno) => return Progress::Failed(op, error_of(errno)),
    };
    let (done, length) = match &mut op {
        Op::Read { buf, done, .. } => (done, buf.len()),
        Op::WriteStaged { done, length, .. } => (done, *length),
        Op::WriteVectored { bufs, done, .. } => (done, bufs.iter().map(Bytes::len).sum()),
        _ => return Progress::Done(op),
    };
    if moved == 0 {
        let short = DiskError {
            kind: DiskErrorKind::Short,
            errno: 0,
        };
        return Progress::Failed(op, short);
    }
    if *done + moved >= length {
        *done = length;
        return Progress::Done(op);
    }
    // Direct I/O goes on at a whole block; what was moved of a partial one is moved again.
    let next = *done + moved;
    let next = next - next % BLOCK_SIZE;
    let has_moved = next > *done;
    *done = next;
    if has_moved {
        Progress::Moved(op)
    } else {
        Progress::Stuck(op, libc::EIO)
    }
}

/// Gives the operation's memory back, and what it read up.
fn release(ring: &mut Ring, op: Op) -> Bytes {
    match op {
        Op::Read { buf, .. } => buf.freeze(),
        Op::WriteStaged { slot, .. } => {
            ring.staging.release(slot);
            Bytes::new()
        }
        _ => Bytes::new(),
    }
}

fn gathered(bufs: &[Bytes], length: usize) -> Bytes {
    let mut whole = AlignedBuf::to_overwrite(length);
    let mut rest = &mut whole[..];
    for piece in bufs {
        let (here, after) = rest.split_at_mut(piece.len());
        here.copy_from_slice(piece);
        rest = after;
    }
    whole.freeze()
}

fn ended(io: IoId, result: Result<Bytes, DiskError>) -> Event {
    Event::Disk { io, result }
}

fn error_of(errno: i32) -> DiskError {
    let kind = match errno {
        libc::ENOSPC | libc::EDQUOT => DiskErrorKind::NoSpace,
        _ => DiskErrorKind::Io,
    };
    DiskError { kind, errno }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(done: usize, length: usize) -> Op {
        Op::Read {
            buf: AlignedBuf::zeroed(length),
            done,
            offset: 0,
        }
    }

    fn done_of(op: &Op) -> usize {
        match op {
            Op::Read { done, .. } => *done,
            _ => unreachable!(),
        }
    }

    #[test]
    fn a_partial_transfer_goes_on_at_a_whole_block() {
        let Progress::Moved(op) = advance(read(4096, 65536), Ok(8192 + 512)) else {
            panic!()
        };
        assert_eq!(done_of(&op), 3 * 4096);
        let Progress::Stuck(op, _) = advance(read(4096, 65536), Ok(512)) else {
            panic!()
        };
        assert_eq!(done_of(&op), 4096);
        let Progress::Done(op) = advance(read(4096, 8192), Ok(4096)) else {
            panic!()
        };
        assert_eq!(done_of(&op), 8192);
    }

    #[test]
    fn errors_keep_their_kind_and_a_sync_is_never_retried() {
        let kind = |p| match p {
            Progress::Failed(_, error) => Some((error.kind, error.errno)),
            _ => None,
        };
        let no_space = advance(read(0, 4096), Err(libc::ENOSPC));
        assert_eq!(kind(no_space), Some((DiskErrorKind::NoSpace, libc::ENOSPC)));
        assert_eq!(
            kind(advance(read(0, 4096), Ok(0))),
            Some((DiskErrorKind::Short, 0))
        );
        assert!(matches!(
            advance(read(0, 4096), Err(libc::EINTR)),
            Progress::Stuck(..)
        ));
        assert!(matches!(
            advance(Op::Sync, Err(libc::EINTR)),
            Progress::Failed(..)
        ));
    }
}
