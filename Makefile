# Two commands set up everything on a fresh machine with Python 3.10+ and make: `make run` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PINS   := $(shell $(PYTHON) -c 'import sys; print("constraints-3.10.txt" if sys.version_info < (3, 11) else "constraints.txt")')
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(PINS)
OUT    ?= runs/quickstart
RTX    := 1.4.0.76 1.5.0.114 1.6.1.120 1.7.1.116
# What its ONNX quantization imports; all that it asks for would bring CUDA
MODEL_OPTIMIZER := nvidia-modelopt==0.47.0 onnx-graphsurgeon==0.6.1 onnxslim==0.1.98 lief==1.0.0 nvidia-ml-py==13.615.71

.PHONY: help install run docs pictures test lint test-slow test-tensorrt test-gpu test-arm64 mutants fuzz bench bench-degradation bench-guard bench-peers bench-pruning clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

install: $(VENV)/.installed ## .venv/bin/edgeship, with what it needs

run: $(VENV)/.installed ## the whole path on the embedded data: digits, ResNet-18, INT8, report
	$(BIN)/edgeship run quickstart --out $(OUT)

docs: $(VENV)/.installed-docs ## the documentation: build/docs/site/index.html
	$(BIN)/python -m docs.build

pictures: $(VENV)/.installed-dev ## the documentation's pictures, from a run of the quickstart (Debian's chromium and chromium-driver)
	$(BIN)/python -m docs.pictures

test: $(VENV)/.installed-dev lint ## every check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0

lint: $(VENV)/.installed-dev ## format, lint, types, layers
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-slow: $(VENV)/.installed-dev ## checks that take minutes; a local Ray and Dask among them
	$(PIP) --editable '.[dev,loadgen,ray,dask,signing]'
	$(BIN)/python -m pytest -m 'slow and not arm64'

test-tensorrt: $(VENV)/.installed-dev ## the linter against four versions of NVIDIA's parser on 2,000 mutated graphs (1 GB)
	for version in $(RTX); do \
	  test -d $(VENV)/rtx/$$version/tensorrt_rtx \
	  || $(BIN)/python -m pip install --quiet --target $(VENV)/rtx/$$version tensorrt-rtx-cu12==$$version || exit 1; \
	done
	$(BIN)/python tests/parser_gate.py $(VENV)/rtx $(ARGS)

test-gpu: $(VENV)/.installed-dev ## what an NVIDIA GPU makes possible: TensorRT engines built, run, compared, audited, timed
	test ! -e /dev/nvidiactl || $(PIP) --editable '.[dev,tensorrt]'
	$(BIN)/python -m pytest -m gpu -rs tests/targets/test_gpu.py

test-arm64: $(VENV)/.installed-dev ## deployment to a real arm64 userland (Debian's qemu-user-static, binfmt-support, debootstrap)
	$(BIN)/python -m pytest -m arm64

mutants: $(VENV)/.installed-dev ## mutation tests of the numeric and safety-critical modules, about an hour; see tests/mutants/results.md
	$(BIN)/python -W ignore tests/mutants/run.py $(ARGS)

fuzz: $(VENV)/.installed-dev ## coverage-guided fuzzing of every parser, a minute each; findings in build/fuzz
	-$(PIP) --only-binary :all: atheris==3.0.0
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py $(ARGS)

bench: $(VENV)/.installed-bench ## quantization: the figures, compared with NNCF and ONNX Runtime
	$(BIN)/python tests/benchmarks/quantization.py $(ARGS)

bench-peers: $(VENV)/.installed-peers ## quantization against every peer
	$(BIN)/python tests/benchmarks/quantization.py --peers $(ARGS)

bench-degradation: $(VENV)/.installed-dev ## plain and residual networks of two depths, half an hour; smaller by ARGS
	$(BIN)/python tests/benchmarks/degradation.py $(ARGS)

bench-guard: $(VENV)/.installed-dev ## guarded INT8: flips over draws, latency, an hour; smaller by ARGS
	$(BIN)/python tests/benchmarks/guard.py $(ARGS)

bench-pruning: $(VENV)/.installed-bench ## pruning: the figures, compared with Torch-Pruning
	$(BIN)/python tests/benchmarks/pruning.py $(ARGS)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml $(PINS)
	$(PIP) torch==2.13.0
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) --editable '.[docs]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-dev
	$(PIP) --editable '.[dev,bench]'
	touch $@

$(VENV)/.installed-peers: $(VENV)/.installed-bench
	$(PIP) --editable '.[dev,bench,peers]'
	$(PIP) --no-deps $(MODEL_OPTIMIZER)
	touch $@

clean: ## forget the environment and all runs
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
