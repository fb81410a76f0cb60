"""Reports: the bounds of buckets, pages and statements, and what they include (B19)."""

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from farebox.domain.billing.money import Nano
from farebox.domain.billing.reservations import Buying, ReservationTerms
from farebox.domain.keys import ObjectKey
from farebox.errors import LedgerRefused, LedgerUnavailable
from farebox.ledger import engine
from farebox.ledger.engine import Ledger
from farebox.ledger.reports.statement import read_statement
from farebox.ledger.reports.usage import read_usage
from farebox.meterapi.reports import Bucket, Group, Statement, UsageQuery, UsageRow
from farebox.meterapi.types import Binding, PriceVersion, ReservationRecord
from farebox.meterapi.usage import UsageEvent
from tests.ledger.databases import Database, Databases
from tests.ledger.reading import paged, truncated
from tests.ledger.support import (
    ACME,
    CALL_CHARGE,
    CHAT,
    FACTS,
    MODEL,
    START,
    Clock,
    balance,
    flat,
    opened,
    topup,
    usage,
)

LATER = START + timedelta(days=15)


@pytest.mark.parametrize("bucket", list(Bucket))
async def test_buckets_are_aligned(ledger: Ledger, bucket: Bucket) -> None:
    await ledger.record(FACTS)
    times = [
        START.replace(hour=0),
        START.replace(hour=0) - timedelta(microseconds=1),
        START.replace(hour=0, minute=59, second=59, microsecond=999_999),
        START.replace(hour=1),
        START - timedelta(days=59),
    ]
    await ledger.ingest([usage(str(number), time=time) for number, time in enumerate(times)])
    query = UsageQuery(ACME, START - timedelta(days=60), START, bucket=bucket)
    rows, _ = await ledger.report(lambda connection: paged(connection, query, 2))
    expected = Counter(truncated(time, bucket) for time in times)
    assert {row.start: row.calls for row in rows} == expected
    assert [row.start for row in rows] == sorted(expected, key=lambda start: start or START)


async def test_a_report_includes_its_beginning_and_not_its_end(ledger: Ledger) -> None:
    await ledger.record(FACTS)
    await ledger.ingest([usage("1"), usage("2", time=START + timedelta(microseconds=1))])
    for start, end, seen in (
        (START, START + timedelta(microseconds=1), 1),
        (START - timedelta(days=1), START, 0),
    ):
        query = UsageQuery(ACME, start, end)
        page = await ledger.report(lambda connection, query=query: read_usage(connection, query, 10))
        assert sum(row.calls for row in page.rows) == seen


async def test_all_pages_are_read_at_one_number(ledger: Ledger) -> None:
    await ledger.record(FACTS)
    await ledger.ingest([usage(str(number), api_key=f"key-{number}") for number in range(5)])
    query = UsageQuery(ACME, START, START + timedelta(days=1), frozenset({Group.API_KEY}), Bucket.MINUTE)
    seen: list[UsageRow] = []
    after, as_of = None, None
    for arrival in range(5):
        page = await ledger.report(
            lambda connection, after=after, as_of=as_of: read_usage(connection, query, 1, after, as_of)
        )
        seen += page.rows
        after, as_of = page.next, page.as_of
        await ledger.ingest(
            [usage(f"new-{arrival}-{key}", api_key=key) for key in ("key-0", "key-4", "key-00", "z")]
        )
    assert after is None
    assert [(row.api_key, row.calls) for row in seen] == [(f"key-{number}", 1) for number in range(5)]
    assert sum(row.charge for row in seen) == 5 * CALL_CHARGE


