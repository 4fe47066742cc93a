# make demo       install into .venv and train a character model with torch.nn and with fused_rnn
# make check      install into .venv-test; linters, type checker and the quick tests: in a minute, once installed
# make test       the same, and then all other tests
# make bench      install into .venv and measure this machine in two minutes: torch.nn and every peer against fused_rnn
# make wheel      one wheel in dist/, for every Python and every PyTorch from 2.10 on
# make mutants    switch off every barrier of the CUDA kernels, one at a time: a test on the emulator must fail each time
# make fuzz       hostile calls for SECONDS=600, under ASan and UBSan unless SANITIZE=0: an exception or a right answer
# make gpu-check  on a machine with a GPU: everything that only a GPU shows, in seven minutes. Installs nothing.
#                 GPU_CHECK_ARGS=--dry-run shows its stages on a CPU
# CUDA kernels are built where nvcc is; the head of setup.py has the choices. DEMO_ARGS and BENCH_ARGS are further
# arguments of the program that make demo or make bench runs.
PYTHON ?= python3
# Pinned so that every machine tests the same PyTorch; TORCH=torch takes the newest.
TORCH ?= torch==2.13.0

# One for each generation of data centre GPUs that the tests look into; a wheel has all.
TEST_CUDA_ARCHS := $(or $(FUSED_RNN_CUDA_ARCHS),80 90a 100)

CPP := $(shell find csrc tests bench -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
NATIVE := $(filter csrc/%,$(CPP)) setup.py pyproject.toml
PYTHON_FILES := $(wildcard fused_rnn/*.py fused_rnn/triton/*.py fused_rnn/*.csv)
PIP := bin/python -m pip --quiet --disable-pip-version-check

.PHONY: demo bench check test lint format wheel mutants fuzz gpu-check clean

demo: .venv/installed
	.venv/bin/python examples/char_lm.py $(DEMO_ARGS)

bench: .venv/installed
	.venv/$(PIP) install -r bench/requirements.txt
	.venv/bin/python -m bench --quick $(BENCH_ARGS)

# Tests marked `slow` are not for every change. Those marked `alone` need the machine's processors for themselves.
PYTEST := .venv-test/bin/python -m pytest -q
BESIDE := -n auto --maxprocesses 8 --dist loadgroup

check: .venv-test/installed lint
	$(PYTEST) $(BESIDE) -m "not slow and not alone"

test: check
	$(PYTEST) $(BESIDE) -m "slow and not alone"
	$(PYTEST) -m alone

lint: .venv-test/installed
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check --quiet .
	.venv-test/bin/clang-format --dry-run -Werror $(CPP)
	.venv-test/bin/mypy

format: .venv-test/installed
	.venv-test/bin/ruff check --fix .
	.venv-test/bin/ruff format .
	.venv-test/bin/clang-format -i $(CPP)

wheel: .venv/ready
	PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/$(PIP) wheel --no-build-isolation --no-deps --wheel-dir dist .

mutants: .venv-test/installed
	.venv-test/bin/python tests/emu/mutants.py

# The sanitizers' build has a folder of its own. Torch is not instrumented, so leaks are not looked for. UBSan's checks of
# pointers are left out where ASan has its own: they take most of the time of compilation.
FUZZ := build/fuzz
SANITIZE ?= 1
SANITIZERS := -fsanitize=address,undefined -fno-sanitize=vptr,null,object-size -fno-sanitize-recover=undefined
SANITIZED := PYTHONPATH=$(FUZZ) UBSAN_OPTIONS=print_stacktrace=1 \
  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=4096 \
  LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libstdc++.so.6)"

fuzz: .venv-test/installed $(if $(filter 1,$(SANITIZE)),$(FUZZ)/built)
	$(if $(filter 1,$(SANITIZE)),env $(SANITIZED)) .venv-test/bin/python tests/fuzz.py --seconds $(or $(SECONDS),600)

$(FUZZ)/built: .venv-test/ready $(NATIVE) $(PYTHON_FILES)
	PATH="$(CURDIR)/.venv-test/bin:$$PATH" FUSED_RNN_CUDA=0 FUSED_RNN_POISON=1 FUSED_RNN_OBJECTS=$(FUZZ)/objects \
	  CXXFLAGS="$(SANITIZERS) -fno-omit-frame-pointer -g -O1" LDFLAGS="$(SANITIZERS)" \
	  .venv-test/bin/python setup.py --quiet build --build-base $(FUZZ) --build-lib $(FUZZ)
	touch $@

gpu-check:
	$(PYTHON) -m bench.gpu_check $(GPU_CHECK_ARGS)

clean:
	rm -rf .venv .venv-test build dist *.egg-info fused_rnn/_C.so

# An environment with what the build needs.
%/ready:
	@echo "setting up $* with $(TORCH)"
	$(PYTHON) -m venv $*
	$*/$(PIP) install "$(TORCH)" "setuptools>=77" wheel ninja numpy
	touch $@

# No time goes into CUDA kernels where no GPU would run them.
NO_GPU = $(shell test -e /dev/nvidia0 || nvidia-smi >/dev/null 2>&1 || echo 'FUSED_RNN_CUDA=$${FUSED_RNN_CUDA:-0}')

.venv/installed: .venv/ready $(NATIVE) $(PYTHON_FILES) examples/requirements.txt
	.venv/$(PIP) install -r examples/requirements.txt
	PATH="$(CURDIR)/.venv/bin:$$PATH" $(NO_GPU) .venv/$(PIP) install --no-build-isolation .
	touch $@

# The tests run on a build whose memory is full of NaN, and in the checkout's root on the checkout's own Python files: a
# change of these needs no new installation.
# In this build alone, CUDA kernels that spill registers or use local memory are compile errors.
NO_SPILLS := -Xptxas=-warn-spills,-warn-lmem-usage,-Werror
.venv-test/installed: .venv-test/ready $(NATIVE)
	PATH="$(CURDIR)/.venv-test/bin:$$PATH" FUSED_RNN_POISON=1 FUSED_RNN_CUDA_ARCHS="$(TEST_CUDA_ARCHS)" \
	  NVCCFLAGS="$(NO_SPILLS) $$NVCCFLAGS" .venv-test/$(PIP) install --no-build-isolation ".[test,lint]"
	touch $@
