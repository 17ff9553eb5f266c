#!/usr/bin/env bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/deploy_scripts/deploy_sd.sh" "$@"
