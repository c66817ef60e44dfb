#!/bin/bash
# Builds Esker and runs `esker demo` with what is given: three nodes on this machine, an encrypted volume, one node killed
# under load; in a temporary folder that is gone afterwards. ESKER_BIN_DIR names programs that are built already.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
bin=${ESKER_BIN_DIR:-}

if [ -z "$bin" ]; then
    "$root/scripts/setup.sh" build
    (cd "$root" && cargo build --release --locked -p esker-daemon -p esker-cli)
    bin=$root/target/release
fi
exec "$bin/esker" demo "$@"
