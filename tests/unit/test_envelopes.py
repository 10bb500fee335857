from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authws.decisions.envelopes import (
    MAC_BYTES,
    MAX_MACS,
    NODE_LENGTH,
    Envelope,
    ForgedEnvelopeError,
    Kind,
    Sealer,
)

NODE = "AbCd-_12345"
CHANNEL = "lobby"
ENVELOPE = Envelope(Kind.MESSAGE, NODE, 7, b'{"type":"message"}')
SEALER = Sealer([b"a secret"])
SEALED = SEALER.seal(CHANNEL, ENVELOPE)
HEAD = 1 + 1 + MAC_BYTES + NODE_LENGTH + 8 + 4 + 1
"""Bytes in front of the body."""

channels = st.text("abcXYZ019_.:-@", min_size=1, max_size=130)
envelopes = st.builds(
    Envelope,
    st.sampled_from(list(Kind)),
    st.text("ABCxyz019-_", min_size=NODE_LENGTH, max_size=NODE_LENGTH),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=300),
    st.integers(0, 2**32 - 1),
)


@given(channels, envelopes, st.lists(st.binary(max_size=80), min_size=1, max_size=4))
def test_what_was_sealed_is_opened(
    channel: str, envelope: Envelope, keys: list[bytes]
) -> None:
    sealed = Sealer(keys).seal(channel, envelope)
    assert Sealer(keys).open(channel, sealed) == envelope
    more = MAC_BYTES * (min(len(keys), MAX_MACS) - 1)
    assert len(sealed) == HEAD + more + len(envelope.body)


def test_an_empty_body_is_one() -> None:
    empty = ENVELOPE._replace(body=b"")
    assert SEALER.open(CHANNEL, SEALER.seal(CHANNEL, empty)) == empty


@pytest.mark.parametrize("place", range(len(SEALED)))
def test_a_byte_that_is_another_is_refused(place: int) -> None:
    for flip in (1, 0x80, 0xFF):
        spoiled = bytearray(SEALED)
        spoiled[place] ^= flip
        with pytest.raises(ForgedEnvelopeError):
            SEALER.open(CHANNEL, bytes(spoiled))


@pytest.mark.parametrize("length", range(len(SEALED)))
def test_a_part_of_it_is_refused(length: int) -> None:
    for part in (SEALED[:length], SEALED[len(SEALED) - length :]):
        with pytest.raises(ForgedEnvelopeError):
            SEALER.open(CHANNEL, part)


@pytest.mark.parametrize("more", [b"\0", b" ", b"x", SEALED])
def test_more_than_it_is_refused(more: bytes) -> None:
    for spoiled in (SEALED + more, more + SEALED):
        with pytest.raises(ForgedEnvelopeError):
            SEALER.open(CHANNEL, spoiled)


@pytest.mark.parametrize(
    "channel", ["", "lobb", "lobby2", "Lobby", "lobby\0", "\0lobby", "@all", "@lobby"]
)
def test_on_another_channel_it_is_refused(channel: str) -> None:
    with pytest.raises(ForgedEnvelopeError, match="not for this channel"):
        SEALER.open(channel, SEALED)


@given(channels, channels)
def test_no_two_channels_have_the_same_seal(one: str, other: str) -> None:
    sealed = SEALER.seal(one, ENVELOPE)
    assert (SEALER.seal(other, ENVELOPE) == sealed) is (one == other)


def test_what_a_body_begins_with_cannot_be_moved_into_the_channel() -> None:
    """Nor the other way: where the channel ends is never in doubt."""
    sealed = SEALER.seal("ab", ENVELOPE)
    for channel in ("a", "abA", "ab\0"):
        with pytest.raises(ForgedEnvelopeError):
            SEALER.open(channel, sealed)


@given(st.binary(max_size=200))
def test_no_bytes_at_all_are_believed(data: bytes) -> None:
    with pytest.raises(ForgedEnvelopeError):
        SEALER.open(CHANNEL, data)


@given(st.binary(min_size=MAC_BYTES, max_size=MAC_BYTES))
def test_no_other_mac_is_believed(mac: bytes) -> None:
    forged = SEALED[:2] + mac + SEALED[2 + MAC_BYTES :]
    if forged != SEALED:
        with pytest.raises(ForgedEnvelopeError, match="not by a key of ours"):
            SEALER.open(CHANNEL, forged)


