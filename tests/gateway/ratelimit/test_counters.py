"""Counters in memory and in a real Valkey server: the same tests on both (B15)."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farebox.domain.admission.rate_limits import corrections, first_exceeded
from farebox.domain.admission.types import LimitRequest, Window
from farebox.gateway.ratelimit.base import Counters
from farebox.gateway.ratelimit.memory import MemoryCounters
from farebox.gateway.ratelimit.valkey import ValkeyCounters

NOW = 1_772_366_430_000  # 2026-03-01 12:00:30 UTC
_names = itertools.count()
Open = Callable[[], Counters]


@pytest.fixture(params=["memory", "valkey"])
async def opened(request: pytest.FixtureRequest) -> AsyncIterator[Open]:
    """Opens what a replica counts with; all that it opens share their counts."""
    made: list[Counters] = []
    memory = MemoryCounters()

    def open_() -> Counters:
        if request.param == "memory":
            return memory
        made.append(ValkeyCounters(request.getfixturevalue("valkey_url"), timeout=10))
        return made[-1]

    yield open_
    for each in made:
        await each.close()


@pytest.fixture
def counters(opened: Open) -> Counters:
    return opened()


def limit_request(
    limit: int, required: int = 1, optional: int = 0, window: Window = Window.SLIDING, **given: Any
) -> LimitRequest:
    """A request on a count that no other test has, unless it is named."""
    counter = given.pop("counter", f"rpm:{{test}}/{next(_names)}")
    return LimitRequest("rpm", counter, window, limit, required, optional, **given)


async def test_a_limit_admits_its_number_and_no_more(counters: Counters) -> None:
    each = limit_request(3)
    answers = [await counters.take([each], NOW + second * 1000) for second in range(5)]
    assert [len(answer.consumption) for answer in answers] == [1, 1, 1, 0, 0]
    assert [answer.totals for answer in answers] == [(1,), (2,), (3,), (), ()]
    (limit_status,) = answers[-1].limit_statuses
    assert (limit_status.used, limit_status.remaining) == (3, 0)
    assert limit_status.retry_ms == 57_000
    assert (await counters.take([each], NOW + 4000 + limit_status.retry_ms)).consumption


@pytest.mark.parametrize("window", Window)
async def test_the_status_after_a_call_is_what_a_refusal_at_that_time_would_report(
    counters: Counters, window: Window
) -> None:
    each = limit_request(3, required=2, window=window)
    (after,) = (await counters.take([each], NOW)).statuses_after(NOW)
    (refused,) = (await counters.take([each], NOW)).limit_statuses
    assert (after.request, after.used, after.reset_ms) == (each, refused.used, refused.reset_ms)
    assert after.remaining == 1


@pytest.mark.parametrize("window", Window)
async def test_all_of_a_call_is_counted_or_nothing(counters: Counters, window: Window) -> None:
    roomy, tight = limit_request(10, window=window), limit_request(1, window=window)
    assert len((await counters.take([roomy, tight], NOW)).consumption) == 2
    for _ in range(3):
        answer = await counters.take([roomy, tight], NOW)
        assert answer.consumption == ()
        assert [limit_status.used for limit_status in answer.limit_statuses] == [1, 1]
        refusing = first_exceeded(answer.limit_statuses)
        assert refusing is not None
        assert refusing.request == tight


async def test_the_optional_amount_is_counted_as_far_as_it_fits(counters: Counters) -> None:
    each = limit_request(100, required=10, optional=60)
    amounts = []
    for _ in range(3):
        answer = await counters.take([each], NOW)
        amounts.append(sum(consumption.amount for consumption in answer.consumption))
    assert amounts == [70, 30, 0]


async def test_a_request_that_is_not_enforced_is_counted_beyond_the_limit(counters: Counters) -> None:
    each = limit_request(100, required=80, optional=40, enforced=False)
    assert [(await counters.take([each], NOW)).totals for _ in range(2)] == [(120,), (240,)]


@pytest.mark.parametrize("window", Window)
async def test_reading_reports_what_a_refusal_would_and_counts_nothing(
    counters: Counters, window: Window
) -> None:
    each, other = limit_request(3, required=3, window=window), limit_request(5, window=window)
    await counters.take([each], NOW)
    read = await counters.read([each, other], NOW)
    assert [status.used for status in read] == [3, 0]
    assert read == await counters.read([each, other], NOW)
    assert read[:1] == (await counters.take([each], NOW)).limit_statuses
    assert await counters.read([], NOW) == ()


async def test_no_requests_always_fit(counters: Counters) -> None:
    assert await counters.take([], NOW) == await MemoryCounters().take([], NOW)
    await counters.adjust([], NOW)


@pytest.mark.parametrize("window", Window)
@pytest.mark.parametrize("actual", [0, 30, 70])
async def test_counts_are_corrected_by_what_was_used(counters: Counters, window: Window, actual: int) -> None:
    each = limit_request(100, required=50, window=window)
    (consumption,) = (await counters.take([each], NOW)).consumption
    await counters.adjust(corrections(consumption, actual, NOW + 5000), NOW + 5000)
    answer = await counters.take([limit_request(100, 1, window=window, counter=each.counter)], NOW + 5000)
    assert answer.totals == (actual + 1,)


@pytest.mark.parametrize("window", [Window.SLIDING, Window.MINUTE, Window.DAY, Window.MONTH])
async def test_old_use_expires(counters: Counters, window: Window) -> None:
    each = limit_request(100, required=100, window=window)
    (consumption,) = (await counters.take([each], NOW)).consumption
    later = NOW + 40 * 86_400_000
    assert (await counters.take([each], later)).consumption
    await counters.adjust(corrections(consumption, 0, later), later)
    assert not (await counters.take([each], later)).consumption, "giving back what is gone makes no room"


async def test_a_lifetime_has_no_end(counters: Counters) -> None:
    each = limit_request(100, required=100, window=Window.LIFETIME)
    assert (await counters.take([each], NOW)).consumption
    (limit_status,) = (await counters.take([each], NOW + 10**12)).limit_statuses
    assert limit_status.retry_ms is None


async def test_a_count_is_raised_and_never_lowered(counters: Counters) -> None:
    each = limit_request(100, required=1, window=Window.MONTH)
    for used, total in ((40, 41), (10, 42), (99, 100)):
        await counters.raise_to(each.counter, each.window, used, NOW)
        assert (await counters.take([each], NOW)).totals == (total,)


@pytest.mark.parametrize("window", [Window.SLIDING, Window.DAY])
async def test_64_racing_clients_take_exactly_the_limit(opened: Open, window: Window) -> None:
    replicas = [opened(), opened()]
    requests, tokens = (
        limit_request(500, window=window),
        limit_request(7001, required=7, optional=7, window=window),
    )
    admitted, used = 0, 0

    async def client(number: int) -> None:
        nonlocal admitted, used
        for _ in range(20):
            answer = await replicas[number % 2].take([requests, tokens], NOW)
            if answer.consumption:
                admitted += 1
                used += answer.consumption[1].amount

    await asyncio.gather(*map(client, range(64)))
    (last,) = (
        await replicas[0].take([limit_request(1, 1, window=window, counter=tokens.counter)], NOW)
    ).limit_statuses
    assert admitted <= 500
    assert used == last.used
    assert 7001 - 7 < used <= 7001
    assert (
        admitted
        == (await replicas[0].take([limit_request(1, 1, window=window, counter=requests.counter)], NOW))
        .limit_statuses[0]
        .used
    )


STEPS = st.lists(
    st.tuples(
        st.integers(0, 40_000),
        st.lists(
            st.tuples(st.integers(0, 2), st.integers(1, 6), st.integers(0, 6), st.booleans()),
            min_size=1,
            max_size=3,
            unique_by=lambda each: each[0],
        ),
        st.integers(0, 12),
    ),
    max_size=25,
)


@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=STEPS)
def test_memory_and_valkey_give_equal_results(valkey_url: str, steps: list[Any]) -> None:
    names = [(f"c:{{test}}/{next(_names)}", window) for window in (Window.SLIDING, Window.MINUTE, Window.DAY)]

    async def run() -> None:
        memory, shared, now = MemoryCounters(), ValkeyCounters(valkey_url, timeout=10), NOW
        try:
            for step, wanted, actual in steps:
                now += step
                requested = [
                    LimitRequest("x", names[which][0], names[which][1], 12, must, may, binding)
                    for which, must, may, binding in wanted
                ]
                answer = await memory.take(requested, now)
                assert await shared.take(requested, now) == answer
                for consumption in answer.consumption:
                    changes = corrections(consumption, actual, now + 500)
                    await memory.adjust(changes, now + 500)
                    await shared.adjust(changes, now + 500)
        finally:
            await shared.close()

    asyncio.run(run())


async def test_memory_counters_drop_entries_that_no_longer_count() -> None:
    memory = MemoryCounters()
    for window in Window:
        await memory.take([limit_request(10, window=window)], NOW)
    assert len(memory) == 5
    await memory.take([], NOW + 40 * 86_400_000)
    assert len(memory) == 1, "a lifetime alone is kept"
