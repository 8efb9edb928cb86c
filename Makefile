# Everything runs from a virtual environment that these targets make themselves.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check fix bench eval clean

demo: $(VENV)/.core          ## four conversations through the guard, on the model that ships
	@$(BIN)/python examples/demo.py

test: $(VENV)/.dev           ## all tests
	$(BIN)/python -m pytest

check: $(VENV)/.dev          ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fix: $(VENV)/.dev            ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev          ## speed, memory and size
	$(BIN)/python bench/run.py

eval: $(VENV)/.dev           ## figures on every evaluation set; GUARDRAIL_DATA names the data folder
	@mkdir -p build
	$(BIN)/guardrail eval --base minilm --json build/eval.json --html build/eval.html

clean:
	rm -rf $(VENV) build dist *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[langchain]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.core
