# Thin: each target is one or two commands that also work by hand.
# Everything is installed into .venv/ from pyproject.toml at the versions of constraints.txt.
SHELL := /bin/bash
.DEFAULT_GOAL := help

export HF_HUB_OFFLINE := 1
export RAY_USAGE_STATS_ENABLED := 0
export PYTHONUNBUFFERED := 1
# deploy_sd.sh uses the same folder, so that both see the same stack.
export SD_STATE_DIR ?= $(CURDIR)/.sdserve

BIN := .venv/bin
IS_NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
# The first that runs and is new enough; override: make setup PYTHON=/path/to/python
PYTHON ?= $(shell for p in python3.11 python3; do $$p $(IS_NEW_ENOUGH) 2>/dev/null && echo $$p && break; done)

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: .venv/.installed ## install everything into .venv/ (again only when something changed)

.venv/.installed: pyproject.toml constraints.txt
	@"$(PYTHON)" $(IS_NEW_ENOUGH) 2>/dev/null || { \
	  echo "error: sdserve needs Python 3.11 or newer: install it, or name it, e.g. make $(MAKECMDGOALS) PYTHON=/path/to/python3.11." >&2; exit 1; }
	@test -x $(BIN)/pip || "$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[gpu,embedded,dev]'
	@touch $@

.PHONY: quickstart
quickstart: setup ## start all of it with the demo checkpoints, and take the tour
	$(BIN)/python -m deploy_scripts.quickstart

.PHONY: up
up: setup ## start Redis, Ray, the gateway, a worker and the demo apps
	$(BIN)/python -m deploy_scripts.stack up --demo

.PHONY: down
down: ## stop what `make up` or `make quickstart` started
	@if test -x $(BIN)/python; then $(BIN)/python -m deploy_scripts.stack down; \
	  else echo "nothing is installed here (no .venv), so nothing of it runs"; fi

.PHONY: status
status: ## what runs
	@if test -x $(BIN)/python; then $(BIN)/python -m deploy_scripts.stack status; \
	  else echo "nothing is installed here (no .venv), so nothing of it runs"; fi

.PHONY: test
test: setup ## all tests that need no GPU; some of them: make test ARGS=tests/unit
	$(BIN)/pytest $(ARGS)

MINUTES ?= 30
SEED ?= 1

.PHONY: soak
soak: setup ## everything under all faults at random: make soak MINUTES=30 SEED=1
	$(BIN)/python -m tests.faults.soak --minutes $(MINUTES) --seed $(SEED)

EXAMPLES ?= 200

.PHONY: fuzz
fuzz: setup ## look longer for answers that OpenAPI does not declare: make fuzz EXAMPLES=200
	SD_SCHEMATHESIS_EXAMPLES=$(EXAMPLES) $(BIN)/pytest tests/integration/test_openapi.py

.PHONY: bench
bench: .venv-bench/.installed ## us beside others on the demo model, into docs/ (needs a quiet machine)
	$(BIN)/python -m bench compare --out docs $(ARGS)
	$(BIN)/python -m bench scenarios --out docs

.PHONY: bench-smoke
bench-smoke: setup ## what a warm request costs, in exact counts (half a minute)
	$(BIN)/python -m bench smoke

# What others serve with. Their versions are not ours, so they lie in an environment of their own.
.venv-bench/.installed: bench/requirements.txt bench/environment.py .venv/.installed
	$(BIN)/python -m bench.environment .venv-bench
	@touch $@

.PHONY: check
check: setup ## lint, format, types, layers, shell scripts, Dockerfile
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/shellcheck *.sh */*.sh .ci/run
	@if test -f Dockerfile; then echo "$(BIN)/hadolint Dockerfile"; $(BIN)/hadolint Dockerfile; fi

.PHONY: fmt
fmt: setup ## format, and mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
