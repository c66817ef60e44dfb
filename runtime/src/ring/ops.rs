//! What the kernel is asked to do, together with all memory it may touch while it does it.
//!
//! An operation is owned by its slot in the [`Table`] from the moment it is submitted until its
//! last completion has been taken. Its memory is on the heap, behind types that own it through raw
//! pointers ([`AlignedBuf`], [`Bytes`], `Vec`), so moving the operation does not move the memory.

use super::buffers::StagingSlot;
use super::OpKey;
use crate::peers::LinkId;
use bytes::Bytes;
use esker_base::{AlignedBuf, ConnId, IoId, Moment};
use io_uring::{opcode, squeue, types};
use std::os::fd::RawFd;

/// Pieces of one vectored operation (the kernel's UIO_MAXIOV); more take several operations.
pub(crate) const VECTORS_MAX: usize = 1024;
/// Bytes of one operation; the kernel cuts at 2 GiB. A multiple of 4096.
const OPERATION_BYTES_MAX: usize = 1 << 30;

/// One operation with its memory.
pub(crate) enum Op {
    /// Read from the store into `buf[done..]`, at `offset + done`.
    Read {
        buf: AlignedBuf,
        done: usize,
        offset: u64,
    },
    /// Write `length` bytes of a registered buffer to the store, all but the first `done`.
    WriteStaged {
        slot: StagingSlot,
        length: usize,
        done: usize,
        offset: u64,
    },
    /// Write the concatenation of `bufs` to the store, all but the first `done` bytes.
    WriteVectored {
        bufs: Vec<Bytes>,
        done: usize,
        offset: u64,
        vectors: Vectors,
    },
    /// Make completed writes durable.
    Sync,
    /// Read the eventfd that other threads wake the loop with.
    Wake { fd: RawFd, buf: AlignedBuf },
    /// Receive from a socket.
    Receive { fd: RawFd, buf: AlignedBuf },
    /// Receive from a socket into `buf[done..]`, until it is full or the stream ends.
    ReceiveRest {
        fd: RawFd,
        buf: AlignedBuf,
        done: usize,
    },
    /// Send to a socket, in order.
    Send {
        fd: RawFd,
        bufs: Vec<Bytes>,
        vectors: Vectors,
    },
    /// Accept connections until it fails or is cancelled.
    Accept { fd: RawFd },
    /// Complete at a moment of the monotonic clock, with ETIME.
    Alarm { at: Box<types::Timespec> },
    /// Cancel another operation.
    Cancel { target: OpKey },
}

/// The kernel's view of a list of buffers. Kept in `Vec`s: their heap memory stays where it is
/// when the operation moves.
#[derive(Default)]
pub(crate) struct Vectors {
    pieces: Vec<libc::iovec>,
    header: Vec<libc::msghdr>,
}

/// Whom a completion is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A disk operation of the machine, with the number of tries without progress so far.
    Disk { io: IoId, tries: u32 },
    /// A connection's receive.
    Receive(ConnId),
    /// A connection's send.
    Send(ConnId),
    /// A receive on a link between nodes.
    LinkReceive(LinkId),
    /// A send on one.
    LinkSend(LinkId),
    /// The listener at this index.
    Accept(usize),
    /// The loop itself.
    Wake,
    /// The loop's alarm for this moment.
    Alarm(Moment),
    /// Nobody: the outcome of a cancellation shows in the cancelled operation.
    Cancel,
}

impl Vectors {
    /// Points at the bytes of `bufs` after the first `skip`, as far as one operation goes.
    /// Neighbours in memory become one piece.
    fn point_at(&mut self, bufs: &[Bytes], mut skip: usize) {
        self.pieces.clear();
        let mut total = 0;
        for buf in bufs {
            let rest = buf.get(skip..).unwrap_or(&[]);
            skip = skip.saturating_sub(buf.len());
            let rest = &rest[..rest.len().min(OPERATION_BYTES_MAX - total)];
            if rest.is_empty() {
                continue;
            }
            total += rest.len();
            let start = rest.as_ptr().cast_mut().cast::<libc::c_void>();
            if let Some(last) = self.pieces.last_mut() {
                if last.iov_base.addr() + last.iov_len == start.addr() {
                    last.iov_len += rest.len();
                    continue;
                }
            }
            if self.pieces.len() == VECTORS_MAX {
                break;
            }
            self.pieces.push(libc::iovec {
                iov_base: start,
                iov_len: rest.len(),
            });
        }
    }

    fn count(&self) -> u32 {
        esker_base::num::to_u32_saturating(self.pieces.len())
    }
}

impl Op {
    /// An alarm at this moment.
    pub(crate) fn alarm(at: Moment) -> Self {
        let second = 1_000_000_000;
        #[allow(clippy::cast_possible_truncation)] // below a thousand million
        let nanos = (at.0 % second) as u32;
        Op::Alarm {
            at: Box::new(types::Timespec::new().sec(at.0 / second).nsec(nanos)),
        }
    }

