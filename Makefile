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

page: $(VENV)/page  ## outputs/page/site/index.html: README, docs and the notebooks as they are
	$(PY) -m tools.make_page

# The stamp comes last, so that an interrupted installation is taken up again.
$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/page: $(VENV)/installed pyproject.toml
	$(PY) -m pip install --quiet $$($(PY) -c 'import tomllib; \
		print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["page"])')
	touch $@

clean:
	rm -rf $(VENV) outputs
