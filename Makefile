# `make demo` and `make test` do all set-up themselves, on a fresh machine too.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# torch comes first and by itself, because its builds (CUDA, CPU, ...) differ only in the index they are taken
# from: a CPU-only machine saves gigabytes with make TORCH="torch==2.13.0 --index-url URL_OF_THE_CPU_WHEELS" ...
TORCH ?= $(shell grep '^torch==' constraints.txt)

.PHONY: help setup demo test test-slow lint format

help:
	@echo "make demo       the PointMaze job, Cal-QL beside CQL; learning curves in demo/"
	@echo "make test       lint, types and the everyday tests"
	@echo "make test-slow  the tests that take long"
	@echo "make lint       ruff and mypy only"
	@echo "make format     ruff's formatter and safe fixes"
	@echo "make setup      the virtual environment only, in $(VENV)"

$(VENV)/.installed: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(TORCH)
	$(BIN)/pip install -c constraints.txt -e '.[export,robotics,serve,dev]'
	touch $@

setup: $(VENV)/.installed

demo: setup
	$(BIN)/python examples/demo.py --out demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -m "not slow"

test-slow: setup
	$(BIN)/pytest -m slow

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
