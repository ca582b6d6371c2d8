# `make demo` and `make test` are all a newcomer needs; each makes .venv and installs into it first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow lint bench reference clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

demo: $(READY)
	$(BIN)/python examples/demo.py

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/spectrum.py
	$(BIN)/python benchmarks/catalog.py
	$(BIN)/python benchmarks/workers.py
	$(BIN)/python benchmarks/diagnose.py
	$(BIN)/python benchmarks/verdicts.py
	$(BIN)/python benchmarks/gradients.py
	$(BIN)/python benchmarks/training.py

reference: $(READY)
	$(BIN)/python -m dyneq.train.reference

clean:
	rm -rf $(VENV) build *.egg-info .ruff_cache .mypy_cache .pytest_cache .hypothesis
