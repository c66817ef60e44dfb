#!/usr/bin/env python3
"""What 1, 10, … 10,000 snapshots of a volume cost eskerd, and beside it what they cost qcow2.

One eskerd ("bench") takes snapshots of a volume under continuing random 4 KiB writes, the last ones of each
count under a full load of them; another one, with a store of its own and no snapshot ("none"), is measured
beside it, in turn. At each count of
snapshots, once the load has stopped: random reads and writes of both (what counts is the ratio within a
round), bytes to the device per byte written, what a checkpoint writes when one block has changed, memory,
the time of a listing and of a scrape of the metrics, and the time from kill -9 to the first I/O. How long
a snapshot takes is timed under the full load, over one connection to the admin API; beside it, from the same
client, in the same load, a durable write of one block (one log write) and a request that is refused (the
way to the admin API and back); and what the load writes meanwhile is compared with a second of it alone. At the end, under the load, snapshots are cloned and deleted. Stores fill with what snapshots keep, so that
later counts pay for collecting garbage among it; with --fresh each count has new stores.

qcow2 has its snapshots taken by qemu-img while nothing writes, since nothing else can; one pass of random
writes over part of the image lies between two counts. It is given up when a count takes longer than
--patience.

Needs fio, release builds of eskerd and esker (cargo build --release -p esker-daemon -p esker-cli), and
qemu-utils unless --no-qcow2. Everything happens in one scratch folder (--dir) on the disk to measure.
--quick only shows that the script works: its numbers say nothing.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import admin  # noqa: E402
import fio_table  # noqa: E402
import measuring  # noqa: E402
import plot  # noqa: E402
import start  # noqa: E402

ROWS = [
    ("random write, qd 32", ["--rw=randwrite", "--bs=4k", "--iodepth=32"]),
    ("random read, qd 32", ["--rw=randread", "--bs=4k", "--iodepth=32"]),
]
LOAD = ["--rw=randwrite", "--bs=4k", "--iodepth=32", "--norandommap", "--randrepeat=0"]
# Snapshots of each count that are taken under the full load. Each of them keeps what was written since the
# one before, and the map nodes of it, so that all of 10,000 would fill a disk; the others are taken under
# so many writes per second.
TIMED_MAX = 500
BULK = ["--rate_iops=4000"]


def quantiles(seconds):
    """Of latencies, in milliseconds."""
    ordered = sorted(seconds)

    def at(share):
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000
    return {"count": len(ordered), "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": ordered[-1] * 1000}


def timed(action):
    began = time.monotonic()
    action()
    return time.monotonic() - began


class Esker(start.Store):
    """An eskerd with one volume, part of which is used."""

    name = "esker"

    def __init__(self, folder, args):
        super().__init__(folder, args)
        os.makedirs(folder, exist_ok=True)
        self.where = ["--ioengine=nbd", f"--uri=nbd+unix:///bench0?socket={self.socket}"]
        self.spawn()
        self.ready()
        self.esker("volume", "create", "bench0", "--size", args.volume)
        fill(self, args)

    def ready(self):
        if not self.process.stdout.readline():
            with open(f"{self.folder}.log") as log:
                sys.exit(f"eskerd does not start: {log.read()}")

    def written(self):
        """Bytes to the device so far."""
        with open(f"/proc/{self.process.pid}/io") as f:
            return int(dict(line.split(": ") for line in f.read().splitlines())["write_bytes"])

    def restart(self):
        """Kills it under load; seconds to the first read, and to the first durable write."""
        load = fio_load(self, self.args)
        time.sleep(self.args.seconds)
        self.kill()
        load.wait()
        times = self.first_io()
        self.ready()
        return times


def size_of(args):
    return fio_table.bytes_of(args.area)


def fill(target, args):
    fio_table.fio(target.where, size_of(args), 0, ["--rw=write", "--bs=1m", "--iodepth=8"], f"{args.dir}/fio")


def fio_load(target, args, options=()):
    # A thread, since a process of its own would outlive its killed parent.
    return subprocess.Popen(["fio", "--name=load", "--thread", f"--size={size_of(args)}", "--time_based",
                             "--runtime=3600", f"--output={args.dir}/load"] + LOAD + target.where + list(options),
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Load:
    """Random writes as long as it lasts."""

    def __init__(self, target, args, options=()):
        self.process = fio_load(target, args, options)
        time.sleep(1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def cpu_ns(target):
    """Time that all threads of a server have run."""
    total = 0
    for task in os.listdir(f"/proc/{target.process.pid}/task"):
        try:
            with open(f"/proc/{target.process.pid}/task/{task}/schedstat") as f:
                total += int(f.read().split()[0])
        except OSError:  # it has ended
            pass
    return total


def measure(target, arguments, args):
    out = f"{args.dir}/fio.json"
    before = cpu_ns(target)
    result = fio_table.fio(target.where, size_of(args), args.seconds, arguments + ["--norandommap", "--randrepeat=0"],
                           out)
    # The ramp of a second is not in fio's count.
    used = (cpu_ns(target) - before) / 1000 * args.seconds / (args.seconds + 1)
    result["cpu_us"] = measuring.over(used, result["ios"])
    return result


def rounds(target, none, args):
    """Of a target and of the one without snapshots, in turn."""
    rows = {row: {"bench": [], "none": []} for row, _ in ROWS}
    for number in range(args.rounds):
        for row, arguments in ROWS:
            pair = [("bench", target), ("none", none)]
            for name, one in pair[::-1] if number % 2 else pair:
                rows[row][name].append(measure(one, arguments, args))
    return rows


def take_snapshots(esker, first, last, args):
    """Snapshots first+1 … last; how long the last of them took, and how long other requests did then."""
    api = admin.Admin(esker.folder)

    def take(number):
        return timed(lambda: api.ask("CreateSnapshot", "bench0", f"s{number + 1}"))
    timed_from = max(first, last - TIMED_MAX)
    if timed_from > first:
        with Load(esker, args, BULK):
            for number in range(first, timed_from):
                take(number)
    took, write, ask = [], [], []

    def time_them():
        for number in range(timed_from, last):
            took.append(take(number))
            write.append(timed(lambda: durable_write(client, 5, b"\x5a")))
            ask.append(timed(lambda: refused(api)))
    share = 1.0
    if last > first:
        client = start.Client(esker.socket, "bench0")
        with Load(esker, args):
            alone = rate(esker, lambda: time.sleep(1))
            share = rate(esker, time_them) / alone
        client.socket.close()
    api.close()
    if not took:
        return {}
    return {"create": quantiles(took), "log_write": quantiles(write), "ask": quantiles(ask), "load_share": share}


def rate(esker, action):
    """Bytes that clients write per second while something goes on."""
    before, began = esker.metrics()["esker_client_written_bytes_total"], time.monotonic()
    action()
    return (esker.metrics()["esker_client_written_bytes_total"] - before) / (time.monotonic() - began)


def refused(api):
    """A request that changes nothing."""
    try:
        api.ask("DeleteSnapshot", "bench0", "none")
    except admin.Refused:
        return
    sys.exit("a snapshot that is not there was deleted")


def durable_write(client, block, byte):
    client.ask(start.WRITE, start.FUA, block, byte * 4096)
    client.answer(0)


def idle_checkpoint(esker):
    """Bytes that a checkpoint writes when one block has changed."""
    api, client = admin.Admin(esker.folder), start.Client(esker.socket, "bench0")
    for _ in range(4):  # what was deleted is taken apart by several
        api.ask("Checkpoint")
    least = None
    for n in range(3):
        durable_write(client, 7, bytes([n]))
        before = esker.written()
        took = timed(lambda: api.ask("Checkpoint"))
        written = esker.written() - before
        least = min(least or (written, took), (written, took))
    api.close()
    client.socket.close()
    return {"bytes": least[0], "ms": least[1] * 1000}


def look(esker, count, args):
    """Everything but reads and writes, at one count of snapshots."""
    def cli(*words):
        out = subprocess.run([f"{args.bin}/esker", "--data", esker.folder, "-o", "json", *words], check=True,
                             stdout=subprocess.PIPE)
        return json.loads(out.stdout)
    found = {}
    for key, words in (("volume_list_ms", ("volume", "list")), ("snapshot_list_ms", ("snapshot", "list", "bench0"))):
        found[key] = statistics.median(timed(lambda: cli(*words)) for _ in range(3)) * 1000
    listed = len(cli("snapshot", "list", "bench0"))
    if listed != count:
        sys.exit(f"{count} snapshots were taken and {listed} are listed")
    found["scrape_ms"] = statistics.median(timed(esker.metrics) for _ in range(3)) * 1000
    found["resident_mib"], found["peak_mib"] = esker.status_mib("VmRSS"), esker.status_mib("VmHWM")
    return found


def level(esker, none, have, count, args):
    print(f"{count} snapshots", file=sys.stderr)
    found = {"snapshots": count, "under_load": take_snapshots(esker, have, count, args)}
    before = esker.written()
    rows = rounds(esker, none, args)
    # The ramp of a second is not in fio's count; scale to what is.
    client = sum(r["ios"] for r in rows[ROWS[0][0]]["bench"]) * 4096
    share = args.seconds / (args.seconds + 1)
    found["device_per_client_byte"] = (esker.written() - before) * share / client
    found["rows"] = rows
    found["checkpoint"] = idle_checkpoint(esker)
    found.update(look(esker, count, args))
    found["first_read_s"], found["first_write_s"] = esker.restart()
    found["restarted_mib"] = esker.status_mib("VmRSS")
    return found


def clone_and_delete(esker, count, args):
    """Some of the snapshots, from the middle on, under load; beside each clone another snapshot, a log write and a refusal."""
    some = [f"s{count // 2 + n}" for n in range(1, 1 + min(count // 4, args.clones))]
    deleted = [f"s{n}" for n in range(1, 1 + min(count // 4, 10 * args.clones))]
    cloned, created, written, refusals, gone, shares = [], [], [], [], [], {}
    api, client = admin.Admin(esker.folder), start.Client(esker.socket, "bench0")

    def clone():
        for name in some:
            cloned.append(timed(lambda: api.ask("CloneVolume", "bench0", name, f"clone-{name}")))
            created.append(timed(lambda: api.ask("CreateSnapshot", "bench0", f"beside-{name}")))
            written.append(timed(lambda: durable_write(client, 5, b"\x5a")))
            refusals.append(timed(lambda: refused(api)))

    def delete():
        for name in deleted:
            gone.append(timed(lambda: api.ask("DeleteSnapshot", "bench0", name)))
    with Load(esker, args):
        alone = rate(esker, lambda: time.sleep(1))
        shares["clone"] = rate(esker, clone) / alone
        shares["delete"] = rate(esker, delete) / alone
    api.close()
    client.socket.close()
    if not cloned or not gone:
        return {}
    beside = (("clone", cloned), ("create beside it", created), ("log write beside it", written),
              ("refusal beside it", refusals))
    return {**{what: {**quantiles(took), "load_share": shares["clone"]} for what, took in beside},
            "delete": {**quantiles(gone), "load_share": shares["delete"]}}


class Qcow2:
    """qemu-nbd over an image whose snapshots are within it."""

    name = "qcow2"

    def __init__(self, folder, args):
        os.makedirs(folder)
        self.folder, self.args, self.process = folder, args, None
        self.socket, self.file = f"{folder}/nbd.sock", f"{folder}/disk"
        self.where = ["--ioengine=nbd", f"--uri=nbd+unix:///?socket={self.socket}"]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", self.file, args.volume.replace("iB", "")], check=True)
        self.spawn()
        fill(self, args)

    def spawn(self):
        self.process = subprocess.Popen(["qemu-nbd", "--format=qcow2", "--cache=none", "--aio=io_uring", "--persistent",
                                         "--shared=8", f"--socket={self.socket}", self.file],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        fio_table.wait_for(self.socket, self.process)

    def kill(self):
        if self.process:
            self.process.terminate()
            self.process.wait()
            self.process = None

    def snapshots(self, first, last):
        """Takes them; false when that takes too long."""
        self.kill()
        began, took = time.monotonic(), []
        for number in range(first, last):
            took.append(timed(lambda: subprocess.run(["qemu-img", "snapshot", "-c", f"s{number + 1}", self.file],
                                                     check=True)))
            if time.monotonic() - began > self.args.patience:
                return None
        self.spawn()
        return quantiles(took) if took else {}


def qcow2(args):
    found = []
    target = Qcow2(f"{args.dir}/qcow2", args)
    try:
        have = 0
        for count in args.levels:
            took = target.snapshots(have, count)
            if took is None:
                print(f"qcow2: {count} snapshots take longer than {args.patience} s", file=sys.stderr)
                break
            rows = {row: {"bench": [measure(target, arguments, args)]} for row, arguments in ROWS}
            found.append({"snapshots": count, "create": took, "rows": rows})
            have = count
    finally:
        target.kill()
    return found


def esker_levels(args):
    esker, none = None, None
    try:
        none = Esker(f"{args.dir}/none", args)
        esker = Esker(f"{args.dir}/bench", args)
        found, have = [], 0
        for count in args.levels:
            if args.fresh and found:
                for one in (esker, none):
                    one.kill()
                    shutil.rmtree(one.folder)
                none, esker, have = Esker(none.folder, args), Esker(esker.folder, args), 0
            found.append(level(esker, none, have, count, args))
            have = count
        return found, clone_and_delete(esker, have, args)
    finally:
        for one in (esker, none):
            if one:
                one.kill()


def median(rows, row, name, key):
    return measuring.median(r[key] for r in rows[row][name])


def ratios(rows, row):
    return measuring.known(measuring.ratios(rows[row]["bench"], rows[row]["none"]))


def print_cpu(results):
    """What noise of the machine changes least."""
    print("\n| snapshots | " + " | ".join(f"{row}: CPU per I/O; of none" for row, _ in ROWS) + " |")
    print("|---" * (len(ROWS) + 1) + "|")
    for found in results["esker"]:
        cells = [f"{found['snapshots']:,}"]
        for row, _ in ROWS:
            shares = measuring.ratios(found["rows"][row]["bench"], found["rows"][row]["none"], "cpu_us")
            cpu = measuring.shown(median(found["rows"], row, "bench", "cpu_us"), "{:.1f} µs")
            cells.append(f"{cpu}; {measuring.spread(shares)}")
        print("| " + " | ".join(cells) + " |")


def print_results(results):
    print(results["machine"] + "\n")
    heads = ["snapshots"] + [f"{row}: IOPS, mean, p99; of none" for row, _ in ROWS]
    print("| " + " | ".join(heads + ["device bytes per client byte", "a checkpoint writes", "memory, at most"]) + " |")
    print("|---" * (len(heads) + 3) + "|")
    for found in results["esker"]:
        rows, cells = found["rows"], [f"{found['snapshots']:,}"]
        for row, _ in ROWS:
            p99 = measuring.shown(median(rows, row, "bench", "p99_us"), "{:.0f} µs")
            cells.append(f"{median(rows, row, 'bench', 'iops'):,.0f}, {median(rows, row, 'bench', 'mean_us'):.0f} µs, "
                         f"{p99}; {measuring.spread(ratios(rows, row))}")
        cells.append(f"{found['device_per_client_byte']:.2f}")
        cells.append(f"{found['checkpoint']['bytes'] / 1024:,.0f} KiB")
        cells.append(f"{found['resident_mib']:.0f} MiB, {found['peak_mib']:.0f} MiB")
        print("| " + " | ".join(cells) + " |")
    print("\n| snapshots | create under load: p50, p99, most | a log write then: p50, p99, most | a refusal then: p50, p99 "
          "| writes of the load, of alone | `volume list` | `snapshot list` | scrape | kill -9 to the first read, durable write |")
    print("|---" * 9 + "|")
    for found in results["esker"]:
        cells = [f"{found['snapshots']:,}"]
        for key in ("create", "log_write", "ask"):
            q = found["under_load"].get(key)
            most = f", {q['max_ms']:.2f}" if q and key != "ask" else ""
            cells.append(f"{q['p50_ms']:.2f}, {q['p99_ms']:.2f}{most} ms" if q else "–")
        share = found["under_load"].get("load_share")
        cells.append(f"{share:.2f}" if share else "–")
        cells += [f"{found[key]:.0f} ms" for key in ("volume_list_ms", "snapshot_list_ms", "scrape_ms")]
        cells.append(f"{found['first_read_s']:.2f} s, {found['first_write_s']:.2f} s")
        print("| " + " | ".join(cells) + " |")
    print_cpu(results)
    for what, q in results["after"].items():
        print(f"\n{what} under load, {q['count']} times: p50 {q['p50_ms']:.2f} ms, p99 {q['p99_ms']:.2f} ms, "
              f"most {q['max_ms']:.2f} ms; the load writes {q['load_share']:.2f} of alone")
    if results["qcow2"]:
        print("\n| qcow2: snapshots | " + " | ".join(f"{row}: IOPS, p99; of none" for row, _ in ROWS)
              + " | create with nothing else: p50, most |")
        print("|---" * (len(ROWS) + 2) + "|")
        none = results["qcow2"][0]["rows"]
        for found in results["qcow2"]:
            rows, q = found["rows"], found["create"]
            cells = [f"{found['snapshots']:,}"]
            for row, _ in ROWS:
                iops = median(rows, row, "bench", "iops")
                cells.append(f"{iops:,.0f}, {median(rows, row, 'bench', 'p99_us'):.0f} µs; "
                             f"{iops / median(none, row, 'bench', 'iops'):.2f}")
            cells.append(f"{q['p50_ms']:.0f} ms, {q['max_ms']:.0f} ms" if q else "–")
            print("| " + " | ".join(cells) + " |")


def draw(results, path):
    """IOPS by the number of snapshots, as a share of what there is without."""
    lines = []
    for row, _ in ROWS:
        points = [(found["snapshots"], statistics.median(ratios(found["rows"], row))) for found in results["esker"]]
        lines.append((f"Esker, {row}", points))
        if results["qcow2"]:
            none = median(results["qcow2"][0]["rows"], row, "bench", "iops")
            points = [(f["snapshots"], median(f["rows"], row, "bench", "iops") / none) for f in results["qcow2"]]
            lines.append((f"qcow2, {row}", points))
    with open(path, "w") as f:
        f.write(plot.shares("IOPS by the number of snapshots, as a share of what there is without any",
                            results["machine"], lines))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", required=True, help="new scratch folder on the disk to measure; removed afterwards")
    parser.add_argument("--bin", default="target/release", help="folder with eskerd and esker")
    parser.add_argument("--levels", default="0,1,10,100,1000,10000", help="counts of snapshots, rising from 0")
    parser.add_argument("--volume", default="1TiB", help="size of the volume")
    parser.add_argument("--area", default="1GiB", help="of which this much, at its beginning, is used")
    parser.add_argument("--store-size", default="14GiB", help="of each eskerd's store; whole GiB")
    parser.add_argument("--seconds", type=int, default=4, help="per measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clones", type=int, default=100, help="clones at the end; ten times as many are deleted")
    parser.add_argument("--fresh", action="store_true", help="new stores for each count: what snapshots of earlier "
                        "counts keep, and collecting among it, is left out")
    parser.add_argument("--no-qcow2", action="store_true")
    parser.add_argument("--patience", type=int, default=120, help="seconds that qcow2 may take for a count of snapshots")
    parser.add_argument("--quick", action="store_true", help="a few small ones, to see that everything works")
    parser.add_argument("--json", help="write everything that was measured here")
    parser.add_argument("--svg", help="draw the shares here")
    args = parser.parse_args()
    if args.quick:
        args.levels, args.volume, args.area, args.store_size = "0,1,40", "1GiB", "16MiB", "1GiB"
        args.seconds, args.rounds, args.clones = 1, 1, 4
    args.levels = [int(n) for n in args.levels.split(",")]
    if args.levels[0] != 0 or args.levels != sorted(set(args.levels)):
        parser.error("--levels rise, from 0 on")
    if os.path.exists(args.dir):
        sys.exit(f"{args.dir} exists; name a new folder")
    return args


def main():
    args = arguments()
    os.makedirs(args.dir)
    try:
        start.wait_for_room(args.dir, 2 * (int(args.store_size.removesuffix("GiB")) << 30))
        esker, after = esker_levels(args)
        for name in ("none", "bench"):
            shutil.rmtree(f"{args.dir}/{name}")
        peer = [] if args.no_qcow2 else qcow2(args)
    finally:
        shutil.rmtree(args.dir)
    machine = (f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}, "
               f"{time.strftime('%Y-%m-%d')}; {args.rounds} rounds of {args.seconds} s, {args.area} of a volume of "
               f"{args.volume}" + ("; new stores for each count" if args.fresh else "") + ("; --quick: not to be quoted" if args.quick else ""))
    results = {"machine": machine, "esker": esker, "after": after, "qcow2": peer}
    print_results(results)
    if args.json:
        with open(args.json, "w") as f:
            json.dump(results, f, indent=1)
    if args.svg:
        draw(results, args.svg)


if __name__ == "__main__":
    main()
