# make run: serve the app.  make test: the whole suite.  make test-unit: its quick half.  make check: format, lint
# and the plan of the house.  All set up .venv first, once.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test test-unit check style screenshots matrix exports batteries bench bench-accuracy bench-page bench-processes bench-grid bench-default bench-methods bench-inference clean

run: .venv/installed
	$(BIN)/python app.py

test: .venv/installed-tests
	$(BIN)/python tests/browser.py
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -m alone tests/test_app.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not alone" -n 2 --dist loadfile --no-loadscope-reorder

test-unit: .venv/installed-tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m unit -n 2 --dist loadfile

check: .venv/installed-tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m pytest tests/test_house.py

style: .venv/installed-tests
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

screenshots: .venv/installed-tests
	$(BIN)/python tests/screenshots.py

matrix: .venv/installed-tests
	PYTHONPATH=.:tests OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m matrix

exports: .venv/installed-tests
	PYTHONPATH=.:tests OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m exports

# ARGS: names of batteries (all by default), --scale 0.1 for a share of the cases, --minutes of the soak
batteries: .venv/installed-tests
	PYTHONPATH=.:tests CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m batteries $(ARGS)

bench: .venv/installed-tests
	PYTHONPATH=.:tests $(BIN)/python -W ignore tests/bench_speed.py $(ARGS)

bench-accuracy: .venv/installed-tests
	PYTHONPATH=.:tests $(BIN)/python -W ignore tests/bench_accuracy.py

bench-page: .venv/installed-tests
	PYTHONPATH=.:tests $(BIN)/python -W ignore tests/bench_page.py

bench-processes: .venv/installed-tests
	PYTHONPATH=.:tests $(BIN)/python -W ignore tests/bench_processes.py

bench-grid: .venv/installed-tests
	PYTHONPATH=.:tests OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/bench_grid.py tests/grid.jsonl

bench-default: .venv/installed-tests
	PYTHONPATH=. $(BIN)/python tests/bench_default.py

bench-methods: .venv/installed-tests
	PYTHONPATH=.:tests $(BIN)/python tests/bench_methods.py tests/methods.jsonl

bench-inference: .venv/installed-tests
	PYTHONPATH=.:tests $(BIN)/python -W ignore tests/bench_inference.py

.venv/installed: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-tests: tests/requirements.txt .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache
