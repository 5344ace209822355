# make run · make test · make lint · make bench · make server · make deploy · make worker · make clean

PYTHON ?= python3
VENV ?= .venv
FLOW ?= document_digest
POOL := fastroai
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

export DOCS
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: run test lint bench server deploy worker install clean

run: $(INSTALLED)  # FLOW=document_digest|licence_review, DOCS=path or URI
	@$(BIN)/fastroai run flows.$(FLOW):pipeline $(if $(DOCS),"documents=$$DOCS")

test: $(INSTALLED)
	@$(BIN)/python -m pytest -q -n 2

lint: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(INSTALLED)
	@$(BIN)/python -m benchmarks

server: $(INSTALLED)
	@$(BIN)/prefect server start

deploy: $(INSTALLED)
	@$(BIN)/prefect work-pool inspect $(POOL) >/dev/null 2>&1 \
		|| $(BIN)/prefect --no-prompt work-pool create --type process $(POOL)
	@PWD="$(CURDIR)" $(BIN)/prefect --no-prompt deploy --all

worker: $(INSTALLED)
	@$(BIN)/prefect worker start --pool $(POOL)

install: $(INSTALLED)

# pip 25.1 is the first that knows dependency groups.
$(INSTALLED): pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (once, a minute or two) …"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable . --group dev
	@touch $@

clean:
	rm -rf $(VENV) .bench .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
