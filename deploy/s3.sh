#!/usr/bin/env bash
# A store that speaks the protocol of S3 on loopback, for tests and trying things out: moto's server, from its Python packages.
# It keeps everything in memory, checks no passwords, and does honour `If-None-Match`. Needs python3 with venv.
#
#   deploy/s3.sh up        start (installing what is missing), make the bucket `millstream`, and print the address; a running
#                          server is left alone
#   deploy/s3.sh down      stop; the data is gone. `clean` also deletes the log
#   deploy/s3.sh status    print whether it runs; fails if it does not
#   deploy/s3.sh address   print the address
#   deploy/s3.sh pause     stop answering, with the data kept; `resume` goes on
#
# Variables, with their defaults:
#   S3_PORT=19090        its port
#   S3_DIR               log and process id; ${TMPDIR:-/tmp}/millstream-s3-$UID-$S3_PORT
# PYTHON and PYTHON_CACHE: see deploy/python.sh.
set -euo pipefail

HERE=$(cd "$(dirname "$0")" && pwd)
PORT=${S3_PORT:-19090}
DIR=${S3_DIR:-${TMPDIR:-/tmp}/millstream-s3-$UID-$PORT}
START_SECONDS_MAX=60

fail() { echo "s3.sh: $*" >&2; exit 1; }
address() { echo "http://127.0.0.1:$PORT"; }
pid() { cat "$DIR/pid" 2> /dev/null; }

# True if the server runs: the process id may be a stranger's by now, so its command line must name our port.
running() {
  local pid
  pid=$(pid) || return 1
  tr '\0' ' ' 2> /dev/null < "/proc/$pid/cmdline" | grep -qF "moto.server -H 127.0.0.1 -p $PORT"
}

# Makes the bucket, and makes an object twice if it is absent: the second time must be refused, or no test would mean anything.
prepare() {
  "$1" - "$(address)" << 'PYTHON'
import sys, urllib.error, urllib.request

opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

def put(path, **headers):
    headers["Authorization"] = "AWS4-HMAC-SHA256 Credential=test/20200101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
    request = urllib.request.Request(sys.argv[1] + path, data=b"", method="PUT", headers=headers)
    try:
        return opener.open(request, timeout=10).status
    except urllib.error.HTTPError as error:
        return error.code

put("/millstream")
first, second = (put("/millstream/s3.sh", **{"If-None-Match": "*"}) for _ in range(2))
if first not in (200, 412) or second != 412:
    sys.exit(f"conditional puts do not work: {first}, then {second}")
PYTHON
}

up() {
  local python
  python=$("$HERE/python.sh" "$HERE/s3.txt")
  mkdir -p "$DIR"
  if ! running; then
    if (exec 3<> "/dev/tcp/127.0.0.1/$PORT") 2> /dev/null; then
      fail "port $PORT is taken by another program; choose another with S3_PORT"
    fi
    nohup "$python" -m moto.server -H 127.0.0.1 -p "$PORT" > "$DIR/log" 2>&1 < /dev/null &
    echo $! > "$DIR/pid"
  fi
  local deadline=$((SECONDS + START_SECONDS_MAX))
  until (exec 3<> "/dev/tcp/127.0.0.1/$PORT") 2> /dev/null; do
    # A process that was just started has not got its command line yet.
    kill -0 "$(pid)" 2> /dev/null || { tail -5 "$DIR/log" >&2; fail "the server stopped; its log is $DIR/log"; }
    [ "$SECONDS" -lt "$deadline" ] || { tail -5 "$DIR/log" >&2; fail "the server is not up after ${START_SECONDS_MAX}s; its log is $DIR/log"; }
    sleep 0.2
  done
  prepare "$python" || fail "the server does not do what the tests need; its log is $DIR/log"
  address
}

down() {
  running || return 0
  local pid
  pid=$(pid)
  kill -CONT "$pid"
  kill "$pid"
  for _ in $(seq 50); do running || break; sleep 0.1; done
  if running; then kill -9 "$pid"; fi
  rm -f "$DIR/pid"
}

command=${1:-help}
case $command in
  up) up ;;
  down) down ;;
  clean) down; rm -rf "$DIR" ;;
  status) if running; then echo "the store runs at $(address)"; else echo "the store does not run"; exit 1; fi ;;
  address) address ;;
  pause) running || fail "the store does not run"; kill -STOP "$(pid)" ;;
  resume) running || fail "the store does not run"; kill -CONT "$(pid)" ;;
  *) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; [ "$command" = help ] || exit 2 ;;
esac
