# Needs make and Python 3.11 or newer; nothing else has to be there before.
.DEFAULT_GOAL := help
.PHONY: help setup demo tinystories test test-all test-browser app study analyze spectrum reproduce labs report bench lint clean

PYTHON ?= python3
BIN := .venv/bin
# One thread a process: two workers of one thread do more than one of two on models of this size.
export OMP_NUM_THREADS ?= 1
STUDY ?= quickstart
WHAT ?= claims
RUN ?= quickstart:wrapped
STUDY_NAME = $(basename $(notdir $(STUDY)))

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: .venv/.ready ## make .venv with everything in it; does nothing when up to date

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; call make PYTHON=python3.x"; exit 2; }
	@echo "setting up .venv (about two minutes, 1.5 GB)"
	$(PYTHON) -m venv .venv
	@# torch by its exact version first: this is what keeps a machine without a GPU from fetching CUDA packages
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup ## the quickstart study from nothing to verdicts and a report (minutes)
	$(BIN)/workbench study run quickstart

study: setup ## run a study: make study STUDY=counting ARGS='--seeds 0-4'
	$(BIN)/workbench study run $(STUDY) $(ARGS)

analyze: setup ## one analysis: make analyze TARGET=quickstart:wrapped WITH=pruning
	$(BIN)/workbench analyze $(TARGET) --with $(WITH) $(ARGS)

spectrum: setup ## eigenvalues of the loss's Hessian at a run or a pair: make spectrum RUN=quickstart:wrapped
	$(BIN)/workbench spectrum $(RUN) $(ARGS)

reproduce: setup ## a figure, table or the claims of the paper: make reproduce WHAT=fig5 (workbench reproduce --list)
	$(BIN)/workbench reproduce $(WHAT) $(ARGS)

labs: setup ## run every lab: self-contained experiments with what they expect (minutes)
	$(BIN)/workbench lab --all $(ARGS)

tinystories: setup ## the study of real stories from the bundled sample, offline, with a report (minutes)
	$(BIN)/workbench study run stories_tiny $(ARGS)

report: setup ## write the HTML report of a study: make report STUDY=quickstart
	$(BIN)/workbench report $(STUDY_NAME)

app: setup ## open the dashboard on localhost
	$(BIN)/workbench app

test: setup ## the default tests (under 8 minutes on two cores)
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-all: setup ## every test but those that need a GPU or a cluster; slow ones train models
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not gpu and not cluster'

test-browser: setup ## the dashboard in a real Chromium
	$(BIN)/python -m pytest -m browser

bench: setup ## speeds as ratios against plain code
	$(BIN)/python -m tests.benchmarks

lint: setup ## style, types and the arrows between packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

clean: ## remove caches and the environment; runs stay
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
