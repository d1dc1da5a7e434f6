# make demo and make test do all the set-up themselves; outside this folder only pip's cache and condensate's own are touched.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow check format bench digits clean

demo: $(READY)  ## condense the bundled digits, compare, and show the table (two to ten minutes)
	$(BIN)/condensate run digits-lodm

test: $(READY)  ## the fast tests, two at a time
	$(BIN)/python -m pytest -n 2

test-slow: $(READY)  ## the long tests: learning on real data, compiled programs
	$(BIN)/python -m pytest -m slow

check: $(READY)  ## format, lint, types, fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## published way against ours, on this machine; ARGS="--data FOLDER --device cuda"
	$(BIN)/python -m benchmarks $(ARGS)

digits: $(READY)  ## run what is missing of the digits' tables (two of these at once are quicker), and renew the pages
	$(BIN)/condensate table run digits digits-ranks digits-starts --threads 1 --minutes 120
	$(BIN)/condensate table show --into README.md docs/tables.md

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]' -c constraints.txt
	touch $(READY)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
