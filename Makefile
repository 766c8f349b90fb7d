# Every target starts from nothing but a Python >= 3.11 and is instant when there is nothing to do:
# the stamps below mean "these extras are installed according to pyproject.toml and the constraints".
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo test lint changelog docs docs-check bench fuzz soak test-oldest test-newest test-torch test-kernels test-gpu test-dist study studies clean

VENV ?= .venv
PYTHON := $(VENV)/bin/python
# The tests share two processes; `make test PYTEST_ARGS="-n 0 -x"` runs them in one.
PYTEST_ARGS ?= -n 2
# For each of the six properties of tests/project/test_fuzz.py, the two dear ones half, and of the six kinds of
# combinations: 27,500 in all. The seed is another one each time; give it to see the same cases again.
FUZZ_CASES ?= 2500
ifndef FUZZ_SEED
FUZZ_SEED := $(shell date +%s)
endif
# One BLAS and one torch thread: sums come out the same to the bit, and two cores are shared fairly.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
TEST_WITH := $(ONE_THREAD) SCIPY_ARRAY_API=1
# The torch of `make test-torch`; any that pyproject.toml admits.
TORCH ?= 2.14.1
# `make test-kernels KERNEL_ARGS=--numerical` leaves out the tests that do not check numbers.
KERNEL_ARGS ?=
DOCS_ARGS ?=
.PRECIOUS: %/bin/python .venv-torch-%/.test
NEEDS := pyproject.toml constraints.txt

help:
	@echo "make demo         fit, search and measure on scikit-learn's digits; writes a table and a picture"
	@echo "make test         all tests and doctests          make lint         style, spelling and types"
	@echo "make docs-check   looks at every page of the docs in a browser"
	@echo "make docs         docs/_build/html                make bench        ratios against peers"
	@echo "make fuzz         thousands of hostile inputs     make soak         1,000 fits in one process"
	@echo "make test-oldest  oldest declared versions        make test-newest  newest declared versions"
	@echo "make test-gpu     what only a machine with a GPU shows; python3 runs it, nothing is installed"
	@echo "make test-torch   another torch: TORCH=2.11.0     make test-kernels other instruction sets and threads"
	@echo "make study        one figure of a paper: NAME=eg_figure_1 SCALE=tiny|small|paper; make studies runs all"
	@echo "make changelog    changes since the last release"
	@echo "make test-dist    build and check the wheel       make clean        remove what was made"

# $(call find_python): the first interpreter that is new enough and can make a virtual environment.
define find_python
found=""; \
for candidate in $${PYTHON3:-} python3 python3.11 python3.12 python3.13 python3.14; do \
  if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
    found="$$candidate"; break; \
  fi; \
done; \
if [ -z "$$found" ]; then \
  echo "No Python >= 3.11 with venv and ensurepip was found. Install one, or name it: make PYTHON3=/path/to/python3" >&2; \
  exit 1; \
fi
endef

# $(call install,environment,constraints,extras)
define install
$(1)/bin/python -m pip install --quiet --disable-pip-version-check $(2) --editable '.$(3)'
endef

%/bin/python:
	@$(find_python); echo "Making $* with $$found"; "$$found" -m venv $*

$(VENV)/.core: $(NEEDS) | $(PYTHON)
	@echo "Installing the package"
	@$(call install,$(VENV),-c constraints.txt,[plot])
	@touch $@

$(VENV)/.test: $(VENV)/.core
	@echo "Installing what the tests need"
	@$(call install,$(VENV),-c constraints.txt,[test])
	@touch $@

$(VENV)/.lint: $(VENV)/.core
	@echo "Installing what checks style, spelling and types"
	@$(call install,$(VENV),-c constraints.txt,[lint])
	@touch $@

$(VENV)/.docs: $(VENV)/.core
	@echo "Installing sphinx"
	@$(call install,$(VENV),-c constraints.txt,[docs])
	@touch $@

$(VENV)/.bench: $(VENV)/.core
	@echo "Installing the peers that benchmarks compare with"
	@$(call install,$(VENV),-c constraints.txt,[bench])
	@touch $@

demo: $(VENV)/.core
	$(PYTHON) -m sklearn_capacity demo

test: $(VENV)/.test
	$(TEST_WITH) $(PYTHON) -m pytest $(PYTEST_ARGS)

test-kernels: $(VENV)/.test
	$(PYTHON) -m tests.kernels $(KERNEL_ARGS)

