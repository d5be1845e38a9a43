#!/usr/bin/env bash
# test.sh [ARGUMENTS OF cargo test]: installs what the tests need, starts Apache Kafka and a store that speaks the protocol of S3,
# runs every test, stops what it started. KAFKA_BROKERS=host:port and S3_ENDPOINT=http://host:port use running ones instead; the
# store has a bucket `millstream`.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${MILLSTREAM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/millstream}
export MILLSTREAM_CACHE=$cache
parts=(rust python java)
# Who runs some of the tests only (`deploy/test.sh -- --skip kafka::hosts`) need not be root.
[ $# -gt 0 ] || parts+=(hosts disks)
deploy/prerequisites.sh "${parts[@]}"
if [ $# -eq 0 ] && ! deploy/loop.sh; then
  echo "test.sh: a file can't be mounted here (a container without loop devices?): the tests that lose power are left out" >&2
  set -- -- --skip kafka::chaos::power
fi
started= store_started=
stop() {
  [ -z "$started" ] || deploy/kafka.sh clean
  [ -z "$store_started" ] || deploy/s3.sh clean
}
trap stop EXIT
if [ -z "${KAFKA_BROKERS:-}" ]; then
  KAFKA_BROKERS=$(deploy/kafka.sh up)
  export KAFKA_BROKERS
  started=yes
fi
if [ -z "${S3_ENDPOINT:-}" ]; then
  S3_ENDPOINT=$(deploy/s3.sh up)
  export S3_ENDPOINT AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test
  store_started=yes
fi
ORT_DYLIB_PATH=$(deploy/onnxruntime.sh)
deploy/python.sh tests/python/requirements.txt >/dev/null
export ORT_DYLIB_PATH
export FLIGHTS_DATA=${FLIGHTS_DATA:-$cache/flights}
deploy/flights.sh >/dev/null
cargo test --locked --workspace "$@"
