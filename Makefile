# Two commands do everything on a machine with Python and git: make demo, make test.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN = $(VENV)/bin
SITE = $(BIN)/python -m sphinx -W --keep-going -n -q docs docs/_build/html
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test examples check docs docs-short bench bench-quick bench-gpu faults distributed clean

demo: $(VENV)/.run  ## train the 3-or-7 model, leave out/mnist_sample.png
	$(BIN)/python examples/mnist_sample.py --out out

test: $(VENV)/.dev  ## all tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

examples: $(VENV)/.dev  ## every lesson in full, each held to the figure that it states; MINILEARN_DATA names MNIST's folder
	MINILEARN_EXAMPLES=full $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile tests/examples

check: $(VENV)/.dev  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs  ## the site in docs/_build/html, warnings are errors; runs all examples, needs MNIST
	$(SITE)

docs-short: $(VENV)/.docs  ## the same with the examples in their short form
	MINILEARN_EXAMPLES=short $(SITE)

bench: $(VENV)/.bench  ## all benchmarks, other frameworks among them; writes benchmarks/results.md
	$(BIN)/python benchmarks/run.py

bench-quick: $(VENV)/.run  ## fewer rounds, without the slow cases
	$(BIN)/python benchmarks/run.py --quick

bench-gpu: $(VENV)/.run  ## the benchmarks for a CUDA GPU, where there is one; writes benchmarks/results-gpu.md
	$(BIN)/python benchmarks/gpu.py

faults: $(VENV)/.dev  ## what is promised of runs and files, tried at length: 1,000 kills, 100 signals, 10,000 damaged files; an hour
	$(BIN)/python tests/faults/kill_resume.py --kills 1000
	$(BIN)/python tests/faults/signals.py --signals 100
	$(BIN)/python tests/faults/mutated_files.py --files 10000
	MINILEARN_EVERY_BATCH=1 $(BIN)/python -m pytest tests/faults tests/callbacks/test_checkpoint.py
	$(BIN)/python benchmarks/checkpoints.py

distributed: $(VENV)/.dev  ## several processes: their figures against one's, 20 kills, memory, overhead; most of an hour
	MINILEARN_DISTRIBUTED=full $(BIN)/python -m pytest tests/distributed
	$(BIN)/python tests/distributed/kill_restart.py --kills 20
	$(BIN)/python tests/distributed/kill_restart.py --kills 4 --nodes 2
	$(BIN)/python benchmarks/sharded_memory.py
	$(BIN)/python benchmarks/ddp_overhead.py
	$(BIN)/python benchmarks/distributed_scale.py

clean:
	rm -rf $(VENV) out docs/_build docs/gallery

$(VENV)/.run: setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch and minilearn into $(VENV); torch is large, this takes a minute or more"
	$(PIP) --editable .
	touch $@

$(VENV)/.bench: $(VENV)/.run
	$(PIP) --editable '.[bench]'
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) --editable '.[dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.run
	$(PIP) --editable '.[docs]'
	touch $@
