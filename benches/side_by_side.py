#!/usr/bin/env python3
"""Esker beside its alternatives on one machine, one disk, in one run: the raw file, qemu-nbd on raw
and on qcow2, and nbdkit's file plugin.

Every row of the fio table (fio_table.py) is measured on every target in turn, for several rounds, each
round in another order, so that a machine whose speed drifts treats them alike. What counts is the ratio
within a round; the median and the range over the rounds are printed. Besides: CPU time of the server
per I/O, bytes to the device per client byte, memory, CPU with no I/O, and the time from kill -9 to the
first I/O. Prints a table; --json and --svg write files.

Whether the device is measured and not a cache is checked, not assumed: the files are written full
before, those of raw, qemu-nbd and eskerd must be open with O_DIRECT, and what a row reads or writes
must have gone through the block layer (/proc/PID/io). A target that fails is marked with *; nbdkit has
no O_DIRECT and is marked always.

Needs fio, qemu-utils, nbdkit, and release builds of eskerd and esker
(cargo build --release -p esker-daemon -p esker-cli). Everything happens in one scratch folder (--dir).
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

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import fio_table  # noqa: E402
import measuring  # noqa: E402
import plot  # noqa: E402

TARGETS = ["raw", "qemu-nbd", "qcow2", "nbdkit", "esker"]
O_DIRECT = 0o40000
PATIENCE_S = 60


class Target:
    """A way to store a volume: how its server is started, where its bytes are."""

    def __init__(self, name, folder, args):
        self.name, self.args, self.process = name, args, None
        self.folder = f"{folder}/{name}"
        os.makedirs(self.folder)
        self.socket = f"{self.folder}/nbd.sock"
        self.file = f"{self.folder}/disk"

    def where(self):
        if self.name == "raw":
            return ["--ioengine=io_uring", "--direct=1", f"--filename={self.file}"]
        export = "bench" if self.name == "esker" else ""
        return ["--ioengine=nbd", f"--uri=nbd+unix:///{export}?socket={self.socket}"]

    def command(self):
        if self.name == "esker":
            return [f"{self.args.bin}/eskerd", "--data", self.folder, "--store-size", self.args.store_size,
                    "--nbd", "none", "--metrics", "none"]
        if self.name == "nbdkit":
            return ["nbdkit", "-f", "-U", self.socket, "file", self.file]
        form = "raw" if self.name == "qemu-nbd" else "qcow2"
        return ["qemu-nbd", f"--format={form}", "--cache=none", "--aio=io_uring", "--persistent", "--shared=8",
                f"--socket={self.socket}", self.file]

    def create(self):
        size = self.args.size.replace("iB", "")
        if self.name in ("qemu-nbd", "qcow2"):
            form = "raw" if self.name == "qemu-nbd" else "qcow2"
            run(["qemu-img", "create", "-f", form, self.file, size])
        elif self.name in ("raw", "nbdkit"):
            run(["truncate", "-s", size, self.file])
        self.start()
        if self.name == "esker":
            run([f"{self.args.bin}/esker", "--data", self.folder, "volume", "create", "bench", "--size", self.args.size])

    def start(self):
        if self.name == "raw":
            return
        if os.path.exists(self.socket):
            os.remove(self.socket)
        ready = self.name == "esker"
        self.process = subprocess.Popen(self.command(), stdout=subprocess.PIPE if ready else subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        if ready:
            self.process.stdout.readline()
        fio_table.wait_for(self.socket, self.process)

    def stop(self, how=signal.SIGTERM):
        if self.process:
            self.process.send_signal(how)
            self.process.wait()
            self.process = None

    def proc(self, name):
        with open(f"/proc/{self.process.pid}/{name}") as f:
            return f.read()

    def counters(self):
        """CPU seconds, bytes read from and written to the block layer so far."""
        if not self.process:
            return (0, 0, 0)
        io = dict(line.split(": ") for line in self.proc("io").splitlines())
        return (measuring.cpu_seconds(self.process.pid), int(io["read_bytes"]), int(io["write_bytes"]))

    def resident_mib(self):
        pages = re.search(r"VmRSS:\s+(\d+) kB", self.proc("status"))
        return int(pages.group(1)) / 1024

    def is_direct(self):
        """Whether its files are open with O_DIRECT."""
        if self.name == "raw":
            return True
        for fd in os.listdir(f"/proc/{self.process.pid}/fd"):
            try:
                path = os.readlink(f"/proc/{self.process.pid}/fd/{fd}")
                info = self.proc(f"fdinfo/{fd}")
            except OSError:
                continue
            flags = int(re.search(r"flags:\s+(\d+)", info).group(1), 8)
            if path.startswith(self.folder) and os.path.isfile(path) and os.path.getsize(path) > 1 << 20:
                if flags & O_DIRECT:
                    return True
        return False


def run(command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def bytes_of(size):
    number, unit = re.fullmatch(r"(\d+)([MGT])iB", size).groups()
    return int(number) << {"M": 20, "G": 30, "T": 40}[unit]


def measure(target, arguments, args, out):
    before = target.counters()
    size = args.size.replace("iB", "").lower()
    result = fio_table.fio(target.where(), size, args.seconds, arguments, out)
    after = target.counters()
    # The ramp of a second is not in fio's count; scale to what is.
    share = args.seconds / (args.seconds + 1)
    cpu, read, written = ((b - a) * share for a, b in zip(before, after))
    block = 1 << 20 if "--bs=1m" in arguments else 4096
    client = result["ios"] * block
    writes = any("write" in a for a in arguments)
    result["cpu_us"] = cpu / result["ios"] * 1e6
    result["device_per_client_byte"] = (written if writes else read) / client
    # Not one: the ramp is not cut as exactly as fio's count.
    result["device"] = target.name == "raw" or result["device_per_client_byte"] > 0.8
    return result


def first_io_after_kill(target):
    """Seconds from the start of a server that was killed to the first block read from it."""
    target.stop(signal.SIGKILL)
    if os.path.exists(target.socket):
        os.remove(target.socket)
    began = time.monotonic()
    target.process = None
    while time.monotonic() < began + PATIENCE_S:
        # The kernel ends a killed process's io_uring a little later, and with it the lock of its
        # file: a server that gives up over that is started again, as a service manager would.
        if target.process is None or target.process.poll() is not None:
            target.process = subprocess.Popen(target.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            read_block(target.socket, b"bench" if target.name == "esker" else b"")
            return time.monotonic() - began
        except (OSError, struct.error):
            time.sleep(0.002)
    sys.exit(f"{target.name} does not serve {PATIENCE_S} s after kill -9")


def read_block(path, export):
    """Attaches, reads the first 4 KiB, leaves."""
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(10)
        s.connect(path)

        def take(count):
            data = b""
            while len(data) < count:
                part = s.recv(count - len(data))
                if not part:
                    raise OSError("closed")
                data += part
            return data
        take(18)
        go = struct.pack(">I", len(export)) + export + b"\0\0"
        s.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 7, len(go)) + go)
        while True:
            _, _, kind, length = struct.unpack(">QIII", take(20))
            take(length)
            if kind >> 31:
                raise OSError("refused")
            if kind == 1:
                break
        s.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 1, 0, 4096))
        _, error, _ = struct.unpack(">IIQ", take(16))
        if error:
            raise OSError("read failed")
        take(4096)


def idle_percent(target, seconds):
    time.sleep(1)
    before = target.counters()[0]
    time.sleep(seconds)
    return (target.counters()[0] - before) / seconds * 100


def busy_without_us(seconds):
    """Share of the machine's CPU time that others use: servers are idle, we sleep."""
    def sample():
        with open("/proc/stat") as f:
            fields = [int(n) for n in f.readline().split()[1:]]
        return fields[3] + fields[4], sum(fields[:8])
    idle, total = sample()
    time.sleep(seconds)
    idle_after, total_after = sample()
    return 1 - (idle_after - idle) / (total_after - total)


