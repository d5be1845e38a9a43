#!/bin/sh
# Fetches ONNX Runtime's shared library, which Millstream loads at run time, and prints its path. Nothing happens when it
# is there already. The library comes out of the wheel `onnxruntime` on PyPI (MIT licence), so pip is all it needs.
#
#   deploy/onnxruntime.sh                 into $MILLSTREAM_CACHE/onnxruntime, where Millstream looks; MILLSTREAM_CACHE is
#                                         ${XDG_CACHE_HOME:-~/.cache}/millstream if it is not set
#   deploy/onnxruntime.sh DIR             into DIR; then set ORT_DYLIB_PATH to the path it prints
set -eu

version=1.31.1
case "$(uname -s)-$(uname -m)" in
Linux-x86_64)
    platform=manylinux_2_28_x86_64 library=libonnxruntime.so.$version
    sum=fc44112fbe06d7d689c57e11d3862031f64711007e4ee020f8eed5185fd2c1d3 ;;
Linux-aarch64 | Linux-arm64)
    platform=manylinux_2_28_aarch64 library=libonnxruntime.so.$version
    sum=8aa3b76b28c778a2b1dd660d34161adb1d508c9ccd04ff9dc80e26eca5df8467 ;;
Darwin-arm64)
    platform=macosx_14_0_arm64 library=libonnxruntime.$version.dylib
    sum=d586cbe89effc085a09d3341b3cfbd5c322517f9d397aeb20814af21433f2b36 ;;
*)
    echo "onnxruntime.sh: no library for $(uname -s) $(uname -m); install ONNX Runtime $version yourself and set ORT_DYLIB_PATH" >&2
    exit 1 ;;
esac

folder=${1:-${MILLSTREAM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/millstream}/onnxruntime}
target=$folder/$library

sha256() {
    if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1
}
intact() { [ -f "$1" ] && [ "$(sha256 "$1")" = "$sum" ]; }

if intact "$target"; then
    echo "$target"
    exit 0
fi

python=$(command -v python3 || command -v python) || {
    echo "onnxruntime.sh: python3 with pip is needed to fetch the wheel" >&2
    exit 1
}
mkdir -p "$folder"
work=$(mktemp -d "$folder/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT INT TERM

# The library is the same in the wheels of all Python versions; one is named so that any Python may fetch it.
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp \
    --python-version 3.12 --abi cp312 --platform "$platform" --dest "$work" "onnxruntime==$version" >&2
"$python" - "$work" "$library" <<'PYTHON'
import pathlib, sys, zipfile

work, library = pathlib.Path(sys.argv[1]), sys.argv[2]
wheel = next(work.glob("onnxruntime-*.whl"))
with zipfile.ZipFile(wheel) as archive:
    (work / library).write_bytes(archive.read("onnxruntime/capi/" + library))
PYTHON

if ! intact "$work/$library"; then
    echo "onnxruntime.sh: the fetched $library has SHA-256 $(sha256 "$work/$library"), expected $sum; nothing was installed" >&2
    exit 1
fi
chmod 755 "$work/$library"
mv -f "$work/$library" "$target"
echo "$target"
