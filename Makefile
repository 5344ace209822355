# make run · make test · make test-long · make test-latest · make lint · make docs · make bench · make up · make down · make server · make deploy · make worker · make clean

PYTHON ?= python3
VENV ?= .venv
FLOW ?= document_digest
POOL := fastroai
LATEST_VENV ?= .venv-latest
DOCS_VENV ?= .venv-docs
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LATEST := $(LATEST_VENV)/.installed
DOCS_INSTALLED := $(DOCS_VENV)/.installed

export DOCS
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: run test test-long test-latest lint docs bench up down server deploy worker install clean

run: $(INSTALLED)  # FLOW=document_digest|licence_review|ticket_triage, DOCS=path or URI, INPUT="field=value …"
	@$(BIN)/fastroai run flows.$(FLOW):pipeline $(if $(DOCS),"documents=$$DOCS") $(INPUT)

# Many tests wait for Prefect's server: four of them at once keep two cores busy. What one worker
# or program compiled, others need not, whatever the shell says.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(INSTALLED)
	@$(BIN)/python -m pytest -q -n 4 --dist worksteal

test-long: $(INSTALLED)  # what takes minutes each: many kills, many random runs, all examples
	@$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "long or hypothesis" \
		--hypothesis-profile whole

test-latest: $(LATEST)  # with the newest of all that pyproject.toml allows, and the newest pydantic-ai
	@$(LATEST_VENV)/bin/python -m pytest -q -n 2 --dist worksteal $(TESTS)

lint: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

docs: $(DOCS_INSTALLED)  # the site, into site/; every link and reference in it is checked
	@NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict --quiet

bench: $(INSTALLED)  # ONLY=ledger,metering: some of its parts; nothing is written to RESULTS.md then
	@$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY))

up: $(INSTALLED)  # Prefect, S3, ledger and worker on this machine; all jobs deployed, one run
	@$(BIN)/fastroai up

down: $(INSTALLED)
	@$(BIN)/fastroai down

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

# pydantic-ai is held back by what it bundles: its core is taken by itself, and pip says what no longer fits.
$(LATEST): pyproject.toml
	@echo "Installing into $(LATEST_VENV) …"
	@$(PYTHON) -m venv $(LATEST_VENV)
	@$(LATEST_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(LATEST_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --editable . --group dev
	@$(LATEST_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade \
		'pydantic-ai-slim[anthropic,google,logfire,mcp,openai,web]'
	@$(LATEST_VENV)/bin/python -m pip list --disable-pip-version-check | grep -E '^(prefect|pydantic-ai-slim|genai-prices) '
	@touch $@

# By the pip of the other, which knows dependency groups. What reads the sources needs none of what they import.
$(DOCS_INSTALLED): pyproject.toml constraints.txt | $(INSTALLED)
	@echo "Installing into $(DOCS_VENV) …"
	@$(PYTHON) -m venv --without-pip $(DOCS_VENV)
	@$(BIN)/python -m pip --python $(DOCS_VENV)/bin/python install --quiet --disable-pip-version-check \
		--constraint constraints.txt --group docs
	@touch $@

clean:
	rm -rf $(VENV) $(LATEST_VENV) $(DOCS_VENV) site .bench .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
