#!/usr/bin/env python3
"""What a node does under crowds and at its sizes; it measures and judges nothing by time.

    limits.py crowd     p99 of a polite client, alone and beside idle connections, slow readers, half-open
                        clients, floods of tiny and of maximal requests; memory and descriptors of the daemon.
                        Floods `elsewhere` go to another daemon: what the machine's cores and disk cost
    limits.py volumes   many volumes: creating them, a restart after kill -9, memory
    limits.py sparse    scattered writes over volumes of 1 TiB and 64 TiB: memory, a restart after kill -9

Needs a release build of eskerd and esker, and fio. Everything happens in a scratch folder (--dir).
"""

import argparse
import json
import os
import resource
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time

GO = 7
READ, WRITE = 0, 1


class Daemon:
    def __init__(self, binaries, folder, store_size):
        os.makedirs(folder, exist_ok=True)
        self.binaries, self.data, self.store_size = binaries, os.path.join(folder, "d"), store_size
        self.start()

    def start(self):
        began = time.monotonic()
        self.process = subprocess.Popen(
            [f"{self.binaries}/eskerd", "--data", self.data, "--store-size", self.store_size, "--nbd", "127.0.0.1:0",
             "--metrics", "none"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        line = self.process.stdout.readline()
        if not line.startswith("eskerd ready"):
            sys.exit(f"eskerd does not start: {line}")
        self.port = int(line.split("nbd://127.0.0.1:")[1].split(",")[0])
        return time.monotonic() - began

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.process.terminate()
        if self.process.wait():
            sys.exit(f"eskerd ended with {self.process.returncode}")

    def esker(self, *words):
        done = subprocess.run([f"{self.binaries}/esker", "--data", self.data, *words], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"esker {' '.join(words)}: {done.stderr}")
        return done.stdout

    def uri(self, name):
        return f"nbd+unix:///{name}?socket={self.data}/nbd.sock"

    def memory_mib(self, line="VmRSS"):
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(l.split()[1]) for l in status if l.startswith(line)) >> 10

    def forget_highest(self):
        """From here on VmHWM is the highest since now."""
        with open(f"/proc/{self.process.pid}/clear_refs", "w") as refs:
            refs.write("5")

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def connect(self, name=None, tcp=True):
        """A connection: greeted, or attached to an export."""
        if tcp:
            stream = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        else:
            stream = socket.socket(socket.AF_UNIX)
            stream.settimeout(30)
            stream.connect(f"{self.data}/nbd.sock")
        exactly(stream, 18)
        if name is not None:
            go = struct.pack(">I", len(name)) + name.encode() + struct.pack(">H", 0)
            stream.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", GO, len(go)) + go)
            while True:
                kind, length = struct.unpack(">12xII", exactly(stream, 20))
                exactly(stream, length)
                if kind == 1:
                    break
                if kind & 0x80000000:
                    sys.exit(f"{name}: refused")
        return stream


def exactly(stream, length):
    data = b""
    while len(data) < length:
        more = stream.recv(length - len(data))
        if not more:
            raise ConnectionError("closed")
        data += more
    return data


def request(kind, offset, length, cookie=0, payload=b""):
    return struct.pack(">IHHQQI", 0x25609513, 0, kind, cookie, offset, length) + payload


def fio(uri, *words, seconds):
    command = ["fio", "--name=x", "--ioengine=nbd", f"--uri={uri}", "--time_based", f"--runtime={seconds}",
               "--output-format=json", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout[done.stdout.index("{"):])["jobs"]


def polite(daemon, seconds):
    """p50 and p99 in µs of reads and writes of a client that sends 500 requests a second."""
    job = fio(daemon.uri("v"), "--rw=randrw", "--bs=4k", "--iodepth=1", "--size=256m", "--rate_iops=250,250",
              seconds=seconds)[0]
    points = []
    for way in ("read", "write"):
        # Nothing was answered: as long as it was waited for.
        percentile = job[way]["clat_ns"].get("percentile", {})
        points += [percentile.get(p, seconds * 1e9) / 1000 for p in ("50.000000", "99.000000")]
    return points


class Crowd:
    """Something that goes on while a polite client is measured."""

    def __init__(self, daemon, flooded=None):
        self.daemon, self.flooded, self.streams, self.children, self.on = daemon, flooded or daemon, [], [], True
        self.thread = None

    def end(self):
        self.on = False
        if self.thread:
            self.thread.join()
        for child in self.children:
            child.terminate()
            child.wait()
        for stream in self.streams:
            stream.close()

    def alone(self):
        pass

    def idle(self):
        self.streams = [self.daemon.connect("v") for _ in range(1000)]

    def trickle(self):
        """1,000 connections, of which each reads a block now and then."""
        self.idle()

        def go():
            i = 0
            while self.on:
                stream = self.streams[i % len(self.streams)]
                stream.sendall(request(READ, i % 4096 * 4096, 4096))
                exactly(stream, 16 + 4096)
                i += 7
                time.sleep(0.001)
        self.thread = threading.Thread(target=go, daemon=True)
        self.thread.start()

    def half_open(self):
        """Greeted and silent; half an option; half a request; half a payload."""
        for i in range(1000):
            stream = self.daemon.connect("v" if i % 4 > 1 else None)
            stream.sendall([b"", struct.pack(">I", 3) + b"IHAVE", request(READ, 0, 4096)[:20],
                            request(WRITE, 512 << 20, 1 << 20) + bytes(4096)][i % 4])
            self.streams.append(stream)

    def slow_readers(self):
        """Each asks for 512 MiB and reads 4 KiB a second of it."""
        self.streams = [self.daemon.connect("v", tcp=i % 2 == 0) for i in range(50)]
        for stream in self.streams:
            stream.sendall(b"".join(request(READ, 0, 8 << 20, cookie) for cookie in range(64)))
            stream.setblocking(False)
        time.sleep(1)

        def go():
            while self.on:
                for stream in self.streams:
                    try:
                        stream.recv(4096)
                    except BlockingIOError:
                        pass  # the node has no room to read more for it
                time.sleep(1)
        self.thread = threading.Thread(target=go, daemon=True)
        self.thread.start()

    def flood(self, *words):
        command = ["fio", "--name=flood", "--ioengine=nbd", f"--uri={self.flooded.uri('flood')}", "--time_based",
                   "--runtime=600", "--size=256m", *words]
        self.children.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        time.sleep(1)

    def busy_cores(self):
        """No client at all: as many processes that only compute as a flood has. What the scheduler costs."""
        self.children = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]

    def tiny_reads(self):
        self.flood("--rw=randread", "--bs=512", "--iodepth=256", "--numjobs=4")

    def tiny_writes(self):
        self.flood("--rw=randwrite", "--bs=512", "--iodepth=256", "--numjobs=4", "--rate_iops=4000")

    def maximal_reads(self):
        self.flood("--rw=read", "--bs=32m", "--iodepth=4", "--numjobs=4")

    def maximal_writes(self):
        self.flood("--rw=write", "--bs=32m", "--iodepth=4", "--numjobs=2")


