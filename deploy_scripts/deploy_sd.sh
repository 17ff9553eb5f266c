#!/usr/bin/env bash
# Deploy Stable Diffusion checkpoints as scale-to-zero endpoints. `deploy_sd.sh --help` tells all.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$root/.venv/bin/python"
[ -x "$python" ] || python="$(command -v python3)"
# One state folder for a checkout: the Makefile's commands and this one see the same stack.
export SD_STATE_DIR="${SD_STATE_DIR:-$root/.sdserve}"
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -m deploy_scripts.deploy_sd "$@"
