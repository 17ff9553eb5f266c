#!/usr/bin/env bash
# A file of prompts through one app: bash deploy_scripts/submit_batch.sh --help
SUBMIT_BATCH_PROG="bash $(printf %q "$0")" # for the command that resumes
export SUBMIT_BATCH_PROG
exec bash "$(dirname "${BASH_SOURCE[0]}")/python.sh" deploy_scripts.submit_batch "$@"
