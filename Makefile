# Everything a newcomer types; `make help` lists it.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-train test test-slow lint format docs clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## build .venv and install the package with its test extra

# made again only when the dependencies may have changed
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $$($(PYTHON) --version) found, 3.11 or newer expected; try: make setup PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv || \
		{ echo "error: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo 'installing into .venv: a few minutes, about 6 GB ...'
	@$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

demo: $(INSTALLED) ## degrade photographs inside scikit-image, restore them with the shipped model: demo/before_after.png
	$(BIN)/restorevar demo

demo-train: $(INSTALLED) ## train three stages from scratch in minutes, then as demo with that model
	$(BIN)/restorevar demo --config configs/demo/pipeline.yaml

test: $(INSTALLED) ## run the tests (minutes on two cores; no GPU, no network)
	$(BIN)/python -m pytest --numprocesses 2

test-slow: $(INSTALLED) ## run the tests that take long, too
	$(BIN)/python -m pytest --numprocesses 2 -m 'not gpu'

lint: $(INSTALLED) ## check format, style and types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

format: $(INSTALLED) ## put the code into its format
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

docs: $(INSTALLED) ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean: ## remove what tools leave behind; .venv, runs and demo stay
	rm -rf site build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
