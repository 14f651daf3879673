# Every target sets up what it needs in .venv. PYTHON=python3.12 chooses the interpreter, ARGS="..." is passed through.
PYTHON ?= python3
ARGS   ?=
VENV   := .venv
RUN    := $(VENV)/bin/python
PIP    := $(RUN) -m pip --disable-pip-version-check -qq

# torch's threads wait asleep: waiting in a loop costs five times the run where another process has one of the cores.
export OMP_WAIT_POLICY ?= passive

DEPENDENCIES := $(VENV)/.dependencies-installed
INSTALLED    := $(VENV)/.fp8sim-installed

GPU_TARGETS := gpu gpu-test gpu-probe gpu-bench

.PHONY: help validate test test-full bench tables figures $(GPU_TARGETS) lint format install clean sanitize fuzz mutants
help:
	@echo "make validate   does the scaling rule hold, and do the kernels compute what they claim?  ARGS=\"--text FILE\""
	@echo "make test       format, lint, types and the fast tests;  make test-full adds the exhaustive ones"
	@echo "make sanitize   tests and fuzzing under AddressSanitizer and UBSan;  make fuzz ARGS=\"--seconds 600\""
	@echo "make mutants    the share of planted faults that the tests notice"
	@echo "make bench      benchmarks;  make tables   measures docs/model-scales.md anew, within the hour"
	@echo "make gpu        on a GPU: tests, probes, benchmarks;  make gpu-test, gpu-probe, gpu-bench  each by itself"
	@echo "make figures    writes the tables of speed anew;  ARGS=\"--add out/gpu\" takes in what a GPU measured"
	@echo "make lint, format, install, clean"

validate: $(INSTALLED)
	@$(VENV)/bin/fp8sim validate $(ARGS)

test: lint
	$(RUN) -m pytest -q -n 2 $(ARGS)

test-full: lint
	$(RUN) -m pytest -q -n 2 -m "" --timeout 3600 $(ARGS)

bench: $(INSTALLED)
	$(RUN) -m benchmarks.run --suite casts $(ARGS)
	$(RUN) -m benchmarks.run --suite quantizers $(ARGS)
	$(RUN) -m benchmarks.mma
	$(RUN) -m benchmarks.scaling
	$(RUN) -m benchmarks.optim
	$(RUN) -m benchmarks.layers

tables: $(INSTALLED)
	$(RUN) -m fp8sim.training.model_scales $(ARGS)
	$(RUN) -m fp8sim.training.paired_runs $(ARGS)
	$(RUN) -m fp8sim.analysis.scales_page

figures: $(INSTALLED)
	$(RUN) -m benchmarks.figures $(ARGS)

# What only a GPU can show, by PYTHON as it is where that has what is needed, otherwise by .venv. OUT=folder,
# PART="names of parts", LIMIT=seconds, FORCE=1, STANDIN=1: see docs/gpu.md.
GPU_OPTIONS = $(if $(OUT),--out "$(OUT)") $(if $(LIMIT),--limit $(LIMIT)) $(if $(FORCE),--force) $(if $(STANDIN),--stand-in) \
    $(if $(PART),--part $(PART))

$(GPU_TARGETS):
	@python="$(PYTHON)"; "$$python" -m benchmarks.gpu --check || { \
	    echo "so .venv is used"; $(MAKE) --no-print-directory install && python="$(RUN)"; } && \
	    "$$python" -m benchmarks.gpu $(subst gpu-,,$(filter-out gpu,$@)) $(GPU_OPTIONS)

# A second build of the package, in build/sanitize, in front of the installed one. -P keeps the sources out of its way.
SANITIZERS      := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -O1 -g1
RUNTIMES        := libasan.so libubsan.so libstdc++.so
RUN_SANITIZED    = LD_PRELOAD="$(foreach name,$(RUNTIMES),$(shell g++ -print-file-name=$(name)))" PYTHONMALLOC=malloc \
    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=build/sanitize:tests $(RUN) -P
SANITIZED_TESTS := test_fuzz.py test_casting.py test_known_faults.py test_random_bits.py test_loops.py

build/sanitize/.built: $(INSTALLED)
	@echo "building fp8sim with $(SANITIZERS) ..."
	@FP8SIM_CUDA=0 FP8SIM_CXXFLAGS="$(SANITIZERS)" $(RUN) setup.py --quiet build --build-lib build/sanitize \
	    --build-temp build/sanitize-objects 2> build/sanitize.log || { cat build/sanitize.log; exit 1; }
	@touch $@

sanitize: fuzz
	$(RUN_SANITIZED) -m pytest -q -p no:cacheprovider $(addprefix tests/,$(SANITIZED_TESTS))

fuzz: build/sanitize/.built
	$(RUN_SANITIZED) tests/fuzz.py $(ARGS)

mutants: $(INSTALLED)
	$(RUN) -W ignore tests/mutants.py $(ARGS)

lint: $(INSTALLED)
	$(RUN) -m ruff format --check --quiet . || { echo "run: make format"; exit 1; }
	$(RUN) -m ruff check --quiet .
	@mkdir -p build/typing/fp8sim && ln -sfn ../../../triton_kernels build/typing/fp8sim/triton_kernels
	$(RUN) -m mypy

format: $(INSTALLED)
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

install: $(INSTALLED)

$(INSTALLED): $(DEPENDENCIES) setup.py $(wildcard csrc/*/*)
	@echo "building fp8sim ..."
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

# triton is pinned apart: a CUDA build of torch brings the triton that it needs, a CPU build brings none. So are libraries
# with which tests and benchmarks compare: they must not bring another torch.
WITNESSES := torchao unit-scaling docstring-parser einops
$(DEPENDENCIES): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("fp8sim needs Python 3.11 or later, and $(PYTHON) is " + sys.version.split()[0] + ": name another one, e.g. make PYTHON=python3.11")'
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@echo "installing the pinned requirements in $(VENV) ..."
	@grep -v $(foreach name,triton $(WITNESSES),-e '^$(name)==') constraints.txt > $(VENV)/requirements.txt
	@$(PIP) install --requirement $(VENV)/requirements.txt
	@$(RUN) -c 'import importlib.util, sys; sys.exit(sys.platform == "linux" and not importlib.util.find_spec("triton"))' \
	    || $(PIP) install "$$(grep '^triton==' constraints.txt)" \
	    || echo "triton is not installable here: the simulator works without it, the Triton kernels are not checked"
	@$(PIP) install --no-deps $$(grep $(foreach name,$(WITNESSES),-e '^$(name)==') constraints.txt) \
	    || echo "$(WITNESSES): not installable here; tests and benchmarks do without their answers"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info fp8sim/*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
