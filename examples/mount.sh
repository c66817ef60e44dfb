#!/bin/bash
# A volume as a disk where the kernel has no nbd.ko: nbdkit, which connects again when the node comes back;
# nbdfuse, which makes it a file; a loop device, which makes the file a disk. As root.
#   mount.sh attach URI FOLDER   writes the device's name to FOLDER/device; FOLDER/mnt is there to mount it on
#   mount.sh detach FOLDER       after it has been unmounted
set -euo pipefail

usage() {
    sed -n '2,/^set/s/^# *//p' "$0" >&2
    exit 2
}

attach() {
    local uri=$1 folder=$2
    mkdir -p "$folder/mnt" "$folder/fuse"
    # Tries once a second for five minutes; after that requests fail.
    nbdkit --unix "$folder/nbd.sock" --pidfile "$folder/nbdkit.pid" --filter=retry nbd uri="$uri" \
        retries=300 retry-delay=1 retry-exponential=no
    nbdfuse --pidfile "$folder/nbdfuse.pid" "$folder/fuse/volume" "nbd+unix:///?socket=$folder/nbd.sock" &
    until [ -e "$folder/nbdfuse.pid" ]; do
        kill -0 $! 2>/dev/null || { echo "mount.sh: nbdfuse has ended" >&2; exit 1; }
        sleep 0.05
    done
    losetup --find --show "$folder/fuse/volume" >"$folder/device"
    cat "$folder/device"
}

detach() {
    local folder=$1
    losetup --detach "$(cat "$folder/device")"
    # The loop device lets go of the file a moment later.
    until umount "$folder/fuse" 2>/dev/null; do sleep 0.1; done
    kill "$(cat "$folder/nbdkit.pid")"
    rm -f "$folder"/{device,nbd.sock,nbdkit.pid,nbdfuse.pid}
}

case ${1:-} in
    attach) [ $# = 3 ] || usage; mkdir -p "$3"; attach "$2" "$(realpath "$3")" ;;
    detach) [ $# = 2 ] || usage; detach "$(realpath "$2")" ;;
    *) usage ;;
esac
