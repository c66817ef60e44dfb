#!/usr/bin/env python3
"""Three copies of a volume on this machine, over loopback: Esker beside one copy of its own and, if there is one, a Ceph cluster.

Every row is measured on every target in turn, for several rounds, each round in another order; only one of them is busy at a
time, and what counts is the ratio within a round. Targets:

three  a volume with a copy on each of three eskerd; fio's nbd engine over the unix socket of the node that leads it, in one row
       of a node that follows
one    a volume with one copy, in one of the same three daemons, over the same socket; that answers writes of a unix
       socket before they are durable, as a disk with a write cache does, and `three` only once a majority has them durable
ceph   an RBD image in a running cluster (--ceph-conf, --rbd), by fio's rbd engine. Bring it up by whatever means, all of it on
       this machine and this disk, with 3 copies (pool size 3, min_size 2); the image has to have the size of --size, and
       is written over
raw    fio io_uring O_DIRECT on a file of the same filesystem, for the rows of 1 MiB only: what the disk takes

CPU is that of all daemons (three eskerd; mon, mgr and OSDs), fio's own not counted; bytes to the devices are those that the
daemons hand to the block layer (write_bytes of /proc/PID/io), for each byte that the client wrote. Both include what is
done within --settle seconds after a row. There is no ramp: a row counts from its first I/O.

The volumes are written full before. Stores have to be open with O_DIRECT; a row of reads or writes that did not go through
the block layer is marked with *: a cache of its own served it.

Needs fio (nbd engine; rbd for Ceph) and release builds of eskerd and esker. Everything but Ceph happens in one scratch
folder (--dir). --quick only shows that the script works: its numbers say nothing.
"""

import argparse
import glob
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import admin  # noqa: E402
import fio_table  # noqa: E402
import measuring  # noqa: E402
import replicated_report  # noqa: E402
import side_by_side  # noqa: E402
from cluster import Cluster  # noqa: E402

FOLLOWER = "random write, qd 32, client at a follower"
SNAPSHOT = "snapshots while writing, qd 32"
ROWS = fio_table.ROWS + [(FOLLOWER, fio_table.ROWS[0][1]), (SNAPSHOT, fio_table.ROWS[0][1])]


class Esker:
    """A volume of the three daemons."""

    def __init__(self, name, cluster, volume, node=None):
        self.name, self.cluster, self.volume, self.only = name, cluster, volume, node

    def node(self):
        """The only one that has it, or the one that leads it."""
        return self.only or self.cluster.leader(name=self.volume)

    def has(self, row):
        return row not in (FOLLOWER, SNAPSHOT) or self.name == "three"

    def where(self, row):
        node = self.node()
        if row == FOLLOWER:
            node = next(n for n in self.cluster.nodes.values() if n is not node)
        return ["--ioengine=nbd", f"--uri={node.uri(self.volume)}"]

    def pids(self):
        return [node.process.pid for node in self.cluster.nodes.values()]

    def leading(self):
        return self.node().id

    def take_snapshot(self, name):
        self.node().esker("snapshot", "create", f"{self.volume}@{name}")

    def delete_snapshot(self, name):
        self.node().esker("snapshot", "delete", f"{self.volume}@{name}")

    def command_s(self):
        """What a command takes that changes nothing, of which a snapshot's is."""
        return timed(lambda: self.node().esker("volume", "list"))


class Ceph:
    """An image of a cluster that runs already."""

    def __init__(self, args):
        self.name, self.args = "ceph", args
        self.pool, _, self.image = args.rbd.partition("/")
        self.leading = lambda: None

    def has(self, row):
        return row != FOLLOWER

    def where(self, _):
        return ["--ioengine=rbd", "--clientname=admin", f"--pool={self.pool}", f"--rbdname={self.image}"]

    def pids(self):
        found = []
        for path in glob.glob("/proc/[0-9]*/comm"):
            try:
                with open(path) as f:
                    comm = f.read()
                with open(path.replace("comm", "cmdline")) as f:
                    words = f.read()
            except OSError:
                continue
            if comm.startswith("ceph-") and self.args.ceph_conf in words:
                found.append(int(path.split("/")[2]))
        return found

    def rbd(self, *words):
        command = ["rbd", "--conf", self.args.ceph_conf, *words]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def take_snapshot(self, name):
        self.rbd("snap", "create", "--no-progress", f"{self.args.rbd}@{name}")

    def delete_snapshot(self, name):
        self.rbd("snap", "rm", "--no-progress", f"{self.args.rbd}@{name}")

    def command_s(self):
        return timed(lambda: self.rbd("info", self.args.rbd))


