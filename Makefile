PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test lint clean

setup: .venv/.ready-test

demo: .venv/.ready-demo
	$(BIN)/dtme demo

test: .venv/.ready-test
	$(BIN)/python -m pytest -n 2 --cov=dtme --cov-report=term:skip-covered

lint: .venv/.ready-test
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/pyright

clean:
	rm -rf .venv runs

.venv/bin/python:
	$(PYTHON) -m venv .venv

# A stamp for each set of extras, renewed when the declared dependencies change; the tests' set holds the demo's.
.venv/.ready-%: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@
	if [ "$*" = test ]; then touch .venv/.ready-demo; fi
