"""Holds before calls, against a real ledger: gateways that race never let an account fall below its line."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from pydantic import ValidationError

from farebox.domain.billing.money import Nano
from farebox.errors import LedgerUnavailable
from farebox.gateway.process import assembled, envoy_settings
from farebox.gateway.ratelimit.memory import MemoryCounters
from farebox.gateway.spend.credit_leases import DENIED_SECONDS, IDLE_SECONDS, CreditLeases
from farebox.gateway.spend.tracker import LOST_SECONDS
from farebox.ledger.booking.credit_leases import LEASE_SECONDS
from farebox.ledger.engine import Ledger
from farebox.meterapi.types import CreditLease, CreditLeaseRequest
from farebox.settings import GatewaySettings
from tests.gateway.h2_client import eventually
from tests.gateway.harness import Tokens
from tests.ledger.databases import SqliteDatabases
from tests.ledger.support import ACME, CALL_CHARGE, FACTS, balance, opened, topup, usage

UNIT = 1_000_000_000


class Seconds:
    """A monotonic clock that only the test moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.reads = 0

    def __call__(self) -> float:
        self.reads += 1
        return self.now


@pytest_asyncio.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    """A ledger with an account, a service and a model."""
    with SqliteDatabases(tmp_path).ledger() as database:
        async with opened(database) as ledger:
            await ledger.record(FACTS)
            yield ledger
        database.check()


async def finish(ledger: Ledger, leases: CreditLeases, source: str, request_id: str) -> None:
    """The call ended: its usage is charged, and the gateway hears of it."""
    result = await ledger.ingest([usage(request_id, source=source)])
    leases.release([request_id], result.leases)


async def test_b17_a_call_is_held_charged_and_free_again(ledger: Ledger) -> None:
    await ledger.post_topup(topup(amount=Nano(2 * CALL_CHARGE)))
    leases = CreditLeases("g", ledger.lease_credit)
    assert await leases.hold("1", ACME, Nano(2 * CALL_CHARGE))
    assert not await leases.hold("2", ACME, Nano(1))
    await finish(ledger, leases, "g", "1")
    # It cost half of what was held.
    assert await balance(ledger) == CALL_CHARGE
    assert await leases.hold("3", ACME, Nano(CALL_CHARGE))
    # A call that costs nothing gives all of it back.
    leases.release(["3"])
    assert await leases.hold("4", ACME, Nano(CALL_CHARGE))


async def test_b17_nothing_is_held_of_an_empty_account_until_it_is_topped_up(ledger: Ledger) -> None:
    clock = Seconds()
    leases = CreditLeases("g", ledger.lease_credit, clock)
    assert not await leases.hold("1", ACME, Nano(1))
    await ledger.post_topup(topup(amount="1"))
    clock.now += 1
    assert await leases.hold("1", ACME, Nano(UNIT))


async def test_b17_the_hold_of_a_lost_call_is_released(ledger: Ledger) -> None:
    """A call that ended keeps its hold while the ledger is unreachable."""
    clock = Seconds()
    await ledger.post_topup(topup(amount=Nano(2 * CALL_CHARGE)))
    leases = CreditLeases("g", ledger.lease_credit, clock, call_seconds=100)
    for call in ("lost", "ended"):
        assert await leases.hold(call, ACME, Nano(CALL_CHARGE))
    leases.ended("ended")
    running = asyncio.create_task(leases.run(0.001))
    clock.now += 100 + LOST_SECONDS - 1
    reads = clock.reads
    await eventually(lambda: clock.reads > reads + 3)
    assert leases.holds("lost")
    clock.now += 2
    async with asyncio.timeout(30):
        while leases.holds("lost"):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    running.cancel()
    assert leases.holds("ended")
    assert await leases.hold("next", ACME, Nano(CALL_CHARGE))
    assert not await leases.hold("one more", ACME, Nano(1))


async def test_reservations_outlive_the_longest_call(ledger: Ledger, tmp_path: Path) -> None:
    """Envoy and all parts of a gateway use one limit. The ledger keeps a dead gateway's lease as long."""
    settings = GatewaySettings(call_seconds=90, gateway_directory=tmp_path)
    assert envoy_settings(settings).call_seconds == 90
    leases = CreditLeases("g", ledger.lease_credit, call_seconds=90)
    gate = assembled(
        leases,
        MemoryCounters(),
        Tokens(),  # type: ignore[arg-type]
        lambda name, port: "",
        balance_max_age_seconds=60,
    )
    assert gate.spend.lost_after == 90 + LOST_SECONDS
    assert GatewaySettings(call_seconds=LEASE_SECONDS).call_seconds == LEASE_SECONDS
    with pytest.raises(ValidationError):
        GatewaySettings(call_seconds=LEASE_SECONDS + 1)


