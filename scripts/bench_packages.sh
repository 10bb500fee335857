#!/bin/sh
# What the benchmarks need from the system, the brokers, and the servers that authws is
# measured beside: a C compiler, Redis, nats-server, RabbitMQ, nginx with nchan, Node and
# its `ws`. Installed only by root on Debian; elsewhere what is missing is left out, and
# this says so.

have() { command -v "$1" >/dev/null 2>&1; }
have_nchan() { have nginx && [ -e /usr/lib/nginx/modules/ngx_nchan_module.so ]; }

missing=""
have cc || missing="$missing gcc libc6-dev"
have redis-server || missing="$missing redis-server"
have nats-server || missing="$missing nats-server"
have rabbitmq-server || missing="$missing rabbitmq-server"
have_nchan || missing="$missing nginx libnginx-mod-nchan"
have node && have npm || missing="$missing nodejs npm"

# shellcheck disable=SC2086  # a list of names, on purpose
[ -z "$missing" ] ||
  sh "$(dirname "$0")/debian_install.sh" "the benchmarks" $missing

have cc || echo "*** no benchmark can run (no C compiler; install gcc libc6-dev)" >&2
have redis-server || echo "*** LEFT OUT: Redis (install redis-server)" >&2
have nats-server || echo "*** LEFT OUT: nats-server (install nats-server)" >&2
have rabbitmq-server || echo "*** LEFT OUT: RabbitMQ (install rabbitmq-server)" >&2
have_nchan || echo "*** LEFT OUT: nginx with nchan (install nginx and" \
  "libnginx-mod-nchan)" >&2
have node && have npm || {
  echo "*** LEFT OUT: Node ws (install nodejs and npm)" >&2
  exit 0
}
# Pinned with hashes by its lock; a no-op when it is there and no older than that.
cd "$(dirname "$0")/../bench/contenders/node" || exit 1
[ node_modules/.installed -nt package-lock.json ] && exit 0
npm ci --ignore-scripts --no-audit --no-fund --loglevel=error </dev/null &&
  touch node_modules/.installed && exit 0
echo "*** LEFT OUT: Node ws (npm ci failed, see above)" >&2
exit 0
