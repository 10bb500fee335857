"""Hash passwords without ever stopping the event loop, and only so many at a time.

One argon2id takes some 50 ms and 19 MiB. So hashing has threads of its own, fewer than
the machine has processors, and a bounded queue before them: a burst of logins waits
or is told to come back, while open sockets go on.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from passlib.context import CryptContext

from authws.decisions.passwords import MAX_PASSWORD_BYTES
from authws.exceptions import ConfigurationError, UnavailableError

__all__ = ["PasswordHasher"]

T = TypeVar("T")

MEMORY_KIB = 19_456
TIME_COST = 2
PARALLELISM = 1
"""OWASP Password Storage Cheat Sheet: argon2id with 19 MiB, two passes, one lane."""
NICENESS = 5


class PasswordHasher:
    """Argon2id in threads of its own.

    Args:
        concurrency: how many hash at once; by default one less than the processors,
            so that the event loop keeps one.
        max_waiting: how many may wait for their turn before the next is refused.
    """

    def __init__(self, concurrency: int | None = None, max_waiting: int = 512) -> None:
        if concurrency is None:
            concurrency = max(1, (os.cpu_count() or 1) - 1)
        self._limit = concurrency + max_waiting
        self._pending = 0
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(
            concurrency, thread_name_prefix="authws-hash", initializer=_step_back
        )
        self._context = CryptContext(
            schemes=["argon2"],
            argon2__type="ID",
            argon2__memory_cost=MEMORY_KIB,
            argon2__time_cost=TIME_COST,
            argon2__parallelism=PARALLELISM,
        )

    async def hash(self, password: str) -> str:
        """Return the hash to store, with a salt of its own.

        Raises:
            UnavailableError: too many wait already.
            ValueError: the password is longer than any that is allowed.
        """
        return await self._run(lambda: self._hash(password))

    async def verify(self, password: str, hash: str | None) -> tuple[bool, str | None]:
        """Tell whether the password is right, and return a new hash if one is due.

        For no hash, an unknown user's, the same work is done and the answer is no:
        the time taken says nothing about who exists (ASVS 6.3.8). The new hash is set
        when the parameters have changed since the old one was made.

        Raises:
            UnavailableError: too many wait already, or the stored hash is damaged.
        """
        return await self._run(lambda: self._verify(password, hash))

    def self_test(self) -> None:
        """Hash and verify once, before the first user has to find out.

        Blocks for two or three hashes.

        Raises:
            ConfigurationError: the hashing library does not work as installed.
        """
        password = secrets.token_urlsafe()
        try:
            known = self._hash(password)
            right, _ = self._verify(password, known)
            wrong, _ = self._verify(f"{password}.", known)
            unknown, _ = self._verify(password, None)
        except Exception as error:
            raise ConfigurationError(
                f"passwords cannot be hashed: {type(error).__name__}; "
                "reinstall libpass and argon2-cffi"
            ) from error
        if not right or wrong or unknown:
            raise ConfigurationError("the password hasher gives wrong answers")

    def close(self) -> None:
        """Stop the threads; what waits for its turn is cancelled."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def _run(self, work: Callable[[], T]) -> T:
        with self._lock:
            if self._pending >= self._limit:
                raise UnavailableError("too many passwords wait to be hashed")
            self._pending += 1
        try:
            future = self._threads.submit(work)
        except RuntimeError as error:  # closed
            self._leave(None)
            raise UnavailableError("the password hasher is closed") from error
        # Counted out when the work ends, not when its client has gone: a thread cannot
        # be interrupted, and an impatient client must not get around the bound.
        future.add_done_callback(self._leave)
        return await asyncio.wrap_future(future)

    def _leave(self, _future: Future[T] | None) -> None:
        with self._lock:
            self._pending -= 1

    def _hash(self, password: str) -> str:
        return str(self._context.hash(_encode(password)))

    def _verify(self, password: str, hash: str | None) -> tuple[bool, str | None]:
        try:
            secret = _encode(password)
        except ValueError:  # no such password can have been set
            secret, hash = b"", None
        if hash is None:
            self._context.dummy_verify()
            return False, None
        try:
            right, new_hash = self._context.verify_and_update(secret, hash)
        except (TypeError, ValueError) as error:
            raise UnavailableError("a stored password hash is damaged") from error
        return bool(right), new_hash


def _encode(password: str) -> bytes:
    # Not every string is UTF-8; one that is not must not look like another's failure.
    encoded = password.encode("utf-8", "surrogatepass")
    if len(encoded) > MAX_PASSWORD_BYTES:
        raise ValueError(f"a password has at most {MAX_PASSWORD_BYTES} bytes")
    return encoded


def _step_back() -> None:
    """Let the event loop go first where both want the same processor."""
    if sys.platform == "linux":  # elsewhere niceness belongs to the whole process
        thread = threading.get_native_id()
        niceness = os.getpriority(os.PRIO_PROCESS, thread) + NICENESS
        with suppress(OSError):  # a sandbox may forbid it, and it is a courtesy
            os.setpriority(os.PRIO_PROCESS, thread, niceness)
