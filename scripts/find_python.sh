#!/bin/sh
# Print a Python that is new enough. A name on the PATH may be a version manager's shim
# that leads nowhere, so each candidate is run before it is believed.
for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python \
    "$HOME"/.pyenv/versions/3.1[1-9]*/bin/python}; do
  if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
  then
    command -v "$candidate"
    exit 0
  fi
done
echo "authws needs Python 3.11 or newer, and found none: install one, or say" \
  "make PYTHON=/path/to/python" >&2
exit 1
