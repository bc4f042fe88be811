# Two commands for a fresh machine: `make demo` and `make test`. Both set up `.venv` first.
PYTHON ?= python3
PYTEST_ARGS ?= -n 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ZOO := .venv-zoo
ZOO_STAMP := $(ZOO)/.installed

.PHONY: setup demo test test-wheel test-zoo lint types check benchmarks clean

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

# Models of ATOMMIC, in an environment of their own: what it requires would replace torch, so it comes without.
$(ZOO_STAMP): pyproject.toml constraints.txt tests/zoo/constraints.txt tests/zoo/requirements.txt
	$(PYTHON) -m venv $(ZOO)
	$(ZOO)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(ZOO)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(ZOO)/bin/pip install --quiet --disable-pip-version-check --constraint tests/zoo/constraints.txt --no-deps atommic pytorch-lightning
	$(ZOO)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--constraint tests/zoo/constraints.txt --requirement tests/zoo/requirements.txt
	touch $(ZOO_STAMP)

test-zoo: $(ZOO_STAMP)
	OMP_NUM_THREADS=1 $(ZOO)/bin/python -m pytest tests/zoo $(PYTEST_ARGS)

check: lint types test test-wheel

benchmarks: setup
	$(BIN)/python benchmarks/compile_cost.py

clean:
	rm -rf $(VENV) $(ZOO) build dist out *.egg-info tests/sample_plugin/src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
