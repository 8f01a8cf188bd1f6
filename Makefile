# For daily work. `make` alone lists what there is.
.DEFAULT_GOAL := help
VENV := .venv/bin

help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

test: ## Everything: lint, types, contracts, unit and system tests (needs root)
	sudo scripts/test

unit: ## Unit tests only
	$(VENV)/pytest -q -m 'not system' tests/unit

lint: ## ruff, pyright, import contracts
	$(VENV)/ruff check . && $(VENV)/ruff format --check . && $(VENV)/pyright && $(VENV)/lint-imports --no-logo

format: ## Format all code
	$(VENV)/ruff format . && $(VENV)/ruff check --fix .

docs: ## Write the command line's reference anew
	$(VENV)/python -m vmm.cli.reference > docs/reference/cli.md

demo: ## Drive a real guest on this host (needs root)
	sudo scripts/demo

bench: ## Measure, and keep the table in docs/performance.md (needs root)
	sudo $(VENV)/python bench/run.py --write docs/performance.md

install: ## Put vmm on this host for good (needs root)
	sudo scripts/install

.PHONY: help test unit lint format docs demo bench install
