# One entry point for people and for CI. `make help` lists the targets.
PYTHON  ?= python3
VENV    ?= .venv
PIP_ARGS ?=
EXTRAS  ?= aws,bench,dev
BIN     := $(VENV)/bin
# As the settings do: the shell wins over .env, .env over the default.
FROM_ENV := $(patsubst ~/%,$(HOME)/%,$(shell sed -n "s/^QUANT_HOME=[\"']*\([^\"' \#]*\).*/\1/p" .env 2>/dev/null | tail -1))
export QUANT_HOME ?= $(if $(filter /%,$(FROM_ENV)),$(FROM_ENV),$(CURDIR)/$(or $(FROM_ENV),.quant))

.DEFAULT_GOAL := help
.PHONY: help setup check demo chain posterior calibrate agents backtest deploy endpoints drift-demo test test-slow lint format dev mlflow bench clean

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  \033[1m%-10s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The stamp depends on what decides the environment, so a changed lock installs again and nothing else does.
$(VENV)/.installed: pyproject.toml requirements.lock
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time) ..."
	@# torch first and alone, so that pip settles on its CPU build before anything else asks for a torch
	@$(BIN)/python -m pip install -q $(PIP_ARGS) -c requirements.lock "$$(grep '^torch==' requirements.lock)"
	@$(BIN)/python -m pip install -q $(PIP_ARGS) -c requirements.lock -e ".[$(EXTRAS)]"
	@touch $@

setup: $(VENV)/.installed ## create the environment from requirements.lock

check: $(VENV)/.installed ## what your settings lead to: source, symbols, sessions, quota, storage, endpoints; one request to a vendor
	@$(BIN)/quant check

demo: $(VENV)/.installed ## run the whole chain on the sample, then five nights, and say what came out
	@$(BIN)/python -m quant_assets.demo

chain: $(VENV)/.installed ## the main job on your own source (FIRST=2022-03-03 LAST=2024-12-31)
	@$(BIN)/python -m quant_assets.launch chain_job $(if $(FIRST),--first $(FIRST)) $(if $(LAST),--last $(LAST))

posterior: $(VENV)/.installed ## Heston posteriors and simulated days, one run per symbol (SYMBOLS=AAPL,IBM)
	@$(BIN)/python -m quant_assets.launch posterior_job $(if $(SYMBOLS),--symbols $(SYMBOLS))

calibrate: $(VENV)/.installed ## simulation-based calibration of the Heston sampler (resumable; about ten minutes on two cores)
	@$(BIN)/python -m quant_assets.launch calibration_job

agents: $(VENV)/.installed ## train and judge the execution, market-making and portfolio agents (a killed training goes on)
	@$(BIN)/python -m quant_assets.launch train_agents_job

backtest: $(VENV)/.installed ## parameter sweep, every trading rule's backtest, tear sheets (agents: make agents)
	@$(BIN)/python -m quant_assets.launch backtest_job

deploy: $(VENV)/.installed ## put the champions behind their endpoints: preflight, canary, all traffic (CONFIG=run.yaml)
	@$(BIN)/python -m quant_assets.launch deploy_job $(if $(CONFIG),--config $(CONFIG))

endpoints: $(VENV)/.installed ## what the endpoints on this machine are doing (DO=stop ends them, DO=start brings them back)
	@$(BIN)/python -m quant_resources.endpoints $(or $(DO),status)

drift-demo: $(VENV)/.installed ## from model to endpoint and back: drift, redeployment, rollback and kills under traffic
	@$(BIN)/python -m quant_assets.drift_demo

test: $(VENV)/.installed ## run the tests but the longest (PYTEST_ARGS="-k bars" narrows)
	@$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow" $(PYTEST_ARGS)

test-slow: $(VENV)/.installed ## run the longest tests: optima, calibration, whole stories
	@$(BIN)/python -m pytest -n 2 --dist loadgroup -m slow $(PYTEST_ARGS)

lint: $(VENV)/.installed ## formatting, lint, types, import floors
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(VENV)/.installed ## format and fix what can be fixed
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

dev: $(VENV)/.installed ## the Dagster UI with its daemon on QUANT_HOME
	@mkdir -p $(QUANT_HOME)/dagster && cp dagster.yaml $(QUANT_HOME)/dagster/dagster.yaml
	@DAGSTER_HOME=$(QUANT_HOME)/dagster $(BIN)/dagster dev -w workspace.yaml $(DEV_ARGS)

mlflow: $(VENV)/.installed ## the MLflow UI on the same models
	@$(BIN)/mlflow ui --backend-store-uri sqlite:///$(QUANT_HOME)/mlflow.db

bench: $(VENV)/.installed ## every benchmark, each ends in one line of JSON
	@for module in $$(ls benchmarks | sed -n 's/^\([a-z][a-z_]*\)\.py$$/\1/p'); do \
	  echo "== $$module"; $(BIN)/python -m benchmarks.$$module || exit 1; done

clean: ## remove the environment (QUANT_HOME stays)
	@rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
