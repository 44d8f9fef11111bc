# Two commands do everything: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PACKAGES := dicom_node inference storage config
# The test and demonstration processes share the cores; torch is told its threads where it matters.
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: demo test check peers attack faults install clean

demo: $(VENV)/.demo
	$(BIN)/dicom-node demo

test: check peers
	$(BIN)/python -m pytest

check: $(VENV)/.test
	$(BIN)/ruff check $(PACKAGES) tests benchmarks
	$(BIN)/ruff format --check $(PACKAGES) tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

# Real peers: DCMTK, Orthanc, PixelMed's validator. Without root or apt, their tests skip by name.
peers:
	@sh tests/install_peers.sh

install: $(VENV)/.demo

# Every attack on the receiver while a series is sent; every fail point of every process, twenty times.
attack: $(VENV)/.test peers
	$(BIN)/python -m pytest tests/faults/test_attacks.py

faults: $(VENV)/.test peers
	NODE_FAULT_ROUNDS=20 $(BIN)/python -m pytest --timeout=0 tests/faults/test_kills.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python setup.cfg pyproject.toml
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable .
	@touch $@

$(VENV)/.test: $(VENV)/bin/python setup.cfg pyproject.toml
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[test]'
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build *.egg-info var
