# Every target does its own set-up in .venv; a second call installs nothing.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
SEED   ?= 0

.PHONY: demo test check format docs wheel bench bench-quick parity-timm parity-common

demo: $(STAMP)   ## pretrain a small model without labels, measure it, write runs/demo/report.html
	$(BIN)/opendino demo seed=$(SEED)

test: $(STAMP)   ## the whole test suite on the CPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

check: $(STAMP)  ## format, lint, types, import floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports

format: $(STAMP)  ## rewrite the sources in the house's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: build/docs/.installed  ## the site of the documents in build/site/html: pages, and a reference from the docstrings
	build/docs/bin/python docs/make_site.py

wheel:           ## build wheel and sdist, and use the wheel in an empty environment, outside of the checkout
	PYTHON=$(PYTHON) .ci/wheel

bench: $(STAMP)  ## every table of docs/performance.md and docs/results.md that this machine can make; hours; OPENDINO_PEERS=PYTHON for peers
	$(BIN)/python benchmarks/all.py

bench-quick: $(STAMP)  ## every benchmark in its short form, under a minute each
	$(BIN)/python benchmarks/all.py --quick

# The pins are given by variables, for these reach what the package is built with too: the first in older pips, the
# second from pip 25.3 on.
parity-timm:     ## parity with timm, in an environment of its own: torch and torchvision have to be built for each other
	$(PYTHON) -m venv build/timm
	build/timm/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]" torchvision==0.28.0 timm==1.0.31
	build/timm/bin/python -c "import torchvision"
	OMP_NUM_THREADS=1 build/timm/bin/python -m pytest tests/parity -k timm -q

parity-common:   ## transformers' own common tests against opendino.hf, in an environment of its own; takes minutes
	$(PYTHON) -m venv build/common
	build/common/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]" parameterized
	build/common/bin/python -m pip download --quiet --no-deps --no-binary transformers --dest build/common transformers==5.23.0
	tar -xf build/common/transformers-5.23.0.tar.gz -C build/common
	TRANSFORMERS_SOURCE=build/common/transformers-5.23.0 build/common/bin/python -m pytest --noconftest -c /dev/null tests/parity/transformers_common.py -q

# The site reads the sources without importing them, so its tools need no torch.
build/docs/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv build/docs
	$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' > build/docs/wanted.txt
	build/docs/bin/python -m pip install --quiet --constraint constraints.txt --requirement build/docs/wanted.txt
	@touch $@

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("opendino needs Python 3.11 or newer, $(PYTHON) is %d.%d; name another with: make PYTHON=python3.11 ..." % v[:2])'
	@echo "installing into $(VENV): torch and what the tests need, some minutes the first time, nothing the next"
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
		$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $(STAMP)
