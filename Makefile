# Everything runs in an environment of its own below .venv; the first call sets it up.
SHELL := /bin/sh
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ONCE ?=
JOBS ?= 2
# Where PyTorch comes from on Linux without an NVIDIA GPU: its ordinary build brings gigabytes of CUDA. An index that you name is
# used with a GPU too; an empty one, or one that does not answer, leaves the choice to the package index. Its address may hold a
# name and a password: only the index and pip are told them, and nothing that is printed shows them.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
NO_GPU = [ "$$(uname -s)" = Linux ] && [ ! -e /proc/driver/nvidia ] && ! command -v nvidia-smi > /dev/null
PIP = "$(BIN)/python" -m pip --disable-pip-version-check
comma := ,

.PHONY: run test test-quick faults lint format docs pictures bench lock audit sbom up down logs clean help

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' "$(firstword $(MAKEFILE_LIST))" | sed 's/:.*##/\t/' | expand -t 12

# The pinned set is installed once and again whenever it changes. A half-finished environment has no .ready and is made anew.
$(READY): export PYTORCH_FROM = $(TORCH_INDEX)
$(READY): requirements.txt pyproject.toml
	"$(PYTHON)" -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else f"reviewclf needs Python 3.11 to 3.13, this is {sys.version.split()[0]}: make PYTHON=python3.12 ...")'
	"$(PYTHON)" -m venv "$(VENV)"
	@if [ -n "$$PYTORCH_FROM" ] && { [ "$(origin TORCH_INDEX)" != file ] || { $(NO_GPU); }; } \
		&& timeout 10 "$(BIN)/python" infra/setup/index_answers.py 2> /dev/null; then \
		echo "PyTorch's build for the processor comes from $$(echo "$$PYTORCH_FROM" | sed 's,//[^/]*@,//,')"; \
		PIP_INDEX_URL="$$PYTORCH_FROM" $(PIP) install --quiet --no-deps "$$(grep '^torch==' requirements.txt)" \
			|| [ "$(origin TORCH_INDEX)" = file ] || exit 1; \
	fi
	$(PIP) install --quiet -r requirements.txt
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	touch "$(READY)"

run: $(READY)  ## start Airflow and MLflow, drive the DAGs to a champion, keep serving (ONCE=1: stop after the leaderboard)
	@"$(BIN)/python" -m reviewclf.cli up $(if $(filter-out 0,$(ONCE)),--once)

test: $(READY)  ## run all tests (JOBS=1: one after another)
	@OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest --numprocesses $(JOBS) --dist loadscope --no-loadscope-reorder

test-quick: $(READY)  ## run the unit tests but the slow ones: no service, under three minutes on two cores
	@OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest tests/unit -m "not slow" --numprocesses $(JOBS) --dist loadscope

faults: $(READY)  ## break a team's platform in every way and print the table (half an hour; PostgreSQL, Redis, no Docker)
	@"$(BIN)/python" -m pytest tests/team -m "not pictures"

lint: $(READY)  ## check style, types, which room imports which, and that all code is used
	"$(BIN)/python" -m ruff check .
	"$(BIN)/python" -m ruff format --check .
	"$(BIN)/python" -m mypy
	"$(BIN)/lint-imports"
	! "$(BIN)/vulture" | grep -E 'unreachable|unused (class|function|import|method|property)'

format: $(READY)  ## put the code into its format
	"$(BIN)/python" -m ruff check --fix .
	"$(BIN)/python" -m ruff format .

docs: $(READY)  ## build the documentation into ./site, strictly and without network
	@NO_MKDOCS_2_WARNING=1 "$(BIN)/python" -m mkdocs build --strict

pictures: $(READY)  ## take the pictures of the documentation anew, from the pages as they are (Chromium)
	@"$(BIN)/python" -m pytest tests/ui/test_pictures.py -m pictures

bench: $(READY)  ## measure speed against the notebook's way, one table
	@"$(BIN)/python" -m tests.benchmarks

lock: $(READY)  ## resolve requirements.txt anew from pyproject.toml
	"$(BIN)/python" -m uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate \
		--group dev --extra team pyproject.toml --output-file requirements.txt
	"$(BIN)/python" -m uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate \
		--extra team --constraints requirements.txt --generate-hashes --no-emit-package torch pyproject.toml \
		--output-file infra/requirements-image.txt

audit: $(READY)  ## look up known vulnerabilities of the packages here and in the image
	"$(BIN)/python" -m uv tool run --quiet pip-audit --strict --disable-pip --no-deps --requirement requirements.txt
	"$(BIN)/python" -m uv tool run --quiet pip-audit --strict --disable-pip --requirement infra/requirements-image.txt

# -- the platform of a team: see docs/operations/team-platform.md. The profiles `monitoring` and `gpu` may be left out or added. --
PROFILES ?= monitoring
WORKERS ?= 1
WORKER_CONCURRENCY ?= 4
IMAGE ?= reviewclf:0.1.0
COMPOSE = COMPOSE_PROFILES='$(PROFILES)' REVISION="$$(git rev-parse HEAD 2>/dev/null)" \
	AIRFLOW_PARALLELISM=$$(( $(WORKERS) * $(WORKER_CONCURRENCY) )) WORKER_CONCURRENCY=$(WORKER_CONCURRENCY) \
	AIRFLOW_METRICS=$(if $(findstring monitoring,$(PROFILES)),True,False) \
	$(if $(findstring gpu,$(PROFILES)),REVIEWCLF_LLM__BACKEND=openai REVIEWCLF_TRAINING__GPU=true) docker compose

up:  ## build the image, make what secrets are missing, start the platform of a team (PROFILES=monitoring,gpu WORKERS=3 WORKER_CONCURRENCY=4)
	@docker compose version >/dev/null 2>&1 || { echo "make up needs Docker with the plugin compose (2.24 or newer); on one machine without it: make run"; exit 1; }
	@"$(PYTHON)" infra/make_secrets.py .env
	$(COMPOSE) build
	$(COMPOSE) up --detach --wait --wait-timeout 3600 --remove-orphans --scale airflow-worker=$(WORKERS)
	@echo "Airflow http://localhost:8080, MLflow http://localhost:5000, serving http://localhost:8000$(if $(findstring monitoring,$(PROFILES)),$(comma) Grafana http://localhost:3000)"
	@echo "Account admin everywhere; AIRFLOW_ADMIN_PASSWORD, MLFLOW_ADMIN_PASSWORD and GRAFANA_ADMIN_PASSWORD are in .env"

down:  ## stop the platform of a team; its data stay
	docker compose --profile '*' down

logs:  ## follow what the platform's services write (SERVICE=airflow-worker for one)
	docker compose --profile '*' logs --follow --tail 200 $(SERVICE)

sbom:  ## list what the image holds, packages of Python and of Debian, as CycloneDX: sbom.json
	docker run --rm --interactive --network none --read-only $(IMAGE) python - < infra/sbom.py > sbom.json

clean:  ## remove the environment, caches and everything that runs left in ./var
	rm -rf "$(VENV)" var site build dist .*_cache .hypothesis .coverage htmlcov *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
