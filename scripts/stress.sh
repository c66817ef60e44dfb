#!/bin/bash
# fio, qemu-io, qemu-img, nbdcopy and libnbd at once on one volume, each in a region whose every byte it
# checks, with readers of all of it; then a clean stop and an offline check. Memory and descriptors must stay
# flat.
#   stress.sh [MINUTES]   10 by default
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=${1:-10}
ESKER_STRESS_SECONDS=$((minutes * 60)) cargo test --release --locked -p esker-tests --test real_parts -- \
    everybody_at_once --nocapture
