"""Reports of random ledgers add up to the last nano-unit, however they are grouped, cut and paged (B19)."""

import asyncio
import itertools
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, func, select

from farebox.clock import to_micros
from farebox.domain.billing.money import Nano
from farebox.domain.billing.reservations import Buying, ReservationTerms
from farebox.domain.keys import ObjectKey
from farebox.ledger.db import tables
from farebox.ledger.db.connections import disposing, read_engine
from farebox.ledger.reports.statement import read_statement
from farebox.meterapi.reports import Bucket, Group, UsageQuery, UsageRow
from farebox.meterapi.types import (
    AccountRecord,
    Binding,
    FreeQuota,
    PriceVersion,
    ReservationRecord,
    TokenPriceTier,
)
from tests.ledger.databases import Database, Databases
from tests.ledger.reading import paged, truncated
from tests.ledger.support import (
    START,
    Clock,
    flat,
    opened,
    topup,
    usage,
)

A, B = ObjectKey("billing", "a"), ObjectKey("team", "b")
SERVICES = {
    ObjectKey("team", "x"): (A, "m1"),
    ObjectKey("team", "y"): (B, "m1"),
    ObjectKey("team", "z"): (A, "m2"),
    ObjectKey("team-2", "x"): (A, "m1"),
}
FIRST = START - timedelta(days=70)
LAST = START + timedelta(days=15)
RECORDS = [
    AccountRecord(A, "USD", Nano(10**15)),
    AccountRecord(B, "USD", Nano(0)),
    *(Binding(service, *paid, FIRST) for service, paid in SERVICES.items()),
    PriceVersion("m1", "USD", (TokenPriceTier(1_000, Nano(7), Nano(3), Nano(11)), *flat(13)), FIRST),
    PriceVersion(
        "m2",
        "USD",
        flat(17),
        FIRST,
        reservation=ReservationTerms(1_000, Nano(1_000_001), 1_000, Nano(2_000_003), (1, 30)),
        free_quota=FreeQuota(2_500, 60),
    ),
    ReservationRecord(ObjectKey("team", "z"), "uid", A, "m2", 1_000, 1_000, 1, Buying.RENEWING),
]
GROUPINGS = [
    frozenset(groups) for size in range(4) for groups in itertools.combinations(Group, size)
]  # fmt: skip

moments = st.integers(0, 80 * 24 * 60).map(lambda minutes: FIRST + timedelta(minutes=minutes, seconds=1))
calls = st.builds(
    lambda name, service, time, key, tokens, named: usage(
        str(name),
        service=service,
        time=time,
        api_key=key,
        input_tokens=tokens[0],
        cached_input_tokens=min(tokens[1], tokens[0]),
        output_tokens=tokens[2],
        model="unbound" if named else None,
    ),
    st.integers(0, 10**6),
    st.sampled_from(list(SERVICES)),
    moments,
    st.sampled_from([None, "ci", "prod"]),
    st.tuples(st.integers(0, 3_000), st.integers(0, 3_000), st.integers(0, 500)),
    st.integers(0, 9).map(lambda number: number == 0),
)
steps = st.one_of(
    st.lists(calls, min_size=1, max_size=12),
    st.integers(-(10**12), 10**12).filter(bool),
    st.integers(1, 72).map(lambda hours: timedelta(hours=hours)),
)


@settings(
    max_examples=8,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(steps, min_size=1, max_size=10), st.sampled_from([1, 3, 1000]), st.data())
def test_b19_every_report_of_a_random_ledger_adds_up(
    databases: Databases, script: list[Any], limit: int, data: st.DataObject
) -> None:
    with databases.ledger() as database:
        asyncio.run(play(database, script))
        database.check()
        cuts = sorted(data.draw(st.tuples(moments, moments)))
        with disposing(read_engine(database.url, 1)) as reader, reader.begin() as connection:
            check_usage(connection, FIRST, LAST, limit)
            if cuts[0] < cuts[1]:
                check_usage(connection, *cuts, limit)
            check_against_entries(connection)
            for account in (A, B):
                check_statements(connection, account, [FIRST, *cuts, LAST + timedelta(days=90)])


async def play(database: Database, script: list[Any]) -> None:
    """Post calls and adjustments while the clock advances."""
    clock = Clock()
    async with opened(database, clock) as ledger:
        await ledger.record(RECORDS)
        for number, step in enumerate(script):
            if isinstance(step, timedelta):
                clock.now = min(clock.now + step, LAST)
                await ledger.process_due_renewals()
            elif isinstance(step, int):
                account = (A, B)[number % 2]
                order = topup(f"r{number}", Nano(step), account=account, kind="Adjustment")
                await ledger.post_topup(order)
            else:
                await ledger.ingest(step)


