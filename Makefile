# Two commands do everything on a fresh machine: `make demo` and `make test`. Plain `make` lists the targets.

VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
UV_VERSION := 0.13.9
LOCK := requirements.lock
# Cores for the workflow, e.g. `make demo CORES=4`.
CORES ?= all
# Of `make evidence`.
SET ?= demo
SEEDS ?= 1 2 3
CONFIGFILES ?=
KILLS ?= 100
# The interpreter that makes the environment: the first that is new enough and not newer than the locked wheels.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null \
	&& echo $$python && break; done)

# The stamp is named after what it was installed from: a new lock means a new stamp, a fresh checkout of the same
# lock does not, and an install that is cut short leaves none.
STAMP := $(VENV)/.installed-$(shell { echo uv $(UV_VERSION); cat $(LOCK); } | cksum | cut -d ' ' -f 1)
PIP_SYNC := $(UV) pip sync --quiet --python $(BIN)/python --compile-bytecode

# uv, pip and Snakemake keep caches in the home folder; where none can be written, they go here.
ifneq ($(shell test -w "$$HOME" && echo writable),writable)
export XDG_CACHE_HOME ?= $(CURDIR)/.cache
endif

.DEFAULT_GOAL := help
.PHONY: help env demo test evidence kill-test test-gpu test-slurm test-conda lint format lock clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F '|' '{ printf "  make %-10s %s\n", $$1, $$2 }'

env: $(STAMP) ## Set up .venv with the locked versions (every other target does this first)

demo: env ## Draw the demo photos and run the workflow to results/submission.csv, report.html and model/
	$(BIN)/snakemake --cores $(CORES)

test: env ## Run the tests; PYTEST_ARGS="-k name" passes options on
	@# In the order of tests/conftest.py, which begins with what takes longest.
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-gpu: env ## Compare training and inference on a GPU with the CPU; skipped without one
	$(BIN)/python -m pytest -m gpu -rs tests/test_gpu.py $(PYTEST_ARGS)

test-slurm: env ## Install SLURM on this machine (Debian, as root) and run the tiny workflow through it, with faults
	$(BIN)/python -m pytest -m slurm -rs tests/slurm $(PYTEST_ARGS)

test-conda: env ## Run a chain of stages in conda environments; needs conda on the PATH
	$(BIN)/python -m pytest -m conda -rs tests/test_conda.py $(PYTEST_ARGS)

evidence: env ## Compare with baselines and ablations on SET (a name for CONFIGFILES), over SEEDS (1 2 3); hours on CPUs
	@# RECIPES="layerwise two_stage" trains references by these recipes; by the first of the model if it is not given.
	@# REFERENCES="long naive" and ABLATIONS="no_filter" run these alone, "none" none; all if they are not given.
	@# TABLES=folder: where the tables go, and the page beside it; docs/evidence if it is not given.
	$(BIN)/snakemake -s benchmarks/accuracy/evidence.smk --cores $(CORES) \
		--directory benchmarks/output/evidence/$(SET) --config set="$(SET)" seeds="$(SEEDS)" \
		configfiles="$(abspath $(CONFIGFILES))" $(if $(RECIPES),recipes="$(RECIPES)") \
		$(if $(REFERENCES),references="$(REFERENCES)") $(if $(ABLATIONS),ablations="$(ABLATIONS)") \
		$(if $(TABLES),tables="$(abspath $(TABLES))")

kill-test: env ## Kill the tiny workflow KILLS times (100) and compare all files with an undisturbed run; half an hour
	$(BIN)/python -m tests.kill_run --kills $(KILLS) --seed 1

lint: env ## Check style, formatting, rules and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow benchmarks
	@# In a folder without results, which may be of other photos than the demo's.
	$(BIN)/snakemake --snakefile $(CURDIR)/Snakefile --directory $(VENV) --lint
	$(BIN)/mypy fieldmark workflow/scripts $(wildcard benchmarks/*.py benchmarks/*/*.py)

format: env ## Rewrite Python and rule files in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow benchmarks

lock: env ## Pin every dependency anew after an edit of requirements*.txt
	$(UV) pip compile --quiet --universal --python-version 3.11 --overrides overrides.txt --no-emit-index-url \
		--annotation-style line --custom-compile-command "make lock" --output-file $(LOCK) \
		requirements.txt requirements-dev.txt

clean: env ## Delete what the workflow made with config.yaml, file by file; other files in results/ stay
	$(BIN)/snakemake --cores 1 --delete-all-output

# pillow-simd is compiled on the spot. The probe builds only where that can work (x86-64, and the headers of Python,
# libjpeg and zlib); run, it tells whether the processor has AVX2.
define SIMD_PROBE
#include <Python.h>
#include <stdio.h>
#include <jpeglib.h>
#include <nmmintrin.h>
#include <zlib.h>
int main(void) { return !__builtin_cpu_supports("avx2"); }
endef
export SIMD_PROBE

$(STAMP): PROBE_INCLUDE = $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))')
$(STAMP):
	@test -n "$(PYTHON)" || { echo "fieldmark needs Python 3.11 to 3.14 with its venv module (Debian: python3-venv)." \
		"None was found: install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@if printf '%s\n' "$$SIMD_PROBE" \
		| $(CC) -msse4 -I"$(PROBE_INCLUDE)" -x c - -ljpeg -lz -o $(VENV)/simd-probe 2>$(VENV)/simd-probe.log; then \
		if $(VENV)/simd-probe; then flags="-mavx2"; else flags="-msse4"; fi; \
		echo "Installing $(LOCK); pillow-simd is compiled with $$flags"; \
		CC="$(CC) $$flags" $(PIP_SYNC) --refresh-package pillow-simd $(LOCK); \
	else \
		echo "WARNING: pillow-simd cannot be compiled here (why: $(VENV)/simd-probe.log), so the slower stock Pillow" \
			"of the same version is installed. Debian: apt-get install libjpeg-dev zlib1g-dev python3-dev; then" \
			"rm -r $(VENV) and make env." >&2; \
		sed 's/^pillow-simd==\([0-9.]*\)\.post[0-9]*/pillow==\1/' $(LOCK) >$(VENV)/stock-pillow.txt; \
		$(PIP_SYNC) $(VENV)/stock-pillow.txt; \
	fi
	@rm -f $(VENV)/.installed-*
	@touch $@
