# make demo | test | check | bench | help
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
SEED ?= 0

help:  ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

demo: $(VENV)/core  ## from random weights to a reasoning model and a report, in minutes
	$(BIN)/agartha zero seed=$(SEED)

test: $(VENV)/test  ## all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/test  ## style, types, floors, sizes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/python tests/sizes.py

bench: $(VENV)/bench  ## measurements side by side with their peers
	for name in train rollout rl architecture decode agreement speculative distill; do $(BIN)/python benchmarks/$$name.py --json || exit 1; done

# torch first and by exact version, so that nothing else decides which build is taken
$(VENV)/core: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/test: $(VENV)/core
	$(BIN)/python -m pip install --quiet -e '.[test]'
	@touch $@

$(VENV)/bench: $(VENV)/core
	$(BIN)/python -m pip install --quiet -e '.[test,bench]'
	@touch $@

.PHONY: help demo test check bench
