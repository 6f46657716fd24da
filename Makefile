PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What is installed so far: the package alone (demo), or all that development needs.
READY := $(VENV)/.ready
DEVELOP := $(VENV)/.ready-develop
# Where pip takes torch from, if not from its usual index: make INDEX=URL demo, with the URL of PyTorch's CPU index
# (https://pytorch.org/get-started/locally/ gives it) avoids gigabytes of CUDA libraries on Linux.
INDEX ?=
PIP := $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt $(if $(INDEX),--extra-index-url $(INDEX))

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-oldest test-trackers test-warp lint format type docs wheel bench clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed (MuJoCo 4 is): try make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $@

$(DEVELOP): $(READY)
	$(PIP) -e ".[test,lint]"
	@touch $@

demo: $(READY)  ## train PPO_L2ER on SlipperyAnt through five friction changes and draw it (under 5 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python examples/slippery_ant.py

test: $(DEVELOP)  ## lint, types, the tests, and the wheel in a clean environment
	$(MAKE) --no-print-directory lint type
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2
	$(MAKE) --no-print-directory wheel

test-slow: $(DEVELOP)  ## the tests that take minutes each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m slow

test-oldest: $(DEVELOP)  ## the tests of zoo and environments with the oldest versions accepted
	$(BIN)/python tests/check_oldest.py

test-trackers: $(DEVELOP)  ## logging to MLflow and W&B, with the real packages, which bring dozens of others
	$(PIP) -e ".[test,trackers]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/callbacks/test_trackers.py

test-warp: $(DEVELOP)  ## MuJoCo Warp on the CPU against mujoco.batch (minutes: the first run compiles its kernels)
	$(PIP) -e ".[test,warp]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/envs/test_warp.py -m "slow or not slow"

lint: $(DEVELOP)  ## ruff: style, docstrings, formatting; docstrings' arguments; spelling; undeclared imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/flake8 sb3_plasticity envs
	$(BIN)/codespell
	$(BIN)/deptry .

format: $(DEVELOP)  ## let ruff format and fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# mypy does not follow the mapping of envs/ to sb3_plasticity.envs: two targets.
type: $(DEVELOP)  ## mypy, strict
	$(BIN)/mypy sb3_plasticity examples benchmarks docs tests
	$(BIN)/mypy envs

docs: $(DEVELOP)  ## build the documentation, tutorials executed, warnings as errors
	$(PIP) -e ".[docs]"
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -b html -W --keep-going -q docs docs/_build/html

wheel: $(DEVELOP)  ## build the wheel, install it in a clean environment, import it from another folder
	$(BIN)/python tests/check_wheel.py

bench: $(DEVELOP)  ## the benchmarks: ratios measured side by side in one run
	$(PIP) -e ".[bench]"
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/throughput.py --part envs
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/throughput.py --part training
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/overhead.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mitigations.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/compiled.py
	$(BIN)/python -W ignore benchmarks/curvature.py --threads 2

clean:  ## remove what the build left
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
