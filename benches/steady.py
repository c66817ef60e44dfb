#!/usr/bin/env python3
"""The steady state of a store in use: what writing costs, and how steadily it goes, once garbage collection
is part of it.

For each share of the usable space (the reserve is not usable) and each pattern: a store of its own, a volume
of that share, written full, then random 4 KiB writes at depth 32 for a while, without a pause. Each second
fio's writes and their latencies and the daemon's bytes to the device are noted. What counts as steady is the
second half, in which the volume should have been written at least once over (the column says how often
it was in all); a cliff would show as a worst second far from the others.

Needs fio and release builds of eskerd and esker. Everything happens in one scratch folder (--dir).
"""

import argparse
import csv
import glob
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import fio_table  # noqa: E402
import plot  # noqa: E402

PATTERNS = {"uniform": [], "zipfian": ["--random_distribution=zipf:0.99"]}
MIB = 1 << 20
# fio's histograms: so many linear steps in each power of two.
STEPS = 64


def bin_us(number):
    """The latency in the middle of one of fio's bins, in microseconds."""
    if number < 2 * STEPS:
        return number / 1000
    power = number // STEPS - 1
    return ((1 << (power + 6)) + (number % STEPS + 0.5) * (1 << power)) / 1000


def quantile_us(bins, share):
    wanted, seen = share * sum(bins), 0
    for number, count in enumerate(bins):
        seen += count
        if seen >= wanted and seen:
            return bin_us(number)
    return 0.0


def written(pid):
    """Bytes to the device so far."""
    with open(f"/proc/{pid}/io") as f:
        return int(dict(line.split(": ") for line in f.read().splitlines())["write_bytes"])


def at(readings, moment):
    """What a counter stood at, between the two readings around a moment."""
    before, after = readings[0], readings[-1]
    for reading in readings:
        if reading[0] <= moment:
            before = reading
        else:
            after = reading
            break
    if after[0] <= before[0]:
        return before[1]
    return before[1] + (after[1] - before[1]) * (moment - before[0]) / (after[0] - before[0])


