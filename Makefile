# Two commands do everything on a machine that has only Python 3.11: make demo, make test.
PYTHON ?= python3.11
VENV := .venv
INSTALLED := $(VENV)/.installed

.PHONY: demo test check clean

demo: $(INSTALLED)
	$(VENV)/bin/python scripts/demo.py --out demo

test: $(INSTALLED)
	scripts/test

check: $(INSTALLED)
	scripts/check

# the package's own build needs setuptools alone, and takes it from here: no second environment
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools torch
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[dev,lora]"
	touch $@

clean:
	rm -rf $(VENV) demo build
