# Everything here makes .venv by itself when it is missing and does nothing twice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TEST_PROCESSES ?= 2
COLLECTION ?= ../shared/data/nfcorpus
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
export HF_HUB_DISABLE_TELEMETRY := 1
export RAY_USAGE_STATS_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help quickstart reproduce test test-slow chaos lint format bench bench-search bench-scale clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | awk -F ':.*  ## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first: a plain requirement of it, resolved later, may pick a build for other hardware.
$(VENV)/.quickstart: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing mergesearch into $(VENV) (a few minutes, once)"
	$(PIP) torch
	$(PIP) --editable '.[quickstart]'
	@touch $@

$(VENV)/.dev: $(VENV)/.quickstart
	@echo "installing the test tools into $(VENV)"
	$(PIP) --editable '.[dev,parity]'
	@touch $@

quickstart: $(VENV)/.quickstart  ## a real study on this machine, from nothing to an exported merge
	$(BIN)/mergesearch quickstart

reproduce: $(VENV)/.dev  ## the table of docs/quality.md, from nothing or from where it was left (1 to 2 hours)
	OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 $(BIN)/mergesearch protocol quality studies/quality.yaml

lint: $(VENV)/.dev  ## format check, ruff, mypy --strict, import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev  ## format and mend what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: lint  ## all checks and tests that pass in minutes
	$(BIN)/python -m pytest -m "not slow and not gpu" -n $(TEST_PROCESSES) --dist worksteal

test-slow: $(VENV)/.dev  ## the tests that take minutes each
	$(BIN)/python -m pytest -m "slow"

chaos: $(VENV)/.dev  ## kill studies at random moments, many times
	$(BIN)/python -m pytest -m "chaos" --timeout 3600

bench: $(VENV)/.dev  ## speed, as ratios measured side by side
	$(BIN)/python -m tests.benchmarks.merge_speed
	$(BIN)/python -m tests.benchmarks.merge_scale --shape minilm --dtype float32
	$(BIN)/python -m tests.benchmarks.merge_scale --shape 1b --methods linear,task_arithmetic,ties --rounds 3
	$(BIN)/python -m tests.benchmarks.prefix_reuse
	@if test -d $(COLLECTION); then \
	$(BIN)/python -m tests.benchmarks.encode_speed $(COLLECTION)/corpus.jsonl && \
	$(BIN)/python -m tests.benchmarks.trial_cost $(COLLECTION); \
	else echo "encode_speed and trial_cost need a BEIR folder: make bench COLLECTION=FOLDER"; fi

bench-search: $(VENV)/.dev  ## beside mergekit and SentenceTransformer.merge with Optuna (ten minutes)
	$(BIN)/python -m tests.benchmarks.against_others $(COLLECTION) $(if $(DOMAIN),--domain $(DOMAIN))

bench-scale: $(VENV)/.dev  ## what coordination costs: beside plain Optuna, with 256 simulated workers, with Ray's
	$(BIN)/python -m tests.benchmarks.coordinator
	$(BIN)/python -m tests.benchmarks.coordinator_scale
	$(BIN)/python -m tests.benchmarks.coordinator_ray

clean:  ## remove the virtual environment and tool caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .import_linter_cache build *.egg-info
