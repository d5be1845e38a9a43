#!/usr/bin/env bash
# test.sh [ARGUMENTS OF cargo test]: installs what the tests need, starts Apache Kafka, runs every test, stops what it started.
# KAFKA_BROKERS=host:port uses a running broker instead.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${MILLSTREAM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/millstream}
export MILLSTREAM_CACHE=$cache
deploy/prerequisites.sh rust python java
started=
stop() { [ -z "$started" ] || deploy/kafka.sh clean; }
trap stop EXIT
if [ -z "${KAFKA_BROKERS:-}" ]; then
  KAFKA_BROKERS=$(deploy/kafka.sh up)
  export KAFKA_BROKERS
  started=yes
fi
ORT_DYLIB_PATH=$(deploy/onnxruntime.sh)
deploy/python.sh tests/python/requirements.txt >/dev/null
export ORT_DYLIB_PATH
export FLIGHTS_DATA=${FLIGHTS_DATA:-$cache/flights}
deploy/flights.sh >/dev/null
cargo test --locked --workspace "$@"
