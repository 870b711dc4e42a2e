#!/usr/bin/env bash
# The test suite in an environment of its own: installs what is missing, checks the code's style and types, runs pytest.
# Arguments go to pytest: bash scripts/test.sh tests/test_sampling.py -k clip
# Two processes share the test files, with one thread each (TEST_PROCESSES=0: one process, as pytest alone).
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh test
ruff check .
ruff format --check .
mypy
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec python -m pytest -n "${TEST_PROCESSES:-2}" --dist loadfile --no-loadscope-reorder --max-worker-restart 0 "$@"