lint: $(VENV)/.lint
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m codespell_lib .
	$(PYTHON) -m towncrier build --draft --version next > /dev/null
	$(PYTHON) -m mypy

changelog: $(VENV)/.lint
	@$(PYTHON) -m towncrier build --draft --version next

# The gallery's scripts are run, those that changed; DOCS_ARGS="-D plot_gallery=0" shows them without their figures.
docs: $(VENV)/.docs
	$(ONE_THREAD) $(PYTHON) -m sphinx -W --keep-going --quiet $(DOCS_ARGS) -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

# Every page at two widths in a headless Chromium: nothing overflows, no image or formula is missing, no link is dead.
docs-check: docs
	$(PYTHON) docs/check_site.py

bench: $(VENV)/.bench
	$(ONE_THREAD) $(PYTHON) -m benchmarks $(BENCH_ARGS)

# Figures and tables of the papers, into studies/: csv, figure and verdict. They resume where they were stopped.
# STUDY_ARGS="--data PATH.npz --jobs 2 --output FOLDER" and others: `make study NAME=eg_figure_1 STUDY_ARGS=--help`.
SCALE ?= small
study: $(VENV)/.core
	$(ONE_THREAD) $(PYTHON) examples/papers/$(NAME).py --scale $(SCALE) $(STUDY_ARGS)

studies: $(VENV)/.core
	for script in $$(grep -l '^STUDY = ' examples/papers/*.py); do \
	    $(ONE_THREAD) $(PYTHON) $$script --scale $(SCALE) $(STUDY_ARGS); done

fuzz: $(VENV)/.test
	@echo "FUZZ_SEED=$(FUZZ_SEED)"
	$(TEST_WITH) FUZZ_CASES=$(FUZZ_CASES) FUZZ_SEED=$(FUZZ_SEED) $(PYTHON) -m pytest -m fuzz --hypothesis-profile=fuzz \
	    --hypothesis-seed=$(FUZZ_SEED) $(PYTEST_ARGS)

soak: $(VENV)/.test
	$(ONE_THREAD) $(PYTHON) -m benchmarks.soak
	$(ONE_THREAD) $(PYTHON) -m benchmarks.soak --classes

# The lower ends of pyproject.toml, which constraints-oldest.txt repeats (a test compares the two).
.venv-oldest/.test: pyproject.toml constraints-oldest.txt | .venv-oldest/bin/python
	@$(call install,.venv-oldest,-c constraints-oldest.txt,[test])
	@touch $@

test-oldest: .venv-oldest/.test
	$(TEST_WITH) .venv-oldest/bin/python -m pytest $(PYTEST_ARGS)

# Whatever is newest today inside the declared ranges, whatever this machine's pip is configured to hold back.
test-newest: .venv-newest/bin/python
	@PIP_CONSTRAINT=/dev/null $(call install,.venv-newest,--no-compile --upgrade --upgrade-strategy eager,[test])
	.venv-newest/bin/python -m pip list
	$(TEST_WITH) .venv-newest/bin/python -m pytest $(PYTEST_ARGS)

# Another torch under the versions of constraints.txt, but for those that torch itself holds. On Linux it is the build
# with CUDA, as a plain `pip install` gives it: 5 GB and about two minutes.
.venv-torch-%/.test: pyproject.toml constraints.txt | .venv-torch-%/bin/python
	@echo "Installing torch $* and what the tests need"
	@grep -vE '^(torch|torchvision|setuptools)==' constraints.txt > $(@D)/constraints.txt
	@echo 'torch==$*' >> $(@D)/constraints.txt
	@PIP_CONSTRAINT=/dev/null $(call install,$(@D),--no-compile -c $(@D)/constraints.txt,[test])
	@touch $@

test-torch: .venv-torch-$(TORCH)/.test
	$(TEST_WITH) .venv-torch-$(TORCH)/bin/python -m pytest $(PYTEST_ARGS)

# For a machine with a GPU and no network: the python3 there has torch and the other dependencies, and skorch comes as a
# wheel in a folder, GPU_ARGS="--wheels FOLDER". At most 8 minutes.
GPU_PYTHON ?= python3
test-gpu:
	$(GPU_PYTHON) -m tests.gpu $(GPU_ARGS)

test-dist: $(VENV)/.core
	$(PYTHON) .ci/check_dist.py

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest .venv-torch-* build dist docs/_build docs/generated docs/gallery demo *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
