# Two commands set up everything on a fresh machine with Python 3.10+ and make: `make run` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
OUT    ?= runs/quickstart

.PHONY: run test lint test-slow clean

run: $(VENV)/.installed ## the whole path on the embedded data: digits, ResNet-18, INT8, report
	$(BIN)/edgeship run quickstart --out $(OUT)

test: $(VENV)/.installed-dev lint ## every check
	$(BIN)/pytest -n 2

lint: $(VENV)/.installed-dev ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-slow: $(VENV)/.installed-dev ## checks that take minutes
	$(BIN)/pytest -m slow

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean: ## forget the environment and all runs
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache
