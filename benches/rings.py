#!/usr/bin/env python3
"""The same NBD sessions over a file, with the effects interpreted by tokio-uring and by our own ring.

Both serve one file with O_DIRECT over TCP on the loopback (benches/rings): no engine, so that what
differs is the ring. fio's nbd engine drives them in turn, for several rounds; what counts is the ratio
within a round, and CPU time of the server per I/O.

Builds benches/rings (a workspace of its own: tokio-uring is no dependency of the product). Needs fio.
"""

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import fio_table  # noqa: E402
import measuring  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RINGS = ["ours", "tokio-uring"]
ROWS = [
    ("random write, qd 32", ["--rw=randwrite", "--bs=4k", "--iodepth=32"]),
    ("random read, qd 32", ["--rw=randread", "--bs=4k", "--iodepth=32"]),
    ("random read, qd 1", ["--rw=randread", "--bs=4k", "--iodepth=1"]),
    ("1 MiB sequential read, qd 8", ["--rw=read", "--bs=1m", "--iodepth=8"]),
]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def syscalls(pid):
    """Waits of all its threads so far: a turn of a loop that sleeps is one."""
    count = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/status") as f:
            count += int(next(line for line in f if line.startswith("voluntary")).split()[1])
    return count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", required=True, help="new scratch folder on the disk to measure; removed afterwards")
    parser.add_argument("--size-mib", type=int, default=1024, help="of the file")
    parser.add_argument("--seconds", type=int, default=5, help="per measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="write all measurements here")
    args = parser.parse_args()
    if os.path.exists(args.dir):
        sys.exit(f"{args.dir} exists; name a new folder")
    target = f"{ROOT}/target/rings"
    subprocess.run(["cargo", "build", "--release", "--quiet", "--locked"], check=True, cwd=f"{ROOT}/benches/rings",
                   env={**os.environ, "CARGO_TARGET_DIR": target})
    os.makedirs(args.dir)
    servers, runs = [], {}
    try:
        where = {}
        for ring in RINGS:
            path, port = f"{args.dir}/{ring}", free_port()
            with open(path, "wb") as f:
                for _ in range(args.size_mib):
                    f.write(os.urandom(1 << 20))
                os.fsync(f.fileno())
            server = subprocess.Popen([f"{target}/release/rings", ring, path, str(args.size_mib << 20),
                                       f"127.0.0.1:{port}"], stdout=subprocess.PIPE)
            servers.append(server)
            server.stdout.readline()
            where[ring] = (["--ioengine=nbd", f"--uri=nbd://127.0.0.1:{port}/v"], server.pid)
        for number in range(args.rounds):
            for row, arguments in ROWS:
                for ring in RINGS if number % 2 == 0 else RINGS[::-1]:
                    runs.setdefault(row, {}).setdefault(ring, []).append(measure(*where[ring], arguments, args))
                print(f"round {number + 1}: {row}", file=sys.stderr)
    finally:
        for server in servers:
            server.kill()
            server.wait()
        shutil.rmtree(args.dir)
    report(args, runs)


def measure(where, pid, arguments, args):
    cpu, waits = measuring.cpu_seconds(pid), syscalls(pid)
    result = fio_table.fio(where, f"{args.size_mib}m", args.seconds, arguments, f"{args.dir}/fio.json")
    share = args.seconds / (args.seconds + 1)  # the ramp is not in fio's count
    result["cpu_us"] = (measuring.cpu_seconds(pid) - cpu) * share / result["ios"] * 1e6
    result["waits"] = (syscalls(pid) - waits) * share / result["ios"]
    return result


def report(args, runs):
    print(f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}, {time.strftime('%Y-%m-%d')}; "
          f"{args.rounds} rounds of {args.seconds} s; medians, and the range over the rounds\n")
    print("| row | IOPS ours, tokio-uring | CPU per I/O ours, tokio-uring | CPU tokio-uring / ours | waits per I/O ours, tokio-uring |")
    print("|---|---|---|---|---|")
    for row, by_ring in runs.items():
        def two(key, form):
            return ", ".join(form.format(statistics.median(r[key] for r in by_ring[ring])) for ring in RINGS)
        ratios = sorted(t["cpu_us"] / o["cpu_us"] for o, t in zip(by_ring["ours"], by_ring["tokio-uring"]))
        print(f"| {row} | {two('iops', '{:,.0f}')} | {two('cpu_us', '{:.1f} µs')} | {statistics.median(ratios):.2f} "
              f"({ratios[0]:.2f}–{ratios[-1]:.2f}) | {two('waits', '{:.2f}')} |")
    if args.json:
        with open(args.json, "w") as f:
            json.dump(runs, f, indent=1)


if __name__ == "__main__":
    main()
