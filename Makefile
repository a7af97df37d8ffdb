# `make sweep` and `make test` set everything up themselves, and are quick the second time.
#   make sweep      the demonstration sweep: SmolLM2 on this machine, some three minutes
#   make test       lint, types and all tests but the slow ones, about ten minutes
#   make test-slow  the tests that take a minute or more each: real installs, long fuzzing
#   make docs       the site, in site/: some ten seconds, without a network
#   make benchmark  speed against what people do today, as ratios in one run

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=

.PHONY: install sweep test test-slow lint docs benchmark clean

install: $(READY)

$(READY): pyproject.toml constraints.txt requirements-model.txt scripts/setup.sh
	PYTHON="$(PYTHON)" bash scripts/setup.sh "$(VENV)"
	touch $@

sweep: $(READY)
	$(BIN)/emosteer -m experiment=demo $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest $(ARGS)

docs: $(READY)
	$(BIN)/sphinx-build -W --keep-going -n -E -q -b html docs site
	@echo "Read it: site/index.html"

test-slow: $(READY)
	$(BIN)/pytest -m slow $(ARGS)

benchmark: $(READY)
	$(BIN)/python benchmarks/generation.py $(ARGS)

clean:
	rm -rf $(VENV) dist build site .mypy_cache .ruff_cache .pytest_cache
