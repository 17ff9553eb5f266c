#!/usr/bin/env bash
# A file of prompts through one app: bash deploy_scripts/submit_batch.sh --help
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$root/.venv/bin/python"
[[ -x "$python" ]] || python=python3

# The caller's folder stays the working directory, so that relative paths mean what they say.
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
SUBMIT_BATCH_PROG="bash $(printf %q "$0")"
export SUBMIT_BATCH_PROG
exec "$python" -m deploy_scripts.submit_batch "$@"
