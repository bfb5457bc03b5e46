# Each target creates the environment on first use. VENV=FOLDER puts it elsewhere, for example to share it.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.rga-reid-$(shell cksum setup.cfg | cut -d' ' -f1)-$(shell pwd | cksum | cut -d' ' -f1)

.PHONY: help install demo test test-slow test-fuzz coverage lint format docs package bench
help:
	@echo "make install | demo | test | test-slow | test-fuzz | coverage | lint | format | docs | package | bench"
	@echo "VENV=FOLDER: location of the environment; PYTHON=python3.12: interpreter that creates it"

# Without the package python3-venv, Debian and Ubuntu create an environment without pip, so create it again.
install: $(READY)
$(READY): setup.cfg pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: install
	$(BIN)/python cli.py demo --out demo --overwrite

# Two processes of one thread each: more threads slow down small tensors.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# axe-core checks the accessibility of pages; its tests are skipped without npm.
test-slow: install
	test -d build/node_modules/axe-core || npm install --silent --no-audit --no-fund --prefix build axe-core || true
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

# FUZZ_CASES=9000 runs more cases, FUZZ_SEED=7 others.
test-fuzz: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m fuzz tests/fuzz

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

# Build the sdist and the wheel, install the wheel in a new environment and run it in an empty folder.
# PYTHON=python3.12 chooses the interpreter, LOWEST=1 installs the lowest version of each dependency that setup.cfg
# allows. Downloads several GB and runs a short demo.
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
