# Everything runs in an environment of its own below .venv; the first call sets it up.
SHELL := /bin/sh
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ONCE ?=

.PHONY: run test faults lint format bench lock clean help

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' "$(firstword $(MAKEFILE_LIST))" | sed 's/:.*##/\t/' | expand -t 10

# The pinned set is installed once and again whenever it changes. A half-finished environment has no .ready and is made anew.
$(READY): requirements.txt pyproject.toml
	"$(PYTHON)" -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else f"reviewclf needs Python 3.11 to 3.13, this is {sys.version.split()[0]}: make PYTHON=python3.12 ...")'
	"$(PYTHON)" -m venv "$(VENV)"
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check -r requirements.txt
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch "$(READY)"

run: $(READY)  ## start Airflow and MLflow, drive the DAGs to a champion, keep serving (ONCE=1: stop after the leaderboard)
	@"$(BIN)/python" -m reviewclf.cli up $(if $(filter-out 0,$(ONCE)),--once)

test: $(READY)  ## run all tests
	@"$(BIN)/python" -m pytest

faults: $(READY)  ## break a team's platform in every way and print the table (half an hour; PostgreSQL, Redis, no Docker)
	@"$(BIN)/python" -m pytest tests/team -m "faults or not faults"

lint: $(READY)  ## check style, imports and types
	"$(BIN)/python" -m ruff check .
	"$(BIN)/python" -m ruff format --check .
	"$(BIN)/python" -m mypy

format: $(READY)  ## put the code into its format
	"$(BIN)/python" -m ruff check --fix .
	"$(BIN)/python" -m ruff format .

bench: $(READY)  ## measure speed against the notebook's way, one table
	@"$(BIN)/python" -m tests.benchmarks

lock: $(READY)  ## resolve requirements.txt anew from pyproject.toml
	"$(BIN)/python" -m uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate \
		--group dev --extra team pyproject.toml --output-file requirements.txt

clean:  ## remove the environment, caches and everything that runs left in ./var
	rm -rf "$(VENV)" var build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