    /// Builds the submission entry. The entry points into memory that `self` owns: the caller keeps
    /// `self` until the operation has completed.
    pub(super) fn entry(&mut self, store: StoreTarget, staging: &super::Staging) -> squeue::Entry {
        match self {
            Op::Read { buf, done, offset } => {
                let rest = &mut buf[*done..];
                let length = length_of(rest.len());
                let start = rest.as_mut_ptr();
                let at = *offset + esker_base::num::to_u64(*done);
                match store {
                    StoreTarget::Fixed(f) => opcode::Read::new(f, start, length).offset(at).build(),
                    StoreTarget::Fd(f) => opcode::Read::new(f, start, length).offset(at).build(),
                }
            }
            Op::WriteStaged {
                slot,
                length,
                done,
                offset,
            } => {
                let start = staging.start(slot).wrapping_add(*done);
                let rest = length_of(*length - *done);
                let index = slot.index();
                let at = *offset + esker_base::num::to_u64(*done);
                match store {
                    StoreTarget::Fixed(f) => opcode::WriteFixed::new(f, start, rest, index)
                        .offset(at)
                        .build(),
                    StoreTarget::Fd(f) => opcode::WriteFixed::new(f, start, rest, index)
                        .offset(at)
                        .build(),
                }
            }
            Op::WriteVectored {
                bufs,
                done,
                offset,
                vectors,
            } => {
                vectors.point_at(bufs, *done);
                let (start, count) = (vectors.pieces.as_ptr(), vectors.count());
                let at = *offset + esker_base::num::to_u64(*done);
                match store {
                    StoreTarget::Fixed(f) => {
                        opcode::Writev::new(f, start, count).offset(at).build()
                    }
                    StoreTarget::Fd(f) => opcode::Writev::new(f, start, count).offset(at).build(),
                }
            }
            Op::Sync => {
                let data_only = types::FsyncFlags::DATASYNC;
                match store {
                    StoreTarget::Fixed(f) => opcode::Fsync::new(f).flags(data_only).build(),
                    StoreTarget::Fd(f) => opcode::Fsync::new(f).flags(data_only).build(),
                }
            }
            Op::Wake { fd, buf } => {
                opcode::Read::new(types::Fd(*fd), buf.as_mut_ptr(), length_of(buf.len())).build()
            }
            Op::Receive { fd, buf } => {
                opcode::Recv::new(types::Fd(*fd), buf.as_mut_ptr(), length_of(buf.len())).build()
            }
            Op::ReceiveRest { fd, buf, done } => {
                let rest = &mut buf[*done..];
                let (start, length) = (rest.as_mut_ptr(), length_of(rest.len()));
                opcode::Recv::new(types::Fd(*fd), start, length)
                    .flags(libc::MSG_WAITALL)
                    .build()
            }
            Op::Send { fd, bufs, vectors } => send_entry(*fd, bufs, vectors),
            Op::Accept { fd } => opcode::AcceptMulti::new(types::Fd(*fd))
                .flags(libc::SOCK_CLOEXEC)
                .build(),
            Op::Alarm { at } => opcode::Timeout::new(&raw const **at)
                .flags(types::TimeoutFlags::ABS | types::TimeoutFlags::BOOTTIME)
                .build(),
            Op::Cancel { target } => opcode::AsyncCancel::new(target.0).build(),
        }
    }
}

/// The store's file, as the ring knows it.
#[derive(Clone, Copy)]
pub(super) enum StoreTarget {
    Fixed(types::Fixed),
    Fd(types::Fd),
}

fn send_entry(fd: RawFd, bufs: &[Bytes], vectors: &mut Vectors) -> squeue::Entry {
    vectors.point_at(bufs, 0);
    if let [only] = vectors.pieces.as_slice() {
        return opcode::Send::new(types::Fd(fd), only.iov_base.cast(), length_of(only.iov_len))
            .flags(libc::MSG_NOSIGNAL)
            .build();
    }
    let header = libc::msghdr {
        msg_name: std::ptr::null_mut(),
        msg_namelen: 0,
        msg_iov: vectors.pieces.as_mut_ptr(),
        msg_iovlen: vectors.pieces.len(),
        msg_control: std::ptr::null_mut(),
        msg_controllen: 0,
        msg_flags: 0,
    };
    vectors.header.clear();
    vectors.header.push(header);
    opcode::SendMsg::new(types::Fd(fd), vectors.header.as_ptr())
        .flags(libc::MSG_NOSIGNAL.unsigned_abs())
        .build()
}

/// A length the kernel takes in one operation; the rest is asked for when that has completed.
fn length_of(length: usize) -> u32 {
    esker_base::num::to_u32_saturating(length.min(OPERATION_BYTES_MAX))
}

/// The operations in flight.
#[derive(Default)]
pub(super) struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    in_flight: usize,
}

struct Slot {
    generation: u32,
    work: Option<(Op, Owner)>,
}

impl Table {
    pub(super) fn insert(&mut self, op: Op, owner: Owner) -> OpKey {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                work: None,
            });
            esker_base::num::to_u32_saturating(self.slots.len() - 1)
        });
        let slot = &mut self.slots[index as usize];
        assert!(slot.work.is_none(), "a free slot holds an operation");
        slot.work = Some((op, owner));
        self.in_flight += 1;
        OpKey((u64::from(slot.generation) << 32) | u64::from(index))
    }

    pub(super) fn get_mut(&mut self, key: OpKey) -> Option<&mut (Op, Owner)> {
        let slot = self.slots.get_mut(key.index())?;
        if slot.generation != key.generation() {
            return None;
        }
        slot.work.as_mut()
    }

    pub(super) fn remove(&mut self, key: OpKey) -> Option<(Op, Owner)> {
        let slot = self.slots.get_mut(key.index())?;
        if slot.generation != key.generation() {
            return None;
        }
        let work = slot.work.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free
            .push(esker_base::num::to_u32_saturating(key.index()));
        self.in_flight -= 1;
        Some(work)
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }
}
