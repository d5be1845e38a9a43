#!/usr/bin/env bash
# A Python with the packages of a requirements file, made once and kept: prints the path of its interpreter.
#
#   deploy/python.sh tests/python/requirements.txt
#
# Variables, with their defaults:
#   PYTHON=python3     the interpreter to start from, 3.10 or later with venv
#   PYTHON_CACHE       where environments are kept, one for each content of a requirements file; $MILLSTREAM_CACHE/python
#   MILLSTREAM_CACHE   ${XDG_CACHE_HOME:-~/.cache}/millstream
set -euo pipefail

fail() { echo "python.sh: $*" >&2; exit 1; }
[ $# -eq 1 ] && [ -r "$1" ] || fail "give a requirements file that can be read, not '$*'"

PYTHON=${PYTHON:-python3}
CACHE=${PYTHON_CACHE:-${MILLSTREAM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/millstream}/python}
"$PYTHON" -c 'import sys, venv; sys.exit(sys.version_info < (3, 10))' || fail "$PYTHON must be Python 3.10 or later with venv; set PYTHON"
name=$({ "$PYTHON" --version; cat "$1"; } | sha256sum | cut -c1-16)
home=$CACHE/$name

if [ ! -d "$home" ]; then
  # Installed beside its place and renamed: a half-made environment is never taken for a whole one. An environment
  # that is moved keeps working as long as its interpreter is called by path.
  mkdir -p "$CACHE"
  fresh=$(mktemp -d "$CACHE/.$name.XXXXXX")
  trap 'rm -rf "$fresh"' EXIT
  "$PYTHON" -m venv "$fresh" >&2
  "$fresh/bin/python" -m pip install --quiet --disable-pip-version-check -r "$1" >&2 || fail "can't install $1"
  mv -T "$fresh" "$home" 2>/dev/null || [ -d "$home" ] || fail "can't make $home"
fi
echo "$home/bin/python"