async def test_b17_gateways_racing_for_the_last_cent_spend_it_once(ledger: Ledger) -> None:
    calls = 500
    await ledger.post_topup(topup(amount=Nano(calls * CALL_CHARGE + 13)))
    clock = Seconds()
    gateways = [(f"g{number}", CreditLeases(f"g{number}", ledger.lease_credit, clock)) for number in range(3)]
    dice = random.Random(7)
    admitted = 0

    async def client(name: int) -> None:
        nonlocal admitted
        while await balance(ledger) >= CALL_CHARGE:
            source, leases = dice.choice(gateways)
            request_id = f"{name}-{admitted}-{dice.random()}"
            if await leases.hold(request_id, ACME, Nano(CALL_CHARGE)):
                admitted += 1
                await asyncio.sleep(0)
                await finish(ledger, leases, source, request_id)
            else:
                # The money is in the leases of others, or in calls that are not charged yet.
                clock.now += DENIED_SECONDS
                for _, others in gateways:
                    await others.close()

    await asyncio.gather(*(client(number) for number in range(64)))
    assert admitted == calls
    assert await balance(ledger) == 13


async def test_b17_an_unused_lease_goes_to_the_gateway_that_needs_it(ledger: Ledger) -> None:
    await ledger.post_topup(topup(amount=Nano(5 * CALL_CHARGE)))
    clock = Seconds()
    first = CreditLeases("first", ledger.lease_credit, clock)
    second = CreditLeases("second", ledger.lease_credit, clock)
    assert await first.hold("1", ACME, Nano(CALL_CHARGE))
    assert not await second.hold("2", ACME, Nano(CALL_CHARGE))
    clock.now += IDLE_SECONDS + 1
    keeper = asyncio.create_task(first.run(0.01))
    async with asyncio.timeout(30):
        while not await second.hold("2", ACME, Nano(4 * CALL_CHARGE)):
            clock.now += 1
            await asyncio.sleep(0.01)
    keeper.cancel()
    # What the first one's call holds is still its own.
    clock.now += 1
    assert not await second.hold("3", ACME, Nano(1))
    await finish(ledger, first, "first", "1")


async def test_b17_no_new_hold_is_admitted_while_the_ledger_is_unreachable(ledger: Ledger) -> None:
    await ledger.post_topup(topup(amount=Nano(20 * CALL_CHARGE)))
    away = False

    async def claim(order: CreditLeaseRequest) -> CreditLease:
        if away:
            raise LedgerUnavailable("away")
        return await ledger.lease_credit(order)

    leases = CreditLeases("g", claim)
    assert await leases.hold("1", ACME, Nano(CALL_CHARGE))
    away = True
    # What was granted already can be used, and no more than that.
    for number in range(2, 10):
        assert await leases.hold(str(number), ACME, Nano(CALL_CHARGE))
    with pytest.raises(LedgerUnavailable):
        await leases.hold("10", ACME, Nano(CALL_CHARGE))
    away = False
    for number in range(1, 10):
        await finish(ledger, leases, "g", str(number))
    assert await balance(ledger) == 11 * CALL_CHARGE


async def test_b17_after_a_restore_the_gateway_claims_again_what_its_calls_hold(tmp_path: Path) -> None:
    files = SqliteDatabases(tmp_path)
    with files.ledger() as database:
        async with opened(database) as ledger:
            await ledger.record(FACTS)
            await ledger.post_topup(topup(amount=Nano(100 * CALL_CHARGE)))
        with files.copy(database) as backup:
            async with opened(database) as used, opened(backup) as restored:
                ledger, claimed = used, asyncio.Event()

                async def claim(order: CreditLeaseRequest) -> CreditLease:
                    lease = await ledger.lease_credit(order)
                    claimed.set()
                    return lease

                leases = CreditLeases("g", claim)
                for number in range(60):
                    assert await leases.hold(str(number), ACME, Nano(CALL_CHARGE))
                    await finish(used, leases, "g", str(number))
                assert await leases.hold("running", ACME, Nano(CALL_CHARGE))
                ledger = restored
                claimed.clear()
                leases.forget()
                keeper = asyncio.create_task(leases.run(0.01))
                # What the running call holds is claimed before anybody asks, so no other can have it.
                await asyncio.wait_for(claimed.wait(), 30)
                keeper.cancel()
                another = CreditLeases("h", restored.lease_credit)
                assert not await another.hold("all", ACME, Nano(100 * CALL_CHARGE))
                await another.close()
                # The restored ledger has none of the earlier charges, so that money can be held again.
                for number in range(60, 159):
                    assert await leases.hold(str(number), ACME, Nano(CALL_CHARGE)), number
                assert not await leases.hold("too much", ACME, Nano(1))
