PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: demo test clean

demo: $(VENV)/installed  ## the whole job on the sample corpus and a tiny Qwen2: CPU, three minutes
	$(PY) demo.py --output outputs/demo

test: $(VENV)/installed  ## all tests
	$(PY) -m pytest

# The stamp comes last, so that an interrupted installation is taken up again.
$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet -r requirements.txt
	touch $@

clean:
	rm -rf $(VENV) outputs
