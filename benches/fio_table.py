#!/usr/bin/env python3
"""The fio table: eskerd beside the raw file and qemu-nbd, in one run on one disk.

Every row is measured on every target in turn, for several rounds, so that a machine whose speed
drifts treats them alike; what counts is the ratio within a round. fio uses its nbd engine over a
unix socket (io_uring and O_DIRECT for the raw file), on a volume that was written full before.
"bound" is a server that answers at once and stores nothing (benches/examples/answering.rs): what
fio's nbd client can drive at most here, whoever serves it.

Needs fio, qemu-utils, and release builds:
  cargo build --release -p esker-daemon -p esker-cli
  cargo build --release -p esker-benches --example answering
Everything happens in one scratch folder (--dir), on the disk that is to be measured; nothing else
is touched.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import measuring  # noqa: E402

ROWS = [
    ("random write, qd 32", ["--rw=randwrite", "--bs=4k", "--iodepth=32"]),
    ("random write, qd 1", ["--rw=randwrite", "--bs=4k", "--iodepth=1"]),
    ("random write, qd 16, flush every 8", ["--rw=randwrite", "--bs=4k", "--iodepth=16", "--fsync=8"]),
    ("random read, qd 32", ["--rw=randread", "--bs=4k", "--iodepth=32"]),
    ("random read, qd 1", ["--rw=randread", "--bs=4k", "--iodepth=1"]),
    ("1 MiB sequential write, qd 8", ["--rw=write", "--bs=1m", "--iodepth=8"]),
    ("1 MiB sequential read, qd 8", ["--rw=read", "--bs=1m", "--iodepth=8"]),
]


def fio(where, size, seconds, arguments, out):
    command = ["fio", "--name=row", f"--size={size}"] + where + arguments
    if seconds:
        command += ["--time_based", f"--runtime={seconds}", "--ramp_time=1"]
    job = measuring.fio(command, out)
    return dict(measuring.outcome(job), p99_us=measuring.p99_us(job))


def wait_for(path, process):
    for _ in range(500):
        if os.path.exists(path):
            return
        if process.poll() is not None:
            sys.exit(f"server ended before {path} appeared")
        time.sleep(0.02)
    sys.exit(f"{path} did not appear")


def start_esker(directory, binaries, size, store_size):
    data = f"{directory}/esker"
    server = subprocess.Popen(
        [f"{binaries}/eskerd", "--data", data, "--store-size", store_size, "--nbd", "none", "--metrics", "none"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    server.stdout.readline()
    subprocess.run([f"{binaries}/esker", "--data", data, "volume", "create", "bench", "--size", size],
                   check=True, stdout=subprocess.DEVNULL)
    return server, ["--ioengine=nbd", f"--uri=nbd+unix:///bench?socket={data}/nbd.sock"]


def start_qemu(directory, size):
    image, socket = f"{directory}/qemu.raw", f"{directory}/qemu.sock"
    subprocess.run(["qemu-img", "create", "-f", "raw", image, size.replace("iB", "")],
                   check=True, stdout=subprocess.DEVNULL)
    server = subprocess.Popen(["qemu-nbd", "--format=raw", "--cache=none", "--aio=io_uring", "--persistent",
                               "--shared=8", f"--socket={socket}", image])
    wait_for(socket, server)
    return server, ["--ioengine=nbd", f"--uri=nbd+unix:///?socket={socket}"]


def start_bound(directory, binaries, size_bytes):
    socket = f"{directory}/bound.sock"
    server = subprocess.Popen([f"{binaries}/examples/answering", socket, str(size_bytes)])
    wait_for(socket, server)
    return server, ["--ioengine=nbd", f"--uri=nbd+unix:///?socket={socket}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", required=True, help="scratch folder on the disk to measure; is removed afterwards")
    parser.add_argument("--bin", default="target/release", help="folder with eskerd and esker")
    parser.add_argument("--size", default="4GiB", help="size of the volume")
    parser.add_argument("--seconds", type=int, default=8, help="per measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", default="", help="only rows whose name matches this regular expression")
    parser.add_argument("--targets", default="raw,qemu-nbd,esker,bound", help="only these, comma-separated")
    # Room for the volume several times over: the table overwrites it at random, and what garbage
    # collection costs is another question.
    parser.add_argument("--store-size", default="20GiB", help="size of eskerd's store")
    parser.add_argument("--json", help="write all measurements here")
    args = parser.parse_args()
    if os.path.exists(args.dir):
        sys.exit(f"{args.dir} exists; name a new folder")
    os.makedirs(args.dir)
    rows = [row for row in ROWS if re.search(args.rows, row[0])]
    wanted = args.targets.split(",")
    size = args.size.replace("iB", "").lower()
    servers, targets = [], []

    def start(name, started):
        server, where = started
        servers.append(server)
        targets.append((name, where, server.pid))

    try:
        if "raw" in wanted:
            raw = ["--ioengine=io_uring", "--direct=1", f"--filename={args.dir}/raw"]
            targets.append(("raw", raw, None))
        if "qemu-nbd" in wanted:
            start("qemu-nbd", start_qemu(args.dir, args.size))
        if "esker" in wanted:
            start("esker", start_esker(args.dir, args.bin, args.size, args.store_size))
        for _, where, _ in targets:
            fio(where, size, 0, ["--rw=write", "--bs=1m", "--iodepth=8"], f"{args.dir}/fio.json")
        if "bound" in wanted:
            start("bound", start_bound(args.dir, args.bin, bytes_of(args.size)))
        runs = {}
        for number in range(args.rounds):
            for row, arguments in rows:
                for name, where, pid in targets:
                    before = measuring.cpu_seconds(pid) if pid else 0
                    result = fio(where, size, args.seconds, arguments, f"{args.dir}/fio.json")
                    # The ramp is not in fio's count; scale the CPU time to what is.
                    share = args.seconds / (args.seconds + 1)
                    used = (measuring.cpu_seconds(pid) - before) * share if pid else 0
                    result["cpu_us"] = measuring.over(used * 1e6, result["ios"])
                    runs.setdefault(row, {}).setdefault(name, []).append(result)
                print(f"round {number + 1}: {row}", file=sys.stderr)
        report(args, runs)
    finally:
        for server in servers:
            server.terminate()
            server.wait()
        shutil.rmtree(args.dir)


def bytes_of(size):
    number, unit = re.fullmatch(r"(\d+)([KMGT])iB", size).groups()
    return int(number) << {"K": 10, "M": 20, "G": 30, "T": 40}[unit]


def report(args, runs):
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}, "
          f"{time.strftime('%Y-%m-%d')}; {args.rounds} rounds of {args.seconds} s, {args.size} volume; "
          "medians, and the range of the ratio over the rounds\n")
    names = [name for name in ("raw", "qemu-nbd", "esker", "bound") if name in args.targets.split(",")]
    others = [name for name in names if name != "esker"] if "esker" in names else []
    served = [name for name in ("qemu-nbd", "esker") if name in names]
    heads = names + [f"esker / {name}" for name in others] + [f"CPU per I/O: {', '.join(served)}"]
    print(f"| row | {' | '.join(heads)} |")
    print("|" + "---|" * (len(heads) + 1))
    for row, by_name in runs.items():
        def median(name, key):
            return measuring.median(r[key] for r in by_name[name])

        def ratio(other):
            return measuring.spread(measuring.ratios(by_name["esker"], by_name[other]))
        cells = [f"{median(name, 'iops'):,.0f}" for name in names] + [ratio(name) for name in others]
        cells.append(", ".join(measuring.shown(median(name, "cpu_us"), "{:.1f} µs") for name in served))
        print(f"| {row} | {' | '.join(cells)} |")
    if args.json:
        with open(args.json, "w") as f:
            json.dump(runs, f, indent=1)


if __name__ == "__main__":
    main()
