# The four commands of CONTRIBUTING.md, and those of .ci/run.
PYTHON ?= python3
export OMP_NUM_THREADS = 1

.PHONY: install check quick test structure

install:
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -c constraints.txt -e ".[test,dev]"

check:
	ruff check .
	ruff format --check .
	mypy

quick:
	python -m pytest -q -n 2 tests/unit tests/docs

test:
	python -m pytest -q -n 2 --dist loadfile

structure:
	python benchmarks/structure.py
