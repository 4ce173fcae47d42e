# Needs only Python 3.11 or newer, make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Everything that the checks and the demo need is in the lock, by hash.
INSTALLED := $(VENV)/installed
# Of Apache Kafka, where it is started: 1 or 3.
BROKERS ?= 1

.PHONY: setup fmt lint types test kafka test-kafka test-onnx chaos fuzz demo bench bench-fairness bench-policies schemas docs lock clean

setup: $(INSTALLED)

$(INSTALLED): requirements.lock requirements-pdq.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --require-hashes -r requirements.lock
	@# What perceptual hashes are held to comes as source only: without a C++ compiler, that is left out.
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --require-hashes \
		-r requirements-pdq.lock || echo "left out: pdqhash, which needs a C++ compiler"
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

# Apache Kafka itself; needs Java 17 or newer, and Maven, which takes its jars once.
kafka: setup
	$(BIN)/python -m tests.apache_kafka --brokers $(BROKERS)

# On the Kafka that KAFKA_BOOTSTRAP names, or on one that is started for it.
test-kafka: setup
	$(if $(KAFKA_BOOTSTRAP),,$(BIN)/python -m tests.apache_kafka --brokers $(BROKERS)) \
		$(BIN)/pytest -n 2 --dist loadfile tests/contract tests/e2e

# The model run by ONNX Runtime, which is an extra and not locked.
test-onnx: setup
	$(BIN)/python -m pip install --disable-pip-version-check --quiet 'onnxruntime>=1.31' 'onnxscript>=0.7'
	$(BIN)/pytest tests/unit/test_onnx_engine.py tests/contract/test_encoder.py

# The service under faults, on three brokers; SEED of the faults, and SHORT=1 for two minutes.
chaos: setup
	$(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED)) $(if $(SHORT),--short)

# TARGET of tests/fuzz, for SECONDS; atheris has wheels for Linux and macOS only, and is not locked.
fuzz: setup
	$(BIN)/python -m pip install --disable-pip-version-check --quiet atheris
	$(BIN)/python -m tests.fuzz $(or $(TARGET),url) $(or $(SECONDS),60)

demo: setup
	$(BIN)/imagewarden demo $(if $(KEEP),--keep)

# What it found becomes the report that the next run is held against.
bench: setup
	$(BIN)/python -m tests.bench --json tests/bench/results.json > tests/bench/RESULTS.new
	mv tests/bench/RESULTS.new tests/bench/RESULTS.md

# On the Kafka that KAFKA_BOOTSTRAP names, or on an embedded broker.
bench-fairness: setup
	$(BIN)/python -m tests.bench.lanes
	$(BIN)/python -m tests.bench.hosts

# Deciding on the past, and what the reload of a large policy costs those who wait for verdicts.
bench-policies: setup
	$(BIN)/imagewarden bench redecide reload

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
	echo pdqhash==0.2.8 | $(BIN)/uv pip compile - --no-deps --universal --upgrade \
		--python-version 3.11 --generate-hashes --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links --quiet -o requirements-pdq.lock

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
