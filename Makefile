# make demo        raw files to an exported, searched model, about five minutes on two cores
# make test        the tests; test-all adds the slow ones
# make lint        ruff, pyright, import-linter
# make bench       ours, the peer's and the ratio, in full (hours); bench-quick takes minutes
# The first use of any of them creates .venv from requirements.lock. Nothing needs more network than pip.

PYTHON ?= python3
BIN := .venv/bin
TORCH := torch==2.13.0
# uv installs no byte code. Where this is set, every process compiles two thousand modules anew: 2.5 s for each rank.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-all lint format bench bench-quick lock clean
help:
	@sed -n 's/^# //p' Makefile

demo: .venv/.installed
	$(BIN)/fourfold demo

test: .venv/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 12 -m "not slow and not hosts"

test-all: .venv/.installed
	$(BIN)/python -m pytest

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-cache

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

BENCHMARKS := prepare loader plan train_step contrastive checkpoint faults tiny

bench: .venv/.installed
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py; done

bench-quick: .venv/.installed
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py --quick; done

# pip installs torch, because it chooses the build for this machine (CPU or CUDA, with that build's own libraries);
# uv installs the rest ten times faster, exactly as locked and without resolving anything again.
.venv/.installed: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$$(grep '^uv==' requirements.lock)" $(TORCH)
	$(BIN)/uv pip install --system-certs --quiet --python $(BIN)/python --no-deps --requirement requirements.lock
	$(BIN)/uv pip install --system-certs --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

# Resolve anew, within pyproject's bounds. torch brings its own CUDA libraries, so they are not locked.
lock: .venv/.installed
	$(BIN)/uv pip compile pyproject.toml --extra demo --extra s3 --group dev --python-version 3.11 --upgrade \
		--no-header --no-annotate --quiet --constraint <(echo "$(TORCH)") \
		| grep -vE '^(cuda-|nvidia-|triton=)' > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean:
	rm -rf .venv runs build dist .pytest_cache .ruff_cache .import_linter_cache

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