async def test_a_cursor_expires_when_the_ledger_is_restored(
    databases: Databases, database: Database, clock: Clock
) -> None:
    """Also when it has passed the number of the first page: its numbers have other meanings."""
    async with opened(database, clock) as ledger:
        await ledger.record(FACTS)
    query = UsageQuery(ACME, START, START + timedelta(days=1), frozenset({Group.API_KEY}))
    with databases.copy(database) as older:
        async with opened(database, clock) as ledger:
            await ledger.ingest([usage(str(number), api_key=f"key-{number}") for number in range(3)])
            first = await ledger.report(lambda connection: read_usage(connection, query, 1))
        async with opened(older, clock) as restored:
            for number in range(3):
                clock.advance(seconds=1)
                with pytest.raises(LedgerRefused, match="restored") as refusal:
                    await restored.report(
                        lambda connection: read_usage(connection, query, 1, first.next, first.as_of)
                    )
                assert refusal.value.reason == "CursorExpired"
                await restored.ingest([usage(f"other-{number}", api_key="key-3")])
        async with opened(database, clock) as ledger:
            rest = await ledger.report(
                lambda connection: read_usage(connection, query, 9, first.next, first.as_of)
            )
            assert [row.api_key for row in rest.rows] == ["key-1", "key-2"]


@pytest.mark.parametrize(
    ("filters", "seen"),
    [
        ({}, {"1", "2", "3"}),
        ({"services": frozenset({CHAT})}, {"1", "2"}),
        ({"services": frozenset({ObjectKey("team-b", "chat")})}, {"3"}),
        ({"services": frozenset({CHAT, ObjectKey("team-b", "chat")})}, {"1", "2", "3"}),
        ({"services": frozenset({ObjectKey("else", "where")})}, set()),
        ({"model": MODEL}, {"1", "2", "3"}),
        ({"model": "other"}, set()),
        ({"api_key": "ci"}, {"2"}),
        ({"api_key": "ci", "services": frozenset({ObjectKey("team-b", "chat")})}, set()),
    ],
)
async def test_filters_select_what_they_name(ledger: Ledger, filters: dict[str, Any], seen: set[str]) -> None:
    other = ObjectKey("team-b", "chat")
    await ledger.record([*FACTS, Binding(other, ACME, MODEL, START)])
    await ledger.ingest(
        [
            usage("1", input_tokens=1),
            usage("2", input_tokens=10, api_key="ci"),
            usage("3", input_tokens=100, service=other),
        ]
    )
    query = UsageQuery(ACME, START, START + timedelta(days=1), **filters)
    page = await ledger.report(lambda connection: read_usage(connection, query, 10))
    tokens = {"1": 1, "2": 10, "3": 100}
    assert sum(row.input_tokens for row in page.rows) == sum(tokens[name] for name in seen)


async def test_charges_beyond_64_bits_add_up(ledger: Ledger) -> None:
    dear = PriceVersion(MODEL, "USD", flat(10**9), START)
    await ledger.record([*FACTS[:2], dear])
    expected = 0
    for number in range(24):
        await ledger.post_topup(topup(f"p{number}", Nano(10**18)))
        event: UsageEvent = usage(str(number), input_tokens=10**9 - number, output_tokens=0)
        await ledger.ingest([event])
        expected += event.input_tokens * 10**9
    assert expected > 2**64
    page = await ledger.report(
        lambda connection: read_usage(connection, UsageQuery("team-a", START, START + timedelta(days=1)), 10)
    )
    assert [row.charge for row in page.rows] == [expected]
    statement = await statement_of(ledger)
    assert statement.lines[-1].amount == -expected


async def statement_of(ledger: Ledger, days: float = 366) -> Statement:
    """The account's statement from START on."""
    found = await ledger.report(
        lambda connection: read_statement(connection, ACME, START, START + timedelta(days=days))
    )
    assert found is not None
    return found


