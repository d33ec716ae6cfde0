PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test engines lint types bench clean

## Search, train, export, serve and verify on the embedded task; ends with a table.
demo: $(STAMP)
	$(BIN)/python examples/demo.py

## Lint, types and all tests, in as many processes as there are cores; each computes by itself.
## Bytecode is kept, whatever the environment says: tests start bmnas dozens of times.
## TensorRT for RTX is not there for every machine: without it, they build no engines.
test: lint types
	-$(PIP) --editable '.[trt-rtx]'
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy
	$(BIN)/mypy --package examples

## Whatever tests export, a hundred random genotypes and the named tasks, built by TensorRT for RTX.
engines: $(STAMP)
	$(PIP) --editable '.[trt-rtx]'
	PYTHONPATH=tests/support OMP_NUM_THREADS=1 $(BIN)/pytest -p engine_builds --numprocesses auto --dist worksteal \
	  tests/export tests/extending tests/bmnas/test_kind_*.py tests/bmnas/test_mmnas_runs.py

## Parameters, latency, search cost; `pytest-benchmark compare` shows saved runs side by side.
## torch.compile warns of its own deprecations, which is no failure of a measurement.
bench: $(STAMP)
	$(BIN)/pytest benchmarks -W default --benchmark-autosave

# torch first and pinned, so that no other requirement can pull in another build of it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs
