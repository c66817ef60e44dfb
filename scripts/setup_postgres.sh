#!/bin/bash
# Fetches PostgreSQL for the tests that run it on a volume. Nothing is installed, no server is started and
# root is not needed: it is unpacked into a cache folder outside the tree. Prints that folder; does nothing
# when it is complete.
#   ESKER_TEST_CACHE   where the folder is made (default: ${XDG_CACHE_HOME:-~/.cache}/esker-test)
set -euo pipefail
# shellcheck source=scripts/fetch_debian.sh
. "$(dirname "$0")/fetch_debian.sh"

open_folder postgres
echo "$name: fetching PostgreSQL into $dir" >&2
fetch postgresql
unpack
# Its programs run each other by name, so they run on this machine's libc; the other libraries come along.
debian=$dir/debian
ln -s "$(cd "$debian/usr/lib/postgresql" && echo "$debian"/usr/lib/postgresql/*/bin)" "$dir/bin"
mkdir "$dir/lib"
for folder in lib usr/lib; do
    find "$debian/$folder/x86_64-linux-gnu" -maxdepth 1 -name 'lib*.so*' -exec ln -sf {} "$dir/lib/" \;
done
for library in libc libm libdl librt libpthread libresolv libutil libanl libnsl libthread_db; do
    rm -f "$dir/lib/$library.so".* "$dir/lib/$library"-*
done
rm -f "$dir"/lib/libnss_* "$dir"/lib/libmvec* "$dir"/lib/libBrokenLocale*
LD_LIBRARY_PATH=$dir/lib "$dir/bin/postgres" --version >&2
close_folder
