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

.PHONY: help demo test browser check bench bench-rivals docs test-oldest test-newest clean
.NOTPARALLEL:

help:
	@echo "make demo         int8 on real ImageNet weights, before and after equalization"
	@echo "make test         the test suite (JOBS=auto processes)"
	@echo "make browser      the report in chromium; REPORT=page.html opens another page"
	@echo "make check        format, lint, types, documentation"
	@echo "make bench        timings next to a plain copy of the parameters, and to the float network"
	@echo "make bench-rivals the same weights equalized by AIMET, Brevitas and PPQ"
	@echo "make docs         the documentation as a site in site/"
	@echo "make test-oldest  a smoke run on the oldest supported jax"
	@echo "make test-newest  the test suite on the newest jax, which needs Python 3.12"
	@echo "make clean        removes the environments and everything that was built"

demo: .venv/demo.done
	$(BIN)/python examples/fashion_mnist/run.py

test: .venv/dev.done
	@echo "Without the browser tests, which need chromium: make browser"
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal

browser: .venv/dev.done
	@for tool in chromium chromedriver; do command -v $$tool > /dev/null || { \
		echo "There is no $$tool: apt install chromium chromium-driver, for the browser tests"; exit 1; }; done
	$(BIN)/python -m pytest -q -m browser tests/test_report_browser.py

check: .venv/dev.done .venv/docs.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/mkdocs build --quiet --strict
	$(BIN)/python -m pytest -q tests/test_docs.py -k documented

bench: .venv/dev.done .venv/bench.done
	$(BIN)/python -m benchmarks

bench-rivals: .venv/dev.done .venv/bench.done .venv-rivals/rivals.done
	$(BIN)/python benchmarks/rivals/bench.py .venv-rivals

docs: .venv/docs.done
	$(BIN)/mkdocs build --quiet --strict
	@echo "Open site/index.html"

test-oldest: .venv-oldest/oldest.done
	$(OLDEST)/python -m pytest -q -n $(JOBS) --dist worksteal flaxcle tests/test_imports.py tests/test_docs.py

test-newest: .venv-newest/newest.done
	$(NEWEST)/python -m pytest -q -n $(JOBS) --dist worksteal

clean:
	rm -rf .venv .venv-oldest .venv-newest .venv-rivals .pytest_cache .ruff_cache .hypothesis site

.venv/%.done: pyproject.toml constraints.txt
	@test -x $(BIN)/python || { echo "Creating .venv"; $(PYTHON) -m venv .venv; }
	@echo "Installing flaxcle[$*] into .venv"
	@$(BIN)/python $(PIP) -c constraints.txt -e '.[$*]'
	@touch $@

# Each rival has its own environment; torch comes first where there is a build for CPUs alone.
.venv-rivals/rivals.done:
	@for rival in brevitas aimet ppq; do \
		$(PYTHON) -m venv .venv-rivals/$$rival && \
		.venv-rivals/$$rival/bin/python $(PIP) torch==2.13.0 'setuptools<81' || exit 1; \
	done
	@.venv-rivals/brevitas/bin/python $(PIP) brevitas==0.13.4 onnx onnxscript
	@.venv-rivals/aimet/bin/python $(PIP) aimet-onnx==2.42.0
	@.venv-rivals/ppq/bin/python $(PIP) ppq==0.6.6 'numpy<2' protobuf==3.20.3 onnx==1.15.0
	@touch $@

.venv-oldest/oldest.done: pyproject.toml constraints-oldest.txt
	@echo "Creating .venv-oldest with the oldest supported jax"
	@rm -rf .venv-oldest
	@$(PYTHON) -m venv .venv-oldest
	@$(OLDEST)/python $(PIP) -c constraints-oldest.txt -e '.[cli,plot,report]' pytest pytest-xdist
	@touch $@

.venv-newest/newest.done: pyproject.toml constraints-newest.txt
	@echo "Creating .venv-newest with the newest jax"
	@rm -rf .venv-newest
	@$(NEWEST_PYTHON) -m venv .venv-newest
	@$(NEWEST)/python $(PIP) -c constraints-newest.txt -e '.[dev]'
	@touch $@
