# `make demo` and `make test` are all that a newcomer needs. Each target sets .venv up by itself, once.

SHELL := /bin/bash
BIN := .venv/bin
STAMP := .venv/.installed
# Tests reach no network, and the two cores are shared out by processes, not by threads.
TEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: help demo test check lint bench setup

help:
	@echo 'make demo    from made-up archives to a trained model, in minutes, on this machine'
	@echo 'make test    every test'
	@echo 'make check   the fast tests, lint and types: under 2 minutes, before each commit'
	@echo 'make lint    ruff and mypy'
	@echo 'make bench   every figure that docs/results.md names; writes bench/out/'

demo: $(STAMP)
	@$(BIN)/dure demo

# The fast ones first: they fail in seconds. Ops are compiled once, before any rank starts. A cluster's drills mostly
# wait for its clocks: three clusters run them at once.
test: $(STAMP)
	@$(TEST) -m 'not stages and not slurm' -n 2
	@$(BIN)/python -m launch.toolchain --build
	@$(TEST) -m stages -n 2 --dist loadfile --durations=25
	@$(TEST) -m slurm -n 3

check: $(STAMP) lint
	@$(TEST) -m 'not stages and not slurm and not gpu' -n 2

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(STAMP)
	@set -e; for figure in bench/*.py; do echo "== $$figure"; $(BIN)/python "$$figure"; done

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@.ci/setup
