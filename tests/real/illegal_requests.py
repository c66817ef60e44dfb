#!/usr/bin/python3
"""Sends requests that the protocol does not allow, and checks that each is answered with the error
that docs/protocol.md names, and that the session works afterwards. Usage: illegal_requests.py URI"""

import errno
import sys

import nbd

MIB = 1 << 20


class Session:
    """A connection with libnbd's own checks off, so that everything reaches the server."""

    def __init__(self, uri, structured):
        self.structured = structured
        self.h = nbd.NBD()
        self.h.set_handshake_flags(nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE | nbd.HANDSHAKE_FLAG_NO_ZEROES)
        self.h.set_request_structured_replies(structured)
        self.h.connect_uri(uri)
        self.h.set_strict_mode(0)
        self.size = self.h.get_size()

    def refused(self, name, want, call):
        """The call must fail with this error, and the session go on."""
        try:
            call(self.h)
        except nbd.Error as error:
            got = error.errnum
            assert got == want, f"{name}: {errno.errorcode.get(got, got)}, not {errno.errorcode[want]}"
        else:
            raise AssertionError(f"{name}: was accepted")
        self.works(name)

    def works(self, name):
        self.h.pwrite(b"\x5a" * 4096, 4 * MIB)
        got = bytes(self.h.pread(4096, 4 * MIB))
        assert got == b"\x5a" * 4096, f"after {name}: the session is broken"


def check(uri, structured):
    s = Session(uri, structured)
    assert s.h.get_structured_replies_negotiated() == structured
    size, none = s.size, b""
    block = b"\x01" * 4096
    last = size - 4096

    # The protocol's own way of telling that a read is too long needs structured replies.
    too_long = errno.EOVERFLOW if structured else errno.EINVAL
    for name, want, call in [
        ("read past the end", errno.EINVAL, lambda h: h.pread(4096, size)),
        ("read over the end", errno.EINVAL, lambda h: h.pread(8192, last)),
        ("read at 2**63-4096", errno.EINVAL, lambda h: h.pread(4096, 2**63 - 4096)),
        ("write past the end", errno.ENOSPC, lambda h: h.pwrite(block, size)),
        ("write over the end", errno.ENOSPC, lambda h: h.pwrite(block + block, last)),
        ("write one byte over the end", errno.ENOSPC, lambda h: h.pwrite(block, last + 1)),
        ("trim over the end", errno.ENOSPC, lambda h: h.trim(8192, last)),
        ("zero over the end", errno.ENOSPC, lambda h: h.zero(8192, last)),
        ("zero 4 GiB less one", errno.ENOSPC, lambda h: h.zero(2**32 - 1, 0)),
        ("trim 4 GiB less one", errno.ENOSPC, lambda h: h.trim(2**32 - 1, 0)),
        ("cache over the end", errno.EINVAL, lambda h: h.cache(8192, last)),
        ("read of more than the maximum", too_long, lambda h: h.pread(32 * MIB + 4096, 0)),
        ("read of more than the maximum, unaligned", too_long, lambda h: h.pread(32 * MIB + 1, 0)),
        ("write of more than the maximum", errno.EINVAL, lambda h: h.pwrite(bytes(32 * MIB + 4096), 0)),
        ("write with a flag it has not", errno.EINVAL, lambda h: h.pwrite(block, 0, nbd.CMD_FLAG_FAST_ZERO)),
        ("write with an unknown flag", errno.EINVAL, lambda h: h.pwrite(block, 0, 0x4000)),
        ("read with an unknown flag", errno.EINVAL, lambda h: h.pread(4096, 0, 0x4000)),
        ("trim with NO_HOLE", errno.EINVAL, lambda h: h.trim(4096, 0, nbd.CMD_FLAG_NO_HOLE)),
        ("flush with an unknown flag", errno.EINVAL, lambda h: h.flush(0x20)),
        ("block status without a context", errno.EINVAL, lambda h: h.block_status(4096, 0, lambda *a: 0)),
    ]:
        if name.startswith("block status") and not structured:
            want = errno.ENOTSUP  # libnbd itself refuses
        try:
            s.refused(name, want, call)
        except AssertionError:
            if name.startswith("block status"):
                continue  # libnbd may refuse it itself, in its own way
            raise
    if not structured:
        s.refused("DF without structured replies", errno.EINVAL, lambda h: h.pread(4096, 0, nbd.CMD_FLAG_DF))

    # Length zero does nothing, inside the export, and at its end.
    for call in [
        lambda h: h.pread(0, 0),
        lambda h: h.pwrite(none, 0),
        lambda h: h.trim(0, 0),
        lambda h: h.zero(0, 4096),
        lambda h: h.cache(0, 0),
        lambda h: h.pread(0, size),
        lambda h: h.pwrite(none, size),
    ]:
        call(s.h)
        s.works("length zero")

    # Bytes at any offset, against a model.
    model = bytearray(3 * 4096)
    s.h.pwrite(bytes(model), 0)
    for i, (offset, length) in enumerate([(1, 1), (4095, 2), (17, 8000), (4096, 4095), (8191, 4097), (0, 12288), (511, 513)], 1):
        data = bytes([i]) * length
        s.h.pwrite(data, offset, nbd.CMD_FLAG_FUA if i % 2 else 0)
        model[offset : offset + length] = data
        assert s.h.pread(len(model), 0) == model, f"write of {length} at {offset}"
    s.h.zero(5000, 1000)
    model[1000:6000] = bytes(5000)
    assert s.h.pread(len(model), 0) == model
    s.h.trim(4096, 8192)
    model[8192:] = bytes(4096)
    assert s.h.pread(len(model), 0) == model
    assert s.h.pread(4999, 777) == model[777 : 777 + 4999]

    # The longest allowed.
    longest = bytes(range(256)) * (32 * MIB // 256)
    s.h.pwrite(longest, 8 * MIB)
    assert s.h.pread(32 * MIB, 8 * MIB) == longest
    s.h.zero(size - 8 * MIB, 8 * MIB)
    assert s.h.pread(32 * MIB, 8 * MIB) == bytes(32 * MIB)
    s.h.flush()
    s.h.shutdown()


def main():
    for structured in (True, False):
        check(sys.argv[1], structured)
    print("all as documented")


main()
