# `make figures` and `make test` need make and Python 3.11 or newer, and set up the rest: in the active virtual or conda
# environment if there is one, else in .venv. The installation is made once, and again when pyproject.toml changes.

PROFILE ?= quick
PYTHON ?= python3
ON ?= local

ENV := $(or $(VIRTUAL_ENV),$(CONDA_PREFIX),.venv)
RUN := $(ENV)/bin/python
STAMP := $(ENV)/.ddanalysis
export JUPYTER_PREFER_ENV_PATH := 1

.PHONY: help figures test lab
.DEFAULT_GOAL := help

help:
	@echo "make figures                run every notebook of the quick profile: outputs/quick/index.html"
	@echo "make figures PROFILE=paper  another profile: a folder of params/"
	@echo "make figures CORES=8        with more jobs at a time; ON=slurm on a cluster; OUTPUTS=folder elsewhere"
	@echo "make test                   lint, types and tests"
	@echo "make lab                    JupyterLab"

figures: $(STAMP)
	@"$(RUN)" -m snakemake -s notebooks/Snakefile --workflow-profile params/snakemake/$(ON) \
		$(if $(CORES),--cores $(CORES)) --config profile=$(PROFILE) $(if $(OUTPUTS),outputs=$(OUTPUTS))
	@echo "see $(or $(OUTPUTS),outputs/$(PROFILE))/index.html"

test: $(STAMP)
	@"$(RUN)" -m ruff check .
	@"$(RUN)" -m mypy
	@OMP_NUM_THREADS=1 MPLBACKEND=agg "$(RUN)" -m pytest -q -n auto --maxprocesses 4 --dist loadfile

lab: $(STAMP)
	@"$(RUN)" -m jupyterlab

# An environment that several checkouts share holds one of them at a time: the stamp says which.
ifneq ($(shell cat "$(STAMP)" 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

$(STAMP): pyproject.toml
ifeq ($(ENV),.venv)
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("$(PYTHON) is Python " + sys.version.split()[0] + \
		": 3.11 or newer is needed; name one, as in make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@"$(RUN)" -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
endif
	@echo "installing into $(ENV): some minutes and some gigabytes, once"
	@"$(RUN)" -m pip install -qq --disable-pip-version-check -e ".[test]"
	@echo "$(CURDIR)" > "$@"
