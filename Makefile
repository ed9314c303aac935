# Everything a developer does, on a machine that has Python 3.11+ (venv, headers), make and g++.
#   make quickstart              install, train a small Mask R-CNN on synthetic images, evaluate, draw
#   make test                    install, run the tests
#   make … PYTHON=python3.12     another interpreter;  VENV=DIR  another place for the virtual environment

PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/quickstart
WORKERS ?= 2
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
NATIVE := $(filter-out csrc/masks.c csrc/masks.cpp,$(wildcard csrc/*.* csrc/*/*.*))

# Developers are told of what a compiler only warns of; `pip install` by hand goes on.
export TOOLBOX_STRICT ?= 1

.DEFAULT_GOAL := help
.PHONY: help install quickstart test fuzz sanitize lint format docs build bench clean requirements

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

requirements: ## check what pip cannot install, and print the line that installs it
	@.ci/requirements.sh $(PYTHON)

$(INSTALLED): pyproject.toml setup.py $(NATIVE)
	@.ci/requirements.sh $(PYTHON)
	@test -x $(BIN)/python || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing into $(VENV) (the first time: a few minutes, about 6 GB with PyTorch)"
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet -e '.[dev]'
	@touch $@

install: $(INSTALLED) ## create .venv and install the toolbox with its development tools

quickstart: $(INSTALLED) ## train, evaluate and draw a small Mask R-CNN (a few minutes on two cores)
	$(BIN)/rcnn train configs/quickstart.yaml --run $(RUN) $(if $(wildcard $(RUN)/checkpoint.pt),--resume)
	@echo "pictures: $(RUN)/pictures    weights: $(RUN)/model.safetensors    figures: $(RUN)/eval.json"

test: $(INSTALLED) ## run the tests
	$(BIN)/python -m pytest -q -n $(WORKERS) tests plugins

fuzz: $(INSTALLED) ## thousands of mutated configs, annotation files, images and model files (FUZZ_EXAMPLES of each kind)
	$(BIN)/python -m pytest -q -n $(WORKERS) -o 'python_files=fuzz_*.py' -o 'python_functions=fuzz_*' tests/fuzz

sanitize: $(INSTALLED) ## the tests of the compiled parts under AddressSanitizer and UndefinedBehaviorSanitizer (minutes)
	.ci/sanitize.sh $(BIN)/python

lint: $(INSTALLED) ## check style, types and C++ formatting
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy toolbox
	$(BIN)/clang-format --dry-run --Werror $(filter %.h %.cpp %.cu %.cuh,$(NATIVE))

format: $(INSTALLED) ## format Python and C++
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .
	$(BIN)/clang-format -i $(filter %.h %.cpp %.cu %.cuh,$(NATIVE))

docs: $(INSTALLED) ## write what is made from the code: the schemas for editors and the config reference
	$(BIN)/rcnn schema --out configs/schema.json
	$(BIN)/rcnn schema plugins/boundary/boundary.yaml --out plugins/boundary/schema.json
	$(BIN)/rcnn schema --sweep --out configs/paper/schema.json
	$(BIN)/rcnn list --format markdown > docs/reference.md
	$(BIN)/python benchmarks/mistakes.py > docs/messages.md

build: $(INSTALLED) ## build the wheel and the source archive into dist/, each in an isolated environment
	$(BIN)/python -m pip install --disable-pip-version-check --quiet build
	$(BIN)/python -m build

bench: $(INSTALLED) ## time the operations and a whole model (minutes)
	$(BIN)/python benchmarks/ops.py
	$(BIN)/python benchmarks/infer.py

clean: ## remove what was built (the virtual environment and runs stay)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache csrc/masks.c csrc/masks.cpp
	find toolbox plugins tests -name __pycache__ -prune -exec rm -rf {} +
	find toolbox -name '*.so' -delete
	rm -f $(INSTALLED)
