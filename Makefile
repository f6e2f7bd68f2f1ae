# Everything lives in .venv, made here. A second run installs nothing: a stamp is written when an install has ended well.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

BIN := .venv/bin
JOBS ?= 2
PIP_FLAGS ?=
# Passed by environment, so that quotes in a prompt reach the program as they are.
PROMPT ?= def fibonacci(n):
export PROMPT
# One thread for BLAS: two that spin on two busy cores make small products a hundred times slower.
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1

# Recipes that install must not run side by side.
.NOTPARALLEL:
.PHONY: help demo serve test test-deep bench lint clean

help:
	@echo "make demo       install the core and let tinycode write 64 tokens on the nano chip (PROMPT=\"class Stack:\")"
	@echo "make serve      install the extra for serving and serve tinycode on nano at http://127.0.0.1:8000/v1"
	@echo "make test       install the test extras and run the quick suite"
	@echo "make test-deep  run the deep suite (hours)"
	@echo "make bench      measure speed, write bench/results"
	@echo "make lint       ruff, mypy, import-linter"
	@echo "make clean      remove .venv and every cache"

demo: .venv/.stamp-core .venv/.stamp-kernels
	@$(BIN)/systolith generate --chip nano --max-tokens 64 --prompt "$$PROMPT"

serve: .venv/.stamp-serve .venv/.stamp-kernels
	@$(BIN)/systolith serve --chip nano

test: .venv/.stamp-test .venv/.stamp-kernels
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal $(PYTEST_FLAGS)

test-deep: .venv/.stamp-test .venv/.stamp-kernels
	@$(BIN)/python -m pytest -q -m deep -n $(JOBS) --dist worksteal $(PYTEST_FLAGS)

bench: .venv/.stamp-core .venv/.stamp-kernels
	@$(BIN)/python -m bench

lint: .venv/.stamp-test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find systolith tests tools bench -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

.venv/.stamp-core: pyproject.toml tools/install.sh
	@PIP_FLAGS="$(PIP_FLAGS)" tools/install.sh core

.venv/.stamp-serve: pyproject.toml tools/install.sh
	@PIP_FLAGS="$(PIP_FLAGS)" tools/install.sh serve

.venv/.stamp-test: pyproject.toml tools/install.sh
	@PIP_FLAGS="$(PIP_FLAGS)" tools/install.sh test

# The simulator is compiled on the first call and kept; done here on both cores, so that nothing waits for it later.
.venv/.stamp-kernels: $(wildcard systolith/sim/*.py systolith/timing/*.py systolith/isa/*.py)
	@echo 'systolith: compiling the simulator (once, about half a minute)' >&2
	@$(BIN)/python -c 'import systolith.timing' & $(BIN)/python -c 'import systolith.sim'; wait $$!
	@touch $@
