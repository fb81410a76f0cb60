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
from tests.gateway import world

from farebox.domain.billing.money import MAX_NANO, Nano
from farebox.gateway.envoy.admin import Admin
from farebox.gateway.envoy.bootstrap import EnvoySettings
from farebox.gateway.ext_proc.server import listening
from farebox.gateway.handler import Gate
from farebox.gateway.metering.outbox import Outbox
from farebox.gateway.metering.publisher import Event, Receipt
from farebox.gateway.process import assembled, primed
from farebox.gateway.ratelimit.memory import MemoryCounters
from farebox.gateway.spend.credit_leases import Budgets
from farebox.gateway.spend.tracker import Purse
from farebox.meterapi.types import Budget, BudgetClaim

_HEAR_SECONDS = 0.5


class Counted:
    """Takes all events."""

    async def post(self, events: Sequence[Event]) -> Receipt:
        return Receipt()


async def claim(asked: BudgetClaim) -> Budget:
    """Nobody else spends."""
    return Budget(asked.account, asked.amount, Nano(0), datetime.now(UTC) + timedelta(hours=1))


def opened(upstream: str) -> Gate:
    """A gate with one service "chat", whose key and limits count, and more money than can be spent."""
    gate = assembled(
        Budgets("bench", claim),
        MemoryCounters(),
        world.Tokens(),  # type: ignore[arg-type]
        lambda name, port: upstream,
        balance_max_age_seconds=300,
    )
    limits = {"rpm": 1_000_000_000, "tpm": 1_000_000_000_000, "maxOutputTokens": 8192}
    gate.view.models.put(world.model(limits=limits))
    gate.view.services.put(world.service())
    gate.view.keys.put(world.api_key())
    gate.view.accounts.put(world.account())
    primed(gate)
    return gate


async def hear(purse: Purse) -> None:
    """The feed's word, again and again."""
    sequence = 0
    while True:
        sequence += 1
        purse.hear([world.balance(MAX_NANO // 2, sequence)], [], True, purse.clock())
        await asyncio.sleep(_HEAR_SECONDS)


async def decide(directory: Path, upstream: str) -> None:
    """Serve until SIGTERM."""
    settings = EnvoySettings(directory)
    gate = opened(upstream)
    hearing = [asyncio.create_task(hear(gate.purse)), asyncio.create_task(gate.settling.run())]
    async with (
        Admin(settings.admin_socket) as admin,
        listening(settings.decision_socket, gate.handle, settings.max_body_bytes),
    ):
        outbox = Outbox(
            settings.log_file,
            "bench",
            Counted(),
            admin.reopen_log,
            gate.settling.on_usage,
            gate.settling.acknowledged,
        )
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await outbox.run(stop)
    for task in hearing:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


if __name__ == "__main__":
    uvloop.run(decide(Path(sys.argv[1]), sys.argv[2]))