class Raw:
    def __init__(self, folder):
        self.name, self.file = "raw", f"{folder}/raw"
        self.leading = lambda: None

    def has(self, row):
        return row.startswith("1 MiB")

    def where(self, _):
        return ["--ioengine=io_uring", "--direct=1", f"--filename={self.file}"]

    def pids(self):
        return []


def timed(what):
    began = time.monotonic()
    what()
    return time.monotonic() - began


def counters(pids):
    """CPU seconds, bytes read from and written to the block layer, of all of them."""
    cpu, read, written = 0, 0, 0
    for pid in pids:
        cpu += measuring.cpu_seconds(pid)
        with open(f"/proc/{pid}/io") as f:
            io = dict(line.split(": ") for line in f.read().splitlines())
        read, written = read + int(io["read_bytes"]), written + int(io["write_bytes"])
    return cpu, read, written


def is_direct(pids):
    """Whether every one of them that has a large file open has it open with O_DIRECT."""
    found = []
    for pid in pids:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                path = os.readlink(f"/proc/{pid}/fd/{fd}")
                with open(f"/proc/{pid}/fdinfo/{fd}") as f:
                    flags = int(re.search(r"flags:\s+(\d+)", f.read()).group(1), 8)
                large = os.path.isfile(path) and os.path.getsize(path) > 256 << 20
            except OSError:
                continue
            if large:
                found.append((path, bool(flags & side_by_side.O_DIRECT)))
    # Ceph has its file open both ways, and reads through the cache at its start only.
    return bool(found) and all(any(direct for p, direct in found if p == path) for path, _ in found)


def measure(target, row, arguments, args):
    pids, leading = target.pids(), target.leading()
    command = ["fio", "--name=row", f"--size={args.bytes}", "--time_based", f"--runtime={args.seconds}",
               "--randrepeat=0"] + target.where(row) + arguments
    before = counters(pids)
    job = measuring.fio(command, f"{args.dir}/fio.json")
    time.sleep(args.settle)
    cpu, read, written = (b - a for a, b in zip(before, counters(pids)))
    result = dict(measuring.outcome(job), p99_us=measuring.p99_us(job))
    side = job["write"] if "write" in arguments[0] else job["read"]
    moved = written if "write" in arguments[0] else read
    result["cpu_us"] = measuring.over(cpu * 1e6, result["ios"])
    result["device_per_client_byte"] = measuring.over(moved, side["io_bytes"])
    result["device"] = target.name == "raw" or (result["device_per_client_byte"] or 0) > 0.8
    result["leader_moved"] = target.leading() != leading
    return result


def iops_between(lines, begin, end):
    values = [value for at, value in lines if begin <= at <= end]
    return sum(values) / len(values) if values else None


def measure_snapshots(target, row, arguments, args):
    """Snapshots at regular times while fio writes: how long each took, and the IOPS around it."""
    every = 2 * args.window
    runtime = every * (args.snapshots + 1)
    log = f"{args.dir}/snap"
    command = ["fio", "--name=row", f"--size={args.bytes}", "--time_based", f"--runtime={runtime:.0f}", "--randrepeat=0",
               f"--write_iops_log={log}", "--log_avg_msec=100", "--log_unix_epoch=1"] + target.where(row) + arguments
    api = admin.Admin(target.node().data) if isinstance(target, Esker) else None
    found = {"command_alone_ms": [target.command_s() * 1000 for _ in range(3)], "command_ms": [], "api_ms": [], "at": []}
    done = {}

    def write():
        try:
            done["job"] = measuring.fio(command, f"{args.dir}/fio.json")
        except SystemExit as error:  # of a thread nobody would hear
            done["error"] = error
    load = threading.Thread(target=write)
    load.start()
    time.sleep(every)
    for n in range(args.snapshots):
        at, name = time.time(), f"{os.getpid()}-{args.number}-{n}"
        if api and n % 2:
            found["api_ms"].append(timed(lambda: api.ask("CreateSnapshot", target.volume, name)) * 1000)
        else:
            found["command_ms"].append(timed(lambda: target.take_snapshot(name)) * 1000)
        found["at"].append((at, time.time(), name))
        time.sleep(max(0, at + every - time.time()))
    load.join()
    if "error" in done:
        raise done["error"]
    for _, _, name in found["at"]:
        target.delete_snapshot(name)
    with open(f"{log}_iops.1.log") as f:
        lines = [(int(words[0]) / 1000, int(words[1])) for words in (line.split(",") for line in f)]
    os.remove(f"{log}_iops.1.log")
    found["kept"] = [measuring.over(iops_between(lines, began, began + args.window),
                                    iops_between(lines, began - args.window, began)) for began, _, _ in found.pop("at")]
    found.update(measuring.outcome(done["job"]))
    return found