async def test_a_statement_lists_topups_and_terms_and_sums_usage_by_day_and_model(
    ledger: Ledger, clock: Clock
) -> None:
    big = ObjectKey("team-a", "big")
    offer = ReservationTerms(1_000, Nano(1_000_001), 1_000, Nano(2_000_003), (1, 30))
    reservable = PriceVersion("m2", "USD", flat(17), START, reservation=offer)
    await ledger.record([*FACTS, Binding(big, ACME, "m2", START), reservable])
    await ledger.post_topup(topup("pay_1", "10"))
    await ledger.ingest([usage("1"), usage("2")])
    await ledger.ingest([usage("3", time=START - timedelta(days=3))])
    clock.advance(days=1)
    reserved = ReservationRecord(big, "uid", ACME, "m2", 1_000, 1_000, 1, Buying.ONCE)
    await ledger.record([reserved])
    await ledger.ingest([usage("4")])
    await ledger.post_topup(topup("credit", Nano(-5), kind="Adjustment"))
    statement = await statement_of(ledger)
    day = START.replace(hour=0)
    assert [(line.kind, line.time, line.amount, line.reference, line.model) for line in statement.lines] == [
        ("Payment", START, 10**10, "pay_1", None),
        ("Usage", day, -3 * CALL_CHARGE, None, MODEL),
        ("ReservationTerm", clock.now, -3_000_004, None, "m2"),
        ("Adjustment", clock.now, -5, "credit", None),
        ("Usage", day + timedelta(days=1), -CALL_CHARGE, None, MODEL),
    ]
    term = statement.lines[2]
    assert (term.service, term.term) == ("team-a/big", 1)
    assert (term.period_start, term.period_end) == (clock.now, clock.now + timedelta(days=1))
    assert statement.lines[0].source == "billing/pay_1"
    assert (statement.opening_balance, statement.currency) == (0, "USD")
    assert statement.closing_balance == 10**10 - 4 * CALL_CHARGE - 3_000_004 - 5
    assert (await statement_of(ledger, 0.5)).closing_balance == 10**10 - 3 * CALL_CHARGE


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_past_statement_is_stable_when_a_clock_is_set_back(
    database: Database, clock: Clock, restarts: bool
) -> None:
    """The clock of this meter, or of another meter that is slightly behind."""
    midnight = START.replace(hour=0) + timedelta(days=1)
    clock.now = midnight + timedelta(seconds=1)
    async with opened(database, clock) as ledger, opened(database, clock) as other:
        await ledger.record(FACTS)
        await ledger.post_topup(topup())
        before = await ledger.report(lambda connection: read_statement(connection, ACME, START, midnight))
        clock.now = midnight - timedelta(seconds=2)
        await (other if restarts else ledger).ingest([usage()])
        after = await ledger.report(lambda connection: read_statement(connection, ACME, START, midnight))
        assert before is not None
        assert after is not None
        assert (after.closing_balance, after.lines) == (before.closing_balance, before.lines)
        assert (await statement_of(ledger)).closing_balance == 10**10 - CALL_CHARGE


async def test_a_corrected_clock_is_used_again(ledger: Ledger, clock: Clock) -> None:
    await ledger.record(FACTS)
    clock.advance(days=400)
    await ledger.post_topup(topup("from the future"))
    clock.now = START
    assert (await ledger.post_topup(topup())).posted_at == START


async def test_an_unrecorded_account_has_no_statement_and_a_long_statement_is_refused(ledger: Ledger) -> None:
    assert await ledger.report(lambda connection: read_statement(connection, ACME, START, LATER)) is None
    await ledger.record(FACTS)
    for number in range(3):
        await ledger.post_topup(topup(f"p{number}"))
    with pytest.raises(LedgerRefused, match="shorter") as refusal:
        await ledger.report(lambda connection: read_statement(connection, ACME, START, LATER, max_lines=2))
    assert refusal.value.reason == "StatementTooLong"


async def test_a_slow_report_is_cancelled_and_the_next_one_runs(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ledger.record(FACTS)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    with monkeypatch.context() as patched:
        patched.setattr(engine, "REPORT_SECONDS", 0.01)
        for _ in range(3):
            with pytest.raises(LedgerRefused, match="shorter") as refusal:
                await ledger.report(lambda connection: connection.exec_driver_sql(endless).all())
            assert refusal.value.reason == "ReportTooLong"
    assert (await statement_of(ledger)).closing_balance == await balance(ledger) == 0


async def test_too_many_concurrent_reports_are_unavailable(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "MAX_REPORTS", 2)
    await ledger.record(FACTS)
    outcomes = await asyncio.gather(*(statement_of(ledger) for _ in range(3)), return_exceptions=True)
    assert [isinstance(outcome, Statement) for outcome in outcomes] == [True, True, False]
    assert isinstance(outcomes[2], LedgerUnavailable)
    assert (await statement_of(ledger)).closing_balance == 0
