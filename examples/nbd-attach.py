#!/usr/bin/env python3
"""Attaches an NBD export to a kernel device and attaches it again whenever the server comes back.

    nbd-attach.py HOST:PORT NAME /dev/nbdN [--connections N] [--timeout S] [--dead-timeout S]

For kernels with nbd.ko and netlink (Linux 4.12 and later); needs root. nbd-client 3.24, which Debian 12
has, can neither ask the kernel to wait for a server that is gone nor give it new sockets, so a restart of
the server fails requests and a mounted filesystem with them. This program does both: requests wait, for at
most --dead-timeout seconds (60), and are sent again. A request that had been sent and not answered is sent
again --timeout seconds (5) after it was sent; that is the pause a client sees. It may thus be carried out
twice, which does no harm as long as it is the only writer.

Runs until `nbd-client -d /dev/nbdN` (or until it is ended: the device then lives on without it).
"""

import argparse
import os
import re
import socket
import struct
import sys
import time

# linux/netlink.h and linux/genetlink.h
NETLINK_GENERIC = 16
NLM_F_REQUEST, NLM_F_ACK = 1, 4
NLMSG_ERROR = 2
NLA_F_NESTED = 0x8000
GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 16, 3, 1, 2
CTRL_ATTR_MCAST_GROUPS, CTRL_ATTR_MCAST_GRP_NAME, CTRL_ATTR_MCAST_GRP_ID = 7, 1, 2
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 270, 1
# linux/nbd-netlink.h
CONNECT, DISCONNECT, RECONFIGURE, LINK_DEAD, STATUS = range(1, 6)
ATTR_INDEX, ATTR_SIZE, ATTR_BLOCK_SIZE, ATTR_TIMEOUT, ATTR_SERVER_FLAGS = range(1, 6)
ATTR_CLIENT_FLAGS, ATTR_SOCKETS, ATTR_DEAD_CONN_TIMEOUT = range(6, 9)


def attribute(kind, data):
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def attributes(data):
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        found[kind & 0x3FFF] = data[4:length]
        data = data[(length + 3) & ~3:]
    return found


def u32(number):
    return struct.pack("=I", number)


def u64(number):
    return struct.pack("=Q", number)


class Netlink:
    """The kernel's nbd family."""

    def __init__(self):
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC)
        self.socket.bind((0, 0))
        name = attribute(CTRL_ATTR_FAMILY_NAME, b"nbd\0")
        found = self.ask(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, name, NLM_F_REQUEST)
        self.family = struct.unpack("=H", found[CTRL_ATTR_FAMILY_ID][:2])[0]
        # News of dead connections come to a socket of their own, from now on.
        self.news = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC)
        self.news.bind((0, 0))
        for group in attributes(found[CTRL_ATTR_MCAST_GROUPS]).values():
            number = struct.unpack("=I", attributes(group)[CTRL_ATTR_MCAST_GRP_ID])[0]
            self.news.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, number)

    def ask(self, family, command, body, flags=NLM_F_REQUEST | NLM_F_ACK):
        body = struct.pack("=BBH", command, 1, 0) + body
        self.socket.send(struct.pack("=IHHII", 16 + len(body), family, flags, 0, 0) + body)
        answer = self.socket.recv(65536)
        if struct.unpack_from("=H", answer, 4)[0] == NLMSG_ERROR:
            error = -struct.unpack_from("=i", answer, 16)[0]
            if error:
                raise OSError(error, os.strerror(error))
            return {}
        return attributes(answer[20:])

    def nbd(self, command, index, body=b""):
        return self.ask(self.family, command, attribute(ATTR_INDEX, u32(index)) + body)

    def wait_until_dead(self, index, seconds):
        """True when a connection of this device has ended."""
        self.news.settimeout(seconds)
        try:
            news = self.news.recv(65536)
        except socket.timeout:
            return False
        about = attributes(news[20:]).get(ATTR_INDEX)
        return news[16] == LINK_DEAD and about is not None and struct.unpack("=I", about)[0] == index


def exactly(stream, length):
    data = b""
    while len(data) < length:
        more = stream.recv(length - len(data))
        if not more:
            raise ConnectionError("the server has closed the connection")
        data += more
    return data


def open_export(host, port, name):
    """A connection in transmission, with the export's size in bytes and flags."""
    stream = socket.create_connection((host, port), timeout=10)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    magic, flags = exactly(stream, 16), struct.unpack(">H", exactly(stream, 2))[0]
    if magic != b"NBDMAGICIHAVEOPT" or not flags & 1:
        raise ConnectionError("not an NBD server of today")
    go = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
    stream.sendall(struct.pack(">I", flags & 3) + b"IHAVEOPT" + struct.pack(">II", 7, len(go)) + go)
    size = None
    while True:
        _, _, kind, length = struct.unpack(">QIII", exactly(stream, 20))
        data = exactly(stream, length)
        if kind == 1 and size:
            stream.settimeout(None)
            return stream, size
        if kind == 3 and data[:2] == b"\0\0":
            size = struct.unpack(">QH", data[2:12])
        elif kind & 0x80000000:
            raise ConnectionError(f"the server refuses {name.decode()}: {data.decode(errors='replace')}")


def sockets(streams):
    """The nested list of file descriptors."""
    item = b"".join(attribute(1 | NLA_F_NESTED, attribute(1, u32(s.fileno()))) for s in streams)
    return attribute(ATTR_SOCKETS | NLA_F_NESTED, item)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("server")
    parser.add_argument("name")
    parser.add_argument("device")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--timeout", type=int, default=5)
    parser.add_argument("--dead-timeout", type=int, default=60)
    words = parser.parse_args()
    host, port = words.server.rsplit(":", 1)
    index = int(re.fullmatch(r"/dev/nbd(\d+)", words.device)[1])
    name = words.name.encode()

    kernel = Netlink()
    opened = [open_export(host, int(port), name) for _ in range(words.connections)]
    size, flags = opened[0][1]
    times = attribute(ATTR_TIMEOUT, u64(words.timeout))
    times += attribute(ATTR_DEAD_CONN_TIMEOUT, u64(words.dead_timeout))
    body = attribute(ATTR_SIZE, u64(size)) + attribute(ATTR_BLOCK_SIZE, u64(4096))
    body += attribute(ATTR_SERVER_FLAGS, u64(flags)) + times
    kernel.nbd(CONNECT, index, body + sockets([stream for stream, _ in opened]))
    for stream, _ in opened:
        stream.close()
    print(f"{words.device}: {size} bytes, {len(opened)} connections", flush=True)

    dead = 0
    while os.path.exists(f"/sys/block/nbd{index}/pid"):
        # One message tells of one connection; several may be waiting.
        if kernel.wait_until_dead(index, 0.2):
            dead += 1
            continue
        if not dead:
            continue
        try:
            fresh = [open_export(host, int(port), name) for _ in range(dead)]
        except OSError as error:
            print(f"{words.device}: {error}", file=sys.stderr, flush=True)
            time.sleep(0.2)
            continue
        kernel.nbd(RECONFIGURE, index, times + sockets([stream for stream, _ in fresh]))
        for stream, _ in fresh:
            stream.close()
        print(f"{words.device}: {dead} connections again", flush=True)
        dead = 0


if __name__ == "__main__":
    main()
