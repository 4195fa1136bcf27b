# Each target is what a person would type; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help
.PHONY: help demo test test-slow chaos fuzz audit check bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.run: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[embedded,worker]'
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[embedded,worker,dev]'
	@touch $@

$(VENV)/.bench: $(VENV)/.run
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[embedded,worker,bench]'
	@touch $@

demo: $(VENV)/.run ## the whole service on this machine: prepare a model, run a DER job, show the report
	$(BIN)/unforgotten demo $(ARGS)

test: $(VENV)/.dev ## checks and the suite, on every back end that is reachable
	$(MAKE) --no-print-directory check
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-slow: $(VENV)/.dev ## what the suite leaves out: SmolLM2, and 2 GB through an upload (minutes)
	$(BIN)/python -m pytest -m slow $(ARGS)

chaos: $(VENV)/.dev ## kill parts of the service at random while jobs run, and count what is lost (minutes)
	$(BIN)/python -m tests.chaos $(ARGS)

fuzz: $(VENV)/.dev ## several hundred made-up requests to each operation of the API, other ones each time (minutes)
	UNFORGOTTEN_FUZZ_EXAMPLES=300 $(BIN)/python -m pytest --timeout 3600 tests/app/test_schema_fuzz.py $(ARGS)

$(VENV)/.audit: $(VENV)/.run
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet 'pip-audit>=2.10,<3'
	@touch $@

audit: $(VENV)/.audit ## look every pinned version up among known vulnerabilities; needs the network
	$(VENV)/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict $(ARGS)

check: $(VENV)/.dev ## formatting, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.bench ## what each method costs beside plain fine-tuning
	$(BIN)/unforgotten models prepare smollm2-135m-instruct
	$(BIN)/python -m benchmarks.methods $(ARGS)

clean: ## remove the environment and everything the embedded service keeps
	rm -rf $(VENV) .unforgotten
