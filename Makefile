# `make demo` and `make test` do all set-up themselves, on a fresh machine too.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# torch comes first and by itself, because its builds (CUDA, CPU, ...) differ only in the index they are taken
# from: a CPU-only machine saves gigabytes with make TORCH="torch==2.13.0 --index-url URL_OF_THE_CPU_WHEELS" ...
TORCH ?= $(shell grep '^torch==' constraints.txt)

# The oldest Ray that setup.py admits gets an environment of its own; all else is as tested, but for protobuf:
# Ray Serve before 2.56 does not run with protobuf 7.
RAY_MIN = $(shell sed -n 's/.*"ray\[rllib\]>=\([0-9.]*\),.*/\1/p' setup.py)
RAY_MIN_VENV ?= .venv-ray-min

.PHONY: help setup demo test test-slow test-ray-min lint docs format

help:
	@echo "make demo          the PointMaze job, Cal-QL beside CQL; tables and curves in demo/report/"
	@echo "make test          lint, types, the documentation and the everyday tests"
	@echo "make test-slow     the tests that take long"
	@echo "make test-ray-min  the everyday tests with Ray $(RAY_MIN), in $(RAY_MIN_VENV)"
	@echo "make lint          ruff and mypy only"
	@echo "make docs          the documentation site, in site/; warnings are errors"
	@echo "make format        ruff's formatter and safe fixes"
	@echo "make setup         the virtual environment only, in $(VENV)"

$(VENV)/.installed: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(TORCH)
	$(BIN)/pip install -c constraints.txt -e '.[docs,export,robotics,serve,dev]'
	touch $@

setup: $(VENV)/.installed

demo: setup
	$(BIN)/python examples/demo.py --out demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

test: lint docs
	$(BIN)/pytest -m "not slow"

test-slow: setup
	$(BIN)/pytest -m slow

$(RAY_MIN_VENV)/.installed: setup.py constraints.txt
	$(PYTHON) -m venv $(RAY_MIN_VENV)
	sed -e 's/^ray==.*/ray==$(RAY_MIN)/' -e 's/^protobuf==.*/protobuf<7/' constraints.txt > $(RAY_MIN_VENV)/constraints.txt
	$(RAY_MIN_VENV)/bin/pip install $(TORCH)
	$(RAY_MIN_VENV)/bin/pip install -c $(RAY_MIN_VENV)/constraints.txt -e '.[export,robotics,serve,dev]'
	touch $@

test-ray-min: $(RAY_MIN_VENV)/.installed
	$(RAY_MIN_VENV)/bin/pytest -m "not slow"

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
