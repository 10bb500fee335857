#!/bin/sh
# make_venv.sh PYTHON DIRECTORY: a virtual environment, or a sentence that says why not.
# Debian ships Python without ensurepip; only there, and only as root, we mend that.
python=$1
directory=$2

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  if [ -f /etc/debian_version ] && [ "$(id -u)" = 0 ]; then
    echo "installing python$version-venv with apt-get" >&2
    DEBIAN_FRONTEND=noninteractive apt-get update -qq </dev/null >&2 &&
      DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
        "python$version-venv" </dev/null >&2
  fi
fi
if ! "$python" -m venv "$directory"; then
  rm -rf "$directory"
  echo "$python cannot make a virtual environment; on Debian or Ubuntu:" \
    "apt-get install python3-venv" >&2
  exit 1
fi
