#!/usr/bin/env bash
# run.sh [PATTERN]: the benches on Apache Kafka, each row beside the copy loop and the bare loop in the same run; rows whose
# name matches PATTERN. Specification and how to read the figures: docs/benchmarks.md.
#
# Needs MODELS, a folder with mlp.onnx (W0: input x [n, 32], output p [n, 1]) and lgb.onnx (W1: input x [n, 22], output
# probabilities [n, 2]). Builds in release, which takes long the first time.
set -euo pipefail
cd "$(dirname "$0")/.."
want=${1:-.}
: "${MODELS:?a folder with mlp.onnx and lgb.onnx}"
MODELS=$(realpath "$MODELS")
export MODELS
deploy/prerequisites.sh rust java
cargo build --release --locked --workspace
bin=$(realpath "${CARGO_TARGET_DIR:-target}")/release
ORT_DYLIB_PATH=$(deploy/onnxruntime.sh)
export ORT_DYLIB_PATH
work=$(mktemp -d)
export LOG=$work/log STATE=$work/state
started=
stop() {
  [ -z "$started" ] || deploy/kafka.sh clean
  rm -rf "$work"
}
trap stop EXIT
if [ -z "${KAFKA_BROKERS:-}" ]; then
  KAFKA_BROKERS=$(KAFKA_HEAP=1g deploy/kafka.sh up)
  started=yes
fi
export KAFKA_BROKERS

row() { # NAME KEYS LEGS COMMAND...
  [[ $1-$2 =~ $want ]] || return 0
  rm -rf "$STATE"
  SAMPLE=${SAMPLES:+$SAMPLES/$1-$2.jsonl} timeout 900 "$bin/bench" "$@" || { tail -5 "$LOG"; return 1; }
}
throughput=T600000,T500000,T500000
latency=L2000x20,L10000x20,L30000x20
row copy 1000 $throughput,$latency "$bin/bare" copy
row bare-w0 1000 $throughput "$bin/bare" w0
row millstream-w0 1000 $throughput "$bin/millstream" run benches/kafka/w0.yaml
row bare-w1 1000 $throughput,$latency "$bin/bare" w1
row millstream-w1 1000 $throughput,$latency "$bin/millstream" run benches/kafka/w1.yaml
row bare-w1 100000 $throughput "$bin/bare" w1
row millstream-w1 100000 $throughput "$bin/millstream" run benches/kafka/w1.yaml
