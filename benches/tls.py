#!/usr/bin/env python3
"""What TLS costs NBD over TCP: one eskerd, one volume, two addresses on loopback, one with TLS and one without.

Every row is measured at both addresses in turn, for several rounds; what counts is the ratio within a round, and the
CPU of eskerd for each I/O. fio's nbd client seals and opens what it sends and takes, too (GnuTLS), on the same
processors, so the ratios are what a machine sees that does both; eskerd's own share is in the columns of CPU.

fio cannot be told where its certificates are; libnbd looks for them in the home folder of whoever is not root. So it
gets one (HOME), and when the script is run by root, fio is run by nobody (setpriv), for whom --dir has to be reachable.

Needs fio with its nbd engine, and release builds of eskerd and esker. Everything happens in one scratch folder (--dir).
--quick only shows that the script works: its numbers say nothing.
"""

import argparse
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import measuring  # noqa: E402

ROWS = [
    ("random write, 4 KiB, depth 1", ["--rw=randwrite", "--bs=4k", "--iodepth=1"]),
    ("random read, 4 KiB, depth 1", ["--rw=randread", "--bs=4k", "--iodepth=1"]),
    ("random write, 4 KiB, depth 32", ["--rw=randwrite", "--bs=4k", "--iodepth=32"]),
    ("random read, 4 KiB, depth 32", ["--rw=randread", "--bs=4k", "--iodepth=32"]),
    ("1 MiB write, depth 8", ["--rw=write", "--bs=1m", "--iodepth=8"]),
    ("1 MiB read, depth 8", ["--rw=read", "--bs=1m", "--iodepth=8"]),
]


NOBODY = 65534


def port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def certificates(args):
    """The words that name the node's; the client's lie where libnbd looks for them."""
    def cert(*words):
        subprocess.run([f"{args.bin}/esker", "cert", *words], check=True, stdout=subprocess.DEVNULL)
    ca, client = f"{args.dir}/ca", f"{args.dir}/home/.config/pki/libnbd"
    os.makedirs(os.path.dirname(client))
    cert("init", "--out", ca)
    cert("server", "--authority", ca, "--host", "127.0.0.1")
    cert("client", "fio", "--authority", ca, "--volume", "*", "--bundle", client)
    if os.geteuid() == 0:
        for folder, _, files in os.walk(f"{args.dir}/home"):
            for path in [folder] + [f"{folder}/{file}" for file in files]:
                os.chown(path, NOBODY, -1)
    return ["--tls-cert", f"{ca}/server.pem", "--tls-key", f"{ca}/server.key", "--tls-ca", f"{ca}/ca.pem"]


def fio(args, uri, seconds, arguments):
    """As `fio_table.fio`, by who has the certificates."""
    command = ["fio", "--name=row", f"--size={args.size}", "--ioengine=nbd", f"--uri={uri}"]
    if os.geteuid() == 0:
        command = ["setpriv", f"--reuid={NOBODY}", "--clear-groups"] + command
    if seconds:
        command += ["--time_based", f"--runtime={seconds}", "--ramp_time=1"]
    home = f"{args.dir}/home"
    job = measuring.fio(command + arguments, "found.json", cwd=home, env=dict(os.environ, HOME=home))
    return measuring.outcome(job)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", required=True, help="scratch folder on the disk to measure; is removed afterwards")
    parser.add_argument("--bin", default="target/release", help="folder with eskerd and esker")
    parser.add_argument("--size", default="1GiB", help="size of the volume")
    parser.add_argument("--seconds", type=int, default=3, help="per measurement")
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
    args.dir = os.path.abspath(args.dir)
    words = certificates(args)
    plain, tls = port(), port()
    log = open(f"{args.dir}/log", "w")
    server = subprocess.Popen(
        [f"{args.bin}/eskerd", "--data", f"{args.dir}/d", "--store-size", "8GiB", "--metrics", "none", "--scrub-rate",
         "none", "--nbd", f"127.0.0.1:{plain},tls=off", "--nbd", f"127.0.0.1:{tls}", *words],
        stdout=subprocess.PIPE, stderr=log)
    try:
        if not server.stdout.readline():
            sys.exit(f"eskerd does not start: {open(log.name).read()}")
        subprocess.run([f"{args.bin}/esker", "--data", f"{args.dir}/d", "volume", "create", "bench", "--size", args.size],
                       check=True, stdout=subprocess.DEVNULL)
        targets = [
            ("plain", f"nbd://127.0.0.1:{plain}/bench"),
            ("tls", f"nbds://127.0.0.1:{tls}/bench"),
        ]
        args.size = args.size.replace("iB", "").lower()
        rows = [row for row in ROWS if re.search(args.rows, row[0])]
        runs = measure(args, server.pid, dict(targets), rows)
    finally:
        server.terminate()
        server.wait()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}")
    show(runs, rows)
    if args.json:
        with open(args.json, "w") as f:
            json.dump(runs, f, indent=1)
    shutil.rmtree(args.dir)


def measure(args, pid, where, rows):
    fio(args, where["plain"], 0, ["--rw=write", "--bs=1m", "--iodepth=8"])
    runs = {row: {name: [] for name in where} for row, _ in rows}
    for number in range(args.rounds):
        for row, arguments in rows:
            # Neither is always the one that comes after the other.
            for name in sorted(where, reverse=number % 2 == 1):
                before = measuring.cpu_seconds(pid)
                done = fio(args, where[name], args.seconds, arguments)
                # The ramp of a second is in the CPU and not in the count.
                ios = done["iops"] * (args.seconds + 1)
                done["cpu_us"] = measuring.over((measuring.cpu_seconds(pid) - before) * 1e6, ios)
                runs[row][name].append(done)
    return runs


def show(runs, rows):
    print("| fio | plain | TLS | TLS over plain: median, by round | CPU of eskerd per I/O, µs |")
    print("|---|---|---|---|---|")
    for row, arguments in rows:
        plain, tls = runs[row]["plain"], runs[row]["tls"]
        ratios = measuring.ratios(tls, plain)

        def median(of, what):
            return measuring.shown(measuring.median(run[what] for run in of), "{:,.0f}" if what == "iops" else "{:.1f}")
        unit = "MiB/s" if "--bs=1m" in arguments else "IOPS"
        by_round = ", ".join(measuring.shown(ratio) for ratio in ratios)
        print(f"| {row} | {median(plain, 'iops')} {unit} | {median(tls, 'iops')} {unit} "
              f"| {measuring.shown(measuring.median(ratios))}: {by_round} "
              f"| {median(tls, 'cpu_us')} instead of {median(plain, 'cpu_us')} |")


if __name__ == "__main__":
    main()
