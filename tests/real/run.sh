#!/usr/bin/env bash
# Make an environment with the other projects (about 2.5 minutes) and search over their modules (about 4, two cores).
# An environment that is there already is used again: tests/real/run.sh [folder of the environment]
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=${1:-.venv-real}
if [ ! -x "$venv/bin/python" ]; then
    python3 -m venv "$venv"
fi
# Not the extra `test`: its trackers need another protobuf than TensorBoard has here.
awk -F== 'NR == FNR { own[$1] } NR == FNR || !($1 in own)' tests/real/constraints.txt constraints.txt >"$venv/constraints.txt"
"$venv/bin/pip" install -q -c "$venv/constraints.txt" -e ".[real]" hypothesis pytest pytest-timeout
OMP_NUM_THREADS=1 "$venv/bin/python" -m pytest -q -W default tests/real --durations=5
