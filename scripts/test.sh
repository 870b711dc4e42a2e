#!/usr/bin/env bash
# The test suite in an environment of its own: installs what is missing, checks the code's style and types, runs pytest.
# Arguments go to pytest: bash scripts/test.sh tests/test_sampling.py -k clip
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh test
ruff check .
ruff format --check .
mypy
exec python -m pytest "$@"
