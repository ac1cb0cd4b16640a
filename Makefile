# Two commands do everything on a machine with Python, make and pip: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# 2.14.1 is the version developed against; any version in pyproject's range does.
TORCH ?= torch==2.14.1 torchvision==0.29.1

.PHONY: demo test test-all fuzz lint docs coverage bench-compression bench-document bench-gpu clean

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[all,dev,tensorrt-rtx]'
	touch $@

demo: $(STAMP)
	$(BIN)/edp-fx compress resnet18 --data digits --macs 0.4 --epochs 10 --out demo --overwrite

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: $(STAMP)
	$(BIN)/python -m pytest -n 2

# programs made at random, through every stage (an hour or so)
fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz --count 5000

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

coverage: $(STAMP)
	$(BIN)/edp-fx coverage --families all --out docs

$(VENV)/.benchmarks: $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[benchmarks]'
	touch $@

# goes on where it was stopped, one run after another (days on a small machine)
bench-compression: $(VENV)/.benchmarks
	$(BIN)/python -m benchmarks.compression
	$(BIN)/python -m benchmarks.document

# the site, into site/; a warning or a link that leads nowhere ends it
docs: $(STAMP)
	$(BIN)/python -m docs.architecture
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python -m docs.links site

# on a machine with an NVIDIA GPU: nine minutes
bench-gpu: $(VENV)/.benchmarks
	$(BIN)/python -m benchmarks.gpu --out benchmarks/results/gpu.jsonl

bench-document: $(VENV)/.benchmarks
	$(BIN)/python -m benchmarks.document

clean:
	rm -rf demo build dist site *.egg-info