def test_an_error_quotes_nothing_that_came() -> None:
    secret = b"password=hunter2"
    for data in (secret, SEALED[:HEAD] + secret):
        with pytest.raises(ForgedEnvelopeError) as refused:
            SEALER.open(CHANNEL, data)
        assert "hunter2" not in str(refused.value)


# -------------------------------------------------------------------------------- keys


@pytest.mark.parametrize("key", [b"", b"another secret", b"a secret ", b"x" * 500])
def test_another_key_opens_nothing(key: bytes) -> None:
    with pytest.raises(ForgedEnvelopeError):
        Sealer([key]).open(CHANNEL, SEALED)
    with pytest.raises(ForgedEnvelopeError):
        SEALER.open(CHANNEL, Sealer([key]).seal(CHANNEL, ENVELOPE))


def test_the_key_itself_is_not_the_key_of_the_mac() -> None:
    """One secret serves other purposes, and a MAC of theirs means nothing here."""
    from hashlib import blake2b

    rest = SEALED[2 + MAC_BYTES :]
    about = b"%b\0%b" % (CHANNEL.encode(), rest)
    mac = blake2b(about, key=b"a secret", digest_size=MAC_BYTES).digest()
    with pytest.raises(ForgedEnvelopeError):
        SEALER.open(CHANNEL, SEALED[:2] + mac + rest)


def _keys(names: str) -> list[bytes]:
    return [name.encode() for name in names]


@pytest.mark.parametrize(("keys", "own"), [("1", "1"), ("12", "12"), ("123", "23")])
def test_the_last_two_keys_seal_and_each_is_believed(keys: str, own: str) -> None:
    sealer = Sealer(_keys(keys))
    sealed = sealer.seal(CHANNEL, ENVELOPE)
    assert sealed == Sealer(_keys(own)).seal(CHANNEL, ENVELOPE)
    for key in keys:
        is_own = key in own
        with nullcontext() if is_own else pytest.raises(ForgedEnvelopeError):
            assert Sealer(_keys(key)).open(CHANNEL, sealed) == ENVELOPE
        by_one = Sealer(_keys(key)).seal(CHANNEL, ENVELOPE)
        assert sealer.open(CHANNEL, by_one) == ENVELOPE
    with pytest.raises(ForgedEnvelopeError):
        sealer.open(CHANNEL, Sealer([b"9"]).seal(CHANNEL, ENVELOPE))


@pytest.mark.parametrize("count", [0, MAX_MACS + 1, 255])
def test_a_number_of_macs_that_cannot_be_is_refused(count: int) -> None:
    with pytest.raises(ForgedEnvelopeError, match="not an envelope"):
        SEALER.open(CHANNEL, SEALED[:1] + bytes([count]) + SEALED[2:] * 20)


@pytest.mark.parametrize(
    "rolls",
    [
        ["A", "NA", "AN"],  # believed first, and signing in a second roll
        ["A", "AN", "N"],
        ["AB", "NAB", "ABN", "BN"],
        ["AB", "BN"],
    ],
    ids="-".join,
)
def test_each_roll_of_a_rotation_by_hand_parts_nobody(rolls: list[str]) -> None:
    for before, behind in pairwise(Sealer(_keys(keys)) for keys in rolls):
        assert behind.open(CHANNEL, before.seal(CHANNEL, ENVELOPE)) == ENVELOPE
        assert before.open(CHANNEL, behind.seal(CHANNEL, ENVELOPE)) == ENVELOPE


@pytest.mark.parametrize("kept", [2, 3, 4])
def test_those_before_and_behind_a_rotation_understand_each_other(kept: int) -> None:
    """However many rotations there were; ``kept`` older keys go on verifying."""
    keys: list[bytes] = [b"0"]
    for number in range(1, 8):
        rotated = [*keys, b"%d" % number][-kept - 1 :]
        before, behind = Sealer(keys), Sealer(rotated)
        assert behind.open(CHANNEL, before.seal(CHANNEL, ENVELOPE)) == ENVELOPE
        assert before.open(CHANNEL, behind.seal(CHANNEL, ENVELOPE)) == ENVELOPE
        keys = rotated
