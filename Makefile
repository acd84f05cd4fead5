# `make` alone says what there is. Everything runs from .venv, which `setup` makes from requirements.lock.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test soak chromium node fast check format dev docs lock clean movielens bench bench-silos bench-stitching bench-graph bench-orchestration bench-scale bench-audiences bench-insights bench-recommend bench-serving bench-streaming

PYTHON ?= python3
BIN := .venv/bin
DATA ?= sample
ARGS ?=
KEEP ?=
LOCKED := --generate-hashes --no-emit-index-url --no-header --no-annotate --universal --python-version 3.11

help:  ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: .venv/.synced  ## virtual environment from the lock, Neo4j and GDS jars, S3 gateway
	@$(BIN)/c360 install

# What the product needs to run, with the embedded services; no Spark, no test tools.
.venv/.synced: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Python 3.11 or newer is missing: apt-get install -y python3 python3-venv (or set PYTHON)" >&2; exit 2; }
	@$(PYTHON) -m venv .venv || { echo "the venv module is missing: apt-get install -y python3-venv" >&2; exit 2; }
	@sed -n '/^uv==/,/^[^ ]/{/^uv==/p;/^ /p}' requirements.lock > .venv/uv.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.lock
	$(BIN)/uv pip sync --quiet --require-hashes --compile-bytecode --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

# The same and what tests, checks and Spark need.
.venv/.dev: requirements-dev.lock .venv/.synced
	$(BIN)/uv pip sync --quiet --require-hashes --compile-bytecode --python $(BIN)/python requirements-dev.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

.venv/.movielens: requirements-movielens.lock .venv/.synced
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r requirements-movielens.lock
	@touch $@

.venv/.bench: requirements-bench.lock .venv/.synced
	$(PYTHON) -m venv .venv/bench
	$(BIN)/uv pip sync --quiet --python .venv/bench/bin/python requirements-bench.lock
	@touch $@

bench: setup .venv/.bench  ## landing against its floor and its peers; ARGS="--events 100000 --archive 0" for a short one
	$(BIN)/python benchmarks/bench_landing.py $(ARGS)

bench-silos: .venv/.dev  ## silos against their floor and their peers; ARGS="--accounts 20000 --plays 100000" for a short one
	$(BIN)/python benchmarks/bench_silos.py $(ARGS)

bench-stitching: setup .venv/.bench  ## stitching against its limit and its peers; ARGS="--events 400000 --graph-events 0" for a short one
	$(BIN)/python benchmarks/bench_stitching.py $(ARGS)

bench-graph: setup  ## the graph against its floor; ARGS="--events 50000 --written 10000" for a short one
	$(BIN)/python benchmarks/bench_graph.py $(ARGS)

bench-scale: setup  ## what a run costs as the archive grows; ARGS="--events 100000 1000000" for two sizes
	$(BIN)/python benchmarks/bench_scale.py $(ARGS)

bench-audiences: setup  ## audiences worked out anew and by what changed; ARGS="--events 100000" for a short one
	$(BIN)/python benchmarks/bench_audiences.py $(ARGS)

bench-insights: .venv/.dev  ## insight against planted truth and a real shop; ARGS="--customers 1000 --tenants 2" for a short one
	$(BIN)/python benchmarks/bench_insights.py $(ARGS)

bench-orchestration: setup  ## what Dagster adds, from a dropped file to a node, backfills; ARGS="--files 2 --objects 1000"
	$(BIN)/python benchmarks/bench_orchestration.py $(ARGS)

bench-recommend: setup .venv/.bench .venv/.movielens  ## recommendations against popularity and tuned peers; ARGS="--only movielens" for one set
	$(BIN)/python benchmarks/bench_recommend.py $(ARGS)

bench-serving: setup  ## the API under load, and what features cost; ARGS="--events 100000 --seconds 5" for a short one
	$(BIN)/python benchmarks/bench_serving.py $(ARGS)

bench-streaming: setup  ## the real-time path: rates, latency, recovery; ARGS="--events 20000 --seconds 10" for a short one
	$(BIN)/python benchmarks/bench_streaming.py $(ARGS)

movielens: .venv/.movielens  ## the MovieLens data set, for DATA=movielens

demo: setup $(if $(filter movielens,$(DATA)),.venv/.movielens)  ## the whole way on sample data; KEEP=1 leaves it running, DATA=movielens
	$(BIN)/c360 demo --data $(DATA) $(if $(KEEP),--keep)

test: setup .venv/.dev chromium node  ## every test but those of the soak, in two processes
	$(BIN)/pytest -m "not soak" --numprocesses 2 --dist loadscope --no-loadscope-reorder $(ARGS)

soak: setup .venv/.dev chromium node  ## what proves by repetition: kills, damages, chaos of the stream; prints its figures
	HYPOTHESIS_PROFILE=soak $(BIN)/pytest -m "soak or property" --timeout 3600 --numprocesses 2 --dist loadscope --no-loadscope-reorder $(ARGS)

chromium:  # Debian's browser, for the tests of pages
	@[ -n "$${CHROMIUM:-}" ] || command -v chromium >/dev/null || { \
	  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && echo "installing Chromium for the tests of pages" && \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-liberation >/dev/null; } || \
	  { echo "Chromium is missing: apt-get install -y chromium fonts-liberation (or set CHROMIUM to its path)" >&2; exit 2; }

node:  # for the OpenID provider of the test of sign-ins
	@command -v npm >/dev/null || { \
	  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && echo "installing Node for the test of sign-ins" && \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nodejs npm >/dev/null; } || \
	  { echo "Node is missing: apt-get install -y nodejs npm" >&2; exit 2; }

fast: .venv/.dev  ## tests without services, a minute
	$(BIN)/pytest -m "(unit or property) and not soak" --numprocesses 2 --dist worksteal $(ARGS)

check: .venv/.dev  ## lint, format, types, import directions, spelling
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

format: .venv/.dev  ## put code in the house form
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

dev: setup  ## services and the Dagster UI, until Ctrl-C
	$(BIN)/c360 up
	$(BIN)/c360 dev

lock: .venv/.dev  ## resolve the dependencies of pyproject.toml again
	$(BIN)/uv pip compile pyproject.toml --quiet --extra devstack --extra spark --extra streaming --group dev $(LOCKED) -o requirements-dev.lock
	$(BIN)/uv pip compile pyproject.toml --quiet --extra devstack --extra streaming --group install $(LOCKED) -c requirements-dev.lock -o requirements.lock
	$(BIN)/uv pip compile pyproject.toml --quiet --extra movielens --no-deps $(LOCKED) -o .venv/movielens.lock
	sed -n '/^recbole==/,/^[^ ]/{/^recbole==/p;/^ /p}' .venv/movielens.lock > requirements-movielens.lock
	$(BIN)/uv pip compile --quiet --group bench $(LOCKED) -o requirements-bench.lock
	$(BIN)/uv pip compile --quiet requirements-flink.in $(LOCKED) -o requirements-flink.lock

docs: .venv/.dev  ## docs/reference.md, event.schema.json, queries.md and licences.md from code, golden answers and lock file
	$(BIN)/python docs/build_reference.py
	$(BIN)/python docs/build_licences.py
	$(BIN)/python docs/build_queries.py

clean:  ## stop what runs and remove state and caches; downloads stay
	-$(BIN)/c360 down
	rm -rf .c360 .mypy_cache .pytest_cache .ruff_cache .hypothesis .tmp_dagster_home_*
