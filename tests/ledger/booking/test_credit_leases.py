"""Credit leases: no two gateways spend the same money, and charges are taken from the lease (B17)."""

import asyncio
import random

import pytest

from farebox.domain.billing.money import Nano
from farebox.errors import LedgerRefused
from farebox.ledger.booking.credit_leases import LEASE_SECONDS
from farebox.ledger.engine import Ledger
from farebox.meterapi.types import CreditLease, CreditLeaseRequest
from tests.ledger.support import ACME, CALL_CHARGE, FACTS, Clock, Database, balance, opened, topup, usage

UNIT = 1_000_000_000


async def claim(ledger: Ledger, amount: int, source: str = "gateway-0") -> CreditLease:
    """A gateway's lease of the account."""
    return await ledger.lease_credit(CreditLeaseRequest(source, ACME, Nano(amount)))


async def test_b17_leased_money_is_not_leased_twice(ledger: Ledger) -> None:
    await ledger.record(FACTS)
    await ledger.post_topup(topup(amount="10"))
    assert (await claim(ledger, 7 * UNIT, "a")).granted == 7 * UNIT
    assert (await claim(ledger, 7 * UNIT, "b")).granted == 3 * UNIT
    # A claim is absolute: said again it changes nothing, and less gives back.
    assert (await claim(ledger, 7 * UNIT, "a")).granted == 7 * UNIT
    assert (await claim(ledger, 1 * UNIT, "a")).granted == 1 * UNIT
    assert (await claim(ledger, 99 * UNIT, "b")).granted == 9 * UNIT


async def test_b17_a_charge_is_taken_from_the_lease_of_its_gateway(ledger: Ledger) -> None:
    await ledger.record(FACTS)
    await ledger.post_topup(topup(amount="10"))
    await claim(ledger, UNIT)
    result = await ledger.ingest([usage("1"), usage("2"), usage("3", source="somebody")])
    (lease,) = result.leases
    assert (lease.granted, lease.spent) == (UNIT, 2 * CALL_CHARGE)
    assert (await ledger.ingest([usage("1")])).leases == ()
    after = await claim(ledger, UNIT)
    assert after.granted - after.spent == UNIT


async def test_b17_a_lease_never_exceeds_what_is_available(ledger: Ledger) -> None:
    await ledger.record(FACTS)
    assert (await claim(ledger, UNIT)).granted == 0
    with pytest.raises(LedgerRefused, match="no account"):
        await ledger.lease_credit(CreditLeaseRequest("g", ACME._replace(name="none"), Nano(1)))
    with pytest.raises(LedgerRefused, match="0 or more"):
        await claim(ledger, -1)


async def test_b17_the_lease_of_a_dead_gateway_expires(ledger: Ledger, clock: Clock) -> None:
    await ledger.record(FACTS)
    await ledger.post_topup(topup(amount="10"))
    await claim(ledger, 10 * UNIT, "dead")
    clock.advance(seconds=LEASE_SECONDS - 1)
    assert (await claim(ledger, UNIT)).granted == 0
    clock.advance(seconds=1)
    assert (await claim(ledger, UNIT)).granted == UNIT


async def test_b17_racing_gateways_never_overspend_the_account(database: Database, clock: Clock) -> None:
    """Eight gateways on two ledgers spend their leases in calls of one price until nothing is left."""
    async with opened(database, clock) as first, opened(database, clock) as second:
        await first.record(FACTS)
        await first.post_topup(topup(amount=Nano(1000 * CALL_CHARGE + 7)))
        dice = random.Random(1)

        async def gateway(name: str) -> int:
            calls = 0
            ledger = dice.choice((first, second))
            while True:
                lease = await claim(ledger, dice.randint(1, 9) * CALL_CHARGE, name)
                affordable = (lease.granted - lease.spent) // CALL_CHARGE
                if affordable == 0:
                    return calls
                events = [usage(f"{name}-{calls + i}", source=name) for i in range(affordable)]
                await ledger.ingest(events)
                calls += affordable

        spent = await asyncio.gather(*(gateway(f"gateway-{number}") for number in range(8)))
        assert sum(spent) == 1000
        assert await balance(first) == 7
    database.check()
