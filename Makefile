# Every task of the repository. `make` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: chart help install venv tools build stack stack-down demo test test-rust test-system lint fmt mutate soak drill crash-matrix bench-drain bench-produce bench-peers bench-scaling bench-limits bench-replicas bench-live bench-load bench-memory bench-leaves bench-check deny clean

help: ## List the tasks
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

install: ## Install what is missing: system packages, Kafka's jars
	dev/install

venv: ## Python tools of tests and demo, in target/venv
	dev/venv test

tools: install venv ## Parts that are not ours, for the system tests: versitygw, Apicurio, toxiproxy, promtool, helm
	dev/versitygw
	dev/toxiproxy
	dev/apicurio
	dev/promtool
	dev/chart-tools
	dev/sbom-tools

build: install ## Build the worker and the local S3 server (debug profile)
	cargo build --locked --bins --example s3

stack: build ## Start Kafka, Postgres, S3 and a registry; addresses in target/stack/env
	dev/stack up

stack-down: ## Stop the local stack
	dev/stack down

demo: ## The main job, end to end, in a few minutes; KEEP=1 leaves the stack up
	dev/demo

test: install ## Install what is missing and run every test
	.ci/test

test-rust: install ## Only the Rust tests
	cargo test --locked

test-system: build tools ## Only the system tests, against a real stack
	target/venv/bin/python -m pytest tests/system

chart: build venv ## Lint, render, validate and test the helm chart and the image's root
	dev/chart-tools
	dev/sbom-tools
	target/venv/bin/python -m pytest tests/chart

lint: ## Formatting and clippy, warnings are errors
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings

fmt: ## Format
	cargo fmt

mutate: build tools ## Take every protection out, one at a time: a test must notice (hours; ONLY="id …" for some)
	dev/mutate $(if $(ONLY),--only $(ONLY))

soak: build tools ## Workers under random faults for 15 minutes; ARGS="--seed 7 --minutes 3"
	dev/soak $(ARGS)

drill: build tools ## The long run: 1,000,000 events under kills, restarts and outages, judged by the checker
	FEED_TEST_EVENTS=1000000 target/venv/bin/python -m pytest tests/system/test_kills.py tests/system/test_main_job.py

crash-matrix: build tools ## 1,000 process kills at the failpoints' later hits, judged by the checker; writes docs/records/
	dev/crash --record docs/records/crash-matrix-$$(date -u +%F).json

bench-drain: install ## Drain 2,000,000 events into both sinks (release build), beside a plain Python worker
	benches/drain/run

bench-produce: install ## How long a producer waits for its acknowledgement, at four loads and with brokers killed (release build)
	benches/produce_latency/run

bench-peers: install ## The same topic drained by the worker, plain Python, Flink SQL and Kafka Connect, whole and killed half-way; ARGS=--latency: and followed at 5,000 events/s
	benches/peers/run $(ARGS)

bench-scaling: install ## What an event costs by partitions, lanes, batches, JSON, bad events and size
	benches/scaling/run

bench-limits: install ## What poll, decode, COPY and Parquet can do alone, beside the whole worker
	benches/limits/run

bench-replicas: install ## One to six workers on 6 and 24 partitions, rows on one and on two Postgres servers
	benches/replicas/run

bench-live: install ## At 5,000 events/s: how long until a row is visible; a start, a rebalance, a kill
	benches/live/run

bench-load: install ## Latency and CPU from 500 events/s until the worker no longer keeps up; ARGS="--record FILE", then benches/load/draw
	benches/load/run $(ARGS)

bench-memory: install ## How much memory a worker with 64 partitions takes; an hour: benches/memory/run --minutes 60
	benches/memory/run

bench-leaves: install ## What one event costs in each leaf, by the clock (criterion)
	cargo bench --locked --bench leaves

bench-check: install ## What one event costs in each leaf, in instructions, held to benches/instructions.json
	benches/check

deny: ## Licences, sources and duplicates of the dependencies (needs cargo-deny)
	cargo deny check bans licenses sources

clean: ## Remove everything that was built
	-dev/stack down
	rm -rf target
