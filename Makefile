PYTHON ?= python3
OLDEST_PYTHON ?= python3.10
BIN := .venv/bin

.PHONY: setup demo test coverage zoo overhead findings tables bench lower-bounds trust mutants lint docs clean

setup: .venv/.ready-test

demo: .venv/.ready-demo
	$(BIN)/python -m experiments demo

test: .venv/.ready-test
	$(BIN)/python -m pytest -n 2

# The same, with the branches of the library that no test takes; half as long again.
coverage: .venv/.ready-test
	$(BIN)/python -m pytest -n 2 --cov=dtme --cov-branch --cov-report=term:skip-covered

# What works on which model, into docs/zoo.md; the whole zoo, with the tests that `make test` leaves to it.
zoo: .venv/.ready-test
	$(BIN)/python -m pytest -n 2 tests/zoo --zoo-table docs/zoo.md

# What streams cost, into results/overhead.json and the second table of docs/zoo.md.
overhead: .venv/.ready-test
	$(BIN)/python benchmarks/forward_overhead.py
	$(BIN)/python tests/helpers/zoo_table.py

# Every result of docs/findings.md, for DATA=dsb2018_nuclei.tar both suites; hours, and it goes on where it was interrupted.
findings: .venv/.ready-test
	$(BIN)/python -m experiments.studies.reproduce $(if $(DATA),--data $(DATA))
	$(if $(DATA),$(BIN)/python -m experiments.studies.chance --data $(DATA))

# The tables of README and docs, and the figures of the findings, from the committed results.
tables: .venv/.ready-test
	$(BIN)/python -m benchmarks.tables
	$(BIN)/python -m experiments.studies.draw_figures

# Speed and memory as ratios; fails where one is beyond its limit, or worse than in results/speed.json by more than 15 %.
bench: .venv/.ready-test
	$(BIN)/python -m benchmarks

# The core tests with the lowest versions that pyproject.toml declares, on the oldest Python, in an environment of its own.
# What old versions use of newer packages below them, though deprecated, is not for this project to mend.
lower-bounds: .venv-lower/.ready
	.venv-lower/bin/python tests/helpers/core_tests.py > .venv-lower/tests
	.venv-lower/bin/python -m pytest -W ignore::DeprecationWarning $$(cat .venv-lower/tests)

# Kills, flipped bits and spoilt files for so many seconds; fails where one of them finds something. A short form is a test.
SECONDS ?= 300
trust: .venv/.ready-test
	$(BIN)/python -m benchmarks.trust --seconds $(SECONDS)

# Small changes of the core, and those of them that no test notices; PARTS="plan routing" tries some parts of it.
mutants: .venv/.ready-mutants
	$(BIN)/python -m benchmarks.trust.mutants $(PARTS)

lint: .venv/.ready-test
	$(BIN)/ruff check src experiments tests examples benchmarks
	$(BIN)/ruff format --check src experiments tests examples benchmarks
	$(BIN)/pyright

# The site, into docs/_build/html: without a network, warnings are errors.
docs: .venv/.ready-docs
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf .venv .venv-lower runs docs/_build mutants

.venv/bin/python:
	$(PYTHON) -m venv .venv

# A stamp for each set of extras, renewed when the declared dependencies change; the tests' set holds the demo's.
.venv/.ready-%: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@
	if [ "$*" = test ]; then touch .venv/.ready-demo; fi

# What pyenv is told is heard only where its stand-ins answer for python3.10.
.venv-lower/.ready: pyproject.toml tests/helpers/lower_bounds.py
	PYENV_VERSION=3.10 $(OLDEST_PYTHON) -m venv .venv-lower
	.venv-lower/bin/python -m pip install --quiet packaging tomli
	.venv-lower/bin/python tests/helpers/lower_bounds.py > .venv-lower/constraints.txt
	.venv-lower/bin/python -m pip install --quiet --constraint .venv-lower/constraints.txt --editable ".[core-test]"
	touch $@
