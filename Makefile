# Every target sets up what it needs. `make PYTHON=python3.12 test` builds the environment with another
# Python; delete .venv to change it later.

PYTHON ?= python3
NEWEST_PYTHON ?= python3.12
JOBS ?= auto

# The theme's advertisement for its successor.
export NO_MKDOCS_2_WARNING := 1

BIN := .venv/bin
OLDEST := .venv-oldest/bin
NEWEST := .venv-newest/bin
PIP := -m pip --disable-pip-version-check install -qq

.PHONY: help demo test check bench docs test-oldest test-newest clean
.NOTPARALLEL:

help:
	@echo "make demo         int8 on real ImageNet weights, before and after equalization"
	@echo "make test         the test suite (JOBS=auto processes)"
	@echo "make check        format, lint, types, documentation"
	@echo "make bench        timings next to NumPy and to a plain copy of the parameters"
	@echo "make docs         the documentation as a site in site/"
	@echo "make test-oldest  a smoke run on the oldest supported jax"
	@echo "make test-newest  the test suite on the newest jax, which needs Python 3.12"
	@echo "make clean        removes the environments and everything that was built"

demo: .venv/demo.done
	$(BIN)/python examples/fashion_mnist/run.py

test: .venv/dev.done
	$(BIN)/python -m pytest -q -n $(JOBS)

check: .venv/dev.done .venv/docs.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/mkdocs build --quiet --strict
	$(BIN)/python -m pytest -q tests/test_docs.py -k documented

bench: .venv/dev.done .venv/bench.done
	$(BIN)/python -m benchmarks

docs: .venv/docs.done
	$(BIN)/mkdocs build --quiet --strict
	@echo "Open site/index.html"

test-oldest: .venv-oldest/oldest.done
	$(OLDEST)/python -m pytest -q flaxcle tests/test_imports.py tests/test_docs.py

test-newest: .venv-newest/newest.done
	$(NEWEST)/python -m pytest -q -n $(JOBS)

clean:
	rm -rf .venv .venv-oldest .venv-newest .pytest_cache .ruff_cache .hypothesis site

.venv/%.done: pyproject.toml constraints.txt
	@test -x $(BIN)/python || { echo "Creating .venv"; $(PYTHON) -m venv .venv; }
	@echo "Installing flaxcle[$*] into .venv"
	@$(BIN)/python $(PIP) -c constraints.txt -e '.[$*]'
	@touch $@

.venv-oldest/oldest.done: pyproject.toml constraints-oldest.txt
	@echo "Creating .venv-oldest with the oldest supported jax"
	@rm -rf .venv-oldest
	@$(PYTHON) -m venv .venv-oldest
	@$(OLDEST)/python $(PIP) -c constraints-oldest.txt -e '.[cli]' pytest
	@touch $@

.venv-newest/newest.done: pyproject.toml constraints-newest.txt
	@echo "Creating .venv-newest with the newest jax"
	@rm -rf .venv-newest
	@$(NEWEST_PYTHON) -m venv .venv-newest
	@$(NEWEST)/python $(PIP) -c constraints-newest.txt -e '.[dev]'
	@touch $@
