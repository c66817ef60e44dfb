#!/usr/bin/env python3
"""A filesystem on a volume whose store runs full, again and again, and gets room back.

Two volumes share a store that holds both only in part. One has ext4 on it; the other is ballast. In each
round the ballast is written until little room is left, and files are written into the filesystem (O_DIRECT,
each with an fsync, whose checksum is kept) until that fails for want of space. Then the
ballast is trimmed, which must work on a full store, and the next write must be taken; how long it takes, the start of qemu-io
included, is noted. What the filesystem says counts: where it has given itself
up (an aborted journal), it is unmounted, checked by `e2fsck -p`, and mounted again. After that every
file that was synced must read back as it was, and a new one must be written at once; half of the files are deleted and
trimmed (fstrim), and what `esker space` calls live must fall by as much. At the end an offline `esker
verify` finds nothing.

Needs root, /dev/fuse, loop devices, nbdfuse, e2fsprogs, qemu-io, and release builds of eskerd and esker.
Everything happens in one scratch folder (--dir). It ends with an error at the first thing that is not as it must be.
"""

import argparse
import errno
import hashlib
import json
import mmap
import os
import platform
import shutil
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MIB = 1 << 20
# What failed for want of space: the write itself, or a filesystem that has given itself up over it.
FULL = (errno.ENOSPC, errno.EIO, errno.EROFS)


def run(*words, codes=(0,)):
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode not in codes:
        sys.exit(f"{' '.join(words)} ended with {done.returncode}: {done.stdout}")
    return done.stdout


