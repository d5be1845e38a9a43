#!/usr/bin/env bash
# loop.sh: whether this machine lets one put on a disk that is a file, and have its power fail, as tests do.
set -euo pipefail
folder=$(mktemp -d)
trap 'umount "$folder/disk" 2>/dev/null || true; rm -rf "$folder"' EXIT
mkdir "$folder/disk"
truncate -s 8M "$folder/image"
{ mkfs.ext4 -q -F "$folder/image" && mount -o loop "$folder/image" "$folder/disk"; } >/dev/null 2>&1
