# Every target works from a fresh clone with Rust, CPython 3.11+ and the package registries.
PYTHON ?= python3
BIN := .venv/bin
MATURIN := $(BIN)/maturin

export VIRTUAL_ENV := $(CURDIR)/.venv
export PYO3_PYTHON := $(CURDIR)/$(BIN)/python
# A PYTHONPATH from outside could put another ironbus in front of the one under test.
unexport PYTHONPATH

.DELETE_ON_ERROR:
.PHONY: help demo test bench torture lint build clean

help:  ## show this list
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

demo: .venv/.ready  ## install ironbus with its CLI and run the demonstration
	$(BIN)/python -m pip install --quiet '.[cli]'
	$(BIN)/ironbus demo

test: .venv/.ready  ## the gate: everything that must hold before a change lands
	@tests/tools/gate.sh all

lint: .venv/.ready  ## the part of the gate that only reads the code
	@tests/tools/gate.sh lint

build: .venv/.ready  ## build the extension (release) into .venv, with all that developing needs
	@tests/tools/gate.sh build

bench: .venv/.ready  ## measure against the targets, peers side by side
	@tests/tools/gate.sh build
	$(BIN)/python -m pytest benches --override-ini=timeout=0 -p no:cacheprovider -q

torture: .venv/.ready  ## the fault tests at length: kills, losses of power, failing disks, flipped bits
	@tests/tools/gate.sh torture

clean:  ## remove everything that was built or installed here
	rm -rf .venv .venvs dist target .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f python/ironbus/_core*.so python/ironbus/_core*.pyd

# The stamp is written last, so a run that was interrupted begins anew.
.venv/.ready:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "ironbus needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet 'maturin>=1.9,<2'
	@touch $@
