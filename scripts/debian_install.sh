#!/bin/sh
# debian_install.sh WHAT-FOR PACKAGE…: install packages, if this is Debian and we are
# root; elsewhere do nothing. Whoever calls looks what is there then, and says so.
what_for=$1
shift
[ -f /etc/debian_version ] && [ "$(id -u)" = 0 ] || exit 0
echo "installing for $what_for: $*"
# Debian starts what it installs, on the ports of all interfaces: not here.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq </dev/null &&
  apt-get install -y -qq --no-install-recommends "$@" </dev/null >/dev/null
