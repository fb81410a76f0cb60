"""Records: known facts change nothing, and invalid ones are refused one by one."""

from datetime import timedelta

import pytest

from farebox.domain.billing.money import Nano
from farebox.ledger.engine import Ledger
from farebox.meterapi.types import Record, TokenPriceTier
from tests.ledger.databases import Database
from tests.ledger.support import (
    ACME,
    FACTS,
    MODEL,
    START,
    Clock,
    balance,
    binding,
    flat,
    opened,
    price,
    terms,
    usage,
)

HOUR = timedelta(hours=1)


def counts(database: Database) -> dict[str, int]:
    """Rows of the append-only tables of facts."""
    with database.raw() as connection:
        return {
            table: connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one()
            for table in ("accounts", "account_terms", "bindings", "price_versions", "price_tiers")
        }


async def test_recording_the_same_again_changes_nothing_and_takes_no_number(
    database: Database, ledger: Ledger
) -> None:
    await ledger.record(FACTS)
    before, head = counts(database), await ledger.head()
    await ledger.record(FACTS)
    await ledger.record([*FACTS, binding(at=START + HOUR), price(at=START + HOUR), price(at=START - HOUR)])
    async with opened(database) as restarted:
        await restarted.record(FACTS)
    assert (counts(database), await ledger.head()) == (before, head)


async def test_an_earlier_price_becomes_a_new_version(database: Database, ledger: Ledger) -> None:
    await ledger.record([price(), price(tiers=flat(7), at=START + HOUR), price(at=START + 2 * HOUR)])
    assert counts(database)["price_versions"] == 3
    await ledger.record([price(at=START + 3 * HOUR), price(tiers=flat(7), at=START + HOUR)])
    assert counts(database)["price_versions"] == 3


async def test_b12_a_price_from_a_fast_clock_does_not_hide_the_current_price(
    ledger: Ledger, clock: Clock
) -> None:
    await ledger.record([*FACTS, price(tiers=flat(7), at=START + 9_000 * HOUR)])
    clock.advance(hours=1)
    await ledger.record([price(tiers=flat(7), at=clock.now)])
    await ledger.ingest([usage(time=clock.now)])
    assert await balance(ledger) == -120 * 7


async def test_an_earlier_binding_becomes_a_new_binding(
    database: Database, ledger: Ledger, clock: Clock
) -> None:
    other = terms(account=ACME._replace(name="other"))
    await ledger.record([*FACTS, other, binding(account=other.account, at=START + HOUR)])
    await ledger.record([binding(at=START + 2 * HOUR)])
    await ledger.record([binding(at=START + 3 * HOUR)])
    assert counts(database)["bindings"] == 3
    clock.advance(hours=4)
    await ledger.ingest([usage(str(hour), time=START + hour * HOUR) for hour in range(4)])
    assert await balance(ledger) == 3 * await balance(ledger, other.account)


async def test_a_change_of_the_credit_limit_takes_a_number_and_shows_in_the_feed(ledger: Ledger) -> None:
    await ledger.record([terms()])
    head = await ledger.head()
    await ledger.record([terms(limit="20")])
    page = await ledger.changes(head, 0)
    assert (page.head, page.accounts[0].credit_limit) == (head + 1, 20_000_000_000)


async def test_an_account_cannot_change_its_currency(ledger: Ledger) -> None:
    refused = await ledger.record([terms(), terms(currency="EUR"), terms(limit="1")])
    assert [(refusal.index, refusal.reason) for refusal in refused] == [(1, "CurrencyMismatch")]
    assert "USD" in refused[0].message
    assert "EUR" in refused[0].message


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (price(tiers=()), "InvalidPrice"),
        (price(tiers=[TokenPriceTier(5, Nano(1), Nano(1), Nano(1))]), "InvalidPrice"),
        (price(model=""), "InvalidName"),
        (price(currency=""), "InvalidName"),
        (terms(currency=""), "InvalidName"),
        (terms(limit="-1"), "AmountOutOfRange"),
        (binding(model="x" * 254), "InvalidName"),
    ],
)
async def test_an_invalid_record_is_refused_alone(ledger: Ledger, bad: Record, reason: str) -> None:
    refused = await ledger.record([bad, *FACTS])
    assert [(refusal.index, refusal.reason) for refusal in refused] == [(0, reason)]
    assert (await ledger.ingest([usage(model=MODEL)])).pending == 0
