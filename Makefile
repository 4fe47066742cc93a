# make demo   install into .venv and train a character model with torch.nn and with fused_rnn
# make test   install into .venv-test and run every test, the linters and the type checker
# make wheel  one wheel in dist/, for every Python and every PyTorch from 2.10 on
PYTHON ?= python3
# Pinned so that every machine tests the same PyTorch; TORCH=torch takes the newest.
TORCH ?= torch==2.13.0

NATIVE := $(shell find csrc -name '*.h' -o -name '*.cpp') setup.py pyproject.toml
PIP := bin/python -m pip --quiet --disable-pip-version-check

.PHONY: demo test lint format wheel clean

demo: .venv/installed
	.venv/bin/python examples/char_lm.py

test: .venv-test/installed lint
	.venv-test/bin/python -m pytest -q

lint: .venv-test/installed
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check --quiet .
	find csrc tests -name '*.h' -o -name '*.cpp' | xargs .venv-test/bin/clang-format --dry-run -Werror
	.venv-test/bin/mypy

format: .venv-test/installed
	.venv-test/bin/ruff check --fix .
	.venv-test/bin/ruff format .
	find csrc tests -name '*.h' -o -name '*.cpp' | xargs .venv-test/bin/clang-format -i

wheel: .venv/ready
	PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/$(PIP) wheel --no-build-isolation --no-deps --wheel-dir dist .

clean:
	rm -rf .venv .venv-test build dist *.egg-info fused_rnn/_C.so

# An environment with what the build needs.
%/ready:
	@echo "setting up $* with $(TORCH)"
	$(PYTHON) -m venv $*
	$*/$(PIP) install "$(TORCH)" "setuptools>=77" wheel ninja numpy
	touch $@

.venv/installed: .venv/ready $(NATIVE) $(wildcard fused_rnn/*.py) examples/requirements.txt
	.venv/$(PIP) install -r examples/requirements.txt
	PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/$(PIP) install --no-build-isolation --no-deps --force-reinstall .
	touch $@

# The tests run on a build whose memory is full of NaN. It is editable, so that the checkout's Python is what is tested.
.venv-test/installed: .venv-test/ready $(NATIVE)
	PATH="$(CURDIR)/.venv-test/bin:$$PATH" FUSED_RNN_POISON=1 \
	  .venv-test/$(PIP) install --no-build-isolation --editable ".[test,lint]"
	touch $@
