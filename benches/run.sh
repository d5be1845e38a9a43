#!/usr/bin/env bash
# run.sh [PATTERN]: the benches on Apache Kafka, each row beside the copy loop and the bare loop in the same run; rows whose
# name matches PATTERN, a regular expression. At the end they stand beside each other, with what is aimed at. Specification and how
# to read the figures: docs/benchmarks.md.
#
# The results of every row are held against tests/python/recompute_workloads.py.
#
# Variables, with their defaults:
#   BIN                    a folder with the binaries millstream, bench and bare; without it they are built in release, which
#                          takes long the first time
#   MODELS=benches/kafka   a folder with mlp.onnx (W0: input x [n, 32], output p [n, 1]) and lgb.onnx (W1: input x [n, 22],
#                          output probabilities [n, 2])
#   KAFKA_BROKERS          a running broker; without it one is started on KAFKA_PORT
#   THROUGHPUT, LATENCY    legs, separated by commas
#   RECOVERY               legs that kill the system
#   EPOCH=50ms             epochs of the exactly-once rows
#   HTTP=off               where the job serves its metrics: 127.0.0.1:9464, say
#   ISOLATION=read_committed   how their reader reads; read_uncommitted shows what waits for nobody
set -euo pipefail
cd "$(dirname "$0")/.."
want=${1:-.}
MODELS=$(realpath "${MODELS:-benches/kafka}")
export MODELS
if [ -n "${BIN:-}" ]; then
  deploy/prerequisites.sh python java
  bin=$(realpath "$BIN")
else
  deploy/prerequisites.sh rust python java
  cargo build --release --locked --workspace
  bin=$(realpath "${CARGO_TARGET_DIR:-target}")/release
fi
ORT_DYLIB_PATH=$(deploy/onnxruntime.sh)
export ORT_DYLIB_PATH
python=$(deploy/python.sh tests/python/requirements.txt)
work=$(mktemp -d)
export LOG=$work/log STATE=$work/state SAMPLE=$work/sample.jsonl
: >"$work/rows"
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
if [ -n "$started" ]; then
  # A broker that has just started compiles itself while it works: latencies are twice as long then.
  echo "warming the broker up" >&2
  for _ in 1 2; do
    timeout 900 "$bin/bench" warm 1000 T500000,T500000,L10000x10 "$bin/bare" copy >/dev/null
  done
fi

row() { # NAME KEYS LEGS COMMAND...
  [[ $1-$2 =~ $want ]] || return 0
  rm -rf "$STATE"
  timeout 900 "$bin/bench" "$@" | tee -a "$work/rows" || { tail -5 "$LOG"; return 1; }
  [[ $1 =~ -w[01]$ ]] || return 0
  # Results of the first million events are kept.
  count=$(tr , '\n' <<<"$3" | awk -F '[TLKx]' '{ n += /^T/ ? $2 : $2 * $3 } END { print n < 1000000 ? n : 1000000 }')
  "$python" tests/python/recompute_workloads.py check "${1##*-}" "$SAMPLE" --models "$MODELS" \
    --keys "$2" --count "$count" --every 97
}
throughput=${THROUGHPUT:-T600000,T500000,T500000,T500000}
latency=${LATENCY:-L2000x20,L10000x20,L30000x20}
recovery=${RECOVERY:-T300000,K5000x8,K5000x8,K5000x8}
row copy 1000 "$throughput,$latency" "$bin/bare" copy
row bare-w0 1000 "$throughput" "$bin/bare" w0
row millstream-w0 1000 "$throughput" "$bin/millstream" run benches/kafka/w0.yaml
row bare-w1 1000 "$throughput,$latency" "$bin/bare" w1
row millstream-w1 1000 "$throughput,$latency" "$bin/millstream" run benches/kafka/w1.yaml
# Exactly once: the reader waits for commits. The rows before are at least once, like the bare loop.
(
  export DELIVERY=exactly_once EPOCH=${EPOCH:-50ms} ISOLATION=${ISOLATION:-read_committed}
  row exactly-once-w1 1000 "$throughput,$latency" "$bin/millstream" run benches/kafka/w1.yaml
  row exactly-once-w1 100000 "$throughput,$latency" "$bin/millstream" run benches/kafka/w1.yaml
  row recovery-w1 1000 "$recovery" "$bin/millstream" run benches/kafka/w1.yaml
  row recovery-w1 100000 "$recovery" "$bin/millstream" run benches/kafka/w1.yaml
  row recovery-w1 1000000 "${RECOVERY:-T3000000,K5000x8,K5000x8,K5000x8}" "$bin/millstream" run benches/kafka/w1.yaml
)
# What checkpoints cost: one each 50 ms, and none within the run. Nobody waits for them.
for epoch in 50ms 10m; do
  EPOCH=$epoch row "checkpoints-$epoch-w1" 1000000 "T3000000,${LATENCY:-L50000x20,L50000x20}" \
    "$bin/millstream" run benches/kafka/w1.yaml
done
row bare-w1 100000 "$throughput" "$bin/bare" w1
row millstream-w1 100000 "$throughput" "$bin/millstream" run benches/kafka/w1.yaml
echo
"$bin/bench" ratios "$work/rows"
