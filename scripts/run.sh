#!/bin/bash
# Builds Esker, starts a node on ./esker-data, and shows that a volume keeps what is written to it.
# The node then serves until Ctrl-C; the next run opens the same data again.
#
# For scripts: ESKER_DATA (folder), ESKER_NBD and ESKER_METRICS (HOST:PORT or none), ESKER_STORE_SIZE,
# ESKER_BIN_DIR (programs that are built already), and ESKER_ONCE=1 to stop after the round trip.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
data=${ESKER_DATA:-$PWD/esker-data}
nbd=${ESKER_NBD:-127.0.0.1:10809}
metrics=${ESKER_METRICS:-127.0.0.1:9809}
store_size=${ESKER_STORE_SIZE:-4GiB}
bin=${ESKER_BIN_DIR:-}

if [ -z "$bin" ]; then
    "$root/scripts/setup.sh" run
    (cd "$root" && cargo build --release --locked -p esker-daemon -p esker-cli)
    bin=$root/target/release
fi

mkdir -p "$data"
ready=$(mktemp -d)
mkfifo "$ready/line"
"$bin/eskerd" --data "$data" --store-size "$store_size" --nbd "$nbd" --metrics "$metrics" \
    >"$ready/line" &
daemon=$!
# Whatever ends this script ends its daemon, cleanly.
finish() {
    status=$?
    trap - EXIT INT TERM
    rm -rf "$ready"
    if kill -TERM "$daemon" 2>/dev/null; then
        echo "stopping eskerd"
    fi
    wait "$daemon" || status=$?
    exit "$status"
}
trap finish EXIT
trap 'exit 0' INT TERM

read -r line <"$ready/line" || { wait "$daemon"; exit 1; }
echo "$line"

esker() { "$bin/esker" --data "$data" "$@"; }
esker volume show demo >/dev/null 2>&1 || esker volume create demo --size 1GiB >/dev/null
uri=$(esker volume show demo -o json | jq -r .uri)

# 16 MiB of noise go in over NBD and come back the same.
head -c 16777216 /dev/urandom >"$ready/written"
nbdcopy --flush "$ready/written" "$uri"
nbdcopy "$uri" "$ready/read"
cmp -n 16777216 "$ready/written" "$ready/read"
rm "$ready/written" "$ready/read"
echo "volume demo: 16 MiB written over NBD, flushed, read back: the same"

# A kernel device connects over TCP, and only a node that listens there has an address for it.
address=$(printf '%s\n' "$line" | sed -n 's,.*nbd://\([^ ,]*\).*,\1,p')
echo
echo "NBD URI      $uri"
if [ -n "$address" ]; then
    echo "over TCP     nbd://$address/demo"
    echo "kernel       nbd-client ${address%:*} ${address##*:} /dev/nbd0 -name demo"
fi
echo "kernel       nbd-client -unix $data/nbd.sock /dev/nbd0 -name demo"
echo "esker        $bin/esker --data $data volume list"
[ "$metrics" = none ] || echo "metrics      http://$metrics/metrics"
[ "${ESKER_ONCE:-}" = 1 ] && exit 0
echo
echo "serving; Ctrl-C stops it"
wait "$daemon"
