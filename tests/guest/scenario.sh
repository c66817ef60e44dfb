#!/bin/sh
# The first process of the guest: a real kernel, with the machine that runs the tests at 10.0.2.2. It
# attaches volumes of the daemon there and says on the second serial line, which $TELL names, what it did:
#   ok STEP        a step that held; the test expects each of them
#   host WORD      asks the test for something, and waits for its answer
#   note TEXT      for the reader
#   failed STEP    the step that did not hold; nothing more is done
#   passed         the end
# Volumes: e (ext4) and x (xfs) through nbd.ko, q through the drive that QEMU makes of it, disk for the
# examples. The kernel's own messages are on the first serial line.

export PATH=/usr/sbin:/usr/bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mount -t tmpfs none /tmp
TELL=/dev/ttyS1
stty -F $TELL raw -echo
exec 3<>$TELL
step=boot
tell() { echo "$*" >&3; }
ok() { tell "ok $step"; }
# Everything else goes to the first line, with what is run.
end() {
    [ "$1" = 0 ] || { tell "failed $step"; dmesg | tail -n 20 >&3; }
    sync
    poweroff -f
}
trap 'end $?' EXIT
set -eux

while read -r module; do
    case $module in *nbd.ko) insmod "$module" nbds_max=4 max_part=0 ;; *) insmod "$module" ;; esac
done </modules
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
PORT=$(sed -n 's/.*esker_port=\([0-9]*\).*/\1/p' /proc/cmdline)
mkdir -p /mnt/e /mnt/x /mnt/q
ok

attach() { # attach DEVICE NAME OPTIONS: with Debian's nbd-client
    device=$1 name=$2
    shift 2
    nbd-client 10.0.2.2 "$PORT" "/dev/$device" -name "$name" -b 4096 "$@"
    # With -nonetlink it returns before the device is ready.
    until [ "$(blockdev --getsize64 "/dev/$device")" = $((320 << 20)) ]; do usleep 50000; done
}
detach() {
    nbd-client -d "/dev/$1"
    until [ ! -e "/sys/block/$1/pid" ]; do usleep 50000; done
}
# No request may have failed so far.
no_errors() { ! dmesg | grep -E 'I/O error|EXT4-fs error|EXT4-fs warning|XFS .*(orrupt|rror)|Remounting'; }
host() { # host WORD: waits until the test has done it
    tell "host $1"
    read -r answer <&3
    [ "$answer" = "$1 done" ]
}

step=ext4
attach nbd0 e
mkfs.ext4 -q -E nodiscard /dev/nbd0
mount /dev/nbd0 /mnt/e
dd if=/dev/urandom of=/tmp/data bs=1M count=32 2>/dev/null
dd if=/tmp/data of=/mnt/e/data bs=1M conv=fsync 2>/dev/null
cp /mnt/e/data /mnt/e/copy
sync
echo 3 >/proc/sys/vm/drop_caches
cmp /tmp/data /mnt/e/data
cmp /tmp/data /mnt/e/copy
ok

step=fstrim
rm /mnt/e/copy
sync
host used-before-trim
fstrim -v /mnt/e
host used-after-trim
umount /mnt/e
e2fsck -f -n /dev/nbd0
ok

step=reattach
detach nbd0
attach nbd1 e
mount /dev/nbd1 /mnt/e
cmp /tmp/data /mnt/e/data
umount /mnt/e
detach nbd1
no_errors
ok

# The commands that examples/README.md gives for a kernel.
step=examples
cp /nbdtab /etc/nbdtab
nc -ll -p 10809 -e nc 10.0.2.2 "$PORT" & # the node as if it ran here
here=$!
sh -eux /examples.sh
kill $here
no_errors
ok

# A disk of the virtual machine, whose NBD client is QEMU.
step=qemu-drive
mkfs.ext4 -q -E nodiscard /dev/vda
mount /dev/vda /mnt/q
cp /tmp/data /mnt/q/data
sync
fstrim -v /mnt/q
umount /mnt/q
e2fsck -f -n /dev/vda
ok

# Four connections, a filesystem that is strict about ordering, and fio, which knows every block it wrote.
step=xfs-four-connections
attach nbd0 x -C 4
mkfs.xfs -q -K /dev/nbd0
mount -o discard /dev/nbd0 /mnt/x
fio --name=verify --directory=/mnt/x --size=24m --rw=randwrite --bsrange=4k-128k --blockalign=4k \
    --ioengine=libaio --direct=1 --iodepth=16 --fsync=32 --fallocate=none --thread --numjobs=1 \
    --verify=crc32c --verify_fatal=1 --verify_state_save=0 --output-format=terse >/tmp/fio
