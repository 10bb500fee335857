# The README's two commands are `make run` and `make test`; each sets up what it needs.
# Needs Python >= 3.11 and make, nothing else. PYTHON=/path/to/python chooses another.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq
PROJECT := $(wildcard authws tests examples bench)

.PHONY: run test test-needs security autobahn check format install install-dev lock clean
.DEFAULT_GOAL := run

run: install
	$(BIN)/authws serve --demo

# In several processes, for most of a test is waiting; JOBS=0 is one after another.
JOBS ?= 3
test: install-dev test-needs
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

# What the tests need beside Python's packages; see the scripts for who may what.
test-needs: $(VENV)/bin/python
	@sh scripts/system_packages.sh
	@sh scripts/node_packages.sh
	@sh scripts/deploy_tools.sh $(BIN)/python

security: install-dev
	@$(BIN)/python -m pytest -q tests/security

# The original test suite of the field, on Python 2.7; PYTHON2=/path/to/python2.7 names it.
autobahn: install-dev
	@$(BIN)/python -m tests.conformance.autobahn

check: install-dev
	$(BIN)/ruff check $(PROJECT)
	$(BIN)/ruff format --check $(PROJECT)
	$(BIN)/mypy $(PROJECT)
	$(BIN)/python -m pytest -q tests/test_layers.py $(wildcard tests/test_docs.py)

format: install-dev
	$(BIN)/ruff check --fix $(PROJECT)
	$(BIN)/ruff format $(PROJECT)

# The stamps make a second install a matter of milliseconds.
install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	@python=$$(sh scripts/find_python.sh) && \
	  echo "making $(VENV) with $$($$python --version)" && \
	  sh scripts/make_venv.sh "$$python" $(VENV)

$(VENV)/.installed: pyproject.toml requirements.lock | $(VENV)/bin/python
	@echo "installing authws and what it needs (pinned, hashes checked)"
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-build-isolation --no-deps -e .
	@touch $@

$(VENV)/.installed-dev: requirements-dev.lock $(VENV)/.installed
	@echo "installing what the tests need (pinned, hashes checked)"
	@$(PIP) install --require-hashes -r requirements-dev.lock
	@touch $@

# What the service holds, measured: docs/performance.md and its pictures, newly made.
# `make bench` is all of it but the soak, which takes ten minutes and more by itself;
# ARGS are for the program, such as ARGS="--quick" to try it out.
BENCHES := bench-compare bench-growth bench-held bench-footprint bench-revocation \
  bench-workers bench-presence bench-scaling \
  bench-quarantine bench-stalled-peer bench-login-burst bench-flame bench-soak
.PHONY: bench bench-needs $(BENCHES)
bench: $(VENV)/.installed-bench bench-needs
	$(BIN)/python -m bench.everything $(ARGS)

$(BENCHES): bench-%: $(VENV)/.installed-bench bench-needs
	$(BIN)/python -m bench.$(subst -,_,$*) $(ARGS)

# The servers beside which it is measured; the script says what it cannot have.
bench-needs:
	@sh scripts/bench_packages.sh

$(VENV)/.installed-bench: requirements-bench.lock $(VENV)/.installed
	@echo "installing what the benchmarks need (pinned, hashes checked)"
	@$(PIP) install --require-hashes -r requirements-bench.lock
	@touch $@

# Needs uv on the PATH. No lock names an index: each machine has its own.
UV ?= uv
COMPILE = $(UV) pip compile -q --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-annotate --custom-compile-command "make lock"
OURS = pyproject.toml --extra postgres --extra redis --extra nats --extra rabbitmq

lock:
	$(COMPILE) $(OURS) --group build -o requirements.lock
	$(COMPILE) $(OURS) --group dev -c requirements.lock -o requirements-dev.lock
	$(COMPILE) $(OURS) --group bench -c requirements.lock -o requirements-bench.lock
	$(COMPILE) --group deploy -o tests/deploy/requirements.lock

clean:
	rm -rf $(VENV) .autobahn tests/node/node_modules bench/contenders/node/node_modules \
	  tests/deploy/.tools .mypy_cache .ruff_cache .pytest_cache
