PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test engines lint types bench clean

## Search, train, export, serve and verify on the embedded task; ends with a table.
demo: $(STAMP)
	$(BIN)/python examples/demo.py

## Lint, types and all tests, in as many processes as there are cores; each computes by itself.
## Bytecode is kept, whatever the environment says: tests start bmnas dozens of times.
test: lint types
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy
	$(BIN)/mypy --package examples

## What the tests export, built by TensorRT for RTX too, which needs no GPU but 230 MB of libraries.
engines: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,trt-rtx]'
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto tests/export/test_engines.py tests/export/test_random_genotypes.py

## Parameters, latency, search cost; `pytest-benchmark compare` shows saved runs side by side.
## torch.compile warns of its own deprecations, which is no failure of a measurement.
bench: $(STAMP)
	$(BIN)/pytest benchmarks -W default --benchmark-autosave

# torch first and pinned, so that no other requirement can pull in another build of it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs
