"""Counters of key quotas are raised to the charged tokens (B15), with a real meter, ledger and counters."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from farebox.errors import LedgerUnavailable
from farebox.gateway.ratelimit.memory import MemoryCounters
from farebox.gateway.ratelimit.quota_sync import QuotaSync
from farebox.gateway.snapshot import GatewaySnapshot
from farebox.gateway.spend.tracker import SpendTracker
from farebox.meterapi.client import MeterClient
from tests.gateway.harness import api_key
from tests.ledger.support import START, binding, price, terms, topup, usage
from tests.meter.support import TENANT, Running

NOW = START + timedelta(hours=1)
MADE = START - timedelta(days=200)


@pytest_asyncio.fixture
async def remote(meter: Running, tmp_path: Path) -> AsyncIterator[MeterClient]:
    """The ledger over HTTP."""
    token = tmp_path / "token"
    token.write_text(TENANT)
    async with MeterClient(meter.url, token) as ledger:
        yield ledger


def key(name: str, period: str, created: datetime = MADE) -> dict[str, object]:
    """A key with a quota and an age."""
    raw = api_key(name, token=f"fbx_{name:a<43}", quota={"tokens": 10_000, "period": period})
    raw["metadata"]["creationTimestamp"] = created.isoformat()
    return raw


def counted(counters: MemoryCounters) -> dict[str, int]:
    """The counts by the counter's name."""
    return {counter: period.amount for (counter, _), period in counters._periods.items()}


async def test_counters_are_raised_to_the_charged_tokens(meter: Running, remote: MeterClient) -> None:
    await meter.ledger.record([terms(), binding(at=MADE), price(at=MADE)])
    await meter.ledger.post_topup(topup(amount="10"))
    long_ago, yesterday = START - timedelta(days=150), START - timedelta(days=1)
    times = {"1": START, "2": START, "3": yesterday, "4": long_ago}
    await meter.ledger.ingest(
        [
            usage(f"{name}-{number}", api_key=name, time=time)
            for name in ("day", "month", "life", "young", "other")
            for number, time in times.items()
        ]
    )
    view, counters = GatewaySnapshot(SpendTracker(60)), MemoryCounters()
    view.keys.put(key("day", "Day"))
    view.keys.put(key("month", "Month"))
    view.keys.put(key("life", "Lifetime"))
    view.keys.put(key("young", "Lifetime", START - timedelta(minutes=1)))
    view.keys.put(api_key("other"))
    quotas = QuotaSync(remote, view, counters, lambda: NOW)
    await quotas.sync()
    assert counted(counters) == {
        "key-day:{team-a}/day": 240,
        "key-month:{team-a}/month": 240,
        "key-lifetime:{team-a}/life": 480,
        "key-lifetime:{team-a}/young": 240,
    }
    await quotas.sync()
    assert counted(counters)["key-day:{team-a}/day"] == 240, "raised, not added"


async def test_an_unreachable_meter_is_retried(meter: Running, remote: MeterClient) -> None:
    view, counters = GatewaySnapshot(SpendTracker(60)), MemoryCounters()
    view.keys.put(key("life", "Lifetime"))
    async with MeterClient("http://127.0.0.1:1") as unreachable:
        with pytest.raises(LedgerUnavailable):
            await QuotaSync(unreachable, view, counters, lambda: NOW).sync()
    quotas = QuotaSync(remote, view, counters, lambda: NOW)
    await quotas.sync()
    assert counted(counters) == {}
