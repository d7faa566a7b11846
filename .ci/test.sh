#!/usr/bin/env bash
# The suite as built, then the tests of the hot modules once more on their uncompiled twins.
# Further words go to pytest:  .ci/test.sh tests/cdc -k position
set -euo pipefail
cd "$(dirname "$0")/.."
# Whole files side by side, on two cores: most tests wait for servers. What is asked for by name runs alone, and shows its output as it comes.
# A worker that dies is replaced once, not eight times: one that hangs is ended after minutes (tests/conftest.py).
words=("$@")
if [ $# = 0 ]; then words=(-n 2 --dist loadfile --max-worker-restart 1); fi
.venv/bin/python -m pytest "${words[@]}"
if .venv/bin/python .ci/hot.py any; then
    echo "headrace: the same hot modules again, uncompiled"
    # 5: these words select no test of a hot module.
    HEADRACE_PURE=1 .venv/bin/python -m pytest "${words[@]}" || { code=$?; [ "$code" = 5 ] || exit "$code"; }
else
    echo "headrace: no C compiler was found here; the suite ran on uncompiled modules only"
fi
