# Two commands do everything on a fresh machine: `make demo` and `make test`. Both install what they need.
# What is installed lies in one cache folder outside the checkout; `make clean-cache` removes it.

export MILLSTREAM_CACHE ?= $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/millstream
# Demo and tests share one target folder and one profile; release is for benches and packages.
CARGO ?= cargo
BIN := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)/debug/millstream

.PHONY: help demo test chaos bench build kafka-up kafka-down s3-up s3-down clean-cache

help: ## show the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

build: ## build the binary
	$(CARGO) build --locked

demo: ## flight delays: the year 2013 of New York's airports, with no broker
	@deploy/demo.sh

test: ## install what the tests need, start it, run every test
	@deploy/test.sh

chaos: ## kill a job on a real broker again and again: KILLS=300 SEED=...
	@KILLS=$${KILLS:-300} deploy/test.sh --test tests -- chaos processes bucket hosts --nocapture

bench: ## measure against the bare loop and the copy loop, on a local broker
	@benches/run.sh

kafka-up: ## start Apache Kafka on 127.0.0.1:19092
	@deploy/kafka.sh up

kafka-down: ## stop it
	@deploy/kafka.sh down

s3-up: ## start a store that speaks the protocol of S3 on 127.0.0.1:19090
	@deploy/s3.sh up

s3-down: ## stop it
	@deploy/s3.sh clean

clean-cache: ## remove what demo and test have installed
	rm -rf "$(MILLSTREAM_CACHE)"