def check_usage(connection: Connection, start: datetime, end: datetime, limit: int) -> None:
    """Every grouping and bucket of every owner is the plain sum of the rows themselves."""
    events = plain(connection, start, end)
    owners: list[ObjectKey | str] = [A, B, "team", "team-2"]
    buckets = itertools.cycle((Bucket.NONE, Bucket.DAY, Bucket.MONTH))
    for owner, groups in itertools.product(owners, GROUPINGS):
        bucket = next(buckets)
        query = UsageQuery(owner, start, end, groups, bucket)
        rows, pending = paged(connection, query, limit)
        expected: dict[tuple[Any, ...], Counter[str]] = {}
        for event in events:
            if event["charge"] is not None and owner in (event["account"], event["namespace"]):
                expected.setdefault(key_of(event, groups, bucket), Counter()).update(figures(event))
        assert {place(row): +Counter(sums(row)) for row in rows} == {
            key: +counter for key, counter in expected.items()
        }
        assert len({place(row) for row in rows}) == len(rows), "a row comes once"
        assert pending == sum(
            event["charge"] is None and owner in (event["bound"], event["namespace"]) for event in events
        )


def check_against_entries(connection: Connection) -> None:
    """The charges of usage equal the entries of the revenue accounts."""
    for account in (A, B):
        for model in ("m1", "m2"):
            rows, _ = paged(connection, UsageQuery(account, FIRST, LAST, model=model), 1)
            booked = connection.execute(
                select(func.coalesce(func.sum(tables.entries.c.amount), 0))
                .join_from(tables.entries, tables.books)
                .join(tables.accounts)
                .where(tables.accounts.c.key == str(account), tables.books.c.name == f"revenue:{model}")
            ).scalar_one()
            assert sum(row.charge for row in rows) == booked


def check_statements(connection: Connection, account: ObjectKey, cuts: list[datetime]) -> None:
    """Each statement opens with the sum of earlier entries, adds up, and closes where the next one opens."""
    cuts = sorted(set(cuts))
    previous = 0
    for start, end in itertools.pairwise(cuts):
        statement = read_statement(connection, account, start, end)
        assert statement is not None
        assert statement.opening_balance == previous == booked_before(connection, account, start)
        assert (
            statement.opening_balance + sum(line.amount for line in statement.lines)
            == statement.closing_balance
        )
        previous = statement.closing_balance
    assert previous == booked_before(connection, account, datetime.max.replace(tzinfo=START.tzinfo))


def booked_before(connection: Connection, account: ObjectKey, moment: datetime) -> int:
    """The sum of the balance's entries, from the first one on."""
    query = (
        select(tables.entries.c.amount)
        .join_from(tables.entries, tables.transactions)
        .join(tables.books, tables.books.c.id == tables.entries.c.book_id)
        .join(tables.accounts, tables.accounts.c.id == tables.transactions.c.account_id)
        .where(
            tables.accounts.c.key == str(account),
            tables.books.c.name == "balance",
            tables.transactions.c.recorded_at < to_micros(moment),
        )
    )
    return sum(connection.execute(query).scalars())


def plain(connection: Connection, start: datetime, end: datetime) -> list[dict[str, Any]]:
    """The stored calls of a period, with the paying account and the bound account."""
    bindings = {row.id: row for row in connection.execute(select(tables.bindings))}
    found = []
    for row in connection.execute(select(tables.usage_events)):
        if not to_micros(start) <= row.occurred_at < to_micros(end):
            continue
        binding = bindings.get(row.binding_id)
        service = ObjectKey.parse(row.service)
        found.append(
            row._asdict()
            | {
                "reservation_input_tokens": row.reservation_input,
                "reservation_output_tokens": row.reservation_output,
                "free_quota_tokens": row.quota_tokens,
                "namespace": service.namespace,
                "bound": SERVICES[service][0],
                "account": ObjectKey.parse(binding.account) if binding else None,
                "model": binding.model if binding else None,
                "time": START + timedelta(microseconds=row.occurred_at - to_micros(START)),
            }
        )
    return found


def key_of(event: dict[str, Any], groups: frozenset[Group], bucket: Bucket) -> tuple[Any, ...]:
    return (
        truncated(event["time"], bucket),
        event["service"] if Group.SERVICE in groups else None,
        event["model"] if Group.MODEL in groups else None,
        (event["api_key"] or "") if Group.API_KEY in groups else None,
    )


def figures(event: dict[str, Any]) -> dict[str, int]:
    names = (
        *("input_tokens", "cached_input_tokens", "output_tokens"),
        *("reservation_input_tokens", "reservation_output_tokens", "free_quota_tokens", "charge"),
    )
    return {"calls": 1} | {name: event[name] for name in names}


def place(row: UsageRow) -> tuple[Any, ...]:
    return (row.start, row.service, row.model, row.api_key)


def sums(row: UsageRow) -> dict[str, int]:
    return {name: getattr(row, name) for name in figures(dict.fromkeys(UsageRow.__slots__, 0))}
