# Vitral's commands. Each says in one line what it does; `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -q
PORT ?= 8000
NATIVE := CMakeLists.txt pyproject.toml $(wildcard native/*.* native/*/*.*)
export PIP_PROGRESS_BAR ?= off

.PHONY: web help run test check build bench docs clean lock

help: ## list the commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

# On a terminal, bash -m gives the server a process group of its own: Ctrl-C reaches it alone, it drains, and make ends
# with 0 as it does. Without one there is no Ctrl-C, and bash would complain.
run: $(VENV)/.installed ## build, fetch the embedded model (98 MB, once) and serve it
	@echo "make run: SmolLM2-135M-Instruct behind an OpenAI-compatible server; Ctrl-C stops it"
	@$(VENV)/bin/vitral pull smollm2:135m
	@serve='$(VENV)/bin/vitral serve smollm2:135m --port $(PORT)'; \
	  if [ -t 0 ]; then bash -mc "$$serve; exit \$$?"; else exec $$serve; fi

test: $(VENV)/.dev ## run all tests
	@echo "make test: everything under tests/, and the examples in docstrings"
	@$(PY) -m pytest $(PYTEST_ARGS)

check: $(VENV)/.dev ## format, lint, types, layers, snippets
	@echo "make check: format, lint, types, import layers, what the documentation says"
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports
	@if [ -d web/node_modules ]; then cd web && npm run --silent check; else echo "make check: web/ is not installed here (make web); its types are unchecked"; fi
	@$(PY) -m pytest tests/docs

docs: $(VENV)/.dev ## write the generated pages and the README's picture again
	@echo "make docs: docs/reference from the code, docs/session.svg from a real session"
	@$(PY) -m tools.reference
	@$(PY) -m tools.session

web: ## build the page of `vitral inspect` (node 20.19 or newer), after checking it
	@echo "make web: web/ into src/vitral/lens/static"
	@cd web && { [ -d node_modules ] || npm ci; } && npm run check && npm run build

build: $(VENV)/.dev ## compile the extension again after a change under native/
	@echo "make build: done"

bench: $(VENV)/.dev ## measure this machine in a minute
	@echo "make bench: SmolLM2-135M-Instruct on this machine; python -m benchmarks.speed compares with others"
	@$(VENV)/bin/vitral bench smollm2:135m

lock: ## pin every dependency again, with hashes
	@echo "make lock: requirements/*.txt from pyproject.toml"
	@$(VENV)/bin/pip-compile -q --generate-hashes --allow-unsafe --no-emit-index-url --no-emit-options --no-emit-find-links \
	  --strip-extras --output-file requirements/core.txt pyproject.toml

clean: ## remove what was built and installed
	@echo "make clean: .venv and build"
	@rm -rf $(VENV) build

$(VENV)/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" \
	  || { echo "make: $(PYTHON) is older than 3.11; name a newer one: make run PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -c "import os, sysconfig; os.stat(sysconfig.get_path('include') + '/Python.h')" 2>/dev/null \
	  || { echo "make: Python's headers are missing; install python3-dev (or python3-devel)"; exit 2; }
	@echo "make: creating the environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -U pip

# What a user needs: the locked libraries, then Vitral itself.
$(VENV)/.installed: requirements/core.txt $(NATIVE) | $(VENV)/bin/python
	@echo "make: installing the locked libraries and building the extension"
	@$(PIP) install --require-hashes -r requirements/core.txt
	@$(PIP) install --no-deps -e .
	@touch $@

# What a developer needs as well: tools and oracles. torch comes first and alone, or its CUDA build comes along.
$(VENV)/.dev: requirements/dev.txt $(VENV)/.installed
	@echo "make: installing the tools and the independent oracles for tests"
	@$(PY) -c "import torch" 2>/dev/null || $(PIP) install torch==2.13.0 \
	  || echo "make: torch 2.13.0 is not to be had; tests that need it will say so"
	@$(PIP) install -r requirements/dev.txt
	@touch $@
