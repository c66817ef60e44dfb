#!/bin/sh
# Installs what building and testing Esker needs on Debian 12 besides Rust: the programs that are
# missing, and nothing that is there. Needs root (or sudo) only when something is missing.
#   setup.sh build    only what the build needs
#   setup.sh run      also what scripts/run.sh uses
#   setup.sh          also what the tests use, setup_guest.sh's virtual machine and PostgreSQL included
set -eu

# Program or file, and the package that brings it.
build="protoc:protobuf-compiler cc:gcc"
run="nbdcopy:libnbd-bin jq:jq"
tests="nbdinfo:libnbd-bin nbdfuse:libnbd-bin
    /usr/lib/python3/dist-packages/nbd.py:python3-libnbd
    /usr/lib/python3/dist-packages/prometheus_client/__init__.py:python3-prometheus-client
    fio:fio nbd-client:nbd-client qemu-io:qemu-utils qemu-img:qemu-utils fusermount3:fuse3 nbdkit:nbdkit
    losetup:mount mkfs.ext4:e2fsprogs e2fsck:e2fsprogs fstrim:util-linux cmp:diffutils openssl:openssl
    ip:iproute2 tc:iproute2 nsenter:util-linux"

case ${1:-all} in
    build) wanted=$build ;;
    run) wanted="$build $run" ;;
    all) wanted="$build $run $tests" ;;
    *) echo "setup: build, run or nothing, not $1" >&2; exit 2 ;;
esac
PATH=$PATH:/usr/sbin:/sbin
missing=""
for pair in $wanted; do
    thing=${pair%%:*}
    package=${pair##*:}
    case $thing in
        /*) [ -e "$thing" ] && continue ;;
        *) command -v "$thing" >/dev/null 2>&1 && continue ;;
    esac
    case " $missing " in *" $package "*) ;; *) missing="$missing $package" ;; esac
done

if ! command -v cargo >/dev/null 2>&1; then
    echo "setup: Rust is missing; install it from https://rustup.rs and try again" >&2
    exit 1
fi
if [ -n "$missing" ]; then
    echo "setup: installing$missing"
    as_root=""
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null 2>&1 || { echo "setup: needs root to install:$missing" >&2; exit 1; }
        as_root=sudo
    fi
    export DEBIAN_FRONTEND=noninteractive
    $as_root apt-get update -qq
    # shellcheck disable=SC2086 # one word per package
    $as_root apt-get install -y -qq --no-install-recommends $missing
fi

# The tests that use these say so when they are not there.
if [ "${1:-all}" = all ]; then
    for part in setup_guest.sh setup_postgres.sh setup_key_servers.sh; do
        "$(dirname "$0")/$part" >/dev/null ||
            echo "setup: $part failed: the tests that need it will be skipped" >&2
    done
fi
