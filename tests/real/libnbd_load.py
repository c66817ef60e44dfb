"""Writes, zeroes, trims, flushes and reads a region of its own through libnbd, on two connections with many
requests on their way, and checks every byte it reads.

    libnbd_load.py URI OFFSET LENGTH SECONDS

Prints how many requests were answered.
"""

import random
import sys
import time

import nbd

BLOCK = 4096
WINDOW = 16


def content(block, version):
    """Zeros for version 0, else bytes that tell block and version."""
    if version == 0:
        return bytes(BLOCK)
    return b"%08x%08x" % (block, version) * (BLOCK // 16)


class Region:
    def __init__(self, uri, offset, length):
        self.handles = [nbd.NBD(), nbd.NBD()]
        for handle in self.handles:
            handle.connect_uri(uri)
        self.offset = offset
        self.blocks = length // BLOCK
        self.versions = [0] * self.blocks
        self.busy = set()
        self.version = 0
        self.answered = 0
        self.waiting = 0

    def poll(self):
        # Each callback retires its request.
        for handle in self.handles:
            if handle.aio_in_flight():
                handle.poll(1)

    def started(self, blocks, done):
        """The callback of a request over these blocks, which are busy until it is answered."""
        self.busy.update(blocks)
        self.waiting += 1

        def answered(error):
            if error.value:
                sys.exit(f"blocks {blocks}: error {error.value}")
            self.busy.difference_update(blocks)
            self.waiting -= 1
            self.answered += 1
            done()
            return 1

        return answered

    def request(self, dice):
        handle = dice.choice(self.handles)
        count = dice.choice((1, 1, 1, 2, 8, 32))
        first = dice.randrange(self.blocks - count + 1)
        blocks = range(first, first + count)
        if self.busy.intersection(blocks):
            return
        where = self.offset + first * BLOCK
        kind = dice.random()
        if kind < 0.5:
            self.version += 1
            version = self.version
            data = nbd.Buffer.from_bytearray(bytearray(b"".join(content(b, version) for b in blocks)))
            handle.aio_pwrite(data, where, self.started(blocks, lambda: self.set(blocks, version)))
        elif kind < 0.55:
            handle.aio_zero(count * BLOCK, where, self.started(blocks, lambda: self.set(blocks, 0)))
        elif kind < 0.6:
            handle.aio_trim(count * BLOCK, where, self.started(blocks, lambda: self.set(blocks, 0)))
        elif kind < 0.63:
            handle.aio_flush(self.started((), lambda: None))
        else:
            data = nbd.Buffer(count * BLOCK)
            handle.aio_pread(data, where, self.started(blocks, lambda: self.check(blocks, data)))

    def set(self, blocks, version):
        for block in blocks:
            self.versions[block] = version

    def check(self, blocks, data):
        expected = b"".join(content(block, self.versions[block]) for block in blocks)
        if data.to_bytearray() != expected:
            sys.exit(f"blocks {blocks} hold something else")

    def settle(self):
        while self.waiting:
            self.poll()


def main():
    uri, offset, length, seconds = sys.argv[1], *map(int, sys.argv[2:5])
    region = Region(uri, offset, length)
    dice = random.Random(offset)
    for first in range(0, region.blocks, 256):
        blocks = range(first, min(first + 256, region.blocks))
        region.handles[0].zero(len(blocks) * BLOCK, offset + first * BLOCK)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        while region.waiting >= WINDOW:
            region.poll()
        region.request(dice)
    region.settle()
    for block in range(region.blocks):
        found = region.handles[block % 2].pread(BLOCK, offset + block * BLOCK)
        if found != content(block, region.versions[block]):
            sys.exit(f"block {block} holds something else at the end")
    for handle in region.handles:
        handle.shutdown()
    print(f"{region.answered} requests")


main()
