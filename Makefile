# Needs only Python 3.11 or newer, make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Everything that the checks and the demo need is in the lock, by hash.
INSTALLED := $(VENV)/installed

.PHONY: setup fmt lint types test demo bench schemas docs lock clean

setup: $(INSTALLED)

$(INSTALLED): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

fmt: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

test: setup
	$(BIN)/pytest -n 2 --dist loadfile

demo: setup
	$(BIN)/imagewarden demo $(if $(KEEP),--keep)

bench: setup
	$(BIN)/python -m tests.bench

schemas: setup
	$(BIN)/python -m worker.json_schemas deploy/schemas

# The parts of the README that are generated.
docs: setup
	$(BIN)/python -m tests.unit.test_docs

# The lock resolves for every platform and names no index.
lock: setup
	$(BIN)/python -m pip install --disable-pip-version-check --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra demo --group dev --universal --upgrade \
		--python-version 3.11 --generate-hashes --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links --quiet -o requirements.lock

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
