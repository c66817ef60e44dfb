#!/usr/bin/env python3
"""How long `esker snapshot diff` takes, by the size of the volume and by how much has changed.

Each volume has the same number of blocks written, scattered over all of it. For each amount of change: a
snapshot, that many random 4 KiB writes, another snapshot; then the two are compared, several times, and as a
control a snapshot with itself the same number of times. Times are those of the command, JSON included;
what the control takes is the command itself. Only the columns of one run compare. The blocks of the
answer are counted against those that were written: a difference ends the script.

Needs fio and release builds of eskerd and esker. Everything happens in one scratch folder (--dir).
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
import fio_table  # noqa: E402

BLOCK = 4096


class Volume:
    """A volume of a daemon of its own."""

    def __init__(self, size, args):
        self.size, self.args, self.data = size, args, f"{args.dir}/data-{size}"
        self.process = subprocess.Popen(
            [f"{args.bin}/eskerd", "--data", self.data, "--store-size", args.store_size, "--nbd", "none",
             "--metrics", "none"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.process.stdout.readline()
        self.esker("volume", "create", "v", "--size", size)
        self.seed = 0
        self.write(args.base)

    def esker(self, *words):
        done = subprocess.run([f"{self.args.bin}/esker", "--data", self.data, *words], check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"esker {' '.join(words)}: {done.stderr}")
        return done.stdout

    def write(self, blocks):
        """That many writes of a block each, nowhere twice."""
        self.seed += 1
        if not blocks:
            return
        subprocess.run(["fio", "--name=w", "--ioengine=nbd", f"--uri=nbd+unix:///v?socket={self.data}/nbd.sock",
                        "--rw=randwrite", "--bs=4k", "--iodepth=32", f"--size={fio_table.bytes_of(self.size)}",
                        f"--number_ios={blocks}", "--random_generator=lfsr", f"--randseed={self.seed}",
                        f"--output={self.args.dir}/fio"], check=True)

    def compare(self, old, new):
        began = time.monotonic()
        answer = self.esker("-o", "json", "snapshot", "diff", f"v@{old}", f"v@{new}")
        return time.monotonic() - began, sum(e["length"] for e in json.loads(answer)) // BLOCK

    def measure(self, changed):
        old, new = f"a{changed}", f"b{changed}"
        self.esker("snapshot", "create", f"v@{old}")
        self.write(changed)
        self.esker("snapshot", "create", f"v@{new}")
        took, control = [], []
        for _ in range(self.args.rounds):
            seconds, blocks = self.compare(old, new)
            if blocks != changed:
                sys.exit(f"{self.size}: {changed} blocks were written and {blocks} are told to differ")
            took.append(seconds)
            control.append(self.compare(new, new)[0])
        return {"volume": self.size, "changed_blocks": changed, "median_ms": statistics.median(took) * 1000,
                "least_ms": min(took) * 1000, "most_ms": max(took) * 1000,
                "control_ms": statistics.median(control) * 1000}

    def stop(self):
        self.process.terminate()
        if self.process.wait(60):
            sys.exit("eskerd did not end cleanly")
        shutil.rmtree(self.data)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", required=True, help="new scratch folder; removed afterwards")
    parser.add_argument("--bin", default="target/release", help="folder with eskerd and esker")
    parser.add_argument("--sizes", default="1GiB,32GiB,1TiB", help="of the volumes, comma-separated")
    parser.add_argument("--changed", default="0,10,100,1000,10000,100000", help="blocks, comma-separated")
    parser.add_argument("--base", type=int, default=200_000, help="blocks written before")
    parser.add_argument("--store-size", default="16GiB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="write everything here")
    args = parser.parse_args()
    if os.path.exists(args.dir):
        sys.exit(f"{args.dir} exists; name a new folder")
    os.makedirs(args.dir)
    found = []
    print(f"{platform.machine()}, {os.cpu_count()} cores, {platform.release()}; {args.rounds} rounds; ms: median (range)\n")
    print("| volume | blocks changed | diff | control | per changed block |\n|---|---|---|---|---|")
    for size in args.sizes.split(","):
        volume = Volume(size, args)
        for changed in args.changed.split(","):
            row = volume.measure(int(changed))
            found.append(row)
            each = (row["median_ms"] - row["control_ms"]) * 1000 / max(1, row["changed_blocks"])
            print(f"| {size} | {row['changed_blocks']:,} | {row['median_ms']:.1f} ({row['least_ms']:.1f}–"
                  f"{row['most_ms']:.1f}) | {row['control_ms']:.1f} | {each:.2f} µs |", flush=True)
        volume.stop()
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"machine": platform.platform(), "rows": found}, f, indent=2)
    shutil.rmtree(args.dir)


if __name__ == "__main__":
    main()
