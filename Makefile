PYTHON ?= python3
OUT ?= out
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: test demo gpu

test: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(RUN) -m pytest -n 2

demo: $(READY)
	$(RUN) -m fastkd demo

# Uses the Python it is given and installs nothing: for machines without network.
gpu:
	OUT=$(OUT) PYTHONPATH=.:kernels $(PYTHON) -m benchmarks.gpu

$(READY): pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[train,transformers,lightning,ctranslate2,dev]'
	touch $@