def idle(target, seconds):
    """Share of one processor that its daemons use with nothing to do."""
    before = counters(target.pids())[0]
    time.sleep(seconds)
    return (counters(target.pids())[0] - before) / seconds


def take(targets, args):
    facts = {"others": side_by_side.busy_without_us(1 if args.quick else 3)}
    for target in targets:
        fio_table.fio(target.where(""), args.bytes, 0, ["--rw=write", "--bs=1m", "--iodepth=8"], f"{args.dir}/fio.json")
    facts["direct"] = {t.name: is_direct(t.pids()) for t in targets if t.pids()}
    facts["idle"] = {t.name: idle(t, 1 if args.quick else 5) for t in targets if t.pids()}
    rows = [row for row in ROWS if re.search(args.rows, row[0])]
    if not rows:
        raise SystemExit(f"replicated.py: no row matches {args.rows!r}; there are: {'; '.join(row[0] for row in ROWS)}")
    runs = {row: {t.name: [] for t in targets if t.has(row)} for row, _ in rows}
    for args.number in range(args.rounds):
        turn = (args.number + args.turn) % len(targets)
        for row, arguments in rows:
            for target in targets[turn:] + targets[:turn]:
                if target.has(row):
                    how = measure_snapshots if row == SNAPSHOT else measure
                    runs[row][target.name].append(how(target, row, arguments, args))
            print(f"round {args.number + 1}: {row}", file=sys.stderr)
    machine = (f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}, "
               f"{time.strftime('%Y-%m-%d')}; rows of {args.seconds} s, {args.size} volume"
               + (", encrypted" if args.encrypt else ""))
    return {"machine": machine, "facts": [facts], "runs": runs}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", required=True, help="new scratch folder on the disk to measure; removed afterwards")
    parser.add_argument("--bin", default="target/release", help="folder with eskerd and esker")
    parser.add_argument("--size", default="2GiB", help="of each volume")
    parser.add_argument("--store-size", default="12GiB", help="of each of the three stores")
    parser.add_argument("--seconds", type=int, default=8, help="per measurement")
    parser.add_argument("--settle", type=float, default=2, help="seconds after a row that its CPU and bytes include")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--snapshots", type=int, default=4, help="in the row with snapshots")
    parser.add_argument("--rows", default="", help="only rows that match this regular expression")
    parser.add_argument("--targets", default="three,one,ceph,raw", help="only these, comma-separated")
    parser.add_argument("--ceph-conf", help="ceph.conf of a cluster that runs")
    parser.add_argument("--rbd", help="POOL/IMAGE in it, to be written over")
    parser.add_argument("--encrypt", action="store_true", help="the volumes of eskerd are encrypted")
    parser.add_argument("--turn", type=int, default=0, help="which target begins")
    parser.add_argument("--add", action="append", default=[], help="--json file of an earlier run whose rounds count, too")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", help="write everything that was measured here")
    args = parser.parse_args()
    if bool(args.ceph_conf) != bool(args.rbd):
        parser.error("--ceph-conf and --rbd belong together")
    if args.quick:
        args.size, args.store_size, args.seconds, args.settle = "64MiB", "1GiB", 1, 0
        args.rounds, args.snapshots = 1, 2
    # Of IOPS that are compared before a snapshot and after, on each side.
    args.window = 0.4 if args.quick else 1.5
    args.bytes = fio_table.bytes_of(args.size)
    return args


def main():
    args = arguments()
    if os.path.exists(args.dir):
        sys.exit(f"{args.dir} exists; name a new folder")
    os.makedirs(args.dir)
    cluster = None
    try:
        if args.ceph_conf:
            os.environ["CEPH_CONF"] = args.ceph_conf = os.path.abspath(args.ceph_conf)
        encrypt = ["--encrypt"] if args.encrypt else []
        cluster = Cluster(args.dir, args.bin, args.store_size, args.bytes, *encrypt)
        node = cluster.leader()
        node.esker("volume", "create", "one", "--size", args.size, *encrypt)
        targets = [Esker("three", cluster, "v"), Esker("one", cluster, "one", node)]
        targets += [Ceph(args)] if args.ceph_conf else []
        targets = [t for t in targets + [Raw(args.dir)] if t.name in args.targets.split(",")]
        for target in targets:
            if target.name == "ceph" and not target.pids():
                sys.exit(f"no daemon runs with {args.ceph_conf}")
        results = take(targets, args)
    finally:
        if cluster:
            cluster.stop()
        shutil.rmtree(args.dir)
    for path in args.add:
        with open(path) as f:
            replicated_report.add(results, json.load(f))
    replicated_report.show(results)
    if args.json:
        with open(args.json, "w") as f:
            json.dump(results, f, indent=1)


if __name__ == "__main__":
    main()
