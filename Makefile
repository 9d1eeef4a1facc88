# `make test` and `make stress` work on a fresh clone: they create .venv and install what they need, once.

# The first that runs and is new enough: a name on the PATH may be a shim with nothing behind it.
NEW_ENOUGH := -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(if $(filter ok,$(shell $(p) $(NEW_ENOUGH) 2>/dev/null && echo ok)),$(p))))
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2

# One operand of STRESS_SIZE bytes against a memory limit at least four times smaller: a few minutes on two cores.
STRESS_SIZE ?= 1.6GB
STRESS_MEMORY ?= 400MB
STRESS_FLAGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install test stress bench lint format types docs serve clean

help:
	@echo "make test     tests (everything that needs no GPU; all of it where there is one)"
	@echo "make stress   multiply two matrices bigger than the memory limit, and check the product"
	@echo "make bench    the benchmarks: each prints machine, baseline and spread"
	@echo "make lint types docs   ruff, mypy --strict, strict documentation build"

# Stamps: an extra is installed again only when pyproject.toml has changed. $(1): the extra, with brackets.
define pip_install
	@$(or $(PYTHON),false) $(NEW_ENOUGH) \
	  || { echo "pycauset needs Python 3.11 or later with venv; name one: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "creating $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "installing pycauset$(1) into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.$(1)'
	@touch $@
endef

$(VENV)/.installed: pyproject.toml
	$(call pip_install,)

$(VENV)/.installed-dev: pyproject.toml
	$(call pip_install,[dev])

$(VENV)/.installed-docs: pyproject.toml
	$(call pip_install,[docs])

install: $(VENV)/.installed

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n $(JOBS) $(TEST_FLAGS)

stress: $(VENV)/.installed
	$(BIN)/pycauset stress --size $(STRESS_SIZE) --memory $(STRESS_MEMORY) $(STRESS_FLAGS)

bench: $(VENV)/.installed-dev
	@for script in $(filter-out benchmarks/report.py benchmarks/disk.py benchmarks/gpu_%,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python "$$script" $(BENCH_FLAGS) || exit 1; done

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

serve: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

clean:
	rm -rf $(VENV) build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
