# Everything a person or CI does with a checkout. Each target makes what it needs first.
#
#   make demo    run a real job on this machine (needs Python >= 3.11, nothing else, no root)
#   make test    all tests; as root on Debian or Ubuntu it also installs the Debian packages they use
#   make lint    ruff, mypy --strict, import contracts

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The first interpreter that really is 3.11 or newer; `make PYTHON=/path/to/python` chooses another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)

VENV := .venv
BIN  := $(VENV)/bin

# What the system tests use: a booted systemd machine, a container engine, and a web server.
TEST_PACKAGES := debootstrap systemd-container docker.io util-linux nginx-light xfsprogs iproute2
# The whole suite is meant to take less than 20 minutes on 2 cores; a hang is ended, with a failure, after this long.
TEST_TIMEOUT ?= 40m

.PHONY: help
help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "nodeagent needs Python 3.11 or newer (make PYTHON=/path/to/python3.11)" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' >/dev/null 2>&1 || scripts/debian-packages python3-venv
	"$(PYTHON)" -m venv $(VENV)

# Two stamps: the demo does not wait for linters and test libraries.
$(VENV)/.run: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.run

.PHONY: venv
venv: $(VENV)/.dev ## the virtual environment with everything for development

.PHONY: demo
demo: $(VENV)/.run ## a real job on this machine, in under a minute
	$(BIN)/nodeagent run examples/stdlib-report/job.json

.PHONY: lint
lint: $(VENV)/.dev ## ruff, mypy --strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: $(VENV)/.dev ## let ruff fix and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: test-tools
test-tools: $(VENV)/.dev ## Debian packages, a base system, wheels, and other programs that the tests drive
	scripts/debian-packages $(TEST_PACKAGES)
	scripts/debian-rootfs
	scripts/wheelhouse build/wheels
	scripts/azurite
	scripts/clients

.PHONY: test
test: test-tools ## all tests: unit, integration, faults
	timeout --foreground --kill-after=30 $(TEST_TIMEOUT) \
		$(BIN)/python -m pytest --durations=15 tests/unit tests/integration tests/faults

.PHONY: unit
unit: $(VENV)/.dev ## only the fast tests
	$(BIN)/python -m pytest -q tests/unit

.PHONY: wheels
wheels: $(VENV)/.dev ## build/wheels: the package and all it needs, for an install without a network
	scripts/wheelhouse build/wheels

.PHONY: image
image: ## the container image nodeagent:latest (BASE=image to build on another one)
	docker build --tag nodeagent:latest $(if $(BASE),--build-arg BASE=$(BASE)) .

.PHONY: clean
clean: ## what make made here (not the test machine's base system)
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
