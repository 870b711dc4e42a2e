#!/usr/bin/env bash
# transformers' own tests of any model (test_modeling_common.py), for our two models in all five schemes. They are in
# the source archive of the installed version alone, which pip fetches (11 MB). Arguments go to pytest. PYTHON: another
# interpreter than that of .venv.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-$PWD/.venv/bin/python}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

version=$("$python" -c "import transformers; print(transformers.__version__)")
"$python" -m pip install --quiet parameterized
"$python" -m pip download --quiet --no-deps --no-binary transformers --dest "$folder" "transformers==$version"
tar -xzf "$folder/transformers-$version.tar.gz" --directory "$folder" --strip-components 1 "transformers-$version/tests"
mkdir "$folder/tests/ours" "$folder/tests/exporters" "$folder/tests/generation"
touch "$folder/tests/__init__.py" "$folder/tests/ours/__init__.py" "$folder/tests/exporters/__init__.py" \
    "$folder/tests/generation/__init__.py"
# not in the archive; tests/model/test_seams_export.py tests the exporters, and nothing here generates text
echo "class ExportTesterMixin: pass" > "$folder/tests/exporters/test_export.py"
echo "class GenerationTesterMixin: pass" > "$folder/tests/generation/test_utils.py"
cp tests/helpers/common_suite.py "$folder/tests/ours/test_ours.py"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
cd "$folder"
"$python" -m pytest -q -p no:cacheprovider tests/ours "$@"
