# Two commands set everything up: `make demo` shows headrace at work, `make test` runs the whole suite.
# Each makes .venv by itself and is quick when nothing changed.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test matrix lint types format bench bench-rivals figures soak crash campaign docs build clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

demo: ## a real Postgres, a small shop and live features; ARGS="..." goes to `headrace demo`
	@.ci/venv.sh demo
	@.venv/bin/headrace demo $(ARGS)

test: ## the suite, compiled and uncompiled; ARGS="tests/cdc -k name" narrows it
	@.ci/servers.sh
	@.ci/venv.sh test
	@.ci/test.sh $(ARGS)

matrix: ## what needs more than the default servers, such as the image's build; skips say what is missing
	@.ci/servers.sh
	@.ci/venv.sh test
	@HEADRACE_MATRIX=1 .venv/bin/python -m pytest -m matrix $(ARGS)

lint: ## ruff: rules and format
	@.ci/venv.sh lint
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .

types: ## mypy and pyright, both strict
	@.ci/venv.sh lint,test
	@.venv/bin/mypy
	@.venv/bin/pyright

format: ## rewrite the code as lint wants it
	@.ci/venv.sh lint
	@.venv/bin/ruff check --fix-only -q .
	@.venv/bin/ruff format .

bench: ## every benchmark with JSON results in benchmarks/results; ARGS="log_append" runs one
	@.ci/servers.sh
	@.ci/venv.sh test
	@.ci/bench.sh $(ARGS)

bench-rivals: ## the drain of Postgres beside Debezium and others, installed into .rivals; ARGS="--rows 100000"
	@.ci/servers.sh
	@.ci/venv.sh test
	@.ci/rivals.sh
	@.venv/bin/python benchmarks/postgres_drain.py --rivals $(ARGS)

figures: ## measure what the README shows, beside Debezium, Feast and others, and write its plot and table; minutes
	@.ci/servers.sh
	@.ci/venv.sh test
	@.ci/rivals.sh
	@.venv/bin/python .ci/figures.py --measure

soak: ## an hour of steady load from Postgres to Redis, drawn in docs/soak.svg; ARGS="--seconds 900" is shorter
	@.ci/servers.sh
	@.ci/venv.sh test
	@.venv/bin/python .ci/soak.py --measure $(ARGS)

crash: ## the long campaigns, as the crash tests' (marker campaign)
	@.ci/servers.sh
	@.ci/venv.sh test
	@.venv/bin/python -m pytest -m campaign $(ARGS)

campaign: ## ordered delivery over thousands of seeds, and 10,000 requests against botocore; minutes
	@.ci/venv.sh test
	@.venv/bin/python -m pytest -m campaign tests/sinks $(ARGS)

docs: ## write the generated pages of docs/ anew
	@.ci/venv.sh test
	@.venv/bin/headrace schema --markdown > build/configuration.md && mv build/configuration.md docs/configuration.md
	@.venv/bin/headrace schema --types > build/types.md && mv build/types.md docs/types.md
	@.venv/bin/python .ci/windowplot.py docs/window.svg
	@.venv/bin/python .ci/figures.py

build: ## wheel and source package in dist/
	@.ci/venv.sh test
	@.venv/bin/python -m pip install -q build && .venv/bin/python -m build --outdir dist .

clean: ## remove everything that make made
	@rm -rf .venv build dist .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find cdc features sinks -name '*.so' -delete
	@find cdc features sinks tests benchmarks .ci -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
