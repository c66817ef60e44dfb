#!/bin/bash
# Writes man pages and shell completions anew from the programs' own definitions.
#   dist.sh [DIR]    into DIR/man and DIR/completions; DIR is dist/ when not given
# ESKER_BIN_DIR names the folder of the programs (target/release).
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-dist}
bin=${ESKER_BIN_DIR:-target/release}
rm -rf "$out/man" "$out/completions"
mkdir -p "$out/man" "$out/completions"
unset ESKER_DATA
"$bin/esker" man --out "$out/man"
"$bin/esker" completions bash >"$out/completions/esker.bash"
"$bin/esker" completions zsh >"$out/completions/_esker"
"$bin/esker" completions fish >"$out/completions/esker.fish"
"$bin/eskerd" --dist "$out"
