#!/usr/bin/env bash
# Runs the named benchmarks, or all, each in a process of its own; JSON goes to benchmarks/results/<commit>/.
# The long ones run short here, so that all take about five minutes; HEADRACE_BENCH=full runs them as long as docs/benchmarks.md does.
set -euo pipefail
cd "$(dirname "$0")/.."
commit=$(git describe --always --dirty 2>/dev/null || echo unknown)
results=benchmarks/results/$commit
mkdir -p "$results"
{
    uname -srm
    grep -m1 'model name' /proc/cpuinfo || true
    echo "cores: $(nproc)"
    .venv/bin/python --version
    .venv/bin/python .ci/hot.py state
} >"$results/machine.txt"
names=("$@")
if [ ${#names[@]} = 0 ]; then
    for file in benchmarks/*.py; do names+=("$(basename "$file" .py)"); done
fi
for name in "${names[@]}"; do
    echo "== $name" >&2
    short=()
    if [ "${HEADRACE_BENCH:-}" != full ]; then
        case $name in
            postgres_drain) short=(--rows 100000 --rounds 2) ;;
            binlog_drain) short=(--rows 60000 --rounds 1) ;;
            binlog_latency) short=(--seconds 10) ;;
            transform) short=(--events 5000 --rounds 1) ;;
            latency) short=(--seconds 10 --starts 3) ;;
            huge_transaction) short=(--rows 500000 --end commit) ;;
            postgres_snapshot) short=(--rows 200000 --rounds 1) ;;
            restart) short=(--log-mib 100 --rounds 2 --idle-s 5) ;;
            collector) short=(--seconds 2 --rounds 1) ;;
            log_append | store_write) short=(--seconds 1) ;;
            burst) short=(--seconds 5) ;;
            feature_reads) short=(--rows 2000 --requests 20 --rounds 1) ;;
            sink_latency) short=(--seconds 5 --down 10) ;;
            whole_line) short=(--events 30000) ;;
            backfill) short=(--rows 30000) ;;
            personalize_calls) short=(--calls 3000 --rounds 1) ;;
            decay) short=(--entities 5000) ;;
            fanout) short=(--events 50000 --seconds 3) ;;
            scaling) short=(--scale 0.02) ;;
            delivery) short=(--events 50000) ;;
        esac
    fi
    .venv/bin/python "benchmarks/$name.py" --json ${short[@]+"${short[@]}"} | tee "$results/$name.json"
done
