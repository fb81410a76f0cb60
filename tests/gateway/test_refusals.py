"""Refused calls are counted by minute, service, key and code, and sent to the meter (B32)."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from farebox.gateway.refusals import RefusalCounter, Refused
from farebox.meterapi.client import MeterClient
from farebox.meterapi.refusals import RefusalReport
from tests.gateway.harness import NOW, Harness, api_key, service
from tests.meter.support import ADMIN, GATEWAY, Running

LIMITED = Refused("team-a", "chat", "ci", "rate_limit_exceeded", 429)
MINUTE = NOW.replace(second=0, microsecond=0)
TODAY = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=10)
"""The meter's clock is real, and it keeps counts for some weeks."""


@pytest.fixture
async def harness() -> Harness:
    return Harness()


@pytest.fixture
async def gateway(meter: Running) -> AsyncIterator[MeterClient]:
    """The meter's client with the rights of a gateway to post."""
    async with MeterClient(meter.url, GATEWAY) as made:
        yield made


def counted(harness: Harness) -> dict[Refused, int]:
    """What is not sent yet."""
    return {
        Refused(each.namespace, each.service, each.api_key, each.code, each.status): each.count
        for each in harness.handler.refusals.unsent()
    }


async def test_every_refused_call_is_counted_where_it_belongs(harness: Harness) -> None:
    harness.put(service(limits={"rpm": 1}), api_key("old", token="fbx_" + "c" * 43, disabled=True))
    await harness.forwarded()
    assert counted(harness) == {}
    await harness.refused()
    await harness.refused()
    await harness.refused({"model": "nothing"})
    await harness.refused(b"[")
    await harness.refused(method="DELETE")
    await harness.refused(path="/v1/files")
    await harness.refused(headers={"authorization": "Bearer fbx_" + "c" * 43})
    await harness.refused(headers={"authorization": "Bearer fbx_" + "d" * 43})
    harness.handler.count_refusal(harness.head(), 413, "request_too_large")
    harness.handler.ready.clear()
    await harness.refused()
    assert counted(harness) == {
        LIMITED: 2,
        Refused("team-a", None, "ci", "model_not_found", 404): 1,
        Refused("team-a", None, "ci", "invalid_type", 400): 1,
        Refused("team-a", None, "ci", "method_not_allowed", 405): 1,
        Refused("team-a", None, "ci", "unknown_url", 404): 1,
        Refused("team-a", None, "old", "api_key_disabled", 401): 1,
        Refused("", None, None, "invalid_api_key", 401): 1,
        Refused("team-a", None, "ci", "request_too_large", 413): 1,
        Refused("team-a", None, "ci", "starting", 503): 1,
    }


async def test_names_that_callers_make_up_are_not_counted_apart(harness: Harness) -> None:
    for number in range(50):
        await harness.refused({"model": f"guess-{number}"})
        await harness.refused(headers={"authorization": f"Bearer fbx_{number:043d}"})
    assert sorted(counted(harness).values()) == [50, 50]


async def report(meter: Running) -> RefusalReport:
    """All refused calls of some minutes."""
    async with MeterClient(meter.url, ADMIN) as reader:
        day = {"from": TODAY.isoformat(), "to": (TODAY + timedelta(minutes=5)).isoformat()}
        return await reader.refusals(day | {"bucket": "minute"})


async def test_the_meter_has_each_refused_call_once(meter: Running, gateway: MeterClient) -> None:
    counter = RefusalCounter()
    for seconds in (0, 10, 20):
        counter.add(LIMITED, TODAY + timedelta(seconds=seconds))
        await counter.send(gateway, "gateway-0/1")
        await counter.send(gateway, "gateway-0/1")
    counter.add(LIMITED, TODAY + timedelta(minutes=1))
    await counter.close(gateway, "gateway-0/1")
    rows = (await report(meter)).rows
    assert [(row.start, row.service, row.api_key, row.code, row.count) for row in rows] == [
        (TODAY + timedelta(minutes=1), "chat", "ci", LIMITED.code, 1),
        (TODAY, "chat", "ci", LIMITED.code, 3),
    ]


async def test_counts_wait_for_an_unreachable_meter(meter: Running, gateway: MeterClient) -> None:
    counter = RefusalCounter()
    counter.add(LIMITED, TODAY)
    async with MeterClient("http://127.0.0.1:9", GATEWAY) as nowhere:
        await counter.send(nowhere, "gateway-0/1")
    counter.add(LIMITED, TODAY)
    await counter.send(gateway, "gateway-0/1")
    assert [row.count for row in (await report(meter)).rows] == [2]
    assert counter.unsent() == []


async def test_a_call_that_is_refused_while_counts_are_sent_is_not_lost() -> None:
    counter, sent = RefusalCounter(), []

    class Busy:
        """A meter during whose answer one more call is refused."""

        async def report_refusals(self, source: str, refusals: Any) -> int:
            sent.append(refusals[0].count)
            if len(sent) == 1:
                counter.add(LIMITED, NOW)
            return len(refusals)

    counter.add(LIMITED, NOW)
    for _ in range(3):
        await counter.send(Busy(), "gateway-0/1")
    assert sent == [1, 2]


def test_memory_is_bounded_and_the_oldest_minutes_go_first() -> None:
    counter = RefusalCounter(limit=100)
    for minute in range(1000):
        counter.add(LIMITED, NOW + timedelta(minutes=minute))
    left = counter.unsent()
    assert len(left) == 100
    assert left[-1].minute == MINUTE + timedelta(minutes=999)
