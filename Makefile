# The four commands of CONTRIBUTING.md, and those of .ci/run.
PYTHON ?= python3
export OMP_NUM_THREADS = 1

.PHONY: install check quick test structure site notebooks release lowest

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

site:  # needs the extra docs
	mkdocs build --strict

notebooks:  # those of the gallery, all of them and whole
	.ci/notebooks

release:  # sdist and wheel in dist/, checked, and tested in an environment of their own
	FRESH=1 .ci/wheel tests/unit tests/contract

lowest:  # the lowest versions that pyproject.toml allows
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install -q -c constraints-lowest.txt -e ".[test]"
	.venv-lowest/bin/python -m pytest -q tests/unit tests/contract
