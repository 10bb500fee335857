"""Failed logins are counted for all processes together, within three moving windows."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import func, select

from authws.clock import Clock
from authws.exceptions import RateLimitedError, UnavailableError
from authws.service.login_throttle import LoginThrottle
from authws.stores.database import Database, migrate
from authws.stores.login_attempts import KNOWN_ADDRESSES, KNOWN_SECONDS, LoginAttempts
from authws.stores.schema import known_addresses, login_attempts
from tests.stores.support import NOW, FakeClock

ROOT = Path(__file__).parents[2]
RATE = 3
HERE, THERE = "192.0.2.1", "192.0.2.2"


@pytest.fixture
def throttle(db: Database, clock: FakeClock) -> LoginThrottle:
    return LoginThrottle(RATE, LoginAttempts(db, clock))


async def log_in(
    throttle: LoginThrottle,
    account: str = "alice",
    address: str = HERE,
    *,
    right: bool = False,
    delay: float = 0.0,
) -> str:
    """Make an attempt; tell what came of it."""
    try:
        async with throttle.attempt(account, address) as outcome:
            await asyncio.sleep(delay)
            outcome.is_success = right
    except RateLimitedError:
        return "refused"
    return "in" if right else "failed"


async def wait_of(
    throttle: LoginThrottle, account: str = "alice", address: str = HERE
) -> float:
    """Be refused; return for how many seconds."""
    with pytest.raises(RateLimitedError) as refusal:
        async with throttle.attempt(account, address):
            pytest.fail("it was let through")
    return refusal.value.retry_after


async def rows(db: Database) -> int:
    async with db.connect() as connection:
        count = select(func.count()).select_from(login_attempts)
        return int(await connection.scalar(count) or 0)


async def fail(
    throttle: LoginThrottle, times: int, account: str = "alice", address: str = HERE
) -> None:
    for _ in range(times):
        assert await log_in(throttle, account, address) == "failed"


# ------------------------------------------------------------- each limit, on each side


async def test_one_account_from_one_address(throttle: LoginThrottle) -> None:
    await fail(throttle, RATE)
    assert await log_in(throttle) == "refused"
    assert await log_in(throttle, right=True) == "refused"
    # neither the account elsewhere nor another one here is in the way of it
    assert await log_in(throttle, address=THERE) == "failed"
    assert await log_in(throttle, "bob") == "failed"


async def test_one_address(throttle: LoginThrottle) -> None:
    for number in range(RATE * 4):
        assert await log_in(throttle, f"user-{number}") == "failed"
    assert await log_in(throttle, "somebody-else") == "refused"
    assert await log_in(throttle, "somebody-else", THERE) == "failed"


async def test_one_account_from_anywhere(throttle: LoginThrottle) -> None:
    for number in range(100):
        assert await log_in(throttle, address=f"198.51.100.{number}") == "failed"
    assert await log_in(throttle, address=THERE) == "refused"
    assert await log_in(throttle, "bob", THERE) == "failed"


async def test_account_is_not_locked_where_it_logged_in_before(
    throttle: LoginThrottle,
) -> None:
    assert await log_in(throttle, right=True) == "in"
    for number in range(100):
        assert await log_in(throttle, address=f"198.51.100.{number}") == "failed"
    assert await log_in(throttle, address=THERE) == "refused"
    assert await log_in(throttle, right=True) == "in"


async def test_known_address_has_a_hundred_of_its_own(
    throttle: LoginThrottle, clock: FakeClock
) -> None:
    assert await log_in(throttle, right=True) == "in"
    for _ in range(33):
        await fail(throttle, RATE)
        clock.advance(60)
    assert await log_in(throttle) == "failed"
    # within the account's hour, though long out of the address's minute
    assert await wait_of(throttle) == pytest.approx(3600 - 33 * 60)
    assert await log_in(throttle, address=THERE) == "failed"


async def test_rate_of_zero_is_off_and_touches_nothing(
    db: Database, clock: FakeClock
) -> None:
    off = LoginThrottle(0, LoginAttempts(db, clock))
    await db.dispose()
    for right in (False, True):
        for _ in range(10):
            assert await log_in(off, right=right) != "refused"
    assert await rows(db) == 0


# ------------------------------------------------------------------- what a window is


async def test_window_moves_and_says_when_there_is_room(
    throttle: LoginThrottle, clock: FakeClock
) -> None:
    for _ in range(RATE):
        assert await log_in(throttle) == "failed"
        clock.advance(10)
    assert await wait_of(throttle) == pytest.approx(30)
    clock.advance(29.9)
    assert await wait_of(throttle) == 1.0
    clock.advance(0.1)
    assert await log_in(throttle) == "failed"
    assert await wait_of(throttle) == pytest.approx(10)


async def test_wait_is_that_of_the_window_which_opens_last(
    throttle: LoginThrottle, clock: FakeClock
) -> None:
    for number in range(RATE * 4 - RATE):
        assert await log_in(throttle, f"user-{number}") == "failed"
    clock.advance(20)
    await fail(throttle, RATE)
    assert await wait_of(throttle, "bob") == pytest.approx(40)  # the address's
    assert await wait_of(throttle) == pytest.approx(60)  # the pair's


async def test_refused_attempt_leaves_nothing_behind(
    throttle: LoginThrottle, db: Database, clock: FakeClock
) -> None:
    await fail(throttle, RATE)
    for _ in range(10):
        assert await log_in(throttle) == "refused"
    assert await rows(db) == RATE
    clock.advance(60)  # it was not counted, and puts nothing off
    assert await log_in(throttle) == "failed"


async def test_success_forgets_the_pairs_failures(throttle: LoginThrottle) -> None:
    for _ in range(3):
        await fail(throttle, RATE - 1)
        assert await log_in(throttle, right=True) == "in"
    await fail(throttle, RATE)
    assert await log_in(throttle) == "refused"


async def test_success_does_not_forget_what_the_address_tried_with_others(
    throttle: LoginThrottle,
) -> None:
    """Whoever has one account does not get the address's guesses back by it."""
    for number in range(RATE * 4 - 1):
        assert await log_in(throttle, f"user-{number}") == "failed"
        assert await log_in(throttle, "mallory", right=True) == "in"
    await fail(throttle, 1, account="mallory")
    assert await log_in(throttle, "mallory", right=True) == "refused"


