#!/bin/bash
# Fetches the parts of the virtual machine in which the tests attach volumes to a real kernel: Debian's
# kernel, QEMU to run it, and the programs that run in it. Nothing is installed and root is not needed: they
# are unpacked into a cache folder outside the tree. Prints that folder; does nothing when it is complete.
#   ESKER_TEST_CACHE   where the folder is made (default: ${XDG_CACHE_HOME:-~/.cache}/esker-test)
set -euo pipefail
# shellcheck source=scripts/fetch_debian.sh
. "$(dirname "$0")/fetch_debian.sh"

# What goes into the guest, each with the libraries it asks for.
programs="usr/sbin/nbd-client usr/sbin/mkfs.ext4 usr/sbin/e2fsck usr/sbin/mkfs.xfs usr/sbin/xfs_repair
    usr/bin/fio usr/bin/python3"
modules="virtio_net virtio_pci virtio_blk nbd crc32c_generic ext4 xfs"

open_folder guest
echo "$name: fetching Debian's kernel and QEMU into $dir" >&2
fetch qemu-system-x86 busybox-static nbd-client e2fsprogs xfsprogs fio python3-minimal
kernel=$(apt-cache "${options[@]}" depends linux-image-amd64 | awk '$1 == "Depends:" { print $2; exit }')
fetch_alone "$kernel"
unpack
release=${kernel#linux-image-}
cp "$dir/debian/boot/vmlinuz-$release" "$dir/vmlinuz"

# Runs a program of the unpacked packages with their libraries.
debian=$dir/debian
libraries=$debian/usr/lib/x86_64-linux-gnu:$debian/lib/x86_64-linux-gnu:$debian/usr/lib/x86_64-linux-gnu/ceph
cat >"$dir/run" <<END
#!/bin/sh
# Runs a program of the unpacked packages with their libraries: run usr/bin/qemu-system-x86_64 ...
program=\$1
shift
exec "$debian/lib64/ld-linux-x86-64.so.2" --library-path "$libraries" "$debian/\$program" "\$@"
END
chmod +x "$dir/run"

# The guest's files. Debian's packages disagree on /sbin and /usr/sbin; here they are one.
tree=$dir/tree
mkdir -p "$tree"/{usr/bin,usr/sbin,usr/lib,usr/lib64,etc,proc,sys,dev,tmp,run,mnt,root}
for name in bin sbin lib lib64; do ln -s "usr/$name" "$tree/$name"; done
place() { # place FILE: a file of the packages, links followed, where the guest looks for it
    local to=${1#"$debian"/}
    to=$tree/usr/${to#usr/}
    mkdir -p "$(dirname "$to")"
    [ -e "$to" ] || cp -L "$1" "$to"
}
find_program() {
    if [ -e "$debian/$1" ]; then echo "$debian/$1"; else echo "$debian/${1#usr/}"; fi
}
loader=$debian/lib64/ld-linux-x86-64.so.2
place "$loader"
cp -r "$debian/usr/lib/python3.11" "$tree/usr/lib/"
for program in $programs; do
    path=$(find_program "$program")
    place "$path"
    "$loader" --library-path "$libraries" --list "$path" | awk '/=> \// { print $3 }'
done | sort -u | while read -r library; do place "$library"; done
# Where the loader looks.
mv "$tree"/usr/lib/x86_64-linux-gnu/ceph/* "$tree/usr/lib/x86_64-linux-gnu/"
busybox=$(find_program usr/bin/busybox)
cp "$busybox" "$tree/usr/bin/busybox"
cp "$busybox" "$dir/busybox"
for name in $("$busybox" --list); do
    [ -e "$tree/usr/bin/$name" ] || [ -e "$tree/usr/sbin/$name" ] || ln -s busybox "$tree/usr/bin/$name"
done

# The modules, in the order they are inserted in.
"$busybox" depmod -b "$debian" "$release"
for module in $modules; do
    awk -v "name=/$module.ko:" 'index($1, name) { for (i = NF; i > 0; i--) print $i }' \
        "$debian/lib/modules/$release/modules.dep"
done | tr -d : | awk '!seen[$0]++' >"$tree/modules"
[ -s "$tree/modules" ]
mkdir -p "$tree/lib/modules"
while read -r module; do
    cp "$debian/lib/modules/$release/$module" "$tree/lib/modules/"
    echo "/lib/modules/${module##*/}"
done <"$tree/modules" >"$tree/modules.paths"
mv "$tree/modules.paths" "$tree/modules"
(cd "$tree" && find . | "$busybox" cpio -o -H newc 2>/dev/null) >"$dir/guest.cpio"

# What QEMU needs stays, the rest was only on the way.
rm -rf "$tree" "$debian/usr/lib/modules" "$debian/lib/modules" "$debian/boot"
close_folder
