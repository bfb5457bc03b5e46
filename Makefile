# Each verb makes the environment it needs on first use. VENV=FOLDER puts it elsewhere, for sharing.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.rga-reid-$(shell cksum setup.cfg | cut -d' ' -f1)-$(shell pwd | cksum | cut -d' ' -f1)

.PHONY: help install demo test test-slow lint format bench
help:
	@echo "make install | demo | test | test-slow | lint | format | bench    (VENV=FOLDER: environment)"

install: $(READY)
$(READY): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: install
	$(BIN)/python cli.py demo --out demo --overwrite

test: install
	$(BIN)/python -m pytest

test-slow: install
	$(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	test -f demo/model/last.ckpt || $(BIN)/python cli.py demo --out demo --overwrite
	for script in $(filter-out benchmarks/gallery.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done
	$(BIN)/python benchmarks/gallery.py --count 100000  # the full million takes hours
