# make demo   ask the packaged model about a picture, a recording and a video
# make serve  serve it until Ctrl-C (ARGS="--port 9000" and the like are passed on)
# make test   the test suite · make test-all: the slow tests and other clients too · make check: lint and types · make bench: numbers
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Agent frameworks, which want other versions of our dependencies: their tests run them as programs of their own.
CLIENTS := .venv-clients
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

test-all: $(VENV)/.clients $(CLIENTS)/.done
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
	rm -rf $(VENV) $(CLIENTS) tests/clients/js/node_modules

$(VENV)/.run: pyproject.toml constraints.txt
	@echo "Installing sensorium into $(VENV) (once; torch is the large part)"
	@$(LOCK) sh -ec 'test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); $(PIP_INSTALL) -e ".[client]"; touch $@'

$(VENV)/.dev: $(VENV)/.run
	@echo "Installing what the tests need"
	@$(LOCK) sh -ec '$(PIP_INSTALL) -e ".[dev]"; touch $@'

$(VENV)/.clients: $(VENV)/.dev
	@echo "Installing the clients that the slow tests talk with"
	@$(LOCK) sh -ec '$(PIP_INSTALL) -e ".[dev,clients]"; touch $@'

# The SDK for JavaScript is left out where there is no npm; its tests are skipped then.
$(CLIENTS)/.done: tests/clients/requirements.txt tests/clients/js/package-lock.json
	@echo "Installing agent frameworks into $(CLIENTS), and the openai SDK for node"
	@$(LOCK) sh -ec 'test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS); \
	  $(CLIENTS)/bin/python -m pip install -q --disable-pip-version-check -r tests/clients/requirements.txt; \
	  if command -v npm >/dev/null; then cd tests/clients/js && npm ci --silent --no-audit --no-fund; fi; touch $(CURDIR)/$@'
