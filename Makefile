# Everything a person runs. Needs only make and Python >= 3.11; all set-up goes into .venv.
PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11,$(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
BIN := .venv/bin
# Processes of the test suite; each may take 2 GB.
WORKERS ?= 2
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt

.PHONY: demo dashboard test lint types test-slow test-gpu test-browser test-postgres format clean

demo: .venv/.runtime  ## the whole loop on MovieLens-100K: train, simulate, augment, retrain, compare
	@$(BIN)/workbench demo $(ARGS)

dashboard: .venv/.runtime  ## the Streamlit page over the store
	@$(BIN)/workbench dashboard $(ARGS)

test: lint types  ## what CI runs
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not gpu and not slow and not browser and not postgres" $(ARGS)

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev
	$(BIN)/mypy

test-slow test-gpu: test-%: .venv/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m $* $(ARGS)

test-browser: .venv/.dev  ## needs Chromium on the PATH (Debian: apt-get install chromium)
	@$(PIP) --editable '.[browser]'
	$(BIN)/python -m pytest -m browser $(ARGS)

test-postgres: .venv/.dev  ## needs a server: WORKBENCH_TEST_POSTGRES=postgresql+psycopg://USER:PASSWORD@HOST/DATABASE
	@test -n "$$WORKBENCH_TEST_POSTGRES" || { echo "set WORKBENCH_TEST_POSTGRES to the URL of a database whose user may create databases"; exit 1; }
	@$(PIP) --editable '.[postgres]'
	$(BIN)/python -m pytest -m postgres $(ARGS)

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 on the PATH; install one or say make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "$(PYTHON) cannot make a virtual environment; on Debian or Ubuntu install python3-venv"; rm -rf .venv; exit 1; }

.venv/.runtime: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing into .venv (a few minutes, once)"
	@$(PIP) --editable '.[llm,dashboard]'
	@touch $@

.venv/.dev: .venv/.runtime
	@$(PIP) --editable '.[llm,dashboard,faiss,onnx,tensorboard,kernels,gepa,dspy,dev]'
	@touch $@
