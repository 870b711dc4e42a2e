#!/usr/bin/env bash
# `timesformer demo` in an environment of its own: clips made on the spot, training, evaluation, pictures; offline.
# bash scripts/demo.sh [FOLDER]   (default: demo_output; it is made anew)
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh viz
exec timesformer demo --output_dir "${1:-demo_output}"
