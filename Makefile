OUT ?= out
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
TESTS := $(RUN) -m pytest -n 2 --dist worksteal

# Where PYTHON is not given, `make gpu` takes the environment of `make demo` if there is one.
ifeq ($(origin PYTHON),undefined)
PYTHON := python3
GPU_PYTHON := $(if $(wildcard $(READY)),$(RUN),$(PYTHON))
else
GPU_PYTHON := $(PYTHON)
endif

.PHONY: test test-slow test-all demo docs gpu

# In 12 minutes on two cores of an old server.
test: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(TESTS) -m "not slow"

# What takes long, in at most 40 minutes more.
test-slow: $(READY)
	$(TESTS) -m slow

test-all: test test-slow

demo: $(READY)
	$(RUN) -m fastkd demo

# The documentation site, in build/docs.
docs: $(READY)
	$(RUN) -m sphinx -W --keep-going -q -b html docs build/docs

# Installs nothing, for machines without network. ARGS=--dry-run rehearses it on a CPU.
gpu:
	OUT=$(OUT) PYTHONPATH=.:kernels $(GPU_PYTHON) -m benchmarks.gpu $(ARGS)

$(READY): pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[train,transformers,lightning,trl,ctranslate2,dev]'
	touch $@
