"""B32: refused calls are counted once, summed over gateways, and kept for a bounded time."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from sqlalchemy import func, select

from farebox.errors import LedgerRefused
from farebox.ledger.db import tables
from farebox.ledger.engine import Ledger
from farebox.ledger.reports.refusals import read_refusals
from farebox.meterapi.refusals import RETENTION, RefusalCount, RefusalCounts, RefusalQuery, RefusalRow
from farebox.meterapi.reports import Bucket
from tests.ledger.support import FACTS, START, Clock

MINUTE = timedelta(minutes=1)
LIMITED = RefusalCount(START, "team-a", "chat", "ci", "rate_limit_exceeded", 429, 3)


def counts(*refusals: RefusalCount, source: str = "gateway-0/1") -> RefusalCounts:
    """The counts of one gateway process."""
    return RefusalCounts(source, refusals)


async def rows(ledger: Ledger, bucket: Bucket = Bucket.NONE, **filters: str) -> list[RefusalRow]:
    """The report of all refusals, by default without buckets."""
    namespace = filters.pop("namespace", None)
    query = RefusalQuery(namespace, START - RETENTION, START + RETENTION, bucket, **filters)
    return await ledger.report(lambda connection: read_refusals(connection, query))


async def stored(ledger: Ledger) -> int:
    """The number of stored counts."""
    return await ledger.report(
        lambda connection: connection.execute(select(func.count()).select_from(tables.refusals)).scalar_one()
    )


async def test_a_count_that_is_sent_again_counts_once(ledger: Ledger) -> None:
    assert await ledger.count_refusals(counts(LIMITED)) == 1
    await ledger.count_refusals(counts(replace(LIMITED, count=5), replace(LIMITED, count=4)))
    await ledger.count_refusals(counts(LIMITED))
    (row,) = await rows(ledger)
    assert row == RefusalRow(None, "team-a", "chat", "ci", "rate_limit_exceeded", 429, 5)


async def test_counts_of_gateways_and_minutes_add_up(ledger: Ledger) -> None:
    later = replace(LIMITED, minute=START + MINUTE, count=10)
    await ledger.count_refusals(counts(LIMITED, later))
    await ledger.count_refusals(counts(LIMITED, source="gateway-1/1"))
    assert [row.count for row in await rows(ledger)] == [16]
    assert [(row.start, row.count) for row in await rows(ledger, Bucket.MINUTE)] == [
        (START + MINUTE, 10),
        (START, 6),
    ]
    assert [(row.start, row.count) for row in await rows(ledger, Bucket.DAY)] == [(START.replace(hour=0), 16)]


async def test_a_report_is_limited_to_a_namespace_service_key_or_code(ledger: Ledger) -> None:
    unknown_key = RefusalCount(START, "", None, None, "invalid_api_key", 401, 50)
    no_model = RefusalCount(START, "team-a", None, "ci", "model_not_found", 404, 20)
    elsewhere = replace(LIMITED, namespace="team-b", count=7)
    await ledger.count_refusals(counts(LIMITED, unknown_key, no_model, elsewhere))
    assert [row.count for row in await rows(ledger)] == [50, 20, 7, 3]
    assert [(row.service, row.count) for row in await rows(ledger, namespace="team-a")] == [
        (None, 20),
        ("chat", 3),
    ]
    assert [row.count for row in await rows(ledger, namespace="team-a", service="chat")] == [3]
    assert [row.count for row in await rows(ledger, api_key="ci")] == [20, 7, 3]
    assert [row.namespace for row in await rows(ledger, code="invalid_api_key")] == [""]


@pytest.mark.parametrize(
    ("start", "end", "found"),
    [
        (START, START + MINUTE, 1),
        (START - MINUTE, START, 0),
        (START, START + timedelta(seconds=1), 1),
        (START + timedelta(seconds=1), START + MINUTE, 0),
    ],
)
async def test_a_period_has_the_minutes_that_begin_in_it(
    ledger: Ledger, start: datetime, end: datetime, found: int
) -> None:
    await ledger.count_refusals(counts(LIMITED))
    query = RefusalQuery(None, start, end)
    assert len(await ledger.report(lambda connection: read_refusals(connection, query))) == found


async def test_counts_of_old_minutes_are_deleted_and_not_stored_again(ledger: Ledger, clock: Clock) -> None:
    await ledger.count_refusals(counts(LIMITED, replace(LIMITED, minute=START + MINUTE)))
    clock.now = START + RETENTION + MINUTE
    assert await ledger.count_refusals(counts(LIMITED, replace(LIMITED, minute=clock.now))) == 1
    assert await stored(ledger) == 2
    clock.now += timedelta(days=400)
    assert await ledger.count_refusals(counts()) == 0
    assert await stored(ledger) == 0


async def test_a_minute_in_the_future_is_refused_as_a_whole(ledger: Ledger) -> None:
    ahead = replace(LIMITED, minute=START + 7 * MINUTE)
    with pytest.raises(LedgerRefused, match="set the sender's clock") as refused:
        await ledger.count_refusals(counts(LIMITED, ahead))
    assert refused.value.reason == "MinuteInFuture"
    assert await stored(ledger) == 0


async def test_counts_are_no_part_of_the_books(ledger: Ledger) -> None:
    await ledger.record(FACTS)
    head = await ledger.head()

    def revision(connection: object) -> int:
        return connection.execute(select(tables.ledger.c.revision)).scalar_one()  # type: ignore[attr-defined,no-any-return]

    before = await ledger.report(revision)
    await ledger.count_refusals(counts(LIMITED))
    assert (await ledger.head(), await ledger.report(revision)) == (head, before)


async def test_a_report_with_too_many_rows_is_refused(ledger: Ledger) -> None:
    await ledger.count_refusals(counts(*(replace(LIMITED, api_key=f"key-{n}") for n in range(4))))
    query = RefusalQuery(None, START, START + MINUTE)
    assert len(await ledger.report(lambda connection: read_refusals(connection, query, 4))) == 4
    with pytest.raises(LedgerRefused) as refused:
        await ledger.report(lambda connection: read_refusals(connection, query, 3))
    assert refused.value.reason == "ReportTooLong"
