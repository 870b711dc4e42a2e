#!/usr/bin/env bash
# The network's tests with the oldest versions that setup.py allows and with the newest ones, each in an environment of
# its own (.venv-oldest, .venv-newest; 6 GB each): what is private in torch, transformers and PEFT may change with any
# release. Arguments go to pytest; without any, the tests of the network and of the private names. Both ends run, also
# where the first fails; the last line says which failed. The oldest end takes Python 3.10 where it finds one.
#   OLDEST_PYTHON=python3.10 NEWEST_PYTHON=python3.13 bash scripts/versions.sh
set -euo pipefail
cd "$(dirname "$0")/.."

tests=("$@")
[ ${#tests[@]} -gt 0 ] || tests=(-q tests/model tests/video/test_upstream_names.py tests/training/test_trainer_names.py)

first_that_runs() { # interpreters: what a version manager puts on the path may be there and not run
    for python in "$@"; do
        if "$python" -c "" 2> /dev/null; then
            echo "$python"
            return
        fi
    done
    echo "none of these runs: $*" >&2
    return 1
}

run_with() { # name, Python, then what pip installs
    local environment=".venv-$1" interpreter="$2"
    shift 2
    # `|| return`: bash does not stop at errors within a function that is called to see whether it fails
    [ -d "$environment" ] || "$interpreter" -m venv "$environment" || return
    "$environment/bin/python" -m pip install --quiet --upgrade "$@" -e ".[peft]" "pytest>=8" || return
    "$environment/bin/python" - << 'PYTHON' || return
import importlib.metadata
import sys

names = ("torch", "transformers", "peft", "datasets", "accelerate", "av")
print("Python", sys.version.split()[0], *(f"{name} {importlib.metadata.version(name)}" for name in names))
PYTHON
    HF_HUB_OFFLINE=1 "$environment/bin/python" -m pytest -p no:cacheprovider "${tests[@]}"
}

lowest() { # packages: the first versions that setup.py allows, as pip wants them
    for package in "$@"; do
        grep -oE "\"$package>=[0-9.]+" setup.py | sed -E 's/"(.*)>=([0-9.]+)/\1==\2.*/' | sort -V | head -1
    done
}

mapfile -t oldest < <(lowest torch torchvision transformers datasets accelerate evaluate av peft)
oldest_python=$(first_that_runs "${OLDEST_PYTHON:-python3.10}" "$HOME"/.pyenv/versions/3.10.*/bin/python python3)
failed=()
run_with oldest "$oldest_python" "${oldest[@]}" || failed+=(oldest)
run_with newest "${NEWEST_PYTHON:-python3}" torch torchvision transformers peft || failed+=(newest)
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed with the versions: ${failed[*]}" >&2
    exit 1
fi
