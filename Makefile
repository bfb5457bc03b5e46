# Each verb makes the environment it needs on first use. VENV=FOLDER puts it elsewhere, for sharing.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.rga-reid-$(shell cksum setup.cfg | cut -d' ' -f1)-$(shell pwd | cksum | cut -d' ' -f1)

.PHONY: help install demo test test-slow coverage lint format docs package bench
help:
	@echo "make install | demo | test | test-slow | coverage | lint | format | docs | package | bench"
	@echo "VENV=FOLDER: the environment; PYTHON=python3.12: what makes it"

# Without the package python3-venv, Debian and Ubuntu leave an environment that has no pip: it is made again.
install: $(READY)
$(READY): setup.cfg pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: install
	$(BIN)/python cli.py demo --out demo --overwrite

# Two processes of one thread each: small tensors are slower on more.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: install
	$(BIN)/python -m pytest -m slow

coverage: install
	mkdir -p build
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term --cov-report=html:build/coverage-html

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/vulture

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install
	$(BIN)/python -m sphinx -W --keep-going -q -c docs -b html -d build/doctrees . build/docs
	@echo build/docs/index.html

# The sdist, and the wheel made of it, which is tried in an environment of its own, in an empty folder: PYTHON=python3.12
# says with which Python, LOWEST=1 takes the lowest version that setup.cfg allows of all that the wheel depends on. It
# downloads several GB, and runs a short demo.
package:
	rm -rf build/package dist
	mkdir -p build/package/empty
	$(PYTHON) -m venv build/package/builder
	build/package/builder/bin/python -m pip install --quiet --disable-pip-version-check build
	build/package/builder/bin/python -m build
	$(PYTHON) -m venv build/package/user
	: > build/package/constraints.txt
	test -z "$(LOWEST)" || sed -nE '/^install_requires/,/^$$/ s/^ +([a-z0-9-]+)(\[.*\])?>=([0-9.]+).*/\1==\3/p' setup.cfg > build/package/constraints.txt
	build/package/user/bin/python -m pip install --quiet --disable-pip-version-check -c build/package/constraints.txt dist/*.whl
	build/package/user/bin/python -m pip freeze --exclude-editable > build/package/installed.txt
	cd build/package/empty && ../user/bin/rga-reid --help && ../user/bin/rga-reid --version
	cd build/package/empty && ../user/bin/rga-reid train --config market1501/rga_sc --print_config > recipe.yaml
	cd build/package/empty && ../user/bin/rga-reid demo --out demo --epochs 2

bench: install
	test -f demo/model/last.ckpt || $(BIN)/python cli.py demo --out demo --overwrite
	for script in attention embedding explain input ranking reranking resize training; do $(BIN)/python benchmarks/$$script.py || exit 1; done
	$(BIN)/python benchmarks/gallery.py --count 100000  # the full million takes hours
