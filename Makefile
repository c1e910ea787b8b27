# Two commands: `make run` trains the small model and edits portraits, `make test` runs every check.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(shell date -u +%Y%m%d-%H%M%S)

.PHONY: run test test-slow reports lab notebooks export clean

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
test: $(VENV)/.installed notebooks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

# reports/*.md, their figures and index.html again, from the records in reports/runs
reports: $(VENV)/.installed
	$(BIN)/papermill nbs/report.ipynb reports/runs/report.ipynb --no-progress-bar

# mmgen/ is what the notebooks export, the notebooks are clean, and their own asserts hold
notebooks: $(VENV)/.installed
	$(BIN)/python tests/check_notebooks.py
	$(BIN)/nbdev_test --n_workers 2

export: $(VENV)/.installed
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean

lab: $(VENV)/.installed
	$(BIN)/jupyter lab nbs

clean:
	rm -rf $(VENV) build *.egg-info data/portraits
