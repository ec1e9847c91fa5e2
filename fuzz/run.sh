#!/usr/bin/env bash
# Runs the targets, each for some seconds, two at a time: fuzz/run.sh SECONDS [TARGET...]
# Logs go to fuzz/logs, inputs that fail to fuzz/artifacts. Needs a nightly compiler and cargo-fuzz, which builds them all
# at once; the corpora are made by seeds.py.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:?how many seconds for each target}
shift
targets=("$@")
if ((${#targets[@]} == 0)); then
    for file in fuzz_targets/*.rs; do targets+=("$(basename "$file" .rs)"); done
fi
python3 seeds.py
mkdir -p logs
[ -n "${WEFT_FUZZ_BUILT:-}" ] || cargo +nightly fuzz build -O
programs="target/$(rustc -vV | sed -n 's/host: //p')/release"
# One thread computes what is this small. A template can make a value that holds itself, which is never freed: no finding.
export ASAN_OPTIONS=detect_leaks=0 RAYON_NUM_THREADS=1 WEFT_CACHE= RUST_BACKTRACE=1
run() {
    local target=$1 max=$((1 << 14))
    mkdir -p "corpus/$target" "artifacts/$target"
    nice "$programs/$target" "corpus/$target" -artifact_prefix="artifacts/$target/" -max_total_time="$seconds" \
        -rss_limit_mb=2048 -malloc_limit_mb=1024 -timeout=10 -max_len="$max" -print_final_stats=1 >"logs/$target.log" 2>&1 ||
        echo "$target: a finding, see fuzz/logs/$target.log"
    grep -h "stat::number_of_executed_units" "logs/$target.log" | sed "s/^/$target: /" || true
}
for target in "${targets[@]}"; do
    while (($(jobs -rp | wc -l) >= 2)); do wait -n || true; done
    run "$target" &
done
wait
