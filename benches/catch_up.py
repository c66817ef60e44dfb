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
import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

BLOCK = 4096
CLUSTER = "7c0de9a4-5b1f-4f0e-8d1c-0a9b8c7d6e5f"
PATIENCE = 300


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Node:
    """One of the three."""

    def __init__(self, id_, args, ports, members):
        self.id, self.args, self.data = id_, args, f"{args.dir}/n{id_}"
        links, control, self.metrics_port = ports
        self.config = f"{args.dir}/n{id_}.toml"
        with open(self.config, "w") as f:
            f.write(f"[node]\nid = {id_}\n[cluster]\nid = '{CLUSTER}'\nlisten = '127.0.0.1:{links}'\n"
                    f"control = '127.0.0.1:{control}'\n{members}")
        self.process = None

    def start(self):
        self.process = subprocess.Popen(
            [f"{self.args.bin}/eskerd", "--data", self.data, "--config", self.config, "--store-size",
             self.args.store_size, "--nbd", "none", "--metrics", f"127.0.0.1:{self.metrics_port}"],
            stdout=subprocess.PIPE, stderr=open(f"{self.data}.log", "a"), text=True)
        if not self.process.stdout.readline():
            sys.exit(f"node {self.id} does not start: see {self.data}.log")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.process.terminate()
        self.process.wait()

    def esker(self, *words):
        done = subprocess.run([f"{self.args.bin}/esker", "--data", self.data, *words], check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"esker {' '.join(words)} at node {self.id}: {done.stderr}")
        return done.stdout

    def volume(self):
        status = json.loads(self.esker("-o", "json", "status"))
        return next((v for v in status["volumes"] if v["name"] == "v"), None)

    def counts(self):
        """Bytes received on links, bytes fetched by versions, and replicas that are at it."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        text = urllib.request.urlopen(url, timeout=10).read().decode()
        received = fetched = running = 0
        for line in text.splitlines():
            name, _, value = line.rpartition(" ")
            if name.startswith("esker_peer_bytes_total") and 'direction="in"' in name:
                received += int(float(value))
            elif name.startswith("esker_catch_up_fetched_bytes_total"):
                fetched += int(float(value))
            elif name.startswith("esker_catch_up_replicas{"):
                running += int(float(value))
        return received, fetched, running

    def uri(self, name):
        return f"nbd+unix:///{name}?socket={self.data}/nbd.sock"

    def hash_of(self, name):
        digest = hashlib.sha256()
        copy = subprocess.Popen(["nbdcopy", self.uri(name), "-"], stdout=subprocess.PIPE)
        while piece := copy.stdout.read(1 << 20):
            digest.update(piece)
        if copy.wait():
            sys.exit(f"{name} cannot be read at node {self.id}")
        return digest.hexdigest()


class Cluster:
    def __init__(self, args):
        self.args, self.seed = args, 0
        ports = {n: (free_port(), free_port(), free_port()) for n in (1, 2, 3)}
        members = "".join(f"[[cluster.node]]\nid = {n}\naddress = '127.0.0.1:{p[0]}'\ncontrol = '127.0.0.1:{p[1]}'\n"
                          for n, p in ports.items())
        self.nodes = {n: Node(n, args, p, members) for n, p in ports.items()}
        for node in self.nodes.values():
            node.start()
        self.nodes[1].esker("volume", "create", "v", "--size", args.size, "--replicas", "3")

    def leader(self, door):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            volume = door.volume()
            if volume and volume["leader"]:
                return self.nodes[int(volume["leader"])]
            time.sleep(0.1)
        sys.exit("nobody leads")

    def write(self, node, blocks, how="randwrite"):
        """That many blocks, nowhere twice."""
        self.seed += 1
        subprocess.run(["fio", "--name=w", "--ioengine=nbd", f"--uri={node.uri('v')}", f"--rw={how}",
                        "--bs=" + ("4k" if how == "randwrite" else "256k"), "--iodepth=32",
                        f"--size={self.args.size}", f"--number_ios={blocks}", "--random_generator=lfsr",
                        f"--randseed={self.seed}", "--refill_buffers=1", f"--output={self.args.dir}/fio"], check=True)

    def caught_up(self, node):
        """Waits until the leader holds nothing that the node does not."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            leader = self.leader(self.nodes[1] if node.id != 1 else self.nodes[2])
            replicas = (leader.volume() or {}).get("replicas", [])
            at = [r for r in replicas if r["node"] == str(node.id)]
            if at and at[0]["state"] == "ready" and at[0]["lag_bytes"] == 0 and node.counts()[2] == 0:
                return
            time.sleep(0.05)
        sys.exit(f"node {node.id} does not catch up: {replicas}")


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
        cluster = Cluster(args)
        cluster.write(cluster.leader(cluster.nodes[1]), args.base_mib * 4, "write")
        results = []
        for case in args.cases.split(","):
            name, blocks, snapshots = case.split(":")
            results.append(one_case(cluster, name, int(blocks), int(snapshots)))
            print(json.dumps(results[-1]), flush=True)
    finally:
        for node in cluster.nodes.values() if cluster else []:
            if node.process and node.process.poll() is None:
                node.stop()
        shutil.rmtree(args.dir)
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"machine": platform.uname()._asdict(), "cores": os.cpu_count(), "base_mib": args.base_mib,
                       "results": results}, f, indent=1)
    print("every copy that was away is the same as its leader's")


if __name__ == "__main__":
    main()