async def test_error_by_which_nobody_learns_anything_does_not_count(
    throttle: LoginThrottle, db: Database
) -> None:
    for _ in range(RATE + 1):
        with pytest.raises(UnavailableError):
            async with throttle.attempt("alice", HERE):
                raise UnavailableError("too many passwords wait to be hashed")
    assert await rows(db) == 0


async def test_cancelled_attempt_has_failed(throttle: LoginThrottle) -> None:
    under_way = asyncio.Event()

    async def hang() -> None:
        async with throttle.attempt("alice", HERE):
            under_way.set()
            await asyncio.Event().wait()

    for _ in range(RATE):
        under_way.clear()
        attempt = asyncio.create_task(hang())
        await under_way.wait()
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt
    assert await log_in(throttle) == "refused"


# ------------------------------------------------------------------- attempts under way


async def test_attempt_under_way_counts_and_may_be_over_soon(
    throttle: LoginThrottle, clock: FakeClock
) -> None:
    await fail(throttle, RATE - 1)
    clock.advance(5)
    async with throttle.attempt("alice", HERE) as outcome:
        assert await wait_of(throttle) == 1.0
        outcome.is_success = True
    await fail(throttle, RATE)


async def test_attempt_that_nobody_will_settle_is_waited_for_as_a_failure(
    db: Database, clock: FakeClock
) -> None:
    one_an_hour = LoginThrottle(100, LoginAttempts(db, clock))
    for number in range(100):
        abandoned = one_an_hour.attempt("alice", f"198.51.100.{number}")
        await abandoned.__aenter__()
    assert await wait_of(one_an_hour) == 1.0
    clock.advance(60)
    assert await wait_of(one_an_hour) == pytest.approx(3540)


async def test_refused_for_one_limit_is_not_counted_for_another(
    throttle: LoginThrottle,
) -> None:
    await fail(throttle, RATE)
    for _ in range(RATE * 4):
        assert await log_in(throttle) == "refused"
    assert await log_in(throttle, "bob") == "failed"


# ----------------------------------------------------------- shared, and not doubled


@pytest.fixture
async def two(url: str, clock: FakeClock) -> AsyncIterator[list[LoginThrottle]]:
    """Two engines on one database, as two processes have them."""
    migrate(url)
    databases = [Database(url) for _ in range(2)]
    yield [LoginThrottle(RATE, LoginAttempts(one, clock)) for one in databases]
    for database in databases:
        await database.dispose()


async def test_two_throttles_on_one_database_count_together(
    two: list[LoginThrottle],
) -> None:
    outcomes = [await log_in(two[number % 2]) for number in range(6)]
    assert outcomes == ["failed"] * RATE + ["refused"] * 3
    assert await log_in(two[0], "bob", right=True) == "in"


async def test_success_at_one_is_known_to_the_other(two: list[LoginThrottle]) -> None:
    await fail(two[0], RATE - 1)
    assert await log_in(two[1], right=True) == "in"
    for number in range(100 - (RATE - 1)):
        assert await log_in(two[1], address=f"198.51.100.{number}") == "failed"
    for throttle in two:
        assert await log_in(throttle, address=THERE) == "refused"
    await fail(two[0], RATE)  # where she is at home, with a clean slate
    assert await log_in(two[1]) == "refused"


@pytest.mark.parametrize("spread", ["one-address", "many-addresses"])
async def test_burst_at_two_gets_no_more_guesses_than_at_one(
    two: list[LoginThrottle], spread: str
) -> None:
    burst = [
        log_in(
            two[number % 2],
            address=HERE if spread == "one-address" else f"198.51.100.{number}",
            delay=0.2,
        )
        for number in range(130)
    ]
    outcomes = Counter(await asyncio.gather(*burst))
    limit = RATE if spread == "one-address" else 100
    assert outcomes == {"failed": limit, "refused": 130 - limit}


