# Sourced by demo.sh and test.sh: the virtual environment .venv with this package, `$1` naming its extras.
# Nothing is needed before it but a Python from 3.10 on with venv. VENV=... names another folder.
VENV="${VENV:-.venv}"
if [ ! -x "$VENV/bin/python" ]; then
    "${PYTHON:-python3}" -m venv "$VENV"
fi
echo "Installing hf_timesformer[$1] into $VENV (the first time takes some minutes) ..."
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".[$1]"
export PATH="$PWD/$VENV/bin:$PATH"
case "$VENV" in /*) export PATH="$VENV/bin:$PATH" ;; esac
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 HF_HUB_DISABLE_PROGRESS_BARS=1 TOKENIZERS_PARALLELISM=false
