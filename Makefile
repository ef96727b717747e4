# Two commands for a fresh machine with Python 3.11+ and make:
#   make table1   set everything up, run the default run, print the table and where it lies
#   make test     set everything up, run the tests

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Jobs of Snakemake run `python` and formatters run `shfmt` from the environment.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Small networks: several jobs of one thread beat one job of several.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1

# Every published table and figure.
TARGETS := $(foreach name,table1 table2 table3 table4 table5 table6 table7 figure1 figure3 figure4 figure5 figure6 figure7 figure8 figure9 dpdiff_table1 dpdiff_figure2 dpdiff_figure3 dpdiff_figure4 dpdiff_samples,results/$(name).csv)

.PHONY: table1 all test lint lock clean-venv help

table1: $(VENV)/.installed  ## the first result: table 1 of the default run
	@$(BIN)/snakemake results/table1.csv --cores all
	@$(BIN)/python -m coalmine.reporting.show results/table1.csv

all: $(VENV)/.installed  ## every table and figure of the default run
	@$(BIN)/snakemake --cores all

test: $(VENV)/.installed  ## the tests
	@$(BIN)/pytest

lint: $(VENV)/.installed  ## linters, type checker, dry runs of every preset and target
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/snakefmt --check Snakefile workflow/rules
	@$(BIN)/mypy
	@$(BIN)/snakemake --lint
	@for preset in "" $(wildcard workflow/presets/*.yaml); do \
	  echo "Dry run: $${preset:-config.yaml}"; \
	  case $$preset in *dpdiff-*) targets= ;; *) targets="$(TARGETS)" ;; esac; \
	  $(BIN)/snakemake all tables figures $$targets --dry-run --cores 1 \
	    $${preset:+--configfile $$preset} > /dev/null || exit 1; \
	done

lock:  ## write requirements.lock and envs/coalmine.yaml anew (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --no-emit-index-url --extra dev --upgrade pyproject.toml -o requirements.lock
	$(PYTHON) envs/generate.py

clean-venv:  ## remove the environment
	rm -rf $(VENV)

help:  ## this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/'

# One environment from one lock with hashes; made anew when the lock changes, kept otherwise.
$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	  f"Coalmine needs Python 3.11 or newer, but $(PYTHON) is {sys.version.split()[0]}. Try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@echo "Setting up $(VENV) (about 6 GB with PyTorch; two minutes on a fast line) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@