fstrim -v /mnt/x
umount /mnt/x
xfs_repair -n /dev/nbd0
detach nbd0
no_errors
ok

# The daemon is killed and comes back while both are mounted and written to.
step=killed-while-mounted
python3 /nbd-attach.py "10.0.2.2:$PORT" e /dev/nbd0 --connections 1 --timeout 3 >/tmp/attach.e 2>&1 &
python3 /nbd-attach.py "10.0.2.2:$PORT" x /dev/nbd1 --connections 3 --timeout 3 >/tmp/attach.x 2>&1 &
until grep -q connections /tmp/attach.e && grep -q connections /tmp/attach.x; do usleep 50000; done
mount /dev/nbd0 /mnt/e
mount /dev/nbd1 /mnt/x
mount /dev/vda /mnt/q
# Each line that is in `synced` was synced in its file before.
write_on() {
    set +x
    i=0 block=/tmp/block${1##*/}
    while [ -e /tmp/go-on ]; do
        i=$((i + 1))
        head -c 65536 /dev/urandom >"$block"
        sum=$(sha256sum <"$block")
        dd if="$block" of="$1/file$i" conv=fsync 2>/dev/null || exit 1
        echo "$1/file$i ${sum%% *}" >>/tmp/synced
    done
}
: >/tmp/go-on
: >/tmp/synced
write_on /mnt/e &
e=$!
write_on /mnt/x &
x=$!
write_on /mnt/q &
q=$!
synced() { grep -c "$1/" /tmp/synced || true; }
for _ in 1 2 3; do
    sleep 1
    host kill
    for at in /mnt/e /mnt/x /mnt/q; do
        lines=$(synced $at)
        until [ "$(synced $at)" -gt $((lines + 1)) ]; do
            kill -0 $e
            kill -0 $x
            kill -0 $q
            usleep 100000
        done
    done
    no_errors
done
rm /tmp/go-on
wait $e
wait $x
wait $q
cat /tmp/attach.e /tmp/attach.x
umount /mnt/e
umount /mnt/x
umount /mnt/q
e2fsck -f -n /dev/nbd0
xfs_repair -n /dev/nbd1
e2fsck -f -n /dev/vda
mount -o ro /dev/nbd0 /mnt/e
mount -o ro /dev/nbd1 /mnt/x
mount -o ro /dev/vda /mnt/q
while read -r file sum; do
    [ "$(sha256sum <"$file")" = "$sum  -" ]
done </tmp/synced
tell "note $(wc -l </tmp/synced) files synced over three kills"
cmp /tmp/data /mnt/e/data
cmp /tmp/data /mnt/q/data
umount /mnt/e
umount /mnt/x
umount /mnt/q
detach nbd0
detach nbd1
no_errors
ok

# Debian's nbd-client 3.24 alone. Its -persist is carried by no kernel of today: NBD_DO_IT returns 0 when the
# server is gone, which it takes for a disconnection somebody asked for. So requests fail and the device is
# gone; what was synced is there once it is attached again.
step=killed-under-nbd-client
attach nbd2 e -nonetlink -persist
mount /dev/nbd2 /mnt/e
dd if=/tmp/data of=/mnt/e/synced bs=1M count=8 conv=fsync 2>/dev/null
host kill
sleep 3
if dd if=/dev/urandom of=/mnt/e/after bs=1M count=1 conv=fsync; then
    tell "note nbd-client -nonetlink -persist: the mounted filesystem went on"
else
    tell "note nbd-client -nonetlink -persist: the mounted filesystem failed"
fi
umount /mnt/e
detach nbd2
attach nbd3 e
mount /dev/nbd3 /mnt/e
dd if=/mnt/e/synced of=/tmp/synced.back bs=1M
cmp -n $((8 << 20)) /tmp/data /tmp/synced.back
cmp /tmp/data /mnt/e/data
umount /mnt/e
# The journal is replayed; the error that the failed writes left in the superblock is not damage.
code=0
e2fsck -f -p /dev/nbd3 || code=$?
[ $code -le 1 ]
e2fsck -f -n /dev/nbd3
detach nbd3
ok

tell passed
