from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authws.decisions.limits import KeyedBuckets, TokenBucket

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