def crowd(words):
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    daemon, elsewhere = (Daemon(words.bin, os.path.join(words.dir, folder), "6GiB") for folder in ("a", "b"))
    for node, name, size in ((daemon, "v", "1GiB"), (daemon, "flood", "256MiB"), (elsewhere, "flood", "256MiB")):
        node.esker("volume", "create", name, "--size", size)
        fio(node.uri(name), "--rw=write", "--bs=1m", "--iodepth=8", "--size=256m", seconds=1)
    polite(daemon, 1)
    print(f"{'beside':24} {'read p50':>9} {'p99':>9} {'write p50':>9} {'p99':>9}  p99 against alone  RSS MiB  highest  "
          "descriptors")
    alone = None
    rows = ("alone", "idle", "trickle", "half_open", "slow_readers", "busy_cores", "tiny_reads", "tiny_writes",
            "maximal_reads", "maximal_writes", "elsewhere_tiny_reads", "elsewhere_tiny_writes",
            "elsewhere_maximal_reads", "elsewhere_maximal_writes", "alone")
    for name in words.rows or rows:
        others = Crowd(daemon, elsewhere if name.startswith("elsewhere_") else None)
        daemon.forget_highest()
        getattr(others, name.removeprefix("elsewhere_"))()
        points = polite(daemon, words.seconds)
        memory, highest, descriptors = daemon.memory_mib(), daemon.memory_mib("VmHWM"), daemon.descriptors()
        others.end()
        time.sleep(1)
        alone = alone or points
        print(f"{name:24} " + " ".join(f"{p:9.0f}" for p in points) +
              f"  {points[1] / alone[1]:7.2f} {points[3] / alone[3]:7.2f}   {memory:7} {highest:8} {descriptors:7}", flush=True)
    print(f"at the end: RSS {daemon.memory_mib()} MiB, {daemon.descriptors()} descriptors")
    daemon.stop()
    elsewhere.stop()


def first_io(daemon, name):
    stream = daemon.connect(name, tcp=False)
    stream.sendall(request(READ, 0, 4096))
    reply = exactly(stream, 16 + 4096)
    if struct.unpack_from(">I", reply, 4)[0]:
        sys.exit("the first read fails")
    return reply[16:]


