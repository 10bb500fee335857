"""Rates, headcounts and sizes, and which limits hold for one address by default."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authws.decisions.limits import (
    Headcount,
    KeyedBuckets,
    TokenBucket,
    household,
    retry_after,
    wire_size,
)
from authws.service.settings import PerAddress, Settings

STEPS = st.lists(st.floats(0, 5, allow_nan=False), max_size=20)


def taken(bucket: TokenBucket, now: float, attempts: int = 1000) -> int:
    return sum(bucket.take(now) for _ in range(attempts))


def test_a_full_bucket_gives_its_burst_and_no_more() -> None:
    bucket = TokenBucket(rate=2, burst=5, now=100)
    assert taken(bucket, 100) == 5


def test_it_fills_at_its_rate_up_to_its_burst() -> None:
    bucket = TokenBucket(rate=2, burst=5, now=100)
    taken(bucket, 100)
    assert taken(bucket, 101) == 2
    assert taken(bucket, 101.4) == 0
    assert taken(bucket, 101.5) == 1
    assert taken(bucket, 1_000_000) == 5


def test_what_was_refused_costs_nothing() -> None:
    bucket = TokenBucket(rate=1, burst=1, now=0)
    assert bucket.take(0)
    assert not any(bucket.take(step / 100) for step in range(100))
    assert bucket.take(1)


def test_a_clock_that_runs_backwards_gives_nothing() -> None:
    bucket = TokenBucket(rate=1, burst=1, now=100)
    assert bucket.take(100)
    assert not bucket.take(50)
    assert not bucket.take(50.5)


def test_more_than_one_can_be_taken_at_once() -> None:
    bucket = TokenBucket(rate=1, burst=4, now=0)
    assert bucket.take(0, 3)
    assert not bucket.take(0, 2)
    assert bucket.take(0, 1)


def test_retry_after_is_the_time_until_it_would_be_granted() -> None:
    bucket = TokenBucket(rate=0.5, burst=1, now=0)
    assert bucket.retry_after() == 0
    assert bucket.take(0)
    assert bucket.retry_after() == 2
    assert not bucket.take(1)
    assert bucket.retry_after() == 1
    assert bucket.take(2)


def test_a_burst_below_one_is_one() -> None:
    bucket = TokenBucket(rate=0.1, burst=0.2, now=0)
    assert taken(bucket, 0) == 1
    assert taken(bucket, 9) == 0
    assert bucket.take(11)


@pytest.mark.parametrize("rate", [0, -1])
def test_a_rate_of_0_is_off(rate: float) -> None:
    bucket = TokenBucket(rate=rate, burst=0, now=0)
    assert taken(bucket, 0) == 1000
    assert bucket.retry_after() == 0


@given(st.floats(0.1, 100), st.floats(1, 100), STEPS)
def test_never_more_than_the_burst_and_what_the_time_gave(
    rate: float, burst: float, steps: list[float]
) -> None:
    bucket = TokenBucket(rate, burst, now := 0.0)
    granted = 0
    for step in steps:
        now += step
        granted += taken(bucket, now, 10)
    assert granted <= burst + now * rate + 1e-6


@given(st.floats(0.1, 100), STEPS)
def test_who_waits_as_told_is_granted(rate: float, steps: list[float]) -> None:
    bucket = TokenBucket(rate, 1, now := 0.0)
    for step in steps:
        now += step
        if not bucket.take(now):
            now += bucket.retry_after() + 1e-9
            assert bucket.take(now)


def test_keys_do_not_share_a_bucket() -> None:
    buckets = KeyedBuckets(rate=1, burst=2)
    assert [buckets.take("a", 0) for _ in range(3)] == [0, 0, 1]
    assert buckets.take("b", 0) == 0


def test_a_wait_is_never_0_when_refused() -> None:
    buckets = KeyedBuckets(rate=1000, burst=1)
    assert buckets.take("a", 0) == 0
    assert 0 < buckets.take("a", 0) <= 0.001


def test_the_longest_unseen_key_is_forgotten_first() -> None:
    buckets = KeyedBuckets(rate=1, burst=1, capacity=2)
    assert [buckets.take(key, 0) for key in "ab"] == [0, 0]
    assert buckets.take("a", 0) > 0  # seen again: now b is the longest unseen
    assert buckets.take("c", 0) == 0
    assert buckets.take("a", 0) > 0
    assert buckets.take("b", 0) == 0


def test_a_rate_of_0_keeps_no_bucket_at_all() -> None:
    buckets = KeyedBuckets(rate=0, burst=0, capacity=1)
    assert all(buckets.take(str(key), 0) == 0 for key in range(100))


@given(st.floats(0, 1e6))
def test_a_wait_in_whole_seconds_is_never_too_short(seconds: float) -> None:
    assert retry_after(seconds) >= max(seconds, 1)
    assert retry_after(seconds) <= seconds + 1


# -------------------------------------------------------------------------- headcounts


@contextmanager
def counted(count: Headcount, key: str) -> Iterator[None]:
    """Be inside for as long as the block runs."""
    count.enter(key)
    try:
        yield
    finally:
        count.leave(key)


def test_the_last_one_comes_in_and_the_next_does_not() -> None:
    count = Headcount(limit=3, limit_per_key=0)
    with ExitStack() as inside:
        for key in "aab":
            assert not count.is_full()
            inside.enter_context(counted(count, key))
        assert count.is_full()
        assert not count.is_full_for("a")
        assert count.inside == 3
    assert (count.inside, count.is_full()) == (0, False)


def test_each_key_has_its_own_count() -> None:
    count = Headcount(limit=0, limit_per_key=2)
    with counted(count, "a"), counted(count, "b"):
        assert not count.is_full_for("a")
        with counted(count, "a"):
            assert count.is_full_for("a")
            assert not count.is_full_for("b")
            assert not count.is_full()
        assert not count.is_full_for("a")


def test_who_leaves_with_an_error_is_counted_out_and_forgotten() -> None:
    count = Headcount(limit=1, limit_per_key=1)
    for number in range(1_000):
        with pytest.raises(ValueError, match="in there"), counted(count, str(number)):
            raise ValueError("in there")
    assert not count.is_full()
    assert not count._by_key


def test_a_headcount_limit_of_0_is_off() -> None:
    count = Headcount(limit=0, limit_per_key=0)
    with ExitStack() as inside:
        for _ in range(1_000):
            inside.enter_context(counted(count, "a"))
        assert not count.is_full()
        assert not count.is_full_for("a")


def test_asking_about_a_key_does_not_remember_it() -> None:
    count = Headcount(limit=0, limit_per_key=1)
    assert not any(count.is_full_for(str(number)) for number in range(1_000))
    assert not count._by_key


# ------------------------------------------------------------------------------- sizes


@given(st.text())
def test_a_texts_size_is_that_of_its_utf_8(text: str) -> None:
    assert wire_size(text) == len(text.encode())


@given(st.binary())
def test_a_binarys_size_is_its_length(data: bytes) -> None:
    assert wire_size(data) == len(data)


# ------------------------------------------------------------------------- per address

LOCAL = PerAddress(handshake_rate=0, connections=0, unauthenticated=0)
EXPOSED = PerAddress(handshake_rate=50, connections=1000, unauthenticated=128)


def per_address(**settings: Any) -> PerAddress:
    return Settings(_env_file=None, data_dir=Path("data"), **settings).per_address


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1"])
def test_all_on_this_machine_share_an_address_so_it_has_no_limits(host: str) -> None:
    assert per_address(host=host) == LOCAL


@pytest.mark.parametrize(
    "settings",
    [
        {"host": "0.0.0.0"},  # noqa: S104 - nothing is bound
        {"host": "::"},
        {"host": "192.0.2.1"},
        {"host": "ws.example.com"},
        {"behind_proxy": True},
        {"host": "192.0.2.1", "behind_proxy": True},
    ],
    ids=str,
)
def test_where_strangers_can_come_an_address_has_limits(
    settings: dict[str, Any],
) -> None:
    assert per_address(**settings) == EXPOSED


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1"])
@pytest.mark.parametrize("value", [0, 7])
def test_what_was_set_holds_wherever_it_is_and_0_is_off(host: str, value: int) -> None:
    assert per_address(
        host=host,
        handshake_rate=value,
        max_connections_per_address=value,
        max_unauthenticated_per_address=value,
    ) == PerAddress(handshake_rate=value, connections=value, unauthenticated=value)


@pytest.mark.parametrize(
    ("setting", "field"),
    [
        ("handshake_rate", "handshake_rate"),
        ("max_connections_per_address", "connections"),
        ("max_unauthenticated_per_address", "unauthenticated"),
    ],
)
def test_what_was_set_leaves_the_others_as_they_are(setting: str, field: str) -> None:
    for host, usual in (("127.0.0.1", LOCAL), ("192.0.2.1", EXPOSED)):
        found = per_address(host=host, **{setting: 3})
        for name in ("handshake_rate", "connections", "unauthenticated"):
            expected = 3 if name == field else getattr(usual, name)
            assert getattr(found, name) == expected


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("", "unix:", False),
    ],
)
def test_an_address_of_ipv6_is_its_whole_network(
    one: str, other: str, same: bool
) -> None:
    assert (household(one) == household(other)) is same
