# Everything sets itself up on a bare Debian 12 machine (python3.11, gcc, make and git; root or sudo), and does nothing
# twice. `make demo` shows the fleet at work; `make up` leaves one running.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo up down test bench lint

BIN := .venv/bin

help: ## say what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1\t/' | expand -t 16

setup: ## install what is missing: Debian packages, .venv, the guest image
	@deploy/setup

demo: setup ## watch real guests being created, rebooted and moved, and evacuated from a host that dies
	@$(BIN)/python -m virtfleet_local.demo

up: setup ## start a fleet of three QEMU hosts and give the prompt back
	@$(BIN)/virtfleet up --detach

down: setup ## stop it
	@$(BIN)/virtfleet down

test: setup ## run every test, on real RabbitMQ, MongoDB and QEMU
	@$(BIN)/python -m pytest -n 3 --dist loadgroup --no-loadscope-reorder

bench: setup ## measure actions per second, latency and cost against the floor
	@$(BIN)/python -m benchmarks

lint: setup ## ruff, mypy, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy libs services docs examples
	@$(BIN)/lint-imports
