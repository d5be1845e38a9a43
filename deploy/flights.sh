#!/usr/bin/env bash
# flights.sh: makes the event streams of the flight-delay topology, if they are not there yet, and prints their folder.
#
#   export FLIGHTS_DATA=$(deploy/flights.sh)
#
# FLIGHTS_DATA names the folder; by default ${XDG_CACHE_HOME:-~/.cache}/millstream/flights.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${MILLSTREAM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/millstream}
exec python3 topologies/flight_delays/prepare.py --out "${FLIGHTS_DATA:-$cache/flights}"
