"""What was verified a moment ago, so that it need not be verified again.

A signature takes 10 to 90 µs to check, most of what a handshake decides, and whoever
flaps between networks brings the same token each time. Why remembering is safe:

- An entry is found by the SHA-256 of the whole token, so only by a token that is the
  verified one to the last byte; the token itself is not kept.
- It holds while the verifier still has the very key that signed, for 60 seconds.
- Only what no later moment can change is remembered: signature, header and claims. The
  times are compared with the clock each time, and whether the session still exists is
  asked of its record each time, on which alone it depends; its end drops what is here.
- A refusal is never remembered, and the number of entries is bounded.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from hashlib import sha256
from typing import Generic, TypeVar

__all__ = ["MAX_AGE", "MAX_TOKENS", "VerifiedTokens"]

MAX_TOKENS = 4096
MAX_AGE = 60.0
"""Seconds since the token was verified."""

Said = TypeVar("Said")
Key = TypeVar("Key")


@dataclass(slots=True)
class _Entry(Generic[Said, Key]):
    said: Said
    key: Key
    session: str
    verified_at: float


class VerifiedTokens(Generic[Said, Key]):
    """What tokens said, by the digest of each; the oldest goes when it is full."""

    def __init__(self, capacity: int = MAX_TOKENS) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[bytes, _Entry[Said, Key]] = OrderedDict()
        self._by_session: defaultdict[str, set[bytes]] = defaultdict(set)

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, token: str, now: float) -> tuple[Said, Key] | None:
        """Return what a token said, and the key that it was verified with."""
        entry = self._entries.get(_digest(token))
        if entry is None or not 0 <= now - entry.verified_at < MAX_AGE:
            return None
        return entry.said, entry.key

    def remember(
        self, token: str, said: Said, *, key: Key, session: str, now: float
    ) -> None:
        """Keep what a token said that was verified now."""
        digest = _digest(token)
        self._drop(digest)
        self._entries[digest] = _Entry(said, key, session, now)
        self._by_session[session].add(digest)
        if len(self._entries) > self._capacity:
            self._drop(next(iter(self._entries)))

    def forget(self, session: str) -> None:
        """Drop the tokens of a session: something ended or changed it."""
        for digest in tuple(self._by_session.get(session, ())):
            self._drop(digest)

    def _drop(self, digest: bytes) -> None:
        entry = self._entries.pop(digest, None)
        if entry is not None:
            of_session = self._by_session[entry.session]
            of_session.discard(digest)
            if not of_session:
                del self._by_session[entry.session]


def _digest(token: str) -> bytes:
    # no two texts have the same bytes, those with lone surrogates included
    return sha256(token.encode("utf-8", "surrogatepass")).digest()
