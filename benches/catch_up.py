#!/usr/bin/env python3
"""What a copy of a volume that was away receives, beside what changed meanwhile.

Three daemons on this machine, a volume with a copy on each. For each case one of those that follow is killed; so many blocks
of the volume are written, nowhere twice, with snapshots among them; it is started again, and has caught up when the leader
says so and it fetches nothing any more. Then the volume and some of the snapshots are read there and where the leader
is: a difference ends the script. Bytes received are those of its links, as its metrics count them, heartbeats and headers
included; bytes fetched are the blocks among them that came by versions and not from the log. Times are those of this machine, on
which all three run.

Needs fio, nbdcopy, and release builds of eskerd and esker. Everything happens in one scratch folder (--dir).
"""

import argparse
import json
import os
import platform
import shutil
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cluster import Cluster  # noqa: E402

BLOCK = 4096


def one_case(cluster, name, blocks, snapshots):
    door = cluster.nodes[1]
    leader = cluster.leader(door)
    away = next(n for n in cluster.nodes.values() if n not in (door, leader))
    away.kill()
    writes = max(1, snapshots)
    for n in range(writes):
        if snapshots:
            leader.esker("snapshot", "create", f"v@{name}-{n}")
        cluster.write(leader, blocks // writes)
    changed = blocks // writes * writes * BLOCK
    if snapshots > 1:
        # A comparison waits for a checkpoint, and that cuts the log.
        leader.esker("-o", "json", "snapshot", "diff", f"v@{name}-{snapshots - 2}", f"v@{name}-{snapshots - 1}")
    away.start()
    began = time.monotonic()
    cluster.caught_up(away)
    seconds = time.monotonic() - began
    received, fetched, _ = away.counts()
    exports = ["v"] + [f"v@{name}-{n}" for n in sorted({0, snapshots // 2, snapshots - 1}) if snapshots]
    for export in exports:
        if away.hash_of(export) != leader.hash_of(export):
            sys.exit(f"{export} is not the same at node {away.id} as at node {leader.id}")
    return {"case": name, "changed_bytes": changed, "snapshots": snapshots, "received_bytes": received,
            "fetched_bytes": fetched, "seconds": round(seconds, 2),
            "received_per_changed": round(received / changed, 3), "compared": len(exports)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", required=True, help="scratch folder; made, and removed at the end")
    parser.add_argument("--bin", default="target/release", help="where eskerd and esker are")
    parser.add_argument("--size", default="4GiB", help="of the volume")
    parser.add_argument("--store-size", default="24GiB", help="of each of the three stores")
    parser.add_argument("--base-mib", type=int, default=2048, help="written before anything else")
    parser.add_argument("--cases", default="inside:2000:0,inside-snapshots:2000:100,beyond:100000:0,"
                        "beyond-snapshots:100000:100", help="NAME:BLOCKS:SNAPSHOTS, by comma")
    parser.add_argument("--json", help="file for the results")
    args = parser.parse_args()
    args.size = str(int(args.size.removesuffix("GiB")) << 30) if args.size.endswith("GiB") else args.size
    os.makedirs(args.dir)
    cluster = None
    try:
        cluster = Cluster(args.dir, args.bin, args.store_size, args.size)
        cluster.write(cluster.leader(cluster.nodes[1]), args.base_mib * 4, "write")
        results = []
        for case in args.cases.split(","):
            name, blocks, snapshots = case.split(":")
            results.append(one_case(cluster, name, int(blocks), int(snapshots)))
            print(json.dumps(results[-1]), flush=True)
    finally:
        if cluster:
            cluster.stop()
        shutil.rmtree(args.dir)
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"machine": platform.uname()._asdict(), "cores": os.cpu_count(), "base_mib": args.base_mib,
                       "results": results}, f, indent=1)
    print("every copy that was away is the same as its leader's")


if __name__ == "__main__":
    main()