async def test_successes_at_once_are_in_nobodys_way(
    two: list[LoginThrottle],
) -> None:
    """Each takes its own back, and clears what is settled, of one pair."""
    for _ in range(5):
        logins = [log_in(two[n % 2], right=True) for n in range(RATE)]
        assert set(await asyncio.gather(*logins)) == {"in"}


GUESS = """
import asyncio, sys
from authws.clock import Clock
from authws.exceptions import RateLimitedError
from authws.service.login_throttle import LoginThrottle
from authws.stores.database import Database
from authws.stores.login_attempts import LoginAttempts

async def guess(throttle: LoginThrottle) -> bool:
    try:
        async with throttle.attempt("alice", "192.0.2.1"):
            await asyncio.sleep(float(sys.argv[3]))
    except RateLimitedError:
        return False
    return True

async def main() -> None:
    database = Database(sys.argv[1])
    await database.ping()
    throttle = LoginThrottle(3, LoginAttempts(database, Clock()))
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    guesses = (guess(throttle) for _ in range(int(sys.argv[2])))
    print(sum(await asyncio.gather(*guesses)), flush=True)
    await database.dispose()

asyncio.run(main())
"""


async def guessing(url: str, guesses: int, delay: float) -> asyncio.subprocess.Process:
    """Start a process that waits for a line and then guesses, all at once."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", GUESS, url, str(guesses), str(delay)),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    return process


async def test_burst_through_two_processes_gets_no_more_guesses_than_the_limit(
    url: str,
) -> None:
    migrate(url)
    processes = [await guessing(url, 40, delay=0.3) for _ in range(2)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
    said = await asyncio.gather(*(process.communicate() for process in processes))
    assert sum(int(out) for out, _ in said) == 3


async def test_killed_process_leaves_failures_and_a_new_one_counts_them(
    url: str,
) -> None:
    migrate(url)
    process = await guessing(url, 2, delay=3600)
    assert process.stdin is not None
    process.stdin.write(b"go\n")
    await process.stdin.drain()
    database = Database(url)
    async with asyncio.timeout(20):
        while await rows(database) < 2:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    await process.wait()
    throttle = LoginThrottle(3, LoginAttempts(database, Clock()))
    assert await log_in(throttle) == "failed"
    assert await log_in(throttle) == "refused"
    await database.dispose()


# --------------------------------------------------------------------- what is kept


async def test_nothing_that_was_typed_is_kept(db: Database, clock: FakeClock) -> None:
    throttle = LoginThrottle(RATE, LoginAttempts(db, clock))
    typed = ["hunter2", "Zoë\x00", "\ud800", "", "a" * 64]
    for name in typed:
        assert await log_in(throttle, name) == "failed"
        assert await log_in(throttle, name, right=True) == "in"
    async with db.connect() as connection:
        attempts = (await connection.execute(select(login_attempts))).all()
        known = (await connection.execute(select(known_addresses))).all()
    assert (len(attempts), len(known)) == (len(typed), len(typed))
    texts = [value for row in (*attempts, *known) for value in row]
    digests = [text for text in texts if isinstance(text, str)]
    assert {len(text) for text in digests} == {43}
    assert "hunter2" not in str(texts)


async def test_what_counts_no_more_is_pruned(
    throttle: LoginThrottle, db: Database, clock: FakeClock
) -> None:
    attempts = LoginAttempts(db, clock)
    await fail(throttle, RATE)
    await attempts.prune(NOW + 3600)
    assert await rows(db) == RATE
    await attempts.prune(NOW + 3600.1)
    assert await rows(db) == 0


async def is_spared(throttle: LoginThrottle, address: str) -> bool:
    """Whether an address is one where the account is at home, once it is attacked."""
    for number in range(101):
        await log_in(throttle, address=f"198.51.100.{number}")
    return await log_in(throttle, address=address) != "refused"


@pytest.mark.parametrize(("age", "spared"), [(0.0, True), (1.0, False)])
async def test_address_is_remembered_for_so_long_after_its_last_use(
    db: Database, clock: FakeClock, age: float, spared: bool
) -> None:
    attempts = LoginAttempts(db, clock)
    throttle = LoginThrottle(RATE, attempts)
    assert await log_in(throttle, right=True) == "in"
    clock.advance(1000)
    assert await log_in(throttle, right=True) == "in"
    clock.advance(KNOWN_SECONDS + age)
    await attempts.prune(clock.now())
    assert await is_spared(throttle, HERE) is spared


async def test_so_many_addresses_of_an_account_are_remembered(
    db: Database, clock: FakeClock
) -> None:
    throttle = LoginThrottle(RATE, LoginAttempts(db, clock))
    for number in range(KNOWN_ADDRESSES + 1):
        address = f"203.0.113.{number}"
        assert await log_in(throttle, address=address, right=True) == "in"
        clock.advance(1)
        if number == 50:  # used again, the first is not the oldest any more
            await log_in(throttle, address="203.0.113.0", right=True)
            clock.advance(1)
    assert await is_spared(throttle, "203.0.113.0")
    assert await is_spared(throttle, f"203.0.113.{KNOWN_ADDRESSES}")
    assert not await is_spared(throttle, "203.0.113.1")
