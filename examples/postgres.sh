#!/bin/bash
# PostgreSQL on a mounted volume: makes a cluster in FOLDER/data, measures its syncs, runs pgbench, and has
# every page and index checked.
#   postgres.sh FOLDER
# PG_BIN     the folder with its programs (default: the newest of /usr/lib/postgresql)
# PG_SECONDS how long pgbench runs (default: 10)
set -euo pipefail
folder=$(realpath "${1:?postgres.sh FOLDER}")
bin=${PG_BIN:-$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)}
seconds=${PG_SECONDS:-10}
export PGDATA=$folder/data PGUSER=postgres PGDATABASE=postgres
PGHOST=$(mktemp -d)
export PGHOST

# PostgreSQL refuses to be root. As root it becomes nobody here, in a user namespace in which nobody owns
# what root owns; a server that stays would have a user of its own.
pg() {
    local program=$1
    shift
    if [ "$(id -u)" = 0 ]; then
        unshare --map-user=65534 --map-group=65534 "$bin/$program" "$@"
    else
        "$bin/$program" "$@"
    fi
}

pg pg_test_fsync -s 1 -f "$folder/pg_test_fsync.out"
pg initdb -U postgres -A trust --data-checksums >/dev/null
printf "listen_addresses = ''\nunix_socket_directories = '%s'\n" "$PGHOST" >>"$PGDATA/postgresql.conf"
pg pg_ctl -w -l "$PGHOST/log" start >/dev/null
trap 'pg pg_ctl -w -m fast stop >/dev/null; rm -rf "$PGHOST"' EXIT
pg pgbench -i -q -s 5
pg pgbench -c 4 -T "$seconds"
pg pg_amcheck --all --install-missing --heapallindexed --parent-check
echo "pg_amcheck: nothing is wrong"
