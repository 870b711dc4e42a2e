#!/usr/bin/env bash
# The network's tests with the oldest versions that setup.py allows and with the newest ones, each in an environment of
# its own (.venv-oldest, .venv-newest; 6 GB each): what is private in torch and transformers may change with any release.
# Arguments go to pytest; without any, the tests of the network and of the private names.
#   OLDEST_PYTHON=python3.10 NEWEST_PYTHON=python3.13 bash scripts/versions.sh
set -euo pipefail
cd "$(dirname "$0")/.."

tests=("$@")
[ ${#tests[@]} -gt 0 ] || tests=(-q tests/model tests/video/test_upstream_names.py tests/training/test_trainer_names.py)

run_with() { # name, Python, then what pip installs
    local environment=".venv-$1" interpreter="$2"
    shift 2
    [ -d "$environment" ] || "$interpreter" -m venv "$environment"
    "$environment/bin/python" -m pip install --quiet --upgrade "$@" -e . "pytest>=8"
    "$environment/bin/python" -c "import sys, torch, transformers as t; print('Python', sys.version.split()[0], 'torch', torch.__version__, 'transformers', t.__version__)"
    HF_HUB_OFFLINE=1 "$environment/bin/python" -m pytest -p no:cacheprovider "${tests[@]}"
}

lowest() { # packages: the first versions that setup.py allows, as pip wants them
    for package in "$@"; do
        grep -oE "\"$package>=[0-9.]+" setup.py | sed -E 's/"(.*)>=([0-9.]+)/\1==\2.*/' | sort -V | head -1
    done
}

mapfile -t oldest < <(lowest torch torchvision transformers datasets accelerate evaluate av)
run_with oldest "${OLDEST_PYTHON:-python3}" "${oldest[@]}"
run_with newest "${NEWEST_PYTHON:-python3}" torch torchvision transformers
