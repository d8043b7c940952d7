# Every target that needs Python makes the environment first: `make train` works on a bare clone.
VENV    ?= .venv
PYTHON  ?= python3
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
# what only the documentation needs is installed when it is first built
DOCS    := $(VENV)/.docs-installed
# e.g. PIP_EXTRA_INDEX=<index with CPU builds of torch> make train
PIP_ARGS := $(if $(PIP_EXTRA_INDEX),--extra-index-url $(PIP_EXTRA_INDEX),)
ARGS    ?=
# tests run in as many processes as there are cores, 8 at most
PYTEST  := $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup train test test-thorough test-slow coverage check format lint types floors docs notebooks clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, found " + sys.version.split()[0] + ": make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(STAMP)  ## create the environment and install the pinned set

train: $(STAMP)  ## run the main job; overrides: make train ARGS="dataset=... techniques=..."
	$(BIN)/python train.py $(ARGS)

test: $(STAMP)  ## run the tests (no network, GPU or weights); selection: make test ARGS="-k metrics"
	$(PYTEST) $(ARGS)

test-thorough: $(STAMP)  ## run what takes seconds a test: whole commands and every combination
	$(PYTEST) -m thorough $(ARGS)

test-slow: $(STAMP)  ## run the slow tests alone: two processes, every resume, real sizes (half an hour on 2 cores)
	$(PYTEST) -m slow $(ARGS)

coverage: $(STAMP)  ## run the tests, thorough ones too, and say which lines of the package they reach
	$(PYTEST) -m 'not slow and not gpu and not weights' --cov=gate_lightning --cov-report=term:skip-covered $(ARGS)

check: format lint types floors docs test  ## format, lint, types, import floors, documentation, tests

format: $(STAMP)  ## check the formatting
	$(BIN)/ruff format --check .

lint: $(STAMP)  ## lint
	$(BIN)/ruff check .

types: $(STAMP)  ## check the types
	$(BIN)/mypy

floors: $(STAMP)  ## check that imports run downhill
	$(BIN)/lint-imports

$(DOCS): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[docs]'
	@touch $@

docs: $(DOCS)  ## build the documentation into site/ (open site/index.html)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

notebooks: $(DOCS)  ## write the notebooks as .ipynb into notebooks/
	$(BIN)/jupytext --quiet --to ipynb notebooks/*.py

clean:  ## remove the environment and caches, keep runs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
