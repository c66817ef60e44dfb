#!/bin/bash
# Fuzzes every target in turn, so many minutes each (default 5), one at a time.
#   fuzz.sh [MINUTES] [TARGET...]    fuzz; prints how often each ran
#   fuzz.sh minimise [TARGET...]     replaces fuzz/corpus-seed by the fewest inputs that reach as much
# Needs a nightly compiler (rustup toolchain install nightly) and a C++ compiler; installs cargo-fuzz.
#
# An input that breaks a rule is left in fuzz/artifacts/TARGET; `cargo +nightly fuzz run TARGET FILE`
# from the root shows it again. Copied to fuzz/corpus-seed/TARGET under the name of its story, it is
# replayed by every `cargo test`.
set -euo pipefail
cd "$(dirname "$0")/.."

minutes=5
minimise=""
case ${1:-} in
    minimise) minimise=1; shift ;;
    *[!0-9]* | "") ;;
    *) minutes=$1; shift ;;
esac
# One list of targets: the programs that cargo knows.
all=$(sed -n 's/^name = "\([a-z_]*\)"$/\1/p' fuzz/Cargo.toml)
targets=${*:-$all}

if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "fuzz: a nightly compiler is missing; rustup toolchain install nightly" >&2
    exit 1
fi
cargo fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --locked --quiet

# Longest inputs, in bytes: a page or a few; steps of a session.
longest() {
    case $1 in
        superblock | node) echo 4096 ;;
        record) echo 8192 ;;
        *) echo 2048 ;;
    esac
}

bin=fuzz/target/x86_64-unknown-linux-gnu/release
cargo +nightly fuzz build
failed=0
for target in $targets; do
    seeds=fuzz/corpus-seed/$target
    grown=fuzz/corpus/$target
    mkdir -p "$seeds" "$grown" "fuzz/artifacts/$target"
    if [ -n "$minimise" ]; then
        fewest=$(mktemp -d)
        "$bin/$target" -set_cover_merge=1 -rss_limit_mb=4096 "$fewest" "$grown" "$seeds" 2>/dev/null
        # Regressions have names and stay; what only has a hash is replaced.
        find "$seeds" -type f -regextype posix-extended -regex '.*/[0-9a-f]{40}' -delete
        # What is in many bytes what others reach in few is not worth its place in the repository.
        find "$fewest" -type f -size -"$(longest "$target")"c -printf '%s %p\n' | sort -n | head -n 150 |
            while read -r _ file; do cp "$file" "$seeds/"; done
        rm -rf "$fewest"
        echo "$target: $(find "$seeds" -type f | wc -l) inputs, $(du -sb "$seeds" | cut -f1) bytes"
        continue
    fi
    log=$(mktemp)
    # One allocation of 64 MiB is a defect: everything that is decoded or held has a smaller maximum.
    if "$bin/$target" -max_total_time=$((minutes * 60)) -max_len="$(longest "$target")" -timeout=20 \
        -malloc_limit_mb=64 -rss_limit_mb=2048 -print_final_stats=1 -verbosity=1 \
        -artifact_prefix="fuzz/artifacts/$target/" "$grown" "$seeds" >"$log" 2>&1; then
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        echo "ok    $target: $runs runs in $minutes min, $(find "$grown" -type f | wc -l) inputs kept"
        rm "$log"
    else
        failed=1
        echo "FAIL  $target; $log ends:"
        tail -n 40 "$log"
    fi
done
exit $failed
