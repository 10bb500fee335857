"""What a subscriber knows of a channel whose messages share a sequence with others.

Of one channel the numbers have gaps: those in between are other channels'. So that a
number is not kept any more says nothing by itself; who has listened all along knows
more. It is noted in stretches: no message of the channel came behind the first number
of a stretch, up to and with the second.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["MAX_STRETCHES", "Heard"]

MAX_STRETCHES = 8
"""Enough for a channel whose messages are so far apart that the one before is not kept
any more when the next comes."""


class Heard:
    """What was heard last of one channel."""

    __slots__ = ("_is_listening", "_stretches", "last")

    def __init__(self) -> None:
        self.last = 0
        """The number heard last."""
        self._stretches: list[tuple[int, int]] = []
        self._is_listening = False
        """Whether all was heard since the last stretch began."""

    def take(self, number: int, before: int) -> bool:
        """Hear the next message, and ``before``: the one before it that is still kept,
        or 0. Tell whether nothing is missing between it and what was heard; who was
        interrupted, and reads again, is not told so twice."""
        self.last = number
        if not self._is_listening:
            self._begin(before, number)
            return True
        start, end = self._stretches[-1]
        if number <= start:  # it was under way when a later number became known
            return True
        if before > end:
            self._begin(before, number)
            return False
        self._stretches[-1] = (start, number - 1)
        self._begin(0, number)
        return True

    def know(self, number: int) -> None:
        """Hear that whatever comes behind this number will be heard."""
        if not self._is_listening:
            self._begin(0, number)

    def forget(self) -> None:
        """Hear that what was heard was none of the stream's."""
        self.last = 0
        self._stretches.clear()
        self._is_listening = False

    def interrupt(self, until: int) -> None:
        """Hear that something may not be heard from behind this number on."""
        if self._is_listening:
            start, end = self._stretches[-1]
            self._stretches[-1] = (start, max(end, until))
            self._is_listening = False

    def is_whole(self, since: int, found: Sequence[int], most: int, first: int) -> bool:
        """Tell whether nothing is missing between ``since`` and what was found.

        Args:
            since: a number that the stream has reached.
            found: those behind it that are kept, the last of them read last.
            most: how many of a channel are kept.
            first: the first that the stream keeps of any channel, read after those.
        """
        if self._is_listening and not found and since >= self._stretches[-1][0]:
            return True
        end = max(
            (end for start, end in self._stretches if start <= since <= end),
            default=since,
        )
        if found and found[0] <= end:
            end = since  # what was heard was none of the stream's
        if found and found[0] == end + 1:
            return len(found) <= most
        # Age and size take what is first in the stream. The count takes what is first
        # of a channel, and leaves as many as it allows.
        return first <= end + 1 and len(found) < most

    def _begin(self, before: int, number: int) -> None:
        if before:
            self._stretches.append((before, number - 1))
        self._stretches.append((number, number))
        del self._stretches[:-MAX_STRETCHES]
        self._is_listening = True
