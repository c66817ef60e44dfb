#!/usr/bin/env python3
"""Copies a snapshot into a file, whole or only what changed since an older one.

    backup.py URI FILE [--since SNAPSHOT]

URI names a snapshot's export, like nbd+unix:///disk@monday?socket=DIR/nbd.sock. Without --since, FILE gets
everything. With it, FILE must be a copy of that older snapshot of the same volume and becomes a copy of this one:
only what differs is read and written. What holds no data is punched out of FILE, so a copy stays as sparse as
the volume. A copy that was interrupted is made complete by running the same command again.

Needs python3-libnbd.
"""

import argparse
import ctypes
import os
import sys

import nbd

ALLOCATION = nbd.CONTEXT_BASE_ALLOCATION
DIRTY = 1
PIECE_BYTES = 1 << 20
# libnbd's question with 32 bits; that with 64 is not in Debian 12.
QUESTION_BYTES_MAX = 1 << 31
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2

fallocate = ctypes.CDLL(None, use_errno=True).fallocate
fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def extents(source, context, start, end):
    """Neighbouring extents (offset, length, flags) of one context that cover all from start to end."""
    while start < end:
        told = []

        def take(name, offset, entries, error):
            if name == context:
                told.extend(zip(entries[::2], entries[1::2]))

        source.block_status(min(end - start, QUESTION_BYTES_MAX), start, take)
        if not told:
            sys.exit(f"the server told nothing of {context} at {start}")
        for length, flags in told:
            length = min(length, end - start)
            if length:
                yield start, length, flags
            start += length


def punch(target, offset, length):
    if fallocate(target, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length) != 0:
        for at in range(offset, offset + length, PIECE_BYTES):
            os.pwrite(target, bytes(min(PIECE_BYTES, offset + length - at)), at)


def copy(source, target, offset, length):
    """Copies a range: data is read and written, the rest punched out."""
    moved = 0
    for start, count, flags in extents(source, ALLOCATION, offset, offset + length):
        if flags & nbd.STATE_ZERO:
            punch(target, start, count)
            continue
        for at in range(start, start + count, PIECE_BYTES):
            data = source.pread(min(PIECE_BYTES, start + count - at), at)
            if os.pwrite(target, data, at) != len(data):
                sys.exit("the file took less than it was given")
            moved += len(data)
    return moved


def main():
    parser = argparse.ArgumentParser(description="Copies a snapshot into a file.")
    parser.add_argument("uri", metavar="URI")
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--since", metavar="SNAPSHOT", help="FILE is a copy of this older one")
    args = parser.parse_args()

    source = nbd.NBD()
    source.add_meta_context(ALLOCATION)
    changes = f"qemu:dirty-bitmap:since={args.since}"
    if args.since is not None:
        source.add_meta_context(changes)
    source.connect_uri(args.uri)
    if not source.is_read_only():
        sys.exit(f"{args.uri} can change while it is copied: name a snapshot, like disk@monday")
    if args.since is not None and not source.can_meta_context(changes):
        sys.exit(f"{args.uri} has no older snapshot named {args.since}")

    size = source.get_size()
    flags = os.O_RDWR if args.since is not None else os.O_RDWR | os.O_CREAT
    target = os.open(args.file, flags, 0o600)
    os.ftruncate(target, size)
    if args.since is None:
        moved = copy(source, target, 0, size)
    else:
        dirty = (e for e in extents(source, changes, 0, size) if e[2] & DIRTY)
        moved = sum(copy(source, target, offset, length) for offset, length, _ in dirty)
    os.fsync(target)
    os.close(target)
    source.shutdown()
    print(f"{moved} bytes copied of {size}")


main()
