# Every target works on a machine where nothing has run before.
PYTHON ?= python3
DATA_DIR ?= data
# Where torch is downloaded from; empty is pip's own index, whose torch has CUDA on Linux.
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PROTO_VENV := .venv-proto
PROTO_READY := $(PROTO_VENV)/.ready
PROTO := prism/v1/federation.proto
GENERATE = PYTHONWARNINGS=ignore PATH="$(CURDIR)/$(PROTO_VENV)/bin:$$PATH" $(PROTO_VENV)/bin/python \
  -m grpc_tools.protoc -Icommon/rpc=proto \
  --python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) \
  common/rpc/$(PROTO)

.PHONY: setup run run-mnist run-cifar10 test test-slow test-faults fuzz test-compose audit reproduce docs check check-proto proto format clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r constraints.txt \
	  $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

run: $(READY)
	$(BIN)/prism run configs/quickstart.toml

run-mnist: $(READY)
	$(BIN)/prism run configs/mnist.toml --data-dir $(DATA_DIR)

run-cifar10: $(READY)
	$(BIN)/prism run configs/cifar10.toml --data-dir $(DATA_DIR)

test: $(READY)
	$(BIN)/pytest

test-slow: $(READY)
	$(BIN)/pytest -m slow

# Kills at random instants: 200 of the server and 50 of clients, unless said otherwise.
test-faults: $(READY)
	PRISM_KILLS=$(or $(KILLS),200) PRISM_CLIENT_KILLS=$(or $(CLIENT_KILLS),50) \
	  $(BIN)/pytest -n 0 tests/test_faults.py

# A million inputs for everything that reads bytes, and 50,000 requests to servers, unless said
# otherwise.
fuzz: $(READY)
	PRISM_FUZZ=$(or $(INPUTS),1000000) PRISM_FUZZ_CALLS=$(or $(CALLS),50000) \
	  $(BIN)/pytest -n 0 tests/test_fuzz.py tests/test_fuzz_service.py

# Needs a Docker engine. What docker-compose.yml takes may be set: BASE_IMAGE, TORCH_INDEX, ...
test-compose: $(READY)
	$(BIN)/pytest -m compose -n 0 -rs --durations=0

audit: $(READY)
	$(BIN)/python -m benchmarks.audit

# SIZE=cpu takes hours on two cores, SIZE=paper a GPU; what was measured is not measured again.
reproduce: $(READY)
	$(BIN)/python -m benchmarks.reproduce --size $(or $(SIZE),cpu) --data-dir $(DATA_DIR)

check: $(READY) check-proto
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)
	$(BIN)/prism config --markdown > docs/configuration.md

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Generated with the oldest tools whose output every supported runtime accepts.
$(PROTO_READY): Makefile
	test -x $(PROTO_VENV)/bin/python || $(PYTHON) -m venv $(PROTO_VENV)
	$(PROTO_VENV)/bin/pip install --quiet --disable-pip-version-check \
	  grpcio-tools==1.76.0 protobuf==6.31.1 mypy-protobuf==3.7.0
	touch $@

proto: $(PROTO_READY)
	$(call GENERATE,.)

check-proto: $(PROTO_READY)
	rm -rf build/proto && mkdir -p build/proto
	$(call GENERATE,build/proto)
	diff -r -x __init__.py -x __pycache__ common/rpc build/proto/common/rpc \
	  || { echo "common/rpc is out of date: run 'make proto'"; exit 1; }

clean:
	rm -rf $(VENV) $(PROTO_VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
