"""`verify` finds every tampering with quotas, reservations, their terms and what they covered (B6, B9)."""

from datetime import timedelta

import pytest

from farebox.domain.billing.money import Nano
from farebox.ledger.audit.verify import verify
from farebox.meterapi.types import AccountRecord
from tests.ledger.databases import Database
from tests.ledger.support import (
    ACME,
    OFFER,
    QUOTA,
    START,
    TERM_PRICE,
    Clock,
    binding,
    model,
    opened,
    reserved,
    usage,
)


@pytest.fixture
async def books(database: Database) -> Database:
    """A correct ledger: a term, a minute that it covers fully, and a quota that covers the rest."""
    clock = Clock()
    async with opened(database, clock) as ledger:
        limit = AccountRecord(ACME, "USD", Nano(2 * TERM_PRICE))
        await ledger.record([limit, binding(), model(reservation=OFFER, free_quota=QUOTA), reserved()])
        await ledger.ingest([usage("covered", input_tokens=20_000, output_tokens=1_000)])
        await ledger.ingest([usage("quota")])
        clock.advance(days=31)
        await ledger.ingest([usage("after", time=START + timedelta(days=31), output_tokens=0)])
    return database


def test_a_correct_ledger_has_no_differences(books: Database) -> None:
    assert verify(books.url).differences == ()


GRANT = "(SELECT sequence FROM transactions WHERE kind = 'Grant')"
TERM = "(SELECT sequence FROM transactions WHERE kind = 'ReservationTerm')"


@pytest.mark.parametrize(
    ("tampering", "found"),
    [
        ("UPDATE quotas SET used = used - 1", "entries say 220 of 1000"),
        ("UPDATE quotas SET tokens = tokens + 1", "entries say 220 of 1000"),
        ("DELETE FROM quotas", "a quota on qwen3-8b that does not exist"),
        (f"UPDATE entries SET amount = 2 * amount WHERE transaction_sequence = {GRANT}", "used, its entries"),
        ("UPDATE usage_events SET quota_tokens = 119 WHERE event_id = 'quota'", "but its price is"),
        ("UPDATE usage_events SET quota_tokens = 121 WHERE event_id = 'quota'", "its price is None"),
        ("UPDATE usage_events SET reservation_input = 19999 WHERE event_id = 'covered'", "but its price is"),
        ("UPDATE usage_events SET reservation_input = 20001 WHERE event_id = 'covered'", "its price is None"),
        (
            "UPDATE usage_events SET reservation_input = 100, quota_tokens = 0 WHERE event_id = 'after'",
            "outside of any term",
        ),
        (
            "UPDATE usage_events SET reservation_input = 100, quota_tokens = 20 WHERE event_id = 'quota'",
            "beyond what was reserved",
        ),
        ("UPDATE reserved_minutes SET input_tokens = input_tokens - 1", "the minutes that reservations"),
        ("UPDATE reserved_minutes SET minute = minute + 1", "the minutes that reservations"),
        ("DELETE FROM reserved_minutes", "the minutes that reservations"),
        ("UPDATE reservation_terms SET price = price - 1", "but its price is"),
        ("UPDATE reservation_terms SET end_at = end_at + 1", "has not 30 days"),
        ("UPDATE reservation_terms SET number = 2", "does not follow the one before it"),
        ("UPDATE reservation_terms SET transaction_sequence = 99", "99, which does not exist"),
        ("DELETE FROM reservation_terms", "does not fit its term"),
        ("UPDATE transactions SET kind = 'Payment' WHERE kind = 'ReservationTerm'", "does not fit"),
        (f"UPDATE entries SET amount = 2 * amount WHERE transaction_sequence = {TERM}", "but its term"),
        ("UPDATE reservation_terms SET price_version_id = 99", "of no price version"),
        ("UPDATE reservation_terms SET reservation_id = 99", "of no reservation"),
        ("UPDATE reservations SET days = 1", "has not 1 days"),
        ("UPDATE reservations SET input_tpm = 10000", "but its price is"),
        ("UPDATE reservations SET account = 'x/y'", "outside of any term"),
        ("UPDATE reservations SET sequence = sequence - 1", "another sequence than its newest change"),
        ("DELETE FROM reservation_changes WHERE state = 'Active'", "another sequence than its newest change"),
        ("UPDATE price_versions SET output_unit_price_per_day = 1", "but its price is"),
    ],
)
def test_every_tampering_is_found(books: Database, tampering: str, found: str) -> None:
    assert books.tamper(tampering) > 0
    report = verify(books.url)
    assert not report.ok
    assert any(found in difference for difference in report.differences), str(report)
