# make demo and make test do all the set-up themselves; outside this folder only pip's cache and condensate's own are touched.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow check format bench digits digits-ipc1 digits-ipc10 clean

demo: $(READY)  ## condense the bundled digits, compare, and show the table (about a minute)
	$(BIN)/condensate run digits-lodm

test: $(READY)  ## the fast tests
	$(BIN)/python -m pytest

test-slow: $(READY)  ## the long tests: learning on real data, compiled programs
	$(BIN)/python -m pytest -m slow

check: $(READY)  ## format, lint, types, fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## published way against ours, on this machine; ARGS="--data FOLDER --device cuda"
	$(BIN)/python -m benchmarks $(ARGS)

# Every method over both storages and every baseline, three seeds, at the storage of 1 and of 10 images a class: make
# -j2 digits took 36 minutes on two cores beside other work. It can be stopped, and goes on by: condensate run --resume runs/digits-table/ipc1
METHODS = digits-lodm$(1),digits-dm$(1),digits-lodc$(1),digits-dc$(1),digits-lodsa$(1),digits-dsa$(1),digits-lomtt$(1),digits-mtt$(1)
BASELINES = random,random-uint8,herding,k-centre,full
digits: digits-ipc1 digits-ipc10  ## the table of docs/results.md
digits-ipc1: $(READY)
	$(BIN)/condensate run digits-lodm --seeds 3 --threads 1 --out runs/digits-table/ipc1 \
	  --compare "$(subst digits-lodm$(comma),,$(call METHODS,)),$(BASELINES)"
digits-ipc10: $(READY)
	$(BIN)/condensate run digits-lodm-ipc10 --seeds 3 --threads 1 --out runs/digits-table/ipc10 \
	  --compare "$(subst digits-lodm-ipc10$(comma),,$(call METHODS,-ipc10)),$(BASELINES)"
comma := ,

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]' -c constraints.txt
	touch $(READY)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
