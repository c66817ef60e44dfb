#!/usr/bin/env python3
"""How long eskerd takes from its start after kill -9 to the first I/O, with its log as full as it gets.

For each case a store is made and loaded with writes. A load runs for a while, and the most log that an
opening would have had to read is noted (the log since the last checkpoint that is durable: up to twice
the bytes that make one begin); then eskerd is killed, without warning, when there is nearly as much
again. Timed is from the start of the new process until a client that attached over the unix socket has
read a block, and until it has written one durably; beside them how much log was read, what of the time the
store took, and the memory of the process right after, and at most until then.

Needs fio (for its nbd engine) and release builds of eskerd and esker (cargo build --release -p esker-daemon
-p esker-cli). Everything happens in one scratch folder (--dir) on the disk to measure.
"""

import argparse
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
import urllib.request

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import fio_table  # noqa: E402

PATIENCE_S = 60
WATCH_S = 4  # how long a load runs before the most log it makes is known
NEARLY = 0.9  # the share of it at which the daemon is killed
READ, WRITE, FUA = 0, 1, 1

# name, volumes, bytes of each, how it is loaded
CASES = [
    ("4 GiB", 1, 4 << 30, ["--bs=4k", "--iodepth=32"]),
    ("4 GiB, one write at a time", 1, 4 << 30, ["--bs=4k", "--iodepth=1"]),
    ("1 TiB, scattered", 1, 1 << 40, ["--bs=4k", "--iodepth=64"]),
    ("64 TiB, scattered", 1, 64 << 40, ["--bs=4k", "--iodepth=64"]),
    ("1,000 volumes", 1000, 1 << 30, None),
    ("4 GiB, trims of the same MiB", 1, 4 << 30, ["--rw=randtrim", "--io_size=1t", "--size=1m", "--bs=4k", "--iodepth=64"]),
]


class Client:
    """A client of one export that attached."""

    def __init__(self, path, export):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE_S)
        try:
            self.socket.connect(path)
            self.attach(export.encode())
        except OSError:
            self.socket.close()
            raise

    def take(self, count):
        data = b""
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                raise OSError("closed")
            data += part
        return data

    def attach(self, export):
        self.take(18)
        go = struct.pack(">I", len(export)) + export + b"\0\0"
        self.socket.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 7, len(go)) + go)
        while True:
            _, _, kind, length = struct.unpack(">QIII", self.take(20))
            self.take(length)
            if kind >> 31:
                raise OSError("refused")
            if kind == 1:
                return

    def ask(self, command, flags, block, data=b""):
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, flags, command, 1, block * 4096, 4096) + data)

    def answer(self, count):
        _, error, _ = struct.unpack(">IIQ", self.take(16))
        if error:
            raise OSError(error, "the server answered with an error")
        return self.take(count)


class Store:
    """An eskerd over a store file of its own."""

    def __init__(self, folder, args):
        self.folder, self.args, self.process = folder, args, None
        self.socket = f"{folder}/nbd.sock"
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]

    def spawn(self):
        command = [f"{self.args.bin}/eskerd", "--data", self.folder, "--store-size", self.args.store_size,
                   "--nbd", "none", "--metrics", f"127.0.0.1:{self.port}"]
        with open(f"{self.folder}.log", "a") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)

    def esker(self, *words):
        subprocess.run([f"{self.args.bin}/esker", "--data", self.folder, *words], check=True, stdout=subprocess.DEVNULL)

    def kill(self, how=signal.SIGKILL):
        if self.process:
            self.process.send_signal(how)
            self.process.wait()
            self.process.stdout.close()
            self.process = None

    def metrics(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=PATIENCE_S) as answer:
            lines = answer.read().decode().splitlines()
        found = {}
        for line in lines:
            match = re.fullmatch(r"(esker_\w+)(?:\{[^}]*\})? (\S+)(?: .*)?", line)
            if match:
                found[match.group(1)] = float(match.group(2))
        return found

    def status_mib(self, name):
        with open(f"/proc/{self.process.pid}/status") as f:
            return int(re.search(rf"{name}:\s+(\d+) kB", f.read()).group(1)) / 1024

    def log(self):
        """Bytes of log since the last checkpoint began, and whether one is on its way."""
        m = self.metrics()
        return m["esker_log_since_checkpoint_bytes"], bool(m["esker_checkpoint_running"])

    def first_io(self):
        """Starts the daemon; seconds to the first read, and to the first durable write."""
        if os.path.exists(self.socket):
            os.remove(self.socket)
        began = time.monotonic()
        self.spawn()
        while time.monotonic() < began + PATIENCE_S:
            if self.process.poll() is not None:
                sys.exit(f"eskerd ended at its start; see {self.folder}.log")
            try:
                client = Client(self.socket, "bench0")
                client.ask(READ, 0, 0)
                client.answer(4096)
            except OSError:
                time.sleep(0.002)
                continue
            read = time.monotonic() - began
            client.ask(WRITE, FUA, 1, b"\x5a" * 4096)
            client.answer(0)
            return read, time.monotonic() - began
        with open(f"{self.folder}.log") as log:
            sys.exit(f"eskerd does not serve {PATIENCE_S} s after kill -9: {log.read()}")


