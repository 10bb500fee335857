#!/bin/sh
# deploy_tools.sh PYTHON: what checks the files of deploy/ (hadolint, the schemas of
# Kubernetes and Compose), pinned with hashes by tests/deploy/requirements.lock. Apart
# from the environment of the tests: it is large, and no test imports it. A no-op when it
# is there for this Python and no older than its lock.
python=$1
lock=$(dirname "$0")/../tests/deploy/requirements.lock
tools=$(dirname "$0")/../tests/deploy/.tools
stamp=$tools/.installed-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[ "$stamp" -nt "$lock" ] && exit 0

rm -rf "$tools"
"$python" -m pip install -qq --disable-pip-version-check --no-input --no-compile \
  --require-hashes --target "$tools" -r "$lock" </dev/null && touch "$stamp" && exit 0
echo "*** SKIPPED: all tests with the tools for deploy/ (pip failed, see above)" >&2
exit 0
