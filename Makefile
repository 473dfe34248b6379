# make example   the product: a cache image for one deployment, built without a GPU, installed, verified
# make test      every test that needs no GPU
# make lint      format, lint, types
# make env       the environment that all of them use; made once, shared between checkouts
# make gpu       the tests that need an NVIDIA GPU
# make soak      the tests that run for minutes
# make audit-0.18.1   what the warm-up of that vLLM misses; makes an environment of its own first
# make manifests the manifests of manifests/popular, planned again
# make matrix    plans and checks with each vLLM; makes one environment at a time and removes it
# make bench     times of the verbs on this machine
# make clean     what building and testing left in this checkout

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
JOBS ?= 2

ENV := $(shell XDG_CACHE_HOME='$(XDG_CACHE_HOME)' PYTHON='$(PYTHON)' scripts/env.sh path)
ifeq ($(ENV),)
$(error there is no environment to name)
endif
RUN := PYTHONPATH='$(CURDIR)' '$(ENV)/bin/python'

EXAMPLE_ARGS := model-configs/Qwen3.5-397B-A17B-FP8 -dp 8 --enable-expert-parallel --gdn-prefill-backend triton
EXAMPLE_OUT := out/qwen3.5-397b-b200

AUDIT_ARGS := model-configs/Qwen3.5-397B-A17B-FP8 -dp 8 --enable-expert-parallel

MATRIX_RELEASES ?= 0.18.1 0.19.1 0.20.2 0.22.1 0.25.1 0.28.0 0.31.0 0.32.0

.PHONY: help env packages example test lint gpu soak audit-0.18.1 manifests matrix bench clean

help:
	@sed -n 's/^# make/make/p' Makefile

env: $(ENV)/prewarm-env-is-complete

$(ENV)/prewarm-env-is-complete: constraints.txt
	@PYTHON='$(PYTHON)' scripts/env.sh make

packages:
	@scripts/system-packages.sh '$(PYTHON)'

example: packages env
	@PYTHONPATH='$(CURDIR)' PYTHON='$(ENV)/bin/python' scripts/example.sh $(EXAMPLE_OUT) $(EXAMPLE_ARGS)

test: packages env
	@$(RUN) -m pytest -n $(JOBS) $(PYTEST_ARGS)

lint: env
	@$(RUN) -m ruff format --check .
	@$(RUN) -m ruff check .
	@$(RUN) -m mypy

gpu: env
	@$(RUN) -m pytest -m gpu $(PYTEST_ARGS) || [ $$? -eq 5 ]  # 5: there is no such test

soak: packages env
	@$(RUN) -m pytest -m soak $(PYTEST_ARGS) || [ $$? -eq 5 ]

audit-0.18.1: audit-%: constraints/vllm-%.txt packages
	@PYTHON='$(PYTHON)' scripts/env.sh make $<
	@python=$$(PYTHON='$(PYTHON)' scripts/env.sh path $<)/bin/python; \
	PYTHONPATH='$(CURDIR)' "$$python" -m prewarm audit --target b200 -- $(AUDIT_ARGS) \
	    || [ $$? -eq 1 ]  # 1: something leaks

manifests: packages env
	@$(RUN) -m prewarm plan --matrix manifests/popular.yaml --closure 20 -o manifests/popular

matrix: packages env
	@PYTHON='$(PYTHON)' scripts/matrix.sh $(MATRIX_RELEASES)

bench: env
	@$(RUN) benchmarks/each_verb.py $(EXAMPLE_ARGS)

clean:
	rm -rf out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
