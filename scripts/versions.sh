#!/usr/bin/env bash
# The network's tests with the oldest and with the newest torch and transformers that setup.py allows, each in an
# environment of its own (.venv-oldest, .venv-newest): what is private in them may change with any release.
# Arguments go to pytest; without any, the tests of how a pass runs and of the private names.
set -euo pipefail
cd "$(dirname "$0")/.."

tests=("$@")
[ ${#tests[@]} -gt 0 ] || tests=(tests/model/test_upstream.py tests/model/test_way.py tests/model/test_schemes.py)

run_with() { # name, then what pip installs in place of the newest
    local environment=".venv-$1"
    shift
    [ -d "$environment" ] || python3 -m venv "$environment"
    "$environment/bin/python" -m pip install --quiet --upgrade "$@" -e . "pytest>=8"
    "$environment/bin/python" -c "import torch, transformers; print('torch', torch.__version__, 'transformers', transformers.__version__)"
    "$environment/bin/python" -m pytest "${tests[@]}"
}

lowest() { # package: the first version that setup.py allows, as pip wants it
    grep -oE "\"$1>=[0-9.]+" setup.py | sed -E 's/"(.*)>=([0-9.]+)/\1==\2.*/' | sort -V | head -1
}

run_with oldest "$(lowest torch)" "$(lowest torchvision)" "$(lowest transformers)"
run_with newest torch torchvision transformers
