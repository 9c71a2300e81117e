# Every target sets itself up: a virtual environment in .venv with the tested versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test quick check format bench bench-orchestration bench-profile bench-rivals bench-ablation bench-budgets bench-gpu consumers clean
.DEFAULT_GOAL := test

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "AlphaQuant needs Python 3.11 or newer; say which: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "making $(VENV): two to five minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

demo: $(READY)  ## compress the shipped model end to end
	@echo "the pipeline takes two to four minutes on two cores, most of them for the 30 plans it compares itself with"
	$(BIN)/alphaquant run

test: $(READY) check  ## lint, types and every test this machine can run
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m "slow or not slow"

quick: $(READY) check  ## the same without what takes over 10 seconds a test
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## time and memory beside other quantizers and WeightWatcher; an hour, and an environment of 1 GB for each of four
	$(BIN)/python -m benchmarks.speed

bench-orchestration: $(READY)  ## what start-up, lookups and blocks cost; about ten minutes
	$(BIN)/python benchmarks/orchestration.py

bench-profile: $(READY)  ## seconds of every step of the demo against the physical floor; two minutes
	$(BIN)/python -m benchmarks.steps --model alphaquant/demo/model --device cpu --samples 64 --length 256 \
		--settings alpha sensitivity int4 "int4 corrected" "int4 tuned"

bench-rivals: $(READY)  ## AlphaQuant and other quantizers side by side; hours, and an environment per rival
	$(BIN)/python -m benchmarks.rivals

bench-ablation: $(READY)  ## what every ingredient is worth, alone and missing; hours
	$(BIN)/python -m benchmarks.ablation

bench-budgets: $(READY)  ## ways to spend the same bits; hours
	$(BIN)/python -m benchmarks.budgets

bench-gpu: $(READY)  ## seconds of every step at real models' shapes against what the GPU can do; some minutes, random weights
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.gpu --out benchmarks/results/gpu.json

consumers: $(READY)  ## vLLM, GPTQModel and transformers read our checkpoints; an environment each (5 GB for vLLM), half an hour
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.consumers

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
