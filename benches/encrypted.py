#!/usr/bin/env python3
"""What encryption costs: one eskerd, a plain volume and an encrypted one of the same size, over its unix socket.

Every row is measured on both in turn, for several rounds; what counts is the ratio within a round, and the CPU of eskerd
for each I/O.

Needs fio with its nbd engine, and release builds of eskerd and esker. Everything happens in one scratch folder (--dir).
--quick only shows that the script works: its numbers say nothing.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import fio_table  # noqa: E402
import measuring  # noqa: E402

ROWS = [
    ("random write, 4 KiB, depth 32", ["--rw=randwrite", "--bs=4k", "--iodepth=32"]),
    ("random read, 4 KiB, depth 32", ["--rw=randread", "--bs=4k", "--iodepth=32"]),
    ("random write, 4 KiB, depth 1", ["--rw=randwrite", "--bs=4k", "--iodepth=1"]),
    ("random read, 4 KiB, depth 1", ["--rw=randread", "--bs=4k", "--iodepth=1"]),
    ("1 MiB write, depth 8", ["--rw=write", "--bs=1m", "--iodepth=8"]),
    ("1 MiB read, depth 8", ["--rw=read", "--bs=1m", "--iodepth=8"]),
]
VOLUMES = ["plain", "encrypted"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", required=True, help="scratch folder on the disk to measure; is removed afterwards")
    parser.add_argument("--bin", default="target/release", help="folder with eskerd and esker")
    parser.add_argument("--size", default="1GiB", help="size of each volume")
    parser.add_argument("--seconds", type=int, default=2, help="per measurement")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--rows", default="", help="only rows whose name matches this regular expression")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", help="write all measurements here")
    args = parser.parse_args()
    if args.quick:
        args.size, args.seconds, args.rounds = "64MiB", 1, 1
    if os.path.exists(args.dir):
        sys.exit(f"{args.dir} exists; name a new folder")
    os.makedirs(args.dir)
    data = f"{os.path.abspath(args.dir)}/d"
    log = open(f"{args.dir}/log", "w")
    server = subprocess.Popen(
        [f"{args.bin}/eskerd", "--data", data, "--store-size", "8GiB", "--nbd", "none", "--metrics", "none",
         "--scrub-rate", "none"], stdout=subprocess.PIPE, stderr=log)
    try:
        if not server.stdout.readline():
            sys.exit(f"eskerd does not start: {open(log.name).read()}")
        for name in VOLUMES:
            words = [f"{args.bin}/esker", "--data", data, "volume", "create", name, "--size", args.size]
            subprocess.run(words + (["--encrypt"] if name == "encrypted" else []), check=True, stdout=subprocess.DEVNULL)
        rows = [row for row in ROWS if re.search(args.rows, row[0])]
        runs = measure(args, data, server.pid, rows)
    finally:
        server.terminate()
        server.wait()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}")
    show(runs, rows)
    if args.json:
        with open(args.json, "w") as f:
            json.dump(runs, f, indent=1)
    shutil.rmtree(args.dir)


def measure(args, data, pid, rows):
    size = args.size.replace("iB", "").lower()

    def fio(name, seconds, arguments):
        where = ["--ioengine=nbd", f"--uri=nbd+unix:///{name}?socket={data}/nbd.sock"]
        return fio_table.fio(where, size, seconds, arguments, f"{args.dir}/found.json")

    for name in VOLUMES:
        fio(name, 0, ["--rw=write", "--bs=1m", "--iodepth=8"])
    runs = {row: {name: [] for name in VOLUMES} for row, _ in rows}
    for number in range(args.rounds):
        for row, arguments in rows:
            # Neither is always the one that comes after the other.
            for name in sorted(VOLUMES, reverse=number % 2 == 1):
                before = measuring.cpu_seconds(pid)
                done = fio(name, args.seconds, arguments)
                # The ramp of a second is in the CPU and not in the count.
                ios = done["iops"] * (args.seconds + 1)
                done["cpu_us"] = measuring.over((measuring.cpu_seconds(pid) - before) * 1e6, ios)
                runs[row][name].append(done)
    return runs


def show(runs, rows):
    print("| fio | plain | encrypted | encrypted over plain: median, by round | CPU of eskerd per I/O, µs |")
    print("|---|---|---|---|---|")
    for row, arguments in rows:
        plain, encrypted = runs[row]["plain"], runs[row]["encrypted"]
        ratios = measuring.ratios(encrypted, plain)

        def median(of, what):
            return measuring.shown(measuring.median(run[what] for run in of), "{:,.0f}" if what == "iops" else "{:.1f}")
        unit = "MiB/s" if "--bs=1m" in arguments else "IOPS"
        by_round = ", ".join(measuring.shown(ratio) for ratio in ratios)
        print(f"| {row} | {median(plain, 'iops')} {unit} | {median(encrypted, 'iops')} {unit} "
              f"| {measuring.shown(measuring.median(ratios))}: {by_round} "
              f"| {median(encrypted, 'cpu_us')} instead of {median(plain, 'cpu_us')} |")


if __name__ == "__main__":
    main()