def load_and_kill(target, args, out):
    """Random writes for a few seconds, then kill -9."""
    size = args.size.replace("iB", "").lower()
    load = subprocess.Popen(["fio", "--name=load", f"--size={size}", "--rw=randwrite", "--bs=4k", "--iodepth=32",
                             "--time_based", "--runtime=30", f"--output={out}"] + target.where(),
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(min(5, args.seconds))
    seconds = first_io_after_kill(target)
    load.kill()
    load.wait()
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", required=True, help="new scratch folder on the disk to measure; removed afterwards")
    parser.add_argument("--bin", default="target/release", help="folder with eskerd and esker")
    parser.add_argument("--size", default="4GiB", help="of the volume; larger than any cache of the servers")
    parser.add_argument("--store-size", default="28GiB", help="of eskerd's store")
    parser.add_argument("--seconds", type=int, default=8, help="per measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--targets", default=",".join(TARGETS), help="only these; esker is always there")
    parser.add_argument("--rows", default="", help="only rows that match this regular expression")
    parser.add_argument("--json", help="write everything that was measured here")
    parser.add_argument("--svg", help="draw the ratios here")
    args = parser.parse_args()
    if os.path.exists(args.dir):
        sys.exit(f"{args.dir} exists; name a new folder")
    names = [n for n in TARGETS if n in args.targets.split(",") or n == "esker"]
    os.makedirs(args.dir)
    disk = os.statvfs(args.dir)
    needed = bytes_of(args.size) * (len(names) - 1) + bytes_of(args.store_size)
    if needed * 1.1 > disk.f_bavail * disk.f_frsize:
        os.rmdir(args.dir)
        sys.exit(f"{args.dir} needs {needed * 1.1 / 2**30:.0f} GiB of free space; name another disk, or a smaller "
                 "--size and --store-size")
    if bytes_of(args.size) < 1 << 30:
        print("a volume below 1 GiB may fit a cache of a server; the numbers are for trying the script only",
              file=sys.stderr)
    targets = []
    try:
        for name in names:
            target = Target(name, args.dir, args)
            targets.append(target)
            target.create()
        print_results(take(targets, args), args)
    finally:
        for target in targets:
            target.stop()
        shutil.rmtree(args.dir)


def take(targets, args):
    out = f"{args.dir}/fio.json"
    size = args.size.replace("iB", "").lower()
    others = busy_without_us(3)
    for target in targets:
        fio_table.fio(target.where(), size, 0, ["--rw=write", "--bs=1m", "--iodepth=8"], out)
    rows = [row for row in fio_table.ROWS if re.search(args.rows, row[0])]
    facts = {t.name: {"direct": t.is_direct()} for t in targets}
    runs = {}
    for number in range(args.rounds):
        for row, arguments in rows:
            turn = number % len(targets)
            for target in targets[turn:] + targets[:turn]:
                runs.setdefault(row, {}).setdefault(target.name, []).append(measure(target, arguments, args, out))
            print(f"round {number + 1}: {row}", file=sys.stderr)
    for target in (t for t in targets if t.process):
        facts[target.name]["resident_mib"] = target.resident_mib()
        facts[target.name]["idle_percent"] = idle_percent(target, 10)
        facts[target.name]["first_io_s"] = [load_and_kill(target, args, out) for _ in range(args.rounds)]
    machine = (f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}, "
               f"{time.strftime('%Y-%m-%d')}; {args.rounds} rounds of {args.seconds} s, {args.size} volume")
    return {"machine": machine, "other_load": others, "runs": runs, "facts": facts}


