#!/bin/sh
# deploy_tools.sh PYTHON: what checks the files of deploy/: nginx and systemd, installed
# only by root on Debian; hadolint and the schemas of Kubernetes and Compose, pinned with
# hashes by tests/deploy/requirements.lock. Those are apart from the environment of the
# tests: they are large, and no test imports them. A no-op when they are there for this
# Python and no older than their lock.
python=$1
scripts=$(dirname "$0")
deploy=$scripts/../tests/deploy

have() { command -v "$1" >/dev/null 2>&1; }
missing=""
have nginx || missing="$missing nginx"
have systemd-analyze || missing="$missing systemd"
# shellcheck disable=SC2086  # a list of names, on purpose
[ -z "$missing" ] || sh "$scripts/debian_install.sh" "the tests of deploy/" $missing
have nginx || echo "*** SKIPPED: all tests with the proxy (no nginx here; install" \
  "nginx)" >&2
have systemd-analyze || echo "*** SKIPPED: all tests of the systemd unit (no" \
  "systemd-analyze here; install systemd)" >&2

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
stamp=$deploy/.tools/.installed-$version
[ "$stamp" -nt "$deploy/requirements.lock" ] && exit 0
rm -rf "$deploy/.tools"
"$python" -m pip install -qq --disable-pip-version-check --no-input --no-compile \
  --require-hashes --target "$deploy/.tools" -r "$deploy/requirements.lock" \
  </dev/null && touch "$stamp" && exit 0
echo "*** SKIPPED: all tests with the tools for deploy/ (pip failed, see above)" >&2
exit 0
