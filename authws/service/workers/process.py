"""One worker: the process that is forked, and what its parent knows of it.

Two pipes join them. By the one a worker says that it serves, or why it cannot. By the
other, its lifeline, it is told to end; and if that ends, so has the parent. Signals do
not tell them apart: who ends a service may send one to every process of it, as systemd
does.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from authws.exceptions import AuthwsError

__all__ = ["Worker", "WorkerProcess", "fork"]

START_TIMEOUT = 60.0
"""Seconds from its start in which a worker serves."""

READY = b"+"
LEAVING = b"~"
FAILED = b"-"
"""What a worker says; after the last one comes a sentence."""
RETIRE = b"r"
END = b"e"
"""What it is told."""
MAX_MESSAGE = 4096
"""Bytes: what a pipe takes whole (POSIX)."""


@dataclass
class Worker:
    """What a worker knows of its place; it lives in the worker."""

    number: int
    """From 0 on; a successor has its predecessor's."""
    listener: socket.socket
    _report: int
    on_end: Callable[[], object] = lambda: os._exit(0)
    """Called in another thread when it shall end, also because its parent is gone."""
    on_retire: Callable[[], object] = lambda: None
    """Called in another thread when it shall end because its successor serves."""
    on_orphaned: Callable[[], object] = lambda: None
    """Called before ``on_end`` if its parent is gone."""

    def tell_ready(self) -> None:
        """Tell the parent that this worker serves."""
        self._say(READY)

    def tell_leaving(self) -> None:
        """Tell the parent that this worker accepts nobody any more."""
        self._say(LEAVING)

    def tell_failure(self, sentence: str) -> None:
        """Tell the parent why this worker cannot start."""
        self._say((FAILED + sentence.encode("utf-8", "replace"))[:MAX_MESSAGE])

    def _say(self, message: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # an orphan is told that it is one
            os.write(self._report, message)


@dataclass(eq=False)
class WorkerProcess:
    """A worker's process, in its parent."""

    number: int
    pid: int
    report: int
    """The pipe by which it speaks; readable also when it has ended."""
    lifeline: int
    started_at: float = field(default_factory=time.monotonic)
    is_ready: bool = False
    is_leaving: bool = False
    """Whether it accepts nobody any more."""
    is_told: bool = False
    """Whether it was told to end."""
    is_late: bool = False
    """Whether it did not do in time what it was to do."""
    failure: str = ""
    """Why it could not start, in its own words."""
    status: int | None = None
    """Its exit status once it has ended, negative for the signal that killed it."""
    due_at: float = 0.0
    """When it must have done what it is to do: to start, or to end."""

    def __post_init__(self) -> None:
        self.due_at = self.started_at + START_TIMEOUT

    def listen(self) -> None:
        """Hear what it says."""
        with contextlib.suppress(BlockingIOError):
            while said := os.read(self.report, MAX_MESSAGE):
                self._hear(said)

    def is_over(self, *, wait: bool = False) -> bool:
        """Tell whether it has ended, all that there is to know of it being known then;
        or wait until it has."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, 0 if wait else os.WNOHANG)
            if pid == 0:
                return False
            self.status = os.waitstatus_to_exitcode(status)
            self.listen()  # what it said with its last breath
            self.close()
        return True

    def end(self, within: float) -> None:
        """Tell it to end, if it was not told before."""
        self._tell(END, within)

    def retire(self, within: float) -> None:
        """Tell it to end because its successor serves."""
        self._tell(RETIRE, within)

    def give_up(self) -> None:
        """End it, for it did not do in time what it was to do."""
        self.is_late = True
        self.kill()

    def kill(self) -> None:
        """End it at once."""
        if self.status is None:  # later its pid may be somebody else's
            self.due_at = math.inf
            os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Let go of the pipes."""
        os.close(self.report)
        os.close(self.lifeline)

    def __str__(self) -> str:
        return f"worker {self.number} (pid {self.pid})"

    @property
    def ending(self) -> str:
        """How it ended, for the operator."""
        if self.failure:
            return f"did not start: {self.failure}"
        if self.is_late and not self.is_told:
            return f"did not start within {START_TIMEOUT:g} s"
        if self.status is not None and self.status < 0:
            with contextlib.suppress(ValueError):
                return f"was ended by {signal.Signals(-self.status).name}"
        return f"ended with status {self.status}"

    def _hear(self, said: bytes) -> None:
        if said.startswith(READY):
            self.is_ready = True
            self.due_at = self.due_at if self.is_told else math.inf
            said = said.removeprefix(READY)
        if said.startswith(LEAVING):
            self.is_leaving = True
        elif said.startswith(FAILED):
            self.failure = said.removeprefix(FAILED).decode("utf-8", "replace")

    def _tell(self, word: bytes, within: float) -> None:
        if not self.is_told:
            self.is_told = self.is_leaving = True
            self.due_at = time.monotonic() + within
            with contextlib.suppress(BrokenPipeError):  # it is ending already
                os.write(self.lifeline, word)


def fork(
    work: Callable[[Worker], object],
    number: int,
    listener: socket.socket,
    *,
    let_go: Callable[[], object],
    end_within: float,
) -> WorkerProcess:
    """Start a worker that does ``work``.

    Args:
        work: returns, raises or ends the process; an AuthwsError is told to the parent.
        number: the worker's place.
        listener: what it accepts from.
        let_go: closes, in the worker, whatever is its parent's or another worker's.
        end_within: seconds in which it has ended once it shall.

    Raises:
        OSError: the system has no place for it.
    """
    with contextlib.ExitStack() as unless_forked:
        report = _pipe(unless_forked)
        lifeline = _pipe(unless_forked)
        os.set_blocking(report[0], False)
        sys.stdout.flush()  # what waits there would be said by both
        # between the fork and its own handlers a signal would be taken for its parent's
        usual = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                worker = Worker(number, listener, report[1])
                _live(work, worker, (report[0], lifeline), let_go, usual, end_within)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, usual)
        unless_forked.pop_all()
    os.close(report[1])
    os.close(lifeline[0])
    return WorkerProcess(number, pid, report[0], lifeline[1])


def _pipe(unless_forked: contextlib.ExitStack) -> tuple[int, int]:
    ends = os.pipe()
    for end in ends:
        unless_forked.callback(os.close, end)
    return ends


def _live(
    work: Callable[[Worker], object],
    worker: Worker,
    pipes: tuple[int, tuple[int, int]],
    let_go: Callable[[], object],
    signals: set[int | signal.Signals],
    end_within: float,
) -> NoReturn:
    """A worker's whole life: nothing of its parent's may go on in it."""
    status = 1
    try:
        report, (lifeline, parents_end) = pipes
        os.close(report)
        os.close(parents_end)
        let_go()
        # a terminal's Ctrl-C, and its end, are for the parent to hear
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)
        threading.Thread(
            target=_hear_parent,
            args=(worker, lifeline, end_within),
            name="lifeline",
            daemon=True,
        ).start()
        work(worker)
        status = 0
    except AuthwsError as error:
        worker.tell_failure(str(error))
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        _leave(status)


def _hear_parent(worker: Worker, lifeline: int, end_within: float) -> None:
    """Do what the parent says; see to it that the process ends once it shall."""
    while (word := os.read(lifeline, 1)) == RETIRE:
        worker.on_retire()
    if word != END:
        worker.on_orphaned()
    worker.on_end()
    time.sleep(end_within)
    os._exit(1)


def _leave(status: int) -> NoReturn:
    """End without what Python would do for the parent, of which this is a copy."""
    with contextlib.suppress(Exception):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
