# Two commands on a fresh machine: `make demo` and `make test`. Each makes .venv and installs what it needs, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: demo test drills lint types clean

# Passive: two threads that spin for each other crawl once anything else wants a core.
demo: $(VENV)/installed
	OMP_WAIT_POLICY=passive $(BIN)/contrastive fit

test: lint types
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

# Two at a time: what is killed here within a time limit must not wait for many others.
drills: $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/drills -m '' --numprocesses 2 --dist worksteal --reliability docs/reliability.md

lint: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/installed-dev
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, $(PYTHON) is older. Name another: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Could not make $(VENV); on Debian: apt install python3-venv"; exit 1; }

$(VENV)/installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV): about two minutes the first time."
	@$(INSTALL) . 2> $(VENV)/install.log || { cat $(VENV)/install.log; exit 1; }
	@touch $@

$(VENV)/installed-dev: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV) with the development tools: about two minutes the first time."
	@$(INSTALL) '.[dev]' 2> $(VENV)/install.log || { cat $(VENV)/install.log; exit 1; }
	@touch $@ $(VENV)/installed
