# make run: serve the app.  make test: all tests.  make test-unit: the quick half.  make check: format, lint,
# types, the layers of the code and the documentation.  All set up .venv first, once.  CONTRIBUTING.md lists all targets.
PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

.PHONY: run test test-unit check house style screenshots matrix exports batteries bench bench-accuracy bench-page bench-processes bench-memory bench-grid bench-default bench-methods bench-inference docs pins audit clean

run: .venv/installed
	$(BIN)/python app.py

test: .venv/installed-tests
	$(BIN)/python tests/support/browser.py
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -m alone tests/browser/test_app.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not alone" -n 2 --dist loadfile --no-loadscope-reorder

test-unit: .venv/installed-tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m unit -n 2 --dist loadfile

check: .venv/installed-tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/python -m pytest tests/integration/test_house.py tests/integration/test_docs.py -k "not example_runs"

# The bars of the code: names, types, sizes. Exits 1 while one is missed.
house: .venv/installed-tests
	$(BIN)/python tests/support/house.py

style: .venv/installed-tests
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Writes the parts of docs/ that come from the code: settings, methods, endpoints.
docs: .venv/installed
	PYTHONPATH=. $(BIN)/python docs/generate.py

screenshots: .venv/installed-tests
	$(BIN)/python tests/support/screenshots.py

matrix: .venv/installed-tests
	PYTHONPATH=.:tests/support OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m benchmarks.method_matrix

exports: .venv/installed-tests
	PYTHONPATH=.:tests/support OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m benchmarks.export_matrix

# ARGS: names of batteries (all by default), --scale 0.1 for a share of the cases, --minutes of the soak and the load
batteries: .venv/installed-tests
	PYTHONPATH=.:tests/support CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m batteries $(ARGS)

bench: .venv/installed-tests
	PYTHONPATH=.:tests/support $(BIN)/python -W ignore -m benchmarks.bench_speed $(ARGS)

bench-accuracy: .venv/installed-tests
	PYTHONPATH=.:tests/support $(BIN)/python -W ignore -m benchmarks.bench_accuracy $(ARGS)

bench-page: .venv/installed-tests
	PYTHONPATH=.:tests/support $(BIN)/python -W ignore -m benchmarks.bench_page

bench-processes: .venv/installed-tests
	PYTHONPATH=.:tests/support $(BIN)/python -W ignore -m benchmarks.bench_processes

bench-memory: .venv/installed-tests
	PYTHONPATH=.:tests/support $(BIN)/python -W ignore -m benchmarks.bench_memory benchmarks/results/memory_cpu.json

bench-grid: .venv/installed-tests
	PYTHONPATH=.:tests/support OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m benchmarks.bench_grid benchmarks/results/grid.jsonl

bench-default: .venv/installed-tests
	PYTHONPATH=. $(BIN)/python -m benchmarks.bench_default

bench-methods: .venv/installed-tests
	PYTHONPATH=.:tests/support $(BIN)/python -m benchmarks.bench_methods benchmarks/results/methods.jsonl

bench-inference: .venv/installed-tests
	PYTHONPATH=.:tests/support $(BIN)/python -W ignore -m benchmarks.bench_inference

# What is pinned comes first and by its SHA-256; then torch, and what another system or Python needs besides.
.venv/installed: requirements.txt pre-requirements.txt hashes.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python $(PIP_INSTALL) --no-deps --require-hashes -r hashes.txt
	$(BIN)/python $(PIP_INSTALL) -c pre-requirements.txt -r requirements.txt
	touch $@

.venv/installed-tests: tests/requirements.txt tests/pins.txt tests/hashes.txt .venv/installed
	$(BIN)/python $(PIP_INSTALL) --no-deps --require-hashes -r tests/hashes.txt
	$(BIN)/python $(PIP_INSTALL) -c pre-requirements.txt -c tests/pins.txt -r tests/requirements.txt
	touch $@

# Resolves requirements.txt and tests/requirements.txt anew, pins what comes out, and looks up the hashes of the pins.
pins:
	$(PYTHON) -m venv --clear .venv-pins
	.venv-pins/bin/python $(PIP_INSTALL) -r requirements.txt -r tests/requirements.txt uv==0.13.9
	.venv-pins/bin/python tests/support/pins.py
	rm -rf .venv-pins

# Looks up the pinned versions among the known vulnerabilities.
audit: .venv/installed
	test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit && .venv-audit/bin/python $(PIP_INSTALL) pip-audit==2.10.1; }
	$(BIN)/python tests/support/audit.py .venv-audit/bin/pip-audit

clean:
	rm -rf .venv .venv-pins .venv-audit .pytest_cache .ruff_cache