def ratios(by_name, other):
    return sorted(e["iops"] / o["iops"] for e, o in zip(by_name["esker"], by_name[other]))


def print_results(results, args):
    names = list(results["facts"])
    others = [n for n in names if n != "esker"]
    print(results["machine"] + "; medians, and the range of the ratio over the rounds\n")
    if results["other_load"] > 0.05:
        print(f"**Not to be quoted:** before the run others used {results['other_load']:.0%} of the machine.\n")
    print("| row | " + " | ".join(names) + " | " + " | ".join(f"esker / {n}" for n in others) + " |")
    print("|---" * (1 + len(names) + len(others)) + "|")
    for row, by_name in results["runs"].items():
        cells = []
        for name in names:
            doubt = results["facts"][name]["direct"] and all(r["device"] for r in by_name[name])
            cells.append(f"{statistics.median(r['iops'] for r in by_name[name]):,.0f}{'' if doubt else '*'}")
        for name in others:
            r = ratios(by_name, name)
            cells.append(f"{statistics.median(r):.2f} ({r[0]:.2f}–{r[-1]:.2f})")
        print(f"| {row} | " + " | ".join(cells) + " |")
    served = [n for n in names if n != "raw"]
    print("\n| per I/O | " + " | ".join(f"{n}: CPU, device bytes per client byte" for n in served) + " |")
    print("|---" * (1 + len(served)) + "|")
    for row, by_name in results["runs"].items():
        def median(name, key):
            return statistics.median(r[key] for r in by_name[name])
        cells = [f"{median(n, 'cpu_us'):.1f} µs, {median(n, 'device_per_client_byte'):.2f}" for n in served]
        print(f"| {row} | " + " | ".join(cells) + " |")
    print("\n| server | resident memory | CPU with no I/O | kill -9 to first I/O |")
    print("|---|---|---|---|")
    for name in served:
        fact = results["facts"][name]
        print(f"| {name} | {fact['resident_mib']:.0f} MiB | {fact['idle_percent']:.1f} % | "
              f"{max(fact['first_io_s']):.3f} s at most of {len(fact['first_io_s'])} |")
    print("\n* not through the device alone: served by a cache, or written through one")
    if args.json:
        with open(args.json, "w") as f:
            json.dump(results, f, indent=1)
    if args.svg:
        bars = [(row, [(n, ratios(by_name, n)) for n in others]) for row, by_name in results["runs"].items()]
        with open(args.svg, "w") as f:
            f.write(plot.ratios("Esker beside others: IOPS as a ratio, higher is better", results["machine"], bars))


if __name__ == "__main__":
    main()
