#!/usr/bin/env bash
# Run one of our modules with the Python that sdserve is installed in: python.sh MODULE ARGUMENT...
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$root/.venv/bin/python"
[ -x "$python" ] || python="$(command -v python3 || true)"
# Found, not imported: importing Ray takes half a second.
find='import sys; from importlib.util import find_spec as f; sys.exit(None in map(f, sys.argv[1:]))'
if ! "${python:-false}" -c "$find" ray redis httpx pydantic_settings; then
  echo "error: sdserve is not installed: run 'make setup' in $root first." >&2
  exit 1
fi
# One state folder for a checkout: the Makefile's commands and these see the same stack.
export SD_STATE_DIR="${SD_STATE_DIR:-$root/.sdserve}"
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -m "$@"
