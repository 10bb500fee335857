#!/bin/sh
# What some tests need from the system: PostgreSQL, the brokers, Node and a browser.
# Installed only by root on Debian; elsewhere their tests are skipped, and this says so
# before pytest.

have() { command -v "$1" >/dev/null 2>&1; }
have_postgres() {
  have postgres || ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1
}
have_node() { have node && have npm; }
have_chromium() { have chromium || have chromium-browser || have google-chrome; }

missing=""
have_postgres || missing="$missing postgresql"
have redis-server || missing="$missing redis-server"
have nats-server || missing="$missing nats-server"
have rabbitmq-server || missing="$missing rabbitmq-server"
have ip || missing="$missing iproute2"
have_node || missing="$missing nodejs npm"
have_chromium || missing="$missing chromium"
[ -n "$missing" ] || exit 0

# shellcheck disable=SC2086  # a list of names, on purpose
sh "$(dirname "$0")/debian_install.sh" "the tests" $missing

have_postgres || echo "*** SKIPPED: all tests on PostgreSQL (no postgres here;" \
  "install postgresql)" >&2
have redis-server || echo "*** SKIPPED: all tests on Redis (no redis-server here;" \
  "install redis-server)" >&2
have nats-server || echo "*** SKIPPED: all tests on NATS (no nats-server here;" \
  "install nats-server)" >&2
have rabbitmq-server || echo "*** SKIPPED: all tests on RabbitMQ (no rabbitmq-server" \
  "here; install rabbitmq-server)" >&2
have ip || echo "*** SKIPPED: all tests on two hosts (no ip here; install iproute2)" >&2
have_node || echo "*** SKIPPED: all tests with the Node client (no node and npm here;" \
  "install nodejs and npm)" >&2
have_chromium || echo "*** SKIPPED: all tests in a browser (no chromium here;" \
  "install chromium)" >&2
exit 0
