# `make run` trains the small model and edits portraits, `make test` runs every check; CONTRIBUTING.md explains the rest.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(shell date -u +%Y%m%d-%H%M%S)

.PHONY: run test test-slow reports book lab setup format notebooks export clean

$(VENV)/.installed: settings.ini setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

run: $(VENV)/.installed
	mkdir -p reports/runs
	$(BIN)/papermill nbs/train_ldm.ipynb reports/runs/train_ldm-$(STAMP).ipynb -p run_id ldm-$(STAMP) --log-output --no-progress-bar
	@echo "The pictures and the record: reports/runs/ldm-$(STAMP)"

# a file of tests runs in one process, several files at once, each with one thread of torch
test: $(VENV)/.installed format notebooks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# the quickest check comes first
format: $(VENV)/.installed
	$(BIN)/ruff format --check nbs tests benchmarks docs
	$(BIN)/ruff check nbs tests benchmarks docs

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

# reports/*.md, their figures and index.html again, from the records in reports/runs
reports: $(VENV)/.installed
	$(BIN)/papermill nbs/report.ipynb reports/runs/report.ipynb --no-progress-bar

# the notebooks and the API of every module as a site; nothing is executed
book: $(VENV)/.installed
	$(BIN)/python docs/build.py
	@echo "Open book/index.html"

# mmgen/ is what the notebooks export, the notebooks are clean, and their asserts hold (as nbdev_test checks); stale outputs are listed
notebooks: $(VENV)/.installed
	$(BIN)/python tests/check_notebooks.py
	$(BIN)/python tests/check_outputs.py

export: $(VENV)/.installed
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean

# the whole repository, with the tour open
lab: $(VENV)/.installed
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/nbs/tour.ipynb

# nbdev's hooks: notebooks are saved without metadata that differs from machine to machine, and merge cell by cell
setup: $(VENV)/.installed
	$(BIN)/nbdev_install_hooks

clean:
	rm -rf $(VENV) build book *.egg-info data/portraits
