#!/bin/bash
# Everything that must hold before a change is good: format, lints, licences and advisories, all
# tests, the simulator, the daemon with real programs, and the commands of the README. Closes with
# "N passed, M failed"; exits with 1 when anything failed.
#
# ESKER_SIM_SEEDS (2400) is the number of simulated worlds, which end after ESKER_SIM_SECONDS (1800) all
# the same and then say so at the end. ESKER_KILL_CYCLES (200) is the number of `kill -9` cycles. Full logs
# are in target/test/.
set -uo pipefail
cd "$(dirname "$0")/.."
./scripts/setup.sh || { echo "0 passed, 1 failed"; exit 1; }

logs=target/test
rm -rf "$logs"
mkdir -p "$logs"
export ESKER_SKIP_LOG=$PWD/$logs/skipped
: >"$ESKER_SKIP_LOG"
export ESKER_SIM_SEEDS=${ESKER_SIM_SEEDS:-2400}
export ESKER_SIM_SECONDS=${ESKER_SIM_SECONDS:-1800}
export ESKER_KILL_CYCLES=${ESKER_KILL_CYCLES:-200}
unset RUST_LOG
passed=0
failed=0
began=$SECONDS

# step NAME COMMAND...: one check, that counts as one.
step() {
    local name=$1 start=$SECONDS
    shift
    if "$@" >"$logs/$name.log" 2>&1; then
        passed=$((passed + 1))
        echo "ok    $name ($((SECONDS - start)) s)"
    else
        failed=$((failed + 1))
        echo "FAIL  $name ($((SECONDS - start)) s); $logs/$name.log ends:"
        tail -n 30 "$logs/$name.log"
    fi
}

# suite NAME COMMAND...: a run of cargo test, whose tests count each.
suite() {
    local name=$1 start=$SECONDS log=$logs/$1.log status=0 good bad
    shift
    "$@" >"$log" 2>&1 || status=$?
    read -r good bad < <(awk '/^test result: / { good += $4; bad += $6 } END { print good + 0, bad + 0 }' "$log")
    # What failed without a count: it did not build, it was killed, or nothing was run.
    if { [ "$status" != 0 ] || [ "$good" = 0 ]; } && [ "$bad" = 0 ]; then
        bad=1
    fi
    passed=$((passed + good))
    failed=$((failed + bad))
    if [ "$bad" = 0 ]; then
        echo "ok    $name: $good tests ($((SECONDS - start)) s)"
    else
        echo "FAIL  $name: $bad of $((good + bad)) ($((SECONDS - start)) s); see $log:"
        grep -E '^(test .* FAILED|error|    [a-z_:]+$)' "$log" | head -n 40
        grep -A 3 'panicked at' "$log" | head -n 60
        tail -n 30 "$log"
    fi
}

deny() {
    if ! cargo deny --version; then
        cargo install cargo-deny --locked --quiet || return 1
    fi
    cargo deny --all-features check bans licenses sources || return 1
    local out
    if out=$(cargo deny --all-features check advisories 2>&1); then
        echo "$out"
        return 0
    fi
    echo "$out"
    if grep -qiE 'failed to fetch advisory database|failed to (open|acquire|load) advisory|unable to fetch' <<<"$out"; then
        echo "SKIPPED advisories: the advisory database cannot be fetched" | tee -a "$ESKER_SKIP_LOG"
        return 0
    fi
    return 1
}

step format cargo fmt --all --check
step clippy cargo clippy --workspace --all-targets --locked -- -D warnings
step deny deny
step build cargo build --release --locked -p esker-daemon -p esker-cli
suite units cargo test --workspace --locked --exclude esker-tests --no-fail-fast
suite simulator cargo test --release --locked -p esker-tests --no-fail-fast \
    --lib --test 'engine_*' --test 'sim_*' -- --test-threads 2
suite real cargo test --release --locked -p esker-tests --no-fail-fast \
    --test real_parts -- --test-threads 2 --nocapture

echo
grep -hE 'slowest start to first I/O|images \(|lying connections' "$logs/real.log"
if [ -s "$ESKER_SKIP_LOG" ]; then
    echo "$(wc -l <"$ESKER_SKIP_LOG") skipped or cut short:"
    cat "$ESKER_SKIP_LOG"
fi
echo "$(((SECONDS - began) / 60)) min $(((SECONDS - began) % 60)) s"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
