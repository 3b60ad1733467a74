# make train     trains ArcFace (ARGS="--dataset mnist" passes flags on)
# make test      checks style and types and runs the tests, without the exhaustive ones marked `slow`
# make test-all  runs the tests marked `slow`: with `make test`, all of them
# make report     writes figures/report.pdf (ARGS='--author "Philip Mark" --id 0123456')
# make submission writes the zip to hand in (ARGS="--last mark --first philip --id 0123456")
# make docs       writes the documentation's site to build/site (README.md and docs/*.md as pages, and the reference)
# make clean     removes the environment and what the tests have compiled
#
# PYTHON=python3.13 takes another interpreter, in an environment of its own.
PYTHON ?= python3
VENV ?= .venv$(if $(filter-out python3,$(notdir $(PYTHON))),-$(notdir $(PYTHON)))
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)
# One thread a process: as many processes as cores run at once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

.PHONY: train test test-all report submission docs clean

train: $(VENV)/.train-ready
	$(BIN)/python -m jax_arcface train $(ARGS)

test: $(VENV)/.test-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) -m "not slow" $(ARGS)

test-all: $(VENV)/.test-ready
	$(PYTEST) -m slow $(ARGS)

report: $(VENV)/.report-ready
	$(BIN)/python -m experiments report $(ARGS)

submission: $(VENV)/.report-ready
	$(BIN)/python -m experiments submit $(ARGS)

docs: $(VENV)/.test-ready
	$(BIN)/python -m sphinx -W --keep-going -b html docs build/site

clean:
	rm -rf $(VENV) .cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Each stamp is newer than what it was installed from, so a second call installs nothing.
$(VENV)/.train-ready: pyproject.toml setup.py jax_arcface/cpu/onednn.cc $(CONSTRAINTS) | $(VENV)/bin/python
	$(PIP) --editable ".[figures,cpu]"
	touch $@

$(VENV)/.test-ready: pyproject.toml setup.py jax_arcface/cpu/onednn.cc torch_reference/pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(PIP) --editable ".[test]" --editable "./torch_reference[figures,tensorboard,export]"
	touch $@ $(VENV)/.train-ready

$(VENV)/.report-ready: pyproject.toml setup.py torch_reference/pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(PIP) --editable ".[report]" --editable "./torch_reference[figures]"
	touch $@