def fio_load(store, size, options):
    return subprocess.Popen(
        ["fio", "--name=load", "--ioengine=nbd", f"--uri=nbd+unix:///bench0?socket={store.socket}", f"--size={size}",
         "--rw=randwrite", "--norandommap", "--randrepeat=0", "--time_based", "--runtime=600",
         f"--output={store.folder}.fio", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def many_load(store, volumes, size):
    """One write at a time to each of many volumes, from a process of its own."""
    child = os.fork()
    if child == 0:
        try:
            clients = [Client(store.socket, f"bench{n}") for n in range(volumes)]
            block = 0
            while True:
                for client in clients:
                    client.ask(WRITE, 0, block % (size // 4096), b"\xa5" * 4096)
                for client in clients:
                    client.answer(0)
                block += 977  # another leaf each time
        finally:
            os._exit(0)
    return child


def kill_when_full(store):
    """Lets the load run, and kills the daemon when its log is nearly as long as it was at most."""
    most = before = since = 0
    began = time.monotonic()
    while True:
        last, (since, running) = since, store.log()
        if since < last:
            before = last  # what the checkpoint that began covers counts until it ends
        log = since + (before if running else 0)
        watched = time.monotonic() - began
        if watched > WATCH_S and (log >= most * NEARLY or watched > 3 * WATCH_S):
            return store.kill()
        most = max(most, log)


def wait_for_room(folder, bytes_needed):
    """The kernel gives a killed process's files up a moment after it."""
    def free():
        disk = os.statvfs(folder)
        return disk.f_bavail * disk.f_frsize
    end = time.monotonic() + 10
    while free() < bytes_needed:
        if time.monotonic() > end:
            sys.exit(f"{folder} needs {bytes_needed / 2**30:.1f} GiB of free space; name another disk, or a smaller "
                     "--store-size")
        time.sleep(0.1)


def run_case(name, volumes, size, options, args):
    print(f"{name}:", end="", file=sys.stderr, flush=True)
    rounds = []
    for _ in range(args.rounds):
        rounds.append(run_round(volumes, size, options, args))
        print(f" {rounds[-1]['read_s']:.2f} s", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return rounds


def run_round(volumes, size, options, args):
    """In a store of its own: scattered writes fill one soon."""
    store = Store(f"{args.dir}/store", args)
    wait_for_room(args.dir, int(args.store_size.removesuffix("GiB")) << 30)
    try:
        store.spawn()
        if not store.process.stdout.readline():
            with open(f"{store.folder}.log") as log:
                sys.exit(f"eskerd does not start: {log.read()}")
        for n in range(volumes):
            store.esker("volume", "create", f"bench{n}", "--size", f"{size >> 20}MiB")
        if size == 4 << 30:  # one that fits is written full
            where = ["--ioengine=nbd", f"--uri=nbd+unix:///bench0?socket={store.socket}"]
            fio_table.fio(where, size, 0, ["--rw=write", "--bs=1m", "--iodepth=8"], f"{args.dir}/fio")
        if options:
            load = fio_load(store, size, options)
            kill_when_full(store)
            load.wait()
        else:
            load = many_load(store, volumes, size)
            kill_when_full(store)
            os.waitpid(load, 0)
        read_s, write_s = store.first_io()
        resident, peak = store.status_mib("VmRSS"), store.status_mib("VmHWM")
        store.process.stdout.readline()
        m = store.metrics()
        return {
            "read_s": read_s, "write_s": write_s, "resident_mib": resident, "peak_mib": peak,
            "open_s": m["esker_recovery_duration_seconds"], "records": m["esker_recovery_records"],
            "scanned_mib": m["esker_recovery_scanned_bytes"] / 2**20}
    finally:
        store.kill()
        shutil.rmtree(store.folder, ignore_errors=True)


def print_table(results, machine):
    print(machine + "\n")
    print("| volumes | log read | records | the store opens | first read: median, most | first durable write: median, "
          "most | memory then, at most until then |")
    print("|---" * 7 + "|")
    for name, rounds in results.items():
        def of(key, how=statistics.median):
            return how([r[key] for r in rounds])
        print(f"| {name} | {of('scanned_mib'):.0f} MiB | {of('records'):,.0f} | {of('open_s'):.2f} s | "
              f"{of('read_s'):.2f} s, {of('read_s', max):.2f} s | {of('write_s'):.2f} s, {of('write_s', max):.2f} s | "
              f"{of('resident_mib'):.0f} MiB, {of('peak_mib', max):.0f} MiB |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", required=True, help="new scratch folder on the disk to measure; removed afterwards")
    parser.add_argument("--bin", default="target/release", help="folder with eskerd and esker")
    parser.add_argument("--store-size", default="14GiB", help="whole GiB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", default="", help="only cases that match this regular expression")
    parser.add_argument("--json", help="write everything that was measured here")
    args = parser.parse_args()
    if os.path.exists(args.dir):
        sys.exit(f"{args.dir} exists; name a new folder")
    os.makedirs(args.dir)
    try:
        cases = [case for case in CASES if re.search(args.cases, case[0])]
        results = {case[0]: run_case(*case, args) for case in cases}
    finally:
        shutil.rmtree(args.dir)
    machine = (f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}, "
               f"{time.strftime('%Y-%m-%d')}; {args.rounds} rounds, store of {args.store_size}")
    print_table(results, machine)
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"machine": machine, "results": results}, f, indent=1)


if __name__ == "__main__":
    main()
