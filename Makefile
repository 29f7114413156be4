PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: demo test notebooks page clean

demo: $(VENV)/installed  ## the whole job on the sample corpus and a tiny Qwen2: CPU, three minutes
	$(PY) -m antifraud.demo --output outputs/demo

test: $(VENV)/installed  ## all tests
	$(PY) -m pytest

notebooks: $(VENV)/installed  ## the whole series afresh, outputs kept in the notebooks
	$(PY) -m tools.run_notebooks

page: $(VENV)/installed  ## outputs/page/index.html, from the notebooks as they are
	$(PY) -m tools.run_notebooks --no-run --page

# The stamp comes last, so that an interrupted installation is taken up again.
$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet -r requirements.txt
	touch $@

clean:
	rm -rf $(VENV) outputs
