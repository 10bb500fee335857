#!/bin/sh
# What some tests need from the system: PostgreSQL, Node and a browser. Installed only
# by root on Debian; elsewhere their tests are skipped, and this says so before pytest.

have_postgres() {
  command -v postgres >/dev/null 2>&1 || ls /usr/lib/postgresql/*/bin/postgres \
    >/dev/null 2>&1
}
have_node() {
  command -v node >/dev/null 2>&1 && command -v npm >/dev/null 2>&1
}
have_chromium() {
  command -v chromium >/dev/null 2>&1 || command -v chromium-browser >/dev/null 2>&1 ||
    command -v google-chrome >/dev/null 2>&1
}

missing=""
have_postgres || missing="$missing postgresql"
have_node || missing="$missing nodejs npm"
have_chromium || missing="$missing chromium"
[ -n "$missing" ] || exit 0

if [ -f /etc/debian_version ] && [ "$(id -u)" = 0 ]; then
  echo "installing for the tests:$missing"
  export DEBIAN_FRONTEND=noninteractive
  # shellcheck disable=SC2086  # a list of names, on purpose
  apt-get update -qq </dev/null &&
    apt-get install -y -qq --no-install-recommends $missing </dev/null >/dev/null
fi

have_postgres || echo "*** SKIPPED: all tests on PostgreSQL (no postgres here;" \
  "install postgresql)" >&2
have_node || echo "*** SKIPPED: all tests with the Node client (no node and npm here;" \
  "install nodejs and npm)" >&2
have_chromium || echo "*** SKIPPED: all tests in a browser (no chromium here;" \
  "install chromium)" >&2
exit 0