class Run:
    """One share and pattern."""

    def __init__(self, args, share, pattern):
        self.args, self.share, self.pattern = args, share, pattern
        self.data = f"{args.dir}/data"
        self.process = subprocess.Popen(
            [f"{args.bin}/eskerd", "--data", self.data, "--store-size", args.store_size, "--nbd", "none",
             "--metrics", "none"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        if not self.process.stdout.readline():
            sys.exit("eskerd does not start")
        space = json.loads(self.esker("-o", "json", "space"))
        usable = space["total_bytes"] - space["reserve_bytes"]
        self.size = usable * share // 100 // MIB * MIB
        self.esker("volume", "create", "v", "--size", f"{self.size // MIB}MiB")
        self.where = ["--ioengine=nbd", f"--uri=nbd+unix:///v?socket={self.data}/nbd.sock"]

    def esker(self, *words):
        return subprocess.run([f"{self.args.bin}/esker", "--data", self.data, *words], check=True,
                              stdout=subprocess.PIPE, text=True).stdout

    def measure(self):
        fio_table.fio(self.where, self.size, 0, ["--rw=write", "--bs=1m", "--iodepth=8"], f"{self.args.dir}/fio")
        logs = f"{self.args.dir}/log"
        load = subprocess.Popen(
            ["fio", "--name=w", "--rw=randwrite", "--bs=4k", "--iodepth=32", "--norandommap", "--randrepeat=0",
             f"--size={self.size}", "--time_based", f"--runtime={self.args.seconds}", f"--write_hist_log={logs}",
             "--log_hist_msec=1000", "--log_unix_epoch=1", f"--output={self.args.dir}/fio"]
            + self.where + PATTERNS[self.pattern])
        # By the same clock as fio's log: fio takes a while to begin.
        began, device = time.time(), [(0.0, written(self.process.pid))]
        while load.poll() is None:
            time.sleep(0.1)
            device.append((time.time() - began, written(self.process.pid)))
        if load.returncode:
            sys.exit(f"fio ended with {load.returncode}")
        seconds = self.seconds(logs, began)
        for path in glob.glob(f"{logs}*"):
            os.remove(path)
        return self.sum_up(seconds, device)

    def seconds(self, logs, began):
        """Of each second: when it ended, writes, p99 and the longest."""
        found = []
        with open(glob.glob(f"{logs}_clat_hist*.log")[0]) as f:
            for line in csv.reader(f):
                bins = [int(n) for n in line[3:]]
                longest = max((n for n, count in enumerate(bins) if count), default=0)
                found.append({"at_s": int(line[0]) / 1000 - began, "writes": sum(bins), "p99_us": quantile_us(bins, 0.99),
                              "max_us": bin_us(longest)})
        for before, this in zip([{"at_s": 0}] + found, found):
            this["iops"] = this["writes"] / max(0.001, this["at_s"] - before["at_s"])
        return found

    def sum_up(self, seconds, device):
        in_all = sum(s["writes"] for s in seconds) * 4096
        seconds = seconds[1:-1]  # the first and the last are no whole seconds
        half = seconds[len(seconds) // 2:]
        # What the first of the half wrote lies before the first reading.
        client = sum(s["writes"] for s in half[1:]) * 4096
        gone = at(device, half[-1]["at_s"]) - at(device, half[0]["at_s"])
        iops = sorted(s["iops"] for s in half)
        return {"share": self.share, "pattern": self.pattern, "volume_bytes": self.size,
                "turns": sum(s["writes"] for s in seconds) * 4096 / self.size,
                "amplification": gone / client, "client_bytes": in_all,
                "device_bytes": device[-1][1] - device[0][1], "iops": statistics.mean(iops),
                "iops_least": iops[0], "p99_us": statistics.median(s["p99_us"] for s in half),
                "p99_us_worst": max(s["p99_us"] for s in half), "max_us": max(s["max_us"] for s in half),
                "seconds": seconds}

    def stop(self):
        self.process.terminate()
        if self.process.wait(120):
            sys.exit("eskerd did not end cleanly")
        shutil.rmtree(self.data)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", required=True, help="new scratch folder on the disk to measure; removed afterwards")
    parser.add_argument("--bin", default="target/release", help="folder with eskerd and esker")
    parser.add_argument("--store-size", default="4GiB")
    parser.add_argument("--shares", default="50,75,90", help="of the usable space, in per cent")
    parser.add_argument("--patterns", default="uniform,zipfian")
    parser.add_argument("--seconds", type=int, default=60, help="of random writes")
    parser.add_argument("--json", help="write everything that was measured here")
    parser.add_argument("--svg", help="draw writes per second over time here")
    args = parser.parse_args()
    if os.path.exists(args.dir):
        sys.exit(f"{args.dir} exists; name a new folder")
    os.makedirs(args.dir)
    machine = (f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}, {time.strftime('%Y-%m-%d')}; "
               f"a store of {args.store_size}, {args.seconds} s each")
    print(machine + "\n")
    print("| live of usable | pattern | volume written over | device bytes per client byte | IOPS; least of a second | "
          "p99; worst second's | longest |\n|---|---|---|---|---|---|---|")
    found = []
    for pattern in args.patterns.split(","):
        for share in args.shares.split(","):
            run = Run(args, int(share), pattern)
            row = run.measure()
            run.stop()
            found.append(row)
            print(f"| {share} % | {pattern} | {row['turns']:.1f} times | {row['amplification']:.2f} | {row['iops']:,.0f}; "
                  f"{row['iops_least']:,.0f} | {row['p99_us'] / 1000:.1f} ms; {row['p99_us_worst'] / 1000:.1f} ms | "
                  f"{row['max_us'] / 1000:.0f} ms |", flush=True)
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"machine": machine, "rows": found}, f)
    if args.svg:
        draw(found, machine, args.svg)
    shutil.rmtree(args.dir)


def draw(rows, machine, path):
    """Writes per second over time, a line for each run."""
    lines = [(f"{row['pattern']}, {row['share']} % of the usable space", [(s["at_s"], s["iops"]) for s in row["seconds"]])
             for row in rows]
    with open(path, "w") as f:
        f.write(plot.course("Random 4 KiB writes per second, over seconds", machine, lines))


if __name__ == "__main__":
    main()
