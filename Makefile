# Two commands set everything up: `make demo` and `make test`. Both create the same environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test check format docs wheel bench bench-exact gpu-sprint leaderboard clean

help:
	@echo "make demo         install, train CAM on the generated data set, evaluate it; pictures in demo/pictures"
	@echo "make test         install, run all tests"
	@echo "make check        lint, format, types, import directions"
	@echo "make docs         build the documentation into docs/_build/html"
	@echo "make wheel        build the wheel into dist/, use it without extras in a new environment"
	@echo "make bench        measure speed against the official algorithm"
	@echo "make bench-exact  compare the sweep with OpenCV on 20,000 maps"
	@echo "make gpu-sprint   all checks that need a GPU, in ten minutes (SPRINT='--device cpu --tiny': without one)"
	@echo "make leaderboard  regenerate results/leaderboard from the records"

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --progress-bar off --quiet -e '.[models,coco,dev,docs]'
	touch $(READY)

demo: $(READY)
	$(BIN)/wsolbench eval --method center-box --dataset toybirds-v2 --out demo/records
	$(BIN)/wsolbench eval --method cam --dataset toybirds-v2 --train --out demo/records --save-maps demo/maps --pictures demo/pictures
	@echo "Look at demo/pictures; the records are in demo/records, the maps in demo/maps."

# One thread for each worker: workers with all cores each wait for one another. Workers get whole parts of the
# list, so that most modules and what they train are made once.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

wheel:
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist .
	$(PYTHON) tests/packaging/without_extras.py dist/wsolbench-*.whl

bench: $(READY)
	$(BIN)/python benchmarks/bench_scoring.py
	$(BIN)/python benchmarks/bench_masks.py
	$(BIN)/python benchmarks/bench_bootstrap.py
	$(BIN)/python benchmarks/bench_evaluate.py
	$(BIN)/python benchmarks/bench_feed.py
	$(BIN)/python benchmarks/bench_methods.py
	$(BIN)/python benchmarks/bench_post.py
	$(BIN)/python benchmarks/bench_dsm.py

bench-exact: $(READY)
	$(BIN)/python -m benchmarks.bench_exact

# Without $(READY): a borrowed machine may have torch but no network.
gpu-sprint:
	$(firstword $(wildcard $(BIN)/python) $(PYTHON)) benchmarks/gpu_sprint.py $(SPRINT)

leaderboard: $(READY)
	$(BIN)/wsolbench leaderboard

clean:
	rm -rf $(VENV) demo sprint build dist *.egg-info docs/_build .mypy_cache .ruff_cache .pytest_cache
