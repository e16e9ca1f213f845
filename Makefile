# The two commands are `make run` and `make test`; the rest helps while working. `make help` lists all.
SHELL := /bin/bash
PY := .venv/bin/python
LAB := $(PY) -m images.labhost
SHAPE ?= everyday
N ?= 1

.PHONY: help run demo stop test test-fast test-lab soak lab lab-stop check bench clean doctor lock packages
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

run: .venv/ready lab-packages ## boot the lab host, run two tenants' isolated VMs on it, show them
	@$(PY) -m images.labhost.showcase

demo: .venv/ready ## a controller and eight simulated hosts to play with; no root, ends with Ctrl-C
	@$(PY) -m orchestrator.processes.demo

stop: .venv/ready ## take everything down that make run and make lab brought up
	@$(LAB) down

lab: .venv/ready lab-packages ## boot the lab host (SHAPE=everyday|smt, N=1|2)
	@$(LAB) up --shape $(SHAPE) --n $(N)

lab-stop: stop ## same as stop

test: check test-fast test-lab ## every test

test-fast: .venv/ready ## the fast tests, one process per CPU, under 5 minutes
	@$(PY) -m pytest -q -n auto --maxprocesses 8 --dist worksteal -m 'not lab and not scenario and not soak and not bench' tests

test-lab: .venv/ready lab-packages ## the tests that boot guests and the lab host
	@$(PY) -m pytest -v --durations=15 -m 'scenario or lab' --timeout 1800 tests

soak: .venv/ready lab-packages ## the long ones
	@$(PY) -m pytest -q -m soak --timeout 14400 tests

bench: .venv/ready lab-packages ## measurements, as ratios to a baseline run beside them
	@$(PY) -m pytest -q -s -m bench --timeout 3600 tests/bench

check: .venv/ready ## format, lint, types, import rules
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy && .venv/bin/lint-imports --no-cache | tail -n 4

doctor: .venv/ready ## what this machine has for building and testing
	@$(LAB) doctor

lock: .venv/ready ## write the lock files anew from pyproject.toml
	@.venv/bin/pip install -q uv
	@for extra in "" "--extra host" "--extra controller" "--extra prepare" "--extra host --extra controller --extra prepare --extra test"; do \
	  case "$$extra" in "") name=requirements.lock;; *test*) name=requirements-test.lock;; \
	    *host*) name=requirements-host.lock;; *prepare*) name=requirements-prepare.lock;; *) name=requirements-controller.lock;; esac; \
	  .venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header $$extra pyproject.toml -o $$name; done

clean: ## remove what was built in the checkout (not the image cache)
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .lab
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

packages:
	@hostprep/packages.sh base test

lab-packages: packages
	@hostprep/packages.sh lab

.venv/ready: requirements-test.lock | packages
	@echo "preparing .venv" >&2
	@python3 -m venv .venv
	@.venv/bin/pip install -q --require-hashes -r requirements-test.lock 2>.venv/pip.log || { tail -n 20 .venv/pip.log >&2; exit 1; }
	@touch $@
