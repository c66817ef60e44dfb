"""Three daemons on this machine, in one cluster over loopback, and what the benchmarks ask of them."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import measuring

CLUSTER = "7c0de9a4-5b1f-4f0e-8d1c-0a9b8c7d6e5f"
PATIENCE = 300


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Node:
    """One of the three."""

    def __init__(self, id_, folder, binaries, store_size, ports, members):
        self.id, self.binaries, self.store_size, self.data = id_, binaries, store_size, f"{folder}/n{id_}"
        links, control, self.metrics_port = ports
        self.config = f"{folder}/n{id_}.toml"
        with open(self.config, "w") as f:
            f.write(f"[node]\nid = {id_}\n[cluster]\nid = '{CLUSTER}'\nlisten = '127.0.0.1:{links}'\n"
                    f"control = '127.0.0.1:{control}'\n{members}")
        self.process = None

    def start(self):
        self.process = subprocess.Popen(
            [f"{self.binaries}/eskerd", "--data", self.data, "--config", self.config, "--store-size",
             self.store_size, "--nbd", "none", "--metrics", f"127.0.0.1:{self.metrics_port}"],
            stdout=subprocess.PIPE, stderr=open(f"{self.data}.log", "a"), text=True)
        if not self.process.stdout.readline():
            with open(f"{self.data}.log") as f:
                sys.exit(f"node {self.id} does not start: {f.read()[-2000:]}")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.process.terminate()
        self.process.wait()

    def esker(self, *words):
        done = subprocess.run([f"{self.binaries}/esker", "--data", self.data, *words], check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"esker {' '.join(words)} at node {self.id}: {done.stderr}")
        return done.stdout

    def volume(self, name="v"):
        status = json.loads(self.esker("-o", "json", "status"))
        return next((v for v in status["volumes"] if v["name"] == name), None)

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

    def socket(self):
        return f"{self.data}/nbd.sock"

    def uri(self, name="v"):
        return f"nbd+unix:///{name}?socket={self.socket()}"

    def hash_of(self, name):
        digest = hashlib.sha256()
        copy = subprocess.Popen(["nbdcopy", self.uri(name), "-"], stdout=subprocess.PIPE)
        while piece := copy.stdout.read(1 << 20):
            digest.update(piece)
        if copy.wait():
            sys.exit(f"{name} cannot be read at node {self.id}")
        return digest.hexdigest()


class Cluster:
    """`v` is a volume with a copy on each node."""

    def __init__(self, folder, binaries, store_size, size, *words):
        self.folder, self.size, self.seed = os.path.abspath(folder), size, 0
        ports = {n: (free_port(), free_port(), free_port()) for n in (1, 2, 3)}
        members = "".join(f"[[cluster.node]]\nid = {n}\naddress = '127.0.0.1:{p[0]}'\ncontrol = '127.0.0.1:{p[1]}'\n"
                          for n, p in ports.items())
        self.nodes = {n: Node(n, self.folder, binaries, store_size, p, members) for n, p in ports.items()}
        # The daemons end with the script, however it ends.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
        try:
            for node in self.nodes.values():
                node.start()
            self.nodes[1].esker("volume", "create", "v", "--size", str(size), "--replicas", "3", *words)
        except BaseException:
            self.stop()
            raise

    def stop(self):
        for node in self.nodes.values():
            if node.process and node.process.poll() is None:
                node.stop()

    def leader(self, door=None, name="v", other_than=None):
        """Who leads the volume, as `door` tells."""
        door, end = door or self.nodes[1], time.monotonic() + PATIENCE
        while time.monotonic() < end:
            volume = door.volume(name)
            if volume and volume["leader"] and int(volume["leader"]) != other_than:
                return self.nodes[int(volume["leader"])]
            time.sleep(0.1)
        sys.exit(f"nobody leads {name}")

    def write(self, node, blocks, how="randwrite"):
        """That many blocks, nowhere twice."""
        self.seed += 1
        measuring.fio(["fio", "--name=w", "--ioengine=nbd", f"--uri={node.uri()}", f"--rw={how}",
                       "--bs=" + ("4k" if how == "randwrite" else "256k"), "--iodepth=32",
                       f"--size={self.size}", f"--number_ios={blocks}", "--random_generator=lfsr",
                       f"--randseed={self.seed}", "--refill_buffers=1"], f"{self.folder}/fio")

    def caught_up(self, node):
        """Waits until the leader holds nothing that the node does not."""
        end, replicas = time.monotonic() + PATIENCE, []
        while time.monotonic() < end:
            leader = self.leader(self.nodes[1] if node.id != 1 else self.nodes[2])
            replicas = (leader.volume() or {}).get("replicas", [])
            at = [r for r in replicas if r["node"] == str(node.id)]
            if at and at[0]["state"] == "ready" and at[0]["lag_bytes"] == 0 and node.counts()[2] == 0:
                return
            time.sleep(0.05)
        sys.exit(f"node {node.id} does not catch up: {replicas}")
