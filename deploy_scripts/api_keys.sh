#!/usr/bin/env bash
# Make, list, revoke and rotate API keys: bash deploy_scripts/api_keys.sh --help
exec bash "$(dirname "${BASH_SOURCE[0]}")/python.sh" deploy_scripts.api_keys "$@"
