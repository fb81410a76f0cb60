"""Farebox's decision process for the benchmark: python -m tests.tools.bench.gateway_parts DIRECTORY UPSTREAM.

All that decides calls and settles them is the real thing. What is not here is other machines' work: objects
do not come from an API server, and usage is counted where it would be posted to the meter.
"""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import uvloop

from farebox.domain.billing.money import MAX_NANO, Nano
from farebox.gateway.envoy.admin import Admin
from farebox.gateway.envoy.bootstrap import EnvoySettings
from farebox.gateway.ext_proc.server import listening
from farebox.gateway.handler import Handler
from farebox.gateway.metering.outbox import Outbox
from farebox.gateway.metering.publisher import Event, PublishResult
from farebox.gateway.process import assembled, primed
from farebox.gateway.ratelimit.memory import MemoryCounters
from farebox.gateway.spend.credit_leases import CreditLeases
from farebox.gateway.spend.tracker import SpendTracker
from farebox.meterapi.types import CreditLease, CreditLeaseRequest
from tests.gateway import harness

_REPORT_SECONDS = 0.5


class Counted:
    """Takes all events."""

    async def post(self, events: Sequence[Event]) -> PublishResult:
        return PublishResult()


async def claim(asked: CreditLeaseRequest) -> CreditLease:
    """Nobody else spends."""
    return CreditLease(asked.account, asked.amount, Nano(0), datetime.now(UTC) + timedelta(hours=1))


def opened(upstream: str) -> Handler:
    """A gate with a service "chat" of two tenants, whose limits count, and more money than can be spent."""
    gate = assembled(
        CreditLeases("bench", claim),
        MemoryCounters(),
        harness.Tokens(),  # type: ignore[arg-type]
        lambda name, port: upstream,
        balance_max_age_seconds=300,
    )
    limits = {"rpm": 1_000_000_000, "tpm": 1_000_000_000_000, "maxOutputTokens": 8192}
    gate.snapshot.models.put(harness.model(limits=limits))
    gate.snapshot.services.put(harness.service())
    gate.snapshot.keys.put(harness.api_key())
    gate.snapshot.services.put(harness.service("chat", "team-b"))
    gate.snapshot.keys.put(harness.api_key("b", "team-b", harness.OTHER_TOKEN))
    gate.snapshot.accounts.put(harness.account())
    primed(gate)
    return gate


async def report_balance(spend: SpendTracker) -> None:
    """Report balances to the tracker at an interval, as the feed does."""
    sequence = 0
    while True:
        sequence += 1
        spend.update([harness.balance(MAX_NANO // 2, sequence)], [], True, spend.clock())
        await asyncio.sleep(_REPORT_SECONDS)


async def decide(directory: Path, upstream: str) -> None:
    """Serve until SIGTERM."""
    settings = EnvoySettings(directory)
    gate = opened(upstream)
    tasks = [asyncio.create_task(report_balance(gate.spend)), asyncio.create_task(gate.settlement.run())]
    async with (
        Admin(settings.admin_socket) as admin,
        listening(settings.decision_socket, gate.handle, settings.max_body_bytes),
    ):
        outbox = Outbox(
            settings.log_file,
            "bench",
            Counted(),
            admin.reopen_log,
            gate.settlement.on_usage,
            gate.settlement.acknowledged,
        )
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await outbox.run(stop)
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


if __name__ == "__main__":
    uvloop.run(decide(Path(sys.argv[1]), sys.argv[2]))
