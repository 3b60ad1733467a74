# make train   trains ArcFace (ARGS="--dataset mnist" passes flags on)
# make test    checks style and types and runs the whole test suite
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)

.PHONY: train test clean

train: .venv/.train-ready
	$(BIN)/python -m jax_arcface train $(ARGS)

test: .venv/.test-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal $(ARGS)

clean:
	rm -rf .venv

.venv/bin/python:
	$(PYTHON) -m venv .venv

# Each stamp is newer than what it was installed from, so a second call installs nothing.
.venv/.train-ready: pyproject.toml $(CONSTRAINTS) | .venv/bin/python
	$(PIP) --editable ".[figures,cpu]"
	touch $@

.venv/.test-ready: pyproject.toml $(CONSTRAINTS) | .venv/bin/python
	$(PIP) --editable ".[figures,test]"
	touch $@ .venv/.train-ready
