"""From a line of Envoy's log to what is counted and held: nothing stays that was not used (B15, B17)."""

import asyncio
import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from farebox.domain.billing.coverage import CallTokens
from farebox.domain.billing.money import Nano
from farebox.gateway import settlement
from farebox.gateway.interface import ImmediateResponse, Route
from farebox.gateway.metering.outbox import Outbox
from farebox.gateway.metering.publisher import Event, PublishResult, RejectedEvent
from farebox.gateway.metering.usage import billed_tokens, parse
from farebox.meterapi.types import CreditLease
from tests.gateway.h2_client import eventually
from tests.gateway.harness import ACCOUNT, NOW, UNIT, Harness, account, api_key, service


def log_line(
    harness: Harness, forward: Route, request_id: str, *, status: int = 200, output: int = 50
) -> bytes:
    """What Envoy writes of a call that used 20 tokens in and `output` out."""
    usage = {"last": json.dumps({"prompt_tokens": 20, "completion_tokens": output})}
    line = {
        "at": str(harness.clock().timestamp()),
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


def report_usage(harness: Harness, text: bytes) -> None:
    line = parse(text)
    harness.settlement.on_usage(line, billed_tokens(line))


@pytest.fixture
async def harness() -> Harness:
    return Harness()


async def test_usage_of_the_log_settles_money_and_counts(harness: Harness) -> None:
    harness.put(service(limits={"tpm": 1000}), api_key(quota={"tokens": 1000, "period": "Day"}))
    forward = await harness.forwarded()
    report_usage(harness, log_line(harness, forward, "req-1"))
    await harness.settlement.correct()
    assert harness.spend.available(ACCOUNT) == 5 * UNIT - 20 * 500 - 50 * 1500
    _, _, headers = await harness.refused({"model": "chat", "max_tokens": 8000})
    assert headers["x-ratelimit-remaining-tokens"] == str(1000 - 70)


async def test_an_upstream_error_costs_nothing_and_releases_the_hold(harness: Harness) -> None:
    harness.put(account("Hard"), service(limits={"tpm": 200}))
    forward = await harness.forwarded()
    assert harness.leases.holds("req-1")
    report_usage(harness, log_line(harness, forward, "req-1", status=500))
    await harness.settlement.correct()
    assert not harness.leases.holds("req-1")
    assert harness.spend.available(ACCOUNT) == 5 * UNIT
    assert isinstance(await harness.call(), Route), "nor does it count"


async def test_an_abandoned_call_holds_nothing_after_a_while(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it did: then the log has it by then, and it holds what it did until it is charged."""
    monkeypatch.setattr(settlement, "ABANDONED_SECONDS", 0.01)
    harness.put(account("Hard"), service(limits={"tpm": 1000}))
    forward = await harness.forwarded(request_id="went")
    await harness.forwarded(request_id="did not")
    harness.settlement.abandoned("went")
    harness.settlement.abandoned("did not")
    report_usage(harness, log_line(harness, forward, "went"))
    await eventually(lambda: not harness.leases.holds("did not"))
    assert harness.leases.holds("went")
    assert harness.spend.available(ACCOUNT) == 5 * UNIT - 20 * 500 - 50 * 1500
    await harness.settlement.correct()
    _, _, headers = await harness.refused({"model": "chat", "max_tokens": 8000})
    assert headers["x-ratelimit-remaining-tokens"] == str(1000 - 70)


async def test_a_hold_stays_until_the_ledger_has_charged_the_call(harness: Harness) -> None:
    harness.put(account("Hard"))
    forward = await harness.forwarded()
    report_usage(harness, log_line(harness, forward, "req-1"))
    assert harness.leases.holds("req-1")
    spent = Nano(20 * 500 + 50 * 1500)
    harness.settlement.acknowledged(
        ["req-1"], [CreditLease(ACCOUNT, Nano(UNIT), spent, NOW + timedelta(hours=1))]
    )
    assert not harness.leases.holds("req-1")


async def test_counts_are_corrected_while_calls_end(harness: Harness) -> None:
    harness.put(service(limits={"tpm": 100_000}))
    task = asyncio.create_task(harness.settlement.run())
    forwards = [await harness.forwarded(request_id=f"r{number}") for number in range(200)]
    for number, forward in enumerate(forwards):
        harness.settlement.settle(f"r{number}", harness.clock(), forward.labels, CallTokens(output=1))

    async def remaining() -> int:
        answer = await harness.call({"model": "chat", "max_tokens": 8192, "n": 128})
        assert isinstance(answer, ImmediateResponse)
        return int(answer.headers["x-ratelimit-remaining-tokens"])

    async with asyncio.timeout(60):
        while await remaining() != 100_000 - 200:  # noqa: ASYNC110 - only an answer tells
            await asyncio.sleep(0.01)
    task.cancel()


async def test_unreadable_labels_settle_the_rest(harness: Harness) -> None:
    forward = await harness.forwarded()
    labels = {**forward.labels, "taken": "nonsense", "model": "gone"}
    harness.settlement.settle("req-1", harness.clock(), labels, CallTokens(input=10**12))
    await harness.settlement.correct()
    assert harness.spend.available(ACCOUNT) == 5 * UNIT


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


async def test_the_outbox_reports_acknowledged_calls_to_the_settlement(
    harness: Harness, tmp_path: Path
) -> None:
    harness.put(account("Hard"))
    log = tmp_path / "usage.log"
    forwards = [await harness.forwarded() for _ in range(3)]
    lines = [
        log_line(harness, forwards[0], "req-1"),
        log_line(harness, forwards[1], "req-2"),
        log_line(harness, forwards[2], "req-3", status=503),
    ]
    log.write_bytes(b"".join(line + b"\n" for line in lines))

    async def reopen() -> None:
        pass

    meter = Meter()
    outbox = Outbox(
        log, "gateway-0", meter, reopen, harness.settlement.on_usage, harness.settlement.acknowledged
    )
    stop = asyncio.Event()
    task = asyncio.create_task(outbox.run(stop))
    await eventually(lambda: not any(harness.leases.holds(f"req-{number}") for number in (1, 2, 3)))
    stop.set()
    await task
    assert [event["data"]["requestId"] for event in meter.events] == ["req-1", "req-2"]
    harness.clock.pass_(1)
    harness.report_balance(4 * UNIT, 2)
    assert harness.spend.available(ACCOUNT) == 4 * UNIT
