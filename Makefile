# Two commands for a fresh machine: `make demo` and `make test`. Both set up `.venv` first.
PYTHON ?= python3
PYTEST_ARGS ?= -n 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test test-wheel lint types check benchmarks clean

setup: $(STAMP)

# torch comes first and pinned: any unpinned requirement would pull a newer build with gigabytes of CUDA.
# The sample package, whose passes the tests look for, is built with the setuptools that came with torch.
$(STAMP): pyproject.toml constraints.txt tests/sample_plugin/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable tests/sample_plugin
	touch $(STAMP)

demo: setup
	$(BIN)/python benchmarks/demo.py

test: setup
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# The tests once more, against the built wheel in an environment of its own, away from the source tree.
test-wheel: setup
	sh .ci/test-wheel $(PYTEST_ARGS)

check: lint types test test-wheel

benchmarks: setup
	$(BIN)/python benchmarks/compile_cost.py

clean:
	rm -rf $(VENV) build dist out *.egg-info tests/sample_plugin/src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
