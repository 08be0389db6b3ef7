# make demo   ask the packaged model about a picture, a recording and a video
# make serve  serve it until Ctrl-C (ARGS="--port 9000" and the like are passed on)
# make test   the test suite · make test-all: the slow tests and other clients too · make check: lint and types · make bench: numbers
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# pip resolves torch and all else in one call, so that no package can bring another torch along.
PIP_INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
# Two makes at once take turns at the environment.
LOCK := $(if $(shell command -v flock),flock Makefile)
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: demo serve test test-all bench check clean

demo: $(VENV)/.run
	$(BIN)/python -m sensorium.demo

serve: $(VENV)/.run
	$(BIN)/sensorium serve $(ARGS)

test: $(VENV)/.dev
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.clients
	$(PYTEST)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(VENV)/.dev
	$(BIN)/sensorium bench
	$(BIN)/python benchmarks/engine_step.py
	$(BIN)/python benchmarks/vs_transformers.py

clean:
	rm -rf $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt
	@echo "Installing sensorium into $(VENV) (once; torch is the large part)"
	@$(LOCK) sh -ec 'test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); $(PIP_INSTALL) -e ".[client]"; touch $@'

$(VENV)/.dev: $(VENV)/.run
	@echo "Installing what the tests need"
	@$(LOCK) sh -ec '$(PIP_INSTALL) -e ".[dev]"; touch $@'

$(VENV)/.clients: $(VENV)/.dev
	@echo "Installing the clients that the slow tests talk with"
	@$(LOCK) sh -ec '$(PIP_INSTALL) -e ".[dev,clients]"; touch $@'
