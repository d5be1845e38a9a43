#!/usr/bin/env bash
# prerequisites.sh [rust] [python] [java] [hosts] [disks]: checks for what the other scripts can't install themselves, and says how to get it.
set -euo pipefail
missing=()
need() { # COMMAND, WHAT TO INSTALL
  command -v "$1" >/dev/null || missing+=("$1: $2")
}
for part in "$@"; do
  case $part in
    rust)
      need cargo "Rust 1.95 or newer, https://rustup.rs"
      need cc "a C compiler (Debian: apt-get install build-essential)"
      need make "make (Debian: apt-get install build-essential)"
      if ! echo '#include <openssl/ssl.h>' | cc -E - >/dev/null 2>&1; then
        missing+=("openssl/ssl.h: OpenSSL's headers (Debian: apt-get install libssl-dev pkg-config)")
      fi
      if ! echo '#include <zlib.h>' | cc -E - >/dev/null 2>&1; then
        missing+=("zlib.h: zlib's headers (Debian: apt-get install zlib1g-dev)")
      fi
      ;;
    python)
      need python3 "Python 3.9 or newer with pip and venv (Debian: apt-get install python3-pip python3-venv)"
      python3 -m pip --version >/dev/null 2>&1 || missing+=("pip: Python's pip (Debian: apt-get install python3-pip)")
      ;;
    java)
      need java "Java 17 (Debian: apt-get install openjdk-17-jre-headless)"
      need mvn "Maven (Debian: apt-get install maven)"
      ;;
    hosts)
      need ip "network namespaces, for tests with several hosts (Debian: apt-get install iproute2)"
      # To have the command is not enough: it must be allowed to make one.
      space=millstream-$$
      if command -v ip >/dev/null && ! { ip netns add "$space" && ip netns del "$space"; } 2>/dev/null; then
        missing+=("root: \`ip netns add\` is refused, which a test with several hosts does (be root, in a container with --privileged; or leave the test out: deploy/test.sh -- --skip kafka::hosts)")
      fi
      ;;
    disks)
      need mkfs.ext4 "a file system for tests that lose power (Debian: apt-get install e2fsprogs)"
      need mount "\`mount\` (Debian: apt-get install mount)"
      ;;
    *) echo "prerequisites.sh: unknown part \`$part\`; use rust, python, java, hosts, disks" >&2; exit 2 ;;
  esac
done
[ ${#missing[@]} -eq 0 ] && exit 0
# As root on Debian or Ubuntu (a container, a CI machine) the packages are simply installed.
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && [ -z "${PREREQUISITES_TRIED:-}" ]; then
  echo "installing what is missing: ${missing[*]}" >&2
  packages=()
  for part in "$@"; do
    case $part in
      rust) packages+=(build-essential libssl-dev pkg-config zlib1g-dev) ;;
      python) packages+=(python3 python3-pip python3-venv) ;;
      java) packages+=(openjdk-17-jre-headless maven) ;;
      hosts) packages+=(iproute2) ;;
      disks) packages+=(e2fsprogs mount) ;;
    esac
  done
  { apt-get update -q && apt-get install -qy --no-install-recommends "${packages[@]}"; } >&2
  PREREQUISITES_TRIED=1 exec "$0" "$@"
fi
printf 'missing: %s\n' "${missing[@]}" >&2
exit 1
