#!/bin/sh
# The Node client of the live tests, pinned with hashes by tests/node/package-lock.json.
# A no-op when it is there and no older than its lock.
cd "$(dirname "$0")/../tests/node" || exit 1
command -v npm >/dev/null 2>&1 || exit 0 # system_packages.sh has said so
[ node_modules/.installed -nt package-lock.json ] && exit 0
npm ci --ignore-scripts --no-audit --no-fund --loglevel=error </dev/null &&
  touch node_modules/.installed && exit 0
echo "*** SKIPPED: all tests with the Node client (npm ci failed, see above)" >&2
exit 0
