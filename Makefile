# Two commands do everything: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PACKAGES := dicom_node inference storage config
BUILT_FROM := setup.cfg setup.py pyproject.toml $(wildcard inference/lungs/native/*.[ch])
# The test and demonstration processes share the cores; torch is told its threads where it matters.
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: demo test check peers attack fuzz faults install clean

demo: $(VENV)/.demo
	$(BIN)/dicom-node demo

test: check peers
	$(BIN)/python -m pytest

check: $(VENV)/.test
	$(BIN)/ruff check $(PACKAGES) tests benchmarks setup.py
	$(BIN)/ruff format --check $(PACKAGES) tests benchmarks setup.py
	$(BIN)/mypy
	$(BIN)/lint-imports

# Real peers: DCMTK, Orthanc, PixelMed's validator. Without root or apt, their tests skip by name.
peers:
	@sh tests/install_peers.sh

install: $(VENV)/.demo

# Every attack on the receiver while a series is sent.
attack: $(VENV)/.test peers
	$(BIN)/python -m pytest tests/faults/test_attacks.py tests/faults/test_commitment_attacks.py

# Broken PDUs in process and over the socket, and broken data sets, by the hundred thousand; takes a quarter of an hour.
fuzz: $(VENV)/.test
	FUZZ=100000 $(BIN)/python -m pytest --timeout=0 tests/fuzz

# Everything that may go wrong: every fail point of every process twenty times and more, 500 kills at random, seeded
# bugs, full disks, the soak, 10,000 steps of anything in any order. Hours; `make test` runs a short cut of each.
faults: $(VENV)/.test peers
	$(BIN)/python -m tests.faults.endurance --rounds 21
	NODE_FAULT_ROUNDS=21 DICOM_NODE_STATEFUL_STEPS=10000 $(BIN)/python -m pytest --timeout=0 tests/faults \
		tests/integration/test_storage_stateful.py tests/peers/test_pacs_storescp.py tests/peers/test_pacs_commitment.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python $(BUILT_FROM)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable .
	@touch $@

$(VENV)/.test: $(VENV)/bin/python $(BUILT_FROM)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[test]'
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build *.egg-info var
