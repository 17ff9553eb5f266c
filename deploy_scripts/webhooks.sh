#!/usr/bin/env bash
# Webhooks that are not delivered: bash deploy_scripts/webhooks.sh list | dead | replay ID|--all
WEBHOOKS_PROG="bash $(printf %q "$0")"
export WEBHOOKS_PROG
exec bash "$(dirname "${BASH_SOURCE[0]}")/python.sh" deploy_scripts.webhooks "$@"
