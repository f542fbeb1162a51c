# What people and machines do here, one target each; `make help` lists them.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
PYTHON := $(VENV)/bin/python

# An editable install sees changed Python code at once, but doesn't rebuild changed native code.
PACKAGING := pyproject.toml setup.py .ci/choose-python
NATIVE_SOURCES := $(shell find cext -type f \( -name '*.c' -o -name '*.h' -o -name '*.pyx' -o -name '*.pxd' \))

.PHONY: help setup criu demo test matrix daemons mounts agreement bench lint clean

help: ## list the targets
	@sed -n 's/^\([a-z][a-z-]*\):.*## /\1: /p' $(MAKEFILE_LIST) | while IFS=: read -r name what; do \
		printf '  %-12s%s\n' "$$name" "$$what"; done

setup: $(VENV)/.native ## make .venv with all that development needs, and build the native parts

# A .venv whose Python is gone (an upgrade of the system) is made anew, else it is only brought up to date.
$(VENV)/.packages: $(PACKAGING)
	@$(PYTHON) -c 'import pip' 2>/dev/null || \
		{ python=$$(.ci/choose-python) && "$$python" -m venv --clear $(VENV); }
	$(PYTHON) -m pip install --quiet --editable '.[dev]'
	touch $@

$(VENV)/.native: $(VENV)/.packages $(NATIVE_SOURCES)
	$(PYTHON) -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

criu: setup ## find a working criu, or install one into a private prefix; TOOLS="redis" adds programs for tests
	$(PYTHON) -m externalizer.criu.provide $(if $(TOOLS),--tools $(TOOLS))

demo: criu ## the main job on a real example: sockets and mounts outside, dumped and restored
	$(PYTHON) -m externalizer.cli.main demo

# Two workers, each in namespaces of its own (tests/isolated.py): nobody takes a pid that a restore needs.
TESTS ?= tests
WORKERS ?= 2
test: criu ## run all tests, real criu included (root); TESTS="tests/unit" runs some
	$(PYTHON) -m pytest -q -m host tests
	$(PYTHON) -m pytest -m 'not host' --dist loadfile \
		--tx '$(WORKERS)*popen//python=$(PYTHON) tests/isolated.py $(PYTHON)' $(TESTS)

# The long suites, which `make test` runs at the size of CI.
matrix: criu ## every kind of external unix socket on real criu, at full size, with its table
	EXTERNALIZER_FULL_SIZE=1 $(PYTHON) tests/isolated.py $(PYTHON) -m pytest -q -m matrix tests

daemons: criu ## Redis, PostgreSQL, D-Bus and the journal on real criu, at full size, with their table
	EXTERNALIZER_FULL_SIZE=1 $(PYTHON) tests/isolated.py $(PYTHON) -m pytest -q -m daemons tests

mounts: criu ## criu's rule for mounts as we know it, on hundreds of random containers, with a table
	EXTERNALIZER_FULL_SIZE=1 $(PYTHON) tests/isolated.py $(PYTHON) -m pytest -q -m mounts tests

agreement: criu ## what `externalize check` foresees against what the real criu does, with the confusion table
	$(PYTHON) tests/isolated.py $(PYTHON) -m pytest -q -m agreement tests

# docs/performance.md says what the columns are; BENCH="--sizes 1,100 --runs 3 --json FILE" for less.
bench: criu ## what external sockets cost at dump and restore, besides criu itself
	$(PYTHON) tests/isolated.py $(PYTHON) benchmarks/sockets.py $(BENCH)

C_SOURCES := $(shell find cext tests -type f -name '*.c' ! -name _scan.c)
lint: setup ## check style, types, import layers, Cython and C warnings
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy --strict externalizer
	$(VENV)/bin/lint-imports
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cython-lint --max-line-length 110 cext
	for source in $(C_SOURCES); do \
		$(CC) -std=gnu11 -O2 -D_FORTIFY_SOURCE=2 -Wall -Wextra -Werror -c -o /dev/null "$$source" || exit 1; done

clean: ## remove what was built here; .venv and the private prefix stay
	rm -rf build dist *.egg-info externalizer/native externalizer/kernel/*.so cext/scan/_scan.c $(VENV)/.native
