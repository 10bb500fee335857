"""What holds for every test."""

from __future__ import annotations

import signal

# Whoever starts the tests in the background may have them ignore Ctrl-C, and a process
# passes that on: what the tests start shall hear it all the same.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