def volumes(words):
    daemon = Daemon(words.bin, words.dir, "4GiB")
    began, names = time.monotonic(), [f"v{i}" for i in range(words.count)]
    slowest = 0
    for name in names:
        one = time.monotonic()
        daemon.esker("volume", "create", name, "--size", "10GiB")
        slowest = max(slowest, time.monotonic() - one)
    took = time.monotonic() - began
    print(f"{len(names)} volumes created in {took:.1f} s ({took / len(names) * 1000:.1f} ms each with the command, "
          f"slowest {slowest * 1000:.0f} ms); RSS {daemon.memory_mib()} MiB", flush=True)
    began = time.monotonic()
    for i, name in enumerate(names):
        stream = daemon.connect(name, tcp=False)
        stream.sendall(request(WRITE, i * 4096, 4096, payload=struct.pack(">I", i) * 1024))
        if struct.unpack_from(">I", exactly(stream, 16), 4)[0]:
            sys.exit(f"{name}: a write fails")
        stream.close()
    print(f"a block in each: {time.monotonic() - began:.1f} s; RSS {daemon.memory_mib()} MiB", flush=True)
    cpu, began = daemon.cpu_seconds(), time.monotonic()
    time.sleep(5)
    print(f"idle: {(daemon.cpu_seconds() - cpu) / (time.monotonic() - began) * 100:.2f} % CPU")
    daemon.kill()
    began = time.monotonic()
    ready = daemon.start()
    first_io(daemon, names[-1])
    print(f"after kill -9: ready in {ready:.2f} s, first I/O after {time.monotonic() - began:.2f} s; "
          f"RSS {daemon.memory_mib()} MiB")
    for i in range(0, len(names), max(1, len(names) // 100)):
        stream = daemon.connect(names[i], tcp=False)
        stream.sendall(request(READ, i * 4096, 4096))
        if exactly(stream, 16 + 4096)[16:] != struct.pack(">I", i) * 1024:
            sys.exit(f"{names[i]} has lost its block")
        stream.close()
    began = time.monotonic()
    daemon.esker("volume", "list")
    print(f"volume list: {time.monotonic() - began:.2f} s")
    daemon.stop()


def sparse(words):
    for size in ("1TiB", "64TiB"):
        folder = os.path.join(words.dir, size)
        os.makedirs(folder)
        daemon = Daemon(words.bin, folder, words.store_size)
        daemon.esker("volume", "create", "v", "--size", size)
        began, written = time.monotonic(), 0
        print(f"{size}: {words.writes} scattered writes of 4 KiB")
        while written < words.writes:
            part = min(25_000, words.writes - written)
            command = ["fio", "--name=x", "--ioengine=nbd", f"--uri={daemon.uri('v')}", "--rw=randwrite", "--bs=4k",
                       "--iodepth=32", f"--size={size[:-2].lower()}", "--norandommap", "--randrepeat=0",
                       "--random_generator=tausworthe64", f"--number_ios={part}", "--output-format=json"]
            done = subprocess.run(command, capture_output=True, text=True)
            text = done.stdout
            error = json.loads(text[text.index("{"):])["jobs"][0]["error"] if "{" in text else -1
            if done.returncode or error:
                print(f"  stopped by an error after {written}: {error} {done.stderr.strip()[:200]}")
                break
            written += part
            print(f"  {written:9}: RSS {daemon.memory_mib()} MiB, highest {daemon.memory_mib('VmHWM')} MiB, "
                  f"{written / (time.monotonic() - began):.0f} writes/s", flush=True)
        space = json.loads(daemon.esker("space", "-o", "json"))
        print("  " + ", ".join(f"{key} {space[key] >> 20} MiB" for key in (
            "live_bytes", "garbage_bytes", "free_bytes", "total_bytes", "client_bytes_written", "device_bytes_written")))
        daemon.kill()
        began = time.monotonic()
        ready = daemon.start()
        first_io(daemon, "v")
        print(f"  after kill -9: ready in {ready:.2f} s, first I/O after {time.monotonic() - began:.2f} s; "
              f"RSS {daemon.memory_mib()} MiB")
        daemon.stop()
        shutil.rmtree(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["crowd", "volumes", "sparse"])
    parser.add_argument("--dir", required=True, help="scratch folder; must not exist, is removed afterwards")
    parser.add_argument("--bin", default="target/release", help="folder with eskerd and esker")
    parser.add_argument("--seconds", type=int, default=5, help="crowd: how long each measurement takes")
    parser.add_argument("--rows", nargs="*", help="crowd: only these, in this order; the first is what others are compared to")
    parser.add_argument("--count", type=int, default=1000, help="volumes: how many")
    parser.add_argument("--writes", type=int, default=200_000, help="sparse: how many")
    parser.add_argument("--store-size", default="6GiB", help="sparse: the store")
    words = parser.parse_args()
    words.bin, words.dir = os.path.abspath(words.bin), os.path.abspath(words.dir)
    os.makedirs(words.dir)
    try:
        {"crowd": crowd, "volumes": volumes, "sparse": sparse}[words.what](words)
    finally:
        shutil.rmtree(words.dir, ignore_errors=True)


if __name__ == "__main__":
    main()
