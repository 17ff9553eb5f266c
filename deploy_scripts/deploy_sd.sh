#!/usr/bin/env bash
# Deploy Stable Diffusion checkpoints as scale-to-zero endpoints. `deploy_sd.sh --help` tells all.
exec bash "$(dirname "${BASH_SOURCE[0]}")/python.sh" deploy_scripts.deploy_sd "$@"
