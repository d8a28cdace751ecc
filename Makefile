# `make` alone says what there is. Every target makes .venv first when it is missing.

PYTHON  ?= $(shell command -v python3.11 || echo python3)
WORKERS ?= auto
# The oldest torch that pyproject.toml admits; a comment there says what else was tested.
TORCH   := torch==2.13.0
BIN     := .venv/bin
VENV    := .venv/.stamp
PEERS   := .venv/.peers
DRIVER  := .venv/.browser
BROWSER := $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)

.DEFAULT_GOAL := help
.PHONY: help demo test fuzz mutants bench gpu-check docs docs-check format clean

help:  ## Say what there is
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(VENV)  ## Train an equilibrium network on handwritten digits, about a minute
	@$(BIN)/torchimplicit demo

# One torch thread a process: the processes are the parallelism, and more threads than cores only fight.
test: $(VENV)  ## Lint, format, types, imports, tests
	@echo '== ruff check: lint'
	@$(BIN)/ruff check
	@echo '== ruff format: layout'
	@$(BIN)/ruff format --check
	@echo '== pyright: types'
	@$(BIN)/pyright
	@echo '== lint-imports: the floors of the house'
	@$(BIN)/lint-imports
	@echo '== pytest: behaviour'
	@OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(WORKERS) --maxprocesses 8

CASES   ?= 10000
SEED    ?= 0

fuzz: $(VENV)  ## Check the verdicts of 10,000 random solves by other means; SEED=7 CASES=1 repeats one
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --cases $(CASES) --seed $(SEED)

mutants: $(VENV)  ## Put wrong lines into a copy of the code, and see that the tests notice each
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants

bench: $(PEERS)  ## Measure against the peers and rewrite the table of results
	@$(BIN)/python -m benchmarks.points
	@$(BIN)/python -m benchmarks.paths --quick
	@$(BIN)/python -m benchmarks.programs --quick

DEVICE  ?= cuda
PARTS   := test_contract.py test_synchronisation.py test_properties.py test_trajectories.py \
	solve adjoint linear path ode sde optim nn

gpu-check: $(VENV)  ## Run solvers, paths and programs on an accelerator and time the points there; DEVICE=cuda
	@$(BIN)/python -c 'import torch; torch.zeros(1, device="$(DEVICE)")'
	@$(BIN)/pytest -q -n 2 --device $(DEVICE) $(addprefix tests/, $(PARTS))
	@$(BIN)/python -m benchmarks.points --device $(DEVICE) --output benchmarks/GPU.md

docs: $(VENV)  ## Build the documentation into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict # with --quiet it would not see its own warnings

docs-check: docs $(DRIVER)  ## Read every page of the documentation in Chromium, minutes; says so where there is none
	@$(BIN)/python -m tests.browser

format: $(VENV)  ## Lay out the code, and mend what the linter can
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

clean:  ## Remove what was built or cached here; .venv stays
	rm -rf build dist site runs lightning_logs .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# torch goes first and pinned: the second install must find it there, not choose another.
$(VENV): pyproject.toml
	@echo '== .venv: $(PYTHON), $(TORCH)'
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install -q --disable-pip-version-check $(TORCH)
	@echo '== .venv: torchimplicit and its extras'
	@$(BIN)/pip install -q --disable-pip-version-check $(TORCH) -e '.[optim,imaging,train,dev,bench,docs]'
	@touch $@

# Where they do not install, the benchmark says so in their place.
$(PEERS): $(VENV)
	@echo '== .venv: peers of the benchmark'
	@$(BIN)/pip install -q --disable-pip-version-check $(TORCH) -e '.[peers]' && touch $@ || true

# What drives a browser is of no use, and 40 MB, where there is none.
$(DRIVER): $(VENV)
	@$(if $(BROWSER),$(BIN)/pip install -q --disable-pip-version-check $(TORCH) -e '.[browser]' && touch $@)
