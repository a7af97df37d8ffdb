# `make sweep` and `make test` set everything up themselves, and are quick the second time.
#   make sweep      the demonstration sweep: SmolLM2 on this machine, a few minutes
#   make test       lint, types and all tests but the slow ones, some eighteen minutes on two cores
#   make test-slow  the tests that take a minute or more each: real installs, long fuzzing
#   make cluster    a SLURM of two nodes on this machine (launch/README.md); make cluster-down ends it
#   make docs       the site, in site/: some ten seconds, without a network
#   make benchmark  speed against what people do today, in one run; ARGS names other studies (docs/speed.md)
#   make benchmark-slurm  what a sweep costs besides the model

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=

.PHONY: install sweep test test-slow lint docs benchmark benchmark-slurm cluster cluster-down clean

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
	$(BIN)/python launch/dev_cluster install
	bash scripts/browser.sh
	# Two processes: three are slower on two cores, and so are more threads than cores. Long files first, as tests/conftest.py has them.
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

docs: $(READY)
	$(BIN)/sphinx-build -W --keep-going -n -E -q -b html docs site
	@echo "Read it: site/index.html"

test-slow: $(READY)
	$(BIN)/python launch/dev_cluster install --accounting
	bash scripts/browser.sh
	$(BIN)/pytest -m slow $(ARGS)

benchmark: $(READY)
	$(BIN)/python benchmarks/generation.py $(ARGS)

benchmark-slurm: $(READY)
	$(BIN)/python benchmarks/sweep.py $(ARGS)
	$(BIN)/python benchmarks/cluster.py

# Needs no environment: ARGS are options of `launch/dev_cluster up`.
cluster:
	$(PYTHON) launch/dev_cluster up $(ARGS)

cluster-down:
	$(PYTHON) launch/dev_cluster down

clean:
	rm -rf $(VENV) dist build site .mypy_cache .ruff_cache .pytest_cache
