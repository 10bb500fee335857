"""What a room keeps for those who were away, and where in it somebody stands.

A position is the broker's own: an offset, which grows from message to message, in an
epoch, which is another one whenever the offsets may have begun anew.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, NamedTuple

import msgspec

__all__ = [
    "DEFAULT_RULES",
    "MAX_MESSAGES",
    "MAX_SECONDS",
    "HistoryRules",
    "Position",
    "Retention",
]

MAX_MESSAGES = 10_000
"""Messages that a room keeps at most: one peer may have to be sent all of them."""
MAX_SECONDS = 86_400.0

DEFAULT_RULES = ("*=100/300",)

_RULE = re.compile(
    r"(?P<pattern>[A-Za-z0-9_.:-]*\*?)=(?P<messages>\d{1,9})(?:/(?P<seconds>\d{1,9}))?",
    re.ASCII,  # ten is 10, and in no other digits
)


class Position(msgspec.Struct, frozen=True):
    """A place in a room's history: after the message with this offset."""

    epoch: Annotated[str, msgspec.Meta(max_length=64)]
    offset: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Retention(NamedTuple):
    """How much a room keeps."""

    messages: int
    seconds: float


class HistoryRules:
    """Which rooms keep how much: the first rule whose pattern covers a room decides."""

    def __init__(self, rules: Sequence[str] = DEFAULT_RULES) -> None:
        """A rule is ``pattern=messages/seconds``; a pattern that ends in ``*`` covers
        every room that starts with what stands before it, and ``pattern=0`` keeps
        nothing.

        Raises:
            ValueError: a rule is none, or can never decide, with a sentence that says
                why.
        """
        self._rules = tuple(map(_parse, rules))
        _demand_that_each_can_match([pattern for pattern, _ in self._rules])
        self.of = lru_cache(maxsize=4096)(self._of)
        """Return what a room keeps, or None if it keeps nothing."""

    @property
    def kept(self) -> tuple[Retention, ...]:
        """Every amount that some rooms may keep, each once."""
        return tuple(dict.fromkeys(keep for _, keep in self._rules if keep is not None))

    def _of(self, room: str) -> Retention | None:
        for pattern, retention in self._rules:
            if _covers(pattern, room):
                return retention
        return None


def _demand_that_each_can_match(patterns: Sequence[str]) -> None:
    for number, later in enumerate(patterns):
        for earlier in patterns[:number]:
            rest = later.removesuffix("*")
            if earlier == later or (earlier.endswith("*") and _covers(earlier, rest)):
                raise ValueError(
                    f"the rule for {later!r:.80} never decides, for what it covers is "
                    f"covered by {earlier!r:.80} before it: put that behind"
                )


def _covers(pattern: str, room: str) -> bool:
    return pattern == room or (pattern.endswith("*") and room.startswith(pattern[:-1]))


def _parse(rule: str) -> tuple[str, Retention | None]:
    match = _RULE.fullmatch(rule)
    if match is None or not match["pattern"]:
        raise ValueError(
            f"{rule!r:.80} is no rule: write ROOMS=MESSAGES/SECONDS, such as "
            "*=100/300, or ROOMS=0 to keep nothing"
        )
    messages, seconds = int(match["messages"]), float(match["seconds"] or 0)
    if messages == 0:
        return match["pattern"], None
    if not (messages <= MAX_MESSAGES and 0 < seconds <= MAX_SECONDS):
        raise ValueError(
            f"{rule!r:.80}: a room keeps at most {MAX_MESSAGES} messages for 1 to "
            f"{MAX_SECONDS:.0f} seconds"
        )
    return match["pattern"], Retention(messages, seconds)
