# FastServe: what a developer, or a CI machine, runs. `make` alone lists it.
#
# Each target does its own set-up, from a fresh clone on a bare Debian on: system packages, the virtual
# environment in .venv, the build. What is done is remembered (.make/, .venv/.*) and not done again.
#
# PYTHON=...         the interpreter for a new .venv, 3.11 or later (default python3)
# SANITIZE=short     fewer rounds, for CI        FUZZ_SECONDS=60  for each fuzz target
# ARGS=...           passed on to pytest, bench/run.py, `fastserve bench switch` or the demo

PYTHON ?= python3
FUZZ_SECONDS ?= 60
ARGS ?=

BIN := .venv/bin
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help setup build demo test image-test lint format bench bench-switch bench-gateway sanitize fuzz wheel clean
.DELETE_ON_ERROR:

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 16

# ---- set-up ---------------------------------------------------------------------------------

setup: .venv/.made .venv/.tensorflow  ## system packages, .venv and TensorFlow in it

.make/system-%: tools/system_packages
	@mkdir -p .make
	tools/system_packages $*
	@touch $@

.venv/.made: pyproject.toml | .make/system-build
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "FastServe needs Python 3.11 or later")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check 'setuptools>=77' 'cython>=3.1'
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation -e '.[test,dev]'
	@touch $@

# Tests, demo and benchmarks compare with TensorFlow; lint, sanitize and wheel do without. The client's
# package and Keras 2 ask for `tensorflow` by that name, whichever variant is there, hence --no-deps.
.venv/.tensorflow: tools/tensorflow_package | .venv/.made
	$(BIN)/python -m pip install -q --disable-pip-version-check "$$(tools/tensorflow_package)"
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps 'tensorflow-serving-api>=2.16' 'tf_keras>=2.16'
	@touch $@

# ---- build ----------------------------------------------------------------------------------

build: .venv/.made  ## the native modules, in place; only what changed
	@mkdir -p build
	@flock build/.lock $(BIN)/python setup.py -q build_ext --inplace

wheel: .venv/.made  ## a manylinux wheel in dist/, with nghttp2 inside, tried in a clean environment
	rm -rf dist build/wheel
	$(BIN)/python setup.py -q build --build-base build/wheel bdist_wheel \
	    --bdist-dir build/wheel/tree --dist-dir build/wheel/raw
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --strip -w dist build/wheel/raw/*.whl
	$(BIN)/python tools/check_wheel.py dist/*.whl $(ARGS)

# ---- run ------------------------------------------------------------------------------------

demo: build .venv/.tensorflow  ## train, serve and score a click-through ranker
	$(BIN)/python examples/ranking/demo.py $(ARGS)

bench: build .venv/.tensorflow .make/system-bench  ## measure: tables here, JSON and HTML in bench/results
	$(MAKE) -s -C tests/c bench
	$(BIN)/python bench/run.py $(ARGS)

bench-switch: build .venv/.tensorflow .make/system-bench  ## measure version switches under load: table, JSON and PNG in bench/results
	$(BIN)/python -m fastserve bench switch --switches 20 --patience 300 --serve model.batching.batch_timeout_us=1000 \
	    --ablate all --ablate-with small off \
	    --out bench/results/switch.json --plot bench/results/switch.png $(ARGS)

bench-gateway: build .venv/.tensorflow .make/system-bench  ## measure the gateway: gRPC beside it, REST beside Flask; JSON in bench/results
	$(BIN)/python bench/gateway.py $(ARGS)

# ---- check ----------------------------------------------------------------------------------

test: build .venv/.tensorflow  ## every test; without a browser, which is installed, all but the live page's
	-@$(MAKE) -s --no-print-directory .make/system-test
	$(BIN)/python -m pytest -q $(ARGS)

image-test: build .venv/.tensorflow .make/system-image  ## build the image and run it, as root: buildah, no Docker engine; minutes
	$(BIN)/python -m pytest -q tests/image --image -o faulthandler_timeout=0 $(ARGS)

lint: .venv/.made  ## formatting, ruff, mypy, and a build in which warnings are errors
	$(BIN)/ruff format --check -q .
	$(BIN)/ruff check -q .
	$(BIN)/mypy
	FASTSERVE_WERROR=1 $(BIN)/python setup.py -q build --build-base build/werror
	tools/clang_warnings

format: .venv/.made  ## put Python into shape
	$(BIN)/ruff format -q .
	$(BIN)/ruff check -q --fix .

sanitize: .venv/.made  ## C tests, stress, fuzz corpora and bindings under ASan, UBSan and TSan
	$(BIN)/python -m pytest -q tests/c --variant asan --variant tsan \
	    --stress-items $(if $(filter short,$(SANITIZE)),20000,300000) $(ARGS)
	tools/sanitize_bindings $(ARGS)

fuzz: .venv/.made .make/system-fuzz  ## libFuzzer on every target, FUZZ_SECONDS each
	$(MAKE) -s -C tests/c V=fuzz fuzz
	tools/fuzz $(FUZZ_SECONDS)

clean:  ## what was built; .venv stays
	rm -rf build dist *.egg-info fastserve/_native/*.so
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
