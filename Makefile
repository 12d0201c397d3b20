BIN := .venv/bin
PACKAGES := edge_client coordinator proto benchmarks tests
BENCHMARKS := demo attacks privacy fleet convergence frontier long links overhead drift exchange codecs faults mixed inference zoo install
# A benchmark's module below benchmarks/, where it is not its name
MODULE_overhead := convergence.overhead
MODULE_drift := convergence.drift
MODULE_codecs := exchange.codecs

.PHONY: help setup demo fetch soak test test-processes test-flower test-zoo test-tasks test-wheel test-executorch test-docker check format proto bench clean distclean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

setup: ## make .venv with everything in it (every other target does it too)
	@.ci/setup

demo: setup ## four devices train a digit recogniser together, then recognise with it
	@$(BIN)/python -m benchmarks.demo $(ARGS)

test: setup ## run the tests, in two processes; ARGS="-k words" picks some
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

test-processes: setup ## the same with coordinators, devices and daemons as processes, which come, go and crash (four minutes)
	$(BIN)/python -m pytest -m processes tests/e2e $(ARGS)

test-flower: setup ## train in Flower's own engines, with devices that come, go and crash (five minutes)
	$(BIN)/python -m pytest -m flower tests/e2e $(ARGS)

test-zoo: setup ## train models that other people wrote, and compare with plain autograd (two minutes)
	$(BIN)/python -m pytest -m zoo tests/zoo $(ARGS)

test-tasks: setup ## train the tasks on data of packages, those that are fetched (one minute; make fetch gets them)
	$(BIN)/python -m pytest -m tasks tests/edge_client/tasks $(ARGS)

test-executorch: setup ## test exports to ExecuTorch, with that extra installed (41 MB are fetched; two minutes)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[executorch]'
	$(BIN)/python -m pytest -k executorch tests/edge_client/inference $(ARGS)

test-wheel: setup ## build the wheel, install it into fresh environments and use it there (three minutes)
	$(BIN)/python -m pytest -m wheel tests/wheel $(ARGS)

fetch: setup ## get the data of all tasks, from packages of Debian and Python (140 MB; one to two minutes)
	$(BIN)/edge-client fetch all $(ARGS)

test-docker: setup ## the same on a fleet of containers, for real (ten minutes; starts a Docker Engine if it can)
	.ci/docker-engine
	$(BIN)/python -m pytest -m docker tests/docker $(ARGS)

check: setup ## style, types, who imports whom, and generated code
	$(BIN)/ruff check $(PACKAGES) examples
	$(BIN)/ruff format --check $(PACKAGES) examples
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	.ci/check-protos

format: setup ## repair the style
	$(BIN)/ruff check --fix $(PACKAGES) examples
	$(BIN)/ruff format $(PACKAGES) examples

.PHONY: docs
docs: setup ## build the documentation as a site, with the API reference, in build/site
	.ci/docs

proto: setup ## generate the code of the messages anew
	.ci/generate-protos

bench: $(BENCHMARKS:%=bench-%) ## run all benchmarks

bench-%: setup
	$(BIN)/python -m benchmarks.$(or $(MODULE_$*),$*) $(ARGS)

soak: setup ## 64 devices join, leave, die and misbehave for half an hour; ARGS=--quick: for two minutes
	$(BIN)/python -m benchmarks.soak $(ARGS)

clean: ## remove what tools left
	rm -rf runs build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## and .venv
	rm -rf .venv
