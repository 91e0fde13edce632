# Everything that people and CI do. `make help` explains; every target works from any folder with `make -f` or `-C`.
SHELL := /bin/sh
.DEFAULT_GOAL := help
ROOT := $(shell cd "$$(dirname '$(lastword $(MAKEFILE_LIST))')" && pwd)
BIN := $(ROOT)/.venv/bin
PYTHON ?= python3
PIP_FLAGS := --quiet --disable-pip-version-check

# Settings of `make run`, each empty by default: see `make help`.
METERS ?=
FLEET ?=
KAFKA ?=
DATABASE ?=
DATA ?=
PREFIX ?=
ARGS ?=
# Test processes, each with a Kafka and a PostgreSQL of its own: one more than the two cores of CI, since tests wait, too.
JOBS ?= 3

# Modules are compiled once, not by each of the hundreds of processes that the tests start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup run test test-unit bench-ingest bench-ingest-growth bench-ingest-live bench-close bench-verify bench-close-live bench-delivery bench-api bench-export bench-export-year bench-export-closing lint format lock clean

help: ## Explain the targets
	@echo 'usage: make TARGET [SETTING=value …]'
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' '$(ROOT)/Makefile' | awk -F'|' '{printf "%-22s%s\n", $$1, $$2}'
	@echo
	@echo 'settings of make run:'
	@echo '  METERS=500      meters of the demo organization (at the first start)'
	@echo '  FLEET=0         no simulated fleet: send readings of your own'
	@echo '  DATA=folder     another data folder than .local, so that two instances run side by side'
	@echo '  KAFKA=host:port        an existing Kafka instead of the embedded one (PREFIX=x. shares it)'
	@echo '  DATABASE=postgresql:// an existing PostgreSQL instead of the embedded one'
	@echo '  PYTHON=python3.12      the Python (3.11 to 3.13) for the virtual environment'

setup: ## Make the virtual environment with every pinned dependency
	@cd '$(ROOT)' && if [ ! .venv/ready -nt requirements/dev.txt ] || [ ! .venv/ready -nt pyproject.toml ]; then \
	  $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "Python 3.11, 3.12 or 3.13 is needed, $$($(PYTHON) --version 2>&1) is here: set PYTHON=python3.12, for example"; exit 2; }; \
	  echo 'setting up .venv (once, less than a minute)'; \
	  $(PYTHON) -m venv .venv || { echo 'Python has no venv module: install it (Debian: apt install python3-venv)'; exit 2; }; \
	  .venv/bin/python -m pip install $(PIP_FLAGS) --require-hashes -r requirements/dev.txt && \
	  .venv/bin/python -m pip install $(PIP_FLAGS) --no-deps --no-build-isolation -e . && touch .venv/ready; fi

run: setup ## Start the whole product here and show deliveries arriving; Ctrl-C ends everything
	@METERPOST_METERS='$(METERS)' METERPOST_FLEET='$(FLEET)' METERPOST_KAFKA_BOOTSTRAP_SERVERS='$(KAFKA)' \
	METERPOST_DATABASE_URL='$(DATABASE)' METERPOST_DATA_FOLDER='$(DATA)' METERPOST_TOPIC_PREFIX='$(PREFIX)' \
	exec '$(BIN)/python' -m services.local

test: setup ## Run every test, on a real Kafka and a real PostgreSQL
	@cd '$(ROOT)' && '$(BIN)/python' -m pytest -m 'not alone' -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)
	@cd '$(ROOT)' && { '$(BIN)/python' -m pytest -m alone $(ARGS) || [ $$? -eq 5 ]; } # 5: ARGS chose none of them

test-unit: setup ## Run the tests that need no server
	@cd '$(ROOT)' && '$(BIN)/python' -m pytest tests/unit tests/contract $(ARGS)

lint: setup ## Check format, style, types, import rules
	@cd '$(ROOT)' && '$(BIN)/ruff' format --check . && '$(BIN)/ruff' check . && '$(BIN)/mypy' && '$(BIN)/lint-imports'

bench-ingest: setup ## Measure ingest against direct COPY on the same database (ARGS='--meters 5000')
	@cd '$(ROOT)' && '$(BIN)/python' -m bench.ingest $(ARGS)

bench-ingest-growth: setup ## Measure what a reading costs with more meters, fuller tables, more processes (8 minutes)
	@cd '$(ROOT)' && '$(BIN)/python' -m bench.ingest_growth $(ARGS)

bench-ingest-live: setup ## Measure how long after its append a reading is stored, at 20,000 readings/s
	@cd '$(ROOT)' && '$(BIN)/python' -m bench.ingest_live $(ARGS)

bench-close: setup ## Measure closing against a bare aggregate on the same database (ARGS='--growth')
	@cd '$(ROOT)' && '$(BIN)/python' -m bench.close $(ARGS)

bench-verify: setup ## Measure what proving closed windows costs
	@cd '$(ROOT)' && '$(BIN)/python' -m bench.verify $(ARGS)

bench-close-live: setup ## Measure how long after its cut-off a window is closed, with 10,000 meters live (14 minutes)
	@cd '$(ROOT)' && '$(BIN)/python' -m bench.close_live $(ARGS)

bench-delivery: setup ## Measure delivery against COPY out, and how soon it follows the cut-off (ARGS='--long-rows 0')
	@cd '$(ROOT)' && '$(BIN)/python' -m bench.delivery $(ARGS)

bench-api: setup ## Measure the HTTP API with 10,000 jobs and 50,000 meters stored, and a manual export
	@cd '$(ROOT)' && '$(BIN)/python' -m bench.api $(ARGS)

bench-export: setup ## Measure a manual export in all formats against COPY out of the same rows
	@cd '$(ROOT)' && '$(BIN)/python' -m bench.manual_export $(ARGS)

bench-export-year: setup ## Export a year of 250 sites beside live traffic: memory, and what live traffic feels (5 minutes)
	@cd '$(ROOT)' && '$(BIN)/python' -m bench.manual_export_year $(ARGS)

bench-export-closing: setup ## Measure what closing feels of a large manual export beside it
	@cd '$(ROOT)' && '$(BIN)/python' -m bench.manual_export_closing $(ARGS)

format: setup ## Format the code
	@cd '$(ROOT)' && '$(BIN)/ruff' format . && '$(BIN)/ruff' check --fix .

lock: setup ## Pin the dependencies of requirements/*.in anew, with hashes
	@cd '$(ROOT)' && for name in base local dev; do \
	  '$(BIN)/uv' pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --custom-compile-command 'make lock' requirements/$$name.in -o requirements/$$name.txt \
	  $$([ $$name = base ] || echo -c requirements/base.txt) || exit 1; done

clean: ## Remove what was set up and the caches (not the data in .local)
	@cd '$(ROOT)' && rm -rf .venv .tools .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
