PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test zoo overhead findings tables bench lint clean

setup: .venv/.ready-test

demo: .venv/.ready-demo
	$(BIN)/dtme demo

test: .venv/.ready-test
	$(BIN)/python -m pytest -n 2 --cov=dtme --cov-report=term:skip-covered

# What works on which model, into docs/zoo.md; the whole zoo, with the tests that `make test` leaves to it.
zoo: .venv/.ready-test
	$(BIN)/python -m pytest -n 2 tests/zoo --zoo-table docs/zoo.md

# What streams cost, into results/overhead.json and the second table of docs/zoo.md.
overhead: .venv/.ready-test
	$(BIN)/python benchmarks/forward_overhead.py
	PYTHONPATH=tests/zoo $(BIN)/python tests/zoo_table.py

# Every result of docs/findings.md, for DATA=dsb2018_nuclei.tar both suites; hours, and it goes on where it was interrupted.
findings: .venv/.ready-test
	$(BIN)/python benchmarks/findings.py $(if $(DATA),--data $(DATA))
	$(if $(DATA),$(BIN)/python benchmarks/chance.py --data $(DATA))

# The tables of README and docs, and the figures of the findings, from the committed results.
tables: .venv/.ready-test
	$(BIN)/python -m benchmarks.tables
	$(BIN)/python benchmarks/figures.py

# Speed and memory as ratios; fails where one is beyond its limit, or worse than in results/speed.json by more than 15 %.
bench: .venv/.ready-test
	$(BIN)/python -m benchmarks

lint: .venv/.ready-test
	$(BIN)/ruff check src tests examples benchmarks
	$(BIN)/ruff format --check src tests examples benchmarks
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
