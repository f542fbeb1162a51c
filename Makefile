# What people and machines do here, one target each; `make help` lists them.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
PYTHON := $(VENV)/bin/python

# An editable install sees changed Python code at once, but doesn't rebuild changed native code.
PACKAGING := pyproject.toml setup.py scripts/choose-python
NATIVE_SOURCES := $(shell find cext -type f \( -name '*.c' -o -name '*.h' -o -name '*.pyx' -o -name '*.pxd' \))

.PHONY: help setup criu

help: ## list the targets
	@sed -n 's/^\([a-z][a-z-]*\):.*## /\1: /p' $(MAKEFILE_LIST) | while IFS=: read -r name what; do \
		printf '  %-12s%s\n' "$$name" "$$what"; done

setup: $(VENV)/.native ## make .venv with all that development needs, and build the native parts

# A .venv whose Python is gone (an upgrade of the system) is made anew, else it is only brought up to date.
$(VENV)/.packages: $(PACKAGING)
	@$(PYTHON) -c 'import pip' 2>/dev/null || \
		{ python=$$(scripts/choose-python) && "$$python" -m venv --clear $(VENV); }
	$(PYTHON) -m pip install --quiet --editable '.[dev]'
	touch $@

$(VENV)/.native: $(VENV)/.packages $(NATIVE_SOURCES)
	$(PYTHON) -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

criu: setup ## find a working criu, or install one into a private prefix; TOOLS="redis" adds programs for tests
	$(PYTHON) -m externalizer.criu.provide $(if $(TOOLS),--tools $(TOOLS))
