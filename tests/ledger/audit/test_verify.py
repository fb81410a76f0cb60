"""`verify` finds every kind of difference, and reports none on a correct ledger."""

import asyncio
from dataclasses import replace

import pytest

from farebox.domain.billing.money import Nano
from farebox.ledger.audit.verify import VerificationReport, verify
from farebox.ledger.engine import Ledger
from tests.ledger.databases import Database
from tests.ledger.support import FACTS, TIERS, binding, opened, price, terms, topup, usage


@pytest.fixture
async def books(database: Database) -> Database:
    """A correct ledger with rows in every table."""
    other = terms().account._replace(name="other")
    async with opened(database) as ledger:
        await ledger.record([*FACTS, terms(other, limit="3")])
        dear = [replace(tier, cache_write=Nano(2 * tier.input)) for tier in TIERS]
        await ledger.record([price(tiers=dear)])
        await ledger.ingest([usage(), usage("2", request_id="r-2"), usage("waits", model="unknown")])
        await ledger.index_requests(2)
        await ledger.post_topup(topup())
        await ledger.post_topup(topup("adj_1", kind="Adjustment"))
        await ledger.record([binding(service=other, model="bge"), price("bge")])
    return database


def test_a_correct_ledger_has_no_differences(books: Database) -> None:
    report = verify(books.url)
    assert report == VerificationReport(
        accounts=2, transactions=3, usage_events=3, pending_events=1, differences=()
    )
    assert str(report).endswith("(1 pending): no differences")


@pytest.mark.parametrize(
    ("tampering", "found"),
    [
        ("UPDATE entries SET amount = amount - 1 WHERE amount < 0", "not to zero"),
        ("UPDATE entries SET amount = 2 * amount WHERE transaction_sequence = 3", "events sum to"),
        ("UPDATE entries SET amount = 2 * amount WHERE transaction_sequence = 4", "but its top-up pay_1"),
        ("DELETE FROM entries WHERE transaction_sequence = 3", "has no entries"),
        ("UPDATE accounts SET balance = balance + 1 WHERE id = 1", "has balance"),
        ("UPDATE accounts SET credit_limit = 7 WHERE id = 2", "has credit_limit"),
        ("UPDATE accounts SET sequence = 77 WHERE id = 2", "has sequence"),
        ("UPDATE ledger SET head = head + 1", "head is"),
        ("DELETE FROM account_terms WHERE sequence = 2", "are in use"),
        ("UPDATE usage_events SET charge = charge + 1 WHERE event_id = '2'", "but its price is"),
        ("UPDATE usage_events SET output_tokens = 21 WHERE event_id = '2'", "but its price is"),
        ("UPDATE usage_events SET cache_write_input_tokens = 1 WHERE event_id = '2'", "but its price is"),
        ("UPDATE usage_events SET request_id = 'r-3' WHERE event_id = '2'", "the index of request ids"),
        ("UPDATE usage_events SET request_id = 'r-1' WHERE event_id = '1'", "the index of request ids"),
        ("UPDATE requests SET event = 1", "the index of request ids"),
        ("DELETE FROM requests", "the index of request ids"),
        ("UPDATE price_tiers SET output = output + 1", "but its price is"),
        ("DELETE FROM usage_events WHERE event_id = '2'", "events sum to"),
        ("UPDATE usage_events SET binding_id = 2 WHERE event_id = '1'", "another service or model"),
        ("UPDATE usage_events SET price_version_id = 3 WHERE event_id = '1'", "another service or model"),
        ("UPDATE usage_events SET service = 'a/b' WHERE event_id = '1'", "another service or model"),
        ("UPDATE usage_events SET transaction_sequence = 4 WHERE event_id = '1'", "a Payment, but has"),
        ("UPDATE usage_events SET transaction_sequence = 99 WHERE event_id = '1'", "99, which does not"),
        ("UPDATE usage_events SET price_version_id = 99 WHERE event_id = '1'", "no price version"),
        ("UPDATE transactions SET kind = 'Payment' WHERE sequence = 3", "does not fit its top-up"),
        ("UPDATE transactions SET account_id = 2 WHERE sequence = 3", "a book of another account"),
        ("DELETE FROM topups WHERE reference = 'pay_1'", "does not fit its top-up"),
        ("UPDATE topups SET amount = 1 WHERE reference = 'pay_1'", "but its top-up pay_1"),
        ("UPDATE topups SET balance_after = 1 WHERE reference = 'adj_1'", "says 1 was the balance"),
        ("DELETE FROM transactions WHERE sequence = 4", "4, which does not exist"),
        ("UPDATE bindings SET account = 'billing/other' WHERE id = 1", "of other accounts"),
    ],
)
def test_every_tampering_is_found(books: Database, tampering: str, found: str) -> None:
    assert books.tamper(tampering) > 0
    report = verify(books.url)
    assert not report.ok
    assert any(found in difference for difference in report.differences), str(report)


async def test_it_reads_one_snapshot_while_the_ledger_is_written(ledger: Ledger, database: Database) -> None:
    await ledger.record(FACTS)
    reports: list[VerificationReport] = []

    async def write() -> int:
        batches = 0
        while len(reports) < 5:
            await ledger.ingest([usage(f"{batches}-{number}") for number in range(50)])
            batches += 1
        return batches

    writing = asyncio.create_task(write())
    while len(reports) < 5:
        reports.append(await asyncio.to_thread(verify, database.url))
    assert await writing > 1
    assert [report.differences for report in reports] == [()] * 5
    assert reports[0].usage_events < reports[-1].usage_events
