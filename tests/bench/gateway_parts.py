"""Farebox's decision process for the benchmark: python -m tests.bench.gateway_parts DIRECTORY UPSTREAM.

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

from farebox.domain.money import MAX_NANO, Nano
from farebox.gateway.admin import Admin
from farebox.gateway.budgets import Budgets
from farebox.gateway.counters import MemoryCounters
from farebox.gateway.envoy import EnvoySettings
from farebox.gateway.handler import Gate, utc_now
from farebox.gateway.meter import Event, Receipt
from farebox.gateway.outbox import Outbox
from farebox.gateway.process import primed
from farebox.gateway.purse import Purse
from farebox.gateway.server import listening
from farebox.gateway.settling import Settling
from farebox.gateway.view import GatewayView
from farebox.ledger.port import Budget, BudgetClaim
from tests.gateway.rules import world

_HEAR_SECONDS = 0.5


class Counted:
    """Takes all events."""

    async def post(self, events: Sequence[Event]) -> Receipt:
        return Receipt()


async def claim(asked: BudgetClaim) -> Budget:
    """Nobody else spends."""
    return Budget(asked.account, asked.amount, Nano(0), datetime.now(UTC) + timedelta(hours=1))


def opened(upstream: str) -> tuple[Gate, Purse]:
    """A gate with one service "chat", whose key and limits count, and more money than can be spent."""
    purse = Purse(max_age=300)
    view = GatewayView(purse)
    budgets, counters = Budgets("bench", claim), MemoryCounters()
    settling = Settling(view, purse, budgets, counters, utc_now)
    limits = {"rpm": 1_000_000_000, "tpm": 1_000_000_000_000, "maxOutputTokens": 8192}
    view.models.put(world.model(limits=limits))
    view.services.put(world.service())
    view.keys.put(world.api_key())
    view.accounts.put(world.account())
    gate = Gate(
        view=view,
        purse=purse,
        budgets=budgets,
        counters=counters,
        settling=settling,
        credentials=world.Tokens(),  # type: ignore[arg-type]
        backend_address=lambda name, port: upstream,
    )
    primed(gate)
    return gate, purse


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
    gate, purse = opened(upstream)
    hearing = [asyncio.create_task(hear(purse)), asyncio.create_task(gate.settling.run())]
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
