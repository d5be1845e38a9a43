#!/usr/bin/env bash
# demo.sh: the flight-delay topology on the year 2013 of New York's three airports, with no broker.
# Needs Rust (with a C compiler, make and OpenSSL's headers) and Python 3 with pip. Installs the rest into the cache folder.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${MILLSTREAM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/millstream}
export MILLSTREAM_CACHE=$cache
deploy/prerequisites.sh rust python
ORT_DYLIB_PATH=$(deploy/onnxruntime.sh)
export ORT_DYLIB_PATH
export FLIGHTS_DATA=${FLIGHTS_DATA:-$cache/flights}
deploy/flights.sh >/dev/null
echo "building millstream (the first build takes some minutes)" >&2
cargo build --locked
bin=${CARGO_TARGET_DIR:-target}/debug/millstream
out=${DEMO_OUT:-$cache/demo}
exec "$bin" replay topologies/flight_delays/topology.yaml --fresh --out "$out" --summary "$out/summary.json" "$@"