class Store:
    """An eskerd with the two volumes."""

    def __init__(self, args):
        self.data, self.bin = f"{args.dir}/data", args.bin
        self.process = subprocess.Popen(
            [f"{args.bin}/eskerd", "--data", self.data, "--store-size", args.store_size, "--nbd", "none",
             "--metrics", "none"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.process.stdout.readline()
        for name, size in (("fs", args.volume), ("ballast", args.store_size)):
            self.esker("volume", "create", name, "--size", size)

    def esker(self, *words):
        return run(f"{self.bin}/esker", "--data", self.data, *words)

    def uri(self, name):
        return f"nbd+unix:///{name}?socket={self.data}/nbd.sock"

    def space(self, *of):
        return json.loads(self.esker("-o", "json", "space", *of))

    def live(self):
        return self.space()["live_bytes"]

    def qemu_io(self, *commands):
        words = [word for command in commands for word in ("-c", command)]
        done = subprocess.run(["qemu-io", "-f", "raw", *words, self.uri("ballast")], check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return "No space left" not in done.stdout and done.returncode == 0, done.stdout

    def stop(self):
        self.process.terminate()
        if self.process.wait(60):
            sys.exit("eskerd did not end cleanly")


class Files:
    """The filesystem, and what must be in it."""

    def __init__(self, store, args):
        self.folder, self.mount = f"{args.dir}/disk", f"{args.dir}/disk/mnt"
        self.bytes = args.file_mib * MIB
        os.makedirs(self.mount)
        os.makedirs(f"{self.folder}/fuse")
        file = f"{self.folder}/fuse/volume"
        self.fuse = subprocess.Popen(["nbdfuse", file, store.uri("fs")])
        while not os.path.exists(file):
            if self.fuse.poll() is not None:
                sys.exit("nbdfuse has ended")
            time.sleep(0.05)
        self.device = run("losetup", "--find", "--show", file).strip()
        run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", self.device)
        self.known, self.number, self.repairs = {}, 0, 0
        run("mount", self.device, self.mount)

    def write(self):
        """Writes one more file and syncs it; gives the error when there is no room."""
        self.number += 1
        path = f"{self.mount}/{self.number}"
        digest, piece = hashlib.sha256(), mmap.mmap(-1, MIB)
        try:
            fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_DIRECT)
            try:
                for _ in range(self.bytes // MIB):
                    piece[:] = os.urandom(MIB)
                    digest.update(piece)
                    if os.write(fd, piece) != MIB:
                        return errno.ENOSPC
                os.fsync(fd)
            finally:
                os.close(fd)
            folder = os.open(self.mount, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            if error.errno not in FULL:
                raise
            return error.errno
        self.known[path] = digest.hexdigest()
        return None

    def is_given_up(self):
        with open("/proc/mounts") as f:
            options = next(line.split()[3] for line in f if line.split()[1] == self.mount)
        return "ro" in options.split(",") or not os.access(self.mount, os.W_OK)

    def recover(self):
        """Mounts it anew, which also drops what is cached."""
        given_up = self.is_given_up()
        run("umount", self.mount)
        if given_up:
            self.repairs += 1
            run("e2fsck", "-p", self.device, codes=(0, 1))
        run("mount", self.device, self.mount)
        return given_up

    def check(self):
        for path, digest in self.known.items():
            with open(path, "rb") as f:
                if hashlib.file_digest(f, "sha256").hexdigest() != digest:
                    sys.exit(f"{path} is not what was synced")

    def delete(self, paths):
        for path in paths:
            os.remove(path)
            self.known.pop(path, None)
        os.sync()
        run("fstrim", self.mount)

    def close(self):
        run("umount", self.mount)
        run("e2fsck", "-f", "-n", self.device)
        run("losetup", "--detach", self.device)
        # The loop device lets go of the file a moment later.
        while subprocess.run(["umount", f"{self.folder}/fuse"], stderr=subprocess.DEVNULL, check=False).returncode:
            time.sleep(0.1)
        self.fuse.wait()


def leave_room(store, room):
    """Writes ballast until about `room` bytes are left."""
    at = 0
    while True:
        space = store.space()
        # Garbage is room as well: it is collected when it is needed.
        used = space["live_bytes"] + space["snapshot_bytes"] + space["reserve_bytes"]
        free = space["total_bytes"] - used
        if free <= room:
            return at
        length = max(MIB, min(32 * MIB, free - room) // MIB * MIB)
        done, said = store.qemu_io(f"write -P {at // MIB % 255 + 1} {at} {length}")
        if not done:
            if "No space left" not in said:
                sys.exit(f"ballast: {said}")
            return at
        at += length


def one_round(number, store, files, args):
    began = time.monotonic()
    ballast = leave_room(store, args.room_mib * MIB)
    before = len(files.known)
    while (refused := files.write()) is None:
        if len(files.known) - before > args.room_mib * 4 // args.file_mib + 64:
            sys.exit("the store does not run full")
    full = store.live()
    done, said = store.qemu_io(f"discard 0 {ballast}")
    if not done:
        sys.exit(f"a full store refuses a trim: {said}")
    began_again = time.monotonic()
    done, said = store.qemu_io("write -P 1 0 4096")
    if not done:
        sys.exit(f"a write behind the trim that made room is refused: {said}")
    room_after = time.monotonic() - began_again
    given_up = files.recover()
    files.check()
    if files.write() is not None:
        sys.exit("there is room again, and a write is refused")
    paths = sorted(files.known)[::2]
    stray = [f"{files.mount}/{n}" for n in os.listdir(files.mount)]
    stray = [p for p in stray if p not in files.known and os.path.isfile(p)]
    live = store.live()
    files.delete(paths + stray)
    files.check()
    freed = live - store.live()
    if freed < len(paths) * files.bytes * 9 // 10:
        sys.exit(f"{len(paths)} files were deleted and trimmed, and {freed} bytes came back")
    return {"round": number, "ballast_mib": ballast // MIB, "files": len(files.known) + len(paths),
            "refused_with": errno.errorcode[refused], "room_after_s": round(room_after, 3),
            "filesystem_gave_up": given_up, "live_mib_when_full": full // MIB, "came_back_mib": freed // MIB,
            "seconds": round(time.monotonic() - began, 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", required=True, help="new scratch folder; removed afterwards")
    parser.add_argument("--bin", default=f"{ROOT}/target/release", help="folder with eskerd and esker")
    parser.add_argument("--store-size", default="2GiB")
    parser.add_argument("--volume", default="2GiB", help="size of the volume with the filesystem")
    parser.add_argument("--room-mib", type=int, default=256, help="left for files by the ballast")
    parser.add_argument("--file-mib", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", help="write the rounds here")
    args = parser.parse_args()
    if os.path.exists(args.dir):
        sys.exit(f"{args.dir} exists; name a new folder")
    os.makedirs(args.dir)
    args.dir = os.path.realpath(args.dir)
    store = Store(args)
    files = None
    rounds = []
    try:
        files = Files(store, args)
        for number in range(1, args.rounds + 1):
            rounds.append(one_round(number, store, files, args))
            print(json.dumps(rounds[-1]), flush=True)
        files.close()
    except BaseException:
        # Nothing of it stays mounted; the folder stays, to be looked at.
        for path in (f"{args.dir}/disk/mnt", f"{args.dir}/disk/fuse"):
            subprocess.run(["umount", "--lazy", path], stderr=subprocess.DEVNULL, check=False)
        if files:
            subprocess.run(["losetup", "--detach", files.device], stderr=subprocess.DEVNULL, check=False)
        store.process.terminate()
        raise
    store.stop()
    run(f"{args.bin}/esker", "verify", f"{store.data}/store-0.esker")
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"machine": platform.platform(), "rounds": rounds}, f, indent=2)
    shutil.rmtree(args.dir)
    print(f"{len(rounds)} rounds: every synced file was as it was; the filesystem gave up in {files.repairs}")


if __name__ == "__main__":
    main()
