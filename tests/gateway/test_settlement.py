"""From a line of Envoy's log to what is counted and held: nothing stays that was not used (B15, B17)."""

import asyncio
import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from farebox.domain.billing.money import Nano
from farebox.gateway import settlement
from farebox.gateway.interface import ImmediateResponse, Route
from farebox.gateway.metering.outbox import Outbox
from farebox.gateway.metering.publisher import Event, PublishResult, RejectedEvent
from farebox.gateway.metering.usage import billed_tokens, parse
from farebox.meterapi.types import CreditLease
from tests.gateway.h2_client import eventually
from tests.gateway.world import ACCOUNT, NOW, UNIT, World, account, api_key, service


def log_line(world: World, forward: Route, request_id: str, *, status: int = 200, output: int = 50) -> bytes:
    """What Envoy writes of a call that used 20 tokens in and `output` out."""
    usage = {"last": json.dumps({"prompt_tokens": 20, "completion_tokens": output})}
    line = {
        "at": str(world.clock().timestamp()),
        "id": request_id,
        "status": status,
        "details": "via_upstream",
        "flags": "-",
        "labels": json.dumps(dict(forward.labels)),
        "usage": usage if status == 200 else None,
        "sent": 100,
        "upstream": 100,
        "ms": 5,
    }
    return json.dumps(line).encode()


def report_usage(world: World, text: bytes) -> None:
    line = parse(text)
    world.settlement.on_usage(line, billed_tokens(line))


@pytest.fixture
async def world() -> World:
    return World()


async def test_usage_of_the_log_settles_money_and_counts(world: World) -> None:
    world.put(service(limits={"tpm": 1000}), api_key(quota={"tokens": 1000, "period": "Day"}))
    forward = await world.forwarded()
    report_usage(world, log_line(world, forward, "req-1"))
    await world.settlement.correct()
    assert world.spend.available(ACCOUNT) == 5 * UNIT - 20 * 500 - 50 * 1500
    _, _, headers = await world.refused({"model": "chat", "max_tokens": 8000})
    assert headers["x-ratelimit-remaining-tokens"] == str(1000 - 70)


async def test_an_upstream_error_costs_nothing_and_releases_the_hold(world: World) -> None:
    world.put(account("Hard"), service(limits={"tpm": 200}))
    forward = await world.forwarded()
    assert world.leases.holds("req-1")
    report_usage(world, log_line(world, forward, "req-1", status=500))
    await world.settlement.correct()
    assert not world.leases.holds("req-1")
    assert world.spend.available(ACCOUNT) == 5 * UNIT
    assert isinstance(await world.call(), Route), "nor does it count"


async def test_an_abandoned_call_holds_nothing_after_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it did: then the log has it by then, and it holds what it did until it is charged."""
    monkeypatch.setattr(settlement, "ABANDONED_SECONDS", 0.01)
    world.put(account("Hard"), service(limits={"tpm": 1000}))
    forward = await world.forwarded(request_id="went")
    await world.forwarded(request_id="did not")
    world.settlement.abandoned("went")
    world.settlement.abandoned("did not")
    report_usage(world, log_line(world, forward, "went"))
    await eventually(lambda: not world.leases.holds("did not"))
    assert world.leases.holds("went")
    assert world.spend.available(ACCOUNT) == 5 * UNIT - 20 * 500 - 50 * 1500
    await world.settlement.correct()
    _, _, headers = await world.refused({"model": "chat", "max_tokens": 8000})
    assert headers["x-ratelimit-remaining-tokens"] == str(1000 - 70)


async def test_a_hold_stays_until_the_ledger_has_charged_the_call(world: World) -> None:
    world.put(account("Hard"))
    forward = await world.forwarded()
    report_usage(world, log_line(world, forward, "req-1"))
    assert world.leases.holds("req-1")
    spent = Nano(20 * 500 + 50 * 1500)
    world.settlement.acknowledged(
        ["req-1"], [CreditLease(ACCOUNT, Nano(UNIT), spent, NOW + timedelta(hours=1))]
    )
    assert not world.leases.holds("req-1")


async def test_counts_are_corrected_while_calls_end(world: World) -> None:
    world.put(service(limits={"tpm": 100_000}))
    task = asyncio.create_task(world.settlement.run())
    forwards = [await world.forwarded(request_id=f"r{number}") for number in range(200)]
    for number, forward in enumerate(forwards):
        world.settlement.settle(f"r{number}", world.clock(), forward.labels, (0, 0, 1))

    async def remaining() -> int:
        answer = await world.call({"model": "chat", "max_tokens": 8192, "n": 128})
        assert isinstance(answer, ImmediateResponse)
        return int(answer.headers["x-ratelimit-remaining-tokens"])

    async with asyncio.timeout(60):
        while await remaining() != 100_000 - 200:  # noqa: ASYNC110 - only an answer tells
            await asyncio.sleep(0.01)
    task.cancel()


async def test_unreadable_labels_settle_the_rest(world: World) -> None:
    forward = await world.forwarded()
    labels = {**forward.labels, "taken": "nonsense", "model": "gone"}
    world.settlement.settle("req-1", world.clock(), labels, (10**12, 0, 0))
    await world.settlement.correct()
    assert world.spend.available(ACCOUNT) == 5 * UNIT


class Meter:
    """A meter that takes all but one event."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    async def post(self, events: Sequence[Event]) -> PublishResult:
        self.events += events
        spent = Nano(20 * 500 + 50 * 1500)
        return PublishResult(
            [RejectedEvent(event, "TimeInFuture", "") for event in events if event["id"].endswith("-req-2")],
            [CreditLease(ACCOUNT, Nano(UNIT), spent, NOW + timedelta(hours=1))],
        )


async def test_the_outbox_reports_acknowledged_calls_to_the_settlement(world: World, tmp_path: Path) -> None:
    world.put(account("Hard"))
    log = tmp_path / "usage.log"
    forwards = [await world.forwarded() for _ in range(3)]
    lines = [
        log_line(world, forwards[0], "req-1"),
        log_line(world, forwards[1], "req-2"),
        log_line(world, forwards[2], "req-3", status=503),
    ]
    log.write_bytes(b"".join(line + b"\n" for line in lines))

    async def reopen() -> None:
        pass

    meter = Meter()
    outbox = Outbox(log, "gateway-0", meter, reopen, world.settlement.on_usage, world.settlement.acknowledged)
    stop = asyncio.Event()
    task = asyncio.create_task(outbox.run(stop))
    await eventually(lambda: not any(world.leases.holds(f"req-{number}") for number in (1, 2, 3)))
    stop.set()
    await task
    assert [event["data"]["requestId"] for event in meter.events] == ["req-1", "req-2"]
    world.clock.pass_(1)
    world.report_balance(4 * UNIT, 2)
    assert world.spend.available(ACCOUNT) == 4 * UNIT
